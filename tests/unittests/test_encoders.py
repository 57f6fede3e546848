"""The frozen encoder: features are the utterance's own, and the model's.

Bits are to be equal only where both sides pass the same operations on the same
weights in the same shapes, in one process and with as many threads: where
shapes differ, rounding may, too, with the instructions that the machine has.
"""

import math
import shutil

import numpy as np
import pytest
import scipy.fft
import torch
import transformers
from encoder_cases import (
    ALL_KINDS,
    FAMILIES,
    KINDS,
    NUM_LAYERS,
    WEIGHT_FREE,
    Blocks,
    encode,
)
from speechbrain.dataio import audio_io
from torch.nn import functional as F

from speechbrain_wap.data.audio import read_audio
from speechbrain_wap.encoders import (
    SpeechEncoder,
    count_encoder_layers,
    count_values_per_second,
    get_encoder_dim,
    get_identity,
    speech_encoder,
)
from speechbrain_wap.encoders.speech_encoder import get_frame_rate
from speechbrain_wap.errors import RecipeError


def run_hugging_face(folder, signal):
    """What enters the first layer, what leaves each, and the output."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    family = model.config.model_type
    states = []

    def keep(module, args, kwargs, output=None):
        hidden = output
        if hidden is None:
            hidden = args or (kwargs["hidden_states"],)
        states.append(hidden[0] if isinstance(hidden, tuple) else hidden)

    layers = model.encoder.layers
    layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    for layer in layers:
        layer.register_forward_hook(keep, with_kwargs=True)
    inputs = extractor(signal.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = (model.encoder if family == "whisper" else model)(**inputs)
    states[-1] = output.last_hidden_state
    num_frames = {
        "whisper": math.ceil(len(signal) / 320),
        # pairs of mel frames: half a pair is padding to the model
        "wav2vec2-bert": ((len(signal) - 400) // 160 + 1) // 2,
    }.get(family)
    return [state[0, :num_frames] for state in states]


@torch.no_grad()
def run_whisper_on_the_clip(folder, signal):
    """The states of all layers where nothing beyond the clip is seen."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    encoder = model.eval().encoder
    num_frames = math.ceil(len(signal) / 320)
    inputs = extractor(signal.numpy(), sampling_rate=16000, return_tensors="pt")
    hidden = inputs["input_features"][:, :, : 2 * num_frames]
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(hidden))))
    hidden = (
        hidden.transpose(1, 2) + encoder.embed_positions.weight[:num_frames]
    )
    states = [hidden]
    for layer in encoder.layers:
        states.append(layer(states[-1], None))
    states[-1] = encoder.layer_norm(states[-1])
    return [state[0] for state in states]


def relative_error(mine, theirs):
    return float((mine - theirs).norm() / theirs.norm())


# 58, 59 and 3 mel frames at 100 per second: w2v-BERT takes them in pairs
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_hugging_face_on_the_utterance_alone(
    sources, signal, kind
):
    encoder = SpeechEncoder(sources[kind], "weighted")
    for seconds, loudness in ((0.6, 1.0), (0.61, 0.001), (0.05, 0.001)):
        speech = loudness * signal(seconds) + 0.1 * loudness
        theirs = run_hugging_face(sources[kind], speech)
        assert len(theirs) == NUM_LAYERS + 1
        mine = encode(encoder, speech, signal(1.0, seed=1))[0]
        assert not mine[len(theirs[0]) :].any()
        for layer, their_state in enumerate(theirs):
            my_state = mine[: len(their_state), layer]
            assert relative_error(my_state, their_state) < 1e-4
        # the layers are worth telling apart
        for below, above in zip(theirs, theirs[1:]):
            assert relative_error(below, above) > 0.01


@pytest.mark.parametrize("kind", ["fbank", "spectrogram"])
def test_energies_are_on_a_fixed_logarithmic_scale(signal, kind):
    encoder = SpeechEncoder(kind)
    speech = signal(0.5)
    feats = encode(encoder, speech, 10 * speech)
    # 20 dB, and the scale's unit is 20 dB
    assert torch.allclose(feats[1] - feats[0], torch.ones(()), atol=1e-4)

    times = torch.arange(8000) / 16000
    tones = [torch.sin(6.2832 * f * times) for f in (300.0, 3000.0)]
    low, high = encode(encoder, *tones)[:, :-1].mean(dim=1).argmax(dim=1)
    if kind == "spectrogram":  # bands of 20 Hz, in both frames of a pair
        assert {int(low) % 200, int(high) % 200} == {15, 150}
    assert 5 < low < high
    assert high < 75 or kind == "spectrogram"


def make_frames_with_numpy(speech):
    """The power of 401 bands of 20 Hz every 10 ms, in decibels."""
    x = speech.double().numpy()
    x = np.concatenate([x[:1], x[1:] - 0.97 * x[:-1]])  # pre-emphasis
    x = np.pad(x, 400, mode="reflect")
    window = np.zeros(800)
    window[80:720] = np.hamming(641)[:-1]
    starts = range(0, len(x) - 799, 160)
    frames = np.stack([window * x[start : start + 800] for start in starts])
    return np.abs(np.fft.rfft(frames)) ** 2


def to_decibels(power):
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    return np.maximum(decibels, decibels.max() - 80)


@pytest.mark.parametrize("num_samples", [16000, 16160])
def test_spectrum_and_cepstrum_are_those_of_numpy_in_pairs(signal, num_samples):
    speech = 0.1 * signal(2.0)[:num_samples]
    power = make_frames_with_numpy(speech)
    mel = 2595 * np.log10(1 + np.arange(401) * 20 / 700)
    hertz = 700 * (10 ** (np.linspace(0, mel[-1], 82) / 2595) - 1)
    bands = np.arange(401)[:, None] * 20.0
    rise = (bands - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    fall = (hertz[2:] - bands) / (hertz[2:] - hertz[1:-1])
    mels = to_decibels(power @ np.clip(np.minimum(rise, fall), 0, None))
    expected = {
        "spectrogram": to_decibels(power)[:, :200],
        "mfcc": scipy.fft.dct(mels, norm="ortho")[:, :40],
    }
    for kind, frames in expected.items():
        pairs = encode(SpeechEncoder(kind), speech)[0]
        mine = pairs.reshape(-1, pairs.shape[1] // 2).numpy()
        is_odd = len(frames) % 2
        assert len(mine) == len(frames) + is_odd
        np.testing.assert_allclose(
            mine[: len(frames)], frames / 20, atol=2e-3, err_msg=kind
        )
        if is_odd:  # the last is there twice
            assert (mine[-1] == mine[-2]).all()


@pytest.mark.parametrize(
    "kind, context",
    [*((kind, "full") for kind in ALL_KINDS), ("whisper", "clip")],
)
def test_features_do_not_depend_on_the_batch_nor_on_train_mode(
    sources, signal, kind, context
):
    encoder = SpeechEncoder(sources[kind], "weighted", context)
    speech = [signal(s, seed=i) for i, s in enumerate((0.31, 1.0, 0.77))]
    alone = [encode(encoder, one)[0] for one in speech]
    assert len({len(feats) for feats in alone}) == 3
    encoder.train()
    for order in ((0, 1, 2), (2, 1, 0)):
        feats = encode(encoder, *(speech[i].requires_grad_() for i in order))
        assert not feats.requires_grad
        for row, i in zip(feats, order):
            assert torch.equal(row[: len(alone[i])], alone[i])
            assert not row[len(alone[i]) :].any()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    "family, dtype", zip(FAMILIES, 3 * [torch.float16, torch.bfloat16])
)
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
    assert torch.equal(*feats)


# How many frames so many samples give; the least is the fewest that give any
FRAMES = {
    "fbank": {400: 2, 639: 2, 640: 3, 32000: 101},
    "mfcc": {640: 3, 959: 3, 960: 4, 32000: 101},
    "spectrogram": {640: 3, 959: 3, 960: 4, 32000: 101},
    "hubert": {400: 1, 719: 1, 720: 2, 32000: 99},
    "hubert-strides": {730: 1, 1209: 1, 1210: 2, 32000: 66},
    "data2vec": {400: 1, 719: 1, 720: 2, 32000: 99},
    "w2v-bert": {560: 1, 879: 1, 880: 2, 1199: 2, 1200: 3, 32000: 99},
    "whisper": {1: 1, 320: 1, 321: 2, 32000: 100, 32001: 101},
    "whisper-2s": {1: 1, 32000: 100, 32001: 101, 64001: 201},
}


@pytest.mark.parametrize("kind", FRAMES)
def test_the_config_foretells_the_frames_that_the_samples_fill(sources, kind):
    layers = "last" if kind in WEIGHT_FREE else [2, 0]
    encoder = SpeechEncoder(sources[kind], layers)
    frame_rate = 16000 / 480 if kind == "hubert-strides" else 50.0
    assert encoder.frame_rate == frame_rate
    num_values = {"fbank": 80, "mfcc": 80, "spectrogram": 400}.get(kind, 2 * 16)
    assert count_values_per_second(encoder) == frame_rate * num_values
    get_identity(encoder)
    assert not list(encoder.parameters())  # nothing is loaded for that
    for num_samples, num_frames in FRAMES[kind].items():
        feats = encode(encoder, torch.rand(num_samples))
        assert feats.shape[:2] == (1, num_frames), num_samples
        assert feats[0, 0].numel() == num_values
        assert torch.isfinite(feats).all()
    assert feats.shape[-1] == get_encoder_dim(encoder)
    fewest = min(FRAMES[kind])
    if fewest > 1:
        numbers = f"{fewest - 1} samples .* needs {fewest}"
        with pytest.raises(RecipeError, match=numbers):
            encode(encoder, torch.rand(16000), torch.rand(fewest - 1))


@pytest.mark.parametrize("num_samples", [1, 1601, 480000])
@pytest.mark.parametrize("context", ["full", "clip"])
def test_whisper_sees_30_seconds_in_full_and_nothing_but_the_clip_in_clip(
    sources, signal, num_samples, context
):
    speech = signal(num_samples / 16000)
    encoder = SpeechEncoder(sources["whisper"], "weighted", context)
    run = run_hugging_face if context == "full" else run_whisper_on_the_clip
    mine = encode(encoder, speech)[0]
    theirs = torch.stack(run(sources["whisper"], speech), dim=1)
    assert mine.shape == theirs.shape
    for layer in range(NUM_LAYERS + 1):
        assert relative_error(mine[:, layer], theirs[:, layer]) < 1e-4


@pytest.mark.parametrize("kind", [*WEIGHT_FREE, "hubert", "w2v-bert"])
def test_the_context_changes_nothing_for_the_other_families(
    sources, signal, kind
):
    full, clip = (
        SpeechEncoder(sources[kind], context=name) for name in ("full", "clip")
    )
    assert torch.equal(encode(full, signal(0.5)), encode(clip, signal(0.5)))
    assert get_identity(full) == get_identity(clip)


@pytest.mark.parametrize("context", ["full", "clip"])
@pytest.mark.parametrize("kind, seconds", [("whisper", 30), ("whisper-2s", 2)])
def test_whisper_encodes_speech_beyond_its_window_window_by_window(
    sources, signal, kind, seconds, context
):
    encoder = SpeechEncoder(sources[kind], context=context)
    speech = torch.cat([signal(seconds), signal(1.01, seed=1)])
    feats = encode(encoder, speech)[0]
    num_frames, num_samples = 50 * seconds, 16000 * seconds
    assert len(feats) == num_frames + 51
    first, second = speech[:num_samples], speech[num_samples:]
    assert torch.equal(feats[:num_frames], encode(encoder, first)[0])
    assert torch.equal(feats[num_frames:], encode(encoder, second)[0])


@pytest.mark.parametrize("layers, highest", [(0, 1), ([2, 0], 2), ("last", 3)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_beyond_the_highest_chosen_one_are_neither_kept_nor_run(
    sources, signal, kind, layers, highest
):
    encoder = SpeechEncoder(sources[kind], layers)
    encoder.load("cpu")
    run = []
    kept = [
        module
        for module in encoder.modules()
        if type(module).__name__.endswith("Attention")
    ]
    for module in kept:
        module.register_forward_hook(lambda *args: run.append(args[0]))
    encode(encoder, signal(0.3))
    assert run == kept
    assert len(kept) <= highest


@pytest.mark.parametrize("kind", [*FAMILIES, "hubert-stable"])
def test_several_layers_are_the_single_layers_side_by_side(
    sources, signal, kind
):
    single = [
        encode(SpeechEncoder(sources[kind], layer), signal(0.5))
        for layer in (0, 1, 2, "last")
    ]
    for layers, numbers in (
        ("weighted", [0, 1, 2, 3]),
        ([2, 0], [2, 0]),
        ([1, 2], [1, 2]),
    ):
        encoder = SpeechEncoder(sources[kind], layers)
        feats = encode(encoder, signal(0.5))
        together = torch.stack([single[i] for i in numbers], dim=2)
        # Whisper's highest layer is computed for the clip's frames only: a
        # matrix product of other rows may round its last bits otherwise.
        most = 1e-6 if kind == "whisper" else 0.0
        assert relative_error(feats, together) <= most
        assert count_encoder_layers(encoder) == len(numbers)
        assert get_encoder_dim(encoder) == feats.shape[-1]


@pytest.mark.parametrize(
    "argument, mistake",
    [
        ({"layer": 4}, "layer=4 does not exist: .* 0 to 3, a list of these"),
        ({"layer": -1}, "layer=-1 does not exist"),
        ({"layer": True}, "layer=True does not exist"),
        ({"layer": []}, "does not exist"),
        ({"layer": [1, 1]}, "names a layer twice"),
        ({"context": "half"}, "is unknown: choose one of full, clip"),
        ({"source": None}, "encoder_source is null"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_with_what_does(
    sources, argument, mistake
):
    with pytest.raises(RecipeError, match=mistake):
        SpeechEncoder(**{"source": sources["hubert"], **argument})


def test_an_own_module_is_run_to_find_its_size():
    module = Blocks()
    assert get_encoder_dim(module) == 320
    assert count_values_per_second(module) == 50 * 320
    module.sample_rate = 8000
    assert count_values_per_second(module) == 25 * 320
    there = Blocks().to("meta")  # it is tried where it lies
    assert count_values_per_second(there) == 50 * 320
    assert get_frame_rate(there) == get_frame_rate(Blocks())
    module.output_size = 7
    assert get_encoder_dim(module) == 7


def fill_with_sines_(folder):
    """Gives a checkpoint weights that no random generator has a say in."""
    model = transformers.AutoModel.from_pretrained(folder)
    start = 0
    for _, parameter in sorted(model.named_parameters()):
        index = torch.arange(start, start + parameter.numel()).double()
        with torch.no_grad():
            parameter.copy_(0.5 * torch.sin(index).view_as(parameter))
        start += parameter.numel()
    model.save_pretrained(folder)


def save_fixed_speech(path):
    """Quiet stereo at 22.05 kHz that no random generator has a say in."""
    index = torch.arange(22050).double()
    times = index / 22050
    left = torch.sin(2 * torch.pi * (200 + 1500 * times) * times)
    right = torch.sin(2 * torch.pi * 130 * times) * torch.sin(9 * times)
    noise = (43758.5453 * torch.sin(12.9898 * index)).frac()
    stereo = torch.stack([0.01 * left + 0.002 * noise, 0.005 * right])
    audio_io.save(path, stereo.float(), 22050)


# What FEATURES_VERSION stands for: the features' mean, their deviation, and
# entries from the first to the last. Who changes them raises the version, too.
GOLDEN_VERSION = 3


GOLDEN = {
    "audio": "-1.308e-05 0.003795 0.0002787 -0.005326 0.00516 0.003953",
    "fbank": "-1.4 0.5217 -0.7892 -1.614 -1.462 -1.883",
    "mfcc": "-0.6614 3.112 -18.76 -1.168 -0.962 0.8578",
    "spectrogram": "-2.554 0.5809 -2.493 -2.442 -3.026 -2.209",
    "hubert": "-0.05801 0.5463 0.0722 0.4804 0.1423 -0.1639",
    "w2v-bert": "-0.4093 8.58 -18.92 -19.42 0.06621 -0.1506",
    "whisper": "-0.005851 1.46 0.05002 4.9 0.273 3.62",
    "whisper clip": "-0.005451 1.469 0.05002 4.916 0.273 3.644",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_change_of_what_is_computed_raises_the_version(
    make_checkpoint, tmp_path, name
):
    family, context = f"{name} full".split()[:2]
    save_fixed_speech(tmp_path / "stereo.wav")
    values = read_audio(tmp_path / "stereo.wav", 16000)
    if family != "audio":
        source = family
        if family in FAMILIES:
            source = make_checkpoint(tmp_path / family, family)
            fill_with_sines_(source)
        values = encode(SpeechEncoder(source, "weighted", context), values)
    flat = values.flatten()
    entries = flat[[len(flat) * k // 4 + k for k in range(4)]]
    numbers = [flat.mean().item(), flat.std().item(), *entries.tolist()]
    expected = [float(number) for number in GOLDEN[name].split()]
    assert speech_encoder.FEATURES_VERSION == GOLDEN_VERSION
    assert numbers == pytest.approx(
        expected, rel=1e-3, abs=1e-3 * numbers[1]
    ), (
        f"raise FEATURES_VERSION, so that features in caches are not taken "
        f"over, and write to GOLDEN: {[f'{n:.4g}' for n in numbers]}"
    )


def test_real_whisper_gives_100_frames_of_384_for_2_seconds(shared, signal):
    folder = str(shared("encoders", "whisper-tiny.en"))
    wav = min(shared("corpora", "EmoDB", "wav").glob("*.wav"))
    speech = F.pad(read_audio(wav, 16000), (0, 32000))[:32000]
    feats = encode(SpeechEncoder(folder), speech)[0]
    assert feats.shape == (100, 384)
    assert relative_error(feats, run_hugging_face(folder, speech)[-1]) < 1e-3


def test_features_are_computed_without_tf32(monkeypatch):
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    encoder = SpeechEncoder("fbank")
    encode, seen = encoder.front_end.forward, []

    def watch(*arguments):
        seen.extend(place.allow_tf32 for place in places)
        return encode(*arguments)

    monkeypatch.setattr(encoder.front_end, "forward", watch)
    before = [place.allow_tf32 for place in places]
    try:
        for is_allowed in (True, False):
            for place in places:
                place.allow_tf32 = is_allowed
            encoder(torch.rand(1, 16000), torch.ones(1))
            # what is trained may use it, as is SpeechBrain's default
            assert all(place.allow_tf32 == is_allowed for place in places)
    finally:
        for place, is_allowed in zip(places, before):
            place.allow_tf32 = is_allowed
    assert seen == [False] * 4
