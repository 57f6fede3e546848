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
