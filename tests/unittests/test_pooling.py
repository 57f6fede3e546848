"""Laws of statistical attentive pooling, and Eq. 7 against plain loops."""

import math

import pytest
import torch
from helpers import assert_near, make_utterances, pad_batch, randomise_

from speechbrain_wap.pooling import StatisticalAttentivePooling

D, H = 5, 3
LENGTHS = [8, 3, 1, 6]
VARIANCES = ["weighted", "printed"]


def make_pool(variance="weighted"):
    """Makes a pool whose weight maps are far from even."""
    pool = StatisticalAttentivePooling(D, H, variance)
    return randomise_(pool, scale=1.0)


def naive_weights(pool, z):
    """Softmax over time of a linear map of each frame: A, [n][H]."""
    maps = pool.attention.weight.detach().double()[:, :, 0]  # (H, D)
    scores = [
        [float(sum(maps[h, d] * frame[d] for d in range(D))) for h in range(H)]
        for frame in z
    ]
    norms = [sum(math.exp(row[h]) for row in scores) for h in range(H)]
    return [[math.exp(row[h]) / norms[h] for h in range(H)] for row in scores]


def naive_pool(pool, z):
    """Pools one utterance [n, D] by Eq. 7, number by number."""
    weights = naive_weights(pool, z)
    means, variances = [], []
    for h in range(H):
        for d in range(D):
            values = [float(frame[d]) for frame in z]
            a = [row[h] for row in weights]
            mu = sum(w * x for w, x in zip(a, values))
            if pool.variance == "weighted":
                var = sum(w * (x - mu) ** 2 for w, x in zip(a, values))
            else:
                var = sum(w * w * x for w, x in zip(a, values)) - mu * mu
            means.append(mu)
            variances.append(var)
    halves = []
    for half in (means, variances):
        norm = math.sqrt(sum(x * x for x in half))
        halves += [x / norm for x in half]
    return halves


@pytest.mark.parametrize("variance", VARIANCES)
def test_pooling_is_equation_7(variance):
    pool = make_pool(variance)
    utterances = make_utterances([8, 3, 6], D)
    pooled = pool(*pad_batch(utterances))
    assert pooled.shape == (3, pool.output_size) == (3, 2 * H * D)
    for row, z in zip(pooled, utterances):
        assert_near(row, naive_pool(pool, z.double()))


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("fill", [1e6, float("nan")])
def test_padding_does_not_change_the_embedding(variance, fill):
    pool = make_pool(variance)
    utterances = make_utterances(LENGTHS, D)
    together = pool(*pad_batch(utterances, fill, 30))
    for row, z in zip(together, utterances):
        assert_near(row, pool(z[None], torch.ones(1))[0])


def test_only_the_printed_variance_may_be_negative():
    # why it is not the default, D3
    utterances = make_utterances([1, 4], D)
    half = make_pool("printed")(*pad_batch(utterances))[:, H * D :]
    assert (half < 0).any()
    # rounding alone takes it below zero where frames are nearly equal
    utterances = [1.0 + 1e-4 * z for z in make_utterances([37, 8], D)]
    half = make_pool()(*pad_batch(utterances))[:, H * D :]
    assert (half >= 0).all()
    constant = utterances[0][:1].expand(1, 37, D)
    half = make_pool()(30.0 * constant, torch.ones(1))[0, H * D :]
    assert_near(half, torch.zeros(H * D), atol=1e-3)


def test_the_weighted_variance_does_not_see_a_common_offset():
    pool = make_pool()
    (z,) = make_utterances([40], D)
    half = pool((z + 100.0)[None], torch.ones(1))[0, H * D :]
    expected = pool(z[None], torch.ones(1))[0, H * D :]
    assert_near(half, expected, atol=1e-4)


@pytest.mark.parametrize("variance", VARIANCES)
def test_an_utterance_of_one_frame_has_a_finite_embedding(variance):
    pool = make_pool(variance)
    (z,) = make_utterances([1], D)
    z.requires_grad_()
    pooled = pool(z[None], torch.ones(1))[0]
    mean, var = pooled.split(H * D)
    assert_near(mean, (z / z.norm() / math.sqrt(H)).repeat(1, H)[0])
    if variance == "weighted":
        assert (var == 0).all()
    pooled.sum().backward()
    for tensor in (pooled, z.grad, pool.attention.weight.grad):
        assert torch.isfinite(tensor).all()


def test_pooling_computes_in_float32_whatever_the_precision_around_it():
    pool = make_pool()
    (z,) = make_utterances([9], D)
    # a variance far below the mean's square, which bfloat16 cannot tell
    z = (100.0 + z).bfloat16()[None]
    expected = pool(z.float(), torch.ones(1))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool(z, torch.ones(1))
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.double])
def test_pooling_takes_frames_and_has_weights_of_any_precision(dtype):
    z, lens = pad_batch(make_utterances([9, 4], D))
    pool = make_pool()
    expected = pool(z, lens)
    assert_near(pool(z.to(dtype), lens), expected, 0.01)
    converted = pool.to(dtype)(z.to(dtype), lens)
    assert converted.dtype == dtype
    assert_near(converted, expected, 0.01)


@pytest.mark.parametrize("variance", VARIANCES)
def test_of_no_frames_the_statistics_are_zero(variance):
    pool = make_pool(variance)
    z, _ = pad_batch(make_utterances([5, 5], D))
    z.requires_grad_()
    pooled = pool(z, torch.tensor([1.0, 0.0]))
    assert (pooled[1] == 0).all()
    pooled.square().sum().backward()
    assert (z.grad[1] == 0).all() and torch.isfinite(z.grad).all()
    # without lengths, all frames are valid
    assert torch.equal(pool(z), pool(z, torch.ones(2)))
    assert torch.equal(
        pool.attention_map(z), pool.attention_map(z, torch.ones(2))
    )


def test_output_statistics_standardise_what_is_pooled():
    pool = randomise_(StatisticalAttentivePooling(3, num_heads=2))
    z, lens = pad_batch(make_utterances([4, 9, 2, 7, 5], 3))
    plain = pool(z, lens)
    mean, std = plain.mean(dim=0), plain.std(dim=0, unbiased=False)
    pool.set_output_statistics(mean, std)
    pooled = pool(z, lens)
    assert_near(pooled, (plain - mean) / std)
    # a dimension that does not vary is only shifted
    pool.set_output_statistics(mean, torch.zeros_like(std))
    assert_near(pool(z, lens), plain - mean)
    # and they are part of the weights
    other = StatisticalAttentivePooling(3, num_heads=2)
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other(z, lens), pool(z, lens))
