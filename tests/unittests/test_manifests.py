"""Manifests: what they say, and which are refused."""

import json
from pathlib import Path

import pytest
from corpus_tables import make_table

from speechbrain_wap.data.manifests import (
    describe_data,
    read_manifests,
    write_manifest,
)
from speechbrain_wap.errors import RecipeError


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
