"""What the student predicts: the teacher's frames (D6, D18)."""

from torch.nn import functional as F

from speechbrain_wap.errors import check_choice, check_whole
from speechbrain_wap.packing import select_frames, send
from speechbrain_wap.precision import at_least_float32
from speechbrain_wap.wap_transformer import MLP


class Targets:
    """Makes targets of the teacher's frames: smoothed, on one scale.

    Arguments
    ---------
    smoothing : int
        Neighbours on each side to average with (D18); 0 is the paper's.
    norm : str
        "layer": each frame is normalised over its dimensions (D6); "none".

    Example
    -------
    >>> import torch
    >>> targets, valid = Targets(), torch.tensor([[True, True, False]])
    >>> frames = targets.select(torch.rand(1, 3, 8), valid)
    >>> targets.normalise(frames).shape
    torch.Size([2, 8])
    """

    def __init__(self, smoothing=0, norm="layer"):
        check_whole("smoothing", smoothing)
        check_choice("norm", norm, ("layer", "none"))
        self.smoothing = smoothing
        self.norm = norm

    def select(self, z_teacher, valid):
        """Takes the frames that are wanted, smoothed but not yet normalised.

        Arguments
        ---------
        z_teacher : torch.Tensor
            The teacher's output, shape [B, T, D].
        valid : torch.Tensor
            Shape [B, T], boolean, True on the frames that are wanted; on the
            CPU.

        Returns
        -------
        frames : torch.Tensor
            Shape [N, D], float32 at least.
        """
        if self.smoothing:
            z_teacher = smooth_frames(z_teacher, valid, self.smoothing)
        return at_least_float32(select_frames(z_teacher, valid))

    def normalise(self, frames):
        """Brings frames [N, D] to one scale (D6)."""
        if self.norm == "none":
            return frames
        return F.layer_norm(frames, frames.shape[-1:])


def frame_spread(frames):
    """Measures how much frames differ from each other (D6).

    Arguments
    ---------
    frames : torch.Tensor
        Shape [N, D].

    Returns
    -------
    spread : torch.Tensor
        Root of the variance over the frames per mean square: 0 where all are
        alike, 1 for white noise.

    Example
    -------
    >>> import torch
    >>> float(frame_spread(torch.ones(5, 3)))
    0.0
    """
    variance = frames.var(dim=0, unbiased=False).mean()
    return (variance / frames.square().mean().clamp(min=1e-12)).sqrt()


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
        Shape [B, T, D], in float32 at least; 0 where there is padding only.

    Example
    -------
    >>> import torch
    >>> x = torch.tensor([[[0.0], [3.0], [6.0], [99.0]]])
    >>> valid = torch.tensor([[True, True, True, False]])
    >>> smooth_frames(x, valid, 1)[0, :3, 0]
    tensor([1.5000, 3.0000, 4.5000])
    """
    reach = min(reach, x.shape[1] - 1)  # no utterance has more neighbours
    valid = send(valid, x.device)[:, None]  # (B, 1, T)
    frames = at_least_float32(x).transpose(1, 2)  # (B, D, T)
    frames = frames.masked_fill(~valid, 0.0)
    # a plain sum over the window: an utterance has the same average, to the
    # last bit, in any batch
    window = {
        "kernel_size": (1, 2 * reach + 1),
        "stride": 1,
        "padding": (0, reach),
        "divisor_override": 1,
    }
    total = F.avg_pool2d(frames, **window)
    count = F.avg_pool2d(valid.to(frames.dtype), **window)
    return (total / count.clamp(min=1.0)).transpose(1, 2)


class Predictor(MLP):
    """Predicts the teacher's frames from the student's (D18).

    The paper compares them directly. With a head of its own, which is thrown
    away after adapter training, the student's frames need not equal the
    targets, they need only predict them.

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
