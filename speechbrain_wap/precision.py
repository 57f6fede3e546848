"""Precision: what is computed in float32 even where frames are in half."""

import torch


def at_least_float32(x):
    """Turns half precision into float32 and leaves float32 and float64.

    Arguments
    ---------
    x : torch.Tensor
        Any shape, in any floating point type.

    Returns
    -------
    x : torch.Tensor
        The same shape.

    Example
    -------
    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
