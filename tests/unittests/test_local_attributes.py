"""Laws of the local attributes, and Eq. 3 to 5 against plain loops."""

import math

import pytest
import torch
from helpers import assert_near, generator

from speechbrain_wap import local_attributes
from speechbrain_wap.local_attributes import LocalAttributes

DIM = 3
RULES = [
    {"update_rule": "count"},
    {"update_rule": "count", "count_decay": 0.6},
    {"update_rule": "constant", "rate": 0.3},
]


def make_attributes(num_attributes=6, **settings):
    """Makes attributes with a random codebook, as if initialised."""
    attributes = LocalAttributes(num_attributes, DIM, **settings)
    attributes.codebook.copy_(
        torch.randn(num_attributes, DIM, generator=generator(99))
    )
    attributes.initialised = True
    return attributes


def make_frames(count, seed=0):
    """Draws frames [N, D]."""
    return torch.randn(count, DIM, generator=generator(seed))


def make_batches(num_batches=5, start=0):
    """Draws batches of frames with random codes; one attribute gets none."""
    batches = []
    for seed in range(start, start + num_batches):
        z = make_frames(20 + seed, seed)
        codes = torch.randint(5, (len(z),), generator=generator(seed))
        batches.append((z, codes))
    return batches


def state_of(attributes):
    """Copies the whole state, counters included, as plain values."""
    return {
        name: value.tolist() if torch.is_tensor(value) else dict(value)
        for name, value in attributes.state_dict().items()
    }


def rows(tensor):
    """Gives the rows as tuples, to compare frames by their values."""
    return [tuple(row) for row in tensor.tolist()]


# Assignment, Eq. 4


@pytest.mark.parametrize("chunk", [7, 8192])
def test_assign_finds_the_nearest_attribute(monkeypatch, chunk):
    monkeypatch.setattr(local_attributes, "CHUNK_FRAMES", chunk)
    attributes = make_attributes(16)
    # of various norms, so that a missing |p|^2 shows
    attributes.codebook *= torch.linspace(0.1, 3.0, 16)[:, None]
    before = state_of(attributes)
    z = make_frames(50)
    with torch.autocast("cpu", torch.bfloat16):  # precise all the same
        codes = attributes.assign(z)
    distances = torch.cdist(z.double(), attributes.codebook.double())
    assert torch.equal(codes, distances.argmin(dim=-1))
    assert len(codes.unique()) > 5
    assert state_of(attributes) == before


# Update, Eq. 5


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_update_is_equation_5(rule):
    attributes = make_attributes(**rule)
    start = attributes.codebook.clone()
    expected = start.double()
    numbers = [0.0] * 6
    for z, codes in make_batches():
        attributes.update(z, codes)
        numbers = [rule.get("count_decay", 1.0) * n for n in numbers]
        means = expected.clone()
        sizes = [0] * 6
        for frame, i in zip(z.double(), codes.tolist()):
            numbers[i] += 1
            sizes[i] += 1
            if rule["update_rule"] == "count":
                expected[i] += (frame - expected[i]) / numbers[i]  # Eq. 5
            else:
                means[i] += (frame - means[i]) / sizes[i]
        if rule["update_rule"] == "constant":
            expected += rule["rate"] * (means - expected)
        else:
            assert_near(attributes.counts, numbers)
        assert_near(attributes.codebook, expected)
    # those without frames do not move
    assert torch.equal(attributes.codebook[5], start[5])
    assert (attributes.codebook[:5] != start[:5]).all()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_collected_batches_are_one_batch(rule):
    parts, whole = make_attributes(**rule), make_attributes(**rule)
    for start in (0, 3):
        batches = make_batches(3, start=start)
        before = parts.codebook.clone()
        for z, codes in batches[:-1]:
            parts.collect_(z, codes)
        assert torch.equal(parts.codebook, before)
        parts.update(*batches[-1])
        whole.update(*(torch.cat(column) for column in zip(*batches)))
    assert parts.num_updates == whole.num_updates == 2
    for name in ("codebook", "counts", "idle", "usage"):
        assert_near(getattr(parts, name), getattr(whole, name), atol=1e-6)


# Initialisation


@pytest.mark.parametrize("num_frames", [20, 7])
def test_attributes_start_on_frames_of_the_batch_without_repetition(num_frames):
    attributes = LocalAttributes(7, DIM)
    assert not attributes.initialised
    z = make_frames(num_frames)
    frames = z.clone()
    attributes.initialise_(z)
    assert attributes.initialised
    codebook = rows(attributes.codebook)
    assert set(codebook) <= set(rows(z))
    assert len(set(codebook)) == 7
    attributes.codebook.add_(1.0)  # they are copies
    assert torch.equal(z, frames)


def test_with_fewer_frames_than_attributes_all_frames_are_used_evenly():
    attributes = LocalAttributes(8, DIM)
    z = make_frames(3)
    attributes.initialise_(z)
    codebook = rows(attributes.codebook)
    assert sorted(codebook.count(row) for row in rows(z)) == [2, 3, 3]
    assert attributes.assign(z).max() < 3  # the copies lose every tie


def test_initialisation_and_revival_are_functions_of_the_seed():
    codebooks = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        attributes = LocalAttributes(5, DIM, revive_after=1, seed=seed)
        attributes.initialise_(make_frames(200))
        own = [rows(attributes.codebook)]
        for _ in range(2):  # and of the number of updates
            codes = torch.zeros(50, dtype=torch.long)
            attributes.update(make_frames(50), codes)
            own.append(rows(attributes.codebook[1:]))
        codebooks.append(own)
        assert torch.equal(torch.get_rng_state(), state)
    first, again, other = codebooks
    assert first == again
    assert all(one != two for one, two in zip(first, other))
    assert first[1] != first[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.double])
def test_running_means_stay_in_float32_at_least(dtype):
    attributes = make_attributes(4, revive_after=1)
    before = attributes.codebook.clone()
    attributes.to(dtype)
    exact = dtype if dtype == torch.double else torch.float32
    assert torch.equal(attributes.codebook, before.to(exact))
    z = make_frames(12).to(dtype)
    attributes.initialise_(z)
    attributes.update(z, attributes.assign(z))
    for values in (attributes.codebook, attributes.counts):
        assert values.dtype == exact
    assert attributes.logits(z).dtype == exact


# Revival, D5


@pytest.mark.parametrize("revive_after", [1, 3])
@pytest.mark.parametrize("rule", RULES[1:], ids=str)
def test_an_idle_attribute_is_put_on_a_frame_of_the_batch(rule, revive_after):
    attributes = make_attributes(4, revive_after=revive_after, **rule)
    attributes.counts.fill_(9.0)
    start = attributes.codebook.clone()
    for number in range(1, revive_after + 1):
        assert torch.equal(attributes.codebook[1:], start[1:])
        assert attributes.num_revived == 0
        z = make_frames(12, seed=number)
        attributes.update(z, torch.zeros(12, dtype=torch.long))
    revived = rows(attributes.codebook[1:])
    # on frames of the last batch, each on another one
    assert set(revived) <= set(rows(z)) and len(set(revived)) == 3
    assert rows(attributes.codebook)[0] not in rows(z)
    assert attributes.num_revived == 3
    assert attributes.usage_statistics()["revived"] == 3
    # they wait as long again, and forget their former frames
    assert (attributes.idle == 0).all()
    assert not attributes.counts[1:].any()


def test_an_attribute_is_not_revived_where_chosen_in_time_or_not_asked_for():
    for revive_after in (3, None):
        attributes = make_attributes(2, revive_after=revive_after)
        for number in range(12):
            in_time = revive_after is not None and number % 3 == 2
            codes = torch.full((5,), int(in_time))  # 0 0 1 0 0 1 ...
            attributes.update(make_frames(5, number), codes)
        assert attributes.num_revived == 0
        assert attributes.idle.tolist() == ([1, 0] if in_time else [0, 12])


def test_revival_is_looked_for_seldom_and_never_too_late():
    # a GPU is waited for at each look
    seldom, always = (make_attributes(24, revive_after=9) for _ in range(2))
    looks = []
    look = seldom._revive
    seldom._revive = lambda z: (looks.append(1), look(z))
    for number in range(200):
        z = make_frames(12, number)
        # near the first attribute, so that others are idle more often
        codes = torch.randint(24, (12,), generator=generator(number)).square()
        for attributes in (seldom, always):
            attributes.update(z, codes // 24)
        always.next_look = 0
        assert torch.equal(seldom.codebook, always.codebook)
    assert seldom.num_revived == always.num_revived > 20
    assert len(looks) < 150


# The student's logits, Eq. 6


def naive_logit(similarity, frame, attribute):
    """Compares one frame with one attribute, number by number."""
    pairs = list(zip(frame.tolist(), attribute.tolist()))
    if similarity == "distance":
        return -sum((x - y) ** 2 for x, y in pairs)
    norms = [math.sqrt(sum(x * x for x in part)) for part in zip(*pairs)]
    return sum(x * y for x, y in pairs) / (norms[0] * norms[1])


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
@pytest.mark.parametrize("temperature", [0.1, 4.0])
def test_logits_equal_the_formula(similarity, temperature):
    attributes = make_attributes(similarity=similarity, temperature=temperature)
    z = make_frames(11)
    logits = attributes.logits(z)
    assert logits.shape == (11, 6)
    for frame, row in zip(z.double(), logits):
        expected = [
            naive_logit(similarity, frame, attribute) / temperature
            for attribute in attributes.codebook.double()
        ]
        assert_near(row, expected, atol=2e-5 / temperature)
    # float32, whatever the precision around them
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attributes.logits(z), logits)
    assert attributes.logits(z.bfloat16()).dtype == torch.float32


# The log


@pytest.mark.parametrize(
    "usage", [[1, 1, 1, 1], [0, 9, 0, 0], [5, 3, 0, 1]], ids=str
)
def test_usage_statistics_equal_the_formula(usage):
    attributes = make_attributes(4)
    for i, count in enumerate(usage):  # summed over updates
        attributes.update(make_frames(count), torch.full((count,), i))
    shares = [count / sum(usage) for count in usage if count > 0]
    entropy = -sum(share * math.log(share) for share in shares)
    statistics = attributes.usage_statistics()
    assert statistics["perplexity"] == pytest.approx(math.exp(entropy))
    assert statistics["used"] == len(shares) / 4
    before = state_of(attributes)
    attributes.reset_usage()  # and nothing else
    assert attributes.usage_statistics()["used"] == 0.0
    after = state_of(attributes)
    assert before.pop("usage") != after.pop("usage")
    assert before == after
