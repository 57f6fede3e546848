"""The smallest system: a linear classifier on mean-pooled frames."""

import torch
from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_wap.packing import send, valid_frames
from speechbrain_wap.precision import at_least_float32


class MeanPoolingClassifier(nn.Module):
    """Averages an utterance's frames and classifies the average.

    Arguments
    ---------
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given; their average is used.

    Example
    -------
    >>> model = MeanPoolingClassifier(input_size=80)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(self, input_size, num_encoder_layers=1):
        super().__init__()
        self.input_size = input_size
        self.several = num_encoder_layers > 1
        self.register_buffer("mean", torch.zeros(input_size))
        self.register_buffer("std", torch.ones(input_size))

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        self.classifier = Linear(
            input_size=self.input_size, n_neurons=num_classes
        )

    def pool(self, feats, lens=None, mask=None):
        """Averages the valid frames that are not masked.

        Arguments
        ---------
        feats : torch.Tensor
            Frames, shape [B, T, D], or [B, T, L, D] of L layers.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1. The
            average of no frame is 0.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True on the frames to leave out.

        Returns
        -------
        pooled : torch.Tensor
            Shape [B, D], float32 at least.
        """
        frames = at_least_float32(feats)
        frames = frames.mean(dim=2) if self.several else frames
        return average_frames(frames, lens, mask)

    @torch.no_grad()
    def before_fit(self, batches):
        """Measures the averages, by which inputs are standardised."""
        pooled = torch.cat(
            [self.pool(b.feats.data, b.feats.lengths) for b in batches]
        )
        self.mean.copy_(pooled.mean(dim=0))
        std = pooled.std(dim=0, unbiased=False)
        # what is constant in training is only shifted
        self.std.copy_(std.where(std >= 1e-5, 1.0))

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits [B, C] of the classes; arguments as of pool."""
        pooled = self.pool(feats, lens, mask)
        pooled = (pooled - self.mean) / self.std
        return self.classifier(pooled.to(self.mean.dtype))


def average_frames(frames, lens=None, mask=None):
    """Averages the valid frames of each utterance that are not masked.

    Arguments
    ---------
    frames : torch.Tensor
        Shape [B, T, D].
    lens : torch.Tensor, optional
        Relative lengths, shape [B], each in 0 to 1; None stands for 1. The
        average of no frame is 0.
    mask : torch.Tensor, optional
        Shape [B, T], boolean, True on the frames to leave out.

    Returns
    -------
    averages : torch.Tensor
        Shape [B, D].

    Example
    -------
    >>> frames = torch.tensor([[[1.0], [2.0], [9.0]]])
    >>> mask = torch.tensor([[False, True, False]])
    >>> average_frames(frames, mask=mask)
    tensor([[5.]])
    """
    if lens is None:
        lens = torch.ones(frames.shape[0], device=frames.device)
    _, valid = valid_frames(lens, frames.shape[1])
    chosen = valid if mask is None else valid & ~mask
    # an utterance of one frame is masked as a whole
    chosen = torch.where(chosen.any(dim=1, keepdim=True), chosen, valid)
    chosen = send(chosen, frames.device)[:, :, None]  # (B, T, 1)
    total = frames.masked_fill(~chosen, 0.0).sum(dim=1)
    return total / chosen.sum(dim=1).clamp(min=1)
