"""The scores of emotion recognition (Sec. III-A)."""

import random
import warnings

import numpy as np
import pytest

from speechbrain_wap.evaluation.metrics import calibration, emotion_scores

CLASSES = ["angry", "happy", "neutral", "sad"]


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


def test_the_calibration_error_is_the_mean_gap_of_ten_bins():
    generator = np.random.default_rng(0)
    confidences = np.concatenate([generator.random(200), [0.0, 0.1, 1.0]])
    correct = generator.random(203) < confidences
    total = 0.0
    for number in range(10):
        low, high = number / 10, (number + 1) / 10
        chosen = (confidences > low) & (confidences <= high)
        chosen |= (number == 0) & (confidences == 0.0)
        if chosen.any():
            gap = confidences[chosen].mean() - correct[chosen].mean()
            total += abs(gap) * chosen.sum()
    bins, error = calibration(confidences, correct)
    assert error == pytest.approx(total / 203)
    assert bins["count"].sum() == 203
