"""The linear classifier on mean-pooled frames against numpy."""

import numpy as np
import pytest
import torch
from helpers import assert_near, make_utterances, pad_batch
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_wap.baselines.linear import MeanPoolingClassifier

DIM, CLASSES = 3, 4
LENGTHS = [5, 9, 1, 6]


def make_frames(num_layers=1):
    """Draws utterances [n, D], or [n, L, D] of several layers."""
    several = [num_layers] * (num_layers > 1)
    return make_utterances(LENGTHS, *several, DIM)


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
