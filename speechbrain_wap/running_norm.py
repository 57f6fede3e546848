"""Targets standardised by running statistics of the corpus (D6)."""

import torch
from speechbrain.utils.distributed import is_distributed_initialized
from torch import nn


class RunningNorm(nn.Module):
    """Standardises frames, per dimension, by those that came before them.

    Unlike a normalisation by the frame, or by the utterance, it keeps how one
    differs from the other; unlike one by the batch, a frame's target does not
    depend on what else is in the batch. Used as local attributes are: what a
    batch adds counts from the next step on, over all ranks.

    Arguments
    ---------
    dim : int
        Dimension D of the frames.
    decay : float
        What is left of earlier steps' frames at each update, 0 to 1: the
        teacher moves, and its frames with it.

    Example
    -------
    >>> norm = RunningNorm(1)
    >>> norm.initialise_(sum_frames(torch.tensor([[1.0], [3.0]])))
    >>> norm(torch.tensor([[4.0]]))
    tensor([[2.]])
    """

    def __init__(self, dim, decay=0.99):
        super().__init__()
        self.decay = decay
        # how many frames count, their mean and their mean square; in float64,
        # in which the variance, a difference, keeps its digits
        zeros = torch.zeros(2, dim, dtype=torch.float64)
        self.register_buffer("moments", zeros)
        self.register_buffer("count", zeros[0, 0].clone())
        self.collected = None

    @torch.no_grad()
    def initialise_(self, sums):
        """Takes the statistics with which the training begins.

        Arguments
        ---------
        sums : torch.Tensor
            What :func:`sum_frames` gave, added up, shape [3, D].
        """
        self._take(sums.to(self.moments))

    def _take(self, sums):
        """Adds sums to what there is."""
        self.moments.mul_(self.count).add_(sums[1:])
        self.count.add_(sums[0, 0])
        self.moments.div_(self.count.clamp(min=1.0))

    @torch.no_grad()
    def collect_(self, frames):
        """Takes frames for the next update, where a step has several batches.

        Arguments
        ---------
        frames : torch.Tensor
            The teacher's valid frames, shape [N, D], as they were before they
            were standardised.
        """
        sums = sum_frames(frames)
        if self.collected is not None:
            sums += self.collected
        self.collected = sums

    @torch.no_grad()
    def update(self, frames):
        """Lets a step's frames count from now on.

        Arguments
        ---------
        frames : torch.Tensor
            As for :meth:`collect_`; those that were collected before count,
            too.
        """
        self.collect_(frames)
        sums, self.collected = self.collected, None
        if is_distributed_initialized():
            torch.distributed.all_reduce(sums)
        self.count.mul_(self.decay)
        self._take(sums)

    def forward(self, frames):
        """Standardises frames.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [N, D].

        Returns
        -------
        frames : torch.Tensor
            Shape [N, D], float32; a dimension that is constant (standard
            deviation below 1e-5) is only shifted.
        """
        mean, mean_square = self.moments
        std = (mean_square - mean.square()).clamp(min=0.0).sqrt()
        std = torch.where(std < 1e-5, torch.ones_like(std), std)
        return (frames.float() - mean.float()) / std.float()


def sum_frames(frames):
    """Sums up what statistics are made of.

    Arguments
    ---------
    frames : torch.Tensor
        Shape [N, D].

    Returns
    -------
    sums : torch.Tensor
        Number, sum and sum of squares of each dimension, shape [3, D],
        float64.
    """
    frames = frames.double()
    powers = [torch.ones_like(frames), frames, frames.square()]
    return torch.stack([power.sum(dim=0) for power in powers])
