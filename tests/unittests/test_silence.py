"""Where somebody speaks: loud for long enough, whatever the file."""

import numpy as np
import pytest
import soundfile

from speechbrain_wap.data import audio
from speechbrain_wap.data.silence import find_speech
from speechbrain_wap.errors import RecipeError

MARGIN = 0.15  # of a margin, and of what is smoothed


def assert_stretches(found, *expected):
    assert len(found) == len(expected), found
    for one, other in zip(found, expected):
        assert one == pytest.approx(other, abs=MARGIN)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_stretches_are_where_it_is_loud(tmp_path, write_sound, rate):
    parts = [("", 2), ("low", 1.5), ("", 1), ("high", 2), ("", 0.4)]
    parts += [("low", 1), ("", 3)]
    path = write_sound(tmp_path / "a.wav", *parts, rate=rate)
    stretches, duration = find_speech(path)
    assert duration == pytest.approx(10.9, abs=1e-3)
    # 0.4 s are no pause
    assert_stretches(stretches, (2.0, 3.5), (4.5, 7.9))
    assert_stretches(
        find_speech(path, pause=0.2)[0], (2.0, 3.5), (4.5, 6.5), (6.9, 7.9)
    )


def test_times_do_not_drift(tmp_path):
    # 20 ms are 220.5 samples: a quarter of a second in two minutes
    rate, samples = 11025, np.zeros(11025 * 120, "float32")
    samples[100 * rate : 110 * rate] = 0.5
    soundfile.write(tmp_path / "a.wav", samples, rate)
    ((start, end),), duration = find_speech(tmp_path / "a.wav")
    assert (start, end) == pytest.approx((99.9, 110.1), abs=0.03)
    assert duration == 120


def test_how_loud_the_recording_is_does_not_matter(tmp_path, write_sound):
    parts = [("", 1), ("low", 2), ("", 1)]
    stretches, _ = find_speech(write_sound(tmp_path / "a.wav", *parts))
    samples, rate = soundfile.read(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.flac", samples / 30, rate)
    assert_stretches(find_speech(tmp_path / "b.flac")[0], *stretches)


def test_speech_lasts_to_the_ends_and_clicks_are_none(tmp_path, write_sound):
    path = write_sound(tmp_path / "a.wav", ("low", 0.3))
    assert find_speech(path) == ([(0.0, 0.3)], 0.3)
    parts = [("low", 1), ("", 2), ("high", 0.04), ("", 2)]
    (stretch,), _ = find_speech(write_sound(tmp_path / "b.wav", *parts))
    assert stretch == pytest.approx((0.0, 1.0), abs=MARGIN)


def test_a_silent_file_has_none_be_it_zeros_or_noise(tmp_path):
    for scale in (0.0, 3e-4):
        noise = scale * np.random.default_rng(0).normal(size=16000)
        soundfile.write(tmp_path / "a.wav", noise, 16000, "FLOAT")
        assert find_speech(tmp_path / "a.wav") == ([], 1.0)


def test_all_of_it_is_read_a_piece_at_a_time(tmp_path, write_sound):
    path = write_sound(tmp_path / "a.wav", ("low", 35), channels=2)
    blocks = [block for block, _ in audio.read_blocks(path, 0.02)]
    assert [len(block) for block in blocks] == [160000] * 3 + [80000]
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(np.concatenate(blocks), whole.mean(axis=1))


@pytest.mark.parametrize(
    "samples, says",
    [
        (np.zeros(160), "is too short: of less than 0.1 s, nobody can tell"),
        (np.zeros(0), "is too short"),
        (np.full(9999, np.nan), "holds samples that are NaN or infinite"),
    ],
)
def test_what_nothing_can_be_said_of_is_refused(tmp_path, samples, says):
    soundfile.write(tmp_path / "a.wav", samples, 16000, "FLOAT")
    with pytest.raises(RecipeError, match=f"a.wav {says}"):
        find_speech(tmp_path / "a.wav")


def test_a_file_that_ends_in_the_midst_is_refused(tmp_path, write_sound):
    path = tmp_path / "a.flac"
    write_sound(path, ("low", 20))
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(RecipeError, match="a.flac cannot be read"):
        find_speech(path)
