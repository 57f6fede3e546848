"""Runs cross_validate.py again and again without importing torch each time.

Started as a script, this file is the server: it imports the recipe once, then
forks a process for each request. A request can ask that process to kill itself
at one of the moments at which it changes the disk.
"""

import functools
import gc
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[2] / "recipes/IEMOCAP/wap_adapter"
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

    Arguments
    ---------
    folder : str
        What lies elsewhere is not looked at.
    trace : str
        Gets a line for each operation, before it happens.
    pattern : str, optional
        Lines that match may be the last.
    count : int
        The process group kills itself at the match of this number, from 1.
    begun : bool
        Whether that operation leaves its first trace: an empty file, or one
        with half of what was to be written.
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


def run(request):
    """Is the forked process: runs the script and ends."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    gc.disable()  # a quarter of the time; memory is no matter here
    code = 1
    try:
        import cross_validate
        import torch

        watch = Watch(**request["watch"])
        # a name that is not ASCII makes torch write through Python
        torch.serialization.open = watch.open
        sys.addaudithook(watch)
        cross_validate.main(request["arguments"])
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    """Imports what a run needs, then answers requests, one at a time."""
    os.chdir(RECIPE)
    sys.path[:0] = [str(RECIPE), str(RECIPE.parent)]
    import cross_validate  # noqa: F401
    import iemocap_prepare  # noqa: F401
    from speechbrain.utils import logger

    import speechbrain_wap.encoders.speech_encoder
    import speechbrain_wap.wap_transformer  # noqa: F401

    # a list of all packages, which takes longer than training does here
    description = logger.get_environment_description()
    logger.get_environment_description = lambda: description
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            run(json.loads(line))
        print(pid, file=answers, flush=True)
        # it stays a zombie for as long as the client may want to kill it
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print("ended", file=answers, flush=True)
        sys.stdin.readline()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        print(code, file=answers, flush=True)


class ForkServer:
    """Starts the server and talks to it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        assert self._read() == "ready", "the recipe cannot be imported"

    def _read(self):
        return self.process.stdout.readline().decode().strip()

    def _send(self, text):
        self.process.stdin.write(f"{text}\n".encode())

    def start(self, request):
        """Forks a run; returns its process id, which is its group's, too."""
        self._send(json.dumps(request))
        return int(self._read())

    def has_ended(self, seconds):
        """Waits so long for the run to end; tells whether it did."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return bool(ready)

    def finish(self):
        """Waits for the run's end; returns its exit code."""
        assert self._read() == "ended"
        self._send("")
        return int(self._read())

    def close(self):
        """Ends the server."""
        self.process.stdin.close()
        self.process.wait(60)


if __name__ == "__main__":
    serve()
