"""Laws of the WAP-Transformer (Sec. II-A.2), and its equations step by step."""

import contextlib

import pytest
import torch
from helpers import (
    assert_near,
    generator,
    make_utterances,
    pad_batch,
    randomise_,
)
from torch.nn import functional as F

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.wap_transformer import WAPTransformer

INPUT_SIZE, D_MODEL, MAX_FRAMES = 5, 8, 24
LENGTHS = [9, 4, 1, 7]
# torch has a fast path of its own where there is neither training nor gradient
MODES = ["train", "eval", "inference"]


def make_net(**overrides):
    """Makes a small net without dropout, with random numbers all over."""
    settings = {"nhead": 2, "d_ffn": 12, "dropout": 0.0, **overrides}
    net = WAPTransformer(
        INPUT_SIZE, d_model=D_MODEL, max_frames=MAX_FRAMES, **settings
    )
    net.set_input_statistics(*make_statistics())
    return randomise_(net)


def make_statistics():
    """Draws a mean and a standard deviation of the input."""
    mean, std = torch.rand(2, INPUT_SIZE, generator=generator(5))
    return mean - 0.5, std + 0.5


def run(net, mode, *batch):
    """Runs a net in one of the modes."""
    net.train(mode == "train")
    no_gradient = mode == "inference"
    with torch.no_grad() if no_gradient else contextlib.nullcontext():
        return net(*batch)


def make_masks(lengths, seed=1):
    """Draws a mask of about half of each utterance's frames, each [n]."""
    columns = make_utterances(lengths, 1, seed=seed)
    return [column[:, 0] > 0 for column in columns]


def pad_masks(masks, num_steps):
    """Pads masks to [B, num_steps]; padding is not masked."""
    return torch.stack([F.pad(m, (0, num_steps - len(m))) for m in masks])


def naive_forward(net, x, mask, pre_norm, mlp_layers):
    """Rebuilds the forward of one utterance [n, D] from the net's parts."""
    frames = []
    for t in range(len(x)):
        frame = (x[t] - net.input_mean) / net.input_std
        frame = net.projection.weight @ frame + net.projection.bias
        if mask[t]:
            frame = net.mask_embedding
        frames.append(frame + net.position_embedding[t])
    x = torch.stack(frames)[None]

    outputs = []
    for layer in net.layers:

        def attend(y, layer=layer):
            return layer.self_attn(y, y, y, need_weights=False)[0]

        def feed(y, layer=layer):
            return layer.linear2(F.gelu(layer.linear1(y)))

        if pre_norm:
            x = x + attend(layer.norm1(x))
            x = x + feed(layer.norm2(x))
        else:
            x = layer.norm1(x + attend(x))
            x = layer.norm2(x + feed(x))
        outputs.append(x[0])

    weights = net.layer_weights.exp() / net.layer_weights.exp().sum()
    z = sum(weight * output for weight, output in zip(weights, outputs))
    z = (z - z.mean(dim=-1, keepdim=True)) / torch.sqrt(
        z.var(dim=-1, keepdim=True, unbiased=False) + net.norm.eps
    )
    z = z * net.norm.weight + net.norm.bias
    aggregated = z
    linears = [m for m in net.mlp if isinstance(m, torch.nn.Linear)]
    assert len(linears) == mlp_layers
    for number, linear in enumerate(linears, start=1):
        aggregated = aggregated @ linear.weight.T + linear.bias
        if number < len(linears):
            aggregated = F.gelu(aggregated)
    return z + aggregated if net.mlp_residual else aggregated


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mlp_residual": True},
        {"normalize_before": False},
        {"num_layers": 1, "mlp_layers": 1},
        {"mlp_layers": 0, "nhead": 4},
    ],
    ids=str,
)
def test_forward_equals_the_equations_step_by_step(overrides):
    net = make_net(**overrides).double()
    (x,), (mask,) = make_utterances([9], INPUT_SIZE), make_masks([9])
    assert 0 < mask.sum() < 9
    z = net(x.double()[None], torch.ones(1), mask[None])[0]
    pre_norm = overrides.get("normalize_before", True)
    mlp_layers = overrides.get("mlp_layers", 3)
    expected = naive_forward(net, x.double(), mask, pre_norm, mlp_layers)
    assert_near(z, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fill", [1e6, float("nan")])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [0, 0]], ids=str)
def test_neither_padding_nor_the_batch_changes_a_valid_frame(
    mode, fill, masked, order
):
    net = make_net()
    utterances = make_utterances(LENGTHS, INPUT_SIZE)
    masks = make_masks(LENGTHS)
    feats, lens = pad_batch([utterances[i] for i in order], fill, MAX_FRAMES)
    mask = pad_masks([masks[i] for i in order], MAX_FRAMES)
    together = run(net, mode, feats, lens, mask if masked else None)
    for row, i in zip(together, order):
        mask = masks[i][None] if masked else None
        alone = run(net, mode, utterances[i][None], torch.ones(1), mask)[0]
        assert_near(row[: LENGTHS[i]], alone)
        assert (alone != 0).any(dim=-1).all()
        assert (row[LENGTHS[i] :] == 0).all()


def test_input_statistics_are_part_of_the_weights():
    net = make_net()
    other = WAPTransformer(INPUT_SIZE, D_MODEL, 3, 2, 12, 0.0, MAX_FRAMES)
    assert not other.has_input_statistics()
    other.load_state_dict(net.state_dict())
    assert other.has_input_statistics()
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    assert torch.equal(other(feats, lens), net(feats, lens))
    mean, std = make_statistics()
    # a dimension that never varies stays finite
    net.set_input_statistics(mean, torch.zeros_like(std))
    assert torch.isfinite(net(mean.expand_as(feats), lens)).all()


def test_masked_features_do_not_leak_into_any_frame():
    net = make_net()
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    mask = pad_masks(make_masks(LENGTHS), max(LENGTHS))
    changed = torch.where(mask[:, :, None], 100.0 - feats, feats)
    assert torch.equal(net(changed, lens, mask), net(feats, lens, mask))
    # and without the mask, or with an empty one, they do matter
    unmasked = net(feats, lens)
    assert torch.equal(net(feats, lens, torch.zeros_like(mask)), unmasked)
    assert not torch.allclose(net(changed, lens), unmasked)


def test_gradients_reach_every_parameter_and_visible_frame():
    net = make_net()
    utterances = make_utterances([MAX_FRAMES, 5], INPUT_SIZE)
    feats, lens = pad_batch(utterances, 3.0)
    feats.requires_grad_()
    mask = pad_masks(make_masks([MAX_FRAMES, 5]), MAX_FRAMES)
    net(feats, lens, mask).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name
    # every position in use, not just some; no padding
    assert (net.position_embedding.grad != 0).any(dim=-1).all()
    visible = ~mask & (torch.arange(MAX_FRAMES) < torch.tensor([[99], [5]]))
    assert torch.equal((feats.grad != 0).any(dim=-1), visible)


def test_dropout_is_active_in_training_only():
    net = make_net(dropout=0.5)
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    first, second = (run(net, "train", feats, lens) for _ in range(2))
    assert not torch.allclose(first, second)
    for mode in ("eval", "inference"):
        first, second = (run(net, mode, feats, lens) for _ in range(2))
        assert torch.equal(first, second)


def test_the_longest_allowed_input_passes_and_a_longer_one_raises():
    net = make_net()
    z = net(torch.zeros(1, MAX_FRAMES, INPUT_SIZE), torch.ones(1))
    assert z.shape == (1, MAX_FRAMES, D_MODEL)
    with pytest.raises(RecipeError, match=f"max_frames = {MAX_FRAMES}"):
        net(torch.zeros(1, MAX_FRAMES + 1, INPUT_SIZE), torch.ones(1))


def test_several_encoder_layers_are_averaged_with_softmax_weights():
    net = WAPTransformer(
        INPUT_SIZE, d_model=D_MODEL, nhead=2, d_ffn=12, num_encoder_layers=3
    ).eval()
    mean = torch.rand(3, INPUT_SIZE, generator=generator(1))
    net.set_input_statistics(mean, mean + 0.5)
    randomise_(net)
    feats = torch.rand(2, 6, 3, INPUT_SIZE, generator=generator(2))
    lens = torch.tensor([1.0, 0.5])
    single = WAPTransformer(INPUT_SIZE, d_model=D_MODEL, nhead=2, d_ffn=12)
    state = net.state_dict()
    weights = state.pop("encoder_layer_weights").exp()
    assert len(set(weights.tolist())) == 3
    state["input_mean"] = torch.zeros(INPUT_SIZE)
    state["input_std"] = torch.ones(INPUT_SIZE)
    single.load_state_dict(state)
    average = torch.zeros(2, 6, INPUT_SIZE)
    for layer in range(3):
        standardised = (feats[:, :, layer] - mean[layer]) / (mean[layer] + 0.5)
        average += weights[layer] / weights.sum() * standardised
    assert_near(net(feats, lens), single.eval()(average, lens))


def make_start(**overrides):
    """Makes a net as a training starts with."""
    torch.manual_seed(3)
    settings = {"nhead": 2, "d_ffn": 12, "dropout": 0.0, **overrides}
    return WAPTransformer(INPUT_SIZE, max_frames=MAX_FRAMES, **settings)


@pytest.mark.parametrize("d_model", [4, 8])
def test_an_orthogonal_projection_turns_frames_or_drops_dimensions(d_model):
    weight = make_start(d_model=d_model, projection_init="orthogonal")
    assert not weight.projection.bias.any()
    weight = weight.projection.weight
    product = weight @ weight.T if d_model < INPUT_SIZE else weight.T @ weight
    assert_near(product, torch.eye(min(d_model, INPUT_SIZE)))


def test_residuals_start_at_a_share_of_what_they_were():
    whole, half, none = (
        make_start(d_model=D_MODEL, residual_init=scale, mlp_residual=True)
        for scale in (1.0, 0.5, 0.0)
    )
    for layer in range(3):
        ends = [net.layers[layer].linear2.weight for net in (whole, half)]
        assert_near(ends[1], 0.5 * ends[0])
    # without them, a net starts by passing on its input
    x, lens = pad_batch(make_utterances([7], INPUT_SIZE))
    projected = none.projection(x[0]) + none.position_embedding[:7]
    assert_near(none(x, lens)[0], F.layer_norm(projected, [D_MODEL]))
