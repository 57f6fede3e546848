"""Reading speech: whatever the file, one signal or one sentence."""

import os
import shlex
import shutil
import struct
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_wap.data import audio
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


READERS = [partial(read_audio, sample_rate=16000), inspect_audio]


@pytest.mark.parametrize("read", READERS)
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


CONTAINERS = {
    "a.wav": {"format": "WAV"},
    "a.wavex": {"format": "WAVEX"},
    "a.adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "a.rifx": {"format": "WAV", "endian": "BIG"},
    "a.rf64": {"format": "RF64"},
    "a.w64": {"format": "W64"},
    "a.aiff": {"format": "AIFF"},
    "a.aifc": {"format": "AIFF", "subtype": "ULAW"},
    "a.svx": {"format": "SVX"},
    "a.au": {"format": "AU"},
    "a.snd": {"format": "AU", "endian": "LITTLE"},
    "a.sph": {"format": "NIST"},
    "a.mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    # libsndfile itself refuses these
    "a.flac": {"format": "FLAC"},
    "a.caf": {"format": "CAF"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_a_container_declares_is_compared_with_what_there_is(
    tmp_path, signal, caplog, name
):
    path, rate = tmp_path / name, 16000
    soundfile.write(path, signal(2.0).numpy(), rate, **CONTAINERS[name])
    assert inspect_audio(path)[0] == pytest.approx(2.0, abs=0.1)
    assert caplog.text == ""
    content = path.read_bytes()
    path.write_bytes(content + bytes(100))  # more than declared
    assert inspect_audio(path)[0] == pytest.approx(2.0, abs=0.2)
    assert caplog.text == ""
    for share in (0.5, 0.85):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(RecipeError, match=f"{path}.* is cut"):
            inspect_audio(path)
    if name not in ("a.flac", "a.caf", "a.mp3"):
        path.write_bytes(content[: int(0.95 * len(content))])
        assert inspect_audio(path)[0] == pytest.approx(1.9, abs=0.1)
        assert f"{path} is cut: it has" in caplog.text


@pytest.mark.parametrize("name", ["a.wav", "a.rifx", "a.aiff"])
def test_a_header_that_a_program_has_patched_does_not_hide_the_loss(
    tmp_path, signal, name
):
    path = tmp_path / name
    soundfile.write(path, signal(2.0).numpy(), 16000, **CONTAINERS[name])
    content = path.read_bytes()
    half = content[: len(content) // 2]
    order = "little" if half[:4] == b"RIFF" else "big"
    size = (len(half) - 8).to_bytes(4, order)
    path.write_bytes(half[:4] + size + half[8:])
    with pytest.raises(RecipeError, match=f"it has {len(half)} of "):
        inspect_audio(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_declares_no_length_but_its_end(tmp_path, signal, caplog, subtype):
    path = tmp_path / "a.ogg"
    soundfile.write(path, signal(4.0).numpy(), 16000, subtype, format="OGG")
    assert inspect_audio(path)[0] == 4.0 and caplog.text == ""
    content = path.read_bytes()
    path.write_bytes(content[: int(0.7 * len(content))])
    assert 0 < inspect_audio(path)[0] < 4.0
    assert f"{path} may be cut: it has no last page" in caplog.text


def test_an_mp3_without_a_table_says_nothing_of_its_length(
    tmp_path, signal, caplog
):
    path = tmp_path / "a.mp3"
    soundfile.write(path, signal(2.0).numpy(), 16000)
    content = path.read_bytes()
    # its first frame holds the table
    first = content.index(content[:2], 2)
    path.write_bytes(content[first : len(content) // 2])
    assert 0 < inspect_audio(path)[0] < 1.1
    assert caplog.text == ""


@pytest.mark.parametrize(
    "name, place, size",
    [("a.au", 8, 0xFFFFFFFF), ("a.aiff", 4, 0x7FFFFFFF), ("a.w64", 16, 2**64)],
)
def test_a_container_of_a_stream_does_not_know_its_size(
    tmp_path, signal, name, place, size
):
    path, little = tmp_path / name, name == "a.w64"
    soundfile.write(path, signal(0.5).numpy(), 16000)
    content = bytearray(path.read_bytes())
    num = 8 if little else 4
    order = "little" if little else "big"
    content[place : place + num] = (size - little).to_bytes(num, order)
    path.write_bytes(content)
    assert inspect_audio(path)[0] == pytest.approx(0.5)


NOISE = bytes(range(256)) * 20
ELSEWHERE = {
    "a b.mp4": b"\0\0\0\x20ftypisom" + NOISE,
    "a.m4a": b"\0\0\0\x20ftypM4A " + NOISE,
    "a.3gp": b"\0\0\0\x18ftyp3gp4" + NOISE,
    "a.webm": b"\x1aE\xdf\xa3" + NOISE,
    "a.amr": b"#!AMR\n" + NOISE,
    "a.wma": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + NOISE,
    "a.avi": b"RIFF\x08\x14\0\0AVI LIST" + NOISE,
    "a.ac3": b"\x0b\x77" + NOISE,
    "a.aac": b"\xff\xf1\x50\x80\x2e\x7f\xfc" + NOISE,
    "a.wav": b"\0\0\0\x20ftypM4A " + NOISE,  # renamed
    "a.caf": b"caff\0\1\0\0desc\0\0\0\0\0\0\0\x20"
    + struct.pack(">d4sIIIII", 44100, b"aac ", 0, 0, 1024, 1, 0)
    + struct.pack(">4sq", b"data", 4 + len(NOISE))
    + NOISE,
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_libsndfile_does_not_read_is_named_with_how_to_convert_it(
    tmp_path, name, read
):
    path = tmp_path / name
    path.write_bytes(ELSEWHERE[name])
    other = path.with_suffix(".flac" if name == "a.wav" else ".wav")
    line = shlex.join(["ffmpeg", "-i", str(path), str(other)])
    with pytest.raises(RecipeError, match="convert it with") as error:
        read(path)
    assert f"{path} cannot be read as audio: " in str(error.value)
    assert f"'{line}'" in str(error.value)


@pytest.mark.parametrize("read", READERS)
def test_what_conversion_does_not_mend_has_another_cure(tmp_path, signal, read):
    path = tmp_path / "a: b.wav"
    path.write_bytes(b"")
    with pytest.raises(RecipeError, match="a: b.wav cannot.*: it is empty.$"):
        read(path)
    path = tmp_path / "a.flac"
    soundfile.write(path, signal(1.0).numpy(), 16000)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RecipeError, match="is cut or damaged: restore it"):
        read(path)
    # as ffmpeg writes into a pipe
    content[21:26] = bytes([content[21] & 0xF0]) + bytes(4)
    path.write_bytes(content)
    says = "header does not say how long it is; .* convert it with 'ffmpeg"
    with pytest.raises(RecipeError, match=says):
        read(path)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF024, 20])
def test_a_wav_whose_header_does_not_know_its_size_is_read(
    make_wav, tmp_path, size
):
    path = make_wav(tmp_path / "a.wav", seconds=0.5)
    content = bytearray(path.read_bytes())
    content[4:8] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert inspect_audio(path)[0] == pytest.approx(0.5)


# Parts of a file -------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_part_is_what_a_file_of_its_own_would_be(
    tmp_path, signal, suffix, rate
):
    samples = signal(1.0, rate).numpy()
    both = np.stack([samples, 0.5 * samples], axis=1)
    whole, part = tmp_path / f"all{suffix}", tmp_path / f"part{suffix}"
    soundfile.write(whole, both, rate)
    first, last = round(0.2501 * rate), round(0.7 * rate)
    soundfile.write(part, both[first:last], rate)
    times = {"start": 0.2501, "end": 0.7}
    assert torch.equal(
        read_audio(whole, 16000, **times), read_audio(part, 16000)
    )
    duration, digest, sound = inspect_audio(whole, **times)
    assert (duration, sound) == inspect_audio(part)[::2]
    assert digest != inspect_audio(whole)[1]
    assert digest != inspect_audio(whole, 0.2501, 0.71)[1]
    until = inspect_audio(whole, end=0.5)
    assert until == inspect_audio(whole, 0.0, 0.5) != inspect_audio(whole)
    assert inspect_audio(whole, 0.5)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "name, subtype",
    [
        *[("a.ogg", "VORBIS"), ("a.ogg", "OPUS"), ("a.wav", "IMA_ADPCM")],
        *[("a.wav", "GSM610"), ("a.mp3", "MPEG_LAYER_III"), ("a.aiff", "ULAW")],
    ],
)
def test_a_part_of_a_lossy_file_is_that_of_the_whole(
    tmp_path, signal, name, subtype
):
    path = tmp_path / name
    soundfile.write(path, signal(2.0).numpy(), 16000, subtype)
    part = read_audio(path, 16000, 0.5, 1.25)
    expected = read_audio(path, 16000)[8000:20000]
    # libmpg123 rounds elsewhere
    torch.testing.assert_close(part, expected, atol=1e-6, rtol=0)


def test_a_part_that_is_all_of_a_file_is_the_file(tmp_path, make_wav):
    path = make_wav(tmp_path / "a.wav", 0.5)
    for times in [(0.0, 0.5), (None, 0.5), (0.0, None), (0.0, 0.58)]:
        assert inspect_audio(path, *times) == inspect_audio(path)
        assert torch.equal(
            read_audio(path, 16000, *times), read_audio(path, 16000)
        )


def test_the_rest_of_the_file_is_not_decoded(tmp_path, make_wav, monkeypatch):
    path, decoded = make_wav(tmp_path / "a.wav", 2.0), []
    load = audio.audio_io.load

    def count(*args, **kwargs):
        signal, rate = load(*args, **kwargs)
        decoded.append(signal.shape[-1])
        return signal, rate

    monkeypatch.setattr(audio.audio_io, "load", count)
    assert len(read_audio(path, 16000, 1.0, 1.25)) == 4000
    assert decoded == [4000]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "times, says",
    [
        ((0.2, 1.0), "lasts 0.500 s, .* from 0.2 s to 1 s"),
        ((0.6, None), "lasts 0.500 s, .* from 0.6 s to its end"),
        ((0.1, 0.10001), "a.wav, from 0.1 s to 0.10001 s, holds no samples"),
        ((0.2, 0.1), "a.wav, from 0.2 s to 0.1 s, holds no samples"),
    ],
)
def test_a_part_that_is_not_there_is_named(
    tmp_path, make_wav, read, times, says
):
    path = make_wav(tmp_path / "a.wav", 0.5)
    with pytest.raises(RecipeError, match=says):
        read(path, start=times[0], end=times[1])


def test_a_fault_elsewhere_in_the_file_does_not_matter(tmp_path):
    path = tmp_path / "a.wav"
    write_samples(path, [0.1] * 800 + [np.nan] * 800)
    assert len(read_audio(path, 16000, 0, 0.05)) == 800
    assert inspect_audio(path, 0, 0.05)[0] == 0.05
    with pytest.raises(RecipeError, match="NaN"):
        inspect_audio(path, 0.01, 0.06)


def test_a_file_may_have_a_name_that_is_no_text(make_wav, tmp_path):
    wav = make_wav(tmp_path / "a.wav")
    path = wav.rename(tmp_path / os.fsdecode(b"\xfc.wav"))
    assert len(read_audio(path, 16000)) == 1600
    assert inspect_audio(path)[0] == 0.1
