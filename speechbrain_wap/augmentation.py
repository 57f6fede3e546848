"""Minority-class augmentation by masking embeddings (Sec. III-B, D11)."""

from collections import Counter

import torch

from speechbrain_wap.errors import check_choice, check_whole
from speechbrain_wap.masking import (
    UtteranceMasks,
    shuffle_utterances,
    utterance_number,
)

STRATEGIES = ("balance", "mask", "all", "none")


class Augmentation:
    """Masks embeddings of training utterances (Sec. III-B, D11).

    Arguments
    ---------
    strategy : str
        "balance": each class gets masked copies of its utterances until it is
        as large as the largest class; "mask": no copies, but the utterances
        themselves are masked, each with a probability of 1 minus its class's
        share of the largest class, drawn anew in each epoch; "all": every
        utterance is masked in every epoch, whatever its class; "none": nothing.
    mask_ratio : float
        Share of an augmented utterance's frames to mask, 0 to 1.
    mask_span : int
        Frames that are masked together (D20).
    seed : int
        The run's seed.

    Example
    -------
    >>> augmentation = Augmentation(mask_ratio=0.5)
    >>> manifest = {"a": {"label": "x"}, "b": {"label": "x"}}
    >>> list(augmentation.plan({**manifest, "c": {"label": "y"}}))
    ['a', 'b', 'c', 'c+1']
    >>> mask = augmentation.mask(["c+1"], [1.0], torch.tensor([8]), epoch=1)
    >>> mask.shape, int(mask.sum())
    (torch.Size([1, 8]), 4)
    """

    def __init__(self, strategy="balance", mask_ratio=0.4, mask_span=1, seed=0):
        check_choice("strategy", strategy, STRATEGIES)
        check_whole("mask_span", mask_span, least=1)
        self.strategy = strategy
        self.seed = seed
        self.masks = UtteranceMasks(mask_ratio, mask_span, seed, "augment")

    def plan(self, manifest):
        """Plans which utterances are masked, and which get masked copies.

        Arguments
        ---------
        manifest : dict
            Entries of the training utterances by id, each with a label.

        Returns
        -------
        augmented : dict
            A new manifest; every entry has "mask_probability", 0 to 1. A
            copy's id is the original's with "+" and a number.
        """
        sizes = Counter(entry["label"] for entry in manifest.values())
        largest = max(sizes.values())
        augmented = {}
        for key, entry in manifest.items():
            probability = float(self.strategy == "all")
            if self.strategy == "mask":
                probability = 1.0 - sizes[entry["label"]] / largest
            augmented[key] = {**entry, "mask_probability": probability}
        if self.strategy != "balance":
            return augmented
        for label, size in sizes.items():
            members = [k for k, e in manifest.items() if e["label"] == label]
            members = shuffle_utterances(members, self.seed, 0, "copy")
            for i in range(largest - size):
                key, number = members[i % size], i // size + 1
                while f"{key}+{number}" in augmented:  # may be an utterance's
                    number += 1
                copy = {**manifest[key], "mask_probability": 1.0}
                augmented[f"{key}+{number}"] = copy
        return augmented

    def mask(self, utterance_ids, mask_probabilities, num_frames, epoch):
        """Masks those of a batch that are to be masked in an epoch.

        Arguments
        ---------
        utterance_ids : list of str
            Ids of the B utterances.
        mask_probabilities : list of float
            What the plan says of each.
        num_frames : torch.Tensor
            Number of valid frames of each, shape [B].
        epoch : int
            Counted from 1.

        Returns
        -------
        mask : torch.Tensor
            Shape [B, max(num_frames)], boolean, on the CPU; all False where
            nothing is masked, so that the mask embedding always takes part in
            the graph, as distributed training asks for.
        """
        is_masked = [
            utterance_number(self.seed, epoch, key, "augment") % 2**32
            < probability * 2**32
            for key, probability in zip(utterance_ids, mask_probabilities)
        ]
        mask = self.masks(utterance_ids, num_frames, epoch)
        return mask & torch.tensor(is_masked)[:, None]
