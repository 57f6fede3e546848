"""Laws of an epoch's utterances, and of the share whose labels are used."""

import random
from collections import Counter

import pytest
import torch

from speechbrain_wap.data.sampling import (
    EpochPlan,
    choose_labelled,
    count_labels,
)
from speechbrain_wap.masking import UtteranceMasks
from speechbrain_wap.training.ranks import BatchOrderSampler

# Epochs ----------------------------------------------------------------------


EPOCHS = range(1, 41)


def make_entries(num_utterances=20):
    return {f"u{i}": {"wav": f"{i}.wav"} for i in range(num_utterances)}


def make_plan(*places, seed=1):
    """A plan for groups of ten utterances each."""
    entries = make_entries(10 * len(places))
    ids = list(entries)
    groups = [(ids[10 * i :][:10], count) for i, count in enumerate(places)]
    return EpochPlan(entries, groups, seed)


def count_places(plan, epoch):
    """Counts how often an epoch has each utterance."""
    names = list(plan.entries)
    chosen = [names[number] for number in plan.choose(epoch)]
    assert len(chosen) == len(set(chosen)) == len(plan)
    return Counter(name.partition("+")[0] for name in chosen)


def test_one_place_each_changes_nothing():
    plan = make_plan(10, 10)
    assert list(plan.entries.items()) == list(make_entries().items())
    assert plan.choose(1) == plan.choose(2) == list(range(20))
    assert set(plan.weights.values()) == {1.0}


@pytest.mark.parametrize("places", [1, 9, 10, 25])
def test_each_group_has_its_places_in_every_epoch(places):
    plan = make_plan(places, 10)
    assert len(plan) == places + 10
    total, drawn = Counter(), set()
    for epoch in EPOCHS:
        counts = count_places(plan, epoch)
        mine = [counts[f"u{i}"] for i in range(10)]
        assert sum(mine) == places
        # all are seen as often, but for the random rest
        assert set(mine) <= {places // 10, -(-places // 10)}
        assert all(counts[f"u{i}"] == 1 for i in range(10, 20))
        total.update(counts)
        drawn.add(tuple(mine))
    if places % 10:  # in other epochs others, and all in the end
        assert len(drawn) > 5
        assert all(total[f"u{i}"] > 40 * (places // 10) for i in range(10))
    assert plan.weights["u0"] == places / 10 and plan.weights["u10"] == 1.0


def test_what_is_drawn_is_a_function_of_seed_epoch_and_ids_alone():
    entries = make_entries()
    ids = list(entries)
    one = EpochPlan(entries, [(ids[:10], 5), (ids[10:], 15)], 1)
    mixed = dict(reversed(entries.items()))
    two = EpochPlan(mixed, [(ids[:9:-1], 15), (ids[9::-1], 5)], 1)
    other = EpochPlan(entries, [(ids[:10], 5), (ids[10:], 15)], 2)
    alone = EpochPlan(entries, [(ids[:10], 5), (ids[10:], 10)], 1)
    differ = 0
    for epoch in EPOCHS:
        counts = count_places(one, epoch)
        assert counts == count_places(two, epoch)
        differ += counts != count_places(other, epoch)
        # nor does another group matter
        without = count_places(alone, epoch)
        assert [counts[i] for i in ids[:10]] == [without[i] for i in ids[:10]]
    assert differ > 30


def test_copies_have_names_of_their_own_and_so_other_masks():
    entries = {"a": {"x": 1}, "a+1": {"x": 2}}
    plan = EpochPlan(entries, [(["a"], 3), (["a+1"], 1)], 1)
    assert list(plan.entries) == ["a", "a+1", "a+1'", "a+2"]
    assert plan.entries["a+2"] == plan.entries["a+1'"] == {"x": 1}
    names = [name for name in plan.entries if name != "a+1"]
    sample = UtteranceMasks(mask_ratio=0.4, seed=1)
    masks = sample(names, torch.tensor([50] * 3), epoch=1)
    assert len({tuple(mask.tolist()) for mask in masks}) == 3
    alone = sample(["a"], torch.tensor([50]), epoch=1)
    assert torch.equal(masks[:1], alone)  # as without copies


def draw_epoch(plan, epoch, batch_size, world_size):
    """What all ranks together have at each step of an epoch."""
    sampler = BatchOrderSampler(
        range(len(plan.entries)), batch_size, world_size, plan, seed=3
    )
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler) == len(plan)
    steps = []
    for start in range(0, len(order), batch_size * world_size):
        batch = order[start : start + batch_size * world_size]
        steps.append(sum((batch[r::world_size] for r in range(world_size)), []))
    return steps


def test_the_ranks_batches_are_those_of_one_rank():
    plan = make_plan(17, 10)
    for epoch in (1, 2):
        alone = draw_epoch(plan, epoch, 8, 1)
        assert alone == draw_epoch(plan, epoch, 4, 2)
        assert sorted(sum(alone, [])) == plan.choose(epoch)
    assert draw_epoch(plan, 1, 8, 1) != draw_epoch(plan, 2, 8, 1)


# Labels ----------------------------------------------------------------------


SIZES = {"neutral": 83, "sad": 40, "angry": 17, "happy": 3, "fear": 1}
FRACTIONS = [0.001, 0.1, 0.3, 0.5, 0.99, 1.0]


def make_manifest():
    """Classes of SIZES, one after the other."""
    return {
        f"{label}{i}": {"label": label, "digest": f"{label}{i}"}
        for label, size in SIZES.items()
        for i in range(size)
    }


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_class_keeps_its_share_and_one_utterance_at_least(fraction):
    chosen = choose_labelled(make_manifest(), fraction, 7)
    assert count_labels(chosen, list(SIZES)) == {
        label: max(1, round(fraction * size)) for label, size in SIZES.items()
    }


def test_fewer_labels_lie_inside_more():
    chosen = [choose_labelled(make_manifest(), f, 1) for f in FRACTIONS]
    for fewer, more in zip(chosen, chosen[1:]):
        assert fewer.items() <= more.items()


def test_the_choice_is_a_function_of_seed_ids_and_classes():
    manifest = make_manifest()
    chosen = choose_labelled(manifest, 0.3, 1)
    entries = [(k, {"label": e["label"]}) for k, e in manifest.items()]
    random.Random(1).shuffle(entries)
    assert choose_labelled(dict(entries), 0.3, 1).keys() == chosen.keys()
    assert choose_labelled(manifest, 0.3, 2).keys() != chosen.keys()
    # within a class, whatever the others
    rest = [
        {k: e for k, e in m.items() if e["label"] != "neutral"}
        for m in (manifest, chosen)
    ]
    assert choose_labelled(rest[0], 0.3, 1) == rest[1]
