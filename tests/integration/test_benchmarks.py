"""The benchmarks run, on models too small to be measured."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recipe_runs import call

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


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    """All its sections have rows, and what only CUDA can tell is named."""
    command = [sys.executable, BENCHMARKS / "gpu.py", "--quick"]
    done = subprocess.run(
        [*command, f"--json={tmp_path / 'gpu.json'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["rows"]
    for section in ("numbers", "precision", "waiting", "speed", "capacity"):
        assert section in {row["section"] for row in rows}
    assert all(f"| {row['figure']}" in done.stdout for row in rows)
    left = {r["figure"] for r in rows if r["value"] == "only on CUDA"}
    assert {"stage 1, --precision=fp16", "stage 1, largest batch"} <= left


def test_speakers_are_told_before_and_after_a_projector(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from speaker_probe import main, probe_speakers

    speakers = list("abc") * 20
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    assert probe_speakers(vectors, speakers) < 0.6
    vectors[:, :3] += np.tile(9 * np.eye(3), (20, 1))
    assert probe_speakers(vectors, speakers) == 1.0
    own = ("--nhead", "--d_ffn", "--lr")  # keys of the WAP-Transformer
    call(
        *("train_classifier.py", "classifier", "--system=spk_norm"),
        *(option for option in tiny if not option.startswith(own)),
        *("--number_of_epochs=1", f"--output_folder={tmp_path}"),
    )
    capsys.readouterr()
    main([str(tmp_path)])
    row = capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]
    assert row[0].strip() == str(tmp_path) and float(row[3]) == 12.5
    assert all(0 <= float(cell) <= 100 for cell in row[1:])
