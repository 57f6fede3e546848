"""Reading speech: whatever the file, one signal or one sentence."""

import os
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_wap.data.audio import inspect_audio, read_audio
from speechbrain_wap.errors import RecipeError


def make_tone(frequency, seconds, sample_rate):
    times = torch.arange(round(seconds * sample_rate)).double() / sample_rate
    return (0.5 * torch.sin(2 * torch.pi * frequency * times)).float()


RATES = [8000, 11025, 22051, 24414, 44100, 96000]


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_of_any_rate_and_channels_arrives_as_that_tone_at_16_khz(
    tmp_path, rate
):
    for frequency in (440, 3000, 7000 if rate > 16000 else 3500):
        tone = make_tone(frequency, 1, rate)
        both = torch.stack([1.5 * tone, 0.5 * tone], dim=1)
        soundfile.write(tmp_path / "a.wav", both.numpy(), rate, "FLOAT")
        read = read_audio(tmp_path / "a.wav", 16000)
        assert read.dtype == torch.float32
        difference = read - make_tone(frequency, 1, 16000)
        assert difference[2000:-2000].abs().max() < 1e-3  # it rings at the ends


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > 20000])
def test_what_is_above_8_khz_does_not_fold_back(tmp_path, rate):
    for frequency in (8500, 0.45 * rate):
        tone = make_tone(frequency, 1, rate)
        soundfile.write(tmp_path / "a.wav", tone.numpy(), rate, "FLOAT")
        read = read_audio(tmp_path / "a.wav", 16000)
        assert read[2000:-2000].abs().max() < 1e-5


@pytest.mark.parametrize("num_samples", [2, 1001, 24413])
@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_the_duration_to_the_nearest_sample(
    tmp_path, rate, num_samples
):
    soundfile.write(tmp_path / "a.wav", np.zeros(num_samples), rate)
    length = len(read_audio(tmp_path / "a.wav", 16000))
    assert abs(length - num_samples * 16000 / rate) <= 0.5


@pytest.mark.parametrize(
    "name, subtype, step",
    [
        ("a.wav", "PCM_U8", 2**-7),
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "FLOAT", 0),
        ("a.flac", "PCM_24", 2**-23),
    ],
)
def test_every_sample_format_keeps_its_precision_and_scale(
    tmp_path, signal, name, subtype, step
):
    samples = signal(0.1)
    soundfile.write(tmp_path / name, samples.numpy(), 16000, subtype)
    assert (read_audio(tmp_path / name, 16000) - samples).abs().max() <= step


def write_samples(path, samples):
    soundfile.write(path, np.array(samples, "float32"), 16000, "FLOAT")


UNREADABLE = {
    "text": (lambda path: path.write_text("no audio"), "cannot be read as"),
    "no samples": (partial(write_samples, samples=[]), "no samples"),
    "infinity": (
        partial(write_samples, samples=[[0, 1], [0, -np.inf]]),
        "NaN or infinite",
    ),
    "a missing file": (lambda path: None, "cannot be"),
}


@pytest.mark.parametrize(
    "read", [partial(read_audio, sample_rate=16000), inspect_audio]
)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_audio_is_one_sentence_that_names_the_file(
    tmp_path, kind, read
):
    write, reason = UNREADABLE[kind]
    path = tmp_path / "Ses01F 01.wav"
    write(path)
    with pytest.raises(RecipeError) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert "BytesIO" not in str(error.value)


def test_a_path_may_hold_any_character(tmp_path, make_wav):
    path = make_wav(tmp_path / "Mappe mit Ä" / "№7 怒り, a#b=c 'e'.wav")
    assert len(read_audio(path, 16000)) == 1600
    assert inspect_audio(path)[0] == pytest.approx(0.1)


def test_the_digest_is_of_the_bytes_and_not_of_the_place(tmp_path, make_wav):
    original = make_wav(tmp_path / "a.wav", seed=1)
    digest = inspect_audio(original)[1]
    elsewhere = shutil.copyfile(original, tmp_path / "other.wav")
    assert inspect_audio(elsewhere)[1] == digest
    changed = bytearray(original.read_bytes())
    changed[-1] ^= 1
    original.write_bytes(changed)
    assert inspect_audio(original)[1] != digest


def test_a_wav_that_has_lost_its_end_is_refused_and_with_little_lost_named(
    make_wav, tmp_path, caplog
):
    path = make_wav(tmp_path / "a.wav", seconds=0.5)
    content = path.read_bytes()
    path.write_bytes(content[: int(0.95 * len(content))])
    assert inspect_audio(path)[0] == pytest.approx(0.475, abs=0.005)
    assert f"{path} is cut" in caplog.text
    path.write_bytes(content[: len(content) // 2])
    expected = f"is cut: it has {len(content) // 2} of {len(content)}"
    with pytest.raises(RecipeError, match=expected):
        inspect_audio(path)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 20])
def test_a_wav_whose_header_does_not_know_its_size_is_read(
    make_wav, tmp_path, size
):
    path = make_wav(tmp_path / "a.wav", seconds=0.5)
    content = bytearray(path.read_bytes())
    content[4:8] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert inspect_audio(path)[0] == pytest.approx(0.5)


def test_a_file_may_have_a_name_that_is_no_text(make_wav, tmp_path):
    wav = make_wav(tmp_path / "a.wav")
    path = wav.rename(tmp_path / os.fsdecode(b"\xfc.wav"))
    assert len(read_audio(path, 16000)) == 1600
    assert inspect_audio(path)[0] == 0.1
