"""With and without adapter training, beside a linear probe."""

import shutil
from collections import Counter

import pandas as pd
import pytest
import torch
from recipe_runs import (
    ForkedRun,
    call,
    load_checkpoint,
    read_history,
    read_json,
)

PROBE, WITHOUT, WITH = (
    "linear probe",
    "without adapter training",
    "with adapter training",
)


@pytest.fixture(scope="module")
def arguments(tiny):
    """A comparison of all labels of one fold."""
    return [
        *("compare", "adapter", "classifier", *tiny, "--folds=3"),
        *("--num_attributes=8", "--number_of_epochs=1", "--seeds=1,2"),
    ]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("finished")
    call(*arguments, f"--output_folder={folder}")
    return folder


def list_times(folder, pattern):
    """Lists when checkpoints were written."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.glob(f"{pattern}/save/CKPT*/*")
    }


def test_systems_are_compared_in_one_table(finished):
    results = read_json(finished, "comparison.json")
    systems = {entry["system"]: entry for entry in results["systems"]}
    assert list(systems) == [PROBE, WITHOUT, WITH]
    for name, entry in systems.items():
        seeds = [run["seed"] for run in entry["runs"]]
        assert seeds == ([1] if name == PROBE else [1, 2])
    table = (finished / "comparison.md").read_text("utf-8")
    probe = 100 * systems[PROBE]["mean"]["UA"]
    assert f"| linear probe             | 1     | {probe:.1f}" in table
    (difference,) = results["differences"]
    runs = zip(systems[WITHOUT]["runs"], systems[WITH]["runs"])
    gains = [b["UA"] - a["UA"] for a, b in runs]
    assert difference["mean"] == pytest.approx(sum(gains) / 2)
    assert difference["units"] == 1  # the fold


def test_official_splits_are_one_fold_and_shared_speakers_are_told(
    arguments, finished, tmp_path
):
    table = pd.read_csv(finished / "with_adapter" / "corpus.csv", dtype=str)
    names = {"1": "test", "2": "Dev"}
    table["split"] = table["session"].map(names).fillna("train")
    table.loc[table.index[-1], "speaker"] = table["speaker"][0]
    table.to_csv(tmp_path / "own.csv", index=False)
    options = [x for x in arguments if x.startswith("--")]
    kept = [x for x in options if not x.startswith(("--folds", "--data_fold"))]
    call(
        *("compare", "adapter", "classifier", *kept, "--protocol=predefined"),
        *(f"--corpus_csv={tmp_path / 'own.csv'}", "--seeds=1"),
        f"--output_folder={tmp_path / 'out'}",
    )
    (run,) = read_json(tmp_path, "out", "with_adapter", "results.json")["runs"]
    assert (run["fold"], run["session"]) == (1, "test")
    for report in ("comparison.md", "with_adapter/report.md"):
        text = (tmp_path / "out" / report).read_text("utf-8")
        assert "share speakers: 1 is in train and test (Ses01F)" in text


def test_processes_share_the_runs_of_a_comparison(
    finished, arguments, tmp_path
):
    arguments = [*arguments, f"--output_folder={tmp_path}"]
    runs = [ForkedRun(*arguments, f"--seeds={seed}") for seed in (1, 2)]
    for run in runs:
        run.finish()
    for name in ("comparison.json", "comparison.md"):
        one, other = (folder / name for folder in (tmp_path, finished))
        assert one.read_text("utf-8") == other.read_text("utf-8")


def test_lengths_of_adapter_training_share_the_baseline(
    finished, arguments, tmp_path
):
    shutil.copytree(finished / "from_scratch", tmp_path / "from_scratch")
    arguments = [*arguments, f"--output_folder={tmp_path}", "--seeds=1"]
    arguments.append("--adapter_epochs=2,1")
    baseline = list_times(tmp_path, "from_scratch/*/*/*")
    call(*arguments)
    assert baseline == list_times(tmp_path, "from_scratch/*/*/*")
    curve = tmp_path / "comparison_epochs.png"
    assert curve.stat().st_size > 5000
    systems = read_json(curve.with_suffix(".json"))["systems"]
    lengths = [entry.get("adapter_epochs") for entry in systems]
    assert lengths == [None, None, 1, 2]
    steps = [entry["adapter_steps"] for entry in systems[2:]]
    assert steps[1] == 2 * steps[0]
    for epochs in (1, 2):
        run = tmp_path / f"with_adapter_{epochs}_epochs" / "seed1" / "fold3"
        last = read_history(run / "adapter")[-1]
        assert (last["epoch"], last["steps"]) == (epochs, epochs * steps[0])
        # stage 2 is as long for all
        assert read_history(run / "classifier")[-1]["epoch"] == 1
    # a share of the labels is another axis, whose adapters are these
    before = list_times(tmp_path, "with*/seed*/*/adapter")
    call(*arguments, "--label_fraction=0.5")
    assert before == list_times(tmp_path, "with*/seed*/*/adapter")
    assert [*tmp_path.glob("labels_0.5/with_adapter_2_epochs/*/*/classifier")]


def test_the_curve_of_label_fractions_shares_the_adapters(
    finished, arguments, tmp_path
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    arguments = [*arguments, f"--output_folder={tmp_path}"]
    before = list_times(tmp_path, "*/seed*/fold*/*")
    call(*arguments, "--label_fractions=1.0,0.2")
    assert before == list_times(tmp_path, "*/seed*/fold*/*")
    assert (tmp_path / "comparison.png").stat().st_size > 5000
    assert not [*tmp_path.glob("labels_0.2/with_adapter/seed*/*/adapter")]
    systems = read_json(tmp_path, "comparison.json")["systems"]
    found = {(e["system"], e["label_fraction"]): e for e in systems}
    for key, entry in found.items():
        seeds = [1] if key == (PROBE, 1.0) else [1, 2]
        assert [run["seed"] for run in entry["runs"]] == seeds
    few, all_labels = (found[PROBE, f]["runs"][0]["F1"] for f in (0.2, 1.0))
    assert few != all_labels
    places = ("labels_0.2/from_scratch", "labels_0.2/with_adapter")
    for seed in (1, 2):
        runs = [
            tmp_path / place / f"seed{seed}" / "fold3" / "classifier"
            for place in (*places, "from_scratch")
        ]
        manifests = [read_json(run, "train.json") for run in runs]
        assert manifests[0] == manifests[2]
        sizes = Counter(entry["label"] for entry in manifests[2].values())
        counts = [read_json(r, "scores.json")["num_labelled"] for r in runs]
        assert counts[0] == counts[1] and counts[2] == sizes
        for name, count in counts[0].items():
            assert count == max(1, round(0.2 * sizes[name]))
        # the rest is as with all labels
        ids = [pd.read_csv(run / "predictions.csv")["id"] for run in runs]
        assert all(i.equals(ids[2]) for i in ids)
        states = [load_checkpoint(run) for run in runs]
        assert len({state["brain"] for state in states}) == 1  # the steps
        means = [state["model"]["backbone.input_mean"] for state in states]
        assert torch.equal(means[0], means[2])
