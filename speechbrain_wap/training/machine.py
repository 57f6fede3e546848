"""What the machine does to a run: how fast it is, how much memory it keeps."""

import ctypes
import functools
import json
import multiprocessing
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process, infer_device
from speechbrain.utils.logger import get_logger

from speechbrain_wap.files import read_json, write_text

logger = get_logger(__name__)

# Parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
# Slower than float32 by this factor, a precision is worth a warning.
SLOW = 2.0


def warn_of_slow_run(run_opts, num_jobs=1):
    """Says, once, what makes a run on a CPU many times slower than need be.

    Arguments
    ---------
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.
    num_jobs : int
        Processes that are to compute at a time.
    """
    # a worker's parent has said it
    is_worker = multiprocessing.parent_process() is not None
    device = torch.device(run_opts["device"] or infer_device())
    if is_worker or not if_main_process() or device.type != "cpu":
        return
    for option in ("precision", "eval_precision"):
        if run_opts[option] == "bf16":
            _warn_of_bf16(option)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    _warn_of_threads(ranks * num_jobs, torch.get_num_threads())


def use_one_thread():
    """Lets this process and its workers compute with one thread each.

    OMP_NUM_THREADS may ask for others. The last digits of a sum depend on the
    number of threads, so that it must not depend on how many folds are run at
    a time.

    Example
    -------
    >>> use_one_thread()
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # for workers
        torch.set_num_threads(1)


@functools.cache
def _warn_of_bf16(option):
    """Says that this processor has no fast products in bfloat16."""
    factor = _time_product(torch.bfloat16) / _time_product(torch.float32)
    if factor > SLOW:
        logger.warning(
            f"--{option}=bf16 is slow on this processor: a matrix product "
            f"takes {factor:.0f} times as long as in float32. Leave the option "
            "out."
        )


def _time_product(dtype, size=256):
    """Times a matrix product of a type, in seconds."""
    matrix, seconds = torch.ones(size, size, dtype=dtype), []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several may wait for a core
    for _ in range(4):  # the first one is prepared
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(num_threads)
    return min(seconds)


@functools.cache
def _warn_of_threads(num_processes, num_threads):
    """Says that threads will wait for cores that others use.

    Threads that wait for each other spin: two processes with two threads each
    on two cores were up to thirty times slower than with one.
    """
    cores = os.cpu_count() or 1
    free = cores - _count_busy_cores()
    if hasattr(os, "sched_getaffinity"):
        free = min(free, len(os.sched_getaffinity(0)))
    free, wanted = max(free, 1), num_processes * num_threads
    if num_threads > 1 and wanted > free:
        logger.warning(
            f"this run has {wanted} threads, but {free} of {cores} cores free, "
            "which may make it many times slower: set OMP_NUM_THREADS=1 in the "
            "environment."
        )


def _count_busy_cores(path="/proc/loadavg"):
    """Counts the cores that others have used for a minute, and use now."""
    try:
        load, _, _, running, _ = Path(path).read_text().split()
    except OSError:  # not everywhere
        return 0
    others = int(running.partition("/")[0]) - 1  # without this process
    return round(min(float(load), others))


def keep_freed_memory():
    """Lets the process keep the memory that tensors free, for the next ones.

    glibc gives large blocks back to the system at once and gets them anew,
    page by page and zeroed, which was an eighth of a training step on a CPU.
    Where there is another allocator, nothing changes.

    Example
    -------
    >>> keep_freed_memory()
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)


def give_back_freed_memory():
    """Gives what lies free back to the system.

    Batches of ever other lengths leave ever other holes between the blocks in
    use; if none is given back, the process grows with the number of steps.

    Example
    -------
    >>> give_back_freed_memory()
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


class RunCost:
    """Minutes and peak memory of a training and its test, without extraction.

    Those of a run that was interrupted are added up. Memory is what tensors
    took on a GPU, else the whole process; where the system does not tell it,
    it is None.

    Arguments
    ---------
    path : str
        The JSON file to write.
    device : torch.device or str
        Where the run computes.

    Example
    -------
    >>> cost = RunCost(getfixture("tmpdir") / "cost.json", "cpu")
    >>> cost.start(goes_on=False)
    >>> cost.record()
    >>> list(read_json(cost.path, ""))
    ['minutes', 'peak_memory_mb']
    """

    def __init__(self, path, device):
        self.path, self.device = str(path), torch.device(device)
        self.started = None

    def start(self, goes_on):
        """Starts the clock.

        Arguments
        ---------
        goes_on : bool
            Whether an earlier process has begun the run.
        """
        self.before = {"minutes": 0.0, "peak_memory_mb": None}
        if goes_on and os.path.isfile(self.path):
            self.before = read_json(self.path, "delete it.", self.before)
        self.started = time.monotonic()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # Linux only
                Path("/proc/self/clear_refs").write_text("5")

    def record(self):
        """Writes what the run has cost so far, if it trains at all."""
        if self.started is None:
            return  # --test_only
        peaks = [self.before["peak_memory_mb"], self._peak_memory()]
        cost = {
            "minutes": self.before["minutes"]
            + (time.monotonic() - self.started) / 60,
            "peak_memory_mb": max(filter(None, peaks), default=None),
        }
        write_text(self.path, json.dumps(cost, indent=1))

    def _peak_memory(self):
        """Measures the peak of memory since the start, in MB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        with suppress(OSError):
            status = Path("/proc/self/status").read_text()
            return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024 / 1e6
        return None
