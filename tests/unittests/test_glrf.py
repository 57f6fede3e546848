"""GLRF: the head-k-pooling loss against its formula; what the frames see."""

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
from torch.nn import functional as F

from speechbrain_wap.baselines.glrf import GLRF, pool_head
from speechbrain_wap.errors import RecipeError

CLASSES = 3
NUM_SEGMENTS = [4, 1, 3]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_loss_is_computed_on_the_k_segments_surest_of_a_class(share):
    scores = torch.randn(3, 4, CLASSES, generator=generator())
    scores = scores.log_softmax(dim=-1).requires_grad_()
    target = torch.tensor([2, 0, 1])
    pooled = pool_head(scores, torch.tensor(NUM_SEGMENTS), share)
    F.cross_entropy(pooled, target, reduction="sum").backward()
    wanted = torch.zeros_like(scores)
    for row, (n, label) in enumerate(zip(NUM_SEGMENTS, target.tolist())):
        k = max(1, int(np.ceil(share * n)))
        found = scores[row, :n].detach().numpy()
        heads = np.argsort(-found, axis=0)[:k]
        means = np.take_along_axis(found, heads, axis=0).mean(axis=0)
        assert_near(pooled[row], means)
        errors = np.exp(means) / np.exp(means).sum()
        errors[label] -= 1.0
        for c in range(CLASSES):
            wanted[row, heads[:, c], c] = float(errors[c] / k)
    assert_near(scores.grad, wanted)


def test_segments_that_say_all_labels_at_once_are_no_solution():
    sure = torch.eye(CLASSES)[None].clamp(min=1e-3).log()
    pooled = pool_head(sure, torch.tensor([CLASSES]), share=0.3)
    loss = F.cross_entropy(pooled, torch.tensor([1]))
    assert_near(loss, np.log(CLASSES))


def test_segments_are_the_means_of_their_frames_and_see_all_others():
    model = randomise_(GLRF(5, d_model=4, nhead=2, segment_frames=4)).eval()
    feats, lens = pad_batch(make_utterances([10, 3], 5), float("nan"))
    segments, num_segments = model.pool(feats, lens)
    assert num_segments.tolist() == [3, 1] and segments.shape == (2, 3, 4)
    whole = GLRF(5, d_model=4, nhead=2, segment_frames=1).eval()
    whole.load_state_dict(model.state_dict())
    frames, _ = whole.pool(feats, lens)
    assert_near(segments[0, 1], frames[0, 4:8].mean(dim=0))
    assert_near(segments[0, 2], frames[0, 8:].mean(dim=0))
    assert_near(segments[1, 0], frames[1, :3].mean(dim=0))
    assert not segments[1, 1:].any()

    # the global layer looks far, the convolutions 2 * 2 frames
    other = feats.clone()
    other[0, 9] += 1.0
    changed = (whole.pool(other, lens)[0] - frames).abs().sum(dim=2)[0] > 1e-6
    assert changed.all()
    whole.fusion.weight.data[:, 4:] = 0.0  # of the global layer
    changed = whole.pool(other, lens)[0] - whole.pool(feats, lens)[0]
    assert changed[0].abs().sum(dim=1).nonzero()[:, 0].min() == 5


def test_heads_that_do_not_divide_the_dimension_are_refused():
    with pytest.raises(RecipeError, match=r"d_model \(10\) must be divisible"):
        GLRF(5, d_model=10)
