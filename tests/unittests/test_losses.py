"""The losses of adapter training against plain loops (Eq. 1, 6)."""

import math

import pytest
import torch
from helpers import assert_near, generator

from speechbrain_wap.losses import (
    AdapterObjective,
    masked_reconstruction_loss,
    pseudo_label_loss,
)
from speechbrain_wap.schedules import Schedule

B, T, D = 3, 7, 5


def make_batch():
    """Draws student and teacher frames and a mask of uneven rows."""
    source = generator()
    student, teacher = torch.randn(2, B, T, D, generator=source)
    mask = torch.rand(B, T, generator=source) < 0.4
    assert len(set(mask.sum(dim=1).tolist())) > 1
    return student, teacher, mask


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reconstruction_loss_is_equation_1(reduction):
    student, teacher, mask = make_batch()
    total, num_masked = 0.0, 0
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                num_masked += 1
                for d in range(D):
                    difference = teacher[b, t, d] - student[b, t, d]
                    total += float(difference) ** 2
    expected = total / num_masked
    if reduction == "mean":
        expected /= D
    loss = masked_reconstruction_loss(student, teacher, mask, reduction)
    assert loss.shape == ()
    assert_near(loss, expected)
    # the same of the masked frames alone
    frames = student[mask], teacher[mask]
    assert masked_reconstruction_loss(*frames, reduction=reduction) == loss


def test_loss_and_gradient_are_the_students_on_masked_frames_alone():
    student, teacher, mask = make_batch()
    loss = masked_reconstruction_loss(student, teacher, mask)
    # the printed equation is the default
    assert loss == masked_reconstruction_loss(student, teacher, mask, "sum")
    teacher[~mask] = student[~mask] = float("nan")
    assert masked_reconstruction_loss(student, teacher, mask) == loss
    teacher[~mask] = student[~mask] = 1e6
    student.requires_grad_()
    teacher.requires_grad_()
    masked_reconstruction_loss(student, teacher, mask).backward()
    expected = 2.0 * (student - teacher) / mask.sum()
    assert_near(student.grad, expected.masked_fill(~mask[:, :, None], 0.0))
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_pseudo_label_loss_is_the_negative_log_softmax(scale):
    logits = scale * torch.randn(6, 4, generator=generator())
    codes = torch.tensor([0, 3, 1, 1, 2, 0])
    total = 0.0
    for row, code in zip(logits.double().tolist(), codes.tolist()):
        # shifted by the largest, as exp(200) is too large
        norm = sum(math.exp(value - max(row)) for value in row)
        total -= row[code] - max(row) - math.log(norm)
    assert_near(pseudo_label_loss(logits, codes), total / 6, atol=1e-6 * scale)


def test_losses_are_float32_for_inputs_of_low_precision():
    student, teacher, mask = make_batch()
    low = [branch.bfloat16() for branch in (student, teacher)]
    loss = masked_reconstruction_loss(*low, mask)
    assert loss.dtype == torch.float32
    # the difference is not rounded to bfloat16 either
    exact = masked_reconstruction_loss(low[0].float(), low[1].float(), mask)
    assert_near(loss, exact)
    logits = torch.randn(6, 4, generator=generator()).bfloat16()
    codes = torch.tensor([0, 3, 1, 1, 2, 0])
    loss = pseudo_label_loss(logits, codes)
    assert loss.dtype == torch.float32
    assert_near(loss, pseudo_label_loss(logits.float(), codes), atol=0.0)


def test_losses_of_no_frames_are_zero_and_part_of_the_graph():
    """As where a rank has nothing but a repeated utterance."""
    z = torch.zeros(0, D, requires_grad=True)
    logits, codes = z @ torch.ones(D, 4), torch.zeros(0, dtype=torch.long)
    losses = AdapterObjective()(z, z.detach(), logits, codes, 0.5)
    assert {loss.item() for loss in losses.values()} == {0.0}
    losses["loss"].backward()
    assert z.grad.shape == (0, D)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_objective_joins_the_losses_by_the_progress(reduction):
    student, teacher, mask = make_batch()
    z, targets = student[mask].requires_grad_(), teacher[mask]
    logits = z @ torch.randn(D, 4, generator=generator(1))
    codes = torch.arange(len(z)) % 4
    objective = AdapterObjective(reduction, Schedule(0.9, 0.6))
    losses = objective(z, targets, logits, codes, 0.5)
    rec_loss = masked_reconstruction_loss(z, targets, reduction=reduction)
    pce_loss = pseudo_label_loss(logits, codes)
    assert list(losses) == ["loss", "rec_loss", "pce_loss"]
    assert losses["rec_loss"] == rec_loss and losses["pce_loss"] == pce_loss
    expected = 0.75 * rec_loss + 0.25 * pce_loss  # Eq. 6
    assert_near(losses["loss"], expected)
    weights = [AdapterObjective().rec_weight(x) for x in (0.0, 0.5, 1.0)]
    assert weights == [1.0, 0.75, 0.5]  # unless told
