"""Laws of the minority-class augmentation (D11)."""

import copy
import random
from collections import Counter

import pytest
import torch

from speechbrain_wap.augmentation import STRATEGIES, Augmentation
from speechbrain_wap.masking import UtteranceMasks

SIZES = {"neutral": 23, "sad": 9, "angry": 23, "happy": 4, "fear": 1}


def make_manifest(sizes=None):
    """Makes a manifest with classes of the given sizes."""
    return {
        f"{label}{i}": {"label": label, "feats": f"{label}{i}.npy"}
        for label, size in (sizes or SIZES).items()
        for i in range(size)
    }


def plan(manifest, strategy="balance", seed=0):
    """Plans the augmentation of a manifest."""
    return Augmentation(strategy, seed=seed).plan(manifest)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_originals_stay_as_they_are_and_in_order(strategy):
    manifest = make_manifest()
    before = copy.deepcopy(manifest)
    augmented = plan(manifest, strategy)
    assert manifest == before
    assert list(augmented)[: len(manifest)] == list(manifest)
    for key, entry in manifest.items():
        probability = float(strategy == "all")
        if strategy == "mask":  # the missing share of a class
            probability = pytest.approx(1.0 - SIZES[entry["label"]] / 23)
        assert augmented[key] == {**entry, "mask_probability": probability}
    assert (len(augmented) > len(manifest)) == (strategy == "balance")
    # the order of the manifest does not matter
    entries = list(manifest.items())
    random.Random(1).shuffle(entries)
    assert plan(dict(entries), strategy) == augmented


@pytest.mark.parametrize("seed", [0, 7])
def test_copies_make_classes_as_large_as_the_largest_and_are_spread_evenly(
    seed,
):
    manifest = make_manifest()
    augmented = plan(manifest, "balance", seed)
    numbers = Counter()
    for key in augmented.keys() - manifest.keys():
        original = key.rpartition("+")[0]
        numbers[original] += 1
        expected = {**manifest[original], "mask_probability": 1.0}
        assert augmented[key] == expected
    for label, size in SIZES.items():
        of_class = [numbers[key] for key in manifest if label in key]
        assert sum(of_class) == 23 - size
        assert max(of_class) - min(of_class) <= 1
    # a function of the seed, of which other classes are no part
    assert augmented.keys() != plan(manifest, "balance", 1).keys()
    fewer = plan(make_manifest({**SIZES, "sad": 0}), "balance", seed)
    assert fewer == {k: e for k, e in augmented.items() if "sad" not in k}


def test_a_copy_never_takes_the_place_of_an_utterance():
    manifest = make_manifest({"neutral": 4, "sad": 1})
    manifest["sad0+1"] = {"label": "sad", "feats": "other.npy"}
    augmented = plan(manifest)
    sizes = Counter(entry["label"] for entry in augmented.values())
    assert sizes == {"neutral": 4, "sad": 4}
    for key, entry in manifest.items():
        assert augmented[key] == {**entry, "mask_probability": 0.0}


IDS, EPOCHS = [f"u{i}" for i in range(50)], range(1, 81)


@pytest.mark.parametrize("probability", [0.02, 0.5, 0.9])
def test_utterances_are_masked_as_often_as_the_probability_says(probability):
    draws = draw_all(1993, probability)
    # over all, and over the epochs of one id and the ids of one epoch
    for part, sigmas in (
        ([sum(draws, [])], 3.5),
        (draws, 4.5),
        (list(zip(*draws)), 4.5),
    ):
        for drawn in part:
            sigma = (probability * (1 - probability) * len(drawn)) ** 0.5
            deviation = abs(sum(drawn) - probability * len(drawn))
            assert deviation < sigmas * sigma + 1


def draw_all(seed, probability, prefix=""):
    """Draws which utterances are masked in which epoch, [id][epoch]."""
    augmentation = Augmentation("mask", seed=seed)
    ids, lengths = [prefix + key for key in IDS], torch.ones(50).long()
    draws = [
        augmentation.mask(ids, [probability] * 50, lengths, epoch)[:, 0]
        for epoch in EPOCHS
    ]
    return torch.stack(draws, dim=1).int().tolist()


def test_whether_an_utterance_is_masked_is_a_function_of_its_arguments():
    first = torch.tensor(draw_all(0, 0.5))
    assert first.tolist() == draw_all(0, 0.5)
    for other in (draw_all(1, 0.5), draw_all(0, 0.5, prefix="v")):
        # independent draws agree half of the time
        agreement = (first == torch.tensor(other)).float().mean()
        assert abs(agreement - 0.5) < 0.05
    # a higher probability masks more of the same
    assert not sum(draw_all(0, 0.0), []).count(1)
    assert (first <= torch.tensor(draw_all(0, 0.8))).all()
    assert all(sum(draw_all(0, 1.0), []))


def test_a_mask_is_the_utterances_own_and_not_that_of_adapter_training():
    lengths, augmentation = torch.tensor([13, 40]), Augmentation(seed=1)
    (alone,) = augmentation.mask(["a"], [1.0], lengths[1:], 2)
    nothing, together = augmentation.mask("ba", [0.0, 1.0], lengths, 2)
    assert torch.equal(together, alone) and not nothing.any()
    other = UtteranceMasks(seed=1)(["a"], lengths[1:], 2)[0]
    assert other.sum() == alone.sum() and not torch.equal(other, alone)
