"""Several ranks train together as one would.

Gradients are averaged over the ranks, each with a mean over its own share of
the batch; here are the order and the weights with which that equals the mean
over the whole batch on one rank.
"""

import torch
from speechbrain import Stage
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.distributed import get_rank, is_distributed_initialized


def count_ranks():
    """Counts the processes that train together.

    Returns
    -------
    world_size : int

    Example
    -------
    >>> count_ranks()
    1
    """
    if not is_distributed_initialized():
        return 1
    return torch.distributed.get_world_size()


class BatchOrderSampler(ReproducibleRandomSampler):
    """Random order in which the ranks' shares of a batch are its blocks.

    SpeechBrain gives rank r every world_size-th utterance of the order,
    beginning with the r-th. What the ranks then have at a step is, one after
    the other, the batch that a single rank would have.

    Arguments
    ---------
    data_source : sized
        The training data.
    batch_size : int
        Of one rank.
    world_size : int
        Number of ranks.
    **kwargs : dict
        seed and epoch, as in SpeechBrain's sampler.

    Example
    -------
    >>> alone = list(BatchOrderSampler(range(10), batch_size=4))
    >>> order = list(BatchOrderSampler(range(10), batch_size=2, world_size=2))
    >>> order[0:4:2] + order[1:4:2] == alone[:4]
    True
    """

    def __init__(self, data_source, batch_size, world_size=1, **kwargs):
        super().__init__(data_source, **kwargs)
        self.batch_size = batch_size
        self.world_size = world_size

    def __iter__(self):
        order = list(super().__iter__())
        size = self.batch_size * self.world_size
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            blocks, first = [], 0
            for rank in range(self.world_size):
                length = len(range(rank, len(batch), self.world_size))
                blocks.append(batch[first : first + length])
                first += length
            for number in range(len(batch)):
                slot, rank = divmod(number, self.world_size)
                yield blocks[rank][slot]


def make_train_loader(brain, dataset, seed, batch_size, **options):
    """Makes a training loader whose batches are the same for any ranks.

    Arguments
    ---------
    brain : speechbrain.Brain
        Gets the sampler, which it tells the epoch, and num_utterances.
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        The training data.
    seed : int
        Of the order.
    batch_size : int
        Of one rank.
    **options : dict
        Further options of the loader.

    Returns
    -------
    loader : speechbrain.dataio.dataloader.SaveableDataLoader
    """
    brain.num_utterances = len(dataset)
    brain.train_sampler = BatchOrderSampler(
        dataset, batch_size, count_ranks(), seed=seed
    )
    return brain.make_dataloader(
        dataset,
        Stage.TRAIN,
        sampler=brain.train_sampler,
        batch_size=batch_size,
        **options,
    )


def repeats_last(step, num_utterances, batch_size):
    """Tells whether a rank's batch ends with an utterance of another rank.

    SpeechBrain repeats utterances at the end of an epoch, so that all ranks
    have as many; they must not count twice.

    Arguments
    ---------
    step : int
        Number of the batch in the epoch, from 1.
    num_utterances : int
        Size of the training data.
    batch_size : int
        Of one rank.

    Returns
    -------
    repeats : bool
        True at an epoch's last batch on some ranks, where the number of
        utterances is no multiple of that of the ranks.

    Example
    -------
    >>> repeats_last(step=3, num_utterances=5, batch_size=2)
    False
    """
    world_size = count_ranks()
    if world_size == 1:
        return False
    num_steps = -(-num_utterances // (world_size * batch_size))
    surplus = num_utterances % world_size
    return step == num_steps and 0 < surplus <= get_rank()


def average_over_ranks(values):
    """Averages numbers over the ranks.

    Arguments
    ---------
    values : torch.Tensor
        Any shape, the same on all ranks.

    Returns
    -------
    means : torch.Tensor
        On the CPU; what was given where there is one rank.
    """
    world_size = count_ranks()
    if world_size == 1:
        return values
    on_gpu = torch.distributed.get_backend() == "nccl"
    total = values.to(torch.cuda.current_device() if on_gpu else "cpu")
    total = total.clone()
    torch.distributed.all_reduce(total)
    return total.cpu() / world_size


def share_of_batch(count):
    """Weights a rank's mean so that the ranks' average is the batch's mean.

    Arguments
    ---------
    count : int
        How many items this rank's mean is over; may be 0.

    Returns
    -------
    share : float
        count / the ranks' mean count

    Example
    -------
    >>> share_of_batch(7)
    1.0
    """
    if count_ranks() == 1:
        return 1.0
    mean = average_over_ranks(torch.tensor(float(count)))
    return count / max(float(mean), 1e-6)
