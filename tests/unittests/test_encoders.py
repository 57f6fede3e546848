"""The frozen encoder: features are the utterance's own, and the model's.

Bits are to be equal only where both sides pass the same operations on the same
weights in the same shapes, in one process and with as many threads: where
shapes differ, rounding may, too, with the instructions that the machine has.
"""

import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from encoder_cases import (
    FAMILIES,
    KINDS,
    NUM_LAYERS,
    WITHOUT_MODEL,
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
from speechbrain_wap.errors import RecipeError


def run_hugging_face(folder, signal):
    """What enters the first layer, what leaves each, and the output."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    family = model.config.model_type
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
        output = (model.encoder if family == "whisper" else model)(**inputs)
    states = [*states, output.last_hidden_state]
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
    hidden = F.gelu(encoder.conv1(hidden))
    hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[:num_frames]
    states = [hidden]
    for layer in encoder.layers:
        states.append(layer(states[-1], None))
    return [
        state[0] for state in [*states[:-1], encoder.layer_norm(states[-1])]
    ]


def relative_error(mine, theirs):
    return float((mine - theirs).norm() / theirs.norm())


def assert_close(mine, theirs, label):
    """Compares features in their shape and within 1e-4 of their size."""
    assert mine.shape == theirs.shape, label
    assert mine.dtype == torch.float32
    assert relative_error(mine, theirs) < 1e-4, label


# 58, 59 and 3 mel frames at 100 per second: w2v-BERT takes them in pairs
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_hugging_face_on_the_utterance_alone(
    sources, signal, kind
):
    """All layers of it; test_several_layers... has one layer alone."""
    encoder = SpeechEncoder(sources[kind], "weighted")
    for seconds, loudness in ((0.6, 1.0), (0.61, 0.001), (0.05, 0.001)):
        speech = loudness * signal(seconds) + 0.1 * loudness
        *theirs, output = run_hugging_face(sources[kind], speech)
        theirs[-1] = output
        assert len(theirs) == NUM_LAYERS + 1
        mine = encode(encoder, speech, signal(1.0, seed=1))[0]
        assert not mine[len(output) :].any()
        for layer, their_state in enumerate(theirs):
            assert_close(mine[: len(output), layer], their_state, layer)
        # the layers are worth telling apart
        for below, above in zip(theirs, theirs[1:]):
            assert relative_error(below, above) > 0.01


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


@pytest.mark.parametrize(
    "kind, context",
    [*((kind, "full") for kind in WITHOUT_MODEL), ("whisper", "clip")],
)
def test_features_do_not_depend_on_the_batch_nor_on_train_mode(
    sources, signal, kind, context
):
    encoder = SpeechEncoder(sources[kind], "weighted", context)
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
    assert not any(module.training for module in encoder.modules())
    feats = encode(encoder, speech[0].requires_grad_())
    assert not feats.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    "family, dtype",
    [*zip(FAMILIES, 3 * [torch.float16, torch.bfloat16])],
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
    assert torch.isfinite(feats[0]).all()
    assert torch.equal(*feats)


# How many frames so many samples give; the least is the fewest that give any
CONVOLUTIONS = {400: 1, 719: 1, 720: 2, 16000: 49, 32000: 99}


FRAMES = {
    "fbank": {400: 2, 639: 2, 640: 3, 32000: 101},
    "hubert": CONVOLUTIONS,
    "hubert-strides": {730: 1, 1209: 1, 1210: 2, 32000: 66},
    "wav2vec2-stable": CONVOLUTIONS,
    "wavlm": CONVOLUTIONS,
    "data2vec": CONVOLUTIONS,
    "w2v-bert": {560: 1, 879: 1, 880: 2, 1039: 2, 1199: 2, 1200: 3, 32000: 99},
    "whisper": {1: 1, 320: 1, 321: 2, 32000: 100, 32001: 101, 32320: 101},
    "whisper-2s": {1: 1, 32000: 100, 32001: 101, 32320: 101, 64001: 201},
}


@pytest.mark.parametrize("kind", FRAMES)
def test_the_config_foretells_the_frames_that_the_samples_fill(sources, kind):
    layers = "last" if kind == "fbank" else [2, 0]
    encoder = SpeechEncoder(sources[kind], layers)
    frame_rate = 16000 / 480 if kind == "hubert-strides" else 50.0
    assert encoder.frame_rate == frame_rate
    num_values = 80 if kind == "fbank" else 2 * 16
    assert count_values_per_second(encoder) == frame_rate * num_values
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


@pytest.mark.parametrize("num_samples", [1, 1601, 479840, 480000])
@pytest.mark.parametrize("context", ["full", "clip"])
def test_whisper_sees_30_seconds_in_full_and_nothing_but_the_clip_in_clip(
    sources, signal, num_samples, context
):
    speech = signal(num_samples / 16000)
    encoder = SpeechEncoder(sources["whisper"], "weighted", context)
    mine = encode(encoder, speech)[0].transpose(0, 1)
    if context == "full":
        *theirs, output = run_hugging_face(sources["whisper"], speech)
        theirs[-1] = output
    else:
        theirs = run_whisper_on_the_clip(sources["whisper"], speech)
    assert len(mine) == len(theirs)
    for layer, (my_state, their_state) in enumerate(zip(mine, theirs)):
        assert_close(my_state, their_state, layer)


def test_the_context_changes_what_whisper_makes_of_a_clip_but_not_of_a_window(
    sources, signal
):
    full, clip = (
        SpeechEncoder(sources["whisper-2s"], "weighted", context)
        for context in ("full", "clip")
    )
    ends = [encode(encoder, signal(0.6))[0, -1] for encoder in (full, clip)]
    for in_full, in_clip in zip(*ends):
        assert relative_error(in_full, in_clip) > 0.01
    window = signal(2.0)
    assert torch.equal(encode(full, window), encode(clip, window))


@pytest.mark.parametrize("kind", ["fbank", "hubert", "w2v-bert"])
def test_the_context_changes_nothing_for_the_other_families(
    sources, signal, kind
):
    full, clip = (
        SpeechEncoder(sources[kind], context=context)
        for context in ("full", "clip")
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


@pytest.mark.parametrize(
    "layers, highest",
    [(0, 0), ([2, 0], 2), ("last", 3)],
)
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
    # the input of the first layer is caught at its door
    assert highest <= len(kept) <= max(highest, 1)


@pytest.mark.parametrize("context, num_frames", [("full", 1500), ("clip", 25)])
def test_whisper_does_not_compute_the_padding_where_it_is_of_no_use(
    sources, signal, monkeypatch, context, num_frames
):
    encoder = SpeechEncoder(sources["whisper"], "last", context)
    encoder.load("cpu")
    frames, samples = [], []
    wrapper = encoder.front_end.wrapper
    for layer in wrapper.model.encoder.layers:
        layer.fc1.register_forward_hook(
            lambda module, args, output: frames.append(output.shape[1])
        )
    compute = wrapper.log_mel_spectrogram

    def log_mel_spectrogram(audio):
        samples.append(audio.shape[-1])
        return compute(audio)

    monkeypatch.setattr(wrapper, "log_mel_spectrogram", log_mel_spectrogram)
    encode(encoder, signal(0.5))
    assert frames == [num_frames, num_frames, 25]
    assert sum(samples) < 0.6 * 16000


@pytest.mark.parametrize("kind", [*FAMILIES, "hubert-stable"])
def test_several_layers_are_the_single_layers_side_by_side(
    sources, signal, kind
):
    single = [
        encode(SpeechEncoder(sources[kind], layer), signal(0.5))[0]
        for layer in (0, 1, 2, "last")
    ]
    for layers, expected in (
        ("weighted", single),
        ([2, 0], [single[2], single[0]]),
        ([3, 1], [single[3], single[1]]),
        ([1, 2], single[1:3]),
    ):
        encoder = SpeechEncoder(sources[kind], layers)
        (feats,) = encode(encoder, signal(0.5))
        together = torch.stack(expected, dim=1)
        if kind == "whisper":
            # Its highest layer is computed for the clip's frames only, a lower
            # one for the padding's, too. A matrix product of other rows may
            # round its last bits otherwise, as it does with AVX2.
            assert (feats - together).norm() < 1e-6 * together.norm()
        else:  # the very same operations, hence the same bits
            assert torch.equal(feats, together)
        assert count_encoder_layers(encoder) == len(expected)
        assert get_encoder_dim(encoder) == feats.shape[-1]


@pytest.mark.parametrize(
    "argument, mistake",
    [
        *(
            ({"layer": layer}, "does not exist: .* 0 to 3, a list of these")
            for layer in (-1, 4, "first", 1.5, None, True, [], [0, 4])
        ),
        ({"layer": [1, 1]}, "names a layer twice"),
        ({"context": "half"}, "is unknown: choose one of full, clip"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_with_what_does(
    sources, argument, mistake
):
    ((name, value),) = argument.items()
    with pytest.raises(RecipeError, match=mistake) as error:
        SpeechEncoder(sources["hubert"], **argument)
    assert str(error.value).startswith(f"encoder_{name}={value} ")


def test_no_source_at_all_is_refused():
    with pytest.raises(RecipeError, match="encoder_source is null"):
        SpeechEncoder(None)


def test_an_own_module_is_run_to_find_its_size():
    module = Blocks()
    assert get_encoder_dim(module) == 320
    assert count_values_per_second(module) == 50 * 320
    module.sample_rate = 8000
    assert count_values_per_second(module) == 25 * 320
    module.output_size = 7
    assert get_encoder_dim(module) == 7


@pytest.mark.parametrize("kind", ["hubert", "w2v-bert", "whisper"])
def test_weights_are_loaded_once_and_not_before_they_are_needed(
    sources, signal, kind
):
    encoder = SpeechEncoder(sources[kind])
    get_identity(encoder)
    assert not list(encoder.parameters())
    encoder.load("cpu")
    loaded = list(encoder.parameters())
    assert loaded
    encode(encoder, signal(0.3))
    encoder.load("cpu")
    assert all(map(lambda a, b: a is b, encoder.parameters(), loaded))


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


# By version of the features: their mean, their deviation, and entries from the
# first to the last. What stands here for a version is never changed.
GOLDEN = {
    2: {
        "audio": "-1.309e-05 0.003795 0.0002551 -0.005277 0.005164 0.004004",
        "fbank": "-1.403 0.519 -0.7891 -1.614 -1.461 -1.883",
        "hubert": "-0.05801 0.5463 0.07221 0.4804 0.1423 -0.1639",
        "w2v-bert": "-0.4091 8.575 -18.99 -19.45 0.06584 -0.1506",
        "whisper": "-0.005337 1.46 0.05091 4.909 0.2718 3.618",
        "whisper clip": "-0.004901 1.47 0.05091 4.927 0.2718 3.646",
    },
    3: {
        "audio": "-1.308e-05 0.003795 0.0002787 -0.005326 0.00516 0.003953",
        "fbank": "-1.4 0.5217 -0.7892 -1.614 -1.462 -1.883",
        "hubert": "-0.05801 0.5463 0.0722 0.4804 0.1423 -0.1639",
        "w2v-bert": "-0.4093 8.58 -18.92 -19.42 0.06621 -0.1506",
        "whisper": "-0.005851 1.46 0.05002 4.9 0.273 3.62",
        "whisper clip": "-0.005451 1.469 0.05002 4.916 0.273 3.644",
    },
}


@pytest.mark.parametrize("name", GOLDEN[max(GOLDEN)])
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
    version = speech_encoder.FEATURES_VERSION
    golden = GOLDEN.get(version, {}).get(name, "")
    expected = [float(number) for number in golden.split()]
    assert numbers == pytest.approx(
        expected, rel=1e-3, abs=1e-3 * numbers[1]
    ), (
        f"{name} is not what FEATURES_VERSION {version} stands for: raise it, "
        "so that features in caches are not taken over, and write to GOLDEN: "
        f'"{name}": "{" ".join(f"{number:.4g}" for number in numbers)}"'
    )


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
