"""Means of an epoch and the rows of those past, through an interruption."""

import json
import math

import pytest
import torch
from helpers import generator

from speechbrain_wap.training.checkpoints import Checkpointer
from speechbrain_wap.training.statistics import EpochStatistics


def test_means_are_over_the_steps_of_the_epoch_that_have_a_value(tmp_path):
    path = tmp_path / "new" / "history.json"
    statistics = EpochStatistics(path)
    rows = []
    for epoch in (1, 2, 3):
        loss = torch.tensor(4.0 * epoch, requires_grad=True)
        statistics.add({"loss": loss}, 3.0)
        statistics.add({"loss": 8.0 * epoch, "agreement": 0.5}, 1.0)
        statistics.add({"loss": math.nan}, 0.0)
        assert not statistics.sums["loss"].requires_grad  # holds no graph
        assert statistics.means() == {"loss": 5.0 * epoch, "agreement": 0.5}
        rows.append({"epoch": epoch, **statistics.means(), "name": "é"})
        statistics.end_epoch(rows[-1])
        assert json.loads(path.read_text(encoding="utf-8")) == rows


@pytest.mark.parametrize("interrupted_after", range(4))
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
