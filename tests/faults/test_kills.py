"""SIGKILL at any moment, then the same command again: the same results.

A run is both stages in two folds with a feature cache of its own, the work of
a few seconds. Moments are drawn anew for each kill, with fixed seeds; the
option --kills=N tries more of them.
"""

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from fork_server import ForkServer
from make_corpus import make_demo_corpus
from recipe_runs import TINY

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs fork and /proc"
)

OPTIONS = [
    *("hparams/adapter.yaml", "hparams/classifier.yaml", *TINY),
    *("--batch_size=8", "--num_attributes=8", "--number_of_epochs=2"),
    *("--folds=1,2", "--ckpt_interval_minutes=0", "--ckpt_interval_steps=3"),
]
STAGES = {"adapter": "stage 1", "classifier": "stage 2"}
# They tell of the runs and their times, of which there are more after a kill.
DIARIES = {"log.txt", "train_log.txt", "env.log", "hyperparams.yaml"}
# What a run says on its way
MILESTONES = re.compile(
    r"Experiment folder: \S*/fold(?P<fold>\d+)/(?P<stage>\w+)"
    r"|(?P<extraction>Extracting features of)"
    r"|(?P<start>Setting seed to)"
    r"|(?P<loaded>Loading a checkpoint)"
    r"|Going into epoch (?P<epoch>\d+)"
    r"|(?P<test>Epoch loaded)"
    r"|^\[(?P<done>\d+)/2\] fold",
    re.MULTILINE,
)


class Run:
    """A run's folder and what happens to it.

    Arguments
    ---------
    server : ForkServer
        Starts the processes.
    folder : pathlib.Path
        Gets output and cache; its name makes torch write through Python.
    corpus : pathlib.Path
        A demo corpus.
    """

    def __init__(self, server, folder, corpus):
        self.server = server
        self.folder = folder / "rün"
        self.folder.mkdir()
        self.output, self.cache = self.folder / "out", self.folder / "cache"
        self.options = [
            *(*OPTIONS, f"--data_folder={corpus}"),
            *(f"--output_folder={self.output}", f"--cache_folder={self.cache}"),
        ]
        self.attempts = 0
        self.orphans = []
        self.kept = {}
        self.expected_loads = []

    def start(self, num_workers=0, **stop):
        """Starts the command; returns the process's id."""
        self.attempts += 1
        self.before = self.list_unfinished()
        self.log = self.folder / f"log{self.attempts}"
        self.trace = self.folder / f"trace{self.attempts}"
        return self.server.start(
            {
                "arguments": [
                    *self.options,
                    f"--feature_workers={num_workers}",
                ],
                "log": str(self.log),
                "watch": {
                    "folder": str(self.folder),
                    "trace": str(self.trace),
                    **stop,
                },
            }
        )

    def end(self):
        """Waits for the process; tells whether it was killed."""
        code = self.server.finish()
        said = self.log.read_text("utf-8")
        assert code in (0, -signal.SIGKILL), said[-3000:]
        self.check_kept(said)
        if code:
            self.note_kept()
        return code != 0

    def kill(self, seconds, num_workers=0, with_workers=True):
        """Kills the run after a time; tells whether it was still there."""
        pid = self.start(num_workers)
        if not self.server.has_ended(seconds):
            self.send_kill(pid, with_workers)
        return self.end()

    def kill_at_operation(self, pattern, count, begun=False):
        """Kills the run at a moment when it changes the disk."""
        self.start(pattern=pattern, count=count, begun=begun)
        return self.end()

    def kill_at_first_entry(self, with_workers):
        """Kills two workers and the main process, or that alone."""
        before = len(self.list_entries())
        pid = self.start(num_workers=2)
        while len(self.list_entries()) == before:
            assert not self.server.has_ended(0.002), "it made no entries"
        self.send_kill(pid, with_workers)
        assert self.end()

    def send_kill(self, pid, with_workers):
        """Ends the process with or without its workers."""
        if with_workers:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
            self.orphans.append(pid)

    def finish(self):
        """Runs the command to its end, whatever is left to do."""
        self.start()
        assert not self.end()
        deadline = time.time() + 30
        while any(map(list_group, self.orphans)):
            assert time.time() < deadline, "workers outlive their parent"
            time.sleep(0.1)

    def list_operations(self):
        """Reads how the last process changed the disk, in order."""
        return self.trace.read_text("utf-8").splitlines()

    def list_entries(self):
        """Lists the entries of the feature cache."""
        return list(self.cache.glob("*/*/[!.]*.safetensors"))

    def list_unfinished(self):
        """Lists folders of checkpoints that are not there for SpeechBrain.

        With the time of their last change: names are of a second and serve
        again.
        """
        folders = self.output.glob("seed*/fold*/*/save/CKPT*")
        return {
            (folder, folder.stat().st_ctime_ns)
            for folder in folders
            if not (folder / "CKPT.yaml").exists()
        }

    def find_checkpoint(self, fold, stage):
        """Finds the newest checkpoint, and its meta file's content."""
        found = []
        place = f"seed*/fold{fold}/{stage}/save/CKPT*/CKPT.yaml"
        for path in self.output.glob(place):
            meta = yaml.safe_load(path.read_text("utf-8"))
            found.append((meta["unixtime"], path.parent, meta))
        return max(found)[1:] if found else (None, None)

    def list_finished(self):
        """Lists the scores that say that a fold is finished."""
        return sorted(self.output.glob("seed*/fold*/classifier/scores.json"))

    def estimate_left(self):
        """Estimates what is left to do, as a share of the whole run."""
        stages = list(self.output.glob("seed*/fold*/*"))
        finished = max(len(stages) - 1, 0) + (len(self.list_finished()) == 2)
        return max(1.0 - 0.22 * finished, 0.2)

    def note_kept(self):
        """Notes what the next process must neither make again nor lose."""
        for path in [*self.list_entries(), *self.list_finished()]:
            self.kept.setdefault(path, path.stat().st_mtime_ns)
        fold = len(self.list_finished()) + 1
        found = [self.find_checkpoint(fold, stage)[0] for stage in STAGES]
        self.expected_loads = [str(path) for path in found if path]

    def check_kept(self, said):
        """Sees that the process went on from what was kept before it."""
        for path, time_ns in self.kept.items():
            assert path.stat().st_mtime_ns == time_ns, f"{path} is made again"
        loads = re.findall(r"Loading a checkpoint from (.+)", said)
        number = min(len(loads), len(self.expected_loads))
        assert loads[:number] == self.expected_loads[:number]

    def tell_where(self):
        """Tells where the last process was when it was killed."""
        place = {}
        said = self.log.read_text("utf-8")
        for milestone in MILESTONES.finditer(said):
            new = {k: v for k, v in milestone.groupdict().items() if v}
            if "fold" in new or "done" in new:
                place = {}
            elif "start" in new:
                place.pop("extraction", None)
            place |= new
        if place.get("done") == "2":
            return "report"
        if place.get("done"):
            return "between the folds"
        if not place:
            return "preparation"
        where = f"{STAGES[place['stage']]}, fold {place['fold']}"
        if "extraction" in place:
            return f"extraction ({where})"
        if "test" in place:
            where += ", results"
        elif "epoch" in place:
            where += f", epoch {place['epoch']}"
        elif "loaded" in place:
            where += ", going on from a checkpoint"
        else:
            where += ", at its start"
        *_, last = self.list_operations()
        old = re.match(r"os\.(?:remove|rmdir) (.*/CKPT[^/]*)", last)
        if old and (self.folder / old[1]).exists():
            where += ", while an old checkpoint was deleted"
        elif self.list_unfinished() - self.before:
            where += ", while a checkpoint was written"
        return where

    def tell_kept(self, total):
        """Tells what the next process can go on from."""
        kept = []
        if self.list_entries():
            kept.append(f"{len(self.list_entries())} of {total} features")
        done = len(self.list_finished())
        kept += [f"fold {fold}" for fold in range(1, done + 1)]
        for stage, name in STAGES.items():
            folder, meta = self.find_checkpoint(done + 1, stage)
            if folder is None:
                continue
            epoch = (folder / "counter.ckpt").read_text("utf-8").strip()
            if not meta["end-of-epoch"]:
                state = (folder / "brain.ckpt").read_text("utf-8")
                step = yaml.safe_load(state)["step"]
                kept.append(f"{name} up to step {step} of epoch {epoch}")
            else:
                kept.append(f"{name} up to epoch {epoch}")
        if (self.output / "results.json").exists():
            kept.append("results.json")
        return ", ".join(kept) or "nothing was there yet"

    def read_outcome(self):
        """Reads all files that must be as if the run was never killed."""
        outcome = {}
        for path in sorted(self.output.rglob("*")):
            name = str(path.relative_to(self.output))
            is_left = path.name.startswith(".")  # half-written, and unread
            is_diary = path.name in DIARIES
            if path.is_file() and not (is_left or is_diary or "CKPT" in name):
                outcome[name] = path.read_bytes()
        for fold in (1, 2):
            for stage in STAGES:
                folder, _ = self.find_checkpoint(fold, stage)
                for path in folder.glob("*.ckpt"):
                    name = f"fold{fold}/{stage}/{path.name}"
                    outcome[name] = path.read_bytes()
        for path in self.list_entries():
            outcome[path.name] = path.read_bytes()
        return outcome


def list_group(group):
    """Lists the processes of a group that still run."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            running.append(path.parent.name)
    return running


def shorten(operation):
    """Takes out of an operation what differs between runs."""
    event, path = operation.split(" ", 1)
    path = re.sub(r"CKPT\+[^/]*", "CKPT", path)
    path = re.sub(r"\.(\S+)\.\d+\.tmp$", r"\1 (temporary name)", path)
    path = re.sub(r"\b[0-9a-f]{16}\b", "key", path)
    path = re.sub(r"\b[0-9a-f]{32,}\b", "digest", path)
    path = re.sub(r"(cache/key)/[0-9a-f]{2}\b", r"\1/xx", path)
    return f"{event.removeprefix('os.')} {path}"


def tell_moment(run, begun):
    """Tells at which operation a run has killed itself."""
    last = shorten(run.list_operations()[-1])
    # of others there is no beginning
    begun = begun and last.startswith(("open", "write"))
    return f"just {'begun' if begun else 'before'}: {last}"


@pytest.fixture(scope="module")
def server():
    """Starts the processes that are killed."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A demo corpus of 80 utterances."""
    folder = tmp_path_factory.mktemp("data") / "IEMOCAP"
    make_demo_corpus(folder, seed=1, utterances_per_speaker=8)
    return folder


@pytest.fixture
def make_run(server, corpus, tmp_path_factory):
    """Makes a run that has not begun."""

    def make():
        return Run(server, tmp_path_factory.mktemp("run"), corpus)

    return make


@pytest.fixture(scope="module")
def undisturbed(server, corpus, tmp_path_factory):
    """A run that is never killed: its outcome, its length in time and acts."""
    run = Run(server, tmp_path_factory.mktemp("undisturbed"), corpus)
    started = time.time()
    run.finish()
    return {
        "outcome": run.read_outcome(),
        "seconds": time.time() - started,
        "operations": len(run.list_operations()),
        "entries": len(run.list_entries()),
    }


@pytest.fixture
def finish(undisturbed, record_fault):
    """Ends a run and compares it; only then its kills are recorded."""

    def end(run, kills):
        run.finish()
        outcome, expected = run.read_outcome(), undisturbed["outcome"]
        differ = [
            name
            for name in sorted(outcome.keys() | expected.keys())
            if outcome.get(name) != expected.get(name)
        ]
        told = "\n".join(": ".join(kill) for kill in kills)
        assert not differ, f"{differ} differ after\n{told}"
        for fault, where, kept in kills:
            record_fault("kill", fault, f"{where}; same results", kept)

    return end


def plan_runs(num_kills):
    """Splits the kills into runs that are killed two to four times."""
    choice, plan = random.Random("plan"), []
    while num_kills > 0:
        plan.append(min(choice.choice([2, 3, 4]), num_kills))
        num_kills -= plan[-1]
    return plan


def pytest_generate_tests(metafunc):
    """Makes a test of each run that is killed at random."""
    if "num_hits" in metafunc.fixturenames:
        plan = plan_runs(metafunc.config.getoption("--kills"))
        ids = [f"run{number}" for number in range(1, len(plan) + 1)]
        metafunc.parametrize(
            ["number", "num_hits"], list(enumerate(plan, start=1)), ids=ids
        )


def kill_at_random(run, choice, undisturbed):
    """Kills a run somewhere in what is left of it.

    Returns
    -------
    fault : str or None
        None if the run was finished before.
    """
    left = run.estimate_left()
    drawn = choice.uniform(0.0, left)
    # there are so few operations after the last stage that most would miss
    if choice.random() < 0.5 and left > 0.2:
        number = 1 + int(drawn * undisturbed["operations"])
        begun = choice.random() < 0.5
        hit = run.kill_at_operation("", number, begun)
        if not hit:
            return None
        return f"at a random operation, {tell_moment(run, begun)}"
    num_workers = choice.choice([0, 2])
    with_workers = not num_workers or choice.random() < 0.5
    seconds = drawn * undisturbed["seconds"]
    hit = run.kill(seconds, num_workers, with_workers)
    fault = "at a random time" + (
        "" if with_workers else ", the main process alone"
    )
    return fault if hit else None


def test_kills_at_random_moments_change_nothing(
    number, num_hits, make_run, undisturbed, finish
):
    choice = random.Random(f"run {number}")
    run, kills, hits = make_run(), [], 0
    while hits < num_hits:
        fault = kill_at_random(run, choice, undisturbed)
        if fault is None:  # it was finished before that moment
            finish(run, kills)
            run, kills = make_run(), []
            continue
        hits += 1
        fault = f"run {number}, kill {hits}, {fault}"
        kept = run.tell_kept(undisturbed["entries"])
        kills.append((fault, run.tell_where(), kept))
    finish(run, kills)


# Where it must be, what that means, the operation, its number in that process,
# and whether it is begun
DIRECTED = {
    "preparation and extraction": [
        ("prep", "the table has no name yet", r"rename out/\.corpus", 1, False),
        (
            "extr",
            "an entry has no name yet",
            r"rename cache/.*safet",
            20,
            False,
        ),
        ("extr", "a folder of entries", r"mkdir cache/\w+/\w+$", 5, False),
        ("extr", "the adapter's record is empty", r"open .*\.adapter", 1, True),
    ],
    "stage 1": [
        ("stage 1", "before a checkpoint", r"mkdir .*/CKPT", 1, False),
        ("written", "a file is half written", r"write .*CKPT.*/stud", 2, True),
        ("written", "a file is empty", r"open .*CKPT.*/statistics", 2, True),
        ("written", "it has no name yet", r"rename .*CKPT", 2, False),
        ("deleted", "the old one is whole", r"remove .*CKPT", 1, False),
        ("deleted", "half of the old one is left", r"remove .*CKPT", 5, False),
        ("epoch 2", "only the history has it", r"remove .*\.history", 1, False),
        ("stage 1", "before stage 2", r"mkdir .*classifier$", 1, False),
    ],
    "stage 2": [
        ("written", "a file is half written", r"write .*2/cl.*/model", 2, True),
        (
            "written",
            "the second optimiser",
            r"open .*2/cl.*/class.*_o",
            2,
            True,
        ),
        ("deleted", "half of the old one", r"remove .*2/cl.*CKPT", 7, False),
        ("results", "predictions.csv is empty", r"open .*2/.*\.pred", 1, True),
        ("results", "no scores.json", r"open .*2/cl.*/\.scores", 1, False),
        ("results", "it has no name yet", r"rename .*2/cl.*/\.scor", 1, False),
    ],
    "report": [
        ("between", "before the next fold", r"mkdir out/.*fold2", 1, False),
        ("report", "results.json is empty", r"open out/\.results", 1, True),
        ("report", "it has no name yet", r"rename out/\.results", 1, False),
        ("report", "results.json, no figures", r"open out/\.conf", 1, False),
        ("report", "a figure is empty", r"open out/\.adapter_c", 1, True),
        ("report", "report.md is empty", r"open out/\.report", 1, True),
        ("report", "it has no name yet", r"rename out/\.report", 1, False),
    ],
}


@pytest.mark.parametrize("part", DIRECTED)
def test_kills_at_chosen_operations_change_nothing(
    part, make_run, undisturbed, finish
):
    run, kills = make_run(), []
    for place, what, pattern, count, begun in DIRECTED[part]:
        assert run.kill_at_operation(pattern, count, begun), what
        where = run.tell_where()
        assert place in where, what
        kept = run.tell_kept(undisturbed["entries"])
        kills.append((f"{what}, {tell_moment(run, begun)}", where, kept))
    finish(run, kills)


def test_workers_do_no_harm_when_their_parent_is_killed(
    make_run, undisturbed, finish
):
    run, kills = make_run(), []
    for with_workers in (False, True):
        run.kill_at_first_entry(with_workers)
        whom = "with" if with_workers else "but not"
        fault = f"extraction: the main process, {whom} its two workers"
        kept = run.tell_kept(undisturbed["entries"])
        kills.append((fault, run.tell_where(), kept))
    assert 0 < len(run.list_entries()) < undisturbed["entries"]
    finish(run, kills)


def test_the_compared_files_hold_what_matters(undisturbed):
    """The law would say little if the outcome left out what it is about."""
    outcome = undisturbed["outcome"]
    results = json.loads(outcome["results.json"])
    assert [entry["fold"] for entry in results["runs"]] == [1, 2]
    for fold in (1, 2):
        place = f"seed1993/fold{fold}"
        for name in ("predictions.csv", "scores.json", "history.json"):
            assert outcome[f"{place}/classifier/{name}"]
        for part in ("student", "teacher", "local_attributes", "optimizer"):
            assert outcome[f"fold{fold}/adapter/{part}.ckpt"]
    entries = [name for name in outcome if name.endswith(".safetensors")]
    assert len(entries) == undisturbed["entries"] > 50
