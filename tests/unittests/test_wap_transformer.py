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


def naive_forward(net, x, mask, pre_norm):
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

    weights = net.layer_weights
    if net.softmax_weights:
        weights = weights.exp() / sum(weight.exp() for weight in weights)
    z = sum(weight * output for weight, output in zip(weights, outputs))
    z = (z - z.mean(dim=-1, keepdim=True)) / torch.sqrt(
        z.var(dim=-1, keepdim=True, unbiased=False) + net.norm.eps
    )
    z = z * net.norm.weight + net.norm.bias
    aggregated = z
    linears = [m for m in net.mlp if isinstance(m, torch.nn.Linear)]
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
        {"layer_weights": "raw"},
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
    assert_near(z, naive_forward(net, x.double(), mask, pre_norm))


@pytest.mark.parametrize("mlp_layers", [0, 1, 3])
def test_the_mlp_has_as_many_linear_layers_as_asked_for(mlp_layers):
    net = make_net(mlp_layers=mlp_layers)
    linears = [m for m in net.mlp if isinstance(m, torch.nn.Linear)]
    assert len(linears) == mlp_layers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fill", [1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("num_steps", [max(LENGTHS), MAX_FRAMES])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_does_not_change_a_valid_frame(mode, fill, num_steps, masked):
    net = make_net()
    utterances = make_utterances(LENGTHS, INPUT_SIZE)
    masks = make_masks(LENGTHS) if masked else None
    feats, lens = pad_batch(utterances, fill, num_steps)
    padded_mask = pad_masks(masks, num_steps) if masked else None
    together = run(net, mode, feats, lens, padded_mask)
    for row, x in enumerate(utterances):
        mask = masks[row][None] if masked else None
        alone = run(net, mode, x[None], torch.ones(1), mask)[0]
        assert_near(together[row, : len(x)], alone)


@pytest.mark.parametrize("mode", MODES)
def test_padding_comes_out_as_zero(mode):
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE), 1e6)
    z = run(make_net(), mode, feats, lens)
    for row, n in enumerate(LENGTHS):
        assert (z[row, :n] != 0).any(dim=-1).all()
        assert (z[row, n:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 1], [0, 0, 1]], ids=str)
def test_an_utterance_does_not_see_the_rest_of_its_batch(mode, order):
    net = make_net()
    utterances = make_utterances(LENGTHS, INPUT_SIZE)
    whole = run(net, mode, *pad_batch(utterances))
    other = run(net, mode, *pad_batch([utterances[i] for i in order]))
    for row, i in enumerate(order):
        n = LENGTHS[i]
        assert_near(other[row, :n], whole[i, :n])


def test_input_statistics_standardise_the_frames():
    net = make_net()
    plain = WAPTransformer(INPUT_SIZE, D_MODEL, 3, 2, 12, 0.0, MAX_FRAMES)
    # all of the net but its statistics: the plain one has none
    plain.load_state_dict(dict(net.named_parameters()), strict=False)
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    mean, std = make_statistics()
    z = net(feats, lens)
    assert_near(z, plain((feats - mean) / std, lens))
    assert not torch.allclose(z, plain(feats, lens), atol=1e-2)
    # and they are part of the weights
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(feats, lens), z)


def test_a_dimension_that_never_varies_stays_finite():
    net = make_net()
    mean, std = make_statistics()
    std[2] = 0.0
    net.set_input_statistics(mean, std)
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    feats[:, :, 2] = mean[2]
    assert torch.isfinite(net(feats, lens)).all()


def test_layer_weights_start_as_the_plain_average():
    for layer_weights in ("softmax", "raw"):
        net = WAPTransformer(
            INPUT_SIZE, D_MODEL, 4, 2, 8, layer_weights=layer_weights
        )
        assert_near(net.average_weights(), [0.25] * 4)


def test_softmax_layer_weights_are_positive_and_sum_to_one():
    net = make_net(num_layers=5)
    for scale in (0.1, 1.0, 10.0):
        with torch.no_grad():
            net.layer_weights.copy_(scale * torch.tensor([3, -2, 0, 1, -1]))
        weights = net.average_weights()
        assert (weights > 0).all()
        assert_near(weights.sum(), 1.0)
        # not the plain average any more
        assert weights.argmax() == 0 and weights.argmin() == 1


def test_raw_layer_weights_are_free():
    net = make_net(layer_weights="raw")
    free = torch.tensor([2.0, -3.0, 0.0])
    with torch.no_grad():
        net.layer_weights.copy_(free)
    assert_near(net.average_weights(), free, atol=0.0)


@pytest.mark.parametrize("mode", MODES)
def test_masked_features_do_not_leak_into_any_frame(mode):
    net = make_net()
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    mask = pad_masks(make_masks(LENGTHS), max(LENGTHS))
    changed = torch.where(mask[:, :, None], 100.0 - feats, feats)
    z = run(net, mode, feats, lens, mask)
    assert_near(run(net, mode, changed, lens, mask), z, atol=0.0)
    # and without the mask they do matter
    unmasked = run(net, mode, feats, lens)
    assert not torch.allclose(run(net, mode, changed, lens), unmasked)


def test_visible_features_reach_the_masked_frames():
    net = make_net()
    (x,) = make_utterances([6], INPUT_SIZE)
    mask = torch.tensor([[False, True, True, True, True, True]])
    changed = x.clone()
    changed[0] += 1.0
    z, z_changed = (net(f[None], torch.ones(1), mask) for f in (x, changed))
    assert ((z - z_changed).abs().amax(dim=-1) > 1e-4).all()


def test_two_masked_frames_know_where_they_are():
    net = make_net()
    (x,) = make_utterances([6], INPUT_SIZE)
    mask = torch.tensor([[False, True, True, False, True, False]])
    z = net(x[None], torch.ones(1), mask)[0][mask[0]]
    distances = torch.cdist(z, z)[~torch.eye(3, dtype=torch.bool)]
    assert (distances > 1e-3).all()


def test_order_matters_to_a_frame():
    net = make_net()
    (x,) = make_utterances([6], INPUT_SIZE)
    z = net(torch.stack([x, x.flip(0)]), torch.ones(2))
    assert not torch.allclose(z[0], z[1].flip(0), atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_without_masked_frames_is_no_mask(mode):
    net = make_net()
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    empty = torch.zeros(feats.shape[:2], dtype=torch.bool)
    assert_near(
        run(net, mode, feats, lens, empty),
        run(net, mode, feats, lens),
        atol=0.0,
    )


@pytest.mark.parametrize("layer_weights", ["softmax", "raw"])
def test_gradients_reach_every_parameter_where_there_is_a_mask(layer_weights):
    net = make_net(layer_weights=layer_weights)
    utterances = make_utterances([MAX_FRAMES, 5], INPUT_SIZE)
    feats, lens = pad_batch(utterances)
    mask = pad_masks(make_masks([MAX_FRAMES, 5]), MAX_FRAMES)
    net(feats, lens, mask).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name
    # every position in use, not just some
    assert (net.position_embedding.grad != 0).any(dim=-1).all()


def test_padding_gets_no_gradient():
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE), 3.0)
    feats.requires_grad_()
    make_net()(feats, lens).square().sum().backward()
    for row, n in enumerate(LENGTHS):
        assert (feats.grad[row, :n] != 0).any(dim=-1).all()
        assert (feats.grad[row, n:] == 0).all()


def test_dropout_is_active_in_training_only():
    net = make_net(dropout=0.5)
    feats, lens = pad_batch(make_utterances(LENGTHS, INPUT_SIZE))
    first, second = (run(net, "train", feats, lens) for _ in range(2))
    assert not torch.allclose(first, second)
    for mode in ("eval", "inference"):
        first, second = (run(net, mode, feats, lens) for _ in range(2))
        assert torch.equal(first, second)


def test_dropout_starts_at_the_input():
    # where all of it is dropped, nothing is left that tells frames apart
    net = make_net(dropout=1.0)
    (x,) = make_utterances([6], INPUT_SIZE)
    z = run(net, "train", x[None], torch.ones(1))[0]
    assert_near(z, z[:1].expand(6, -1))
    z = run(net, "eval", x[None], torch.ones(1))[0]
    assert not torch.allclose(z, z[:1].expand(6, -1), atol=1e-2)


def test_the_longest_allowed_input_passes_and_a_longer_one_raises():
    net = make_net()
    z = net(torch.zeros(1, MAX_FRAMES, INPUT_SIZE), torch.ones(1))
    assert z.shape == (1, MAX_FRAMES, D_MODEL)
    with pytest.raises(RecipeError, match=f"max_frames = {MAX_FRAMES}"):
        net(torch.zeros(1, MAX_FRAMES + 1, INPUT_SIZE), torch.ones(1))


WHOLE = "must be a whole number of at least"


@pytest.mark.parametrize(
    "setting, mistake",
    [
        *(
            ({name: 0}, f"{name}=0 {WHOLE} 1")
            for name in ("num_layers", "nhead", "d_ffn", "num_encoder_layers")
        ),
        ({"nhead": 3}, r"d_model \(8\) must be divisible by nhead \(3\)"),
        ({"mlp_layers": -1}, f"mlp_layers=-1 {WHOLE} 0"),
        ({"dropout": 1.5}, "dropout=1.5 must be within 0 and 1"),
        ({"residual_init": -1}, "residual_init=-1 must be a number of at le"),
        ({"mlp_residual": 1}, "mlp_residual=1 must be True or False"),
        ({"normalize_before": "no"}, "normalize_before=no must be True or"),
        ({"layer_weights": "soft"}, "layer_weights=soft is .*softmax, raw"),
        ({"projection_init": "pca"}, "=pca is .*random, orthogonal"),
    ],
    ids=str,
)
def test_a_bad_setting_raises_an_error_that_names_it(setting, mistake):
    with pytest.raises(RecipeError, match=mistake):
        make_net(**setting)


def test_statistics_are_told_from_none():
    net = make_start(d_model=D_MODEL)
    nothing = {k: v.clone() for k, v in net.state_dict().items()}
    assert not net.has_input_statistics()
    mean, std = make_statistics()
    for statistics in (
        *((mean, std), (mean, torch.ones_like(std))),
        (torch.zeros_like(mean), std),
    ):
        net.set_input_statistics(*statistics)
        assert net.has_input_statistics()
        other = make_start(d_model=D_MODEL)  # they come with a checkpoint
        other.load_state_dict(net.state_dict())
        assert other.has_input_statistics()
        net.load_state_dict(nothing)
        assert not net.has_input_statistics()


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


def test_without_residuals_a_net_starts_by_passing_on_its_input():
    net = make_start(d_model=D_MODEL, residual_init=0.0, mlp_residual=True)
    x, lens = pad_batch(make_utterances([7], INPUT_SIZE))
    projected = net.projection(x[0]) + net.position_embedding[:7]
    assert_near(net(x, lens)[0], F.layer_norm(projected, [D_MODEL]))


def test_residuals_start_at_a_share_of_what_they_were():
    whole, half = (
        make_start(d_model=D_MODEL, residual_init=scale, mlp_residual=True)
        for scale in (1.0, 0.5)
    )
    scaled = 0
    for (name, one), two in zip(whole.named_parameters(), half.parameters()):
        is_end = "out_proj" in name or "linear2" in name or "mlp.4" in name
        assert_near(two, one * (0.5 if is_end else 1.0))
        scaled += is_end
    assert scaled == 2 * (2 * 3 + 1)
