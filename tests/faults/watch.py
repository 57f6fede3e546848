"""Lets a process kill itself at a moment at which it changes the disk."""

import functools
import io
import os
import re
import signal
import sys

import torch

# Write calls for one file of torch's until it counts as half written
MIDDLE = 10
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# Where the descriptor of the folder is found among the event's arguments
FOLDER_ARGUMENT = {
    "os.mkdir": 2,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.utime": 3,
}


class Watch:
    """Writes down what a process does to the files in a folder.

    The file trace gets a line for each operation, before it happens. At the
    line number count, from 1, that matches the pattern, the process group kills
    itself; begun says whether that operation leaves its first trace: an empty
    file, or one with half of what was to be written.
    """

    def __init__(self, folder, trace, pattern=None, count=0, begun=False):
        self.folder = str(folder)
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.pattern = None if pattern is None else re.compile(pattern)
        self.left = count
        self.begun = begun
        self.pid = os.getpid()
        self.is_killing = False

    def __call__(self, event, arguments):
        """Is called by Python before whatever can be audited."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not (flags or 0) & WRITING:
                return
            descriptor = -1
        elif event in FOLDER_ARGUMENT:
            path, descriptor = arguments[0], arguments[FOLDER_ARGUMENT[event]]
        else:
            return
        path = os.fsdecode(path)
        if descriptor >= 0:
            parent = os.readlink(f"/proc/self/fd/{descriptor}")
            path = os.path.join(parent, path)
        self.note(event, os.path.abspath(path))

    def note(self, event, path, finish=None):
        """Writes down an operation; dies if it is the chosen one."""
        if os.getpid() != self.pid or self.is_killing:
            return  # a worker, which dies of other things
        if not path.startswith(self.folder + os.sep):
            return
        line = f"{event} {os.path.relpath(path, self.folder)}"
        os.write(self.trace, f"{line}\n".encode())
        if self.pattern is None or not self.pattern.search(line):
            return
        self.left -= 1
        if self.left == 0:
            self.is_killing = True
            if self.begun and finish is not None:
                finish()
            elif self.begun and event == "open":
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.killpg(os.getpgid(0), signal.SIGKILL)

    def open(self, name, mode="r", **kwargs):
        """Opens a file for torch, and notices when it is half written."""
        if mode != "wb":
            return open(name, mode, **kwargs)
        watch = self

        class Watched(io.FileIO):
            """Writes at once, as nothing else could be half written."""

            calls = 0

            def write(self, data):
                self.calls += 1
                if self.calls == MIDDLE:
                    half = bytes(data)[: len(data) // 2]
                    begin = functools.partial(super().write, half)
                    watch.note("write", os.path.abspath(name), begin)
                return super().write(data)

        return Watched(name, "w")


def watch_disk(folder, trace, **stop):
    """Watches this process from now on; see :class:`Watch`."""
    watch = Watch(folder, trace, **stop)
    # a name that is not ASCII makes torch write through Python
    torch.serialization.open = watch.open
    sys.addaudithook(watch)
