"""Schedules of training: the learning rate and lambda of Eq. 6.

A schedule is a pure function of the share of training that is done, so that a
resumed run takes up the value that an uninterrupted one has.
"""

import math

from speechbrain_wap.errors import check_choice, check_number


class Schedule:
    """Goes from one value to another over a training.

    Arguments
    ---------
    start : float
        Value at the first step.
    end : float
        Value at the last step.
    shape : str
        "linear", "cosine" (half a period) or "constant" (stays at start).

    Example
    -------
    >>> rec_weight = Schedule(1.0, 0.5, shape="linear")
    >>> rec_weight(0.0), rec_weight(0.5), rec_weight(1.0)
    (1.0, 0.75, 0.5)
    """

    def __init__(self, start, end, shape="linear"):
        check_number("start", start)
        check_number("end", end)
        check_choice("shape", shape, ("linear", "cosine", "constant"))
        self.start = start
        self.end = end
        self.shape = shape

    def __call__(self, progress):
        """Returns the value after a share of the steps, clipped to 0 to 1."""
        progress = min(max(progress, 0.0), 1.0)
        if self.shape == "constant":
            done = 0.0
        elif self.shape == "linear":
            done = progress
        else:
            done = 0.5 - 0.5 * math.cos(math.pi * progress)
        return self.start + (self.end - self.start) * done
