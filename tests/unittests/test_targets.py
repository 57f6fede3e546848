"""Laws of the targets: what the student is to predict (D6, D18)."""

import pytest
import torch
from helpers import assert_near, generator
from torch.nn import functional as F

from speechbrain_wap.packing import valid_frames
from speechbrain_wap.targets import (
    Predictor,
    Targets,
    frame_spread,
    smooth_frames,
)


def make_batch(*lengths):
    """Frames whose padding is not a number, and which are valid."""
    longest = max(lengths)
    x = torch.randn(len(lengths), longest, 3, generator=generator())
    _, valid = valid_frames(torch.tensor(lengths) / longest, longest)
    x[~valid] = torch.nan
    return x, valid


@pytest.mark.parametrize("reach", [2, 30])
def test_other_utterances_and_padding_change_nothing(reach):
    x, valid = make_batch(6, 11)
    together = smooth_frames(x, valid, reach)
    alone = smooth_frames(x[:1, :6], valid[:1, :6], reach)
    assert torch.equal(together[0, :6], alone[0])
    assert torch.equal(smooth_frames(x, valid, 0)[valid], x[valid])


@pytest.mark.parametrize("smoothing", [0, 4, 2**31 - 1])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_targets_are_frames_smoothed_then_normalised(smoothing, norm):
    lengths = (9, 1, 5)
    x, valid = make_batch(*lengths)
    targets = Targets(smoothing, norm)
    frames = targets.select(x.half(), valid)
    expected = [
        utterance[max(0, t - smoothing) : min(n, t + smoothing + 1)]
        for utterance, n in zip(x.half().float(), lengths)
        for t in range(n)
    ]
    expected = torch.stack([window.mean(dim=0) for window in expected])
    assert frames.dtype == torch.float32
    assert_near(frames, expected)
    if norm == "layer":
        centred = expected - expected.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        expected = centred / (variance + 1e-5).sqrt()
    assert_near(targets.normalise(frames), expected)


def test_the_spread_is_that_over_frames_per_size():
    frames = torch.randn(50, 4, generator=generator()) * 3.0
    expected = frames.var(dim=0, unbiased=False).mean()
    expected = (expected / frames.square().mean()).sqrt()
    for scale in (1.0, 10.0):
        assert_near(frame_spread(scale * frames), expected)
    # a collapse shows before the normalisation, which would hide it
    assert float(frame_spread(100.0 + 0.01 * frames)) < 1e-3
    assert float(frame_spread(torch.zeros(3, 4))) == 0.0


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_the_predictor_has_gelu_between_its_linear_layers(num_layers):
    predictor = Predictor(3, num_layers)
    x = torch.randn(5, 3, generator=generator())
    expected = x
    linears = [m for m in predictor if isinstance(m, torch.nn.Linear)]
    for number, linear in enumerate(linears):
        expected = F.gelu(expected) if number else expected
        expected = expected @ linear.weight.T + linear.bias
    assert len(linears) == num_layers
    assert_near(predictor(x), expected)
