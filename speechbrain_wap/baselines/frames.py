"""What systems without the WAP-Transformer make of the encoder's frames."""

import torch
from torch import nn

from speechbrain_wap.packing import send, valid_frames
from speechbrain_wap.precision import at_least_float32
from speechbrain_wap.wap_transformer import measure_frames


class StandardisedFrames(nn.Module):
    """Standardises frames by the training utterances' statistics (D14).

    Several layers are averaged. What is masked or padding is 0, which is the
    mean frame.

    Arguments
    ---------
    input_size : int
        Dimension D of the frames.
    num_encoder_layers : int
        How many layers L of the encoder are given.

    Example
    -------
    >>> frames = StandardisedFrames(1)
    >>> frames.measure([torch.tensor([[1.0], [3.0]])])
    >>> feats = torch.tensor([[[3.0], [9.0]]])
    >>> frames(feats, torch.tensor([0.5]))[0].flatten().tolist()
    [1.0, 0.0]
    """

    def __init__(self, input_size, num_encoder_layers=1):
        super().__init__()
        self.several = num_encoder_layers > 1
        shape = [num_encoder_layers] * self.several + [input_size]
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @torch.no_grad()
    def measure(self, utterances):
        """Measures frames, those of an utterance [T, D] or [T, L, D] each."""
        mean, std = measure_frames((feats.cpu(), 1.0) for feats in utterances)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-5))

    def forward(self, feats, lens=None, mask=None):
        """Standardises a batch.

        Arguments
        ---------
        feats : torch.Tensor
            Frames, shape [B, T, D], or [B, T, L, D] of L layers.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True on the frames to hide.

        Returns
        -------
        frames : torch.Tensor
            Shape [B, T, D], float32 at least.
        valid : torch.Tensor
            Shape [B, T], boolean, True where there is no padding.
        """
        if lens is None:
            lens = torch.ones(len(feats))
        valid = send(valid_frames(lens, feats.shape[1])[1], feats.device)
        shown = valid if mask is None else valid & ~send(mask, feats.device)
        frames = (at_least_float32(feats) - self.mean) / self.std
        frames = frames.mean(dim=2) if self.several else frames
        frames = frames.to(self.mean.dtype)
        return frames.masked_fill(~shown[:, :, None], 0.0), valid
