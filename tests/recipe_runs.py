"""Starts the recipes' scripts as a user does."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from speechbrain_wap.__main__ import COMMANDS

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


def run(script, *arguments, **kwargs):
    """Runs a script to its end; returns its exit code and what it said."""
    done = subprocess.run(
        **command(script, *arguments, **kwargs),
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def run_well(script, *arguments, **kwargs):
    """Runs a script that must succeed; returns what it said."""
    code, said = run(script, *arguments, **kwargs)
    assert code == 0, said[-3000:]
    return said


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
