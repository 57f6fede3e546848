"""SIGKILL at any moment, then the same command again: the same results.

A run is both stages in two folds with a feature cache of its own, the work of
a few seconds. `make test` kills one in extraction, in each stage and in the
report, `make faults` at many more chosen and random moments.
"""

import functools
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
from make_corpus import make_demo_corpus
from recipe_runs import SERVER, TINY, ForkedRun
from watch import watch_disk

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs fork and /proc"
)

OPTIONS = [
    *("cross_validate.py", "adapter", "classifier", *TINY),
    *("--batch_size=8", "--num_attributes=8", "--number_of_epochs=2"),
    *("--folds=1,2", "--ckpt_interval_minutes=0", "--ckpt_interval_steps=3"),
    "--label_fraction=0.5",
]
STAGES = ("adapter", "classifier")
# They tell of the runs and their times, of which there are more after a kill.
DIARIES = {"log.txt", "train_log.txt", "env.log", "hyperparams.yaml"}
DIARIES.add("cost.json")
# The same of it on the report page
COSTS = rb"[\d.,]+ (minutes, all runs together|MB of memory at most)"
KILLS_OF_RUNS = [3, 2, 4, 3, 2, 4, 3, 2, 4, 3]  # at random moments


class KilledRun:
    """A run's folder and what happens to it.

    Arguments
    ---------
    folder : pathlib.Path
        Gets output and cache; its name makes torch write through Python.
    corpus : pathlib.Path
        A demo corpus.
    """

    def __init__(self, folder, corpus):
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
        self.kills = []

    def start(self, num_workers=0, **stop):
        """Starts the command."""
        self.attempts += 1
        self.trace = self.folder / f"trace{self.attempts}"
        self.trace.touch()
        watch = functools.partial(
            watch_disk, str(self.folder), str(self.trace), **stop
        )
        workers = f"--feature_workers={num_workers}"
        self.run = ForkedRun(*self.options, workers, prepare=watch)

    def end(self, fault=None):
        """Waits for the process; says whether it was killed, by the fault."""
        code, said = self.run.wait(), self.run.said()
        assert code in (0, -signal.SIGKILL), said[-3000:]
        self.check_kept(said)
        if code:
            self.note_kept()
            self.kills.append((fault, self.describe_moment(), *self.count()))
        return code != 0

    def kill(self, fault, seconds, num_workers=0, with_workers=True):
        """Kills the run after a time; says whether it was still there."""
        self.start(num_workers)
        if self.run.wait(seconds) is None:
            self.send_kill(with_workers)
        return self.end(fault)

    def kill_at_operation(self, fault, pattern, count, begun=False):
        """Kills the run at a moment when it changes the disk."""
        self.start(pattern=pattern, count=count, begun=begun)
        return self.end(fault)

    def send_kill(self, with_workers):
        """Ends the process with or without its workers."""
        (process,) = self.run.processes
        if with_workers:
            self.run.kill()
        else:
            os.kill(process.pid, signal.SIGKILL)
            self.orphans.append(process.pid)

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

    def list_finished(self):
        """Lists the scores that say that a fold is finished."""
        return sorted(self.output.glob("seed*/fold*/classifier/scores.json"))

    def find_checkpoint(self, fold, stage):
        """Finds the newest checkpoint of a stage, if there is one."""
        found = []
        place = f"seed*/fold{fold}/{stage}/save/CKPT*/CKPT.yaml"
        for path in self.output.glob(place):
            meta = yaml.safe_load(path.read_text("utf-8"))
            found.append((meta["unixtime"], path.parent))
        return max(found)[1] if found else None

    def note_kept(self):
        """Notes what the next process must neither make again nor lose."""
        for path in [*self.list_entries(), *self.list_finished()]:
            self.kept.setdefault(path, path.stat().st_mtime_ns)
        fold = len(self.list_finished()) + 1
        found = [self.find_checkpoint(fold, stage) for stage in STAGES]
        self.expected_loads = [str(path) for path in found if path]

    def check_kept(self, said):
        """Sees that the process went on from what was kept before it."""
        for path, time_ns in self.kept.items():
            assert path.stat().st_mtime_ns == time_ns, f"{path} is made again"
        loads = re.findall(r"Loading a checkpoint from (.+)", said)
        number = min(len(loads), len(self.expected_loads))
        assert loads[:number] == self.expected_loads[:number]

    def count(self):
        """Counts what the next process can go on from, for the table."""
        kept = [f"{len(self.list_entries())} features"]
        kept.append(f"{len(self.list_finished())} folds")
        stages = [Path(path).parts[-3] for path in self.expected_loads]
        return [", ".join([*kept, *(f"an unfinished {s}" for s in stages)])]

    def describe_moment(self):
        """Describes the last operation, without what differs between runs."""
        if not self.list_operations():
            return "before it has written anything"
        last = self.list_operations()[-1]
        last = re.sub(r"CKPT\+[^/]*", "CKPT", last)
        last = re.sub(r"\.(\S+)\.\d+\.tmp$", r"\1 (temporary name)", last)
        last = re.sub(r"\b[0-9a-f]{16,}\b", "digest", last)
        return f"at: {last.removeprefix('os.')}"

    def read_outcome(self):
        """Reads all files that must be as if the run was never killed."""
        outcome = {}
        for path in sorted(self.output.rglob("*")):
            name = str(path.relative_to(self.output))
            is_left = path.name.startswith(".")  # half-written, and unread
            is_diary = path.name in DIARIES
            if path.is_file() and not (is_left or is_diary or "CKPT" in name):
                outcome[name] = path.read_bytes()
                if path.name == "report.html":  # what the runs took
                    outcome[name] = re.sub(COSTS, b"", outcome[name])
        for fold in (1, 2):
            for stage in STAGES:
                for path in self.find_checkpoint(fold, stage).glob("*.ckpt"):
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


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory):
    """A demo corpus of 80 utterances."""
    folder = tmp_path_factory.mktemp("data") / "IEMOCAP"
    make_demo_corpus(folder, seed=1, utterances_per_speaker=8)
    return folder


@pytest.fixture
def make_run(small_corpus, tmp_path_factory):
    """Makes a run that has not begun."""
    return lambda: KilledRun(tmp_path_factory.mktemp("run"), small_corpus)


@pytest.fixture(scope="module")
def undisturbed(small_corpus, tmp_path_factory):
    """A run that is never killed: its outcome, its length in time and acts."""
    run = KilledRun(tmp_path_factory.mktemp("undisturbed"), small_corpus)
    server = SERVER.Process(target=os.getpid)  # what is imported once
    server.start(), server.join()
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

    def end(run):
        run.finish()
        outcome, expected = run.read_outcome(), undisturbed["outcome"]
        names = sorted(outcome.keys() | expected.keys())
        differ = [n for n in names if outcome.get(n) != expected.get(n)]
        assert not differ, f"{differ} differ after {run.kills}"
        for fault, moment, kept in run.kills:
            record_fault("kill", fault, f"{moment}; same results", kept)

    return end


@pytest.mark.long
@pytest.mark.parametrize("number, num_kills", enumerate(KILLS_OF_RUNS))
def test_kills_at_random_moments_change_nothing(
    number, num_kills, make_run, undisturbed, finish
):
    choice = random.Random(f"run {number}")
    run, left, count = make_run(), 1.0, 0
    while count < num_kills:
        share = choice.uniform(0.0, left)
        fault = f"run {number}, kill {count + 1}, at a random "
        if choice.random() < 0.5:
            nth = 1 + int(share * undisturbed["operations"])
            begun = choice.random() < 0.5
            fault += "operation, begun" if begun else "operation"
            is_killed = run.kill_at_operation(fault, "", nth, begun)
        else:
            workers = choice.choice([0, 2])
            alone = workers > 0 and choice.random() < 0.5
            fault += "time, the main process alone" if alone else "time"
            seconds = share * undisturbed["seconds"]
            is_killed = run.kill(fault, seconds, workers, not alone)
        if is_killed:
            count += 1
            left = max(left - share, 0.2)
        else:  # it was finished before that moment
            finish(run)
            run, left = make_run(), 1.0
    finish(run)


# What that means, the operation, its number in that process, and whether it is
# begun
CHOSEN = {
    "one of each": [
        ("an entry has no name yet", r"rename cache/.*safet", 20, False),
        ("a file is half written", r"write .*/ad.*CKPT.*/student", 2, True),
        ("a file is half written", r"write .*2/cl.*CKPT.*/model", 2, True),
        ("no scores.json", r"open .*2/cl.*/\.scores", 1, False),
        ("report.md is empty", r"open out/\.report", 1, True),
    ],
    "preparation and extraction": [
        ("the table has no name yet", r"rename out/\.corpus", 1, False),
        ("a folder of entries", r"mkdir cache/\w+/\w+$", 5, False),
        ("the adapter's record is empty", r"open .*\.adapter", 1, True),
    ],
    "stage 1": [
        ("before a checkpoint", r"mkdir .*/CKPT", 1, False),
        ("a file is empty", r"open .*CKPT.*/statistics", 2, True),
        ("it has no name yet", r"rename .*CKPT", 2, False),
        ("the old one is whole", r"remove .*CKPT", 1, False),
        ("half of the old one is left", r"remove .*CKPT", 5, False),
        ("only the history has it", r"remove .*\.history", 1, False),
        ("before stage 2", r"mkdir .*classifier$", 1, False),
    ],
    "stage 2": [
        ("the second optimiser", r"open .*2/cl.*/class.*_o", 2, True),
        ("half of the old one", r"remove .*2/cl.*CKPT", 7, False),
        ("predictions.csv is empty", r"open .*2/.*\.pred", 1, True),
        ("scores.json has no name yet", r"rename .*2/cl.*/\.scor", 1, False),
    ],
    "report": [
        ("before the next fold", r"mkdir out/.*fold2", 1, False),
        ("results.json is empty", r"open out/\.results", 1, True),
        ("it has no name yet", r"rename out/\.results", 1, False),
        ("results.json, no figures", r"open out/\.conf", 1, False),
        ("a figure is empty", r"open out/\.adapter_c", 1, True),
        ("report.md has no name yet", r"rename out/\.report", 1, False),
    ],
}


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[] if number == 0 else pytest.mark.long)
        for number, part in enumerate(CHOSEN)
    ],
)
def test_kills_at_chosen_operations_change_nothing(part, make_run, finish):
    run = make_run()
    for moment in CHOSEN[part]:
        assert run.kill_at_operation(*moment), moment
    finish(run)


@pytest.mark.long
def test_workers_do_no_harm_when_their_parent_is_killed(
    make_run, undisturbed, finish
):
    run = make_run()
    for with_workers, whom in ((True, "with"), (False, "but not")):
        before = len(run.list_entries())
        run.start(num_workers=2)
        while len(run.list_entries()) == before:
            assert run.run.wait(0.002) is None, "it made no entries"
        run.send_kill(with_workers)
        assert run.end(f"extraction: the main process, {whom} its two workers")
    assert 0 < len(run.list_entries()) < undisturbed["entries"]
    finish(run)


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
