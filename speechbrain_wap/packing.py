"""Frames of a batch without the padding between them.

A layer that treats each frame by itself costs as much for padding as for
speech. Here the valid frames of all utterances lie one after the other,
[N, D], and only attention looks at utterances, a few of like lengths at a
time. The mathematics is that of the padded batch; no frame is computed twice
or in vain but for what is padded within such a group.
"""

import torch
from torch.nn import functional as F

# An utterance joins a group whose longest one it reaches up to this share. On
# a CPU, masks and copies cost more than attending to each length by itself; a
# GPU would wait for so many small kernels to be started.
LIKE_LENGTH_CPU = 1.0
LIKE_LENGTH_GPU = 0.8


class Packing:
    """Where the frames of a padded batch lie when they are packed.

    Utterances are packed in the order of their lengths, longest first.

    Arguments
    ---------
    lens : torch.Tensor
        Relative lengths, shape [B], each in 0 to 1. On a GPU, they are waited
        for: keep them on the CPU where you can.
    num_steps : int
        Length T of the padded batch.
    device : torch.device
        Where the frames are.
    like_length : float, optional
        0 to 1: how long an utterance must be, against the longest of a group,
        to be attended to with it. By default, what suits the device.

    Example
    -------
    >>> packing = Packing(torch.tensor([0.5, 1.0]), 4, "cpu")
    >>> frames = packing.pack(torch.arange(8.0).view(2, 4, 1))
    >>> frames.flatten().tolist()
    [4.0, 5.0, 6.0, 7.0, 0.0, 1.0]
    >>> packing.unpack(frames)[0].flatten().tolist()
    [0.0, 1.0, 0.0, 0.0]
    """

    # its loops over lengths are not for torch.compile
    @torch.compiler.disable
    def __init__(self, lens, num_steps, device, like_length=None):
        if like_length is None:
            on_cpu = torch.device(device).type == "cpu"
            like_length = LIKE_LENGTH_CPU if on_cpu else LIKE_LENGTH_GPU
        num_frames, _ = valid_frames(lens.cpu(), num_steps)
        lengths, order = num_frames.sort(descending=True, stable=True)
        self.shape = (len(lens), num_steps)
        self.num_frames = int(lengths.sum())
        # Number in its utterance of each frame, and its place in the batch
        starts = lengths.cumsum(0) - lengths
        steps = torch.arange(self.num_frames) - starts.repeat_interleave(
            lengths
        )
        places = steps + (order * num_steps).repeat_interleave(lengths)
        self.device = device
        self.places_on_cpu = places
        self.steps = steps.to(device, non_blocking=True)
        self.places = places.to(device, non_blocking=True)
        self.groups = []
        lengths = [n for n in lengths.tolist() if n > 0]
        while lengths:
            longest = lengths[0]
            size = sum(n >= like_length * longest for n in lengths)
            self.groups.append(_Group(lengths[:size], device))
            lengths = lengths[size:]

    def pack(self, x):
        """Takes the valid frames of a padded batch.

        Arguments
        ---------
        x : torch.Tensor
            Shape [B, T, ...].

        Returns
        -------
        frames : torch.Tensor
            Shape [N, ...].
        """
        return x.flatten(end_dim=1).index_select(0, self.places)

    def find(self, mask):
        """Finds which of the packed frames a mask chooses.

        Arguments
        ---------
        mask : torch.Tensor
            Shape [B, T], boolean. On a GPU, it is waited for: keep it on the
            CPU where you can.

        Returns
        -------
        chosen : torch.Tensor
            Shape [N], boolean.
        numbers : torch.Tensor
            Numbers of the frames where it is True.
        """
        chosen = mask.cpu().flatten()[self.places_on_cpu]
        numbers = chosen.nonzero()[:, 0]
        return (
            chosen.to(self.device, non_blocking=True),
            numbers.to(self.device, non_blocking=True),
        )

    def unpack(self, frames, numbers=None):
        """Puts packed frames back into a batch that is zero elsewhere.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [N, D].
        numbers : torch.Tensor, optional
            Which of the packed frames they are; all if not given.

        Returns
        -------
        x : torch.Tensor
            Shape [B, T, D].
        """
        num_places = self.shape[0] * self.shape[1]
        x = frames.new_zeros(num_places, frames.shape[1])
        places = self.places if numbers is None else self.places[numbers]
        return x.index_copy_(0, places, frames).unflatten(0, self.shape)

    @torch.compiler.disable
    def attend(self, queries_keys_values, num_heads):
        """Lets each utterance's frames attend to each other.

        Arguments
        ---------
        queries_keys_values : torch.Tensor
            Packed projections, shape [N, 3 * D].
        num_heads : int
            Number H of heads, which divides D.

        Returns
        -------
        attended : torch.Tensor
            Shape [N, D].
        """
        x = queries_keys_values
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            return self._attend(x, num_heads)
        # There, the gradient of attention in bfloat16 takes six times as long
        # as in float32.
        with torch.autocast("cpu", enabled=False):
            return self._attend(x.float(), num_heads)

    def _attend(self, queries_keys_values, num_heads):
        """See attend; in the precision of what it is given."""
        sizes = [group.num_frames for group in self.groups]
        parts = queries_keys_values.split(sizes)
        return torch.cat(
            [g.attend(part, num_heads) for g, part in zip(self.groups, parts)]
        )


class _Group:
    """Utterances of like lengths, which are attended to together.

    Arguments
    ---------
    lengths : list of int
        Longest first.
    device : torch.device
        Where the frames are.
    """

    def __init__(self, lengths, device):
        self.shape = (len(lengths), lengths[0])
        self.num_frames = sum(lengths)
        self.places = self.mask = None
        if lengths[-1] < lengths[0]:
            steps = torch.arange(lengths[0])
            valid = steps < torch.tensor(lengths)[:, None]
            self.places = (
                valid.flatten().nonzero()[:, 0].to(device, non_blocking=True)
            )
            # shape [b, H, queries, keys]
            self.mask = valid[:, None, None, :].to(device, non_blocking=True)

    def attend(self, frames, num_heads):
        """See Packing.attend; of this group's frames."""
        num_places = self.shape[0] * self.shape[1]
        if self.places is not None:
            padded = frames.new_zeros(num_places, frames.shape[1])
            frames = padded.index_copy(0, self.places, frames)
        # [b, n, 3, H, D / H] -> three times [b, H, n, D / H]
        frames = frames.view(*self.shape, 3, num_heads, -1)
        queries, keys, values = frames.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self.mask
        )
        attended = attended.transpose(1, 2).reshape(num_places, -1)
        if self.places is not None:
            attended = attended.index_select(0, self.places)
        return attended


def valid_frames(lens, num_steps):
    """Turns relative lengths into a mask of the valid frames.

    Arguments
    ---------
    lens : torch.Tensor
        Relative lengths, shape [B], each in 0 to 1, where 1 is the longest.
    num_steps : int
        Number of frames T of the padded batch.

    Returns
    -------
    num_frames : torch.Tensor
        Number of valid frames of each utterance, shape [B].
    valid : torch.Tensor
        Shape [B, T], boolean, True where a frame is not padding.

    Example
    -------
    >>> valid_frames(torch.tensor([1.0, 0.5]), 4)[1]
    tensor([[ True,  True,  True,  True],
            [ True,  True, False, False]])
    """
    # rounded, since lens = n / T in float32 times T may fall just below n
    num_frames = torch.round(lens.double() * num_steps).long()
    steps = torch.arange(num_steps, device=lens.device)
    return num_frames, steps[None, :] < num_frames[:, None]


def select_frames(x, chosen):
    """Takes frames out of a batch, without waiting for a GPU.

    Arguments
    ---------
    x : torch.Tensor
        Shape [B, T, D].
    chosen : torch.Tensor
        Shape [B, T], boolean, on the CPU.

    Returns
    -------
    frames : torch.Tensor
        Shape [N, D], in the order of ``x``.

    Example
    -------
    >>> x = torch.arange(4.0).view(1, 4, 1)
    >>> select_frames(x, torch.tensor([[True, False, False, True]]))
    tensor([[0.],
            [3.]])
    """
    places = chosen.flatten().nonzero()[:, 0].to(x.device, non_blocking=True)
    return x.flatten(end_dim=1).index_select(0, places)
