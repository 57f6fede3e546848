"""Laws of targets standardised by running statistics (D6)."""

import pytest
import torch
from helpers import assert_near, generator

from speechbrain_wap.running_norm import RunningNorm, sum_frames

DIM = 3


def draw(count, shift=0.0):
    """Frames of uneven scale, far from zero."""
    scale = torch.tensor([0.1, 1.0, 50.0])
    x = torch.randn(count, DIM, generator=generator(count))
    return 100.0 + shift + scale * x


def standardise(x, seen):
    """By the frames that were seen, plainly."""
    seen = seen.double()
    return (x - seen.mean(dim=0)) / seen.std(dim=0, unbiased=False)


def test_the_first_frames_are_standardised_by_themselves():
    norm, x = RunningNorm(DIM), draw(50)
    assert norm.count == 0
    norm.initialise_(sum_frames(x))
    assert norm.count == 50
    assert_near(norm(x), standardise(x, x).float(), atol=1e-4)


def test_without_decay_all_frames_count_alike():
    norm, first, second = RunningNorm(DIM, decay=1.0), draw(20), draw(31, 3.0)
    norm.initialise_(sum_frames(first))
    norm.update(second)
    seen = torch.cat([first, second])
    assert_near(norm(second), standardise(second, seen).float(), atol=1e-4)


def test_what_was_long_ago_is_forgotten():
    norm, new = RunningNorm(DIM, decay=0.5), draw(40)
    norm.initialise_(sum_frames(draw(40, 1000.0)))
    for _ in range(60):
        norm.update(new)
    assert_near(norm(new), standardise(new, new).float(), atol=1e-4)


def test_a_frame_does_not_depend_on_its_batch():
    norm = RunningNorm(DIM)
    norm.initialise_(sum_frames(draw(30)))
    x = draw(10, 1.0)
    assert torch.equal(norm(x)[:4], norm(x[:4]))


def test_collected_batches_are_one():
    whole, parts, x = RunningNorm(DIM), RunningNorm(DIM), draw(24)
    for norm in (whole, parts):
        norm.initialise_(sum_frames(draw(10)))
    whole.update(x)
    parts.collect_(x[:7])
    parts.collect_(x[7:11])
    parts.update(x[11:])
    assert_near(parts.moments, whole.moments)
    assert float(parts.count) == pytest.approx(0.99 * 10 + 24)
    parts.update(x)  # what was collected counts once
    whole.update(x)
    assert_near(parts.moments, whole.moments)


def test_a_constant_dimension_is_only_shifted():
    norm, x = RunningNorm(DIM), draw(12)
    x[:, 1] = 7.0
    norm.initialise_(sum_frames(x))
    assert norm(x + 2.0)[:, 1].tolist() == pytest.approx([2.0] * 12)


def test_a_checkpoint_holds_it():
    norm, other, x = RunningNorm(DIM), RunningNorm(DIM), draw(9)
    norm.initialise_(sum_frames(x))
    other.load_state_dict(norm.state_dict())
    assert other.count == 9
    assert torch.equal(other(x), norm(x))
