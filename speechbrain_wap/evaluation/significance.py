"""Paired tests of systems on the same folds, the fold as the unit.

Seeds of a fold share its speakers, so that each fold counts once, with its
mean over seeds. Folds share training data: p and intervals are optimistic.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, ttest_1samp

# Up to so many units all sign changes are counted, above 9,999 are drawn
EXACT = 18


class PairedDifference(NamedTuple):
    """How much better a system is than another, in points of a score.

    Fractions; ``low`` and ``high`` bound the 95 % confidence interval, None
    for a single unit.
    """

    units: int
    mean: float
    low: float | None
    high: float | None
    p: float | None


def average_seeds(runs, score="UA"):
    """Averages each fold's score over seeds.

    Arguments
    ---------
    runs : list of dict
        "runs" of results.json: "fold", "seed" and the score.
    score : str
        "UA", "WA" or "F1".

    Returns
    -------
    units : pandas.Series
        By fold.

    Example
    -------
    >>> runs = [{"fold": 1, "seed": s, "UA": s / 10} for s in (1, 3)]
    >>> average_seeds(runs).to_dict()
    {1: 0.2}
    """
    table = pd.DataFrame(runs)
    return table.groupby("fold")[score].mean()


def compare_units(one, other):
    """Tests the paired difference of two systems.

    p is of a two-sided permutation test, which changes the signs of the units'
    differences, exact for up to 18 units; the interval is Student's.

    Arguments
    ---------
    one, other : pandas.Series
        Score of each unit, such as a fold or a speaker; units that only one of
        them has are left out.

    Returns
    -------
    difference : PairedDifference

    Raises
    ------
    ValueError
        If they have no unit in common.

    Example
    -------
    >>> one, other = pd.Series([0.8, 0.9, 0.7]), pd.Series([0.7, 0.8, 0.6])
    >>> difference = compare_units(one, other)
    >>> round(difference.mean, 3), difference.p
    (0.1, 0.25)
    """
    # rounded, so that equal scores differ by nothing
    gains = (one - other).dropna().round(12).to_numpy()
    if not len(gains):
        raise ValueError("the systems have no fold in common")
    mean = float(gains.mean())
    low, high = bound_mean(gains)
    if len(gains) == 1:
        return PairedDifference(1, mean, low, high, None)
    test = permutation_test(
        (gains,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf if len(gains) <= EXACT else 9999,
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    return PairedDifference(len(gains), mean, low, high, float(test.pvalue))


def bound_mean(values):
    """Bounds a mean by Student's 95 % confidence interval.

    Arguments
    ---------
    values : pandas.Series
        One for each unit.

    Returns
    -------
    low, high : float or None
        None for a single unit.

    Example
    -------
    >>> bound_mean(pd.Series([0.5, 0.5])), bound_mean(pd.Series([0.5]))
    ((0.5, 0.5), (None, None))
    """
    if len(values) == 1:
        return None, None
    if not np.ptp(values):
        return (float(np.mean(values)),) * 2
    return tuple(map(float, ttest_1samp(values, 0.0).confidence_interval()))


def correct_holm(p_values):
    """Corrects p values for their number, by Holm's method.

    Arguments
    ---------
    p_values : list of float or None
        None where there is no test.

    Returns
    -------
    corrected : list of float or None

    Example
    -------
    >>> correct_holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    order = sorted(
        (p, place) for place, p in enumerate(p_values) if p is not None
    )
    corrected, largest = [None] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected
