"""Frame masks: which frames the student does not see (Sec. II-B.1).

What belongs to an utterance (its mask, its augmentation) is a function of the
seed, the epoch and the utterance's id, not of a running generator. Batching,
the number of ranks and an interruption then change nothing.
"""

import hashlib

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_wap.errors import RecipeError, check_number, check_whole


def sample_frame_mask(num_frames, mask_ratio, generator=None, span=1):
    """Chooses the frames that the mask embedding replaces (Sec. II-B.1).

    Exactly ``round(mask_ratio * n)`` of the n valid frames of each utterance
    are chosen, uniformly and without replacement; at least 1, and at most
    n - 1 where n > 1, so that there is always something to predict and
    something to predict it from. Padding is never masked.

    Arguments
    ---------
    num_frames : torch.Tensor or list of int
        Number of valid frames of each utterance, shape [B], each at least 1.
    mask_ratio : float
        Share of the valid frames to mask, 0 to 1 (the paper: 0.4).
    generator : torch.Generator or list of torch.Generator, optional
        Source of randomness on the CPU, one for all utterances or one for
        each; torch's global one by default.
    span : int
        Frames are chosen in runs of so many (D20), the last run of an
        utterance being shorter where the number is no multiple (the paper: 1).
        Runs do not overlap but may touch; all their places are equally likely.

    Returns
    -------
    mask : torch.Tensor
        Shape [B, max(num_frames)], boolean, True where a frame is masked.

    Raises
    ------
    RecipeError
        If the ratio is not within 0 to 1, or an utterance has no frame.

    Example
    -------
    >>> mask = sample_frame_mask([10, 5, 1], 0.4)
    >>> mask.shape, mask.sum(dim=1).tolist()
    (torch.Size([3, 10]), [4, 2, 1])
    """
    check_number("mask_ratio", mask_ratio, least=0.0, most=1.0)
    num_frames = torch.as_tensor(num_frames, dtype=torch.long).cpu()
    if num_frames.min() < 1:
        raise RecipeError(
            f"utterance {int(num_frames.argmin())} of the batch has "
            f"{int(num_frames.min())} valid frames, at least 1 is needed."
        )
    # float64, since 0.35 * 10 must round as it does in Python
    num_masked = torch.round(mask_ratio * num_frames.double()).long()
    num_masked = num_masked.minimum(num_frames - 1).clamp(min=1)
    # a run of masked frames takes one place, as a visible frame does
    num_runs = -(-num_masked // span)
    num_places = num_frames - num_masked + num_runs

    if isinstance(generator, list):
        scores = pad_sequence(
            [
                torch.rand(n, generator=own)
                for n, own in zip(num_places.tolist(), generator)
            ],
            batch_first=True,
        )
    else:
        shape = len(num_places), int(num_places.max())
        scores = torch.rand(shape, generator=generator)
    padding = torch.arange(scores.shape[1]) >= num_places[:, None]
    # each utterance has a random order of 0 to n - 1, then padding; stable,
    # or padding would decide where two random numbers are equal
    order = scores.masked_fill(padding, 2.0).argsort(dim=1, stable=True)
    is_run = order < num_runs[:, None]
    if span == 1:
        return is_run  # (B, T)
    lengths = torch.where(is_run, span, 1)
    # any one of the runs is shorter
    surplus = num_runs * span - num_masked
    lengths -= torch.where(order == 0, surplus[:, None], 0)
    ends = lengths.masked_fill_(padding, 0).cumsum(dim=1)
    # +1 where a run starts, -1 where it ends
    edges = torch.zeros(len(scores), int(num_frames.max()) + 1).long()
    edges.scatter_add_(1, ends - lengths, is_run.long())
    edges.scatter_add_(1, ends, -is_run.long())
    return edges.cumsum(dim=1)[:, :-1] > 0  # (B, T)


def utterance_number(seed, epoch, utterance_id, purpose):
    """Draws a number that belongs to one utterance in one epoch.

    Arguments
    ---------
    seed : int
        The run's seed.
    epoch : int
        The epoch, counted from 1; 0 for what is the same in all of them.
    utterance_id : str
        The utterance's id.
    purpose : str
        What the number is for; different purposes draw different numbers.

    Returns
    -------
    number : int
        64 random bits, the same for the same four arguments on any machine.
    """
    text = f"{purpose}\0{seed}\0{epoch}\0{utterance_id}"
    content = text.encode("utf-8", "surrogateescape")  # the name of a file
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def shuffle_utterances(utterance_ids, seed, epoch, purpose):
    """Puts utterances into a random order, whatever order they are given in.

    Arguments
    ---------
    utterance_ids : iterable of str
        Their ids.
    seed, epoch, purpose
        See :func:`utterance_number`.

    Returns
    -------
    order : list of str
        A choice of the utterances keeps its order.

    Example
    -------
    >>> order = shuffle_utterances("abcdef", 1, 0, "choice")
    >>> order == shuffle_utterances("fedcba", 1, 0, "choice")
    True
    """
    return sorted(
        utterance_ids,
        key=lambda key: (utterance_number(seed, epoch, key, purpose), key),
    )


class UtteranceMasks:
    """Masks a batch so that each mask belongs to its utterance alone.

    Arguments
    ---------
    mask_ratio : float
        Share of the valid frames to mask, 0 to 1 (the paper: 0.4).
    span : int
        Frames that are masked together, see :func:`sample_frame_mask`.
    seed : int
        The run's seed.
    purpose : str
        What the masks are for, see :func:`utterance_number`.

    Example
    -------
    >>> masks = UtteranceMasks(mask_ratio=0.4)
    >>> one = masks(["a"], torch.tensor([9]), epoch=1)
    >>> two = masks(["b", "a"], torch.tensor([20, 9]), epoch=1)
    >>> bool((one[0] == two[1, :9]).all())
    True
    """

    def __init__(self, mask_ratio=0.4, span=1, seed=0, purpose="mask"):
        check_number("mask_ratio", mask_ratio, least=0.0, most=1.0)
        check_whole("span", span, least=1)
        self.mask_ratio = mask_ratio
        self.span = span
        self.seed = seed
        self.purpose = purpose

    def __call__(self, utterance_ids, num_frames, epoch):
        """Masks utterances as in an epoch.

        Arguments
        ---------
        utterance_ids : list of str
            Ids of the B utterances.
        num_frames : torch.Tensor
            Number of valid frames of each, shape [B].
        epoch : int
            Counted from 1; 0 for masks that are always the same.

        Returns
        -------
        mask : torch.Tensor
            Shape [B, max(num_frames)], boolean, on the CPU.
        """
        generators = [
            torch.Generator().manual_seed(
                utterance_number(self.seed, epoch, key, self.purpose)
            )
            for key in utterance_ids
        ]
        return sample_frame_mask(
            num_frames, self.mask_ratio, generators, self.span
        )
