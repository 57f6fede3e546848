"""The frozen encoder: features are the utterance's own, and the model's."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

from speechbrain_wap.audio import read_audio
from speechbrain_wap.encoders import (
    SpeechEncoder,
    count_encoder_layers,
    get_encoder_dim,
    get_identity,
)
from speechbrain_wap.errors import RecipeError

# Each kind of checkpoint, as the fixture make_checkpoint takes it
KINDS = {
    "hubert": {"family": "hubert"},
    "hubert-raw": {"family": "hubert", "do_normalize": False},
    "hubert-stable": {"family": "hubert", "stable": True},
    "hubert-stable-raw": {
        "family": "hubert",
        "stable": True,
        "do_normalize": False,
    },
    "hubert-ctc": {"family": "hubert", "stable": True, "head": "ForCTC"},
    "wav2vec2": {"family": "wav2vec2", "do_normalize": False},
    "wav2vec2-stable": {"family": "wav2vec2", "stable": True},
    "wav2vec2-pretrained": {"family": "wav2vec2", "head": "ForPreTraining"},
    "whisper": {"family": "whisper"},
}
WITHOUT_MODEL = ["fbank", *KINDS]


@pytest.fixture(scope="module")
def sources(make_checkpoint, tmp_path_factory):
    """The source of an encoder of each kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {n: make_checkpoint(folder / n, **k) for n, k in KINDS.items()}
    return {"fbank": "fbank", **made}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache of the hub."""
    constants = huggingface_hub.constants
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def encode(encoder, *signals):
    """Encodes a batch; the frames of each utterance, and the padded batch."""
    longest = max(map(len, signals))
    wavs = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    lens = torch.tensor([len(signal) / longest for signal in signals])
    return encoder(wavs, lens)


def run_hugging_face(folder, signal):
    """What enters the first layer, what leaves each, and the output."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    whisper = hasattr(model, "decoder")
    states = []

    def keep(hidden):
        states.append(hidden[0] if isinstance(hidden, tuple) else hidden)

    model.encoder.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: keep(
            args[0] if args else kwargs["hidden_states"]
        ),
        with_kwargs=True,
    )
    for layer in model.encoder.layers:
        layer.register_forward_hook(
            lambda module, args, output: keep(output),
        )
    inputs = extractor(signal.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = (model.encoder if whisper else model)(**inputs)
    states = [*states, output.last_hidden_state]
    frames = -(-len(signal) // 320) if whisper else None
    return [state[0, :frames] for state in states]


def relative_error(mine, theirs):
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("loudness", [1.0, 0.001])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_hugging_face_on_the_utterance_alone(
    sources, signal, kind, loudness
):
    speech = loudness * signal(0.6) + 0.1 * loudness
    *states, output = run_hugging_face(sources[kind], speech)
    expected = {"last": output, 0: states[0], 1: states[1], 2: output}
    for layer, theirs in expected.items():
        encoder = SpeechEncoder(sources[kind], layer)
        mine = encode(encoder, speech, signal(1.0, seed=1))[0][: len(theirs)]
        assert mine.shape == theirs.shape
        assert mine.dtype == torch.float32
        assert relative_error(mine, theirs) < 1e-4, layer
    # the layers are worth telling apart
    assert relative_error(states[0], states[1]) > 0.01
    assert relative_error(states[1], output) > 0.01


def test_fbank_features_are_mel_energies_on_a_fixed_logarithmic_scale(signal):
    encoder = SpeechEncoder("fbank")
    speech = signal(0.5)
    feats = encode(encoder, speech, 10 * speech)
    # 20 dB, and the scale's unit is 20 dB
    assert torch.allclose(feats[1] - feats[0], torch.ones(()), atol=1e-4)

    times = torch.arange(8000) / 16000
    tones = [torch.sin(6.2832 * f * times) for f in (300.0, 3000.0)]
    low, high = encode(encoder, *tones).mean(dim=1).argmax(dim=1)
    assert 5 < low < high < 75


@pytest.mark.parametrize("kind", WITHOUT_MODEL)
def test_features_do_not_depend_on_the_batch_nor_on_train_mode(
    sources, signal, kind
):
    encoder = SpeechEncoder(sources[kind])
    speech = [
        signal(seconds, seed=seed)
        for seed, seconds in enumerate((0.31, 1.0, 0.77))
    ]
    alone = [encode(encoder, one)[0] for one in speech]
    assert len({len(feats) for feats in alone}) == 3

    def check(feats, order):
        for row, i in zip(feats, order):
            assert torch.equal(row[: len(alone[i])], alone[i])
            assert not row[len(alone[i]) :].any()

    check(encode(encoder, *speech), (0, 1, 2))
    check(encode(encoder, *speech[::-1]), (2, 1, 0))
    encoder.train()
    check(encode(encoder, *speech), (0, 1, 2))
    parent = torch.nn.ModuleDict({"encoder": encoder, "x": torch.nn.ReLU()})
    parent.train()
    assert parent["x"].training
    check(encode(encoder, *speech), (0, 1, 2))
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("kind", WITHOUT_MODEL)
def test_features_carry_no_gradient_and_no_parameter_asks_for_one(
    sources, signal, kind
):
    encoder = SpeechEncoder(sources[kind])
    feats = encode(encoder, signal(0.3).requires_grad_())
    assert not feats.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())
    has_weights = kind != "fbank"
    assert bool(sum(p.numel() for p in encoder.parameters())) == has_weights


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "whisper"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_equals_its_float32_upcast(
    make_checkpoint, tmp_path, signal, family, dtype
):
    half = make_checkpoint(tmp_path / "half", family, dtype=dtype)
    model = transformers.AutoModel.from_pretrained(half, dtype=dtype)
    shutil.copytree(half, tmp_path / "full")
    model.float().save_pretrained(tmp_path / "full")
    feats = [
        encode(SpeechEncoder(str(tmp_path / name)), signal(0.5))
        for name in ("half", "full")
    ]
    assert feats[0].dtype == torch.float32
    assert torch.isfinite(feats[0]).all()
    assert torch.equal(*feats)


def test_weights_in_a_bin_file_are_read_and_identified(
    sources, tmp_path, signal
):
    folder = tmp_path / "hubert"
    shutil.copytree(sources["hubert"], folder)
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


@pytest.mark.parametrize(
    "num_samples, num_frames",
    [(1, 1), (320, 1), (321, 2), (32000, 100), (32001, 101), (32320, 101)],
)
def test_whisper_gives_50_frames_per_second_and_counts_a_partial_last_one(
    sources, num_samples, num_frames
):
    feats = encode(SpeechEncoder(sources["whisper"]), torch.rand(num_samples))
    assert feats.shape == (1, num_frames, 16)


def test_whisper_encodes_speech_beyond_30_seconds_window_by_window(
    sources, signal
):
    encoder = SpeechEncoder(sources["whisper"])
    speech = torch.cat([signal(30.0), signal(1.01, seed=1)])
    feats = encode(encoder, speech)[0]
    assert len(feats) == 1500 + 51
    assert torch.equal(feats[:1500], encode(encoder, speech[:480000])[0])
    assert torch.equal(feats[1500:], encode(encoder, speech[480000:])[0])


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2-stable"])
def test_convolutions_give_a_frame_from_400_samples_on(sources, kind):
    encoder = SpeechEncoder(sources[kind])
    assert encode(encoder, torch.rand(400)).shape[1] == 1
    assert encode(encoder, torch.rand(719)).shape[1] == 1
    assert encode(encoder, torch.rand(720)).shape[1] == 2


@pytest.mark.parametrize("kind", ["fbank", "hubert", "wav2vec2-stable"])
def test_an_utterance_too_short_for_a_frame_is_refused_with_the_numbers(
    sources, kind
):
    encoder = SpeechEncoder(sources[kind])
    with pytest.raises(RecipeError, match="399 samples .* needs 400"):
        encode(encoder, torch.rand(399))
    with pytest.raises(RecipeError, match="100 samples"):
        encode(encoder, torch.rand(16000), torch.rand(100))


@pytest.mark.parametrize("kind", ["hubert", "hubert-stable", "whisper"])
def test_several_layers_are_the_single_layers_side_by_side(
    sources, signal, kind
):
    single = [
        encode(SpeechEncoder(sources[kind], layer), signal(0.5))[0]
        for layer in (0, 1, "last")
    ]
    for layers, expected in (("weighted", single), ([2, 0], single[::-2])):
        encoder = SpeechEncoder(sources[kind], layers)
        (feats,) = encode(encoder, signal(0.5))
        assert torch.equal(feats, torch.stack(expected, dim=1))
        assert count_encoder_layers(encoder) == len(expected)
        assert get_encoder_dim(encoder) == feats.shape[-1]


@pytest.mark.parametrize(
    "layer", [-1, 3, "first", "2", 1.5, None, True, [], [0, 3]]
)
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(
    sources, layer
):
    with pytest.raises(RecipeError) as error:
        SpeechEncoder(sources["hubert"], layer)
    assert f"encoder_layer={layer}" in str(error.value)
    assert "'last', 0 to 2" in str(error.value)


def test_a_checkpoint_of_another_family_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "wavlm"}')
    with pytest.raises(RecipeError, match="'wavlm'.*hubert.*fbank"):
        SpeechEncoder(str(tmp_path))


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(RecipeError, match="config.json") as error:
        SpeechEncoder(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def drop(name):
    return lambda folder: (folder / name).unlink()


def spoil(name, size):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(drop("model.safetensors"), id="no weights"),
        pytest.param(spoil("model.safetensors", 1000), id="cut weights"),
        pytest.param(spoil("model.safetensors", 0), id="empty weights"),
        pytest.param(spoil("config.json", 50), id="cut config"),
        pytest.param(drop("preprocessor_config.json"), id="no preprocessor"),
        pytest.param(
            spoil("preprocessor_config.json", 50), id="cut preprocessor"
        ),
    ],
)
def test_an_incomplete_checkpoint_is_refused_by_its_folder(
    sources, tmp_path, signal, change
):
    folder = tmp_path / "encoder"
    shutil.copytree(sources["hubert"], folder)
    change(folder)
    with pytest.raises(RecipeError) as error:
        encoder = SpeechEncoder(str(folder))
        get_identity(encoder)  # for the cache's key
        encode(encoder, signal(0.3))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "source", ["nobody/nothing", "./no/such/folder", "no such thing", ""]
)
def test_a_source_that_is_not_to_be_had_is_refused_by_name(offline, source):
    with pytest.raises(RecipeError) as error:
        SpeechEncoder(source)
    assert f"encoder_source={source} is no folder" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_in_the_hubs_cache_is_found_without_network(
    offline, sources, signal
):
    repository = offline / "models--someone--hubert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    shutil.copytree(sources["hubert"], repository / "snapshots" / "0123abc")
    encoder = SpeechEncoder("someone/hubert")
    expected = SpeechEncoder(sources["hubert"])
    assert get_identity(encoder) == get_identity(expected)
    assert torch.equal(
        encode(encoder, signal(0.5)), encode(expected, signal(0.5))
    )


@pytest.mark.parametrize(
    "files, downloaded",
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["tf_model.h5", "pytorch_model.bin"], "pytorch_model.bin"),
    ],
)
def test_only_one_form_of_the_weights_is_downloaded(
    monkeypatch, sources, files, downloaded
):
    asked = []

    def download(source, allow_patterns):
        asked.extend(
            huggingface_hub.utils.filter_repo_objects(
                ["config.json", *files], allow_patterns=allow_patterns
            )
        )
        return sources["hubert"]

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, source: files
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    SpeechEncoder("someone/hubert")
    assert asked == ["config.json", downloaded]


@pytest.mark.parametrize("kind", WITHOUT_MODEL)
def test_the_encoder_knows_the_dimension_of_its_frames(sources, signal, kind):
    encoder = SpeechEncoder(sources[kind])
    dim = encode(encoder, signal(0.3)).shape[-1]
    assert encoder.output_size == dim
    assert get_encoder_dim(encoder) == dim


class Blocks(torch.nn.Module):
    """An encoder of one's own: 20 ms of samples as they are."""

    def forward(self, wavs, lens):
        return wavs.unfold(1, 320, 320)


def test_the_dimension_of_an_own_module_is_found_by_running_it():
    assert get_encoder_dim(Blocks()) == 320
    named = Blocks()
    named.output_size = 7
    assert get_encoder_dim(named) == 7


def test_weights_are_not_loaded_before_an_utterance_is_encoded(sources):
    encoder = SpeechEncoder(sources["hubert"])
    assert get_encoder_dim(encoder) == 16
    get_identity(encoder)
    assert not list(encoder.parameters())


def test_identity_is_plain_and_stays_after_loading(sources, signal):
    for kind in WITHOUT_MODEL:
        encoder = SpeechEncoder(sources[kind])
        before = json.dumps(get_identity(encoder), sort_keys=True)
        encode(encoder, signal(0.3))
        assert json.dumps(get_identity(encoder), sort_keys=True) == before


def test_real_whisper_gives_100_frames_of_384_for_2_seconds(shared, signal):
    folder = str(shared("encoders", "whisper-tiny.en"))
    wavs = sorted(Path(shared("corpora", "EmoDB", "wav")).glob("*.wav"))
    speech = torch.nn.functional.pad(
        read_audio(wavs[0], 16000)[:32000], (0, 32000)
    )[:32000]
    feats = encode(SpeechEncoder(folder), speech)[0]
    assert feats.shape == (100, 384)
    *_, expected = run_hugging_face(folder, speech)
    assert relative_error(feats, expected) < 1e-3
