"""Scores of emotion recognition (Sec. III-A)."""

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, recall_score


def emotion_scores(labels, predictions, classes):
    """Computes UA, WA and macro F1 (Sec. III-A).

    Arguments
    ---------
    labels : list of str
        True class of each utterance.
    predictions : list of str
        Predicted class of each utterance.
    classes : list of str
        All classes. One that is no utterance's label has no recall and is
        left out of UA; one that is not predicted either is left out of F1.

    Returns
    -------
    scores : dict
        "UA": unweighted accuracy, the mean of the classes' recalls; "WA":
        weighted accuracy, the share of utterances that are right; "F1": the
        mean of the classes' F1 scores. Fractions, 0 to 1.

    Raises
    ------
    ValueError
        If there are no utterances, or not as many predictions as labels.

    Example
    -------
    >>> emotion_scores(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])["UA"]
    0.75
    """
    if len(labels) == 0 or len(labels) != len(predictions):
        raise ValueError(
            f"{len(labels)} labels and {len(predictions)} predictions: scores "
            "need as many of both, and at least one"
        )
    average = {
        "labels": list(classes),
        "average": "macro",
        "zero_division": np.nan,
    }
    return {
        "UA": float(recall_score(labels, predictions, **average)),
        "WA": float(accuracy_score(labels, predictions)),
        "F1": float(f1_score(labels, predictions, **average)),
    }


def calibration(confidences, correct, num_bins=10):
    """Compares confidence with accuracy, in bins of equal width.

    Arguments
    ---------
    confidences : numpy.ndarray
        Highest probability of each utterance, shape [N], 0 to 1.
    correct : numpy.ndarray
        Whether its class is right, shape [N].
    num_bins : int
        Number of bins.

    Returns
    -------
    bins : pandas.DataFrame
        "confidence" and "accuracy", means, and "count" of each bin that holds
        an utterance; the index is the bin's number. A bin has its upper bound.
    error : float
        The expected calibration error: the mean over the utterances of how far
        the two are apart in their bins, 0 to 1.

    Example
    -------
    >>> calibration(np.array([0.9, 0.9]), np.array([True, False]))[1]
    0.4
    """
    numbers = np.ceil(np.asarray(confidences) * num_bins).astype(int) - 1
    table = pd.DataFrame({"confidence": confidences, "accuracy": correct})
    groups = table.astype(float).groupby(numbers.clip(min=0))
    bins = groups.mean().assign(count=groups.size())
    gaps = (bins["confidence"] - bins["accuracy"]).abs()
    return bins, float((gaps * bins["count"]).sum() / len(table))
