"""Means of an epoch and the rows of those past, through an interruption."""

import json
import math

import torch

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
