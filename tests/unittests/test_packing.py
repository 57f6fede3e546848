"""Laws of packed frames: nothing but padding is left out."""

import pytest
import torch
from helpers import (
    assert_near,
    generator,
    make_utterances,
    pad_batch,
    randomise_,
)
from torch import nn
from torch.nn import functional as F

from speechbrain_wap import packing as packing_module
from speechbrain_wap.packing import (
    LIKE_LENGTH_CPU,
    LIKE_LENGTH_GPU,
    Packing,
    lay_out,
    valid_frames,
)
from speechbrain_wap.wap_transformer import TransformerLayer, WAPTransformer

LENGTHS = [[4, 4, 4], [3, 9, 1, 8, 2, 9], [1, 40, 33, 32, 31, 7]]


@pytest.mark.parametrize("num_steps", [1, 2, 49, 300, 1499])
def test_relative_lengths_give_back_every_number_of_frames(num_steps):
    expected = torch.arange(1, num_steps + 1)
    # the division in float32, as in a SpeechBrain batch
    num_frames, valid = valid_frames(expected / num_steps, num_steps)
    assert torch.equal(num_frames, expected)
    assert torch.equal(valid, torch.ones_like(valid).tril())


# groups as on a CPU and as on a GPU
LIKE_LENGTHS = [LIKE_LENGTH_CPU, LIKE_LENGTH_GPU]


@pytest.mark.parametrize("like_length", LIKE_LENGTHS)
def test_groups_are_of_like_lengths_and_cover_all(like_length):
    lengths = [1, 40, 33, 32, 31, 7]
    packing = Packing(lengths, 40, "cpu", like_length)
    assert sum(g.num_frames for g in packing.groups) == sum(lengths)
    for group in packing.groups:
        places = group.shape[0] * group.shape[1]
        assert group.num_frames >= like_length * places
        if group.mask is not None:
            # with others, a GPU would copy the mask in every layer
            mask = group._cast_mask(torch.bfloat16)
            assert all(step % 8 == 0 for step in mask.stride()[:3])
            assert mask.shape[3] == group.shape[1]
            assert (
                group._cast_mask(torch.bfloat16).data_ptr() == mask.data_ptr()
            )
    # unless told, the device decides
    assert len(Packing([10, 9], 10, "cpu").groups) == 2
    assert len(Packing([10, 9], 10, "meta").groups) == 1


def test_attention_leaves_out_kernels_that_plan_each_shape_anew(monkeypatch):
    """cuDNN's, which torch prefers on an H100 in half precision."""
    allowed, attend = [], F.scaled_dot_product_attention

    def watch(*args, **kwargs):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **kwargs)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    Packing([3, 2], 3, "cpu").attend(torch.rand(5, 12), num_heads=2)
    assert allowed == [False, False]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("like_length", LIKE_LENGTHS)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_packed_layer_equals_torchs_on_the_utterance_alone(
    lengths, norm_first, like_length
):
    mine = TransformerLayer(8, 2, 16, 0.0, norm_first)
    randomise_(mine)
    torchs = nn.TransformerEncoderLayer(
        *(8, 2, 16, 0.0, "gelu"), batch_first=True, norm_first=norm_first
    )
    torchs.load_state_dict(mine.state_dict())
    utterances = make_utterances(lengths, 8)
    x, _ = pad_batch(utterances)
    packing = Packing(lengths, x.shape[1], "cpu", like_length)
    out = packing.unpack(mine(packing.pack(x), packing))
    total = 0.0
    for row, utterance in zip(out, utterances):
        alone = torchs(utterance[None])[0]
        assert_near(row[: len(utterance)], alone)
        total = total + alone.square().sum()
    # and so do the gradients
    out.square().sum().backward()
    total.backward()
    for (name, a), b in zip(mine.named_parameters(), torchs.parameters()):
        gradient = b.grad.clone()
        if name.endswith("in_proj_bias"):
            gradient.view(3, -1)[1] = 0.0  # see _zero_keys_gradient
        scale = max(1.0, float(gradient.abs().max()))
        assert_near(a.grad / scale, gradient / scale)


def test_attention_in_bfloat16_is_computed_in_float32_on_a_cpu():
    packing = Packing([6, 3], 6, "cpu")
    x = torch.randn(9, 24, generator=generator()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        attended = packing.attend(x, 2)
    assert attended.dtype == torch.bfloat16
    assert torch.equal(attended, packing.attend(x.float(), 2).bfloat16())


def test_a_layout_is_kept_for_the_next_network_and_any_mode():
    lens = torch.tensor([1.0, 0.5])
    with torch.inference_mode():
        first = lay_out(lens, 6, torch.device("cpu"))
    assert lay_out(lens.clone(), 6, torch.device("cpu")) is first
    assert lay_out(lens, 8, torch.device("cpu")) is not first
    net = WAPTransformer(4, 8, 1, 2, 16, max_frames=12)
    with torch.inference_mode():
        net(torch.rand(2, 6, 4), lens)
    # a training may come upon what an evaluation has laid out
    net(torch.rand(2, 6, 4), lens).sum().backward()


@pytest.mark.parametrize("norm_first", [True, False])
def test_masked_frames_have_the_same_output_where_only_they_are_wanted(
    norm_first,
):
    net = WAPTransformer(
        *(4, 8, 2, 2, 16), 0.0, max_frames=12, normalize_before=norm_first
    )
    randomise_(net)
    x, lens = pad_batch(make_utterances([3, 12, 1, 8], 4))
    valid = torch.arange(12) < (lens * 12).round()[:, None]
    mask = (torch.rand(4, 12, generator=generator()) < 0.4) & valid
    for chosen in (mask, valid, valid & False):
        whole, only = (
            net(x, lens, chosen, only_masked=flag) for flag in (False, True)
        )
        assert_near(only[chosen], whole[chosen])
        assert (only[~chosen] == 0).all()
        gradients = []
        for out in (whole, only):
            net.zero_grad()
            out[chosen].square().sum().backward()
            gradients.append([p.grad for p in net.parameters()])
        for one, two in zip(*gradients):
            scale = max(1.0, float(one.abs().max()))
            assert_near(one / scale, two / scale)


@pytest.mark.parametrize("lengths", [*LENGTHS, [8, 8], [0, 5], [0, 0]], ids=str)
@pytest.mark.parametrize("only_masked", [True, False])
def test_rows_of_nobody_change_nothing(monkeypatch, lengths, only_masked):
    net = WAPTransformer(4, 8, 2, 2, 16, 0.0, max_frames=40)
    randomise_(net)
    num_steps = max(1, *lengths)
    valid = torch.arange(num_steps) < torch.tensor(lengths)[:, None]
    x = torch.randn(*valid.shape, 4, generator=generator())
    mask = (torch.rand(valid.shape, generator=generator()) < 0.4) & valid
    lens, sizes, results = torch.tensor(lengths) / num_steps, [], []
    for part in (net.projection, net.mlp):
        part.register_forward_hook(lambda *given: sizes.append(len(given[2])))
    for rows in (1, 16):
        monkeypatch.setattr(packing_module, "ROWS", rows)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x, lens, mask, only_masked)
        out[mask if only_masked else valid].square().sum().backward()
        results.append([out, *(p.grad for p in net.parameters())])
    assert sizes[0] == sum(lengths)
    assert all(size % 16 == 0 for size in sizes[2:])
    for one, two in zip(*results):
        assert_near(one, two, 0.01 * max(1.0, float(one.detach().abs().max())))


def test_only_half_precision_on_a_cpu_has_rows_of_nobody():
    lens, cpu = torch.tensor([1.0, 0.5]), torch.device("cpu")
    assert len(lay_out(lens, 6, cpu, may_fill=True).places) == 9
    with torch.autocast("cpu", torch.bfloat16):
        assert len(lay_out(lens, 6, cpu, may_fill=True).places) == 64
        assert len(lay_out(lens, 6, cpu).places) == 9
