"""Laws of the masks: of valid frames, and of masked ones (Sec. II-B.1)."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from helpers import generator

from speechbrain_wap.masking import (
    UtteranceMasks,
    sample_frame_mask,
    shuffle_utterances,
    utterance_number,
)


def find_runs(row):
    """Lengths of the runs of masked frames."""
    text = "".join("x" if chosen else " " for chosen in row.tolist())
    return [len(run) for run in text.split()]


@pytest.mark.parametrize("span", [1, 2, 7])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.35, 0.4, 0.65, 0.95, 1.0])
def test_exactly_the_rounded_share_of_the_valid_frames_is_masked(ratio, span):
    lengths = list(range(1, 101))
    mask = sample_frame_mask(torch.tensor(lengths), ratio, generator(), span)
    assert torch.equal(
        mask, sample_frame_mask(lengths, ratio, generator(), span)
    )
    assert mask.shape == (100, 100) and mask.dtype == torch.bool
    for n, row in zip(lengths, mask):
        # something to predict, and something visible; never padding
        expected = max(1, min(round(ratio * n), n - 1))
        assert int(row.sum()) == int(row[:n].sum()) == expected, f"{n} frames"
        # runs may touch; one may be shorter, and joined to another
        rest = [run % span for run in find_runs(row) if run % span]
        assert rest == ([expected % span] if expected % span else [])


def test_every_set_of_frames_is_equally_likely():
    # two of five frames, with padding behind them: ten sets
    draws = 5000
    mask = sample_frame_mask([5] * draws + [8], 0.4, generator())[:draws]
    counts = Counter(tuple(row.nonzero().flatten().tolist()) for row in mask)
    sets = list(combinations(range(5), 2))
    assert set(counts) == set(sets)
    expected = draws / len(sets)
    chi_square = sum((counts[s] - expected) ** 2 / expected for s in sets)
    assert chi_square < 35  # 9 degrees of freedom: p < 0.0001


LENGTHS = {"a": 60, "b": 31, "c": 1, "d": 120}


def mask_batch(utterance_ids, epoch=1, **settings):
    """Masks a batch of the utterances above; gives their masks by id."""
    lengths = torch.tensor([LENGTHS[key] for key in utterance_ids])
    mask = UtteranceMasks(**settings)(utterance_ids, lengths, epoch)
    assert mask.shape == (len(utterance_ids), max(lengths))
    for n, row in zip(lengths, mask):
        assert not row[n:].any()
    return {key: row[: LENGTHS[key]] for key, row in zip(utterance_ids, mask)}


@pytest.mark.parametrize("span", [1, 8])
@pytest.mark.parametrize("others", ["bd", "dbc"])
def test_an_utterances_mask_is_its_own_in_any_batch(others, span):
    torch.manual_seed(1)
    alone = mask_batch(["a"], span=span)["a"]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    for batch in ("a" + others, others + "a"):
        assert torch.equal(mask_batch(batch, span=span)["a"], alone)
    assert torch.equal(torch.get_rng_state(), state)
    assert int(alone.sum()) == 24
    assert max(find_runs(alone)) >= 8 if span == 8 else alone.any()


def test_equal_random_numbers_do_not_let_the_batch_decide():
    # as some two of 1500 are in one draw of fifteen, which not all sorts mind
    for epoch in (21, 169):  # among them
        alone = UtteranceMasks()(["u"], [1500], epoch)[0]
        batch = UtteranceMasks()(["v", "u"], [1999, 1500], epoch)
        assert torch.equal(batch[1, :1500], alone)


def test_an_utterances_mask_differs_by_id_seed_epoch_and_purpose():
    mask = UtteranceMasks()(["u", "v", "w", "u1"], torch.full((4,), 80), 1)
    assert len({tuple(row.tolist()) for row in mask}) == 4
    own = mask_batch(["a"])["a"]
    for change in ({"seed": 1}, {"epoch": 2}, {"purpose": "other"}):
        assert not torch.equal(mask_batch(["a"], **change)["a"], own)


def test_a_number_is_its_utterances_on_any_machine():
    # "1" and "11" must not be the same text as "11" and "1"
    arguments = [(1, 11, "u"), (11, 1, "u"), (1, 1, "1u"), (1, 1, "u")]
    numbers = {utterance_number(*a, "mask") for a in arguments}
    assert len(numbers) == len(arguments)
    # not Python's hash(), which differs from process to process
    number = utterance_number(1993, 2, "Ses01F_impro01_M003", "mask")
    assert number == 898686663658091085


def test_the_order_of_utterances_is_a_function_of_seed_epoch_and_ids():
    ids = [f"u{number}" for number in range(60)]
    order = shuffle_utterances(ids, 1, 2, "draw")
    assert sorted(order) == sorted(ids)
    assert shuffle_utterances(reversed(ids), 1, 2, "draw") == order
    # fewer utterances keep their order
    few = shuffle_utterances(ids[::3], 1, 2, "draw")
    assert few == [key for key in order if key in ids[::3]]
    others = [(2, 2, "draw"), (1, 3, "draw"), (1, 2, "label")]
    orders = {tuple(shuffle_utterances(ids, *other)) for other in others}
    assert len(orders | {tuple(order)}) == 4


def test_every_utterance_is_as_likely_to_come_first():
    counts = Counter(
        shuffle_utterances("abcd", 1, epoch, "draw")[0] for epoch in range(800)
    )
    # 200 expected, 12 the standard deviation
    assert all(150 < counts[key] < 250 for key in "abcd")


def test_all_places_of_a_span_are_equally_likely():
    # a run of 2 in 5 frames
    mask = sample_frame_mask([5] * 4000, 0.4, generator(), span=2)
    counts = Counter(map(tuple, mask.tolist()))
    assert len(counts) == 4
    assert max(counts.values()) < 1.15 * min(counts.values())
    # and of the shorter: 3 masked frames of 8 in runs of 2 and 1
    mask = sample_frame_mask([8] * 1000, 0.4, generator(), span=2)
    runs = [runs for runs in map(find_runs, mask) if len(runs) == 2]
    first = Counter(lengths[0] for lengths in runs)
    assert 0.8 < first[1] / first[2] < 1.25
