"""Independent pieces of work in several processes."""

import ctypes
import os
import signal
import sys

from joblib import Parallel, delayed

from speechbrain_wap.errors import print_any_text

PR_SET_PDEATHSIG = 1


def run_jobs(num_jobs, function, tasks):
    """Calls a function for each task, several at a time.

    At an error, the others are ended.

    Arguments
    ---------
    num_jobs : int
        Number of processes, no more than there are tasks; with 1, this
        process does it all.
    function : callable
        A module's function.
    tasks : list of tuple
        Arguments of each call; what can be pickled.

    Yields
    ------
    number : int
        Number of the task, from 0, in the order in which they end.
    result : object
        What the function returned.

    Example
    -------
    >>> list(run_jobs(1, max, [(1, 2), (4, 3)]))
    [(0, 2), (1, 4)]
    """
    num_jobs = max(1, min(num_jobs, len(tasks)))
    parallel = Parallel(num_jobs, batch_size=1, return_as="generator_unordered")
    yield from parallel(
        delayed(_run_task)(os.getpid(), number, function, arguments)
        for number, arguments in enumerate(tasks)
    )


def _run_task(parent, number, function, arguments):
    """Runs a task, and lets a worker end with its parent."""
    if os.getpid() != parent and sys.platform == "linux":
        # else it would finish its task after the parent was killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # which happened before
            os._exit(1)
    print_any_text()
    return number, function(*arguments)
