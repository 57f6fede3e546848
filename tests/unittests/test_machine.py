"""What this machine does to a run is said before it starts, and only then."""

import json
import os
import subprocess
import sys

import pytest
import torch
from readings import find_yaml

from speechbrain_wap.training import machine
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.jobs import run_jobs
from speechbrain_wap.training.machine import RunCost


@pytest.fixture
def warn(monkeypatch, caplog):
    """Says what is slow on a machine of four cores; returns what is said."""
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(
        machine.os, "sched_getaffinity", lambda _: range(4), raising=False
    )

    def run(*options, busy=0, threads=4, slow=1.0, **given):
        seconds = {torch.bfloat16: slow, torch.float32: 1.0}
        monkeypatch.setattr(machine, "_time_product", seconds.get)
        monkeypatch.setattr(machine, "_count_busy_cores", lambda: busy)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        machine._warn_of_bf16.cache_clear()
        machine._warn_of_threads.cache_clear()
        caplog.clear()
        command = read_command([find_yaml(), "--device=cpu", *options])
        for _ in range(2):  # it is said once
            machine.warn_of_slow_run(command.run_opts, **given)
        return [record.getMessage() for record in caplog.records]

    return run


def test_a_precision_that_is_slow_here_is_named_with_its_factor(warn):
    (said,) = warn("--precision=bf16", slow=60.0)
    assert said.startswith("--precision=bf16 is slow on this processor")
    assert "60 times" in said
    assert warn("--precision=bf16", slow=0.2) == warn(slow=60.0) == []
    assert machine._time_product(torch.float32) > 0


def test_more_threads_than_free_cores_are_named_with_the_cure(warn):
    assert warn() == []
    (said,) = warn(busy=2)
    assert "4 threads, but 2 of 4 cores free" in said
    assert "OMP_NUM_THREADS=1" in said
    assert warn(busy=9, threads=1) == []  # one thread waits for none
    (said,) = warn(num_jobs=4, threads=2)
    assert "8 threads, but 4 of 4" in said


@pytest.mark.parametrize("given, threads", [(None, 1), ("3", 3)])
def test_jobs_leave_the_number_of_threads_alone(monkeypatch, given, threads):
    """On which the last digits of sums depend."""
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    machine.use_one_thread()
    assert torch.get_num_threads() == threads
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    torch.set_num_threads(before)


def test_jobs_end_with_their_numbers_and_an_error_reaches_the_caller():
    assert dict(run_jobs(2, pow, [(2, 5), (3, 4)])) == {0: 32, 1: 81}
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(2, divmod, [(1, 1), (1, 0)]))


# What a run has cost ---------------------------------------------------------


def test_a_run_that_goes_on_adds_up_minutes_and_keeps_the_peak(
    tmp_path, monkeypatch
):
    clock, peaks = iter([0, 60, 120, 1000, 1030]), iter([5.0, 9.0, 7.0])
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(RunCost, "_peak_memory", lambda self: next(peaks))
    cost = RunCost(tmp_path / "cost.json", "cpu")
    cost.record()  # nothing has started
    assert not list(tmp_path.iterdir())
    expected = [(1.0, 5.0), (2.0, 9.0), (2.5, 9.0)]
    for number, (minutes, peak) in enumerate(expected):
        if number != 1:
            cost.start(goes_on=number > 0)
        cost.record()
        found = json.loads((tmp_path / "cost.json").read_text())
        assert found == {"minutes": minutes, "peak_memory_mb": peak}


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells no peak")
def test_the_peak_of_one_run_is_not_that_of_another_before(tmp_path):
    """In a process of its own: an earlier test may have kept freed memory."""
    script = tmp_path / "peaks.py"
    script.write_text(
        "from speechbrain_wap.training.machine import RunCost\n"
        "cost = RunCost('cost.json', 'cpu')\n"
        "before = bytearray(200_000_000)\n"
        "before[::4096] = b'x' * len(before[::4096])\n"
        "cost.start(goes_on=False)\n"
        "print(cost._peak_memory())\n"
        "del before\n"
        "cost.start(goes_on=False)\n"
        "print(cost._peak_memory())\n"
    )
    said = subprocess.run(
        [sys.executable, script], check=True, capture_output=True, text=True
    )
    high, low = map(float, said.stdout.split())
    assert high - 250 < low < high - 150
