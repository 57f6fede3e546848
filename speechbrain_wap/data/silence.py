"""Where somebody speaks in a recording, by its energy."""

import numpy as np
from scipy.ndimage import binary_closing, binary_dilation, binary_opening

from speechbrain_wap.data.audio import read_blocks
from speechbrain_wap.errors import RecipeError

STEP = 0.02  # seconds of which the energy is measured
SMOOTH = 10  # steps over which the loudest speech is averaged
SHORTEST = 5  # steps: what is louder for a shorter time is a click
MARGIN = 5  # steps of quiet that belong to speech, on both sides
NOTHING = -60.0  # decibels below full scale: nobody speaks, however quiet


def find_speech(path, pause=0.5, quiet=35.0):
    """Finds the stretches of a recording in which somebody speaks.

    It is read once, a piece at a time; a number is kept for each 20 ms.

    Arguments
    ---------
    path : str
        An audio file.
    pause : float
        Shortest silence between two stretches, in seconds.
    quiet : float
        How far below the loudest speech silence is, in decibels.

    Returns
    -------
    stretches : list of tuple
        Start and end of each, in seconds.
    duration : float
        Of the recording, in seconds.

    Raises
    ------
    RecipeError
        If it cannot be read, or is too short.
    """
    energies, num_samples, step = [], 0, STEP
    for block, rate in read_blocks(path, STEP):
        num_samples += len(block)
        size = max(1, round(STEP * rate))
        step = size / rate  # 20 ms are no whole number of samples at any rate
        parts = np.split(block, range(size, len(block), size))
        energies += [float(np.mean(np.square(part))) for part in parts]
    if len(energies) < SHORTEST:
        raise RecipeError(
            f"{path} is too short: of less than {SHORTEST * STEP:g} s, nobody "
            "can tell whether it is speech."
        )
    energies = np.asarray(energies)
    if not np.isfinite(energies).all():
        raise RecipeError(f"{path} holds samples that are NaN or infinite.")
    duration = num_samples / rate
    smooth = np.convolve(energies, np.full(SMOOTH, 1 / SMOOTH), "same")
    loudest = 10 * np.log10(smooth.max() + 1e-12)
    if loudest < NOTHING:
        return [], duration
    least = max(loudest - quiet, NOTHING)
    speaks = 10 * np.log10(energies + 1e-12) > least
    # nothing beyond the ends, whatever lies near them
    num_gap = max(1, round(pause / STEP))
    speaks = np.pad(speaks, num_gap)
    speaks = binary_opening(speaks, np.ones(SHORTEST))
    speaks = binary_closing(speaks, np.ones(num_gap))
    speaks = binary_dilation(speaks, np.ones(2 * MARGIN + 1))
    speaks = speaks[num_gap : num_gap + len(energies)]
    edges = np.flatnonzero(np.diff(np.pad(speaks, 1).astype(int)))
    times = [min(edge * step, duration) for edge in edges.tolist()]
    return list(zip(times[::2], times[1::2])), duration
