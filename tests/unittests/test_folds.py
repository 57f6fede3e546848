"""Folds: what is a class, who is held out, and what the manifests say."""

import json
from pathlib import Path

import pandas as pd
import pytest

from speechbrain_wap.data.folds import (
    FoldPlan,
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
        (["joy"], {"joy": ["joy"], "rage": None}, "at least two classes"),
        (["ang", "sad"], ["ang", "sad"], "must map each class"),
        (
            "ab",
            {"x": ["a"], "y": ["b", "a"]},
            "label a .* two classes, x and y",
        ),
        ("ab", {"x": ["a"], "y": ["c"]}, r"class y \(labels c\).* a, b"),
    ],
)
def test_classes_that_cannot_be_are_refused(labels, classes, reason):
    with pytest.raises(RecipeError, match=reason):
        choose_classes(make_table(labels), classes)


def test_classes_of_another_corpus_give_way_to_the_tables_labels(caplog):
    table = make_table(["joy", "rage", "joy", ""])
    chosen = choose_classes(table, IEMOCAP, explicit=False)
    assert chosen == {"joy": ["joy"], "rage": ["rage"]}
    for part in ("angry, happy, sad, neutral", "joy, rage", "--classes"):
        assert part in caplog.text


def test_utterances_of_the_classes_get_the_classs_name():
    table = make_table(["ang", "fru", "exc", "", "hap", "neu", "sad"])
    labelled = label_utterances(table, IEMOCAP)
    assert labelled["label"].tolist() == [
        *["angry", "happy", "happy", "neutral", "sad"]
    ]
    assert labelled["emo"].tolist() == ["ang", "exc", "hap", "neu", "sad"]
    assert "label" not in table


def test_the_style_keeps_its_dialogues_only():
    classes = {"a": ["a"], "b": ["b"]}
    table = make_table("aabb", style=["improvised", "scripted"] * 2)
    kept = {
        style: label_utterances(table, classes, style)["id"].tolist()
        for style in ("all", "improvised", "scripted")
    }
    assert kept == {
        "all": ["u0", "u1", "u2", "u3"],
        "improvised": ["u0", "u2"],
        "scripted": ["u1", "u3"],
    }
    # a corpus without styles takes any for all
    table = table.drop(columns="style")
    assert len(label_utterances(table, classes, "improvised")) == 4


def test_a_style_that_leaves_nothing_or_empties_a_class_is_refused():
    classes = {"a": ["a"], "b": ["b"]}
    table = make_table("aab", style=["improvised", "scripted", "scripted"])
    with pytest.raises(RecipeError, match="sung.*improvised, scripted"):
        label_utterances(table, classes, "sung")
    with pytest.raises(RecipeError, match="class b .*improvised"):
        label_utterances(table, classes, "improvised")


def labelled(*labels):
    return {f"u{i}": {"label": label} for i, label in enumerate(labels)}


def test_classes_are_listed_in_the_yamls_order():
    splits = {"train": labelled("sad", "angry"), "test": labelled("happy")}
    yaml = {"happy": ["h"], "sad": ["s"], "angry": ["a"], "neutral": ["n"]}
    assert list_classes(splits, yaml) == ["happy", "sad", "angry"]


@pytest.mark.parametrize("classes", [None, "all", {"sad": ["s"]}])
def test_classes_that_the_yaml_does_not_order_are_in_natural_order(classes):
    splits = {"train": labelled("sad", "10"), "test": labelled("9", "happy")}
    assert list_classes(splits, classes) == ["9", "10", "happy", "sad"]


# Sessions --------------------------------------------------------------------


def test_sessions_are_ordered_as_people_count():
    table = make_table("abcdef")
    table["session"] = ["10", "9", "10", "1", "2", "9"]
    assert list_sessions(table) == ["1", "2", "9", "10"]
    table["session"] = ["Tag 10", "a", "Tag 9", "Tag 10", "B", "3"]
    assert list_sessions(table) == ["3", "B", "Tag 9", "Tag 10", "a"]


def split(sessions, fold, protocol="paper"):
    """Sessions of each split of a table with an utterance in each session."""
    table = make_table(sessions, session=sessions)
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
    split(list("abc")[:least], 1, protocol)
    with pytest.raises(RecipeError, match=f"at least {least} sessions"):
        split(list("abc")[: least - 1], 1, protocol)
    with pytest.raises(RecipeError, match=r"fold 4 .*1 \(a\), 2 \(b\)"):
        split(list("abc"), 4, protocol)


# Manifests -------------------------------------------------------------------


def test_a_manifest_keeps_ids_of_any_script_and_labels(tmp_path):
    table = make_table(["joy"], wav="a.wav", duration=0.5, speaker="Ä")
    table = table.assign(session="1", digest="00", sound="01", id="録音 1")
    write_manifest(table, tmp_path / "train.json")
    text = (tmp_path / "train.json").read_text("utf-8")
    assert "録音 1" in text
    entry = json.loads(text)["録音 1"]
    assert entry == {
        **{"wav": "a.wav", "duration": 0.5, "speaker": "Ä"},
        **{"session": "1", "emo": "joy", "digest": "00", "sound": "01"},
    }
    write_manifest(table.assign(label="happy"), tmp_path / "train.json")
    entry = json.loads((tmp_path / "train.json").read_text("utf-8"))["録音 1"]
    assert entry["label"] == "happy"


def test_manifests_that_are_missing_empty_or_thin_are_named(
    prepare_classifier, manifests
):
    splits = prepare_classifier()

    def write(name, content):
        with open(manifests[name], "w", encoding="utf-8") as file:
            file.write(content)

    write("train", "{}")
    with pytest.raises(RecipeError, match="train.json is empty"):
        read_manifests(manifests)
    write("train", "{half")
    with pytest.raises(RecipeError, match="train.json cannot be read"):
        read_manifests(manifests)
    write("train", json.dumps(splits["train"]))
    write("test", json.dumps({"u 1": {"wav": "a.wav"}}))
    with pytest.raises(RecipeError, match="test.json: .*u 1 lacks speaker"):
        read_manifests(manifests)
    manifests["valid"] += "x"
    with pytest.raises(RecipeError, match="valid.jsonx cannot be read"):
        read_manifests(manifests)


@pytest.mark.parametrize("absent", ["digest", "duration"])
def test_manifests_that_others_made_need_neither_digest_nor_duration(
    prepare_classifier, manifests, absent
):
    splits = prepare_classifier(1, "held_out")
    for name, split in splits.items():
        kept = {
            key: {k: v for k, v in entry.items() if k != absent}
            for key, entry in split.items()
        }
        Path(manifests[name]).write_text(json.dumps(kept), "utf-8")
    read = read_manifests(manifests)
    for name, split in splits.items():
        for key, entry in split.items():
            assert read[name][key]["digest"] == entry["digest"]
            assert read[name][key]["duration"] == pytest.approx(0.1)


def test_audio_that_has_changed_since_is_named(
    prepare_classifier, manifests, make_wav, corpus
):
    """Where the cache's folder is given; elsewhere, the files may be."""
    one, gone, *_ = prepare_classifier()["train"].values()
    Path(gone["wav"]).unlink()
    cache_folder = corpus["cache_folder"]
    read_manifests(manifests, cache_folder=cache_folder)
    make_wav(one["wav"], seed=99)
    read_manifests(manifests)
    with pytest.raises(RecipeError, match=f"{one['wav']} is not the file that"):
        read_manifests(manifests, cache_folder=cache_folder)


def test_a_leak_in_manifests_that_others_made_is_caught(
    prepare_classifier, manifests
):
    splits = prepare_classifier(1, "held_out")
    key, entry = next(iter(splits["test"].items()))
    leaked = {**splits["train"], key: entry}
    with open(manifests["train"], "w", encoding="utf-8") as file:
        json.dump(leaked, file)
    with pytest.raises(RecipeError, match=f"{entry['speaker']} .*train.*test"):
        read_manifests(manifests)


def test_audio_of_both_sides_is_said_by_name(
    prepare_classifier, manifests, caplog
):
    """By other names: a mistake of the corpus, which flatters the scores."""
    splits = prepare_classifier(1, "held_out")
    (held_out, heard), (one, spoken) = (
        next(iter(splits[name].items())) for name in ("test", "train")
    )
    caplog.clear()
    read_manifests(manifests)
    assert "same audio" not in caplog.text
    spoken["sound"] = heard["sound"]  # in another format
    Path(manifests["train"]).write_text(json.dumps(splits["train"]))
    read_manifests(manifests)
    assert f"first {held_out} of speaker {heard['speaker']}" in caplog.text
    assert f"and {one} of speaker {spoken['speaker']}" in caplog.text
    assert "Leak: 1 utterances" in caplog.text


def test_the_digest_of_the_data_is_of_what_they_are_and_not_of_the_place(
    prepare_classifier,
):
    splits = prepare_classifier()
    digest = describe_data(splits, ["a", "b"])
    moved = json.loads(json.dumps(splits))
    for entry in moved["train"].values():
        entry["wav"] = f"/elsewhere/{entry['wav']}"
    shuffled = {
        name: dict(reversed(list(split.items())))
        for name, split in moved.items()
    }
    assert describe_data(shuffled, ["a", "b"]) == digest
    assert describe_data(splits, ["b", "a"]) != digest
    key = next(iter(splits["train"]))
    for field in ("speaker", "label", "digest"):
        changed = json.loads(json.dumps(splits))
        changed["train"][key][field] = "other"
        assert describe_data(changed, ["a", "b"]) != digest
    without = {**splits, "train": dict(list(splits["train"].items())[1:])}
    assert describe_data(without, ["a", "b"]) != digest
