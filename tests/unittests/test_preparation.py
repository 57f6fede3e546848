"""From a corpus to the manifests: who may see whom, in both stages."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechbrain_wap.data.classes import list_classes
from speechbrain_wap.data.corpus_table import RECORDED_IN
from speechbrain_wap.data.folds import FoldPlan, list_sessions
from speechbrain_wap.data.manifests import describe_data, read_manifests
from speechbrain_wap.data.preparation import (
    prepare_classifier_data,
    prepare_table,
)
from speechbrain_wap.errors import RecipeError

PROTOCOLS = ["paper", "held_out"]


def sessions_of(split):
    return {entry["session"] for entry in split.values()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fold", [1, 5])
def test_stage_1_never_sees_the_session_that_stage_2_tests_on(
    prepare_adapter, prepare_classifier, fold, protocol
):
    stages = prepare_adapter(fold, protocol), prepare_classifier(fold, protocol)
    adapter, classifier = (
        {name: sessions_of(split) for name, split in splits.items()}
        for splits in stages
    )
    held_out, valid = {f"s{fold}"}, {f"s{fold % 5 + 1}"}
    assert classifier["test"] == held_out
    assert not (adapter["train"] | adapter["valid"]) & held_out
    assert adapter["train"] == classifier["train"]
    if protocol == "paper":
        assert adapter["valid"] == set()
        assert stages[1]["valid"] == stages[1]["test"]
    else:
        assert adapter["valid"] == classifier["valid"] == valid
        assert not classifier["train"] & (held_out | valid)


def test_unlabelled_utterances_are_in_stage_1_and_not_in_stage_2(
    prepare_adapter, prepare_classifier
):
    adapter = prepare_adapter(2)["train"]
    classifier = prepare_classifier(2)["train"]
    assert {e["emo"] for e in adapter.values()} == {"joy", "rage", "calm", ""}
    assert {e["emo"] for e in classifier.values()} == {"joy", "rage"}
    assert not any("label" in entry for entry in adapter.values())
    assert classifier.keys() < adapter.keys()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_data_are_for_training_where_that_is_asked_for(
    prepare_adapter, protocol, caplog
):
    splits = prepare_adapter(3, protocol, adapter_data="all")
    assert sessions_of(splits["train"]) == {f"s{i}" for i in range(1, 6)}
    assert len(splits["train"]) == 40
    assert splits["valid"] == splits["test"] == {}
    assert "held-out session" in caplog.text
    # labels are those of the training sessions only, whoever reads them
    kept = {"s1", "s2", "s5"} | ({"s4"} if protocol == "paper" else set())
    for entry in splits["train"].values():
        number = int(entry["wav"].rpartition("/")[2][-5])
        label = ("joy", "rage", "calm", "")[number]
        assert entry["emo"] == (label if entry["session"] in kept else "")


def test_classes_are_the_own_corpuss_unless_the_user_maps_them(
    prepare_classifier, caplog
):
    iemocap = {"angry": ["ang"], "sad": ["sad"]}
    splits = prepare_classifier(classes=iemocap, explicit=False)
    names = ["calm", "joy", "rage"]
    assert list_classes(splits, iemocap) == names
    assert "do not fit" in caplog.text
    with pytest.raises(RecipeError, match="class angry .*calm, joy, rage"):
        prepare_classifier(classes=iemocap, explicit=True)


def relabel(own_csv, session, emo):
    table = pd.read_csv(own_csv, keep_default_na=False)
    table.loc[table["session"].isin(session), "emo"] = emo
    table.to_csv(own_csv, index=False)


def test_labels_may_lack_in_a_fold_and_the_others_keep_their_numbers(
    prepare_classifier, own_csv
):
    relabel(own_csv, ["s1", "s3", "s4", "s5"], "joy")
    with pytest.raises(RecipeError, match="class angry .* of fold 2"):
        prepare_classifier(fold=2)
    relabel(own_csv, ["s1"], "")
    with pytest.raises(RecipeError, match="fold 1 has no labelled utterance"):
        prepare_classifier(fold=1)
    splits = prepare_classifier(fold=3)
    assert sessions_of(splits["test"]) == {"s3"}


# Leave one speaker out -------------------------------------------------------


@pytest.mark.parametrize("fold", [1, 10])
def test_a_fold_may_be_a_speaker_whom_neither_stage_hears(
    corpus, prepare_adapter, manifests, fold
):
    corpus["fold_by"] = "speaker"
    table = prepare_table(**corpus)
    speakers = list_sessions(table)
    assert len(speakers) == 10 and set(speakers) == set(table["speaker"])
    assert set(table[RECORDED_IN]) == {"s1", "s2", "s3", "s4", "s5"}
    splits = prepare_adapter(fold)
    heard = {entry["speaker"] for entry in splits["train"].values()}
    assert heard == set(speakers) - {speakers[fold - 1]}
    classes = {"happy": ["joy"], "angry": ["rage"]}
    plan = FoldPlan(fold)
    prepare_classifier_data(corpus, plan, classes, True, "all", manifests)
    splits = read_manifests(manifests)
    assert sessions_of(splits["test"]) == {speakers[fold - 1]}
    assert {e["speaker"] for e in splits["train"].values()} == heard
    # a run's table is folded as it was, whatever is asked for
    again = {**corpus, "corpus_csv": corpus["corpus_table"]}
    for fold_by in ("session", "speaker"):
        found = prepare_table(**{**again, "fold_by": fold_by})
        assert list_sessions(found) == speakers
        assert found[RECORDED_IN].tolist() == table[RECORDED_IN].tolist()


def test_what_fold_by_cannot_be_is_refused(corpus):
    with pytest.raises(RecipeError, match="fold_by=person"):
        prepare_table(**corpus, fold_by="person")
    table = prepare_table(**corpus, fold_by="speaker").assign(split="train")
    with pytest.raises(RecipeError, match="fold_by=speaker cannot change"):
        FoldPlan(1, "predefined").split(table)


# Parts of files --------------------------------------------------------------


def join_files(csv, name="joined.csv"):
    """Rewrites a corpus: one file per session, and where in it who speaks."""
    table = pd.read_csv(csv, keep_default_na=False)
    for session, rows in table.groupby("session"):
        samples, stop = [], 0.0
        for row in rows.index:
            signal, rate = soundfile.read(
                csv.parent / table["wav"][row], dtype="int16"
            )
            start = stop + 0.05
            stop = start + len(signal) / rate
            samples += [np.ones(800, "int16"), signal]
            table.loc[row, ["start", "stop"]] = round(start, 3), round(stop, 3)
        soundfile.write(
            csv.parent / f"{session}.flac", np.concatenate(samples), rate
        )
    table["wav"] = table["session"] + ".flac"
    table.to_csv(csv.parent / name, index=False)
    return csv.parent / name


@pytest.mark.parametrize("stage", ["adapter", "classifier"])
def test_parts_of_files_are_used_as_files_of_their_own(
    request, stage, own_csv, corpus, manifests, make_cache
):
    prepare = request.getfixturevalue(f"prepare_{stage}")
    plain = prepare(1, "held_out")
    own_csv.rename(own_csv.with_name("plain.csv"))
    join_files(own_csv.with_name("plain.csv"), "own.csv")
    splits = prepare(1, "held_out")
    cache = make_cache()
    for name, split in splits.items():
        assert split.keys() == plain[name].keys()
        for key, entry in split.items():
            whole = plain[name][key]
            for field in ("sound", "speaker", "emo"):
                assert entry[field] == whole[field]
            assert entry["duration"] == pytest.approx(0.1)
            both = {e["digest"]: e for e in (entry, whole)}
            assert len(both) == 2 and cache.extract(both) == {}
            feats, expected = map(cache.read, both)
            assert torch.equal(feats, expected)
    assert describe_data(splits) != describe_data(plain)
    # the manifests serve again, unless the table's times have changed
    folder = {"cache_folder": corpus["cache_folder"]}
    assert read_manifests(manifests, **folder) == splits
    entry = next(iter(splits["train"].values()))
    entry["start"] -= 0.01
    Path(manifests["train"]).write_text(json.dumps(splits["train"]))
    with pytest.raises(RecipeError, match="is not the file that it was"):
        read_manifests(manifests, **folder)
    # a manifest of one's own needs no digests
    for split in splits.values():
        for entry in split.values():
            for field in ("digest", "sound", "file_sound", "duration"):
                entry.pop(field, None)
    for name, split in splits.items():
        Path(manifests[name]).write_text(json.dumps(split))
    found = read_manifests(manifests)["valid"]
    assert all(
        "file_sound" in e and e["duration"] < 0.12 for e in found.values()
    )


def test_parts_join_a_corpus_of_whole_files_and_know_the_held_out_ones(
    prepare_adapter, own_csv, left_out_csv, make_wav, tmp_path
):
    folder = tmp_path / "further"
    make_wav(folder / "long.wav", 2.0, seed=77)
    audio = [soundfile.read(folder / "long.wav", dtype="int16")[0]]
    audio.append(
        soundfile.read(own_csv.parent / "wav/s1f0.wav", dtype="int16")[0]
    )
    soundfile.write(folder / "long.wav", np.concatenate(audio), 16000)
    rows = (
        "a,long.wav,anna,1,,0,1\nb,long.wav,ben,1,,1,2\nc,long.wav,cleo,1,,2,"
    )
    (folder / "b.csv").write_text(
        f"id,wav,speaker,session,emo,start,end\n{rows}\n"
    )
    splits = prepare_adapter(1, corpora=str(folder / "b.csv"))
    train = splits["train"]
    assert [key for key in train if "/" in key] == ["b/a", "b/b"]
    assert train["b/b"]["start"] == 1.0 and train["b/b"]["duration"] == 1.0
    assert "start" not in train["s2f0"]
    reason = pd.read_csv(left_out_csv)["reason"][0]
    assert "b/c is the audio of s1f0, which is held out" in reason


@pytest.mark.parametrize("overlap, is_leak", [(0.06, True), (0.0, False)])
def test_parts_that_overlap_in_training_and_test_are_named(
    prepare_classifier, own_csv, make_wav, caplog, overlap, is_leak
):
    table = pd.read_csv(own_csv, keep_default_na=False)
    is_first = table["id"].isin(["s1f0", "s2f0"])
    make_wav(own_csv.parent / "two.wav", 1.0)
    table.loc[is_first, "wav"] = "two.wav"
    table.loc[is_first, "start"] = [0.0, 0.5 - overlap]
    table.loc[is_first, "end"] = [0.5, 1.0]
    table.to_csv(own_csv, index=False)
    prepare_classifier()
    assert ("Leak: 1 utterances" in caplog.text) == is_leak
