"""Laws of fine-tuning on a share of the labels."""

import random
from collections import Counter

import pytest
import torch
from speechbrain.dataio.sampler import ReproducibleRandomSampler

from speechbrain_wap.label_fraction import (
    choose_labelled,
    count_labels,
    repeat_utterances,
)
from speechbrain_wap.masking import sample_utterance_masks
from speechbrain_wap.ranks import BatchOrderSampler

SIZES = {"neutral": 83, "sad": 40, "angry": 17, "happy": 3, "fear": 1}
FRACTIONS = [0.001, 0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 0.99, 1.0]


def make_manifest(sizes=None):
    """Classes of the given sizes, one after the other."""
    return {
        f"{label}{i}": {"label": label, "digest": f"{label}{i}"}
        for label, size in (sizes or SIZES).items()
        for i in range(size)
    }


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_class_keeps_its_share_and_one_utterance_at_least(fraction):
    chosen = choose_labelled(make_manifest(), fraction, 7)
    assert count_labels(chosen, list(SIZES)) == {
        label: max(1, round(fraction * size)) for label, size in SIZES.items()
    }


@pytest.mark.parametrize("seed", [0, 1, 1993])
def test_fewer_labels_lie_inside_more(seed):
    chosen = [choose_labelled(make_manifest(), f, seed) for f in FRACTIONS]
    for fewer, more in zip(chosen, chosen[1:]):
        assert fewer.items() <= more.items()
    assert list(chosen[-1]) == list(make_manifest())


def test_the_choice_is_a_function_of_seed_ids_and_classes():
    manifest = make_manifest()
    chosen = choose_labelled(manifest, 0.3, 1)
    entries = [(k, {"label": e["label"]}) for k, e in manifest.items()]
    random.Random(1).shuffle(entries)
    assert choose_labelled(dict(entries), 0.3, 1).keys() == chosen.keys()
    assert choose_labelled(manifest, 0.3, 2).keys() != chosen.keys()
    others = {f"x{key}": entry for key, entry in manifest.items()}
    found = {key[1:] for key in choose_labelled(others, 0.3, 1)}
    assert found != chosen.keys()


@pytest.mark.parametrize("removed", ["neutral", "happy"])
def test_the_choice_within_a_class_does_not_depend_on_the_others(removed):
    def rest(entries):
        return {k: e for k, e in entries.items() if e["label"] != removed}

    manifest = make_manifest()
    chosen = choose_labelled(manifest, 0.3, 1)
    assert choose_labelled(rest(manifest), 0.3, 1) == rest(chosen)


def test_the_chosen_stay_in_the_manifests_order_and_as_they_are():
    manifest = make_manifest()
    chosen = choose_labelled(manifest, 0.4, 3)
    assert list(chosen) == [key for key in manifest if key in chosen]
    assert all(chosen[key] is manifest[key] for key in chosen)


def test_every_utterance_is_as_likely_as_the_next():
    manifest = make_manifest({"sad": 20})
    counts = Counter(
        key
        for seed in range(400)
        for key in choose_labelled(manifest, 0.25, seed)
    )
    # 100 expected, 9 the standard deviation
    assert len(counts) == 20
    assert all(60 < count < 140 for count in counts.values())


# Repeats ---------------------------------------------------------------------


def test_repeats_come_pass_by_pass_under_names_of_their_own():
    manifest = {"a": {"n": 1}, "a*1": {"n": 2}, "b": {"n": 3}}
    repeated = repeat_utterances(manifest, 4)
    assert len(repeated) == 4 * 3
    assert list(repeated)[:3] == list(manifest)
    assert [entry["n"] for entry in repeated.values()] == [1, 2, 3] * 4
    assert repeat_utterances(manifest, 1) == manifest


def test_what_is_random_about_an_utterance_is_drawn_anew_in_a_repeat():
    repeated = repeat_utterances({"a": {}, "b": {}}, 8)
    frames = torch.full((len(repeated),), 50)
    masks = sample_utterance_masks(list(repeated), frames, 0.4, 1, 1)
    assert len(masks.unique(dim=0)) == len(repeated)
    alone = sample_utterance_masks(["a"], [50], 0.4, 1, 1)
    assert torch.equal(masks[:1], alone)  # as with all labels


def draw(num_items, epoch=1, batch_size=4, **options):
    """The order of an epoch."""
    sampler = BatchOrderSampler(
        range(num_items), batch_size, seed=3, epoch=epoch, **options
    )
    order = list(sampler)
    assert len(order) == len(sampler)
    return order


@pytest.mark.parametrize("size", [1, 6, 7, 8, 14, 33])
def test_an_epoch_goes_through_all_utterances_again_and_again(size):
    order = draw(7, num_samples=size)
    assert len(order) == size
    for number in range(0, size, 7):
        one_pass = [item - number for item in order[number : number + 7]]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(7))
    counts = Counter(item % 7 for item in order)
    assert max(counts.values()) - min(counts[i] for i in range(7)) <= 1


def test_passes_and_epochs_have_other_orders():
    orders = [
        [item % 9 for item in draw(9, epoch, num_samples=27)[n : n + 9]]
        for epoch in (1, 2)
        for n in (0, 9, 18)
    ]
    assert len({tuple(order) for order in orders}) == 6


def test_no_utterance_is_preferred_over_the_epochs():
    counts = Counter(
        item % 5
        for epoch in range(400)
        for item in draw(5, epoch, num_samples=7)
    )
    # 560 expected, 10 the standard deviation
    assert all(520 < counts[item] < 600 for item in range(5))


def test_an_epoch_of_all_utterances_is_as_it_is_without_repeats():
    usual = list(ReproducibleRandomSampler(range(11), seed=3, epoch=2))
    assert draw(11, 2) == draw(11, 2, num_samples=11) == usual


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_shares_of_repeats_are_the_batches_of_one_rank(world_size):
    alone = draw(5, batch_size=6, num_samples=24)
    order = draw(
        5, batch_size=6 // world_size, num_samples=24, world_size=world_size
    )
    for start in range(0, 24, 6):
        batch = order[start : start + 6]
        shares = [batch[rank::world_size] for rank in range(world_size)]
        assert sum(shares, []) == alone[start : start + 6]
