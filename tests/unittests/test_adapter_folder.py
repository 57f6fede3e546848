"""The adapter that stage 2 takes over: whom it may have heard, what it is."""

import json

import pandas as pd
import pytest
import soundfile
import torch

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.training.adapter_folder import (
    ENCODER_KEYS,
    MODEL_KEYS,
    check_adapter,
    describe_adapter,
    load_branch,
    write_adapter_record,
)
from speechbrain_wap.training.checkpoints import Checkpointer

PROTOCOLS = ["paper", "held_out"]
FOLDS = [1, 2, 3, 4, 5]
SETTINGS = {key: f"some {key}" for key in MODEL_KEYS}
SETTINGS.update(encoder_source="fbank", number_of_epochs=3, mask_ratio=0.4)


@pytest.fixture
def make_adapter(prepare_adapter, tmp_path):
    """Records an adapter as its training does."""

    def make(fold=1, protocol="paper", adapter_data="train", **changed):
        names = [f"{v}" for v in (fold, protocol, adapter_data, *changed)]
        folder = tmp_path / f"adapter-{'-'.join(names)}"
        train = prepare_adapter(fold, protocol, adapter_data)["train"]
        settings = {**SETTINGS, **changed}
        write_adapter_record(folder, settings, train, adapter_data)
        return folder

    return make


# Whom it has heard of its corpus under test ----------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fold", FOLDS)
def test_only_the_adapter_of_the_same_fold_is_taken(
    make_adapter, prepare_classifier, fold, protocol
):
    own = make_adapter(fold, protocol)
    others = [make_adapter(f, protocol) for f in FOLDS if f != fold]
    splits = prepare_classifier(fold, protocol)
    assert check_adapter(own, SETTINGS, splits)
    for other in others:
        with pytest.raises(RecipeError) as error:
            check_adapter(other, SETTINGS, splits)
        speakers = {
            entry["speaker"]
            for name in ("valid", "test")
            for entry in splits[name].values()
        }
        named = str(error.value).split()[1]
        assert named in speakers
        assert str(other) in str(error.value)


def test_an_adapter_that_saw_the_validation_speakers_is_refused(
    make_adapter, prepare_classifier
):
    adapter = make_adapter(1, "paper")  # trained on all but session 1
    splits = prepare_classifier(1, "held_out")  # validates on session 2
    with pytest.raises(RecipeError, match="speaker s2. is in the valid split"):
        check_adapter(adapter, SETTINGS, splits)


def test_a_speaker_is_recognised_in_utterances_the_adapter_did_not_see(
    make_adapter, prepare_classifier
):
    adapter = make_adapter(2)
    splits = prepare_classifier(1)
    for entry in splits["test"].values():
        entry["digest"] = f"{entry['digest'][::-1]}"  # other recordings
    splits["valid"] = splits["test"]
    with pytest.raises(RecipeError, match="speaker s1. is in"):
        check_adapter(adapter, SETTINGS, splits)


def test_an_adapter_of_another_corpus_may_share_speakers_names(
    make_adapter, prepare_classifier, caplog
):
    adapter = make_adapter(2)
    splits = prepare_classifier(1)
    caplog.clear()
    for split in splits.values():
        for entry in split.values():
            for kind in ("digest", "sound"):
                entry[kind] = entry[kind][::-1]
    others = {
        name: {f"other {key}": entry for key, entry in split.items()}
        for name, split in splits.items()
    }
    check_adapter(adapter, SETTINGS, others)
    # which is said, since they may be the same people
    (said,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "a speaker called s1f, too" in said
    # but another copy of the same corpus is known by its ids
    with pytest.raises(RecipeError, match="was trained on"):
        check_adapter(adapter, SETTINGS, splits)


def test_a_transductive_adapter_is_taken_as_asked_for(
    make_adapter, prepare_classifier
):
    adapter = make_adapter(1, adapter_data="all")
    assert check_adapter(adapter, SETTINGS, prepare_classifier(1))


def test_adapters_that_were_trained_otherwise_are_told_apart(
    make_adapter, prepare_classifier
):
    """Else a run would resume with another adapter's fine-tuning."""
    folders = [
        make_adapter(1),
        make_adapter(1, mask_ratio=0.2),
        make_adapter(1, number_of_epochs=4),
        make_adapter(1, "held_out"),
    ]
    splits = prepare_classifier(1, "held_out")
    splits["valid"] = splits["test"]  # all of them may be used
    found = [check_adapter(folder, SETTINGS, splits) for folder in folders]
    for i, identity in enumerate(found):
        assert identity not in found[:i]
    assert check_adapter(folders[0], SETTINGS, splits) == found[0]


# Whom it has heard in further tables -----------------------------------------


@pytest.fixture
def make_universal(prepare_adapter, tmp_path):
    """Records an adapter that was trained on further tables alone."""

    def make(corpora, adapter_data="train", corpus_csv=None):
        train = prepare_adapter(
            adapter_data=adapter_data, corpora=corpora, corpus_csv=corpus_csv
        )["train"]
        folder = tmp_path / "adapter"
        write_adapter_record(folder, SETTINGS, train, adapter_data)
        return folder

    return make


@pytest.fixture
def check(prepare_classifier, corpus):
    """Checks an adapter for a fold of the corpus under test."""

    def run(adapter, fold=1, protocol="paper", whole=True):
        splits = prepare_classifier(fold, protocol)
        table = corpus["corpus_table"] if whole else None
        return check_adapter(adapter, SETTINGS, splits, table)

    return run


def test_an_adapter_of_other_corpora_is_for_any_fold(
    make_universal, write_table, check
):
    adapter = make_universal([write_table("b", ("u1", "anna"))])
    assert len({check(adapter, fold) for fold in range(1, 6)}) == 1
    record = json.loads((adapter / "adapter.json").read_text())
    assert record["speakers"] == record["utterances"] == []
    (table,) = record["corpora"]
    assert table["name"] == "b" and table["speakers"] == ["anna"]
    said = describe_adapter(adapter)
    assert said == "3 epochs on 1 utterances of 1 speakers of b"


@pytest.mark.parametrize("name", ["s2f", "s_02_F"])
def test_a_held_out_speaker_in_any_table_is_refused(
    make_universal, write_table, check, name
):
    """By the name, in any spelling, unless names are the table's own."""
    b = write_table("b", ("u1", name))
    adapter = make_universal([b])
    before = check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2f.*table b.*own"):
        check(adapter, 2)
    with pytest.raises(RecipeError, match="valid split"):
        check(adapter, 1, "held_out")
    adapter = make_universal([{"table": b, "speakers": "own"}])
    check(adapter, 2)
    # what it has learned is the same
    assert check(adapter, 1) == before


def test_what_is_called_as_a_held_out_utterance_is_one(
    make_universal, write_table, check
):
    c = write_table("c", ("s2f0", "2"))
    adapter = make_universal({"table": c, "speakers": "own"})
    check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2f.*table c"):
        check(adapter, 2)


@pytest.mark.parametrize("speakers", ["own", "shared"])
def test_a_held_out_speakers_audio_is_refused_whatever_name_and_format(
    make_universal, write_table, check, own_csv, tmp_path, speakers
):
    copy = tmp_path / "copy.flac"
    audio = soundfile.read(own_csv.parent / "wav" / "s2f0.wav", dtype="int16")
    soundfile.write(copy, *audio)
    b = write_table("b", ("u1", "anna", copy))
    adapter = make_universal([{"table": b, "speakers": speakers}])
    check(adapter, 1)
    with pytest.raises(RecipeError, match="s2f .*table b.*s2f0 is the same"):
        check(adapter, 2)


def test_a_held_out_speaker_is_known_by_audio_that_is_in_no_class(
    make_universal, write_table, check, own_csv
):
    audio = own_csv.parent / "wav" / "s2f3.wav"  # without label
    adapter = make_universal([write_table("b", ("u1", "anna", audio))])
    with pytest.raises(RecipeError, match="s2f3 is the same audio"):
        check(adapter, 2)
    check(adapter, 2, whole=False)  # its manifests do not list it


def test_a_copy_of_the_corpus_is_known_though_its_names_are_its_own(
    make_universal, write_table, check, own_csv
):
    """At another sample rate, say: equal names and ids, other audio."""
    table = pd.read_csv(own_csv, keep_default_na=False)
    rows = zip(table["id"], table["speaker"])
    copy = write_table("copy", *(row for row in rows if row[1] != "s1f"))
    adapter = make_universal({"table": copy, "speakers": "own"})
    with pytest.raises(RecipeError, match="speaker s1m .*table copy"):
        check(adapter, 1)


def test_the_adapter_of_the_same_fold_is_taken_with_its_further_tables(
    make_universal, write_table, check, own_csv
):
    audio = own_csv.parent / "wav" / "s1f0.wav"
    rows = [("u1", "s1f"), ("u2", "s2f"), ("u3", "x", audio), ("u4", "x")]
    b = write_table("b", *rows)
    adapter = make_universal(b, corpus_csv=str(own_csv))
    check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2. is in"):
        check(adapter, 2)


def test_a_transductive_adapter_is_taken_whatever_the_table(
    make_universal, write_table, check, caplog
):
    adapter = make_universal([write_table("b", ("u1", "s2f"))], "all")
    check(adapter, 2)
    assert "transductive" in caplog.text and "s2f" in caplog.text


def test_a_record_that_lacks_something_is_named(
    make_universal, write_table, check
):
    adapter = make_universal([write_table("b", ("u1", "anna"))])
    path = adapter / "adapter.json"
    record = json.loads(path.read_text())
    del record["corpora"][0]["utterances"]
    path.write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="adapter.json is damaged.*utteran"):
        check(adapter)


# What it is ------------------------------------------------------------------


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_an_adapter_of_another_model_is_refused_by_the_key(
    make_adapter, prepare_classifier, key
):
    adapter = make_adapter(1)
    splits = prepare_classifier(1)
    changed = {**SETTINGS, key: "another"}
    name = "encoder_source" if key == "encoder_key" else key
    with pytest.raises(RecipeError, match=f"{name}.*{SETTINGS[key]}.*another"):
        check_adapter(adapter, changed, splits)


@pytest.mark.parametrize("key", ENCODER_KEYS)
def test_an_adapter_of_another_encoder_is_refused_by_the_key(
    make_adapter, prepare_classifier, key
):
    mine = {**dict.fromkeys(ENCODER_KEYS, "this"), "encoder_key": "a1"}
    adapter = make_adapter(1, **mine)
    splits = prepare_classifier(1)
    changed = {**SETTINGS, **mine, key: "that", "encoder_key": "b2"}
    with pytest.raises(RecipeError) as error:
        check_adapter(adapter, changed, splits)
    said = str(error.value)
    assert f"was trained with {key}=this, but the classifier's is that" in said
    assert f"--{key}=this" in said
    # where no key differs, what lies there does
    changed[key] = "this"
    with pytest.raises(RecipeError, match="content of encoder_source=a1.*b2"):
        check_adapter(adapter, changed, splits)


def test_a_record_may_be_completed(make_adapter, prepare_classifier):
    """A stage 2 that goes on is not another one for what was added since."""
    adapter, splits = make_adapter(1), prepare_classifier(1)
    identity = check_adapter(adapter, SETTINGS, splits)
    path = adapter / "adapter.json"
    record = json.loads(path.read_text())
    assert record.pop("sounds") and record.pop("encoder")
    path.write_text(json.dumps(record))
    assert check_adapter(adapter, SETTINGS, splits) == identity


def test_the_model_keys_are_those_of_both_stages_networks(repository):
    """A key of the network that no check compares would slip through."""
    from ruamel.yaml import YAML

    folder = repository / "recipes" / "IEMOCAP" / "wap_adapter" / "hparams"
    system = YAML().load(folder / "models" / "wap_sap.yaml")
    student = YAML().load(folder / "adapter.yaml")["student"]
    for network in (student, system["model"]["backbone"]):
        # the encoder gives the first two; of the start, nothing is left
        not_keys = {"input_size", "num_encoder_layers", "dropout"}
        not_keys |= {"projection_init", "residual_init"}
        assert set(network) - not_keys <= set(MODEL_KEYS)


def test_a_folder_without_adapter_is_named(prepare_classifier, tmp_path):
    with pytest.raises(RecipeError, match="adapter_folder=.*nowhere"):
        check_adapter(tmp_path / "nowhere", SETTINGS, prepare_classifier(1))


class Network(torch.nn.Linear):
    """Stands for a WAP-Transformer."""

    def __init__(self, value, size=2):
        super().__init__(size, size)
        torch.nn.init.constant_(self.weight, value)


@pytest.fixture
def trained(make_adapter):
    """An adapter's folder with its last checkpoint."""

    def make(epoch=3):
        folder = make_adapter(1)
        teacher = EMATeacher(Network(1.0))
        recoverables = {"student": Network(2.0), "teacher": teacher}
        checkpointer = Checkpointer(folder / "save", recoverables)
        checkpointer.save_checkpoint(meta={"epoch": epoch})
        return folder

    return make


@pytest.mark.parametrize("branch, value", [("teacher", 1.0), ("student", 2.0)])
def test_stage_2_starts_from_the_branch_that_was_asked_for(
    trained, branch, value
):
    adapter = Network(0.0)
    load_branch(trained(), branch, adapter)
    assert (adapter.weight == value).all()


def test_an_adapter_training_that_is_not_finished_is_refused(trained):
    with pytest.raises(RecipeError, match="not finished.* 2 of 3"):
        load_branch(trained(epoch=2), "teacher", Network(0.0))


def test_an_adapter_without_checkpoint_is_refused(make_adapter):
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        load_branch(make_adapter(1), "teacher", Network(0.0))


def test_weights_that_do_not_fit_are_refused_by_their_shape(trained):
    folder = trained()
    with pytest.raises(RecipeError, match="does not fit.*bias") as error:
        load_branch(folder, "student", Network(0.0, size=3))
    assert str(folder) in str(error.value)
