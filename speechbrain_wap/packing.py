"""Frames of a batch without the padding between them.

A layer that treats each frame by itself costs as much for padding as for
speech. Here the valid frames of all utterances lie one after the other,
[N, D], and only attention looks at utterances, a few of like lengths at a
time. The mathematics is that of the padded batch.
"""

from functools import lru_cache

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# An utterance joins a group whose longest one it reaches up to this share. On
# a CPU, masks and copies cost more than attending to each length by itself; a
# GPU would wait for so many small kernels to be started.
LIKE_LENGTH_CPU = 1.0
LIKE_LENGTH_GPU = 0.8
# In half precision on a CPU, oneDNN makes a kernel for each new number of rows,
# which takes longer than the product itself: the numbers are to come again.
ROWS = 64
# Without cuDNN's, which torch prefers on an H100 in half precision: it builds a
# plan for each new shape, tens of milliseconds, and shapes here are ever other.
KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def lay_out(lens, num_steps, device, may_fill=False):
    """Finds where the frames of a padded batch are computed: packed.

    A graph that torch.export makes cannot depend on lengths: it computes the
    padding, too. The layout of the last batch is kept, for its next network.

    Arguments
    ---------
    lens : torch.Tensor
        Relative lengths, shape [B], each in 0 to 1; best kept on the CPU: the
        host would wait for a GPU's.
    num_steps : int
        Length T of the padded batch.
    device : torch.device
        Where the frames are.
    may_fill : bool
        Whether, where it is faster, rows may follow that are no frame's: then
        nothing but the layout's own methods may look at several rows.

    Returns
    -------
    layout : Packing or Padding
    """
    if torch.compiler.is_exporting():
        return Padding(lens, num_steps, device)
    return _lay_out_packed(lens, num_steps, device, may_fill)


# torch.compile would unroll the loops over lengths
@torch.compiler.disable
def _lay_out_packed(lens, num_steps, device, may_fill):
    """Makes the packing of a batch, or takes the last one."""
    num_frames, _ = valid_frames(lens.cpu(), num_steps)
    is_half_on_cpu = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    rows = ROWS if may_fill and is_half_on_cpu else 1
    return _pack_lengths(tuple(num_frames.tolist()), num_steps, device, rows)


@lru_cache(maxsize=1)
def _pack_lengths(num_frames, num_steps, device, rows):
    """Makes the packing of utterances of these lengths."""
    with torch.inference_mode(False):  # a training may be the next
        return Packing(num_frames, num_steps, device, rows=rows)


def send(tensor, device):
    """Copies a CPU's tensor to a device without waiting for a GPU.

    One that lies there already stays as it is.
    """
    # a GPU's cannot be pinned, nor anything within what torch.compile makes
    to_gpu = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    if to_gpu and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()  # a GPU takes others through a buffer
    return tensor.to(device, non_blocking=True)


class Packing:
    """Where the frames of a padded batch lie when they are packed.

    Utterances are packed in the order of their lengths, longest first.

    Arguments
    ---------
    num_frames : list of int
        Number of valid frames of each of the B utterances.
    num_steps : int
        Length T of the padded batch.
    device : torch.device
        Where the frames are.
    like_length : float, optional
        0 to 1: how long an utterance must be, against the longest of a group,
        to be attended to with it. By default, what suits the device.
    rows : int
        If more than 1, N is a multiple of it: after the frames come rows of
        nobody, at least one.

    Example
    -------
    >>> packing = Packing([2, 4], 4, "cpu")
    >>> frames = packing.pack(torch.arange(8.0).view(2, 4, 1))
    >>> frames.flatten().tolist()
    [4.0, 5.0, 6.0, 7.0, 0.0, 1.0]
    >>> packing.unpack(frames)[0].flatten().tolist()
    [0.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, num_frames, num_steps, device, like_length=None, rows=1):
        if like_length is None:
            on_cpu = torch.device(device).type == "cpu"
            like_length = LIKE_LENGTH_CPU if on_cpu else LIKE_LENGTH_GPU
        lengths, order = torch.tensor(num_frames, dtype=torch.long).sort(
            descending=True, stable=True
        )
        starts = lengths.cumsum(0) - lengths
        steps = torch.arange(int(lengths.sum()))
        steps = steps - starts.repeat_interleave(lengths)
        places = steps + (order * num_steps).repeat_interleave(lengths)
        self.shape = (len(num_frames), num_steps)
        self.device = device
        self.num_frames, self.rows = len(places), rows
        # at least one, whose number is what find() adds
        is_filled = rows > 1 and len(places) > 0
        self.num_filled = rows - len(places) % rows if is_filled else 0
        # each row's number in its utterance (N,), and its place in [B * T]; the
        # added ones are copies of a frame, and go behind the batch
        copies = places[:1].expand(self.num_filled)
        self.places_on_cpu = torch.cat([places, copies])
        self.steps = send(F.pad(steps, (0, self.num_filled)), device)
        self.places = self.sources = send(self.places_on_cpu, device)
        if self.num_filled:
            self.places = self.sources.clone()
            self.places[-self.num_filled :] = len(num_frames) * num_steps
        self.groups = []
        lengths = [n for n in lengths.tolist() if n > 0]
        while lengths:
            size = sum(n >= like_length * lengths[0] for n in lengths)
            self.groups.append(_Group(lengths[:size], device))
            lengths = lengths[size:]

    def pack(self, x):
        """Takes the valid frames [N, ...] of a padded batch [B, T, ...]."""
        return x.flatten(end_dim=1).index_select(0, self.sources)

    @torch.compiler.disable
    def find(self, mask):
        """Finds which of the packed frames a mask [B, T] chooses.

        Best kept on the CPU: the host would wait for a GPU's mask.

        Returns
        -------
        chosen : torch.Tensor
            Shape [N], boolean.
        numbers : torch.Tensor
            Numbers of the rows where it is True, filled up to a multiple of
            ``rows`` with that of the first row of nobody.
        """
        chosen = mask.cpu().flatten()[self.places_on_cpu]
        chosen[self.num_frames :] = False
        numbers = chosen.nonzero()[:, 0]
        filled = -len(numbers) % self.rows
        numbers = F.pad(numbers, (0, filled), value=self.num_frames)
        return send(chosen, self.device), send(numbers, self.device)

    def unpack(self, frames, numbers=None):
        """Puts frames [N, D] back into a batch [B, T, D], zero elsewhere.

        With ``numbers``, they are those of the packed frames only.
        """
        places = self.places if numbers is None else self.places[numbers]
        if not self.num_filled:
            return _scatter(frames, places, self.shape)
        count, num_steps = self.shape
        behind = _scatter(frames, places, (count * num_steps + 1, 1))
        return behind[:-1, 0].unflatten(0, self.shape)

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
        if not self.groups:  # no utterance has a frame
            return x[:, : x.shape[1] // 3]
        # On a CPU, the gradient of attention in bfloat16 takes six times as
        # long as in float32.
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            x = x.float()
        parts = x[: self.num_frames].split([g.num_frames for g in self.groups])
        with torch.autocast("cpu", enabled=False), sdpa_kernel(KERNELS):
            attended = [
                group.attend(part, num_heads)
                for group, part in zip(self.groups, parts)
            ]
        attended.append(x.new_zeros(self.num_filled, x.shape[1] // 3))
        return torch.cat(attended).to(queries_keys_values.dtype)


class _Group:
    """Utterances of like lengths (longest first), attended to together."""

    def __init__(self, lengths, device):
        self.shape = (len(lengths), lengths[0])  # b utterances, n steps
        self.num_frames = sum(lengths)
        self.places = self.mask = None
        if lengths[-1] < lengths[0]:
            # a GPU's kernel takes rows of 8 keys, or a mask is copied to them
            steps = torch.arange(-(-lengths[0] // 8) * 8)
            valid = steps < torch.tensor(lengths)[:, None]
            places = valid[:, : lengths[0]].flatten().nonzero()[:, 0]
            self.places = send(places, device)
            # added to the scores (b, H, queries, keys)
            mask = torch.zeros(valid.shape).masked_fill_(~valid, -torch.inf)
            self.mask = send(mask[:, None, None, :], device)

    def attend(self, frames, num_heads):
        """Attends within this group's frames [N, 3 * D]; returns [N, D]."""
        if self.places is None:
            frames = frames.unflatten(0, self.shape)
        else:
            frames = _scatter(frames, self.places, self.shape)
        mask = None if self.mask is None else self._cast_mask(frames.dtype)
        attended = _attend(frames, num_heads, mask).flatten(end_dim=1)
        if self.places is not None:
            attended = attended.index_select(0, self.places)
        return attended

    def _cast_mask(self, dtype):
        """Casts the mask, once: all layers of both branches have the type."""
        if self.mask.dtype != dtype:
            with torch.inference_mode(False):  # a training may be the next
                self.mask = self.mask.to(dtype)
        return self.mask[..., : self.shape[1]]


class Padding:
    """What :class:`Packing` does, with the padding computed along.

    Arguments
    ---------
    lens : torch.Tensor
        Relative lengths, shape [B], each in 0 to 1.
    num_steps : int
        Length T of the padded batch.
    device : torch.device
        Where the frames are.

    Example
    -------
    >>> padding = Padding(torch.tensor([0.5, 1.0]), 4, "cpu")
    >>> padding.unpack(torch.ones(2, 4, 1))[0].flatten().tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, lens, num_steps, device):
        num_frames, self.valid = valid_frames(lens.to(device), num_steps)
        self.steps = torch.arange(num_steps, device=device)  # (T,)
        # one without frames attends to its first, as softmax has to
        mask = self.steps < num_frames.clamp(min=1)[:, None]
        self.mask = mask[:, None, None, :]  # (B, H, queries, keys)

    def pack(self, x):
        """Takes all frames of a padded batch [B, T, ...]."""
        return x

    def find(self, mask):
        """Takes a mask [B, T] as it is; None: all frames are computed."""
        return mask, None

    def unpack(self, frames, numbers=None):
        """Clears the padding of a batch [B, T, D]."""
        return frames.masked_fill(~self.valid[:, :, None], 0.0)

    def attend(self, queries_keys_values, num_heads):
        """Lets frames attend to each other, [B, T, 3 * D] to [B, T, D]."""
        return _attend(queries_keys_values, num_heads, self.mask)


def _attend(frames, num_heads, mask):
    """Attends within b utterances of n steps, [b, n, 3 * D] to [b, n, D]."""
    frames = frames.unflatten(2, (3, num_heads, -1))
    queries, keys, values = frames.permute(2, 0, 3, 1, 4)  # (b, H, n, D/H)
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask
    )
    return attended.transpose(1, 2).flatten(2)


def _scatter(frames, places, shape):
    """Puts frames [N, D] at places of a batch [B, T, D] that is else zero."""
    x = frames.new_zeros(shape[0] * shape[1], frames.shape[1])
    return x.index_copy_(0, places, frames).unflatten(0, shape)


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
    places = chosen.flatten().nonzero()[:, 0]
    return x.flatten(end_dim=1).index_select(0, send(places, x.device))
