"""How the process gets its memory."""

import ctypes
import sys
from contextlib import suppress

# Parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


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
