"""What shows early whether adapter training keeps what the encoder knew.

A few times in a training, on a fixed sample of training utterances: how well a
linear probe tells the emotions from the frames of student and teacher, compared
with the encoder's own frames, and how many dimensions the frames use. Measuring
draws no random numbers and changes nothing that is trained.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader

from speechbrain_wap.data.datasets import make_dataset
from speechbrain_wap.data.speakers import normalise_name
from speechbrain_wap.evaluation.linear_probe import (
    cross_validate_probe,
    frame_statistics,
)
from speechbrain_wap.masking import shuffle_utterances
from speechbrain_wap.packing import valid_frames

logger = get_logger(__name__)

# Columns of history.json; null in epochs without a probe
DIAGNOSTICS = tuple(
    f"{name}_{branch}"
    for name in ("probe", "rank")
    for branch in ("raw", "student", "teacher")
)
# What lets a network start by passing on the encoder's frames (D15, D17)
REMEDIES = {
    "mlp_residual": True,
    "projection_init": "orthogonal",
    "residual_init": 0.1,
}
# Utterances of a label that must be left whichever fold is tested
LEAST_LEARNED = 5
# More speakers than this share the folds
MOST_FOLDS = 10
# Frames of an utterance that the effective rank is computed from, at most
MOST_FRAMES = 50
BATCH_SIZE = 16


def _below_raw(values):
    """Lists the branches that the probe finds worse than the encoder."""
    raw = values["probe_raw"]
    return [
        branch
        for branch in ("student", "teacher")
        if raw is not None and values[f"probe_{branch}"] < raw
    ]


def explain_lost(epoch, values, rows, settings):
    """Warns when a probe has fallen below that of the encoder's own frames.

    Arguments
    ---------
    epoch : int
        Counted from 1.
    values : dict
        What was measured now.
    rows : list of dict
        What was measured before: rows of history.json with a probe; epoch 0 is
        the network before any training.
    settings : dict
        The run's values of the keys of REMEDIES.

    Returns
    -------
    warning : str or None
        Says whether the start or the training lost information. None where no
        branch is below that was not at the last measurement after the start.

    Example
    -------
    >>> start = {"probe_raw": 0.8, "probe_student": 0.7, "probe_teacher": 0.7}
    >>> now = {**start, "probe_student": 0.9}
    >>> settings = {**REMEDIES, "mlp_residual": False}
    >>> warning = explain_lost(1, now, [{"epoch": 0, **start}], settings)
    >>> warning.split("; ")[-1]
    'try mlp_residual=True.'
    """
    below = _below_raw(values)
    trained = [row for row in rows if row["epoch"] > 0]
    if not set(below) - set(_below_raw(trained[-1]) if trained else ()):
        return None
    start = next((row for row in rows if row["epoch"] == 0), None)
    parts, reasons = [], []
    for branch in below:
        score = values[f"probe_{branch}"]
        part = f"the {branch}'s frames tell the training sessions' labels with "
        part += f"UA {100 * score:.1f} % in epoch {epoch}"
        if start is not None:
            before = start[f"probe_{branch}"]
            part += f" ({100 * before:.1f} % before training)"
        parts.append(part)
    if start is not None and _below_raw(start):
        cures = [
            f"{key}={cure}"
            for key, cure in REMEDIES.items()
            if settings.get(key) not in (None, cure)  # None: has no such key
            and not (key == "residual_init" and settings[key] < cure)
        ]
        cure = "its layers begin with random weights"
        if cures:
            cure = f"try {', '.join(cures)}"
        reasons.append(f"the network's start loses information; {cure}")
    if not reasons or any(
        values[f"probe_{branch}"] < start[f"probe_{branch}"] for branch in below
    ):
        reasons.append(
            "adapter training loses information; try fewer epochs or a lower lr"
        )
    return (
        f"Probe: {', '.join(parts)}, the encoder's own with "
        f"{100 * values['probe_raw']:.1f} %: {'; '.join(reasons)}."
    )


class _FrameCovariance:
    """Covariance of frames that come a few at a time."""

    def __init__(self):
        self.count = 0
        self.total = self.products = 0.0

    def add(self, frames):
        """Takes frames of shape [N, D]."""
        frames = frames.double()
        self.count += len(frames)
        self.total = self.total + frames.sum(dim=0)
        self.products = self.products + frames.T @ frames

    def value(self):
        """Computes the covariance [D, D] of all frames so far, in float64."""
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        # what varies in the last bits of float32 only is a constant
        least = torch.finfo(torch.float32).eps * mean.abs()
        varies = (covariance.diagonal() > least.square()).double()
        return torch.outer(varies, varies) * covariance


def _effective_rank(covariance):
    """Counts the dimensions that frames use, from their covariance [D, D].

    The exponential of the entropy of the singular values of the centred
    frames, divided by their sum (Roy and Vetterli, "The effective rank",
    EUSIPCO 2007): 1 to D, 0 where all frames are alike, NaN where they are not
    finite.
    """
    if not torch.isfinite(covariance).all():
        return math.nan
    values = torch.linalg.eigvalsh(covariance).clamp(min=0.0).sqrt()
    if values.sum() == 0.0:
        return 0.0
    entropy = torch.special.entr(values / values.sum()).sum()
    return round(float(entropy.exp()), 4)  # the same on any machine


class _Sample(NamedTuple):
    """The utterances that are measured.

    labels and folds are None where there is nothing to probe; reason says why.
    """

    ids: list
    labels: list | None = None
    folds: list | None = None
    reason: str = ""


def _choose_sample(entries, most, seed):
    """Chooses so many training utterances at most, by seed and ids alone.

    The probe tells the corpora's own labels (emo) apart. Its folds leave out
    one speaker, or several where there are many; labels of which some fold
    leaves too few to learn from are dropped. Where there are more utterances
    than wanted, the choice is as even as can be over labels and folds.
    """
    ids = shuffle_utterances(entries, seed, 0, "probe")
    table = pd.DataFrame(
        {
            "label": [str(entries[key].get("emo") or "") for key in ids],
            "speaker": [normalise_name(entries[key]["speaker"]) for key in ids],
        },
        index=ids,
    )
    labelled = table[table["label"] != ""].assign(fold=0)
    speakers = labelled["speaker"]
    num_folds = min(MOST_FOLDS, speakers.nunique())
    if num_folds > 1:
        splits = GroupKFold(num_folds).split(labelled, groups=speakers)
        for fold, (_, tested) in enumerate(splits):
            labelled.iloc[tested, labelled.columns.get_loc("fold")] = fold
    learnable = chosen = _keep_learnable(labelled)
    if len(learnable) > most:
        place = learnable.groupby(["label", "fold"]).cumcount()
        order = place.sort_values(kind="stable").index[:most]
        chosen = _keep_learnable(learnable.loc[order])
    if chosen["label"].nunique() > 1:
        columns = chosen["label"].tolist(), chosen["fold"].tolist()
        return _Sample(chosen.index.tolist(), *columns)
    reason = (
        f"it needs two labels with {LEAST_LEARNED} utterances beside those of "
        "any one speaker, but "
    )
    if learnable["label"].nunique() > 1:
        reason += f"probe_utterances={most} leaves too few: raise it"
    else:
        counts = sorted(Counter(labelled["label"]).items())
        listing = ", ".join(f"{label} ({count})" for label, count in counts)
        reason += f"the training sessions have {listing or 'no labels'}"
    return _Sample(ids[:most], reason=reason)


def _keep_learnable(table):
    """Keeps the utterances whose label can be learned in every fold."""
    counts = pd.crosstab(table["label"], table["fold"])
    outside = counts.sum(axis=1) - counts.max(axis=1)
    learnable = outside.index[outside >= LEAST_LEARNED]
    return table[table["label"].isin(learnable)]


class Diagnostics:
    """Probes student and teacher against the encoder's own frames.

    The encoder's (raw) frames are as the network takes them: standardised by
    the training data's statistics where it does so, and averaged where the
    encoder gives several layers. Memory holds the frames of one batch, and
    mean and deviation of each utterance.

    Arguments
    ---------
    entries : dict
        Manifest entries of the training utterances by id, and of no others.
    cache : speechbrain_wap.features.FeatureCache
        The filled feature cache.
    max_frames : int
        Longer utterances, where they are let pass, are cut.
    most : int
        So many utterances at most.
    seed : int
        Of the choice.
    device : str
        Where the networks are.
    """

    def __init__(self, entries, cache, max_frames, most, seed, device):
        self.sample = _choose_sample(entries, most, seed)
        dataset = make_dataset(
            {key: entries[key] for key in self.sample.ids},
            {"": cache},
            max_frames=max_frames,
            long_utterances="cut",
        )
        self.loader = DataLoader(
            dataset,
            batch_size=BATCH_SIZE,
            collate_fn=PaddedBatch,
            generator=torch.Generator(),  # a loader draws a number from it
        )
        self.device = device
        self.raw = None  # values of the encoder's frames, which stay the same
        if self.sample.labels is None:
            logger.info(f"No probe of the emotions: {self.sample.reason}.")
            return
        counts = sorted(Counter(self.sample.labels).items())
        listing = ", ".join(f"{label} ({count})" for label, count in counts)
        logger.info(
            f"The probe tells {listing} apart, all of the training sessions, "
            f"in {len(set(self.sample.folds))} folds by speaker."
        )

    @torch.no_grad()
    def measure(self, student, teacher):
        """Measures the networks as they are now.

        Arguments
        ---------
        student : speechbrain_wap.wap_transformer.WAPTransformer
            The student, whose mode stays what it is.
        teacher : speechbrain_wap.teacher.EMATeacher
            The teacher.

        Returns
        -------
        values : dict
            A number for each of DIAGNOSTICS: the probe's UA (0 to 1; None
            where nothing is probed) and the effective rank of the frames of
            each branch. NaN where frames are not finite.
        """

        def standardise(feats, lens):
            """Gives the encoder's frames as the network takes them."""
            frames = student.standardise(feats)
            return frames.mean(dim=2) if frames.dim() == 4 else frames

        networks = {"student": student, "teacher": teacher}
        if self.raw is None:
            networks["raw"] = standardise
        pooled = {branch: [] for branch in networks}
        covariances = {branch: _FrameCovariance() for branch in networks}
        was_training = student.training
        student.eval()
        try:
            for batch in self.loader:
                feats, lens = batch.feats
                feats = feats.to(self.device)
                _, valid = valid_frames(lens, feats.shape[1])
                for branch, network in networks.items():
                    z = network(feats, lens).float().cpu()  # (B, T, D)
                    for row, is_valid in zip(z, valid):
                        frames = row[is_valid]
                        pooled[branch].append(frame_statistics(frames))
                        step = -(-len(frames) // MOST_FRAMES)
                        covariances[branch].add(frames[::step])
        finally:
            student.train(was_training)
        values = {}
        for branch in networks:
            values[f"probe_{branch}"] = self._probe(np.stack(pooled[branch]))
            rank = _effective_rank(covariances[branch].value())
            values[f"rank_{branch}"] = rank
        if self.raw is None:
            self.raw = {k: v for k, v in values.items() if k.endswith("raw")}
        return {name: {**values, **self.raw}[name] for name in DIAGNOSTICS}

    def _probe(self, pooled):
        """Scores the probe of a branch."""
        if self.sample.labels is None:
            return None
        if not np.isfinite(pooled).all():
            return math.nan
        return cross_validate_probe(
            pooled, self.sample.labels, self.sample.folds
        )
