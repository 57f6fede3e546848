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

SETTINGS = {key: f"some {key}" for key in MODEL_KEYS}
SETTINGS.update(encoder_source="fbank", number_of_epochs=3, mask_ratio=0.4)


@pytest.fixture
def make_adapter(prepare_adapter, tmp_path):
    """Records an adapter as its training does."""

    def make(fold=1, protocol="paper", data="train", given=None, **changed):
        folder = tmp_path / f"adapter {len(list(tmp_path.iterdir()))}"
        train = prepare_adapter(fold, protocol, data, **given or {})["train"]
        write_adapter_record(folder, {**SETTINGS, **changed}, train, data)
        return folder

    return make


@pytest.fixture
def make_universal(make_adapter):
    """Records an adapter that was trained on further tables alone."""

    def make(corpora, data="train", corpus_csv=None):
        given = {"corpora": corpora, "corpus_csv": corpus_csv}
        return make_adapter(data=data, given=given)

    return make


@pytest.fixture
def check(prepare_classifier, corpus):
    """Checks an adapter for a fold of the corpus under test."""

    def run(adapter, fold=1, protocol="paper", whole=True, **changed):
        splits = prepare_classifier(fold, protocol)
        table = corpus["corpus_table"] if whole else None
        settings = {**SETTINGS, "protocol": protocol, **changed}
        return check_adapter(adapter, settings, splits, table)

    return run


# Whom it has heard of its corpus under test ----------------------------------


@pytest.mark.parametrize("protocol", ["paper", "held_out"])
@pytest.mark.parametrize("fold", [1, 5])
def test_only_the_adapter_of_the_same_fold_is_taken(
    make_adapter, check, fold, protocol
):
    assert check(make_adapter(fold, protocol), fold, protocol)
    for other in {1, 2, 3, 4, 5} - {fold}:
        adapter = make_adapter(other, protocol)
        with pytest.raises(RecipeError) as error:
            check(adapter, fold, protocol)
        held_out = {fold, fold % 5 + 1} if protocol == "held_out" else {fold}
        assert str(error.value).split()[1][:2] in {f"s{k}" for k in held_out}
        assert str(adapter) in str(error.value)
    # of the same fold, but it has heard those who are validated on
    if protocol == "held_out":
        with pytest.raises(RecipeError, match="is in the valid split"):
            check(make_adapter(fold, "paper"), fold, protocol)


def test_official_splits_may_share_speakers_with_the_adapter(
    make_adapter, check, own_csv
):
    table = pd.read_csv(own_csv, keep_default_na=False)
    # each speaker is in several, but for s5f and s5m
    splits = [["train", "dev", "test"][i % 3] for i in range(40)]
    splits[32:] = ["test"] * 8
    table.assign(split=splits).to_csv(own_csv, index=False)
    adapter = make_adapter(1, "predefined")
    assert check(adapter, 1, "predefined")
    # another adapter has heard a held-out utterance, or speaker
    with pytest.raises(RecipeError, match="s1. .*same audio"):
        check(make_adapter(5), 1, "predefined")
    table.assign(split=["train"] * 33 + splits[33:]).to_csv(
        own_csv, index=False
    )
    heard = make_adapter(2, "paper")
    table["split"] = ["train"] * 8 + ["dev"] * 4 + ["test"] * 4 + [""] * 24
    table.to_csv(own_csv, index=False)
    with pytest.raises(RecipeError, match="speaker s2f is in the valid split"):
        check(make_adapter(1), 1, "predefined")
    assert check(heard, 1, "predefined")


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


def test_adapters_that_were_trained_otherwise_are_told_apart(
    make_adapter, prepare_classifier
):
    """Else a run would resume with another adapter's fine-tuning."""
    changes = [{}, {"mask_ratio": 0.2}, {"number_of_epochs": 4}]
    folders = [make_adapter(1, **changed) for changed in changes]
    folders.append(make_adapter(1, "held_out"))
    splits = prepare_classifier(1, "held_out")
    splits["valid"] = splits["test"]  # all of them may be used
    found = [check_adapter(folder, SETTINGS, splits) for folder in folders]
    assert all(found.count(identity) == 1 for identity in found)
    assert check_adapter(folders[0], SETTINGS, splits) == found[0]


# Whom it has heard in further tables -----------------------------------------


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


@pytest.mark.parametrize(
    "row, speakers, audio, said",
    [
        # by the name, in any spelling, unless names are the table's own
        (["u1", "s2f"], "shared", None, "table b.*speakers: own"),
        (["u1", "s_02_F"], "shared", None, "table b.*speakers: own"),
        (["s2f0", "2"], "own", None, "table b"),  # by the utterance's id
        (["u1", "anna"], "own", "s2f0", "table b.*s2f0 is the same audio"),
        (["u1", "anna"], "own", "s2f3", "s2f3 is the same"),  # in no class
    ],
)
def test_a_held_out_speaker_in_a_further_table_is_refused(
    make_universal, write_table, check, own_csv, row, speakers, audio, said
):
    if audio:  # in another lossless format
        wav = own_csv.parent / "wav" / f"{audio}.wav"
        row = [*row, wav.with_suffix(".flac")]
        soundfile.write(row[-1], *soundfile.read(wav, dtype="int16"))
    b = write_table("b", row)
    adapter = make_universal([{"table": b, "speakers": speakers}])
    identity = check(adapter, 1)
    with pytest.raises(RecipeError, match=f"speaker s2f .*{said}"):
        check(adapter, 2)
    if audio == "s2f3":
        check(adapter, 2, whole=False)  # its manifests do not list it
    if row == ["u1", "s2f"]:  # other people, but the same adapter
        own = make_universal([{"table": b, "speakers": "own"}])
        assert check(own, 2) == identity


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
    b = write_table("b", ("u1", "s1f"), ("u2", "s2f"), ("u3", "x", audio))
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


def test_a_damaged_record_or_none_is_named(
    make_universal, write_table, check, tmp_path
):
    adapter = make_universal([write_table("b", ("u1", "anna"))])
    path = adapter / "adapter.json"
    record = json.loads(path.read_text())
    del record["corpora"][0]["utterances"]
    path.write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="adapter.json is damaged.*utteran"):
        check(adapter)
    with pytest.raises(RecipeError, match="adapter_folder=.*nowhere"):
        check(tmp_path / "nowhere")


# What it is ------------------------------------------------------------------


def test_an_adapter_of_another_model_is_refused_by_the_key(
    make_adapter, prepare_classifier
):
    mine = dict.fromkeys((*MODEL_KEYS, *ENCODER_KEYS), "this")
    adapter, splits = make_adapter(1, **mine), prepare_classifier(1)
    check_adapter(adapter, mine, splits)
    for key in mine:
        changed = {**mine, key: "that"}
        if key in ENCODER_KEYS:
            changed["encoder_key"] = "that"
        # where no key of the encoder differs, what it was read from does
        named = "the content of encoder_source" if key == "encoder_key" else key
        with pytest.raises(RecipeError) as error:
            check_adapter(adapter, changed, splits)
        said = str(error.value)
        assert f"with {named}=this, but the classifier's is that" in said
        assert (f"--{key}=this" in said) == (key != "encoder_key")


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


def test_stage_2_starts_from_the_branch_that_was_asked_for(trained):
    folder, adapter = trained(), Network(0.0)
    for branch, value in (("teacher", 1.0), ("student", 2.0)):
        load_branch(folder, branch, adapter)
        assert (adapter.weight == value).all()
    with pytest.raises(RecipeError, match=f"{folder} does not fit.*bias"):
        load_branch(folder, "student", Network(0.0, size=3))


def test_an_adapter_training_that_is_not_finished_is_refused(
    trained, make_adapter
):
    with pytest.raises(RecipeError, match="not finished.* 2 of 3"):
        load_branch(trained(epoch=2), "teacher", Network(0.0))
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        load_branch(make_adapter(1), "teacher", Network(0.0))
