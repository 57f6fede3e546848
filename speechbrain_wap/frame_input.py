"""What becomes of an encoder's frames first: scale and layers (D1, D14)."""

import torch
from torch import nn

from speechbrain_wap.errors import check_whole
from speechbrain_wap.packing import lay_out


class FrameInput(nn.Module):
    """Standardises an encoder's frames and averages its layers (D1, D14).

    The statistics are fixed, and those of no change (mean 0, deviation 1)
    until they are set; the layers' weights are learned, of which a softmax is
    taken. Both are the module's own, so that a network that begins with them
    is a subclass.

    Arguments
    ---------
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        Number L of layers of the encoder that are given. With more than one,
        frames are [..., L, D].

    Example
    -------
    >>> frames = FrameInput(input_size=2, num_encoder_layers=3)
    >>> frames.average_layers(frames.standardise(torch.rand(7, 3, 2))).shape
    torch.Size([7, 2])
    """

    def __init__(self, input_size, num_encoder_layers=1):
        super().__init__()
        check_whole("input_size", input_size, least=1)
        check_whole("num_encoder_layers", num_encoder_layers, least=1)
        shape, self.encoder_layer_weights = (input_size,), None
        if num_encoder_layers > 1:
            shape = (num_encoder_layers, input_size)
            start = torch.zeros(num_encoder_layers)
            self.encoder_layer_weights = nn.Parameter(start)
        self.register_buffer("input_mean", torch.zeros(shape))
        self.register_buffer("input_std", torch.ones(shape))

    def set_input_statistics(self, mean, std):
        """Fixes the statistics by which frames are standardised (D14).

        Arguments
        ---------
        mean : torch.Tensor
            Mean of the training data's frames, shape [input_size], or
            [num_encoder_layers, input_size].
        std : torch.Tensor
            Their standard deviation, likewise. A dimension that is constant
            (below 1e-5) is only shifted.
        """
        self.input_mean.copy_(mean)
        self.input_std.copy_(torch.where(std < 1e-5, torch.ones_like(std), std))

    def has_input_statistics(self):
        """Tells whether statistics have been set, or came with a checkpoint."""
        return bool(self.input_mean.any() or (self.input_std != 1.0).any())

    def measure_input(self, batches):
        """Fixes the statistics to those of utterances, one in each batch."""
        self.set_input_statistics(
            *measure_frames((b.feats.data[0].cpu(), 1.0) for b in batches)
        )

    def standardise(self, feats):
        """Standardises frames by the fixed statistics (D14).

        Arguments
        ---------
        feats : torch.Tensor
            The encoder's frames, shape [..., input_size], or [...,
            num_encoder_layers, input_size], in any floating point type.

        Returns
        -------
        feats : torch.Tensor
            The same shape, in the type of the statistics.

        Example
        -------
        >>> frames = FrameInput(input_size=2)
        >>> frames.set_input_statistics(torch.ones(2), torch.ones(2))
        >>> frames.standardise(torch.tensor([1.0, 2.0])).tolist()
        [0.0, 1.0]
        """
        # half precision becomes float32 on the way, without a copy more
        feats = (feats - self.input_mean).div_(self.input_std)
        return feats.to(self.input_mean.dtype)

    def average_layers(self, x):
        """Averages layers [..., L, D] to [..., D]; frames of one stay as is."""
        if self.encoder_layer_weights is None:
            return x
        weights = self.encoder_layer_weights.softmax(dim=0)
        return (weights[:, None] * x).sum(dim=-2)

    def pack(self, feats, lens=None, mask=None):
        """Standardises a batch's valid frames and averages their layers.

        Arguments
        ---------
        feats : torch.Tensor
            Shape [B, T, D], or [B, T, L, D] of L layers.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True on frames that 0, the mean frame,
            stands in for.

        Returns
        -------
        frames : torch.Tensor
            Shape [N, D].
        packing : speechbrain_wap.packing.Packing or Padding
            Where they lie in the batch.
        """
        if lens is None:
            lens = torch.ones(len(feats))
        packing = lay_out(lens, feats.shape[1], feats.device)
        frames = self.average_layers(self.standardise(packing.pack(feats)))
        if mask is not None:
            is_masked, _ = packing.find(mask)
            frames = frames.masked_fill(is_masked[..., None], 0.0)
        return frames, packing


class FrameMoments:
    """Adds up frames for their mean and standard deviation, per dimension.

    Example
    -------
    >>> moments = FrameMoments()
    >>> moments.add(torch.tensor([[1.0], [3.0]]))
    >>> moments.finish()
    (tensor([2.]), tensor([1.]))
    """

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, feats, weight=1.0):
        """Adds an utterance's frames [T, ...], as often as is said."""
        feats = feats.double()
        self.count += weight * len(feats)
        self.total = self.total + weight * feats.sum(dim=0)
        self.squares = self.squares + weight * feats.square().sum(dim=0)

    def finish(self):
        """Computes mean and standard deviation, float32."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0.0)
        return mean.float(), variance.sqrt().float()


def measure_frames(utterances):
    """Computes mean and standard deviation of frames, per dimension (D14).

    The feature cache stores the result: what changes it raises the encoders'
    FEATURES_VERSION.

    Arguments
    ---------
    utterances : iterable of tuple
        Frames of each training utterance, shape [T, D] or [T, L, D] of L
        layers, and how often the training sees it.

    Returns
    -------
    mean : torch.Tensor
        Shape [D] or [L, D], float32.
    std : torch.Tensor
        Likewise.

    Example
    -------
    >>> measure_frames([(torch.tensor([[1.0], [3.0]]), 1.0)])
    (tensor([2.]), tensor([1.]))
    """
    moments = FrameMoments()
    for feats, weight in utterances:
        moments.add(feats, weight)
    return moments.finish()
