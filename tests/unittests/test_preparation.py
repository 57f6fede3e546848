"""From a corpus to the manifests: who may see whom, in both stages."""

import pandas as pd
import pytest

from speechbrain_wap.data.corpus_table import (
    read_own_corpus,
    write_corpus_table,
)
from speechbrain_wap.data.folds import FoldPlan, list_classes, read_manifests
from speechbrain_wap.data.preparation import prepare_adapter_data
from speechbrain_wap.errors import RecipeError

PROTOCOLS = ["paper", "held_out"]
FOLDS = [1, 5]


def sessions_of(split):
    return {entry["session"] for entry in split.values()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fold", FOLDS)
def test_stage_1_never_sees_the_session_that_stage_2_tests_on(
    prepare_adapter, prepare_classifier, fold, protocol
):
    adapter = prepare_adapter(fold, protocol)
    classifier = prepare_classifier(fold, protocol)
    held_out = {f"s{fold}"}
    assert sessions_of(classifier["test"]) == held_out
    assert not sessions_of(adapter["train"]) & held_out
    assert not sessions_of(adapter["valid"]) & held_out
    assert sessions_of(adapter["train"]) == sessions_of(classifier["train"])
    if protocol == "paper":
        assert adapter["valid"] == {}
        assert classifier["valid"] == classifier["test"]
    else:
        valid = {f"s{fold % 5 + 1}"}
        assert sessions_of(adapter["valid"]) == valid
        assert sessions_of(classifier["valid"]) == valid
        assert not sessions_of(classifier["train"]) & valid


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unlabelled_utterances_are_in_stage_1_and_not_in_stage_2(
    prepare_adapter, prepare_classifier, protocol
):
    adapter = prepare_adapter(2, protocol)["train"]
    classifier = prepare_classifier(2, protocol)["train"]
    assert {e["emo"] for e in adapter.values()} == {"joy", "rage", "calm", ""}
    assert {e["label"] for e in classifier.values()} == {"happy", "angry"}
    assert {e["emo"] for e in classifier.values()} == {"joy", "rage"}
    assert len(adapter) == 2 * len(classifier)
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


def test_the_recipes_corpus_is_prepared_where_no_own_one_is_given(
    corpus, manifests, own_csv
):
    calls = []

    def prepare_corpus(data_folder, corpus_table, **kept):
        calls.append((data_folder, corpus_table, sorted(kept)))
        return write_corpus_table(
            read_own_corpus(own_csv), corpus_table, **kept
        )

    corpus.update(
        prepare_corpus=prepare_corpus, data_folder="D", corpus_csv=None
    )
    prepare_adapter_data(corpus, FoldPlan(1), "train", manifests)
    table = corpus["corpus_table"]
    assert calls == [("D", table, ["audio_index", "max_skipped"])]
    assert len(read_manifests(manifests)["train"]) == 32


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


def test_a_class_absent_from_the_training_sessions_is_named(
    prepare_classifier, own_csv
):
    relabel(own_csv, ["s1", "s3", "s4", "s5"], "joy")
    with pytest.raises(RecipeError, match="class angry .* of fold 2"):
        prepare_classifier(fold=2)
    prepare_classifier(fold=1)


def test_a_held_out_session_without_labels_keeps_its_number(
    prepare_classifier, own_csv
):
    relabel(own_csv, ["s2"], "")
    with pytest.raises(RecipeError, match="fold 2 has no labelled utterance"):
        prepare_classifier(fold=2)
    splits = prepare_classifier(fold=3)
    assert sessions_of(splits["test"]) == {"s3"}


def test_a_speaker_of_two_sessions_is_caught_when_manifests_are_read(
    prepare_adapter, prepare_classifier, own_csv
):
    table = pd.read_csv(own_csv, keep_default_na=False)
    table.loc[table["speaker"] == "s5m", "speaker"] = "s1f"
    table.to_csv(own_csv, index=False)
    for prepare in (prepare_adapter, prepare_classifier):
        with pytest.raises(RecipeError, match="speaker s1f .*train"):
            prepare(fold=1)
        prepare(fold=2)  # both sessions are for training
