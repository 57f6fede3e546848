"""From a corpus to the manifests: who may see whom, in both stages."""

import pandas as pd
import pytest

from speechbrain_wap.data.folds import list_classes
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
