"""Laws of the minority-class augmentation (D11)."""

import copy
import itertools
import random
from collections import Counter

import pytest
import torch

from speechbrain_wap.augmentation import (
    STRATEGIES,
    Augmentation,
    augment_minorities,
    is_masked,
)
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.masking import UtteranceMasks

SIZES = {"neutral": 23, "sad": 9, "angry": 23, "happy": 4, "fear": 1}


def make_manifest(sizes=None):
    """Makes a manifest with classes of the given sizes."""
    return {
        f"{label}{i}": {"label": label, "feats": f"{label}{i}.npy"}
        for label, size in (sizes or SIZES).items()
        for i in range(size)
    }


def split_copies(augmented, manifest):
    """Gives the copies, and how many each original has."""
    copies = {key: e for key, e in augmented.items() if key not in manifest}
    numbers = Counter(key.rpartition("+")[0] for key in copies)
    return copies, {key: numbers[key] for key in manifest}


@pytest.mark.parametrize("seed", [0, 7])
def test_balance_makes_all_classes_as_large_as_the_largest(seed):
    augmented = augment_minorities(make_manifest(), "balance", seed)
    sizes = Counter(entry["label"] for entry in augmented.values())
    assert sizes == dict.fromkeys(SIZES, 23)


def test_balance_spreads_copies_evenly_over_a_class():
    manifest = make_manifest()
    _, numbers = split_copies(augment_minorities(manifest), manifest)
    for label, size in SIZES.items():
        of_class = [numbers[key] for key in manifest if label in key]
        assert sum(of_class) == 23 - size
        assert max(of_class) - min(of_class) <= 1


def test_a_copy_is_its_original_but_always_masked():
    manifest = make_manifest()
    copies, _ = split_copies(augment_minorities(manifest), manifest)
    assert len(copies) == 5 * 23 - len(manifest)
    for key, entry in copies.items():
        original, _, number = key.rpartition("+")
        assert int(number) >= 1
        assert entry == {**manifest[original], "mask_probability": 1.0}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_originals_stay_as_they_are_and_in_order(strategy):
    manifest = make_manifest()
    before = copy.deepcopy(manifest)
    augmented = augment_minorities(manifest, strategy)
    assert manifest == before
    assert list(augmented)[: len(manifest)] == list(manifest)
    for key, entry in manifest.items():
        probability = augmented[key]["mask_probability"]
        assert augmented[key] == {**entry, "mask_probability": probability}
        if strategy != "mask":
            assert probability == float(strategy == "all")


def test_balance_is_a_function_of_the_seed():
    first, again, other = (
        set(augment_minorities(make_manifest(), "balance", seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    # 14 of 9 sad utterances: other ones get a second copy
    assert first != other


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_the_manifest_does_not_matter(strategy):
    manifest = make_manifest()
    entries = list(manifest.items())
    random.Random(1).shuffle(entries)
    assert augment_minorities(dict(entries), strategy) == augment_minorities(
        manifest, strategy
    )


@pytest.mark.parametrize("removed", ["sad", "happy"])
def test_the_copies_of_a_class_do_not_depend_on_other_classes(removed):
    def without_removed(entries):
        return {k: e for k, e in entries.items() if e["label"] != removed}

    manifest = make_manifest()
    copies, _ = split_copies(augment_minorities(manifest), manifest)
    less = without_removed(manifest)
    fewer, _ = split_copies(augment_minorities(less), less)
    assert fewer == without_removed(copies)


def test_a_single_class_needs_no_copies():
    manifest = make_manifest({"sad": 5})
    assert list(augment_minorities(manifest)) == list(manifest)


def test_a_copy_never_takes_the_place_of_an_utterance():
    manifest = make_manifest({"neutral": 4, "sad": 1})
    manifest["sad0+1"] = {"label": "sad", "feats": "other.npy"}
    augmented = augment_minorities(manifest)
    sizes = Counter(entry["label"] for entry in augmented.values())
    assert sizes == {"neutral": 4, "sad": 4}
    for key, entry in manifest.items():
        assert augmented[key] == {**entry, "mask_probability": 0.0}


def test_mask_takes_the_missing_share_of_a_class_as_probability():
    manifest = make_manifest()
    augmented = augment_minorities(manifest, "mask")
    assert list(augmented) == list(manifest)
    for entry in augmented.values():
        expected = 1.0 - SIZES[entry["label"]] / 23
        assert entry["mask_probability"] == pytest.approx(expected)


def test_none_masks_nothing():
    manifest = make_manifest()
    augmented = augment_minorities(manifest, "none")
    assert augmented == {
        key: {**entry, "mask_probability": 0.0}
        for key, entry in manifest.items()
    }


@pytest.mark.parametrize(
    "mistake, message",
    [
        ({"strategy": "more"}, "strategy=more is .*balance, mask, all, none"),
        ({"mask_ratio": 1.5}, "mask_ratio=1.5 must be within 0 and 1"),
        ({"mask_span": 0}, "mask_span=0 must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_meant_raises_an_error_that_names_it(mistake, message):
    with pytest.raises(RecipeError, match=message):
        Augmentation(**mistake)


IDS, EPOCHS = [f"u{i}" for i in range(50)], range(1, 81)


@pytest.mark.parametrize("probability", [0.02, 0.3, 0.5, 0.9])
def test_utterances_are_masked_as_often_as_the_probability_says(probability):
    draws = [
        [is_masked(key, probability, 1993, epoch) for epoch in EPOCHS]
        for key in IDS
    ]
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


def test_the_ends_of_the_probability_are_never_and_always():
    for key, epoch in itertools.product(IDS, EPOCHS):
        assert not is_masked(key, 0.0, 0, epoch)
        assert is_masked(key, 1.0, 0, epoch)


def test_whether_an_utterance_is_masked_is_a_function_of_its_arguments():
    def draw(seed=0, epoch=0, prefix=""):
        return [
            is_masked(prefix + key, 0.5, seed, epoch + e)
            for key in IDS
            for e in EPOCHS
        ]

    first = draw()
    assert draw() == first
    for other in (draw(seed=1), draw(epoch=500), draw(prefix="v")):
        # independent draws agree half of the time
        agreement = sum(a == b for a, b in zip(first, other)) / len(first)
        assert abs(agreement - 0.5) < 0.05


def test_a_higher_probability_masks_more_of_the_same_utterances():
    masked = [
        {key for key in IDS if is_masked(key, probability, 0, 1)}
        for probability in (0.2, 0.5, 0.8)
    ]
    assert masked[0] < masked[1] < masked[2]


# The masks of a batch --------------------------------------------------------

LENGTHS = {"a": 40, "b": 13, "c": 25, "d": 1}


def mask_batch(augmentation, probabilities, epoch=2):
    """Masks the utterances above; gives their masks by id."""
    ids = list(probabilities)
    lengths = torch.tensor([LENGTHS[key] for key in ids])
    mask = augmentation.mask(ids, list(probabilities.values()), lengths, epoch)
    assert mask.shape == (len(ids), max(lengths)) and mask.dtype == torch.bool
    return {key: row[: LENGTHS[key]] for key, row in zip(ids, mask)}


@pytest.mark.parametrize("span, most", [(1, 99), (8, 3)])
def test_the_chosen_utterances_are_masked_in_runs(span, most):
    augmentation = Augmentation("mask", 0.4, span, seed=1)
    masks = mask_batch(augmentation, {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0})
    assert [int(row.sum()) for row in masks.values()] == [16, 5, 0, 1]
    starts = masks["a"][1:] & ~masks["a"][:-1]
    runs = int(masks["a"][0]) + int(starts.sum())
    assert runs <= most if span > 1 else runs > 4


def test_a_mask_is_the_utterances_own_in_its_epoch():
    augmentation = Augmentation(seed=1)
    alone = mask_batch(augmentation, {"a": 1.0})["a"]
    together = mask_batch(augmentation, {"b": 1.0, "c": 0.0, "a": 1.0})["a"]
    assert torch.equal(together, alone)
    for other in (
        mask_batch(Augmentation(seed=2), {"a": 1.0}),
        mask_batch(augmentation, {"a": 1.0}, epoch=3),
        # nor is it that of adapter training
        {"a": UtteranceMasks(seed=1)(["a"], torch.tensor([40]), 2)[0]},
    ):
        assert not torch.equal(other["a"], alone)


def test_an_utterance_is_masked_in_the_epochs_that_are_drawn():
    augmentation = Augmentation("mask", seed=7)
    for epoch in EPOCHS:
        row = mask_batch(augmentation, {"a": 0.5}, epoch)["a"]
        assert bool(row.any()) == is_masked("a", 0.5, 7, epoch)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_plan_is_that_of_strategy_and_seed(strategy):
    manifest = make_manifest()
    plan = Augmentation(strategy, seed=3).plan(manifest)
    assert plan == augment_minorities(manifest, strategy, 3)
