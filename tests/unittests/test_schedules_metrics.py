"""Schedules, and the scores of emotion recognition (Sec. III-A)."""

import math
import random
import warnings

import pytest

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.metrics import emotion_scores
from speechbrain_wap.schedules import Schedule

SHAPES = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: math.sin(math.pi * progress / 2) ** 2,
    "constant": lambda progress: 0.0,
}
CLASSES = ["angry", "happy", "neutral", "sad"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start, end", [(1.0, 0.5), (0.0, 3.0), (2.0, 2.0)])
def test_a_schedule_follows_its_shape(shape, start, end):
    schedule = Schedule(start, end, shape)
    for step in range(21):
        progress = step / 20
        done = SHAPES[shape](progress)
        expected = (1.0 - done) * start + done * end
        assert schedule(progress) == pytest.approx(expected)


@pytest.mark.parametrize("shape, last", [("linear", 0.5), ("cosine", 0.5)])
def test_a_schedule_reaches_its_ends_exactly(shape, last):
    schedule = Schedule(1.0, last, shape)
    assert (schedule(0.0), schedule(1.0)) == (1.0, last)


def test_a_constant_schedule_stays_at_its_start():
    schedule = Schedule(1.0, 0.5, "constant")
    assert {schedule(progress) for progress in (-1, 0, 0.3, 1, 2)} == {1.0}


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_never_turns_round(shape):
    schedule = Schedule(1.0, 0.5, shape)
    values = [schedule(step / 50) for step in range(51)]
    assert all(a > b for a, b in zip(values, values[1:]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outside, clipped", [(-0.5, 0.0), (1.5, 1.0)])
def test_a_schedule_stays_at_its_ends_outside(shape, outside, clipped):
    schedule = Schedule(1.0, 0.5, shape)
    assert schedule(outside) == schedule(clipped)


def test_a_schedule_is_linear_unless_told():
    assert Schedule(0.0, 1.0)(0.25) == 0.25


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


def naive_scores(labels, predictions):
    """Computes the scores from the counts of each class."""
    recalls, f1s = [], []
    for name in CLASSES:
        right = sum(a == b == name for a, b in zip(labels, predictions))
        true, predicted = labels.count(name), predictions.count(name)
        if true > 0:
            recalls.append(right / true)
        if true + predicted > 0:
            f1s.append(2 * right / (true + predicted))
    right = sum(a == b for a, b in zip(labels, predictions))
    return {
        "UA": sum(recalls) / len(recalls),
        "WA": right / len(labels),
        "F1": sum(f1s) / len(f1s),
    }


@pytest.mark.parametrize(
    "true_weights, predicted_weights",
    [
        ([9, 1, 3, 1], [5, 1, 1, 1]),
        # sad: never true; predicted, or not
        ([4, 1, 2, 0], [1, 1, 1, 1]),
        ([4, 1, 2, 0], [3, 1, 1, 0]),
        # happy: true but never predicted
        ([4, 1, 2, 1], [1, 0, 1, 1]),
    ],
    ids=str,
)
def test_scores_equal_those_of_counts(true_weights, predicted_weights):
    source = random.Random(1)
    labels = source.choices(CLASSES, true_weights, k=60)
    predictions = source.choices(CLASSES, predicted_weights, k=60)
    expected = naive_scores(labels, predictions)
    assert expected["UA"] != pytest.approx(expected["WA"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # in any order of the classes
        for classes in (CLASSES, CLASSES[::-1]):
            scores = emotion_scores(labels, predictions, classes)
            assert scores == pytest.approx(expected)


def test_a_prediction_of_another_class_is_wrong_but_no_class_of_its_own():
    labels = ["sad", "sad", "angry", "angry"]
    predictions = ["sad", "fear", "angry", "angry"]
    scores = emotion_scores(labels, predictions, ["angry", "sad"])
    f1 = (1 + 2 / 3) / 2
    assert scores == pytest.approx({"UA": 0.75, "WA": 0.75, "F1": f1})


@pytest.mark.parametrize(
    "labels, predictions", [([], []), (["sad"], ["sad", "sad"])], ids=str
)
def test_scores_need_as_many_labels_as_predictions(labels, predictions):
    message = f"{len(labels)} labels and {len(predictions)} predictions"
    with pytest.raises(ValueError, match=message):
        emotion_scores(labels, predictions, CLASSES)
