"""Linear probe: what the frozen encoder's frames tell without any of this."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from speechbrain_wap.metrics import emotion_scores


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


def make_probe(strength=0.01):
    """Makes a classifier of pooled frames that has yet to be fitted.

    Arguments
    ---------
    strength : float
        Inverse of the regularisation's weight (scikit-learn's C).

    Returns
    -------
    model : sklearn.pipeline.Pipeline
        Logistic regression, which draws no random numbers; all classes weigh
        the same.
    """
    return make_pipeline(
        StandardScaler(),
        LogisticRegression(C=strength, max_iter=2000, class_weight="balanced"),
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
    labels, folds = np.array(labels, dtype=object), np.array(folds)
    predictions = np.empty_like(labels)
    for fold in np.unique(folds):
        is_test = folds == fold
        model = make_probe().fit(pooled[~is_test], labels[~is_test].tolist())
        predictions[is_test] = model.predict(pooled[is_test])
    scores = emotion_scores(
        labels.tolist(), predictions.tolist(), sorted(set(labels))
    )
    return scores["UA"]


def linear_probe(splits, cache, classes, strength=0.01):
    """Fits logistic regression on pooled frames and scores the test split.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of "train" and "test", labelled.
    cache : speechbrain_wap.features.FeatureCache
        The filled feature cache.
    classes : list of str
        The classes in their order.
    strength : float
        Inverse of the regularisation's weight (scikit-learn's C).

    Returns
    -------
    scores : dict
        UA, WA and F1, fractions.
    """
    pooled, labels = {}, {}
    for name in ("train", "test"):
        entries = splits[name].values()
        pooled[name] = np.stack(
            [frame_statistics(cache.read(e["digest"])) for e in entries]
        )
        labels[name] = [e["label"] for e in entries]
    model = make_probe(strength)
    model.fit(pooled["train"], labels["train"])
    predictions = model.predict(pooled["test"]).tolist()
    return emotion_scores(labels["test"], predictions, classes)
