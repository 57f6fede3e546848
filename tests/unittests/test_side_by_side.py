"""Systems side by side: common runs, costs, tests, table and figure."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from readings import FILES, SMALL
from scipy import stats

from speechbrain_wap.comparisons import side_by_side
from speechbrain_wap.comparisons.running import find_common
from speechbrain_wap.comparisons.side_by_side import (
    COSTS,
    Row,
    gather_rows,
    measure_cost,
    write_side_by_side,
)
from speechbrain_wap.reports.report import sum_up
from speechbrain_wap.training.cross_validation import CrossValidation

SCORES = ("UA", "WA", "F1")
BASE = [[0.5, 0.6, 0.7], [0.4, 0.8, 0.6]]
GOOD = [[0.6, 0.7, 0.9], [0.6, 0.9, 0.7]]
POOR = [[0.4, 0.6, 0.2], [0.3, 0.5, 0.4]]


def make_results(scores):
    """Results of two seeds; of each seed, the UA of each fold."""
    keys = {"session": "s", "n": 9, "classes": ["a", "b"], "confusion": None}
    runs = [
        {**keys, "seed": seed, "fold": fold, **dict.fromkeys(SCORES, ua)}
        for seed, row in enumerate(scores, start=1)
        for fold, ua in enumerate(row, start=1)
    ]
    return sum_up(runs, {})


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A table of three systems: its text, numbers, folds and figure."""
    figures = []
    monkeypatch.setattr(
        side_by_side, "save_figure", lambda figure, _: figures.append(figure)
    )
    rows = [
        Row("good", make_results(GOOD), {COSTS[0]: 12345}, "hears <all>"),
        Row("=poor|", make_results(POOR), {COSTS[0]: None, "chosen": "lr=1"}),
        Row("base", make_results(BASE), {}),
    ]
    pairs = [("good", "base"), ("=poor|", "base")]
    _, path = write_side_by_side(tmp_path, "t", "Title", rows, pairs, ["Note"])
    return SimpleNamespace(
        text=path.read_text("utf-8"),
        numbers=pd.read_csv(tmp_path / "t.csv").set_index("system"),
        folds=pd.read_csv(tmp_path / "t_folds.csv"),
        axes=figures[0].axes[0],
    )


def test_anyone_can_test_again_what_the_table_says(written):
    units = written.folds.groupby(["system", "fold"])["UA"].mean().unstack()
    for name in ("good", "'=poor|"):
        gains = units.loc[name] - units.loc["base"]
        found = written.numbers.loc[name]
        assert found["against"] == "base"
        assert found["UA_difference_mean"] == pytest.approx(gains.mean())
        half = stats.t.ppf(0.975, 2) * gains.std() / np.sqrt(3)
        low, high = gains.mean() - half, gains.mean() + half
        assert found["UA_difference_low"] == pytest.approx(low)
        assert found["UA_difference_high"] == pytest.approx(high)
        # all three folds are better, or worse: 2 of 8 signs are as extreme
        assert found["UA_difference_p"] == 0.25
        assert found["UA_difference_p_holm"] == 0.5
    assert pd.isna(written.numbers.loc["base", "against"])


def test_the_table_marks_what_is_transductive_wherever_it_is_named(written):
    lines = [line for line in written.text.splitlines() if "good" in line]
    assert len(lines) == 3 and all("good" in x and "†" in x for x in lines)
    assert r"† **Transductive**: good hears \<all>." in written.text
    labels = [text.get_text() for text in written.axes.get_yticklabels()]
    assert labels == ["base", "=poor|", "good †"]
    assert written.numbers.loc["good", "transductive"] == "hears <all>"


def test_a_row_has_mean_and_spread_over_seeds_and_its_own_cells(written):
    line = next(x for x in written.text.splitlines() if "12,345" in x)
    assert line.count("73.3 ± 0.0") == 3
    assert "| lr=1" in written.text and r"=poor\|" in written.text


def test_the_figure_shows_the_intervals_of_the_folds_means(written):
    bars = written.axes.containers
    assert [bar.get_label() for bar in bars]
    for bar, scores in zip(bars, (BASE, POOR, GOOD)):
        units = 100 * np.mean(scores, axis=0)
        half = stats.t.ppf(0.975, 2) * units.std(ddof=1) / np.sqrt(3)
        line, _, (segments,) = bar.lines
        assert line.get_xdata() == pytest.approx([units.mean()])
        low, high = segments.get_segments()[0][:, 0]
        assert (low, high) == pytest.approx(
            (units.mean() - half, units.mean() + half)
        )


# What is finished, and what it cost ------------------------------------------


def plan(folder, *options):
    """A cross-validation without adapter training in a folder."""
    options = options or ("--adapter_training=False",)
    return CrossValidation(
        [*FILES, *SMALL, f"--output_folder={folder}", *options]
    )


def finish(folder, runs, minutes=None, **more):
    """Writes what finished runs, of seed and fold, leave behind."""
    for number, (seed, fold) in enumerate(runs):
        place = Path(folder, f"seed{seed}", f"fold{fold}", "classifier")
        place.mkdir(parents=True)
        scores = {"classes": ["a"], "session": "s", "n": 1, "confusion": None}
        scores |= {"seed": seed, "fold": fold, **dict.fromkeys(SCORES, 0.5)}
        scores |= {"number_of_epochs": 100, **more}
        (place / "scores.json").write_text(json.dumps(scores))
        if minutes is not None:
            cost = {"minutes": minutes + number, "peak_memory_mb": 10 * number}
            (place / "cost.json").write_text(json.dumps(cost))


def test_rows_are_of_the_runs_that_all_begun_systems_have(tmp_path):
    runs = {"one": [(1, 1), (1, 2), (2, 1)], "other": [(1, 2), (2, 1), (2, 2)]}
    plans = {name: plan(tmp_path / name) for name in (*runs, "not begun")}
    for name, its_runs in runs.items():
        finish(tmp_path / name, its_runs, transductive=f"hears {name}")
    rows = gather_rows(plans)
    assert [row.system for row in rows] == list(runs)
    for row in rows:
        found = [(run["seed"], run["fold"]) for run in row.results["runs"]]
        assert found == [(1, 2), (2, 1)]
        assert row.transductive == f"hears {row.system}"
    finish(tmp_path / "not begun", [(9, 9)])
    assert gather_rows(plans) == gather_rows({}) == []


def test_minutes_are_of_both_stages_and_unknown_costs_are_none(tmp_path):
    finish(tmp_path, [(1, 1), (1, 2)], minutes=2.0, trained_parameters=7)
    alone = plan(tmp_path)
    (runs,) = find_common([alone])
    costs = dict(zip(COSTS, (7, 2.5, 10)))
    assert measure_cost(alone, runs) == costs
    both = plan(tmp_path, f"--adapters_folder={tmp_path / 'shared'}")
    # a part of both stages is not what they cost
    unknown = dict.fromkeys(COSTS[1:])
    assert measure_cost(both, runs) == {**costs, **unknown}
    for fold in (1, 2):
        adapter = Path(both.find_adapter(1, fold))
        adapter.mkdir(parents=True)
        cost = {"minutes": 4.0, "peak_memory_mb": None}
        (adapter / "cost.json").write_text(json.dumps(cost))
    assert measure_cost(both, runs) == {**costs, **unknown, COSTS[1]: 6.5}
