"""The encoders' identity: the same for the same features, and for no others."""

import importlib
import inspect
import json
import shutil

import pytest
import torch
from encoder_cases import (
    FAMILIES,
    NUM_LAYERS,
    WEIGHT_FREE,
    Blocks,
    edit_json,
    flip_a_byte,
)

from speechbrain_wap.encoders import SpeechEncoder, get_identity, speech_encoder


def identify(source, *args):
    """The identity of the encoder of a source."""
    return get_identity(SpeechEncoder(str(source), *args))


@pytest.mark.parametrize("kind", [*WEIGHT_FREE, *FAMILIES])
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


def test_identity_is_of_all_in_the_checkpoint_wherever_it_lies(
    sources, tmp_path
):
    before = identify(sources["hubert"])
    copy = shutil.copytree(sources["hubert"], tmp_path / "else" / "my hubert")
    assert identify(copy) == identify(f"{copy}/") == before
    identities = [before]
    edit_json(copy / "preprocessor_config.json", do_normalize=False)
    identities.append(identify(copy))
    edit_json(copy / "config.json", hidden_act="relu")
    identities.append(identify(copy))
    flip_a_byte(copy / "model.safetensors")
    identities.append(identify(copy))
    for index, identity in enumerate(identities):
        assert identity not in identities[:index]


def test_identity_tells_the_layers_apart(sources):
    hubert = sources["hubert"]
    identities = [identify(hubert, layer) for layer in (0, 1, 2, "last")]
    for index, identity in enumerate(identities):
        assert identity not in identities[:index]
    assert identities[-1] == identify(hubert, NUM_LAYERS)


def test_identity_changes_with_the_preprocessor_in_a_processor_config(
    sources, tmp_path, signal
):
    """Transformers 5 reads it from there, and rather than elsewhere."""
    folder = shutil.copytree(sources["hubert"], tmp_path / "hubert")
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    identities, feats = [], []
    for do_normalize in (True, False):
        extractor["do_normalize"] = do_normalize
        edit_json(folder / "processor_config.json", feature_extractor=extractor)
        encoder = SpeechEncoder(str(folder))
        identities.append(get_identity(encoder))
        feats.append(encoder(signal(0.2)[None], torch.ones(1)))
    if torch.equal(*feats):
        pytest.skip("this version of transformers does not read that file")
    assert identities[0] != identities[1]


class Other(Blocks):
    """Another class of the same weights, attributes and file."""


def with_part(length):
    encoder = Blocks()
    encoder.part = torch.nn.Module()
    encoder.part.length = length
    return encoder


def test_identity_changes_with_what_an_own_module_is_made_of():
    made = [
        *(Blocks(), Blocks(2.0), Blocks().half(), Other()),
        *(Blocks(scale=2), Blocks(scale={"a": 1}), Blocks(scale={"a": 2})),
        *(with_part(20), with_part(40)),
    ]
    identities = [json.dumps(get_identity(encoder)) for encoder in made]
    assert len({*identities}) == len(made)
    assert get_identity(Blocks().eval()) == get_identity(made[0])


def test_the_code_of_the_parts_of_an_own_module_counts(tmp_path, monkeypatch):
    """The files of their classes, wherever they lie; torch's do not."""
    monkeypatch.syspath_prepend(tmp_path)
    identities = []
    for number, text in enumerate(["x", "2 * x", "x"]):
        name = f"own_blocks_{number}"
        (tmp_path / f"{name}.py").write_text(
            "import torch\nclass Block(torch.nn.Module):\n"
            f"    def forward(self, x):\n        return {text}\n"
        )
        encoder = Blocks()
        encoder.part = importlib.import_module(name).Block()
        encoder.linear = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.ones_(encoder.linear.weight)
        identities.append(get_identity(encoder)["code"])
    assert identities[0] == identities[2] != identities[1]
    asked, ask = [], inspect.getsourcefile
    monkeypatch.setattr(
        inspect, "getsourcefile", lambda k: asked.append(k) or ask(k)
    )
    get_identity(encoder)
    files = {kind.__module__ for kind in asked}
    assert files == {Blocks.__module__, "own_blocks_2"}


class Derived(SpeechEncoder):
    """A user's encoder on top of ours."""


class Named(Blocks):
    """One that says what it is."""

    def identity(self):
        return {"name": "mine"}


def test_the_code_is_part_of_an_own_modules_identity_but_not_of_ours(
    sources, tmp_path, monkeypatch
):
    def identify_all():
        made = [SpeechEncoder(sources[kind]) for kind in ("fbank", "hubert")]
        return [
            *map(get_identity, [*made, Blocks(), Named(), Derived("fbank")])
        ]

    before = identify_all()
    path = tmp_path / "changed.py"
    path.write_text("# another text")
    monkeypatch.setattr(inspect, "getsourcefile", lambda kind: str(path))
    same = [old == new for old, new in zip(before, identify_all())]
    assert same == [True, True, False, False, False]
