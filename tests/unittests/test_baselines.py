"""Laws of all baselines; the linear one against numpy."""

from functools import partial
from types import SimpleNamespace

import numpy as np
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
from torch.nn import functional as F

from speechbrain_wap.baselines.glrf import GLRF
from speechbrain_wap.baselines.linear import MeanPoolingClassifier
from speechbrain_wap.baselines.lpmn import LPMN
from speechbrain_wap.baselines.spk_norm import SpkNorm
from speechbrain_wap.baselines.w2v2_pt import W2v2PT
from speechbrain_wap.errors import RecipeError

DIM, CLASSES = 3, 4
LENGTHS = [5, 9, 1, 6]
SmallLPMN = partial(LPMN, num_prototypes=6, d_model=16)
SmallGLRF = partial(GLRF, d_model=4, nhead=2, segment_frames=4, dropout=0.0)
SYSTEMS = [MeanPoolingClassifier, W2v2PT, SpkNorm, SmallGLRF, SmallLPMN]
each_system = pytest.mark.parametrize("system", SYSTEMS)


def make_frames(num_layers=1):
    """Draws utterances [n, D], or [n, L, D] of several layers."""
    several = [num_layers] * (num_layers > 1)
    return make_utterances(LENGTHS, *several, DIM)


def make_hook_batches(utterances):
    """Batches of one utterance and one speaker each, as hooks see them."""
    return [
        PaddedBatch([{"feats": x, "target": n % CLASSES, "speaker_index": n}])
        for n, x in enumerate(utterances)
    ]


def make_system(system, num_layers=1):
    """Makes a system that has seen its training data, in eval mode."""
    model = system(DIM, num_layers)
    model.set_classes(CLASSES)
    model.before_fit(make_hook_batches(make_frames(num_layers)))
    return randomise_(model).eval()


@each_system
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("fill", [1e4, float("nan")])
def test_an_utterances_logits_do_not_depend_on_its_batch(
    system, num_layers, fill
):
    model = make_system(system, num_layers)
    utterances = make_frames(num_layers)
    feats, lens = pad_batch(utterances, fill, num_steps=12)
    mask = torch.rand(feats.shape[:2], generator=generator(3)) < 0.4
    for masked in (None, mask):
        logits = model(feats, lens, masked)
        for number, x in enumerate(utterances):
            alone = None if masked is None else masked[[number], : len(x)]
            assert_near(model(x[None], torch.ones(1), alone)[0], logits[number])
        backwards = None if masked is None else masked.flip(0)
        again = model(feats.flip(0), lens.flip(0), backwards)
        assert_near(again.flip(0), logits)
    nothing = torch.full_like(feats[:1], fill)
    more = model(torch.cat([feats, nothing]), F.pad(lens, (0, 1)))
    assert_near(more[:-1], model(feats, lens))
    assert torch.isfinite(more).all()


@pytest.mark.parametrize("system", SYSTEMS[1:])  # the linear one: below
@pytest.mark.parametrize("num_layers", [1, 2])
def test_frames_are_standardised_as_the_training_utterances_are(
    system, num_layers
):
    model = system(DIM, num_layers)
    model.set_classes(CLASSES)
    model.before_fit(make_hook_batches(make_frames(num_layers)))
    frames = torch.cat(make_frames(num_layers))
    assert_near(model.input_mean, frames.mean(dim=0))
    assert_near(model.input_std, frames.std(dim=0, correction=0))


@each_system
def test_what_a_masked_frame_holds_changes_nothing(system):
    model = make_system(system)
    (x,) = make_utterances([8], DIM)
    mask = torch.arange(8)[None] % 3 == 1
    other = torch.where(mask[0, :, None], 7.0, x)
    lens = torch.ones(1)
    assert_near(model(x[None], lens, mask), model(other[None], lens, mask))
    assert (model(x[None], lens) - model(other[None], lens)).abs().max() > 0.01


@each_system
@pytest.mark.parametrize("num_layers", [1, 2])
def test_losses_reach_all_parameters_whatever_the_padding(system, num_layers):
    model = make_system(system, num_layers)
    feats, lens = pad_batch(make_frames(num_layers), float("nan"))
    logits = model.train()(feats, lens)
    target = torch.arange(len(LENGTHS))
    losses = {"cross_entropy": F.cross_entropy(logits, target)}
    if hasattr(model, "losses"):
        batch = SimpleNamespace(target=target, speaker=target)
        losses.update(model.losses(logits, batch))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "options, says",
    [
        ({"d_model": 0}, "d_model=0 must be"),
        ({"d_model": -1}, "d_model=-1 must be"),
        ({"dropout": 2}, "dropout=2 must be a number from 0 to 1"),
    ],
)
@pytest.mark.parametrize("system", [W2v2PT, SpkNorm, GLRF])
def test_sizes_and_probabilities_that_cannot_be_are_refused(
    system, options, says
):
    with pytest.raises(RecipeError, match=says):
        system(DIM, **options)


@each_system
def test_a_checkpoint_is_the_whole_system(system):
    model, other = make_system(system, 2), system(DIM, 2)
    other.set_classes(CLASSES)
    other.eval().load_state_dict(model.state_dict())
    feats, lens = pad_batch(make_frames(2))
    assert torch.equal(other(feats, lens), model(feats, lens))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("fill", [1e4, float("nan")])
@pytest.mark.parametrize("is_measured", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_are_those_of_the_mean_of_the_valid_unmasked_frames(
    num_layers, fill, is_measured, dtype
):
    model = MeanPoolingClassifier(DIM, num_layers)
    model.set_classes(CLASSES)
    utterances = [x.to(dtype) for x in make_frames(num_layers)]
    means = [x.double().numpy().reshape(-1, DIM).mean(0) for x in utterances]
    centre, spread = np.zeros(DIM), np.ones(DIM)
    if is_measured:
        model.before_fit([PaddedBatch([{"feats": x}]) for x in utterances])
        centre, spread = np.mean(means, axis=0), np.std(means, axis=0)
    feats, lens = pad_batch(utterances, fill)
    mask = torch.zeros(feats.shape[:2], dtype=torch.bool)
    mask[0, 1:3] = mask[1, 8] = True
    mask[2:] = True  # as a whole: then as if nothing were masked
    weight, bias = model.classifier.w.weight, model.classifier.w.bias
    weight, bias = weight.detach().numpy(), bias.detach().numpy()
    for masked in (False, True):
        logits = model(feats, lens, mask if masked else None)
        for row, x, hidden in zip(logits, utterances, mask.numpy()):
            frames = x.double().numpy().reshape(len(x), -1, DIM).mean(axis=1)
            hidden = hidden[: len(x)]
            if masked and not hidden.all():
                frames = frames[~hidden]
            pooled = (frames.mean(axis=0) - centre) / spread
            assert_near(row, weight @ pooled + bias)


def test_what_is_measured_is_part_of_the_checkpoint_and_finite():
    model, other = (MeanPoolingClassifier(DIM) for _ in range(2))
    for one in (model, other):
        one.set_classes(CLASSES)
    frames = torch.ones(4, DIM)  # that do not vary
    model.before_fit([PaddedBatch([{"feats": frames}]) for _ in range(3)])
    other.load_state_dict(model.state_dict())
    logits = other(frames[None], torch.ones(1))
    assert_near(logits[0], model.classifier.w.bias)
    # what did not vary in training is only shifted
    change = other(1.01 * frames[None], torch.ones(1)) - logits
    assert_near(change[0], 0.01 * model.classifier.w.weight.sum(dim=1))
