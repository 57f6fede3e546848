"""The encoders' identity: the same for the same features, and for no others."""

import importlib.util
import inspect
import json
import shutil
import sys

import pytest
import torch
from encoder_cases import FAMILIES, NUM_LAYERS, Blocks, edit_json

from speechbrain_wap.encoders import SpeechEncoder, get_identity, speech_encoder


def identify(source, *args):
    """The identity of the encoder of a source."""
    return get_identity(SpeechEncoder(str(source), *args))


@pytest.mark.parametrize("kind", ["fbank", *FAMILIES])
def test_identity_is_plain_and_stays_after_loading(sources, kind):
    encoder = SpeechEncoder(sources[kind])
    before = json.dumps(get_identity(encoder), sort_keys=True)
    encoder.load("cpu")
    assert json.dumps(get_identity(encoder), sort_keys=True) == before


def test_identity_tells_the_contexts_of_whisper_apart(sources):
    full, clip = (
        identify(sources["whisper"], "last", context)
        for context in ("full", "clip")
    )
    assert {key for key in full if full[key] != clip[key]} == {"context"}
    assert identify(sources["whisper"]) == full


def test_identity_changes_with_the_version_of_the_features(
    sources, monkeypatch
):
    made = [SpeechEncoder(sources[kind]) for kind in ("fbank", "hubert")]
    before = [get_identity(encoder) for encoder in [*made, Blocks()]]
    monkeypatch.setattr(speech_encoder, "FEATURES_VERSION", -1)
    after = [get_identity(encoder) for encoder in [*made, Blocks()]]
    for old, new in zip(before, after):
        assert {key for key in old if old[key] != new[key]} == {"version"}


OWN_MODULE = """
import torch

class Own(torch.nn.Module):
    {}
    def forward(self, wavs, lens):
        return {} * wavs.unfold(1, 320, 320)
"""


@pytest.mark.parametrize("head", ["", "identity = lambda self: {'name': 1}"])
def test_identity_changes_with_the_code_of_an_own_module(
    tmp_path, monkeypatch, head
):
    path = tmp_path / "own_module.py"

    def identify_own(factor):
        path.write_text(OWN_MODULE.format(head, factor))
        spec = importlib.util.spec_from_file_location("own_module", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own_module", module)
        spec.loader.exec_module(module)
        return get_identity(module.Own())

    assert identify_own(1) == identify_own(1)
    assert identify_own(1) != identify_own(2)


def edit(name, **changes):
    """Makes a change of a JSON file in a folder."""
    return lambda folder: edit_json(folder / name, **changes)


def flip_a_bit_of_the_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def test_identity_is_the_same_wherever_the_checkpoint_lies(sources, tmp_path):
    before = identify(sources["hubert"])
    copy = shutil.copytree(sources["hubert"], tmp_path / "else" / "my hubert")
    assert identify(copy) == identify(f"{copy}/") == before


def test_identity_tells_the_layers_apart(sources):
    hubert = sources["hubert"]
    identities = [identify(hubert, layer) for layer in (0, 1, 2, "last")]
    for index, identity in enumerate(identities):
        assert identity not in identities[:index]
    assert identities[-1] == identify(hubert, NUM_LAYERS)


@pytest.mark.parametrize(
    "change",
    [
        flip_a_bit_of_the_weights,
        edit("config.json", hidden_act="relu"),
        edit("config.json", num_conv_pos_embedding_groups=4),
        edit("preprocessor_config.json", do_normalize=False),
    ],
)
def test_identity_changes_with_everything_in_the_checkpoint(
    sources, tmp_path, change
):
    copy = shutil.copytree(sources["hubert"], tmp_path / "hubert")
    change(copy)
    assert identify(copy) != identify(sources["hubert"])


def test_identity_changes_with_the_preprocessor_in_a_processor_config(
    sources, tmp_path, signal
):
    """Transformers 5 reads it from there, and rather than elsewhere."""
    folder = shutil.copytree(sources["hubert"], tmp_path / "hubert")
    text = (folder / "preprocessor_config.json").read_text()
    extractor = json.loads(text)
    identities, feats = [], []
    for do_normalize in (True, False):
        extractor["do_normalize"] = do_normalize
        text = json.dumps({"feature_extractor": extractor})
        (folder / "processor_config.json").write_text(text)
        encoder = SpeechEncoder(str(folder))
        identities.append(get_identity(encoder))
        feats.append(encoder(signal(0.2)[None], torch.ones(1)))
    if torch.equal(*feats):
        pytest.skip("this version of transformers does not read that file")
    assert identities[0] != identities[1]


def test_equal_own_modules_have_the_same_identity():
    identity = get_identity(Blocks())
    assert get_identity(Blocks().eval()) == identity
    assert get_identity(Blocks(2.0)) != identity


class Front(torch.nn.Module):
    def __init__(self, window):
        super().__init__()
        self.window = window


def with_part(window):
    encoder = Blocks()
    encoder.front = Front(window)
    return encoder


class Mine(Blocks):
    """A class of one's own."""


class Other(Blocks):
    """Another one of the same weights, attributes and file."""


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(Blocks(), Blocks().half(), id="precision of weights"),
        pytest.param(Blocks(scale=1), Blocks(scale=2), id="number"),
        pytest.param(Blocks(scale={"a": 1}), Blocks(scale={"a": 2}), id="dict"),
        pytest.param(with_part(20), with_part(40), id="part's number"),
        pytest.param(Mine(), Other(), id="class"),
    ],
)
def test_identity_changes_with_what_an_own_module_is_made_of(one, other):
    assert get_identity(one) != get_identity(other)


def change_sources(tmp_path, monkeypatch):
    """Makes all source files look changed."""
    path = tmp_path / "changed.py"
    path.write_text("# another text")
    monkeypatch.setattr(inspect, "getsourcefile", lambda module: str(path))


@pytest.mark.parametrize("kind", ["fbank", "hubert"])
def test_the_code_is_part_of_an_own_modules_identity_but_not_of_ours(
    sources, tmp_path, monkeypatch, kind
):
    before, own = identify(sources[kind]), get_identity(Blocks())
    change_sources(tmp_path, monkeypatch)
    assert identify(sources[kind]) == before
    assert get_identity(Blocks()) != own


class Derived(SpeechEncoder):
    """A user's encoder on top of ours."""


def test_the_code_is_part_of_the_identity_of_a_class_derived_from_ours(
    tmp_path, monkeypatch
):
    before = get_identity(Derived("fbank"))
    change_sources(tmp_path, monkeypatch)
    assert get_identity(Derived("fbank")) != before
