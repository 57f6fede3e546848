"""A small corpus and the recipes' scripts, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechbrain_wap.demo_corpus import make_demo_corpus

REPOSITORY = Path(__file__).resolve().parents[2]
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
    """Builds a command line as it is typed in the recipe's folder."""
    names = [name for name in arguments if not name.startswith("--")]
    options = [name for name in arguments if name.startswith("--")]
    files = [f"hparams/{name}.yaml" for name in names]
    return {
        "args": [sys.executable, *launcher, script, *files, *options],
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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A demo corpus in IEMOCAP's layout, under a name with a space."""
    folder = tmp_path_factory.mktemp("data") / "IEMOCAP räkning"
    make_demo_corpus(folder, seed=1, utterances_per_speaker=16)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A feature cache that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(corpus, cache):
    """Options of a tiny run on the demo corpus."""
    return [*TINY, f"--data_folder={corpus}", f"--cache_folder={cache}"]
