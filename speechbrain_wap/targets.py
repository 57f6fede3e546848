"""What the student predicts: the teacher's frames, smoothed or not (D6, D18)."""

from torch import nn
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
    reach = min(reach, x.shape[1] - 1)  # no utterance has more neighbours
    valid = valid.to(x.device, non_blocking=True)[:, None]  # (B, 1, T)
    frames = x.float().transpose(1, 2).masked_fill(~valid, 0.0)  # (B, D, T)
    # sums, whose last bits do not depend on how far the window reaches
    window = {
        "kernel_size": (1, 2 * reach + 1),
        "stride": 1,
        "padding": (0, reach),
        "divisor_override": 1,
    }
    total = F.avg_pool2d(frames, **window)
    count = F.avg_pool2d(valid.float(), **window)
    return (total / count.clamp(min=1.0)).transpose(1, 2)


class Predictor(nn.Sequential):
    """Predicts the teacher's frames from the student's (D18).

    The paper compares them directly. With a head of its own, which is thrown
    away after adapter training, the student need not make its frames equal to
    the targets, but only tell them.

    Arguments
    ---------
    d_model : int
        Dimension D of the frames.
    num_layers : int
        Number of linear layers, with GELU between them; 0 is the paper's: no
        head.

    Example
    -------
    >>> import torch
    >>> Predictor(8, num_layers=2)(torch.rand(5, 8)).shape
    torch.Size([5, 8])
    """

    def __init__(self, d_model, num_layers=0):
        layers = []
        for number in range(num_layers):
            layers += [nn.GELU()] * (number > 0)
            layers.append(nn.Linear(d_model, d_model))
        super().__init__(*layers)
