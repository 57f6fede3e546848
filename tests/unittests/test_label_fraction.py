"""Laws of fine-tuning on a share of the labels."""

import random
from collections import Counter

import pytest

from speechbrain_wap.data.label_fraction import choose_labelled, count_labels

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
