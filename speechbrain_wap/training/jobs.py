"""Independent pieces of work in several processes."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

PR_SET_PDEATHSIG = 1


def _start_worker(num_threads):
    """Sets a worker's threads, and lets it end with its parent."""
    torch.set_num_threads(num_threads)
    if sys.platform == "linux":
        # else it would finish its piece of work after the parent was killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(module, function, arguments):
    """Calls a function of a module that the parent could import."""
    return getattr(importlib.import_module(module), function)(*arguments)


def run_jobs(num_jobs, module, function, tasks):
    """Calls a function for each task, in processes of their own.

    The cores are shared among the processes, unless OMP_NUM_THREADS says how
    many threads each has.

    Arguments
    ---------
    num_jobs : int
        Number of processes.
    module : str
        Name of an importable module.
    function : str
        Name of a function in it.
    tasks : list of tuple
        Arguments of each call; what can be pickled.

    Yields
    ------
    number : int
        Number of the task, from 0, in the order in which they end.
    result : object
        What the function returned.
    """
    num_threads = max(1, (os.cpu_count() or 1) // num_jobs)
    num_threads = int(os.environ.get("OMP_NUM_THREADS", num_threads))
    pool = ProcessPoolExecutor(
        num_jobs,
        # a fork after a backward pass cannot make another one
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(num_threads,),
    )
    try:
        futures = {
            pool.submit(_call, module, function, arguments): number
            for number, arguments in enumerate(tasks)
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
