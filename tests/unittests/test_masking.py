"""Laws of the masks: of valid frames, and of masked ones (Sec. II-B.1)."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from helpers import generator

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.masking import (
    UtteranceMasks,
    sample_frame_mask,
    shuffle_utterances,
    utterance_generator,
)
from speechbrain_wap.packing import valid_frames

RATIOS = [0.0, 0.05, 0.15, 0.35, 0.4, 0.5, 0.65, 0.8, 0.95, 1.0]


@pytest.mark.parametrize("num_steps", [1, 2, 49, 300, 1499])
def test_relative_lengths_give_back_every_number_of_frames(num_steps):
    expected = torch.arange(1, num_steps + 1)
    # the division in float32, as in a SpeechBrain batch
    num_frames, valid = valid_frames(expected / num_steps, num_steps)
    assert torch.equal(num_frames, expected)
    assert valid.shape == (num_steps, num_steps)
    assert torch.equal(valid, torch.ones_like(valid).tril())


@pytest.mark.parametrize("ratio", RATIOS)
def test_exactly_the_rounded_share_of_the_valid_frames_is_masked(ratio):
    lengths = list(range(1, 101))
    mask = sample_frame_mask(lengths, ratio, generator())
    assert mask.shape == (100, 100) and mask.dtype == torch.bool
    for n, row in zip(lengths, mask):
        expected = max(1, min(round(ratio * n), n - 1))
        assert int(row.sum()) == expected, f"{n} frames"


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_there_is_always_something_to_predict_and_something_visible(ratio):
    for n in range(2, 30):
        assert 1 <= int(sample_frame_mask([n], ratio).sum()) <= n - 1


@pytest.mark.parametrize("ratio", RATIOS)
def test_an_utterance_of_one_frame_is_masked_whole(ratio):
    assert sample_frame_mask([1], ratio).tolist() == [[True]]


@pytest.mark.parametrize("ratio", RATIOS)
def test_padding_is_never_masked(ratio):
    lengths = torch.tensor([3, 50, 1, 17, 49])
    for seed in range(20):
        mask = sample_frame_mask(lengths, ratio, generator(seed))
        for n, row in zip(lengths, mask):
            assert not row[n:].any()


def test_lengths_may_be_a_list_or_a_tensor():
    lengths = [9, 4, 7]
    from_list = sample_frame_mask(lengths, 0.4, generator())
    from_tensor = sample_frame_mask(torch.tensor(lengths), 0.4, generator())
    assert torch.equal(from_list, from_tensor)


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


def test_every_frame_of_a_long_utterance_is_equally_likely():
    n, ratio, draws = 50, 0.4, 4000
    counts = sample_frame_mask([n] * draws, ratio, generator()).sum(dim=0)
    expected = ratio * draws
    sigma = (draws * ratio * (1 - ratio)) ** 0.5
    assert ((counts - expected).abs() < 4.5 * sigma).all()


def test_the_generator_alone_decides():
    lengths = [30, 40]
    torch.manual_seed(1)
    first = sample_frame_mask(lengths, 0.4, generator(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = sample_frame_mask(lengths, 0.4, generator(7))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    other = sample_frame_mask(lengths, 0.4, generator(8))
    assert not torch.equal(first, other)


def test_without_a_generator_the_global_seed_decides():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(sample_frame_mask([100], 0.4))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    "lengths, mistake, message",
    [
        *(
            ([5], {"mask_ratio": ratio}, f"mask_ratio={ratio} must be within")
            for ratio in (-0.1, 1.1, float("nan"), "0.4")
        ),
        *(([5], {"span": n}, f"span={n} must be a whole") for n in (0, 1.5)),
        ([5, 0, 3], {}, "utterance 1 of the batch has 0 valid frames"),
    ],
)
def test_bad_arguments_raise_an_error_that_names_them(
    lengths, mistake, message
):
    ids = [str(n) for n in lengths]
    with pytest.raises(RecipeError, match=message):
        UtteranceMasks(**mistake)(ids, lengths, 1)
    if "span" not in mistake:
        with pytest.raises(RecipeError, match=message):
            sample_frame_mask(lengths, **{"mask_ratio": 0.4, **mistake})


LENGTHS = {"a": 60, "b": 31, "c": 1, "d": 120}


def mask_batch(utterance_ids, epoch=1, **settings):
    """Masks a batch of the utterances above; gives their masks by id."""
    lengths = torch.tensor([LENGTHS[key] for key in utterance_ids])
    mask = UtteranceMasks(**settings)(utterance_ids, lengths, epoch)
    assert mask.shape == (len(utterance_ids), max(lengths))
    for n, row in zip(lengths, mask):
        assert not row[n:].any()
    return {key: row[: LENGTHS[key]] for key, row in zip(utterance_ids, mask)}


@pytest.mark.parametrize("others", ["", "bd", "db", "dbc", "bcd"])
@pytest.mark.parametrize("place", [0, -1])
def test_an_utterances_mask_is_its_own_in_any_batch(others, place):
    alone = mask_batch(["a"])["a"]
    batch = list(others)
    batch.insert(place if place == 0 else len(batch), "a")
    assert torch.equal(mask_batch(batch)["a"], alone)


def test_an_utterances_mask_leaves_the_global_generator_alone():
    masks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        masks.append(mask_batch(["a", "d"]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(masks[0]["a"], masks[1]["a"])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epoch": 2}, {"purpose": "other"}], ids=str
)
def test_an_utterances_mask_differs_by_seed_epoch_and_purpose(change):
    assert not torch.equal(
        mask_batch(["a"], **change)["a"], mask_batch(["a"])["a"]
    )


def test_utterances_of_the_same_length_have_different_masks():
    ids = ["u", "v", "w", "u1"]
    mask = UtteranceMasks()(ids, torch.full((4,), 80), 1)
    assert len({tuple(row.tolist()) for row in mask}) == 4


@pytest.mark.parametrize("span", [1, 8])
def test_an_utterances_mask_has_the_exact_share(span):
    for key, row in mask_batch(list(LENGTHS), span=span).items():
        assert int(row.sum()) == max(1, round(0.4 * LENGTHS[key]))
    runs = find_runs(mask_batch("d", span=span)["d"])
    assert max(runs) >= 8 if span == 8 else max(runs) < 8


def test_seed_and_epoch_do_not_run_into_each_other():
    # "1" and "11" must not be the same text as "11" and "1"
    arguments = [(1, 11, "u"), (11, 1, "u"), (1, 1, "1u"), (1, 1, "u")]
    seeds = {utterance_generator(*a).initial_seed() for a in arguments}
    assert len(seeds) == len(arguments)


def test_the_generator_of_an_utterance_is_the_same_on_any_machine():
    # not Python's hash(), which differs from process to process
    draw = utterance_generator(1993, 2, "Ses01F_impro01_M003")
    assert draw.initial_seed() == 898686663658091085


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


def find_runs(row):
    """Lengths of the runs of masked frames."""
    text = "".join("x" if chosen else " " for chosen in row.tolist())
    return [len(run) for run in text.split()]


@pytest.mark.parametrize("span", [2, 5, 7])
@pytest.mark.parametrize("ratio", RATIOS)
def test_spans_mask_exactly_as_many_frames(ratio, span):
    lengths = list(range(1, 80))
    mask = sample_frame_mask(lengths, ratio, generator(), span)
    alone = sample_frame_mask(lengths, ratio, generator())
    assert torch.equal(mask.sum(dim=1), alone.sum(dim=1))
    for n, row in zip(lengths, mask):
        assert not row[n:].any()
        # runs may touch; one may be shorter, and joined to another
        rest = [run % span for run in find_runs(row) if run % span]
        expected = int(row.sum()) % span
        assert rest == ([expected] if expected else [])


def test_all_places_of_a_span_are_equally_likely():
    counts = Counter(
        tuple(sample_frame_mask([5], 0.4, generator(seed), span=2)[0].tolist())
        for seed in range(4000)
    )
    assert len(counts) == 4  # a run of 2 in 5 frames
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_the_shorter_span_may_be_any():
    # 3 masked frames of 8 in runs of 2 and 1
    first = Counter()
    for seed in range(1000):
        row = sample_frame_mask([8], 0.4, generator(seed), span=2)[0]
        runs = find_runs(row)
        if len(runs) == 2:
            first[runs[0]] += 1
    assert 0.8 < first[1] / first[2] < 1.25
