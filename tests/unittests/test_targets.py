"""Laws of the targets' moving average (D18)."""

import pytest
import torch
from helpers import generator

from speechbrain_wap.packing import valid_frames
from speechbrain_wap.targets import smooth_frames


def make_batch(*lengths):
    """Frames whose padding is not a number, and which are valid."""
    longest = max(lengths)
    x = torch.randn(len(lengths), longest, 3, generator=generator())
    _, valid = valid_frames(torch.tensor(lengths) / longest, longest)
    x[~valid] = torch.nan
    return x, valid


@pytest.mark.parametrize("reach", [0, 1, 4, 20, 2**31 - 1])
def test_a_frame_becomes_the_mean_of_its_valid_neighbours(reach):
    lengths = (9, 1, 5)
    x, valid = make_batch(*lengths)
    smoothed = smooth_frames(x, valid, reach)
    for utterance, out, length in zip(x, smoothed, lengths):
        for t in range(length):
            window = utterance[max(0, t - reach) : min(length, t + reach + 1)]
            torch.testing.assert_close(out[t], window.mean(dim=0))


def test_no_reach_changes_nothing():
    x, valid = make_batch(7, 3)
    assert torch.equal(smooth_frames(x, valid, 0)[valid], x[valid])


@pytest.mark.parametrize("reach", [2, 30])
def test_other_utterances_and_padding_change_nothing(reach):
    x, valid = make_batch(6, 11)
    together = smooth_frames(x, valid, reach)
    alone = smooth_frames(x[:1, :6], valid[:1, :6], reach)
    assert torch.equal(together[0, :6], alone[0])


def test_half_precision_is_averaged_in_float32():
    x, valid = make_batch(5)
    half = smooth_frames(x.bfloat16(), valid, 1)
    assert half.dtype == torch.float32
    assert torch.equal(half, smooth_frames(x.bfloat16().float(), valid, 1))
