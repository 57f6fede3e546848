"""Runs SpeechBrain's own checks on what is laid into a checkout.

> python upstream/check.py /path/to/speechbrain

It lays out first. The checks run in an environment that has the checkout and
what this project needs, but not this project, without a network. A table says
what passed; what fails without these files, too, is named.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from lay_out import NOUNS, PROJECT, lay_out, run

# Log-mel energies in the encoder's place, and a network of a few seconds
TINY = (
    "--make_encoder=!name:speechbrain.lobes.features.Fbank --encoder_dim=40 "
    "--d_model=32 --nhead=4 --d_ffn=64 --num_layers=1 --max_frames=250 "
    "--mlp_layers=1 --mlp_residual=True --batch_size=16 --lr=0.002"
).split()
RECOGNISE = """
import sys, speechbrain
from speechbrain.inference.emotion import EmotionRecognizer
model = EmotionRecognizer.from_hparams(sys.argv[1], savedir=sys.argv[1])
print(model.classify_file(sys.argv[2])[3][0])
"""
RECIPE_TESTS = """
import sys
from tests.utils.recipe_tests import load_yaml_test, run_recipe_tests
rows = {"filters_fields": ["Hparam_file"], "filters": [sys.argv[2:]]}
sys.exit(not globals()[sys.argv[1]](**rows))
"""


class Checks:
    """Runs checks in a checkout, and keeps what came of them.

    Arguments
    ---------
    checkout : Path
        SpeechBrain's.
    folder : Path
        An empty one.
    """

    def __init__(self, checkout, folder):
        self.checkout, self.folder = checkout, folder
        self.rows = []
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        # The packages of this interpreter, but nothing that they link to, as
        # they do to this project
        places = [checkout, sysconfig.get_path("purelib")]
        (site / "places.pth").write_text("\n".join(map(str, places)), "utf-8")
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, name, *command, cwd=None, expected=0, of_all=False):
        """Runs a command, and notes whether it ends as is expected.

        A check of all files may fail for those that were there before: it
        fails there, too, and for the same reasons.
        """
        command = [*map(str, command)]
        started = time.monotonic()
        result = self._call(command, cwd or self.checkout)
        seconds = time.monotonic() - started
        output = result.stderr + result.stdout
        last = "".join(output.strip().splitlines()[-1:])[:70]
        state = "passed"
        if result.returncode != expected:
            print(f"{name}:\n{output[-3000:]}")
            state = "FAILED"
            reasons = _list_failures(output)
            if of_all and reasons and reasons <= self._fail_bare(command):
                state, last = "broken upstream", " ".join(sorted(reasons))
        self.rows.append((name, state, f"{seconds:.0f} s", last))
        return output

    def _call(self, command, cwd):
        """Runs a command in the environment."""
        return subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def _fail_bare(self, command):
        """Lists the tests that fail where these files are not, too."""
        bare = self.folder / "bare"
        run("git", "clone", "-q", self.checkout, bare, cwd=self.folder)
        if (bare / NOUNS).exists():  # they have been committed
            return set()
        return _list_failures(self._call(command, bare).stdout)


def _list_failures(output):
    """Lists the tests that pytest calls failed."""
    return {*re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)}


def check(checkout, folder):
    """Lays out, and runs all checks.

    Arguments
    ---------
    checkout : Path
        SpeechBrain's.
    folder : Path
        An empty one.

    Returns
    -------
    rows : list of tuple
        Of each check its name, "passed" or another word, its seconds, and the
        last line that it printed.
    """
    paths = lay_out(checkout)
    checks = Checks(checkout, folder)
    scripts = [path for path in paths if path.endswith(".py")]
    yamls = [path for path in paths if path.endswith(".yaml")]
    modules = [path for path in scripts if path.startswith("speechbrain")]
    tests = [path for path in scripts if path.startswith("tests")]

    python = checks.python
    checks.run(
        *("this project is not installed", python, "-c"),
        "import speechbrain_wap",
        expected=1,
    )
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    consistency = "tests/consistency"
    checks.run(consistency, *pytest, consistency, of_all=True)
    checks.run("doctests", *pytest, "--doctest-modules", *modules)
    checks.run("unit tests", *pytest, *tests)
    for name in ("run_recipe_tests", "load_yaml_test"):
        checks.run(name, python, "-c", RECIPE_TESTS, name, *yamls)
    linter = (sys.executable, "-m")
    checks.run("ruff check", *linter, "ruff", "check", "-n", *scripts)
    checks.run(
        *("ruff format", *linter, "ruff", "format", "-n", "--check", *scripts)
    )
    checks.run("yamllint", *linter, "yamllint", *yamls)
    ignored = "--ignore-words=.dict-speechbrain.txt"
    checks.run("codespell", *linter, "codespell_lib", ignored, *paths)
    train(checks)
    return checks.rows


def train(checks):
    """Trains both stages on the mini corpus, and lets the model recognise."""
    corpus = checks.folder / "corpus"
    make_corpus = PROJECT / "demo" / "make_corpus.py"
    run(sys.executable, make_corpus, corpus, cwd=PROJECT)
    recipe = checks.checkout / "recipes" / "IEMOCAP" / "wap_adapter"
    for stage, options in (
        ("adapter", ["--num_attributes=64", "--number_of_epochs=4"]),
        (
            "classifier",
            [
                f"--adapter_folder={checks.folder / 'adapter'}",
                *("--classifier_lr=0.01", "--number_of_epochs=8"),
            ],
        ),
    ):
        checks.run(
            *(f"train_{stage}.py, mini corpus", checks.python),
            *(f"train_{stage}.py", f"hparams/{stage}.yaml", *TINY, *options),
            *(f"--data_folder={corpus}", "--device=cpu", "--noprogressbar"),
            f"--feature_folder={checks.folder / 'features'}",
            f"--output_folder={checks.folder / stage}",
            cwd=recipe,
        )
        log = (checks.folder / stage / "train_log.txt").read_text("utf-8")
        *row, _ = checks.rows[-1]
        checks.rows[-1] = (*row, log.splitlines()[-1])
    dialog = corpus / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    wav = dialog / "Ses01F_impro01_F000.wav"
    folder = checks.folder / "classifier"
    checks.run("EmotionRecognizer", checks.python, "-c", RECOGNISE, folder, wav)


def show_difference(checkout):
    """Shows what lands, as git counts it."""
    with TemporaryDirectory() as name:
        index = {**os.environ, "GIT_INDEX_FILE": str(Path(name, "index"))}
        for command in (
            ["read-tree", "HEAD"],
            ["add", "--all"],
            ["diff", "--cached", "--stat=100", "HEAD"],
        ):
            subprocess.run(
                ["git", *command], cwd=checkout, env=index, check=True
            )


def main(arguments=None):
    """Reads the command line, checks, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="a clean checkout of SpeechBrain")
    checkout = Path(parser.parse_args(arguments).checkout).resolve()
    with TemporaryDirectory() as name:
        rows = check(checkout, Path(name))
    show_difference(checkout)
    commit = run("git", "log", "-1", "--format=%h of %as", cwd=checkout)
    print(f"\nSpeechBrain {commit.strip()}:\n")
    rows = [("check", "result", "time", "what it says last"), *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return any(row[1] == "FAILED" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
