"""Schedules of the learning rate and of lambda."""

import math

import pytest

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.schedules import Schedule

SHAPES = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: math.sin(math.pi * progress / 2) ** 2,
    "constant": lambda progress: 0.0,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start, end", [(1.0, 0.5), (0.0, 3.0), (2.0, 2.0)])
def test_a_schedule_follows_its_shape(shape, start, end):
    schedule = Schedule(start, end, shape)
    for step in range(21):
        progress = step / 20
        done = SHAPES[shape](progress)
        expected = (1.0 - done) * start + done * end
        assert schedule(progress) == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_schedule_reaches_its_ends_exactly_and_stays_there(shape):
    schedule = Schedule(1.0, 0.5, shape)
    last = 1.0 if shape == "constant" else 0.5
    assert schedule(0.0) == schedule(-0.5) == 1.0
    assert schedule(1.0) == schedule(1.5) == last
    assert Schedule(0.0, 1.0)(0.25) == 0.25  # linear unless told


@pytest.mark.parametrize(
    "arguments, mistake",
    [
        ((1.0, 0.5, "step"), "shape=step is .* linear, cosine, constant"),
        (("1", 0.5), "start=1 must be a number"),
        ((1.0, math.nan), "end=nan must be finite"),
    ],
)
def test_a_bad_setting_raises_an_error_that_names_it(arguments, mistake):
    with pytest.raises(RecipeError, match=mistake):
        Schedule(*arguments)
