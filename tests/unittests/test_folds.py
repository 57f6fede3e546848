"""Folds: who is held out."""

import random
import re
import shutil

import pandas as pd
import pytest
from corpus_tables import make_table

from speechbrain_wap.data.folds import FoldPlan, check_folds, list_sessions
from speechbrain_wap.errors import RecipeError


def test_sessions_are_ordered_as_people_count():
    table = make_table("abcdef")
    table["session"] = ["Tag 10", "a", "Tag 9", "Tag 10", "B", "3"]
    assert list_sessions(table) == ["3", "B", "Tag 9", "Tag 10", "a"]


def split(sessions, fold, protocol="paper"):
    """Sessions of each split of a table with an utterance in each session."""
    table = make_table(sessions, session=list(sessions))
    splits = FoldPlan(fold, protocol).split(table)
    return {name: list(part["session"]) for name, part in splits.items()}


@pytest.mark.parametrize("protocol", ["paper", "held_out"])
@pytest.mark.parametrize("number", [3, 5])
def test_each_session_is_held_out_once_and_never_trained_on(protocol, number):
    sessions = [f"s{i}" for i in range(number)]
    held_out, validated = [], []
    for fold in range(1, number + 1):
        splits = split(sessions, fold, protocol)
        (test,), (valid,) = splits["test"], splits["valid"]
        assert test not in splits["train"]
        assert valid not in splits["train"]
        assert {*splits["train"], test, valid} == set(sessions)
        assert (valid == test) == (protocol == "paper")
        held_out.append(test)
        validated.append(valid)
    assert held_out == sessions
    assert sorted(validated) == sessions


@pytest.mark.parametrize("protocol, least", [("paper", 2), ("held_out", 3)])
def test_too_few_sessions_are_refused(protocol, least):
    split("abc"[:least], 1, protocol)
    with pytest.raises(RecipeError, match=f"at least {least} sessions"):
        split("abc"[: least - 1], 1, protocol)
    with pytest.raises(RecipeError, match=r"fold 4 .*1 \(a\), 2 \(b\)"):
        split("abc", 4, protocol)


def say_first_mistake(check, plans):
    """What is wrong with the first fold that something is wrong with."""
    try:
        for one in plans:
            check(one)
    except RecipeError as error:
        return str(error)


@pytest.mark.parametrize("protocol", ["paper", "held_out"])
@pytest.mark.parametrize("seed", range(12))
def test_checking_all_folds_at_once_says_what_one_by_one_would(seed, protocol):
    draw = random.Random(seed)
    size, num_sessions = draw.choice([8, 30, 60]), draw.choice([2, 3, 6])
    sessions = [draw.randrange(num_sessions) for _ in range(size)]
    table = make_table(
        [draw.choice(["a", "a", "b", ""]) for _ in sessions],
        session=[f"s{s}" for s in sessions],
        speaker=[f"Speaker {s}" for s in sessions],
    )
    if seed % 3 == 0:  # a spelling of another session's speaker
        table.loc[draw.randrange(size), "speaker"] = "speaker_01"
    table.loc[table["session"] == draw.choice(["s1", "no"]), "emo"] = "a"
    classes, last = {"a": ["a"], "b": ["b"]}, seed % 2 + len({*sessions})
    plans = [FoldPlan(fold, protocol) for fold in range(1, last + 1)]
    checked = {"table": table, "classes": classes, "dialogue_style": "all"}
    found = say_first_mistake(lambda p: p.split_labelled(**checked), plans)
    at_once = say_first_mistake(lambda p: check_folds(p, **checked), [plans])
    assert at_once == found


def test_a_thousand_sessions_are_not_split_a_thousand_times(monkeypatch):
    """Else preparation would take the square of the time."""
    names = [f"s{number}" for number in range(1000)] * 4
    table = make_table("abab" * 1000, session=names, speaker=names)
    table["emo"] = ["a", "b"] * 2000
    monkeypatch.setattr(FoldPlan, "split", None)
    plans = [FoldPlan(fold) for fold in range(1, 1001)]
    check_folds(plans, table, {"a": ["a"], "b": ["b"]}, "all")


# Official splits -------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "DEV", " test "),
        ("training", "validation", "testing"),
        ("trn", "val", "tst"),
        ("train", "development", "Test"),
    ],
)
def test_the_column_split_says_who_trains_validates_and_tests(names):
    table = make_table("ababab", session="one")
    table["split"] = [*names, names[0], "", names[2]]
    # a column of the corpus's own
    table = table.assign(recorded_in="a studio", speaker="someone")
    splits = FoldPlan(1, "predefined").split(table)
    ids = {name: list(part["id"]) for name, part in splits.items()}
    assert ids == {"train": ["u0", "u3"], "valid": ["u1"], "test": ["u2", "u5"]}


@pytest.mark.parametrize(
    "fold, column, reason",
    [
        (1, None, "needs a column split.*it has emo, id, session"),
        (1, {"Set": ["train", "dev", "test"]}, "session.*, Set: call Set spl"),
        (1, [0, 1, 2], "u0: split=0 is none of"),
        (1, ["train", "eval", "test"], "u1: split=eval is none of"),
        (1, ["train", "dev", "test1"], "u2: split=test1 is none of"),
        (1, ["train", "dev", "fold 3"], "u2: split=fold 3 is none of"),
        (1, ["train", "", "test"], "no valid: write valid in the rows that"),
        (1, ["dev", "dev", "test"], "no train"),
        (1, ["train", "dev", ""], "no test"),
        (2, ["train", "dev", "test"], "fold 2 .*predefined has one"),
    ],
)
def test_a_column_split_that_does_not_say_it_is_refused(fold, column, reason):
    table = make_table("aba", session="one")
    if isinstance(column, dict):
        table = table.assign(**column)
    elif column is not None:
        table["split"] = column
    with pytest.raises(RecipeError, match=reason):
        FoldPlan(fold, "predefined").split(table)


@pytest.mark.parametrize(
    "column, names, warned",
    [
        ("split", ["train", "dev", "test"], "column split.*=predefined"),
        ("split", ["Test1", "Test2", "x"], "column split.*=predefined"),
        ("split", ["left", "right", "left"], None),
        ("Split_Set", ["Train", "Test1", "Development"], "call it split and"),
        ("partition", ["train", "", "validation"], "column partition,"),
        ("text", ["the train", "a test", "is late"], None),
        ("part", ["test", "dev", "dev"], None),
        ("session", ["train", "dev", "test"], "called dev, test, train"),
        ("session", ["MELD_Train", "eval-2", "x"], "called MELD_Train, eval-2"),
        ("session", ["trainset", "Dev set", "x"], "called Dev set, trainset"),
        ("session", ["trainer", "device", "latest"], None),
    ],
)
@pytest.mark.parametrize("protocol", ["paper", "held_out"])
def test_what_is_called_like_official_splits_is_warned_of(
    column, names, warned, protocol, caplog
):
    table = make_table("aba", session=["1", "2", "3"])
    table[column] = names
    FoldPlan(1, protocol).warn_of_splits(table)
    said = caplog.text.replace("\n", " ")
    assert re.search(warned, said) if warned else said == ""
    caplog.clear()


def test_speakers_of_several_official_splits_are_named_not_refused(
    prepare_classifier, own_csv, caplog
):
    """Rows of one speaker each are moved to the other split."""
    table = pd.read_csv(own_csv, keep_default_na=False)
    splits = ["train"] * 16 + ["dev"] * 15 + ["test"] * 9
    table.assign(split=splits).to_csv(own_csv, index=False)
    read = prepare_classifier(1, "predefined")
    assert [len(read[name]) for name in ("train", "valid", "test")] == [8, 8, 4]
    shared = "1 is in valid and test (s4m)"
    assert "Not speaker-independent: the official splits share s" in caplog.text
    assert shared in caplog.text
    # the same audio is another matter
    one, other = table["wav"][1], table["wav"][32]
    shutil.copy(own_csv.parent / one, own_csv.parent / other)
    with pytest.raises(RecipeError, match="1 utterances of the test.*s1f1"):
        prepare_classifier(1, "predefined")
