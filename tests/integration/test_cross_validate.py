"""Both stages in several folds, as a user starts them."""

import os
import re
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
from recipe_runs import (
    RECIPES,
    ForkedRun,
    call,
    load_script,
    read_history,
    read_json,
    run_forked,
    run_well,
)

from speechbrain_wap.comparisons.embeddings import TITLES
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.linear_probe import score_probe
from speechbrain_wap.evaluation.trained_run import TrainedRun

CLASSES = ["angry", "happy", "sad", "neutral"]


@pytest.fixture(scope="module")
def arguments(tiny):
    """A cross-validation over two folds and two seeds."""
    return [
        *("cross_validate.py", "adapter", "classifier", *tiny),
        *("--num_attributes=8", "--adapter.number_of_epochs=1"),
        *("--classifier.number_of_epochs=2", "--folds=2,4", "--seeds=1,2"),
    ]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """Its folder, and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_well(*arguments, f"--output_folder={folder}")


def test_results_and_report_are_of_all_folds_and_seeds(finished):
    folder, said = finished
    results = read_json(folder, "results.json")
    assert results["classes"] == CLASSES
    assert [(r["seed"], r["fold"]) for r in results["runs"]] == [
        *((1, 2), (1, 4)),
        *((2, 2), (2, 4)),
    ]
    for run in results["runs"]:
        confusion = torch.tensor(run["confusion"])
        assert int(confusion.sum()) == run["n"] > 0
        assert run["session"] == str(run["fold"])
        recalls = confusion.diag() / confusion.sum(dim=1)
        assert run["UA"] == pytest.approx(float(recalls.mean()), abs=1e-6)
        accuracy = confusion.diag().sum() / confusion.sum()
        assert run["WA"] == pytest.approx(float(accuracy))
    per_seed = [seed["UA"] for seed in results["per_seed"]]
    assert results["mean"]["UA"] == pytest.approx(sum(per_seed) / 2)
    assert results["settings"]["std_over"] == "seeds"
    assert f"{100 * results['mean']['UA']:.1f} ±" in said
    assert "%|" not in said  # no bars, with --noprogressbar
    report = (folder / "report.md").read_text("utf-8")
    for picture in re.findall(r"\]\((.+?\.png)\)", report):
        assert (folder / picture).stat().st_size > 5000


def test_predictions_cover_the_held_out_session_once(finished):
    folder, _ = finished
    corpus = pd.read_csv(folder / "corpus.csv", dtype=str)
    table = pd.read_csv(folder / "seed1/fold2/classifier/predictions.csv")
    columns = ["id", "session", "speaker", "label", "prediction"]
    assert list(table.columns) == [*columns, *CLASSES]
    expected = corpus[
        (corpus["session"] == "2")
        & (corpus["style"] == "improvised")
        & corpus["emo"].isin(["ang", "hap", "exc", "sad", "neu"])
    ]
    assert table["id"].tolist() == expected["id"].tolist()


def test_the_page_shows_what_was_tested_and_is_made_again(finished):
    folder, _ = finished
    page = (folder / "report.html").read_bytes()
    for path in folder.glob("seed*/fold*/classifier"):
        table = pd.read_csv(path / "predictions.csv")
        details = read_json(path, "details.json")
        for key in ("envelope", "attention"):
            assert list(details[key]) == table["id"].tolist()
            assert {len(digits) for digits in details[key].values()} == {100}
        assert 0.0 < details["linear_probe"]["UA"] <= 1.0
        for key in table["id"]:
            assert f'"{key}"'.encode() in page
    assert b"<dt>linear probe</dt><dd>not recorded" not in page
    assert b"trained parameters" in page
    assert b"minutes, all runs together" in page
    assert b"female" in page and b"<b>Partial corpus</b>" in page
    load_script("report").main([str(folder)])
    assert (folder / "report.html").read_bytes() == page


def test_a_held_out_session_is_mapped_before_and_after_training(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(RECIPES / "IEMOCAP" / "wap_adapter")
    run = finished[0] / "seed1" / "fold2" / "classifier"
    load_script("embeddings").main(
        [f"--run_folder={run}", f"--output={tmp_path}"]
    )
    table = pd.read_csv(tmp_path / "embeddings.csv")
    predictions = pd.read_csv(run / "predictions.csv")
    for column in ("id", "label"):
        assert table[column].tolist() == predictions[column].tolist()
    maps = [table[["x_" + n, "y_" + n]].to_numpy() for n in TITLES]
    assert all((maps[0] != one).any() for one in maps[1:])
    assert (tmp_path / "embeddings.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "embeddings.pdf").read_bytes()[:4] == b"%PDF"
    rows = capsys.readouterr().out.split("probe UA |")[1].splitlines()[2:5]
    assert len({row.split("|")[2] for row in rows}) == 3
    # the probe of the encoder's mean frames, by hand
    scaled, labels = [], []
    cache = TrainedRun(run).caches[""]
    for name in ("train", "test"):
        entries = read_json(run, f"{name}.json").values()
        frames = [cache.read(e["digest"]).float().mean(dim=0) for e in entries]
        scaled.append(torch.stack(frames).numpy())
        labels.append([e["label"] for e in entries])
    mean, std = scaled[0].mean(axis=0), scaled[0].std(axis=0)
    scaled = [(part - mean) / std for part in scaled]
    ua = score_probe(scaled, labels, CLASSES)["UA"]
    assert rows[0].split("|")[3].strip() == f"{100 * ua:.1f}"


def test_no_held_out_speaker_is_in_either_stage(finished):
    folder, _ = finished
    for fold in (2, 4):
        run_folder = folder / "seed1" / f"fold{fold}"
        held_out = {f"Ses{fold:02d}F", f"Ses{fold:02d}M"}
        heard = read_json(run_folder, "adapter/adapter.json")["speakers"]
        assert not held_out & set(heard) and len(heard) == 8
        train = read_json(run_folder, "classifier/train.json")
        assert not held_out & {e["speaker"] for e in train.values()}


def test_what_is_finished_is_not_run_again_but_mended_and_may_grow(
    finished, arguments, tmp_path
):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    arguments = [*arguments, f"--output_folder={tmp_path}"]
    run_folder = tmp_path / "seed1" / "fold2"
    scores, predictions, results = files = [
        run_folder / "classifier" / "scores.json",
        run_folder / "classifier" / "predictions.csv",
        tmp_path / "results.json",
    ]
    before = [path.read_bytes() for path in files]
    checkpoints = sorted(tmp_path.glob("seed*/fold*/*/save/CKPT*/*"))
    times = [path.stat().st_mtime_ns for path in checkpoints]
    # a broken disk; the checkpoint has all that is needed
    scores.write_bytes(scores.read_bytes()[:-40])
    predictions.unlink(), results.unlink()
    call(*arguments)
    assert before == [path.read_bytes() for path in files]
    assert times == [path.stat().st_mtime_ns for path in checkpoints]
    with pytest.raises(RecipeError, match="classifier.lr=0.001"):
        call(*arguments, "--classifier.lr=0.002")

    one = [*arguments, "--folds=2", "--seeds=1"]
    longer = [*one, "--classifier.number_of_epochs=3"]
    for more, epochs in (
        ([], [1, 3]),
        (["--adapter.number_of_epochs=2"], [2, 3]),
    ):
        call(*longer, *more)
        stages = [run_folder / "adapter", run_folder / "classifier"]
        assert [read_history(s)[-1]["epoch"] for s in stages] == epochs
    with pytest.raises(RecipeError, match="may grow but not shrink"):
        call(*one)


def test_folds_in_parallel_give_the_same_and_end_with_their_parent(
    finished, arguments, tmp_path
):
    arguments = [*arguments, "--jobs=2", "--seeds=1"]
    arguments.append(f"--output_folder={tmp_path}")
    run = ForkedRun(*arguments)
    while len(list(tmp_path.glob("seed1/*/adapter/save"))) < 2:
        assert run.wait(0.02) is None, run.said()[-3000:]
    (parent,) = run.processes
    os.kill(parent.pid, signal.SIGKILL)  # the parent alone
    parent.join()
    deadline = time.time() + 10
    with pytest.raises(ProcessLookupError):
        while time.time() < deadline:
            os.killpg(parent.pid, 0)
            time.sleep(0.05)
    run_forked(*arguments, "--num_workers=1")  # of each job
    for fold in ("fold2", "fold4"):
        tables = [
            folder / "seed1" / fold / "classifier" / "predictions.csv"
            for folder in (tmp_path, finished[0])
        ]
        assert tables[0].read_bytes() == tables[1].read_bytes()


def test_processes_that_share_the_folds_leave_one_report(
    finished, arguments, tmp_path
):
    shared = [*arguments, f"--output_folder={tmp_path}"]
    killed, *others = runs = [
        ForkedRun(*shared, "--folds=4", "--seeds=2"),
        ForkedRun(*shared, "--folds=2"),
        ForkedRun(*shared),  # whatever the others have not begun
    ]
    try:
        while not list(tmp_path.glob("seed2/fold4/adapter/save")):
            assert killed.wait(0.02) is None, killed.said()[-3000:]
        # in the midst of it: other settings, and one fold that is taken
        with pytest.raises(RecipeError, match="classifier.lr=0.001"):
            call(*shared, "--classifier.lr=0.002")
        call(*shared, "--folds=4", "--seeds=2")
    finally:
        killed.kill()
    runs[0] = ForkedRun(*shared, "--folds=4", "--seeds=2")
    for run in runs:
        run.finish()
    names = ["results.json", "report.md", "confusion.png", "corpus.csv"]
    names += ["classifier_curves.png", "adapter_curves.png"]
    names += [
        f"seed{seed}/fold{fold}/classifier/predictions.csv"
        for seed in (1, 2)
        for fold in (2, 4)
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (
            finished[0] / name
        ).read_bytes(), name


def test_the_other_readings_of_the_paper_go_through_both_stages(tiny, tmp_path):
    call(
        *("cross_validate.py", "adapter", "classifier", *tiny, "--folds=1"),
        *("--protocol=held_out", "--max_frames=40", "--long_utterances=cut"),
        *("--normalize_before=False", "--input_norm=False"),
        *("--mlp_residual=True", "--number_of_epochs=1"),
        *("--projection_init=orthogonal", "--residual_init=0.1"),
        # stage 1
        *("--num_attributes=8", "--adapter_data=all", "--mask_span=4"),
        *("--attribute_update=constant", "--similarity=distance"),
        *("--temperature=10", "--target_norm=none", "--rec_reduction=sum"),
        *("--rec_weight_shape=cosine", "--revive_after=null"),
        *("--ema_decay_start=0.9", "--predictor_layers=2"),
        "--target_smoothing=3",
        # stage 2
        *("--adapter_branch=student", "--variance=printed", "--classes=all"),
        *("--augmentation=mask", "--augment_mask_span=2"),
        *("--dialogue_style=all", "--model_selection=best"),
        *("--pooled_norm=True", "--class_weights=balanced"),
        f"--output_folder={tmp_path}",
    )
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "Transductive" in report and "Optimistic" not in report
    run_folder = tmp_path / "seed1993" / "fold1"
    record = read_json(run_folder, "adapter/adapter.json")
    assert len(record["speakers"]) == 10
    row = read_history(run_folder / "adapter")[-1]
    assert row["ema_decay"] == 0.999
    assert row["valid"] is None  # all sessions are trained on
    scores = read_json(run_folder, "classifier/scores.json")
    assert {"hap", "exc", "fru"} < set(scores["classes"])
    assert scores["session"] == "1"
