"""Schedules of the learning rate and of lambda."""

import math

import pytest

from speechbrain_wap.schedules import Schedule

SHAPES = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: math.sin(math.pi * progress / 2) ** 2,
    "constant": lambda progress: 0.0,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start, end", [(1.0, 0.5), (0.0, 3.0)])
def test_a_schedule_follows_its_shape_and_stays_at_its_ends(shape, start, end):
    schedule = Schedule(start, end, shape)
    for step in range(21):
        done = SHAPES[shape](step / 20)
        expected = (1.0 - done) * start + done * end
        assert schedule(step / 20) == pytest.approx(expected)
    last = start if shape == "constant" else end
    assert schedule(0.0) == schedule(-0.5) == start  # exactly
    assert schedule(1.0) == schedule(1.5) == last
    assert Schedule(0.0, 1.0)(0.25) == 0.25  # linear unless told
