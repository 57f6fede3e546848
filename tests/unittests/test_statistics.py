"""Means of an epoch and the rows of those past, through an interruption."""

import json

import pytest
import torch
from helpers import generator

from speechbrain_wap.training.checkpoints import Checkpointer
from speechbrain_wap.training.statistics import EpochStatistics

STEPS = [
    {"loss": 0.5, "UA": 0.25},
    {"loss": 2.0, "UA": 0.5},
    {"loss": 1, "UA": 0},
]


@pytest.mark.parametrize("as_type", [float, torch.tensor], ids=str)
def test_means_are_over_the_steps_of_the_epoch(tmp_path, as_type):
    statistics = EpochStatistics(tmp_path / "history.json")
    for epoch in (1, 2):
        for step in STEPS:
            statistics.add({k: as_type(v * epoch) for k, v in step.items()})
        means = statistics.means()
        assert means == pytest.approx(
            {"loss": 3.5 / 3 * epoch, "UA": epoch / 4}
        )
        assert all(type(value) is float for value in means.values())
        statistics.end_epoch({"epoch": epoch})
        assert statistics.means() == {}


def test_statistics_hold_no_graph(tmp_path):
    statistics = EpochStatistics(tmp_path / "history.json")
    weight = torch.ones((), requires_grad=True)
    for _ in range(2):
        statistics.add({"loss": 3.0 * weight})
    assert not statistics.sums["loss"].requires_grad
    assert statistics.means() == {"loss": 3.0}


def test_the_file_has_a_row_for_each_epoch(tmp_path):
    path = tmp_path / "new" / "history.json"
    statistics = EpochStatistics(path)
    rows = []
    for epoch in (1, 2, 3):
        rows.append({"epoch": epoch, "loss": 1.0 / epoch, "name": "é"})
        statistics.end_epoch(rows[-1])
        assert json.loads(path.read_text(encoding="utf-8")) == rows
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("interrupted_after", range(len(STEPS) + 1))
def test_an_interruption_changes_neither_means_nor_rows(
    tmp_path, interrupted_after
):
    def make(name):
        statistics = EpochStatistics(tmp_path / f"{name}.json")
        return statistics, Checkpointer(
            tmp_path / "save", {"statistics": statistics}
        )

    def go_on(statistics, start):
        for step in steps[start:]:
            statistics.add({k: torch.tensor(v) for k, v in step.items()})
        means = statistics.means()
        statistics.end_epoch({"epoch": 2, **means})
        return means

    steps = [{"loss": float(x)} for x in torch.rand(3, generator=generator())]
    whole, checkpointer = make("whole")
    whole.end_epoch({"epoch": 1, "loss": 9.0})
    for step in steps[:interrupted_after]:
        whole.add({k: torch.tensor(v) for k, v in step.items()})
    checkpointer.save_checkpoint()
    expected = go_on(whole, interrupted_after)
    # lost again, since no checkpoint has it
    whole.end_epoch({"epoch": 3})

    resumed, checkpointer = make("whole")
    checkpointer.recover_if_possible()
    assert go_on(resumed, interrupted_after) == expected
    rows = [{"epoch": 1, "loss": 9.0}, {"epoch": 2, **expected}]
    assert resumed.rows == rows
    assert json.loads((tmp_path / "whole.json").read_text()) == rows


def test_values_that_some_steps_lack_are_averaged_over_the_others(tmp_path):
    statistics = EpochStatistics(tmp_path / "history.json")
    statistics.add({"loss": 4.0}, 3.0)
    statistics.add({"loss": 8.0, "agreement": 0.5}, 1.0)
    assert statistics.means() == {"loss": 5.0, "agreement": 0.5}
