"""The encoders' checkpoints: found, read as they are, or refused by name.

Bits are to be equal where one utterance is encoded by the same weights, however
they were stored: the same operations in the same shapes.
"""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from encoder_cases import FAMILIES, edit_json, encode
from readings import FILES, SMALL, find_yaml
from safetensors.torch import load_file, save_file

from speechbrain_wap.encoders import SpeechEncoder, get_identity
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.reports.cross_validation_report import summarise_settings
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.cross_validation import CrossValidation
from speechbrain_wap.training.experiment import Experiment
from speechbrain_wap.training.settings import Reading


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache of the hub."""
    constants = huggingface_hub.constants
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_weights_in_a_bin_file_are_read_and_identified(
    sources, tmp_path, signal
):
    folder = shutil.copytree(sources["hubert"], tmp_path / "hubert")
    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    encoder = SpeechEncoder(str(folder))
    expected = encode(SpeechEncoder(sources["hubert"]), signal(0.5))
    assert torch.equal(encode(encoder, signal(0.5)), expected)
    before = get_identity(encoder)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert get_identity(encoder) != before


@pytest.mark.parametrize("kind", ["hubert", "w2v-bert"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_sample_rate_is_the_one_that_transformers_reads(
    sources, tmp_path, kind, nested
):
    folder = shutil.copytree(sources[kind], tmp_path / kind)
    path = folder / "preprocessor_config.json"
    edit_json(path, sampling_rate=8000)
    if nested:  # counts more than the other file
        extractor = json.loads(path.read_text())
        edit_json(folder / "processor_config.json", feature_extractor=extractor)
        edit_json(path, sampling_rate=48000)
    theirs = transformers.AutoFeatureExtractor.from_pretrained(folder)
    encoder = SpeechEncoder(str(folder))
    assert encoder.sample_rate == theirs.sampling_rate == 8000
    assert encoder.frame_rate == 25.0


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_config_may_leave_out_what_transformers_has_a_default_for(
    sources, tmp_path, signal, kind
):
    folder = shutil.copytree(sources[kind], tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    defaults = transformers.AutoConfig.for_model(config["model_type"])
    defaults = json.loads(json.dumps(defaults.to_dict()))
    short = {
        key: value
        for key, value in config.items()
        if key == "model_type" or defaults.get(key, "none") != value
    }
    assert len(short) < len(config) / 2
    assert not {"conv_stride", "conv_kernel", "max_source_positions"} & {*short}
    (folder / "config.json").write_text(json.dumps(short))
    expected = encode(SpeechEncoder(sources[kind], 1), signal(0.5))
    encoder = SpeechEncoder(str(folder), 1)
    assert torch.equal(encode(encoder, signal(0.5)), expected)


def cut(name, size=0):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return change


def alter_config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def drop_weights_of_a_layer(folder):
    path = folder / "model.safetensors"
    weights = {
        name: tensor
        for name, tensor in load_file(path).items()
        if "encoder.layers.1." not in name
    }
    save_file(weights, path, metadata={"format": "pt"})


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, text, *lost):
    """Another file, in the place of some."""

    def change(folder):
        for path in lost:
            (folder / path).unlink()
        (folder / name).write_text(text)

    return change


def split_weights(folder):
    """Two files with an index, of which the second is missing."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    places = {key: names[n % 2] for n, key in enumerate(weights)}
    kept = {k: w for k, w in weights.items() if places[k] == names[0]}
    save_file(kept, folder / names[0], metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def rename_weights(*prefixes):
    """Weights as a model within others has them."""

    def change(folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        renamed = {p + k: w + 0 for p in prefixes for k, w in weights.items()}
        save_file(renamed, path, metadata={"format": "pt"})

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
WEIGHTS, PREPROCESSOR = "model.safetensors", "preprocessor_config.json"
ONE_MODEL = "config.json asks for, first encoder.layers.1.*both from one model"


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
@pytest.mark.parametrize(
    "change, reason",
    [
        (drop(WEIGHTS), "holds no weights: a .safetensors or .bin file"),
        (cut(WEIGHTS, 1000), "is not whole .*: download it again"),
        (cut(WEIGHTS), "is not whole .*: download it again"),
        (write(WEIGHTS, POINTER), "pointer of Git LFS.*git lfs pull in"),
        (write("config.json", POINTER), "damaged.*git lfs pull in"),
        (write("tf_model.h5", "", WEIGHTS), "tf_model.h5, convert it"),
        (write("checkpoint.pt", "", WEIGHTS), "checkpoint.pt, convert it"),
        (write(f"{WEIGHTS}.incomplete", "", WEIGHTS), "half a download: fin"),
        (write("adapter_model.safetensors", "", WEIGHTS), "merge the LoRA"),
        (write("pytorch_model.bin", "<html>", WEIGHTS), "not whole.*again"),
        (
            lambda f: (f / WEIGHTS).rename(f / "model.fp16.safetensors"),
            "call the weights model.safetensors or",
        ),
        (split_weights, "lacks 1 of the 2 files that .*first model-00002-of"),
        (drop_weights_of_a_layer, ONE_MODEL),
        (rename_weights("student.", "teacher."), "student. and teacher., as"),
        (rename_weights("strange_"), "asks for, first .* such as strange_"),
        (
            alter_config(intermediate_size=64, encoder_ffn_dim=64),
            "take config.json and weights of one model",
        ),
        (drop("config.json"), "no config.json: take config.json from the mod"),
        (cut("config.json", 50), "config.json is damaged"),
        (write("config.json", "{}"), "names no model_type.*hubert.*whisper"),
        (alter_config(model_type="sew"), "'sew'.*hubert.*wavlm.*fbank"),
        (alter_config(model_type="data2vec-text"), "'data2vec-text'.*!new"),
        (write(PREPROCESSOR, "{half"), "preprocessor_config.json is damaged"),
        (
            write(PREPROCESSOR, '{"sampling_rate": "16k"}'),
            "sampling_rate is '16k'.*write the base model's into prepro",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_by_its_folder(
    sources, tmp_path, signal, kind, change, reason
):
    folder = shutil.copytree(sources[kind], tmp_path / "encoder")
    change(folder)
    with pytest.raises(RecipeError, match=f"{folder}.*{reason}"):
        encoder = SpeechEncoder(str(folder))
        get_identity(encoder)  # for the cache's key
        encode(encoder, signal(0.3))


def test_only_tokenizer_files_or_the_hubs_folder_are_no_checkpoint(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(RecipeError, match="no config.json: give the folder of"):
        SpeechEncoder(str(tmp_path))
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(RecipeError, match="one of the folders in its snapsh"):
        SpeechEncoder(str(tmp_path))


@pytest.mark.parametrize("kind", FAMILIES)
def test_without_a_preprocessor_the_base_models_is_named_or_is_not_needed(
    sources, tmp_path, signal, kind, caplog
):
    """Whether the waveform is normalised is not always told by config.json."""
    kind, bases = (kind, "data2vec|hubert-base-ls960|wav2vec2-b|wavlm-base")
    folder = shutil.copytree(sources[kind], tmp_path / kind)
    (folder / PREPROCESSOR).unlink()
    if kind in ("whisper", "w2v-bert"):
        expected = encode(SpeechEncoder(sources[kind]), signal(0.5))
        encoder = SpeechEncoder(str(folder))
        assert f"{folder} lacks {PREPROCESSOR}: what its family" in caplog.text
        assert torch.equal(encode(encoder, signal(0.5)), expected)
        return
    with pytest.raises(RecipeError, match=f"copy that file from .*({bases})"):
        SpeechEncoder(str(folder))


@pytest.mark.parametrize("kind", ["hubert-stable", "wavlm-stable"])
def test_layer_norm_needs_normalised_waveforms(
    sources, tmp_path, signal, kind, caplog
):
    folder = shutil.copytree(sources[kind], tmp_path / kind)
    (folder / PREPROCESSOR).unlink()
    expected = encode(SpeechEncoder(sources[kind]), signal(0.5))
    assert torch.equal(
        encode(SpeechEncoder(str(folder)), signal(0.5)), expected
    )
    assert f"{folder} lacks {PREPROCESSOR}: what its family" in caplog.text


@pytest.mark.parametrize("prefix", ["module.", "model.encoder.", "a.hubert."])
@pytest.mark.parametrize("kind", ["hubert", "wavlm", "w2v-bert", "whisper"])
def test_weights_of_a_model_within_another_are_found(
    sources, tmp_path, signal, kind, prefix
):
    folder = shutil.copytree(sources[kind], tmp_path / kind)
    rename_weights(prefix)(folder)
    encoder = SpeechEncoder(str(folder))
    expected = encode(SpeechEncoder(sources[kind]), signal(0.5))
    assert torch.equal(encode(encoder, signal(0.5)), expected)


def test_a_checkpoint_with_an_adapter_on_top_is_refused(sources, tmp_path):
    folder = shutil.copytree(sources["hubert"], tmp_path / "hubert")
    edit_json(folder / "config.json", add_adapter=True)
    with pytest.raises(RecipeError, match=f"{folder}.*add_adapter"):
        SpeechEncoder(str(folder))


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_weights_under_the_names_of_older_versions_are_all_read(
    sources, tmp_path, signal, kind
):
    """Most public checkpoints keep their weight norm as weight_g, weight_v."""
    folder = shutil.copytree(sources[kind], tmp_path / "old")
    path = folder / "model.safetensors"
    new = load_file(path)
    old = {
        re.sub(
            r"\.parametrizations\.weight\.original([01])",
            lambda match: [".weight_g", ".weight_v"][int(match[1])],
            name,
        ): tensor
        for name, tensor in new.items()
    }
    assert len(old.keys() - new.keys()) == 2
    save_file(old, path, metadata={"format": "pt"})
    feats, expected = (
        encode(SpeechEncoder(str(source)), signal(0.5))
        for source in (folder, sources[kind])
    )
    assert torch.equal(feats, expected)


@pytest.mark.parametrize("source", ["nobody/nothing", "./no/folder"])
def test_a_source_that_is_not_to_be_had_is_refused_by_name(offline, source):
    says = f"encoder_source={source} is no folder"
    with pytest.raises(RecipeError, match=f"^{says}.*$"):
        SpeechEncoder(source)


@pytest.fixture
def snapshot(offline, sources):
    """The folder of someone/hubert in the hub's cache."""
    repository = offline / "models--someone--hubert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    snapshot = repository / "snapshots" / "0123abc"
    return shutil.copytree(sources["hubert"], snapshot)


def test_a_checkpoint_in_the_hubs_cache_is_found_and_asks_for_no_network(
    snapshot, sources, signal, monkeypatch
):
    """Else each start without network would wait for it to time out."""
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", None)
    encoder = SpeechEncoder("someone/hubert")
    identity = get_identity(SpeechEncoder(sources["hubert"]))
    assert get_identity(encoder) == identity
    encode(encoder, signal(0.5))


OLDER = 4 * "9876fedcba"


@pytest.fixture
def two_commits(snapshot, make_checkpoint):
    """Of someone/hubert: main, and an older one, which is tagged."""
    older = make_checkpoint(snapshot.with_name(OLDER), "hubert", seed=7)
    refs = snapshot.parents[1] / "refs"
    (refs / "v1.0").write_text(OLDER)
    return {"main": str(snapshot), "v1.0": older}


@pytest.mark.parametrize(
    "revision, commit, name",
    [
        (None, "0123abc", "main"),
        ("main", "0123abc", "main"),
        ("0123abc", "0123abc", "main"),
        ("v1.0", OLDER, "v1.0"),
        (OLDER, OLDER, "v1.0"),
        (OLDER[:7], OLDER, "v1.0"),
    ],
)
def test_a_revision_chooses_the_weights_and_the_commit_is_known(
    two_commits, revision, commit, name
):
    encoder = SpeechEncoder("someone/hubert", revision=revision)
    assert encoder.revision == commit
    folder = SpeechEncoder(two_commits[name])
    assert get_identity(encoder) == get_identity(folder)  # the weights
    assert folder.revision is None


def test_a_revision_that_is_not_to_be_had_is_named(two_commits):
    says = "encoder_revision=v2 .*check both .the cache has 0123abc, 9876fedc"
    with pytest.raises(RecipeError, match=says):
        SpeechEncoder("someone/hubert", revision="v2")
    with pytest.raises(RecipeError, match="revision=123 must be text: put"):
        SpeechEncoder("someone/hubert", revision=123)
    for source in ("fbank", two_commits["main"]):
        with pytest.raises(RecipeError, match="revision=v1.0 is for hub ids"):
            SpeechEncoder(source, revision="v1.0")


@pytest.mark.parametrize("stage", ["adapter", "classifier"])
def test_the_commit_is_pinned_and_recorded(two_commits, workplace, stage):
    needed = {"adapter": ("masks",), "classifier": ("classes",)}[stage]
    options = [*SMALL[:1], *SMALL[2:], "--encoder_source=someone/hubert"]
    typed = [find_yaml(stage), *options, "--output_folder=out"]
    for revision, commit in ((None, "0123abc"), ("v1.0", OLDER)):
        more = [] if revision is None else [f"--encoder_revision={revision}"]
        experiment = Experiment(read_command([*typed, *more]), needed)
        assert experiment.settings["encoder_revision"] == commit
        line = f"\nencoder_revision: '?{commit}'? "
        assert re.search(line, experiment.text)
    # a folder has none
    typed[-2] = f"--encoder_source={two_commits['main']}"
    experiment = Experiment(read_command(typed), needed)
    assert experiment.settings["encoder_revision"] is None


def test_all_folds_have_the_encoder_that_the_first_one_had(two_commits):
    options = [*SMALL[:1], *SMALL[2:], "--encoder_source=someone/hubert"]
    plan = CrossValidation([*FILES, *options, "--output_folder=out"])
    plan.pin_encoders({"adapter": "0123abc", "classifier": "0123abc"})
    main = Path(two_commits["main"]).parents[1] / "refs" / "main"
    main.write_text(OLDER)  # it moves
    for command in plan.commands.values():
        assert Reading(command).build()["encoder"].revision == "0123abc"
    summary = summarise_settings(plan, [1])
    assert summary["classifier.encoder_revision"] == "0123abc"


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_half_a_checkpoint_in_the_hubs_cache_is_no_checkpoint(snapshot, lost):
    (snapshot / lost).unlink()
    with pytest.raises(RecipeError, match="encoder_source=someone/hubert"):
        SpeechEncoder("someone/hubert")


@pytest.mark.parametrize(
    "files",
    [
        ["model.safetensors", "pytorch_model.bin"],
        ["pytorch_model.bin", "tf_model.h5"],
    ],
)
def test_only_one_form_of_the_weights_is_downloaded(
    monkeypatch, sources, files
):
    asked = []

    def download(source, allow_patterns):
        choose = huggingface_hub.utils.filter_repo_objects
        there = ["config.json", *files]
        asked.extend(choose(there, allow_patterns=allow_patterns))
        return sources["hubert"]

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, source: files
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    SpeechEncoder("someone/hubert")
    assert asked == ["config.json", files[0]]


@pytest.mark.parametrize(
    "source",
    ["/none/here", "../none", "a/b/c", "https://huggingface.co/a/b", "a/b@v1"],
)
def test_what_can_be_no_hub_id_is_not_blamed_on_the_network(offline, source):
    says = f"encoder_source={source} is no folder, nor a hub id.*check the path"
    with pytest.raises(RecipeError, match=says):
        SpeechEncoder(source)
