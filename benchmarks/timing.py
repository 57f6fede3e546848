"""What the benchmarks share: timing in turn, peak memory, child processes."""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# The scripts of both stages, which other recipes' folders link to
sys.path.insert(0, str(RECIPES / "IEMOCAP/wap_adapter"))


def measure_seconds(run):
    """Times one call of a function, and what it has started on a GPU."""
    wait_for_gpu()
    started = time.perf_counter()
    run()
    wait_for_gpu()
    return time.perf_counter() - started


def wait_for_gpu():
    """Waits until a GPU that this process uses has nothing left to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def alternate(first, second, repeats):
    """Calls two functions that return a cost in turn; the costs of each."""
    costs = [(first(), second()) for _ in range(repeats)]
    return [list(column) for column in zip(*costs)]


def divide(dividends, divisors):
    """Divides pair by pair."""
    return [one / other for one, other in zip(dividends, divisors)]


def sum_up(values):
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)


def show_ratio(ratio):
    """Writes median and spread of a ratio."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


class Stopwatch:
    """Adds up the time within functions.

    Example
    -------
    >>> watch = Stopwatch()
    >>> watch.wrap(sum)([1, 2]), watch.seconds > 0
    (3, True)
    """

    def __init__(self):
        self.seconds = 0.0

    def wrap(self, function):
        """Makes a function that does the same and is timed."""

        def timed(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed

    def wrap_method(self, owner, name):
        """Makes an object's method one that is timed."""
        setattr(owner, name, self.wrap(getattr(owner, name)))


def peak_memory():
    """The most memory that this process has had so far, in bytes."""
    try:
        # getrusage of a child begins with its parent's peak, this does not
        status = Path("/proc/self/status").read_text("utf-8")
        line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def run_child(script, *arguments):
    """Runs a script as a process of its own; what it printed last, as JSON."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
