"""What shows early whether adapter training keeps what the encoder knew.

A few times in a training, on a fixed choice of training utterances: how well a
linear probe tells the emotions from the frames of student and teacher, against
the encoder's own frames, and how many dimensions the frames make use of. It
only looks: no random number is drawn and nothing that is trained is changed.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.datasets import make_dataset
from speechbrain_wap.data.speakers import fold_name, natural_key
from speechbrain_wap.evaluation.linear_probe import (
    cross_validate_probe,
    frame_statistics,
)
from speechbrain_wap.masking import shuffle_utterances
from speechbrain_wap.packing import valid_frames

logger = get_logger(__name__)

BRANCHES = ("raw", "student", "teacher")
# What a row of history.json has; null in epochs without a probe
DIAGNOSTICS = tuple(
    f"{what}_{branch}" for what in ("probe", "rank") for branch in BRANCHES
)
# What lets a network start by passing on the encoder's frames (D15, D17)
CURES = {
    "mlp_residual": True,
    "projection_init": "orthogonal",
    "residual_init": 0.1,
}
# Whichever fold is left out, a label must have so many utterances elsewhere
LEAST_LEARNED = 5
# More sessions (or speakers) than this share their folds
MOST_FOLDS = 10
# Frames of an utterance that the effective rank is computed from, at most
MOST_FRAMES = 50
BATCH_SIZE = 16


def find_below_raw(values):
    """Lists the branches whose frames tell less than the encoder's own.

    Arguments
    ---------
    values : dict
        What was measured, as in a row of history.json.

    Returns
    -------
    branches : list of str
        Of "student" and "teacher"; none where nothing was probed.
    """
    raw = values["probe_raw"]
    return [
        branch
        for branch in ("student", "teacher")
        if raw is not None and values[f"probe_{branch}"] < raw
    ]


def is_in_use(key, settings):
    """Tells whether a cure is in use already.

    Arguments
    ---------
    key : str
        One of CURES.
    settings : dict
        The run's values; a network of the user's own may have other keys.

    Returns
    -------
    is_in_use : bool
    """
    value = settings.get(key)
    if key == "residual_init" and value is not None:
        return value <= CURES[key]
    return value in (None, CURES[key])


def explain_loss(epoch, values, rows, settings):
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
        The run's values of the keys of CURES.

    Returns
    -------
    warning : str or None
        None where no branch is below that was not at the last look after the
        start. Tells what the training lost from what the start had lost.

    Example
    -------
    >>> start = {"probe_raw": 0.8, "probe_student": 0.7, "probe_teacher": 0.7}
    >>> now = {**start, "probe_student": 0.9}
    >>> settings = {**CURES, "mlp_residual": False}
    >>> said = explain_loss(1, now, [{"epoch": 0, **start}], settings)
    >>> said.split("; ")[-1]
    'try mlp_residual=True.'
    """
    below = find_below_raw(values)
    trained = [row for row in rows if row["epoch"] > 0]
    if not set(below) - set(find_below_raw(trained[-1]) if trained else ()):
        return None
    start = next((row for row in rows if row["epoch"] == 0), None)
    parts, has_fallen = [], False
    for branch in below:
        value = values[f"probe_{branch}"]
        part = f"the {branch}'s frames tell the training sessions' labels with "
        part += f"UA {100 * value:.1f} % in epoch {epoch}"
        if start is not None:
            before = start[f"probe_{branch}"]
            part += f" ({100 * before:.1f} % before training)"
        has_fallen |= start is None or value < before
        parts.append(part)
    reasons = []
    if start is not None and find_below_raw(start):
        keys = [key for key in CURES if not is_in_use(key, settings)]
        cure = "its layers begin with random weights"
        if keys:
            cure = f"try {', '.join(f'{key}={CURES[key]}' for key in keys)}"
        reasons.append(f"the network's start loses information; {cure}")
    if has_fallen or not reasons:
        reasons.append(
            "adapter training loses information; try fewer epochs or a lower lr"
        )
    return (
        f"Probe: {', '.join(parts)}, the encoder's own with "
        f"{100 * values['probe_raw']:.1f} %: {'; '.join(reasons)}."
    )


class FrameCovariance:
    """Covariance of frames that come a few at a time.

    Example
    -------
    >>> covariance = FrameCovariance()
    >>> covariance.add(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> covariance.value().tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self):
        self.count = 0
        self.shift = self.total = self.products = 0.0

    def add(self, frames):
        """Takes frames.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [N, D].
        """
        frames = frames.double()
        if self.count == 0:
            # else a mean that dwarfs the deviations would drown them
            self.shift = frames.mean(dim=0)
        frames = frames - self.shift
        self.count += len(frames)
        self.total = self.total + frames.sum(dim=0)
        self.products = self.products + frames.T @ frames

    def value(self):
        """Computes the covariance of all frames so far.

        Returns
        -------
        covariance : torch.Tensor
            Shape [D, D], float64; zero for dimensions that do not vary beyond
            what float32 can tell.
        """
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        # what varies in its last bits only is a constant, not white noise
        least = torch.finfo(torch.float32).eps * (self.shift + mean).abs()
        varies = (covariance.diagonal() > least.square()).double()
        return torch.outer(varies, varies) * covariance


def effective_rank(covariance):
    """Counts the dimensions that frames make use of.

    The exponential of the entropy of the singular values of the centred
    frames, which are the roots of the covariance's eigenvalues, divided by
    their sum (Roy and Vetterli, "The effective rank", EUSIPCO 2007).

    Arguments
    ---------
    covariance : torch.Tensor
        Of the frames, shape [D, D], float64.

    Returns
    -------
    rank : float
        1 to D; 0 where all frames are alike, NaN where they are not finite.

    Example
    -------
    >>> effective_rank(torch.eye(4, dtype=torch.float64))
    4.0
    """
    if not torch.isfinite(covariance).all():
        return math.nan
    values = torch.linalg.eigvalsh(covariance).clamp(min=0.0).sqrt()
    if values.sum() == 0.0:
        return 0.0
    shares = values / values.sum()
    # on any machine the same, but for what does not matter
    return round(float(torch.special.entr(shares).sum().exp()), 4)


class Sample(NamedTuple):
    """The utterances that are looked at, with what the probe needs.

    labels and folds are None where there is nothing to probe, reason then
    says why; unit is what a fold leaves out, "session" or "speaker".
    """

    ids: list
    labels: list | None = None
    folds: list | None = None
    unit: str = ""
    reason: str = ""


def choose_sample(entries, most, seed):
    """Chooses the training utterances that the diagnostics look at.

    The corpora's own labels are what the probe tells apart; where corpora have
    one of the same name, it is one. One training session (of one corpus) is
    left out at a time, or one speaker where there are labels in one session
    only. Labels of which too few utterances are left to learn from,
    whichever is left out, are dropped. Where there are more utterances than
    wanted, the choice is as even as can be over labels and folds.

    Arguments
    ---------
    entries : dict
        Manifest entries of the training utterances by id, and of no others:
        emo and session may be missing.
    most : int
        So many utterances at most.
    seed : int
        Another one, another choice; the order of the entries does not matter.

    Returns
    -------
    sample : Sample

    Example
    -------
    >>> entries = {
    ...     f"{session}{number}": {
    ...         "speaker": session,
    ...         "session": session,
    ...         "emo": "joy" if number < 6 else "rage",
    ...     }
    ...     for session in "ab"
    ...     for number in range(12)
    ... }
    >>> sample = choose_sample(entries, 20, seed=1)
    >>> sorted(Counter(zip(sample.labels, sample.folds)).items())
    [(('joy', 0), 5), (('joy', 1), 5), (('rage', 0), 5), (('rage', 1), 5)]
    """
    ids = shuffle_utterances(entries, seed, 0, "probe")
    labels = {key: str(entries[key].get("emo") or "") for key in ids}
    labelled = [key for key in ids if labels[key]]
    is_short = False
    for unit in ("session", "speaker"):
        units = _find_units({key: entries[key] for key in labelled}, unit)
        ordered = sorted(
            set(units.values()), key=lambda unit: [natural_key(n) for n in unit]
        )
        numbers = {name: n % MOST_FOLDS for n, name in enumerate(ordered)}
        folds = {key: numbers[name] for key, name in units.items()}
        kept = _keep_learnable(labelled, labels, folds)
        if len(kept) > most:
            places, seen = {}, Counter()
            for key in kept:
                cell = labels[key], folds[key]
                places[key] = seen[cell]
                seen[cell] += 1
            enough = len({labels[key] for key in kept}) >= 2
            kept = sorted(kept, key=places.get)[:most]
            kept = _keep_learnable(kept, labels, folds)
            is_short |= enough and len({labels[key] for key in kept}) < 2
        if len({labels[key] for key in kept}) >= 2:
            return Sample(
                kept,
                [labels[key] for key in kept],
                [folds[key] for key in kept],
                unit,
            )
    counts = Counter(labels[key] for key in labelled)
    listing = ", ".join(f"{name} ({counts[name]})" for name in sorted(counts))
    reason = (
        f"it needs two labels with {LEAST_LEARNED} utterances beside those of "
        "any one session or speaker, but "
    )
    if is_short:
        reason += f"probe_utterances={most} leaves too few: raise it"
    else:
        reason += f"the training sessions have {listing or 'no labels'}"
    return Sample(ids[:most], reason=reason)


def _find_units(entries, unit):
    """Names each utterance's speaker, or its table and session.

    Sessions that have a speaker in common, as those of two tables may, are one:
    no fold learns from whom it is tested on.
    """
    # speakers are told apart, or are the same, by their names alone
    speakers = {
        key: fold_name(entry.get("speaker") or "")
        for key, entry in entries.items()
    }
    if unit == "speaker" or not entries:
        return {key: ("", name) for key, name in speakers.items()}
    units = {
        key: (entry.get("table", ""), str(entry.get("session") or ""))
        for key, entry in entries.items()
    }
    nodes = {}  # sessions and speakers
    for key, place in units.items():
        nodes.setdefault(place, len(nodes))
        nodes.setdefault(speakers[key] or place, len(nodes))
    ends = [(nodes[p], nodes[speakers[k] or p]) for k, p in units.items()]
    graph = coo_array(
        (np.ones(len(ends)), np.array(ends).reshape(-1, 2).T),
        shape=(len(nodes), len(nodes)),
    )
    _, parts = connected_components(graph, directed=False)
    first = {}  # of a part's sessions, which stands for all of them
    for place in sorted(set(units.values())):
        first.setdefault(parts[nodes[place]], place)
    return {key: first[parts[nodes[place]]] for key, place in units.items()}


def _keep_learnable(ids, labels, folds):
    """Keeps the utterances whose label can be learned in every fold."""
    counts = Counter(labels[key] for key in ids)
    largest = Counter()
    for (label, _), count in Counter(
        (labels[key], folds[key]) for key in ids
    ).items():
        largest[label] = max(largest[label], count)
    return [
        key
        for key in ids
        if counts[labels[key]] - largest[labels[key]] >= LEAST_LEARNED
    ]


class Diagnostics:
    """Probes student and teacher against the encoder's own frames.

    The raw frames are those that the network is given: standardised by the
    training data's statistics where it does so, averaged over the layers
    where the encoder gives several. Memory holds the frames of one batch, and
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
        self.sample = choose_sample(entries, most, seed)
        self.dataset = make_dataset(
            {key: entries[key] for key in self.sample.ids},
            {"": cache},
            max_frames=max_frames,
            long_utterances="cut",
        )
        self.device = device
        self.raw = None  # what is known of the encoder's own frames
        self._announce()

    def _announce(self):
        """Says once what is probed, or why nothing is."""
        sample = self.sample
        if sample.labels is None:
            logger.info(f"No probe of the emotions: {sample.reason}.")
            return
        counts = sorted(Counter(sample.labels).items())
        listing = ", ".join(f"{label} ({n})" for label, n in counts)
        logger.info(
            f"The probe tells {listing} apart, all of the training sessions, "
            f"in {len(set(sample.folds))} folds by {sample.unit}."
        )

    @torch.no_grad()
    def measure(self, student, teacher):
        """Looks at the frames as they are now.

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
        frames_of = {"student": student, "teacher": teacher}
        if self.raw is None:
            frames_of["raw"] = lambda feats, lens: standardise_raw(
                student, feats
            )
        pooled = {branch: [] for branch in frames_of}
        covariances = {branch: FrameCovariance() for branch in frames_of}
        was_training = student.training
        student.eval()
        try:
            for feats, lens, valid in self._batches():
                for branch, network in frames_of.items():
                    z = network(feats, lens).float().cpu()  # (B, T, D)
                    for row, is_valid in zip(z, valid):
                        frames = row[is_valid]
                        pooled[branch].append(frame_statistics(frames))
                        step = -(-len(frames) // MOST_FRAMES)
                        covariances[branch].add(frames[::step])
        finally:
            student.train(was_training)
        values = {
            f"{name}_{branch}": value
            for branch in frames_of
            for name, value in (
                ("probe", self._probe(np.stack(pooled[branch]))),
                ("rank", effective_rank(covariances[branch].value())),
            )
        }
        if self.raw is None:
            self.raw = {k: v for k, v in values.items() if k.endswith("raw")}
        return {name: {**values, **self.raw}[name] for name in DIAGNOSTICS}

    def _batches(self):
        """Yields frames, relative lengths, and which frames are valid."""
        for start in range(0, len(self.dataset), BATCH_SIZE):
            numbers = range(start, min(start + BATCH_SIZE, len(self.dataset)))
            batch = PaddedBatch([self.dataset[number] for number in numbers])
            feats, lens = batch.feats
            _, valid = valid_frames(lens, feats.shape[1])
            yield feats.to(self.device), lens, valid

    def _probe(self, pooled):
        """Scores the probe of a branch."""
        if self.sample.labels is None:
            return None
        if not np.isfinite(pooled).all():
            return math.nan
        return cross_validate_probe(
            pooled, self.sample.labels, self.sample.folds
        )


def standardise_raw(student, feats):
    """Makes of the encoder's frames what the network gets to see of them.

    Arguments
    ---------
    student : speechbrain_wap.wap_transformer.WAPTransformer
        Has the statistics.
    feats : torch.Tensor
        The encoder's frames, shape [B, T, D] or [B, T, L, D] of L layers.

    Returns
    -------
    frames : torch.Tensor
        Shape [B, T, D]: of several layers the average, as the network starts.
    """
    frames = student.standardise(feats)
    return frames.mean(dim=2) if frames.dim() == 4 else frames
