"""What both stages do at each optimiser step."""

import torch

from speechbrain_wap.errors import RecipeError


def training_progress(optimizer_step, num_steps):
    """Computes the share of a training that is done.

    Arguments
    ---------
    optimizer_step : int
        Optimiser steps done so far.
    num_steps : int
        Optimiser steps in all.

    Returns
    -------
    progress : float
        0 before the first step, 1 at the last.

    Example
    -------
    >>> training_progress(0, 11), training_progress(5, 11)
    (0.0, 0.5)
    """
    return optimizer_step / max(num_steps - 1, 1)


def set_learning_rates(optimizers, share):
    """Sets each optimiser to a share of the learning rate it was made with.

    Arguments
    ---------
    optimizers : list of torch.optim.Optimizer
        The optimisers.
    share : float
        0 to 1.

    Example
    -------
    >>> optimizer = torch.optim.Adam([torch.zeros(1)], lr=0.1)
    >>> set_learning_rates([optimizer], 0.5)
    >>> optimizer.param_groups[0]["lr"]
    0.05
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def refuse_nonfinite(loss, optimizer_step):
    """Stops a training whose loss is not finite, and says where.

    Arguments
    ---------
    loss : torch.Tensor
        A scalar.
    optimizer_step : int
        Optimiser steps done so far.

    Raises
    ------
    RecipeError
        If the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise RecipeError(
            f"the loss is {float(loss)} at optimiser step "
            f"{optimizer_step + 1}: try a lower lr, or --precision=fp32; the "
            "last checkpoint is kept."
        )
