"""The benchmarks run, on models too small to be measured."""

import json
import logging
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def training(monkeypatch):
    """benchmarks/training.py, whose child processes are calls instead."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import codebooks
    import training
    import workloads

    children = {
        "codebooks.py": codebooks.measure_growth,
        "workloads.py": workloads.measure_epoch_memory,
    }
    monkeypatch.setattr(
        training, "run_child", lambda script, *a: children[script.name](*a)
    )
    yield training
    logging.disable(logging.NOTSET)  # which main() does not want


def test_all_sections_give_figures_in_table_json_and_drawing(
    training, tmp_path, capsys
):
    table, drawing = tmp_path / "t.json", tmp_path / "t.png"
    training.main(
        ["--quick", "--repeats=1", f"--json={table}", f"--figure={drawing}"]
    )
    results = json.loads(table.read_text("utf-8"))
    said = capsys.readouterr().out
    loops = []
    for figure in results["figures"]:
        assert figure["lowest"] <= figure["median"] <= figure["highest"]
        assert f"| {figure['figure']}" in said
        loops += [figure["difference"]] if "difference" in figure else []
    # the bare loops do what the Brains do; half of lambda would make 4e-6
    assert len(loops) == 4 and max(loops) < 1e-7
    assert "no --baseline is given" in said
    assert "cached: left out" in said
    assert drawing.stat().st_size > 1000


def test_child_processes_give_a_number_of_bytes(training, tmp_path):
    sys.modules["timing"].run_child(training.CODEBOOKS, "mine", 100, 8, 4)
