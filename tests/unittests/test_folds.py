"""Folds: what is a class, who is held out, and what the manifests say."""

import json
import random
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from speechbrain_wap.data.folds import (
    FoldPlan,
    check_folds,
    choose_classes,
    describe_data,
    label_utterances,
    list_classes,
    list_sessions,
    read_manifests,
    write_manifest,
)
from speechbrain_wap.errors import RecipeError


def make_table(emo, **columns):
    """A corpus table with the given labels."""
    table = pd.DataFrame({"emo": list(emo)})
    table["id"] = [f"u{i}" for i in range(len(table))]
    return table.assign(**columns)


# Classes ---------------------------------------------------------------------


IEMOCAP = {
    "angry": ["ang"],
    "happy": ["hap", "exc"],
    "sad": ["sad"],
    "neutral": ["neu"],
}


@pytest.mark.parametrize("classes", ["all", None])
def test_all_makes_each_label_a_class_in_natural_order(classes):
    table = make_table(["10", "", "b", "9", "a", "10"])
    chosen = choose_classes(table, classes)
    assert list(chosen.items()) == [(x, [x]) for x in ("9", "10", "a", "b")]


@pytest.mark.parametrize(
    "label", ["xxx", "Unknown", "n/a", "No agreement", "NA", "null", "?", "oth"]
)
def test_a_class_that_may_be_no_label_is_one_and_is_warned_of(label, caplog):
    table = make_table(["joy", "rage", label])
    assert label in choose_classes(table, "all")
    assert f"Of the classes, {label} may stand for no label" in caplog.text
    caplog.clear()
    choose_classes(table, {"joy": ["joy"], "other": [label]})  # as was asked
    choose_classes(make_table(["joy", "national", "another"]), "all")
    assert caplog.text == ""


def test_a_mapping_gives_the_classes_in_its_order():
    table = make_table(["neu", "ang", "exc", "sad", "fru", "", "1"])
    # a label alone, and a class that an override left out
    mapping = {"one": 1, "joy": None, **IEMOCAP}
    expected = {"one": ["1"], **IEMOCAP}
    assert list(choose_classes(table, mapping).items()) == [*expected.items()]


@pytest.mark.parametrize(
    "labels, classes, reason",
    [
        (["joy", ""], "all", "at least two classes"),
        ("ab", ["a", "b"], "must map each class"),
        ("ab", {"x": "a", "y": ["b", "a"]}, "label a .* two classes, x and y"),
        ("ab", {"x": ["a"], "y": ["c"]}, r"class y \(labels c\).* a, b"),
    ],
)
def test_classes_that_cannot_be_are_refused(labels, classes, reason):
    with pytest.raises(RecipeError, match=reason):
        choose_classes(make_table(labels), classes)


def test_utterances_of_the_classes_and_the_style_get_the_classs_name():
    table = make_table(["ang", "fru", "exc", "", "hap", "neu"])
    classes = {"angry": ["ang"], "happy": ["hap", "exc"], "calm": ["neu"]}
    named = label_utterances(table, classes)
    assert named["label"].tolist() == ["angry", "happy", "happy", "calm"]
    assert named["emo"].tolist() == ["ang", "exc", "hap", "neu"]
    assert "label" not in table
    # a corpus without styles takes any for all
    assert len(label_utterances(table, classes, "improvised")) == 4
    table["style"] = ["improvised", "scripted"] * 3
    mapping = {"happy": ["exc"], "angry": ["ang"]}
    kept = label_utterances(table, mapping, "improvised")
    assert kept["label"].tolist() == ["angry", "happy"]


def test_a_style_that_leaves_nothing_or_empties_a_class_is_refused():
    classes = {"a": ["a"], "b": ["b"]}
    table = make_table("aab", style=["improvised", "scripted", "scripted"])
    for style, reason in (
        ("sung", "sung.*improvised, scripted"),
        ("improvised", "class b .*improvised"),
    ):
        with pytest.raises(RecipeError, match=reason):
            label_utterances(table, classes, style)


@pytest.mark.parametrize(
    "classes, listed",
    [
        (
            {"x": ["h"], "sad": ["s"], "9": ["a"], "10": ["n"]},
            ["sad", "9", "10"],
        ),
        (None, ["9", "10", "sad"]),
        ("all", ["9", "10", "sad"]),
        ({"sad": ["s"]}, ["9", "10", "sad"]),
    ],
)
def test_classes_are_in_the_yamls_order_or_in_natural_order(classes, listed):
    train = {"u1": {"label": "sad"}, "u2": {"label": "10"}}
    splits = {"train": train, "test": {"u3": {"label": "9"}}}
    assert list_classes(splits, classes) == listed


# Sessions --------------------------------------------------------------------


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


# Manifests -------------------------------------------------------------------


def test_a_manifest_keeps_ids_of_any_script_and_labels(tmp_path):
    row = {"wav": "a.wav", "duration": 0.5, "speaker": "Ä", "session": "1"}
    row |= {"digest": "00", "sound": "01", "label": "happy"}
    table = make_table(["joy"], **row, **{"id": "録音 1"})
    write_manifest(table, tmp_path / "train.json")
    text = (tmp_path / "train.json").read_text("utf-8")
    assert json.loads(text) == {"録音 1": {**row, "emo": "joy"}}
    assert "録音 1" in text


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{}", "is empty"),
        ("{half", "cannot be read"),
        ('{"u 1": {"wav": "a.wav"}}', ".*u 1 lacks speaker"),
        (None, "cannot be read"),
    ],
)
def test_manifests_that_are_missing_empty_or_thin_are_named(
    prepare_classifier, manifests, content, reason
):
    prepare_classifier()
    Path(manifests["train"]).unlink()
    if content is not None:
        Path(manifests["train"]).write_text(content)
    with pytest.raises(RecipeError, match=f"train.json:? {reason}"):
        read_manifests(manifests)


def test_manifests_that_others_made_need_neither_digest_nor_duration(
    prepare_classifier, manifests
):
    splits = prepare_classifier(1, "held_out")
    for name, split in splits.items():
        for entry in split.values():
            for key in ("digest", "duration"):
                entry[f"my {key}"] = entry.pop(key)
        Path(manifests[name]).write_text(json.dumps(split))
    for split in read_manifests(manifests).values():
        for entry in split.values():
            assert entry["digest"] == entry["my digest"]
            assert entry["duration"] == pytest.approx(0.1)


def test_audio_that_has_changed_since_is_named(
    prepare_classifier, manifests, make_wav, corpus
):
    """Where the cache's folder is given; elsewhere, the files may be."""
    one, gone, *_ = prepare_classifier()["train"].values()
    Path(gone["wav"]).unlink()
    folder = {"cache_folder": corpus["cache_folder"]}
    read_manifests(manifests, **folder)
    make_wav(one["wav"], seed=99)
    read_manifests(manifests)
    with pytest.raises(RecipeError, match=f"{one['wav']} is not the file that"):
        read_manifests(manifests, **folder)


def test_a_speaker_of_both_sides_is_refused_and_audio_of_both_is_named(
    prepare_classifier, manifests, caplog
):
    splits = prepare_classifier(1, "held_out")
    (held_out, heard), (one, spoken) = (
        next(iter(splits[name].items())) for name in ("test", "train")
    )
    caplog.clear()
    read_manifests(manifests)
    assert "Leak" not in caplog.text
    spoken["sound"] = heard["sound"]  # in another format, by another name
    Path(manifests["train"]).write_text(json.dumps(splits["train"]))
    read_manifests(manifests)
    assert f"first {held_out} of speaker {heard['speaker']}" in caplog.text
    assert f"and {one} of speaker {spoken['speaker']}" in caplog.text
    assert "Leak: 1 utterances" in caplog.text
    spoken["speaker"] = heard["speaker"]
    Path(manifests["train"]).write_text(json.dumps(splits["train"]))
    with pytest.raises(RecipeError, match=f"{heard['speaker']} .*train.*test"):
        read_manifests(manifests)


def test_the_digest_of_the_data_is_of_what_they_are_and_not_of_the_place(
    prepare_classifier,
):
    splits = prepare_classifier()
    digest = describe_data(splits, ["a", "b"])
    moved = {
        name: {k: {**e, "wav": "elsewhere"} for k, e in reversed(split.items())}
        for name, split in splits.items()
    }
    assert describe_data(moved, ["a", "b"]) == digest
    assert describe_data(splits, ["b", "a"]) != digest
    (key, entry), *rest = splits["train"].items()
    for field in ("speaker", "label", "digest", None):
        changed = {key: {**entry, field: "other"}} if field else {}
        train = {**changed, **dict(rest)}
        assert describe_data({**splits, "train": train}, ["a", "b"]) != digest
