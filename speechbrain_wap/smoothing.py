"""Targets that vary slowly: a moving average over time (D18)."""

from torch.nn import functional as F


def smooth_frames(x, valid, reach):
    """Averages each frame with its neighbours in the utterance.

    Emotion lasts longer than a sound: the average keeps what neighbours share.

    Arguments
    ---------
    x : torch.Tensor
        Frames, shape [B, T, D], of any value where they are padding.
    valid : torch.Tensor
        Shape [B, T], boolean, True where a frame is not padding.
    reach : int
        Neighbours on each side, at least 0; at an utterance's ends there are
        fewer. Padding is no neighbour.

    Returns
    -------
    smoothed : torch.Tensor
        Shape [B, T, D], in float32; 0 where there is padding only.

    Example
    -------
    >>> import torch
    >>> x = torch.tensor([[[0.0], [3.0], [6.0], [99.0]]])
    >>> valid = torch.tensor([[True, True, True, False]])
    >>> smooth_frames(x, valid, 1)[0, :3, 0]
    tensor([1.5000, 3.0000, 4.5000])
    """
    valid = valid.to(x.device, non_blocking=True)[:, None]  # (B, 1, T)
    frames = x.float().transpose(1, 2).masked_fill(~valid, 0.0)  # (B, D, T)
    window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    total = F.avg_pool1d(frames, **window)
    share = F.avg_pool1d(valid.float(), **window)  # of the window that is valid
    least = 0.5 / (2 * reach + 1)
    return (total / share.clamp(min=least)).transpose(1, 2)
