"""Local attributes: an online codebook of the teacher's frames (Eq. 3-5)."""

import torch
from speechbrain.utils.distributed import is_distributed_initialized
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.errors import check_choice, check_number, check_whole

# Rows of the distance matrix that are in memory at a time.
CHUNK_FRAMES = 8192
# What a checkpoint holds beside the buffers.
COUNTERS = ("initialised", "num_updates", "num_revived")


class LocalAttributes(nn.Module):
    """K prototypes of frames by batch-wise online clustering (Eq. 3-5).

    ``assign`` is pure; ``update`` is called in training only, after the losses
    have used the attributes. All state is in buffers, so that a checkpoint
    holds it; the random choices are functions of ``seed`` and the number of
    updates, so that they agree on all ranks and after an interruption. Half
    precision (``half()``, ``bfloat16()``) has no room for running means: the
    buffers stay in float32.

    Arguments
    ---------
    num_attributes : int
        K (the paper: 1024).
    dim : int
        Dimension D of the frames.
    update_rule : str
        The step eta_t of Eq. 5 (D5). "count" divides by the number of frames
        an attribute has had so far, which makes it their running mean;
        "constant" moves it by ``rate`` towards the mean of its frames of the
        batch.
    count_decay : float
        For "count": what is left of the counts at each update, 0 to 1. 1 is
        the exact running mean; below, old frames of the moving teacher are
        forgotten.
    rate : float
        For "constant": eta, 0 to 1.
    revive_after : int or None
        An attribute that no frame has chosen for this many updates is put on
        a random frame of the batch; None leaves it where it is.
    similarity : str
        The student's logits (D4): "cosine" or "distance" (negative squared
        Euclidean).
    temperature : float
        Divides the logits.
    seed : int
        Seed of initialisation and revival.

    Example
    -------
    >>> attributes = LocalAttributes(num_attributes=4, dim=2)
    >>> z = torch.rand(100, 2)
    >>> attributes.initialise_(z)
    >>> codes = attributes.assign(z)
    >>> attributes.update(z, codes)
    >>> attributes.logits(z).shape
    torch.Size([100, 4])
    """

    def __init__(
        self,
        num_attributes=1024,
        dim=384,
        update_rule="count",
        count_decay=1.0,
        rate=0.01,
        revive_after=None,
        similarity="cosine",
        temperature=0.1,
        seed=0,
    ):
        super().__init__()
        check_whole("num_attributes", num_attributes, least=1)
        check_choice("update_rule", update_rule, ("count", "constant"))
        check_number("count_decay", count_decay, least=0.0, most=1.0)
        check_number("rate", rate, least=0.0, most=1.0)
        check_whole("revive_after", revive_after, least=1, or_none="never")
        check_choice("similarity", similarity, ("cosine", "distance"))
        check_number("temperature", temperature, least=1e-6)
        self.num_attributes = num_attributes
        self.update_rule = update_rule
        self.count_decay = count_decay
        self.rate = rate
        self.revive_after = revive_after
        self.similarity = similarity
        self.temperature = temperature
        self.seed = seed
        self.initialised = False
        self.num_updates = 0
        self.num_revived = 0
        self.collected = None  # counts and sums that wait for the next update
        self.next_look = 0  # number of the update before which none is dead
        self.register_buffer("codebook", torch.zeros(num_attributes, dim))
        # frames that each attribute has had, the divisor of "count"
        self.register_buffer("counts", torch.zeros(num_attributes))
        # updates since a frame last chose it
        self.register_buffer("idle", torch.zeros(num_attributes).long())
        # equals an earlier attribute: no frame is assigned to it
        self.register_buffer("is_copy", torch.zeros(num_attributes).bool())
        # frames since reset_usage, for the log
        self.register_buffer("usage", torch.zeros(num_attributes))

    def _apply(self, fn, recurse=True):
        """Converts or moves the buffers, as ``to`` does; but not to half."""

        def convert(tensor):
            """Converts a buffer, or only moves it."""
            converted = fn(tensor)
            if converted.is_floating_point() and converted.itemsize < 4:
                return tensor.to(converted.device)
            return converted

        return super()._apply(convert, recurse)

    def get_extra_state(self):
        """Returns the counters that are no tensors, for the checkpoint."""
        return {name: getattr(self, name) for name in COUNTERS}

    def set_extra_state(self, state):
        """Takes the counters of a checkpoint."""
        self.next_look = 0
        for name in COUNTERS:
            setattr(self, name, state[name])

    @torch.no_grad()
    def initialise_(self, z):
        """Puts the attributes on random frames of the first batch.

        With fewer frames than attributes, frames are used again; no frame
        chooses the copies, which stay idle and are revived later.

        Arguments
        ---------
        z : torch.Tensor
            The teacher's valid frames, shape [N, D].
        """
        self.codebook.copy_(self._choose(z, self.num_attributes))
        self._mark_copies()
        self.initialised = True

    def _choose(self, z, count):
        """Picks frames of all ranks at random, without repeating if it can."""
        z = _gather_frames(z.detach().to(self.codebook.dtype))
        # By position in the gathered batch and by the number of updates: the
        # same frames on every rank and in a resumed run.
        generator = torch.Generator().manual_seed(
            self.seed * 1_000_003 + self.num_updates
        )
        order = torch.randperm(len(z), generator=generator)
        repeats = -(-count // len(z))
        return z[order.repeat(repeats)[:count].to(z.device)]

    def _mark_copies(self):
        """Marks attributes that equal one before them."""
        _, kinds = torch.unique(self.codebook, dim=0, return_inverse=True)
        numbers = torch.arange(len(kinds), device=kinds.device)
        first = numbers.new_full((len(kinds),), len(kinds))
        first = first.scatter_reduce(0, kinds, numbers, "amin")
        self.is_copy.copy_(first[kinds] != numbers)

    @torch.no_grad()
    def assign(self, z):
        """Finds each frame's nearest attribute (Eq. 4).

        Arguments
        ---------
        z : torch.Tensor
            Frames, shape [N, D].

        Returns
        -------
        codes : torch.Tensor
            Index of the attribute, shape [N], 0 to K - 1.
        """
        with torch.autocast(z.device.type, enabled=False):
            # |z - p|^2 = |z|^2 - 2 z.p + |p|^2, and |z|^2 is the same for all
            offset = 0.5 * self.codebook.square().sum(dim=-1)  # (K,)
            offset = offset.masked_fill(self.is_copy, float("inf"))
            codes = []
            for part in z.to(self.codebook.dtype).split(CHUNK_FRAMES):
                # half the distance, without |z|^2
                distance = torch.addmm(offset, part, self.codebook.T, alpha=-1)
                codes.append(distance.argmin(dim=-1))  # Eq. 4
            return torch.cat(codes)

    @torch.no_grad()
    def collect_(self, z, codes):
        """Takes frames for the next update, where a step has several batches.

        Arguments
        ---------
        z, codes : torch.Tensor
            As of :meth:`update`.
        """
        # not bincount, which makes the host wait for a GPU
        z = z.to(self.codebook.dtype)
        chosen = torch.zeros_like(self.counts)
        chosen.index_add_(0, codes, torch.ones_like(codes, dtype=z.dtype))
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, z)
        if self.collected is not None:
            chosen += self.collected[0]
            sums += self.collected[1]
        self.collected = chosen, sums

    @torch.no_grad()
    def update(self, z, codes):
        """Moves the attributes towards the frames that chose them (Eq. 3, 5).

        Arguments
        ---------
        z : torch.Tensor
            The teacher's valid frames of the batch, shape [N, D]; those that
            were collected before count, too.
        codes : torch.Tensor
            What ``assign`` gave for them, shape [N].
        """
        self.collect_(z, codes)
        chosen, sums = self.collected
        self.collected = None
        if is_distributed_initialized():
            torch.distributed.all_reduce(chosen)
            torch.distributed.all_reduce(sums)

        # Eq. 5: p <- p + eta_t (z - p), of all the frames z that chose p
        step = sums - chosen[:, None] * self.codebook  # (K, D), sum of z - p
        if self.update_rule == "count":
            self.counts.mul_(self.count_decay).add_(chosen)
            self.codebook += step / self.counts.clamp(min=1.0)[:, None]
        else:
            self.codebook += self.rate * step / chosen.clamp(min=1.0)[:, None]

        self.usage += chosen
        self.idle += 1
        self.idle.masked_fill_(chosen > 0, 0)
        self.num_updates += 1
        if self.revive_after is not None and self.num_updates >= self.next_look:
            self._revive(z)

    def _revive(self, z):
        """Puts attributes that have been idle too long on frames (D5)."""
        dead = self.idle >= self.revive_after  # (K,)
        num_dead = int(dead.sum())
        if num_dead > 0:
            self.codebook[dead] = self._choose(z, num_dead)
            self.counts[dead] = 0.0
            self.idle[dead] = 0
            self._mark_copies()
            self.num_revived += num_dead
        # a GPU is only waited for when one may be dead again
        left = self.revive_after - int(self.idle.max())
        self.next_look = self.num_updates + left

    def logits(self, z):
        """Compares frames with all attributes (Sec. II-B.3).

        D4: the text has both "cosine similarity" and "(negative) distances".

        Arguments
        ---------
        z : torch.Tensor
            The student's frames, shape [N, D].

        Returns
        -------
        logits : torch.Tensor
            Shape [N, K], in the codebook's type: float32, or float64.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(self.codebook.dtype)
            if self.similarity == "cosine":
                z = F.normalize(z, dim=-1)
                scores = z @ F.normalize(self.codebook, dim=-1).T
            else:
                # a copy: the gradient needs it after `update` has moved on
                codebook = self.codebook.clone()
                scores = (
                    2.0 * z @ codebook.T
                    - z.square().sum(dim=-1, keepdim=True)
                    - codebook.square().sum(dim=-1)
                )
            return scores / self.temperature

    def usage_statistics(self):
        """Sums up how the attributes were used since ``reset_usage``.

        Returns
        -------
        statistics : dict
            "used": share of the attributes that a frame has chosen, 0 to 1;
            "perplexity": exponential of the usage's entropy, 1 to K;
            "revived": attributes revived so far.
        """
        share = self.usage / self.usage.sum().clamp(min=1.0)
        return {
            "used": float((self.usage > 0).float().mean()),
            "perplexity": float(torch.special.entr(share).sum().exp()),
            "revived": self.num_revived,
        }

    def reset_usage(self):
        """Starts the usage count anew, as at the start of an epoch."""
        self.usage.zero_()


def _gather_frames(z):
    """Joins the frames [N, D] of all ranks, N of each, in the ranks' order."""
    if not is_distributed_initialized():
        return z
    world_size = torch.distributed.get_world_size()
    count = torch.tensor([len(z)], device=z.device)
    counts = [torch.zeros_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(counts, count)
    padded = F.pad(z, (0, 0, 0, int(max(counts)) - len(z)))
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, counts)])
