"""Several ranks train together as one would.

Gradients are averaged over the ranks, each with a mean over its own share of
the batch; here is the order with which these shares make up the batch that one
rank would have. The weights are in brain.py.
"""

from itertools import zip_longest

import numpy as np
import torch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.distributed import (
    ddp_init_group,
    get_rank,
    is_distributed_initialized,
)

from speechbrain_wap.errors import RecipeError


def count_ranks():
    """Counts the processes that train together.

    Returns
    -------
    world_size : int
    """
    if not is_distributed_initialized():
        return 1
    return torch.distributed.get_world_size()


def own_rank():
    """Gives this process's number among those that train together.

    Returns
    -------
    rank : int
        From 0.
    """
    return get_rank() if is_distributed_initialized() else 0


def start_ranks(run_opts):
    """Joins the processes that torchrun has started, if it has.

    Arguments
    ---------
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.

    Raises
    ------
    RecipeError
        If there are more ranks than GPUs, or the backend is not there.
    """
    if is_distributed_initialized():
        return
    try:
        ddp_init_group(run_opts)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"the ranks cannot be started ({reason}): on CPUs, give "
            "--device=cpu --distributed_backend=gloo; on GPUs, one to each of "
            "--nproc_per_node."
        )


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
    plan : speechbrain_wap.data.sampling.EpochPlan, optional
        What of the data each epoch has; all of them, once, by default.
    **kwargs : dict
        seed and epoch, as in SpeechBrain's sampler.

    Example
    -------
    >>> alone = list(BatchOrderSampler(range(10), batch_size=4))
    >>> order = list(BatchOrderSampler(range(10), batch_size=2, world_size=2))
    >>> order[0:4:2] + order[1:4:2] == alone[:4]
    True
    """

    def __init__(
        self, data_source, batch_size, world_size=1, plan=None, **kwargs
    ):
        super().__init__(
            data_source if plan is None else range(len(plan)), **kwargs
        )
        self.batch_size = batch_size
        self.world_size = world_size
        self.plan = plan

    def __iter__(self):
        order = list(super().__iter__())
        if self.plan is not None:
            chosen = self.plan.choose(self.epoch)
            order = [chosen[place] for place in order]
        size = self.batch_size * self.world_size
        for start in range(0, len(order), size):
            batch = np.array(order[start : start + size])
            # the first ranks' blocks of an epoch's last batch may be longer
            blocks = np.array_split(batch, self.world_size)
            slots = zip_longest(*(block.tolist() for block in blocks))
            yield from (x for slot in slots for x in slot if x is not None)


def gather_over_ranks(value):
    """Collects what each rank has.

    Arguments
    ---------
    value : object
        Whatever can be pickled; it goes to other ranks of this run only.

    Returns
    -------
    values : list
        In the order of the ranks, the same on all of them.
    """
    values = [value]
    if count_ranks() > 1:
        values = [None] * count_ranks()
        torch.distributed.all_gather_object(values, value)
    return values


def is_lost_rank(error):
    """Recognises an error that means that another rank is gone.

    Arguments
    ---------
    error : RuntimeError
        What a collective operation raised.

    Returns
    -------
    is_lost : bool

    Example
    -------
    >>> is_lost_rank(RuntimeError("[gloo] Connection closed by peer"))
    True
    """
    text = str(error).lower()
    is_lost = any(part in text for part in ("gloo", "nccl", "connection"))
    return is_lost or isinstance(error, torch.distributed.DistError)
