"""Statistical attentive pooling, SAP (Sec. II-C, Eq. 7)."""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.errors import check_choice, check_whole
from speechbrain_wap.packing import valid_frames
from speechbrain_wap.precision import at_least_float32


class StatisticalAttentivePooling(nn.Module):
    """Pools frames into one vector by attentive statistics (Eq. 7).

    A 1x1 convolution weighs the frames, one weight map per head; a softmax over
    the valid frames gives A. The weighted mean and variance of all heads are
    each L2-normalised and concatenated.

    D3: Eq. 7 prints sigma^2 = Z^T(A*A) - (Z^T A)*(Z^T A), which is no variance
    (it may be negative where all frames are equal); the text asks for weighted
    second-order statistics. "weighted" is (Z*Z)^T A - mu*mu, "printed" is the
    formula as it stands.

    Arguments
    ---------
    input_size : int
        Dimension D of the frames.
    num_heads : int
        Number H of attention heads (the paper: 4).
    variance : str
        "weighted" or "printed".

    Example
    -------
    >>> pool = StatisticalAttentivePooling(input_size=16, num_heads=4)
    >>> pool(torch.rand(2, 30, 16), torch.tensor([1.0, 0.6])).shape
    torch.Size([2, 128])
    """

    def __init__(self, input_size, num_heads=4, variance="weighted"):
        super().__init__()
        check_whole("input_size", input_size, least=1)
        check_whole("num_heads", num_heads, least=1)
        check_choice("variance", variance, ("weighted", "printed"))
        self.variance = variance
        self.output_size = 2 * num_heads * input_size
        # 1x1 convolution over time: the same linear map for every frame. The
        # softmax would not see a bias.
        self.attention = nn.Conv1d(
            input_size, num_heads, kernel_size=1, bias=False
        )
        self.register_buffer("output_mean", torch.zeros(self.output_size))
        self.register_buffer("output_std", torch.ones(self.output_size))

    def set_output_statistics(self, mean, std):
        """Fixes the statistics by which what is pooled is standardised (D19).

        The two halves have length one, hence tiny dimensions of very different
        spread, which a linear layer learns from slowly.

        Arguments
        ---------
        mean : torch.Tensor
            Mean over the training utterances, shape [2 * H * D].
        std : torch.Tensor
            Their standard deviation, likewise. A dimension that is constant
            (below 1e-7) is only shifted.
        """
        self.output_mean.copy_(mean)
        std = torch.where(std < 1e-7, torch.ones_like(std), std)
        self.output_std.copy_(std)

    def attention_map(self, z, lens=None):
        """Computes A, the weight of each frame for each head (Eq. 7).

        Arguments
        ---------
        z : torch.Tensor
            Frames, shape [B, T, D].
        lens : torch.Tensor, optional
            Relative lengths, shape [B]; None stands for 1.

        Returns
        -------
        weights : torch.Tensor
            Shape [B, H, T]; sums to one over the valid frames, zero elsewhere.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._weigh(at_least_float32(z), _find_valid(z, lens))

    def forward(self, z, lens=None):
        """Pools the valid frames of each utterance (Eq. 7).

        Arguments
        ---------
        z : torch.Tensor
            Frames, shape [B, T, D], in any floating point type.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1. What
            has length 0 has mean and variance 0.

        Returns
        -------
        pooled : torch.Tensor
            Shape [B, 2 * H * D], in the type of the weights, whatever that of
            the frames: means of all heads, then their variances; standardised
            by the output's statistics, if any are set.
        """
        with torch.autocast(z.device.type, enabled=False):
            pooled = self._pool(at_least_float32(z), _find_valid(z, lens))
            pooled = (pooled - self.output_mean) / self.output_std
            return pooled.to(self.attention.weight.dtype)

    def _weigh(self, z, valid):
        """Computes A of Eq. 7, of frames in float32 or float64."""
        attention = self.attention.weight.to(z.dtype)  # (H, D, 1)
        scores = F.conv1d(z.transpose(1, 2), attention)  # (B, H, T)
        # not infinity, of which an utterance without frames would be NaN
        least = torch.finfo(z.dtype).min
        weights = scores.masked_fill(~valid[:, None, :], least).softmax(dim=-1)
        return weights.masked_fill(~valid[:, None, :], 0.0)

    def _pool(self, z, valid):
        """Pools in float32: half precision has no digits for a variance."""
        weights = self._weigh(z, valid)  # (B, H, T)
        padding = ~valid[:, :, None]  # (B, T, 1)
        z = z.masked_fill(padding, 0.0)
        mean = weights @ z  # (B, H, D), mu of Eq. 7
        if self.variance == "weighted":  # (Z*Z)^T A - mu*mu, D3
            # A shift does not change the variance; with the plain mean
            # subtracted, frames far from zero keep float32's digits.
            count = valid.sum(dim=1).clamp(min=1)[:, None, None]
            centre = z.sum(dim=1, keepdim=True) / count  # (B, 1, D)
            centred = (z - centre).masked_fill(padding, 0.0)
            var = weights @ centred.square() - (mean - centre).square()
            var = var.clamp(min=0.0)  # never below zero but for rounding
        else:  # Z^T(A*A) - mu*mu, as printed
            var = weights.square() @ z - mean.square()
        halves = [
            F.normalize(statistics.flatten(start_dim=1), dim=-1)
            for statistics in (mean, var)
        ]
        return torch.cat(halves, dim=-1)  # (B, 2 * H * D)


def _find_valid(z, lens):
    """Finds which of the frames [B, T, D] are valid; [B, T]."""
    if lens is None:
        lens = torch.ones(z.shape[0], device=z.device)
    return valid_frames(lens, z.shape[1])[1]
