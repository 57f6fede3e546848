"""The scores of emotion recognition (Sec. III-A)."""

import random
import warnings

import pytest

from speechbrain_wap.evaluation.metrics import emotion_scores

CLASSES = ["angry", "happy", "neutral", "sad"]


def confuse(labels, predictions):
    """Counts the utterances of each true class (row) and predicted class."""
    confusion = [[0] * len(CLASSES) for _ in CLASSES]
    for label, prediction in zip(labels, predictions):
        confusion[CLASSES.index(label)][CLASSES.index(prediction)] += 1
    return confusion


def naive_scores(labels, predictions):
    """Computes the scores from the confusion matrix."""
    confusion = confuse(labels, predictions)
    recalls, f1s, right = [], [], 0
    for i in range(len(CLASSES)):
        true = sum(confusion[i])
        predicted = sum(row[i] for row in confusion)
        right += confusion[i][i]
        if true > 0:
            recalls.append(confusion[i][i] / true)
        if true + predicted > 0:
            f1s.append(2 * confusion[i][i] / (true + predicted))
    return {
        "UA": sum(recalls) / len(recalls),
        "WA": right / len(labels),
        "F1": sum(f1s) / len(f1s),
    }


def draw_classes(count, seed, weights):
    """Draws classes with the given weights."""
    return random.Random(seed).choices(CLASSES, weights, k=count)


@pytest.mark.parametrize(
    "true_weights, predicted_weights",
    [
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([9, 1, 3, 1], [5, 1, 1, 1]),
        # sad: never true; predicted, or not
        ([4, 1, 2, 0], [1, 1, 1, 1]),
        ([4, 1, 2, 0], [3, 1, 1, 0]),
        # happy: true but never predicted
        ([4, 1, 2, 1], [1, 0, 1, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_those_of_the_confusion_matrix(
    true_weights, predicted_weights, seed
):
    labels = draw_classes(60, seed, true_weights)
    predictions = draw_classes(60, seed + 10, predicted_weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = emotion_scores(labels, predictions, CLASSES)
    assert scores == pytest.approx(naive_scores(labels, predictions))
    assert scores["UA"] != pytest.approx(scores["WA"])


def test_scores_do_not_depend_on_the_order_of_utterances_or_classes():
    labels = draw_classes(50, 1, [4, 1, 2, 3])
    predictions = draw_classes(50, 2, [1, 1, 1, 1])
    expected = emotion_scores(labels, predictions, CLASSES)
    pairs = sorted(zip(labels, predictions))
    scores = emotion_scores(*zip(*pairs), CLASSES[::-1])
    assert scores == pytest.approx(expected)


def test_a_class_that_does_not_occur_is_left_out_of_the_averages():
    labels, predictions = ["sad", "sad", "angry"], ["sad", "angry", "angry"]
    assert emotion_scores(labels, predictions, CLASSES) == emotion_scores(
        labels, predictions, ["angry", "sad"]
    )


def test_a_prediction_of_another_class_is_wrong_but_no_class_of_its_own():
    labels = ["sad", "sad", "angry", "angry"]
    predictions = ["sad", "fear", "angry", "angry"]
    scores = emotion_scores(labels, predictions, ["angry", "sad"])
    f1 = (1 + 2 / 3) / 2
    assert scores == pytest.approx({"UA": 0.75, "WA": 0.75, "F1": f1})


def test_weighted_accuracy_is_high_where_only_the_largest_class_is_right():
    labels = ["sad"] * 9 + ["angry"]
    scores = emotion_scores(labels, ["sad"] * 10, ["angry", "sad"])
    f1 = (18 / 19 + 0) / 2
    assert scores == pytest.approx({"UA": 0.5, "WA": 0.9, "F1": f1})


@pytest.mark.parametrize(
    "labels, predictions",
    [([], []), (["sad"], []), (["sad"], ["sad", "sad"])],
    ids=str,
)
def test_scores_need_as_many_labels_as_predictions(labels, predictions):
    message = f"{len(labels)} labels and {len(predictions)} predictions"
    with pytest.raises(ValueError, match=message):
        emotion_scores(labels, predictions, CLASSES)
