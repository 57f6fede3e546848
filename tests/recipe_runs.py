"""Starts the recipes' scripts as a user does, and reads what they wrote."""

import contextlib
import functools
import gc
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from speechbrain.utils import logger

from speechbrain_wap.__main__ import COMMANDS
from speechbrain_wap.training.checkpoints import Checkpointer

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = REPOSITORY / "recipes"

# The smallest model that still has every part.
TINY = [
    "--encoder_source=fbank",
    "--d_model=16",
    "--nhead=2",
    "--d_ffn=32",
    "--max_frames=300",
    "--batch_size=16",
    "--lr=0.001",
    "--noprogressbar",
]
ON_CPUS = ["--device=cpu", "--distributed_backend=gloo"]


def command(script, *arguments, corpus="IEMOCAP", launcher=()):
    """Builds a command line as it is typed in the recipe's folder.

    What is no script is a command of ``python -m speechbrain_wap``.
    """
    is_script = script.endswith(".py")
    start = [script] if is_script else ["-m", "speechbrain_wap", script]
    names = [name for name in arguments if not name.startswith("--")]
    options = [name for name in arguments if name.startswith("--")]
    files = [f"hparams/{name}.yaml" for name in names]
    return {
        "args": [sys.executable, *launcher, *start, *files, *options],
        "cwd": RECIPES / corpus / "wap_adapter",
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
    }


def run_well(script, *arguments, **kwargs):
    """Runs a script that must succeed; returns what it said."""
    done = subprocess.run(
        **command(script, *arguments, **kwargs),
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return said


# Forks processes off one that has imported what takes eight seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "speechbrain_wap.comparisons.compare",
        "speechbrain_wap.reports.cross_validation_report",
        "speechbrain_wap.encoders.speech_encoder",
        "speechbrain_wap.wap_transformer",
    ]
)


class ForkedRun:
    """A run as a user starts it, in a process of its own or one per rank.

    The ranks find each other as under torchrun; with folders, each is started
    in one of them, on a node of its own. prepare is called in the process
    before the script; kwargs are those of :func:`command`.
    """

    def __init__(self, *typed, ranks=1, folders=None, prepare=None, **kwargs):
        start = command(*typed, **kwargs)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile("r", encoding="utf-8")
        self.processes = []
        for rank in range(ranks):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": 0 if folders else rank,
                "WORLD_SIZE": ranks,
                "LOCAL_WORLD_SIZE": 1 if folders else ranks,
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            }
            folder = folders[rank] if folders else start["cwd"]
            arguments = [start["args"][1:], folder, self.log.name, prepare]
            arguments.append(variables if ranks > 1 else {})
            process = SERVER.Process(target=_run_forked, args=arguments)
            process.start()
            self.processes.append(process)

    def wait(self, seconds=300):
        """Waits for the run's end; returns the worst exit code, or None."""
        deadline = time.time() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.time()))
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else max(codes, key=abs)

    def kill(self):
        """Kills all processes, and those that they have started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return self.wait()

    def said(self):
        """Reads what the run has said so far."""
        return Path(self.log.name).read_text("utf-8")

    def finish(self):
        """Waits for the end of a run that must succeed."""
        try:
            assert self.wait() == 0, self.said()[-3000:]
        finally:
            self.kill()
        return self.said()


def _run_forked(arguments, folder, log, prepare, variables):
    """Is the forked process: becomes the run and ends."""
    os.setsid()
    log = os.open(log, os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    gc.disable()  # a quarter of the time; memory is no matter here
    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in variables.items()})
    # a list of all packages, which takes longer than training does here
    logger.get_environment_description = lambda: ""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    if prepare:
        prepare()
    sys.argv = arguments
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__")
            return
        # by its whole path: --jobs starts it anew from elsewhere
        runpy.run_path(os.path.join(folder, arguments[0]), run_name="__main__")
    finally:
        threading._shutdown()  # as Python's end does: the workers of --jobs end


def run_forked(*typed, **kwargs):
    """Runs a script that must succeed; returns what it said."""
    return ForkedRun(*typed, **kwargs).finish()


@functools.cache
def load_script(name):
    """Imports a script of the recipe under its own name, or a command."""
    if not name.startswith("train_"):  # which runs these
        load_script("train_adapter.py"), load_script("train_classifier.py")
    if not name.endswith(".py"):
        return importlib.import_module(COMMANDS[name])
    path = RECIPES / "IEMOCAP" / "wap_adapter" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = script
    spec.loader.exec_module(script)
    return script


def call(script, *arguments):
    """Runs a script within this process, which spares its imports."""
    typed = command(script, *arguments)
    before = os.getcwd()
    os.chdir(typed["cwd"])
    own = typed["args"].index(script) + 1
    try:
        load_script(script).main(typed["args"][own:])
    finally:
        os.chdir(before)


def kill_after_epoch(epoch, output_folder, *typed, **kwargs):
    """Starts a script and kills it, all ranks, without warning."""
    run = ForkedRun(*typed, f"--output_folder={output_folder}", **kwargs)
    try:
        while True:
            assert run.wait(0.005) is None, run.said()[-3000:]
            saved = list(Path(output_folder, "save").glob("CKPT*/CKPT.yaml"))
            if saved and Path(output_folder, "history.json").is_file():
                if read_history(output_folder)[-1]["epoch"] >= epoch:
                    break
    finally:
        run.kill()


def read_json(*parts):
    """Reads a JSON file, whose path may come in parts."""
    return json.loads(Path(*parts).read_text("utf-8", "surrogateescape"))


def read_history(output_folder):
    """Reads the rows of a run, one for each epoch."""
    return read_json(output_folder, "history.json")


def load_checkpoint(output_folder):
    """Reads the tensors of the newest checkpoint in a folder."""
    folder = Checkpointer(Path(output_folder, "save")).find_checkpoint().path
    states = {}
    paths = set(folder.glob("*.ckpt")) - {folder / "random_state.ckpt"}
    for path in sorted(paths):
        try:
            states[path.stem] = torch.load(path, weights_only=True)
        except Exception:
            states[path.stem] = path.read_text("utf-8")
    return states


def assert_equal_states(one, two):
    """Compares nested states bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), list(two.values())
    if torch.is_tensor(one):
        assert torch.equal(one, two)
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, two, strict=True):
            assert_equal_states(*pair)
    else:
        assert one == two
