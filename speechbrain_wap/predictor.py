"""A head between the student and the losses (D18)."""

from torch import nn


class Predictor(nn.Sequential):
    """Predicts the teacher's frames from the student's (D18).

    The paper compares them directly. With a head of its own, which is thrown
    away after adapter training, the student need not make its frames equal to
    the targets, but only tell them.

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

    def __init__(self, d_model, num_layers=0):
        layers = []
        for number in range(num_layers):
            layers += [nn.GELU()] * (number > 0)
            layers.append(nn.Linear(d_model, d_model))
        super().__init__(*layers)
