"""Linear probe: logistic regression on an utterance's pooled frames."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from speechbrain_wap.evaluation.metrics import emotion_scores

# Inverse of the regularisation
STRENGTH = 0.01


def frame_statistics(feats):
    """Pools frames into their mean and standard deviation over time.

    Arguments
    ---------
    feats : torch.Tensor
        Frames of one utterance, shape [T, D], or [T, L, D] of L layers.

    Returns
    -------
    statistics : numpy.ndarray
        Shape [2 * D], float64.

    Example
    -------
    >>> import torch
    >>> frame_statistics(torch.ones(3, 2)).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    feats = feats.double().flatten(start_dim=1)
    std = feats.std(dim=0, unbiased=False)
    return np.concatenate([feats.mean(dim=0).numpy(), std.numpy()])


def _make_classifier(strength=STRENGTH):
    """Makes the classifier, which draws no random numbers."""
    return LogisticRegression(
        C=strength, max_iter=2000, class_weight="balanced"
    )


def cross_validate_probe(pooled, labels, folds):
    """Scores the probe on each fold after fitting it on the others.

    Arguments
    ---------
    pooled : numpy.ndarray
        Pooled frames of each utterance, shape [N, F].
    labels : list of str
        Label of each, two different ones at least outside of any fold.
    folds : list of int
        Fold of each.

    Returns
    -------
    ua : float
        Unweighted accuracy over the utterances of all folds, 0 to 1.

    Example
    -------
    >>> pooled = np.array([[0.0], [1.0], [0.1], [0.9]])
    >>> cross_validate_probe(pooled, ["a", "b", "a", "b"], [0, 0, 1, 1])
    1.0
    """
    predictions = cross_val_predict(
        make_pipeline(StandardScaler(), _make_classifier()),
        pooled,
        labels,
        groups=folds,
        cv=LeaveOneGroupOut(),
    )
    return emotion_scores(labels, list(predictions), sorted(set(labels)))["UA"]


def linear_probe(
    splits, read, classes, labelled=None, pooled=None, strength=STRENGTH
):
    """Fits the probe on the training split and scores the test split.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of "train" and "test", labelled.
    read : callable
        Gives an utterance's frames by its digest, as a filled feature cache's
        ``make_reader`` makes it.
    classes : list of str
        The classes in their order.
    labelled : dict, optional
        The training entries whose labels are used; all by default. The others
        only help to standardise the pooled frames.
    pooled : dict, optional
        Pooled frames by the utterance's digest, filled as needed, so that
        several probes read the cache once.
    strength : float
        Inverse of the regularisation.

    Returns
    -------
    scores : dict
        UA, WA and F1, fractions.
    """
    pooled = {} if pooled is None else pooled

    def pool(entries):
        """Stacks the pooled frames of utterances."""
        for digest in (entry["digest"] for entry in entries.values()):
            if digest not in pooled:
                pooled[digest] = frame_statistics(read(digest))
        return np.stack([pooled[e["digest"]] for e in entries.values()])

    labelled = splits["train"] if labelled is None else labelled
    scaler = StandardScaler().fit(pool(splits["train"]))
    scaled = [scaler.transform(pool(e)) for e in (labelled, splits["test"])]
    labels = [
        [entry["label"] for entry in entries.values()]
        for entries in (labelled, splits["test"])
    ]
    return score_probe(scaled, labels, classes, strength)


def score_probe(scaled, labels, classes, strength=STRENGTH):
    """Fits the probe on pooled frames, and scores it on others.

    Arguments
    ---------
    scaled : list of numpy.ndarray
        Those to fit it on, shape [N, F], and those to score, [M, F];
        standardised.
    labels : list of list of str
        Their labels.
    classes : list of str
        The classes in their order.
    strength : float
        Inverse of the regularisation.

    Returns
    -------
    scores : dict
        UA, WA and F1, fractions.

    Example
    -------
    >>> points = np.array([[-1.0], [1.0]])
    >>> score_probe([points, points], [["a", "b"]] * 2, ["a", "b"])["UA"]
    1.0
    """
    model = _make_classifier(strength).fit(scaled[0], labels[0])
    return emotion_scores(labels[1], list(model.predict(scaled[1])), classes)
