"""The teacher branch (Sec. II-B.1, Eq. 2)."""

import copy

import torch
from torch import nn

from speechbrain_wap.errors import RecipeError, check_number
from speechbrain_wap.schedules import Schedule


class EMATeacher(nn.Module):
    """Exponential moving average of the student (Eq. 2).

    Starts as the student's copy, carries no gradient, and is always in eval
    mode, whatever ``train()`` is called on the modules around it.

    Arguments
    ---------
    student : torch.nn.Module
        The student branch.
    ema_decay : float
        alpha of Eq. 2, 0 to 1 (the paper: 0.999), at the end of the training.
    ema_decay_start : float, optional
        alpha at its start (D20), from which it rises linearly; the same by
        default.

    Example
    -------
    >>> student = nn.Linear(3, 3)
    >>> teacher = EMATeacher(student, ema_decay=0.9)
    >>> teacher.update(student)
    >>> teacher.train().training
    False
    """

    def __init__(self, student, ema_decay=0.999, ema_decay_start=None):
        super().__init__()
        if ema_decay_start is None:
            ema_decay_start = ema_decay
        check_number("ema_decay", ema_decay, least=0.0, most=1.0)
        check_number("ema_decay_start", ema_decay_start, least=0.0, most=1.0)
        if ema_decay_start > ema_decay:
            raise RecipeError(
                f"ema_decay_start ({ema_decay_start}) must not be above "
                f"ema_decay ({ema_decay}), to which it rises."
            )
        self.ema_schedule = Schedule(ema_decay_start, ema_decay)
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stays in eval mode: the targets must not depend on dropout."""
        del mode  # is torch's interface
        return super().train(False)

    @torch.no_grad()
    def update(self, student, progress=1.0):
        """Moves the teacher towards the student, once per step (Eq. 2).

        Arguments
        ---------
        student : torch.nn.Module
            The student branch, wrapped for distributed training or not.
        progress : float
            Share of the training that is done, 0 to 1, by which alpha rises.
        """
        # theta_t <- alpha * theta_t + (1 - alpha) * theta_s  (Eq. 2)
        alpha = self.ema_schedule(progress)
        torch._foreach_lerp_(
            list(self.model.parameters()),
            list(student.parameters()),
            1.0 - alpha,
        )
        for mine, theirs in zip(self.model.buffers(), student.buffers()):
            mine.copy_(theirs)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        """Computes the targets Z^t: takes and gives what the student does."""
        return self.model(*args, **kwargs)
