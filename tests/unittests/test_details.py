"""What a test leaves for the report: attention, envelopes, layers."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from helpers import make_utterances, pad_batch
from test_emotion_model import DIM, LENGTHS, make_model

from speechbrain_wap.baselines.linear import MeanPoolingClassifier
from speechbrain_wap.evaluation.details import (
    BINS,
    DIGITS,
    read_details,
    weigh_frames,
    write_details,
    write_digits,
)


@pytest.mark.parametrize("size", [1, 7, 99, 100, 101, 1234])
def test_digits_are_the_largest_values_of_equal_parts(size):
    values = np.random.default_rng(size).random(size)
    digits = write_digits(values)
    assert len(digits) == BINS
    for number, digit in enumerate(digits):
        start = number * size // BINS
        stop = max(start + 1, (number + 1) * size // BINS)
        height = values[start:stop].max() / values.max()
        assert abs(DIGITS.index(digit) / 61 - height) <= 0.5 / 61 + 1e-9


def test_silence_has_no_height():
    assert write_digits(np.zeros(50)) == "0" * BINS


def test_frame_weights_are_those_of_the_utterance_alone():
    model = make_model()
    utterances = make_utterances(LENGTHS, DIM)
    together = model.frame_weights(*pad_batch(utterances))
    for utterance, weights in zip(utterances, together, strict=True):
        assert weights.shape == utterance.shape[:1]
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
        (alone,) = model.frame_weights(utterance[None], torch.ones(1))
        torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-6)
        z = model.backbone(utterance[None], torch.ones(1), None)
        wanted = model.pooling.attention_map(z)[0].mean(dim=0)
        torch.testing.assert_close(alone, wanted)


def test_a_system_without_attention_leaves_none(tmp_path):
    model = MeanPoolingClassifier(input_size=3)
    model.set_classes(2)
    feats, lens = torch.rand(1, 5, 3), torch.ones(1)
    weights = weigh_frames(model, ["a"], feats, lens)
    write_details(tmp_path, model, {}, weights, None)
    found = read_details(tmp_path)
    assert weights == found["attention"] == found["layer_weights"] == {}


def test_details_are_of_the_part_that_is_tested(tmp_path, caplog):
    wave = np.zeros(16000)
    wave[8000:12000] = 0.5
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    whole = {"wav": str(tmp_path / "a.wav")}
    entries = {
        "whole": whole,
        "part": {**whole, "start": 0.5, "end": 0.75},
        "gone": {"wav": str(tmp_path / "gone.wav")},
    }
    model = make_model()
    weights = {"whole": "0" * BINS, "other": "z" * BINS}
    with caplog.at_level(logging.WARNING):
        write_details(tmp_path, model, entries, weights, {"UA": 0.5})
    found = read_details(tmp_path)
    assert found["envelope"] == {
        "whole": "0" * 50 + "z" * 25 + "0" * 25,
        "part": "z" * BINS,
        "gone": None,
    }
    assert found["attention"] == {"whole": "0" * BINS}
    assert found["linear_probe"] == {"UA": 0.5}
    (layers,) = found["layer_weights"].values()
    assert sum(layers) == pytest.approx(1.0)
    assert "gone.wav" in caplog.text


def test_of_a_cut_utterance_what_is_heard_is_drawn(tmp_path):
    wave = np.zeros(16000)
    wave[4000:8000] = 0.5
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    whole = {"wav": str(tmp_path / "a.wav"), "duration": 1.0}
    entries = {
        "cut": whole,
        "part": {**whole, "start": 0.25, "end": 0.95, "duration": 0.7},
        "short": {**whole, "start": 0.25, "end": 0.75, "duration": 0.5},
    }
    write_details(tmp_path, make_model(), entries, {}, None, heard=0.5)
    found = read_details(tmp_path)
    assert found["heard_end"] == {"cut": 0.5, "part": 0.75}
    assert found["envelope"] == {
        "cut": "0" * 50 + "z" * 50,
        "part": "z" * 50 + "0" * 50,
        "short": "z" * 50 + "0" * 50,
    }


@pytest.mark.parametrize("text", ['{"a": 1', "[]", "null"])
def test_damaged_details_are_none(tmp_path, text):
    (tmp_path / "details.json").write_text(text)
    assert read_details(tmp_path)["attention"] == {}
