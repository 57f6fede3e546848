"""Backbone, pooling and classifier against the parts by hand (Sec. II-C)."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    assert_near,
    generator,
    make_utterances,
    pad_batch,
    randomise_,
)
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_wap.emotion_model import EmotionModel
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.frame_input import measure_frames
from speechbrain_wap.pooling import StatisticalAttentivePooling
from speechbrain_wap.wap_transformer import WAPTransformer

DIM, CLASSES = 3, 4
LENGTHS = [5, 9, 1]


def make_model(num_encoder_layers=1, dropout=0.0, **norms):
    """Makes a model with random numbers all over, in eval mode."""
    model = EmotionModel(
        partial(WAPTransformer, d_model=4, nhead=2, d_ffn=4, dropout=dropout),
        partial(StatisticalAttentivePooling, num_heads=2),
        input_size=DIM,
        num_encoder_layers=num_encoder_layers,
        **norms,
    )
    model.set_classes(CLASSES)
    return randomise_(model).eval()


class Backbone(torch.nn.Module):
    """The least that a backbone may be."""

    d_model = 2

    def __init__(self, input_size, num_encoder_layers):
        super().__init__()

    def forward(self, feats, lens, mask):
        return feats[:, :, :2]


class Pooling(torch.nn.Module):
    """The least that a pooling may be."""

    def __init__(self, input_size):
        super().__init__()
        self.output_size = input_size

    def forward(self, z, lens):
        return z.amax(dim=1)


def make_frames(num_encoder_layers=1):
    """Draws utterances [n, D], or [n, L, D] of several layers."""
    several = [num_encoder_layers] * (num_encoder_layers > 1)
    return make_utterances(LENGTHS, *several, DIM)


def compute_by_hand(model, x, mask):
    """Computes the logits of one utterance from the model's parts."""
    one = torch.ones(1)
    z = model.backbone(x[None], one, mask[None])
    pooled = model.pooling(z, one)[0]
    linear = model.classifier.w
    return linear.weight @ pooled + linear.bias


@pytest.mark.parametrize("num_encoder_layers", [1, 3])
@pytest.mark.parametrize("fill", [1e6, float("nan")])
def test_logits_are_those_of_the_parts_whatever_the_padding(
    num_encoder_layers, fill
):
    model = make_model(num_encoder_layers)
    utterances = make_frames(num_encoder_layers)
    feats, lens = pad_batch(utterances, fill)
    mask = torch.rand(feats.shape[:2], generator=generator(3)) < 0.4
    logits = model(feats, lens, mask)
    assert logits.shape == (len(LENGTHS), CLASSES)
    for x, row, its_mask in zip(utterances, logits, mask):
        expected = compute_by_hand(model, x, its_mask[: len(x)])
        assert_near(row, expected)
    # a mask is none where nothing is masked, and matters elsewhere
    nothing = model(feats, lens, torch.zeros_like(mask))
    assert torch.equal(nothing, model(feats, lens))
    assert not torch.allclose(nothing, logits)


def list_batches(utterances):
    """Makes batches of one utterance each, as the script does."""
    return [PaddedBatch([{"feats": x}]) for x in utterances]


@pytest.mark.parametrize("num_encoder_layers", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_what_is_measured_before_training_is_of_the_utterances_alone(
    num_encoder_layers, norm
):
    norms = {"input_norm": norm, "pooled_norm": norm}
    model = make_model(num_encoder_layers, dropout=0.5, **norms)
    utterances = make_frames(num_encoder_layers)
    model.train()
    before = torch.get_rng_state()
    model.before_fit(list_batches(utterances))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model.backbone.dropout.training

    backbone, pooling = model.eval().backbone, model.pooling
    assert backbone.has_input_statistics() == norm
    mean, std = pooling.output_mean.clone(), pooling.output_std.clone()
    if not norm:
        assert not mean.any() and (std == 1.0).all()
        return
    frames = torch.cat(utterances).double()
    assert_near(backbone.input_mean, frames.mean(dim=0))
    assert_near(backbone.input_std, frames.std(dim=0, unbiased=False))
    pooling.set_output_statistics(torch.zeros(16), torch.ones(16))
    one = torch.ones(1)
    with torch.no_grad():
        pooled = torch.cat([model.pool(x[None], one) for x in utterances])
    assert_near(mean, pooled.double().mean(dim=0))
    assert_near(std, pooled.double().std(dim=0, unbiased=False))
    # the input statistics of an adapter are kept
    backbone.set_input_statistics(2 + backbone.input_mean, backbone.input_std)
    before = backbone.input_mean.clone()
    model.before_fit(list_batches(utterances))
    assert torch.equal(backbone.input_mean, before)


def test_measured_frames_count_as_often_as_the_training_sees_them():
    utterances = [x.half() for x in make_frames(2)]
    mean, std = measure_frames(zip(utterances, [1.0, 2.0, 3.0]))
    one, two, three = (x.double() for x in utterances)
    frames = torch.cat([one, two, two, three, three, three])
    assert_near(mean, frames.mean(dim=0))
    assert_near(std, frames.std(dim=0, unbiased=False))


def test_any_backbone_and_pooling_may_be_wired():
    with pytest.raises(RecipeError, match="True needs set_input_statistics"):
        EmotionModel(Backbone, Pooling, DIM)

    class Half(Backbone):
        def set_input_statistics(self, mean, std):
            """Is not all that is asked for."""

    with pytest.raises(RecipeError, match="True needs has_input_statistics"):
        EmotionModel(Half, Pooling, DIM)
    model = EmotionModel(Backbone, Pooling, DIM, input_norm=False)
    model.set_classes(CLASSES)
    feats, lens = pad_batch(make_frames())
    expected = model.classifier(feats[:, :, :2].amax(dim=1))
    assert torch.equal(model(feats, lens), expected)
    model.before_fit([SimpleNamespace()])  # has nothing to measure


# As torch's own modules ------------------------------------------------------


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.double])
def test_a_model_may_be_of_any_precision(dtype, several, record_fault):
    model = make_model(several)
    feats, lens = pad_batch(make_frames(several))
    mask = torch.arange(feats.shape[1]).remainder(2)[None] == torch.ones(3, 1)
    expected = model(feats, lens, mask)
    model.to(dtype)
    logits = model(feats, lens, mask)  # features may be of another one
    assert logits.dtype == dtype
    assert_near(logits, expected, 0.1)
    logits.float().square().sum().backward()
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()
    fault = f"all in {dtype}, {several} encoder layers"
    record_fault("modules", fault, f"logits in {dtype}, gradients", "")


def test_gradients_are_those_of_finite_differences():
    model = make_model().double()
    feats, lens = pad_batch([x.double() for x in make_frames()])
    feats.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, lens), feats)


def test_without_lengths_all_frames_are_valid(record_fault):
    model = make_model()
    (x,) = make_utterances([6], DIM)
    feats = torch.stack([x, 2 * x])
    assert torch.equal(model(feats), model(feats, torch.ones(2)))
    assert torch.equal(model.pool(feats), model.pool(feats, torch.ones(2)))
    record_fault("modules", "lens=None", "all frames are valid", "")


def test_an_utterance_of_length_zero_changes_no_other(record_fault):
    model = make_model()
    feats, lens = pad_batch(make_frames())
    more = torch.cat([feats, torch.full_like(feats[:1], float("nan"))])
    logits = model(more, torch.cat([lens, torch.zeros(1)]))
    assert_near(logits[:-1], model(feats, lens))
    # what the classifier says of nothing, and where there is nothing else
    assert torch.equal(logits[-1], model.classifier.w.bias)
    alone = model(feats[:1], torch.zeros(1))
    assert torch.equal(alone, model.classifier.w.bias[None])
    alone.sum().backward()
    happened = "embedding 0; others as without it"
    record_fault("modules", "an utterance of length 0", happened, "")


@pytest.mark.parametrize("num_encoder_layers", [1, 2])
def test_an_exported_graph_takes_any_batch(num_encoder_layers, record_fault):
    model = make_model(num_encoder_layers)
    feats, lens = pad_batch(make_frames(num_encoder_layers))
    batch, frames = (torch.export.Dim(name, max=30) for name in "BT")
    shapes = {0: batch, 1: frames}
    graph = torch.export.export(
        model, (feats, lens), dynamic_shapes=(shapes, {0: batch})
    ).module()
    for lengths in ([7], [1], [2, 1, 2, 2], [30, 4, 11, 0]):
        several = [num_encoder_layers] * (num_encoder_layers > 1)
        utterances = make_utterances(lengths, *several, DIM)
        feats, lens = pad_batch(utterances)
        assert_near(graph(feats, lens), model(feats, lens))
    fault = f"torch.export, {num_encoder_layers} encoder layers"
    record_fault("modules", fault, "same logits for any batch and length", "")
