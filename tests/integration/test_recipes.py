"""The recipes from end to end, started as a user starts them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from recipe_runs import RECIPES, TINY, call, command, load_script, run, run_well
from speechbrain.dataio import audio_io

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.diagnostics import DIAGNOSTICS
from speechbrain_wap.training.adapter_folder import (
    identify_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.brain import RecipeBrain
from speechbrain_wap.training.checkpoints import Checkpointer
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.experiment import Experiment

ADAPTER = ["--num_attributes=8", "--number_of_epochs=3"]
CLASSIFIER = ["--number_of_epochs=3"]


def load_checkpoint(output_folder):
    """Reads the tensors of the newest checkpoint in a folder."""
    folder = Checkpointer(Path(output_folder, "save")).find_checkpoint().path
    names = [p for p in folder.glob("*.ckpt") if p.stem != "random_state"]
    states = {}
    for path in sorted(names):
        try:
            states[path.stem] = torch.load(path, weights_only=True)
        except Exception:
            states[path.stem] = path.read_text("utf-8")
    return states


def assert_equal_states(one, two):
    """Compares nested states bit for bit."""
    if torch.is_tensor(one):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal_states(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two):
            assert_equal_states(a, b)
    else:
        assert one == two


def read_history(output_folder):
    """Reads the rows of a run."""
    return json.loads(Path(output_folder, "history.json").read_text("utf-8"))


def kill_after_epoch(epoch, output_folder, *arguments, **kwargs):
    """Starts a script and kills it without warning after an epoch."""
    history = Path(output_folder, "history.json")
    process = subprocess.Popen(
        **command(*arguments, f"--output_folder={output_folder}", **kwargs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.time() + 300
        while time.time() < deadline and process.poll() is None:
            saved = list(Path(output_folder, "save").glob("CKPT*/CKPT.yaml"))
            if saved and history.is_file():
                if json.loads(history.read_text("utf-8"))[-1]["epoch"] >= epoch:
                    break
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # all ranks
        process.wait()


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter of fold 1."""
    folder = tmp_path_factory.mktemp("adapter")
    call(
        "train_adapter.py",
        "adapter",
        *tiny,
        *ADAPTER,
        f"--output_folder={folder}",
    )
    return folder


@pytest.fixture(scope="module")
def cross_validation(tiny, tmp_path_factory):
    """A cross-validation over two folds and two seeds."""
    folder = tmp_path_factory.mktemp("cv")
    arguments = [
        *("cross_validate.py", "adapter", "classifier", *tiny),
        *("--num_attributes=8", "--adapter.number_of_epochs=1"),
        *("--classifier.number_of_epochs=2", "--folds=2,4", "--seeds=1,2"),
        f"--output_folder={folder}",
    ]
    return folder, arguments, run_well(*arguments)


def test_cross_validation_writes_what_the_interface_promises(cross_validation):
    folder, _, said = cross_validation
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["classes"] == ["angry", "happy", "sad", "neutral"]
    runs = results["runs"]
    assert [(r["seed"], r["fold"]) for r in runs] == [
        *((1, 2), (1, 4)),
        *((2, 2), (2, 4)),
    ]
    for entry in runs:
        confusion = torch.tensor(entry["confusion"])
        assert int(confusion.sum()) == entry["n"] > 0
        assert entry["session"] == str(entry["fold"])
        recalls = confusion.diag() / confusion.sum(dim=1)
        assert entry["UA"] == pytest.approx(float(recalls.mean()), abs=1e-6)
        assert entry["WA"] == pytest.approx(
            float(confusion.diag().sum() / confusion.sum())
        )
    per_seed = [r["UA"] for r in results["per_seed"]]
    assert results["mean"]["UA"] == pytest.approx(sum(per_seed) / 2)
    assert results["settings"]["std_over"] == "seeds"
    report = (folder / "report.md").read_text("utf-8")
    for picture in re.findall(r"\]\((.+?\.png)\)", report):
        assert (folder / picture).stat().st_size > 5000
    assert f"{100 * results['mean']['UA']:.1f} ±" in said


def test_predictions_cover_the_held_out_session_once(cross_validation):
    folder, _, _ = cross_validation
    corpus = pd.read_csv(folder / "corpus.csv", dtype=str)
    run_folder = folder / "seed1" / "fold2" / "classifier"
    table = pd.read_csv(run_folder / "predictions.csv")
    columns = ["id", "session", "speaker", "label", "prediction"]
    classes = ["angry", "happy", "sad", "neutral"]
    assert list(table.columns) == [*columns, *classes]
    expected = corpus[
        (corpus["session"] == "2")
        & (corpus["style"] == "improvised")
        & corpus["emo"].isin(["ang", "hap", "exc", "sad", "neu"])
    ]
    assert table["id"].tolist() == expected["id"].tolist()
    assert (table[classes].sum(axis=1) - 1).abs().max() < 1e-5
    assert (table[classes].idxmax(axis=1) == table["prediction"]).all()


def test_no_held_out_speaker_is_in_either_stage(cross_validation):
    folder, _, _ = cross_validation
    for fold in (2, 4):
        run_folder = folder / "seed1" / f"fold{fold}"
        held_out = {f"Ses{fold:02d}F", f"Ses{fold:02d}M"}
        record = json.loads((run_folder / "adapter/adapter.json").read_text())
        assert not held_out & set(record["speakers"])
        assert len(record["speakers"]) == 8
        train = json.loads((run_folder / "classifier/train.json").read_text())
        assert not held_out & {e["speaker"] for e in train.values()}


def test_finished_folds_are_not_run_again(cross_validation):
    folder, arguments, _ = cross_validation
    before = (folder / "results.json").read_bytes()
    files = sorted(folder.glob("seed*/fold*/*/save"))
    times = [path.stat().st_mtime_ns for path in files]
    (folder / "results.json").unlink()
    call(*arguments)
    assert (folder / "results.json").read_bytes() == before
    assert times == [path.stat().st_mtime_ns for path in files]


def test_a_finished_cross_validation_can_be_mended_and_grow(
    cross_validation, tmp_path
):
    folder, arguments, _ = cross_validation
    shutil.copytree(folder, tmp_path / "out")
    arguments = [a for a in arguments if not a.startswith("--output_folder")]
    arguments += [
        "--folds=2",
        "--seeds=1",
        f"--output_folder={tmp_path / 'out'}",
    ]
    run_folder = tmp_path / "out" / "seed1" / "fold2"
    files = [
        run_folder / "classifier" / name
        for name in ("scores.json", "predictions.csv")
    ]
    before = [path.read_bytes() for path in files]
    # a broken disk; the checkpoint has all that is needed
    for path in files:
        for spoil in (
            lambda p: p.write_bytes(p.read_bytes()[:-40]),
            Path.unlink,
        ):
            spoil(path)
            call(*arguments)
            assert [path.read_bytes() for path in files] == before

    def count_epochs():
        return [
            read_history(run_folder / stage)[-1]["epoch"]
            for stage in ("adapter", "classifier")
        ]

    assert count_epochs() == [1, 2]
    call(*arguments, "--classifier.number_of_epochs=3")
    assert count_epochs() == [1, 3]
    longer = [*arguments, "--classifier.number_of_epochs=3"]
    call(*longer, "--adapter.number_of_epochs=2")
    assert count_epochs() == [2, 3]
    with pytest.raises(RecipeError, match="may grow but not shrink"):
        call(*arguments)


def test_folds_in_parallel_give_the_same_and_end_with_their_parent(
    cross_validation, tmp_path
):
    folder, arguments, _ = cross_validation
    arguments = [a for a in arguments if not a.startswith("--output_folder")]
    arguments += ["--jobs=2", f"--output_folder={tmp_path}"]
    process = subprocess.Popen(
        **command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(list(tmp_path.glob("seed1/*/adapter/save"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()  # the parent alone
    process.wait()
    deadline = time.time() + 10
    with pytest.raises(ProcessLookupError):
        while time.time() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    run_well(*arguments)
    results = (tmp_path / "results.json").read_bytes()
    assert results == (folder / "results.json").read_bytes()


def test_other_settings_in_the_same_folder_are_refused(cross_validation):
    _, arguments, _ = cross_validation
    code, said = run(*arguments, "--classifier.lr=0.002")
    assert code != 0 and "classifier.lr=0.001" in said
    assert "Traceback" not in said


def test_a_killed_adapter_training_ends_as_if_it_had_not_been(tiny, tmp_path):
    arguments = ["train_adapter.py", "adapter", *tiny, *ADAPTER]
    arguments += ["--number_of_epochs=8", "--probe_every=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call(*arguments, f"--output_folder={whole}")
    kill_after_epoch(2, killed, *arguments)
    call(*arguments, f"--output_folder={killed}")
    assert_equal_states(load_checkpoint(killed), load_checkpoint(whole))
    history = (killed / "history.json").read_bytes()
    assert history == (whole / "history.json").read_bytes()
    rows = read_history(whole)
    assert [row["epoch"] for row in rows] == list(range(9))
    assert len({tuple(row) for row in rows}) == 1
    log = (whole / "train_log.txt").read_text("utf-8").splitlines()
    for row, line in zip(rows, log, strict=True):
        # the training sessions' labels are told better than by chance (1/7)
        is_due = row["epoch"] in (0, 3, 6, 8)
        assert is_due == bool(row["probe_raw"] and row["probe_raw"] > 0.3)
        assert is_due == ("probe_teacher: " in line and "rank_raw: " in line)


def test_a_training_killed_within_an_epoch_goes_on_there(tiny, tmp_path):
    arguments = ["train_classifier.py", "classifier", *tiny]
    arguments += ["--number_of_epochs=5", "--batch_size=4"]
    arguments += ["--ckpt_interval_minutes=0", "--ckpt_interval_steps=4"]
    arguments += ["--label_fraction=0.3"]  # an epoch has copies
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call(*arguments, f"--output_folder={whole}")
    kill_after_epoch(2, killed, *arguments)
    call(*arguments, f"--output_folder={killed}")
    for name in ("predictions.csv", "scores.json", "history.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_the_adapter_of_another_fold_is_refused(tiny, adapter, tmp_path):
    with pytest.raises(RecipeError, match="speaker Ses02"):
        call(
            "train_classifier.py",
            "classifier",
            *tiny,
            *CLASSIFIER,
            "--fold=2",
            f"--adapter_folder={adapter}",
            f"--output_folder={tmp_path}",
        )


@pytest.mark.parametrize("change", ["corpus", "encoder"])
def test_a_refused_change_leaves_the_earlier_run_as_it_was(
    tiny, adapter, tmp_path, make_checkpoint, change
):
    run_folder = tmp_path / "run"
    shutil.copytree(adapter, run_folder)
    arguments = [*tiny, *ADAPTER, f"--output_folder={run_folder}"]
    if change == "corpus":
        table = pd.read_csv(adapter / "corpus.csv").iloc[:-3]
        table.to_csv(tmp_path / "other.csv", index=False)
        arguments.append(f"--corpus_csv={tmp_path / 'other.csv'}")
    else:
        source = make_checkpoint(tmp_path / "wavlm", "wavlm")
        arguments.append(f"--encoder_source={source}")
    names = ["corpus.csv", "train.json", "test.json", "hyperparams.yaml"]
    before = {n: (run_folder / n).read_bytes() for n in names}
    with pytest.raises(RecipeError, match=f"another value of the {change}"):
        call("train_adapter.py", "adapter", *arguments)
    assert before == {n: (run_folder / n).read_bytes() for n in names}


TWO_RANKS = ["-m", "torch.distributed.run", "--standalone"]
TWO_RANKS.append("--nproc_per_node=2")
ON_CPUS = ["--device=cpu", "--distributed_backend=gloo"]


def test_two_ranks_cross_validate(tiny, tmp_path):
    run_well(
        *("cross_validate.py", "adapter", "classifier", *tiny, *ON_CPUS),
        *("--folds=3", "--num_attributes=8", "--number_of_epochs=2"),
        f"--output_folder={tmp_path / 'out'}",
        f"--cache_folder={tmp_path / 'cache'}",  # extraction is shared, too
        "--feature_workers=2",
        "--protocol=held_out",  # stage 1 has a session to validate on
        launcher=TWO_RANKS,
    )
    folder = tmp_path / "out" / "seed1993" / "fold3"
    (run,) = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    expected = json.loads((folder / "classifier/test.json").read_text())
    predictions = pd.read_csv(folder / "classifier/predictions.csv")
    assert predictions["id"].tolist() == list(expected)
    assert run["n"] == len(expected)
    for stage in ("adapter", "classifier"):
        rows = [row for row in read_history(folder / stage) if row["epoch"]]
        assert [row["epoch"] for row in rows] == [1, 2]
        assert all(row["valid"]["loss"] > 0 for row in rows)


def find_differences(one, two, atol=1e-5):
    """Lists by how much the tensors of two states differ, where they do."""
    differences = {}
    for name, tensor in one.items():
        if not torch.is_tensor(tensor):
            continue
        difference = (tensor.double() - two[name].double()).abs()
        if not difference.max() <= atol:
            differences[name] = float(difference.max())
    return differences


STATES = {
    "adapter": ["student", "teacher", "local_attributes"],
    "classifier": ["model"],
}


def assert_same_training(one, two, stage, atol=1e-5):
    """Compares checkpoints, histories and predictions of two runs."""
    states = load_checkpoint(one), load_checkpoint(two)
    for part in STATES[stage]:
        differences = find_differences(*(s[part] for s in states), atol)
        # whether two attributes are equal to the bit: a rounding may tip it
        differences.pop("is_copy", None)
        assert not differences, part
    histories = [read_history(folder) for folder in (one, two)]
    for rows in zip(*histories, strict=True):
        looks = [
            {k: row[k] for k in DIAGNOSTICS if row.get(k) is not None}
            for row in rows
        ]
        # a rounding may tip what is on the fence
        assert looks[1] == pytest.approx(looks[0], rel=0.05, abs=0.05)
        for split in ("train", "valid"):
            values = [dict(row[split] or {}) for row in rows]
            # of a rank's frames, which are fewer
            spreads = [v.pop("teacher_spread", 0.0) for v in values]
            assert spreads[1] == pytest.approx(spreads[0], abs=0.05)
            # a frame between two attributes may take the other one, by the
            # last bits of another batch; the weights above have no such step
            assert values[1] == pytest.approx(values[0], abs=1e-3)
    if stage == "adapter":
        assert looks[0]
    if stage == "classifier":
        tables = [pd.read_csv(f / "predictions.csv") for f in (one, two)]
        pd.testing.assert_frame_equal(*tables, atol=1e-4)


@pytest.fixture(scope="module")
def one_rank(tiny, adapter, tmp_path_factory):
    """Both stages on one rank: no dropout, an odd number of utterances."""
    folder = tmp_path_factory.mktemp("one rank")
    prepared = pd.read_csv(adapter / "corpus.csv")
    prepared.iloc[:-1].to_csv(folder / "odd.csv", index=False)
    options = [*tiny, f"--corpus_csv={folder / 'odd.csv'}", "--dropout=0.0"]
    options += ["--fold=1", "--number_of_epochs=2", *ON_CPUS]
    options += ["--protocol=held_out"]
    commands = {
        "adapter": ["train_adapter.py", "adapter", *options]
        # more attributes than the first batch has frames
        + ["--revive_after=3", "--num_attributes=700", "--mask_span=3"]
        + ["--predictor_layers=1", "--ema_decay_start=0.9"],
        "classifier": ["train_classifier.py", "classifier", *options]
        + [f"--adapter_folder={folder / 'adapter'}", "--label_fraction=0.3"]
        + ["--pooled_norm=True", "--class_weights=balanced"],
    }
    for stage, command_line in commands.items():
        output = f"--output_folder={folder / stage}"
        call(*command_line, "--batch_size=8", output)
    return folder, commands


@pytest.mark.parametrize("stage", STATES)
def test_two_ranks_learn_what_one_does(one_rank, stage, tmp_path):
    folder, commands = one_rank
    output = f"--output_folder={tmp_path}"
    # half the batch each
    run_well(*commands[stage], "--batch_size=4", output, launcher=TWO_RANKS)
    assert_same_training(folder / stage, tmp_path, stage)


def test_a_run_may_go_on_with_more_ranks(one_rank, tmp_path):
    folder, commands = one_rank
    arguments = [*commands["classifier"], "--ckpt_interval_steps=4"]
    kill_after_epoch(1, tmp_path, *arguments, "--batch_size=8")
    output = f"--output_folder={tmp_path}"
    said = run_well(*arguments, "--batch_size=4", output, launcher=TWO_RANKS)
    assert "Loading a checkpoint" in said
    assert_same_training(folder / "classifier", tmp_path, "classifier")


def test_killed_ranks_end_as_if_they_had_not_been(tiny, adapter, tmp_path):
    """With dropout, whose random states are the ranks' own."""
    arguments = ["train_classifier.py", "classifier", *tiny, *ON_CPUS]
    arguments += ["--number_of_epochs=8", f"--adapter_folder={adapter}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_well(*arguments, f"--output_folder={whole}", launcher=TWO_RANKS)
    kill_after_epoch(2, killed, *arguments, launcher=TWO_RANKS)
    run_well(*arguments, f"--output_folder={killed}", launcher=TWO_RANKS)
    for name in ("predictions.csv", "scores.json", "history.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_nodes_need_not_share_a_disk(tiny, tmp_path):
    """Two nodes whose folders have the same names on other disks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = [*tiny, *ON_CPUS, "--num_attributes=8", "--number_of_epochs=2"]
    options += ["--cache_folder=cache", "--folds=2", "--output_folder=out"]
    nodes = []
    for node in (0, 1):
        launcher = ["-m", "torch.distributed.run", "--nnodes=2"]
        launcher += ["--nproc_per_node=1", f"--node_rank={node}"]
        launcher += ["--master_addr=localhost", f"--master_port={port}"]
        typed = command(
            *("cross_validate.py", "adapter", "classifier", *options),
            launcher=launcher,
        )
        # as if each had a recipe folder of its own
        disk = tmp_path / f"disk {node}"
        shutil.copytree(typed["cwd"], disk)
        shutil.copy(typed["cwd"] / "iemocap_prepare.py", disk)
        nodes.append({**typed, "cwd": disk})
    for attempt in ("fresh", "resumed"):
        processes = [
            subprocess.Popen(
                **node,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node in nodes
        ]
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]
        entries = [
            sorted(p.name for p in node["cwd"].glob("cache/*/*/*.safetensors"))
            for node in nodes
        ]
        assert entries[0] == entries[1] and entries[0]
        results = (nodes[0]["cwd"] / "out" / "results.json").read_bytes()
        if attempt == "fresh":
            before = results
            # stage 2 is tested again, from what only node 0 has
            for name in (
                "results.json",
                "seed1993/fold2/classifier/scores.json",
            ):
                (nodes[0]["cwd"] / "out" / name).unlink()
    assert results == before
    assert not (nodes[1]["cwd"] / "out" / "corpus.csv").exists()


def test_two_processes_do_not_share_an_output_folder(tiny, tmp_path):
    arguments = ["train_classifier.py", "classifier", *tiny]
    arguments.append(f"--output_folder={tmp_path}")
    process = subprocess.Popen(
        **command(*arguments, "--number_of_epochs=500"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "history.json").is_file():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(RecipeError, match="another process is at work"):
            call(*arguments, "--number_of_epochs=500")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    # the system frees what a killed process held
    call(*arguments, "--number_of_epochs=500", "--debug")


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_modules_learn_the_same(tiny, tmp_path):
    arguments = ["train_classifier.py", "classifier", *tiny, "--dropout=0.0"]
    arguments += ["--num_layers=1", "--number_of_epochs=1"]
    for name, options in (("plain", []), ("compiled", ["--compile"])):
        call(*arguments, *options, f"--output_folder={tmp_path / name}")
    folders = tmp_path / "plain", tmp_path / "compiled"
    assert_same_training(*folders, "classifier")


def test_the_other_readings_of_the_paper_go_through_both_stages(tiny, tmp_path):
    common = [*tiny, "--protocol=held_out", "--max_frames=40"]
    common += ["--long_utterances=cut"]
    common += ["--normalize_before=False", "--input_norm=False"]
    common += ["--mlp_residual=True", "--number_of_epochs=1"]
    common += ["--projection_init=orthogonal", "--residual_init=0.1"]
    folder = tmp_path / "adapter"
    call(
        *("train_adapter.py", "adapter", *common, "--num_attributes=8"),
        *("--attribute_update=constant", "--similarity=distance"),
        *("--temperature=10", "--target_norm=none", "--rec_reduction=sum"),
        *("--rec_weight_shape=cosine", "--revive_after=null"),
        *("--mask_span=4", "--ema_decay_start=0.9"),
        *("--predictor_layers=2", "--target_smoothing=3"),
        f"--output_folder={folder}",
    )
    call(
        *("train_classifier.py", "classifier", *common),
        *("--adapter_branch=student", "--variance=printed"),
        *(
            "--augmentation=mask",
            "--augment_mask_span=2",
            "--dialogue_style=all",
            "--classes=all",
        ),
        *("--model_selection=best", "--pooled_norm=True"),
        "--class_weights=balanced",
        f"--adapter_folder={folder}",
        f"--output_folder={tmp_path / 'classifier'}",
    )
    row = read_history(folder)[-1]
    assert row["ema_decay"] == 0.999
    assert row["valid"]["loss"] > 0  # held_out leaves a session to validate on
    scores = json.loads((tmp_path / "classifier/scores.json").read_text())
    assert {"hap", "exc", "xxx"} < set(scores["classes"])
    assert scores["session"] == "1"


def test_a_transductive_adapter_says_so_in_the_report(tiny, tmp_path):
    call(
        *("cross_validate.py", "adapter", "classifier", *tiny, "--folds=1"),
        *("--num_attributes=8", "--number_of_epochs=1", "--adapter_data=all"),
        "--model_selection=best",
        f"--output_folder={tmp_path}",
    )
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "Transductive" in report and "Optimistic" in report
    record = json.loads(
        (tmp_path / "seed1993/fold1/adapter/adapter.json").read_text()
    )
    assert len(record["speakers"]) == 10


@pytest.fixture(scope="module")
def comparison(tiny, tmp_path_factory):
    """A comparison of all labels over two folds and two seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    arguments = [
        *("compare", "adapter", "classifier", *tiny),
        *("--num_attributes=8", "--number_of_epochs=1", "--folds=1,3"),
        *("--seeds=1,2", f"--output_folder={folder}"),
    ]
    return folder, arguments, run_well(*arguments)


def test_systems_are_compared_in_one_table(comparison):
    folder, _, said = comparison
    results = json.loads((folder / "comparison.json").read_text("utf-8"))
    systems = {entry["system"]: entry for entry in results["systems"]}
    assert list(systems) == [
        *("linear probe", "without adapter training", "with adapter training")
    ]
    for name, entry in systems.items():
        runs = [(r["seed"], r["fold"]) for r in entry["runs"]]
        seeds = (1,) if name == "linear probe" else (1, 2)
        assert runs == [(s, f) for s in seeds for f in (1, 3)]
        assert name in said
    table = (folder / "comparison.md").read_text("utf-8")
    probe = 100 * systems["linear probe"]["mean"]["UA"]
    assert f"| linear probe             | 1     | {probe:.1f}" in table
    (difference,) = results["differences"]
    without, with_adapter = (
        systems[f"{how} adapter training"]["runs"]
        for how in ("without", "with")
    )
    gains = [b["UA"] - a["UA"] for a, b in zip(without, with_adapter)]
    assert difference["mean"] == pytest.approx(sum(gains) / 4)
    assert difference["runs"] == 4


def test_lengths_of_adapter_training_share_the_baseline(comparison, tmp_path):
    finished, arguments, _ = comparison
    folder = tmp_path / "out"
    shutil.copytree(finished / "from_scratch", folder / "from_scratch")
    arguments = [a for a in arguments if not a.startswith("--output_folder")]
    arguments += ["--folds=1", f"--output_folder={folder}"]
    arguments += ["--adapter_epochs=2,1"]
    call(*arguments)
    curve = folder / "comparison_epochs.png"
    assert curve.stat().st_size > 5000
    content = json.loads(curve.with_suffix(".json").read_text("utf-8"))
    lengths = [e.get("adapter_epochs") for e in content["systems"]]
    assert lengths == [None, None, 1, 2]
    steps = [e["adapter_steps"] for e in content["systems"][2:]]
    assert steps[1] == 2 * steps[0]
    for epochs in (1, 2):
        run = folder / f"with_adapter_{epochs}_epochs" / "seed1" / "fold1"
        last = read_history(run / "adapter")[-1]
        assert (last["epoch"], last["steps"]) == (epochs, epochs * steps[0])
        # stage 2 is as long for all
        assert read_history(run / "classifier")[-1]["epoch"] == 1

    def stamp():
        """When the adapters were written."""
        files = [*folder.glob("with*/seed*/fold1/adapter/save/CKPT*/*")]
        return {path: path.stat().st_mtime_ns for path in files}

    # a share of the labels is another axis, whose adapters are these
    before = stamp()
    call(*arguments, "--label_fraction=0.5", "--seeds=1")
    assert stamp() == before
    assert [*folder.glob("labels_0.5/with_adapter_2_epochs/seed1/*/classifier")]


def test_the_curve_of_label_fractions_shares_the_adapters(comparison, tmp_path):
    finished, arguments, _ = comparison
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    arguments = [a for a in arguments if not a.startswith("--output_folder")]
    arguments += ["--folds=1", f"--output_folder={folder}"]

    def stamp():
        """When what both fractions share was written."""
        files = [*folder.glob("*/seed*/fold*/*/save/CKPT*/*")]
        return {path: path.stat().st_mtime_ns for path in files}

    before = stamp()
    call(*arguments, "--label_fractions=1.0,0.2")
    assert stamp() == before
    assert (folder / "comparison.png").stat().st_size > 5000
    assert not list(folder.glob("labels_0.2/with_adapter/seed*/*/adapter"))
    content = json.loads((folder / "comparison.json").read_text("utf-8"))
    found = {(e["system"], e["label_fraction"]): e for e in content["systems"]}
    for (name, fraction), entry in found.items():
        seeds = (1,) if (name, fraction) == ("linear probe", 1.0) else (1, 2)
        assert [r["seed"] for r in entry["runs"]] == list(seeds)
    few, all_labels = (found["linear probe", f]["runs"][0] for f in (0.2, 1.0))
    assert few["F1"] != all_labels["F1"]
    manifest = json.loads(
        (folder / "from_scratch/seed1/fold1/classifier/train.json").read_text()
    )
    sizes = Counter(entry["label"] for entry in manifest.values())
    for seed in (1, 2):
        runs = [
            folder / place / f"seed{seed}" / "fold1" / "classifier"
            for place in (
                "labels_0.2/from_scratch",
                "labels_0.2/with_adapter",
                "from_scratch",
            )
        ]
        scores = [json.loads((r / "scores.json").read_text()) for r in runs]
        assert scores[0]["num_labelled"] == scores[1]["num_labelled"]
        assert scores[2]["num_labelled"] == sizes
        for name, count in scores[0]["num_labelled"].items():
            assert count == max(1, round(0.2 * sizes[name]))
        # the rest is as with all labels
        tables = [pd.read_csv(run / "predictions.csv") for run in runs]
        for table in tables:
            assert table["id"].equals(tables[2]["id"])
        states = [load_checkpoint(run) for run in runs]
        assert len({state["brain"] for state in states}) == 1  # the steps
        means = [state["model"]["backbone.input_mean"] for state in states]
        assert torch.equal(means[0], means[2])
        assert (runs[0] / "train.json").read_bytes() == (
            runs[2] / "train.json"
        ).read_bytes()
    # an adapter that has grown is another one for all runs that share it
    adapters = folder / "with_adapter"
    arguments[0] = "cross_validate.py"
    arguments += ["--seeds=1", "--adapter.number_of_epochs=2"]
    for place, fraction in (("labels_0.2/with_adapter", 0.2), (adapters, 1.0)):
        call(
            *(*arguments, f"--label_fraction={fraction}"),
            f"--adapters_folder={adapters}",
            f"--output_folder={folder / place}",
        )
        run_folder = folder / place / "seed1" / "fold1" / "classifier"
        settings = json.loads((run_folder / "save/settings.json").read_text())
        record = read_adapter_record(adapters / "seed1" / "fold1" / "adapter")
        assert record["number_of_epochs"] == 2
        identity = settings["settings"]["adapter_identity"]
        assert identity == identify_adapter(record)


def test_ravdess_is_read_and_cross_validated(cache, tmp_path):
    seconds = torch.arange(4800) / 16000
    for number in range(4 * 8):
        actor, emotion = 11 + number // 8, 1 + number % 8
        place = tmp_path / "RAVDESS" / f"Actor_{actor}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"03-01-{emotion:02d}-01-01-01-{actor}.flac"
        tone = torch.sin(6.28 * (100 * emotion + actor) * seconds)
        audio_io.save(path, 0.3 * tone[None], 16000)
    run_well(
        *("cross_validate.py", "adapter", "classifier", *TINY),
        *("--num_attributes=8", "--number_of_epochs=1", "--num_layers=1"),
        *("--folds=2", f"--data_folder={tmp_path / 'RAVDESS'}"),
        f"--cache_folder={cache}",
        f"--output_folder={tmp_path / 'out'}",
        corpus="RAVDESS",
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"] == ["angry", "happy", "sad", "neutral"]
    (held_out,) = results["runs"]
    assert (held_out["session"], held_out["n"]) == ("13_14", 8)
    run_folder = tmp_path / "out" / "seed1993" / "fold2"
    record = json.loads((run_folder / "adapter/adapter.json").read_text())
    assert record["speakers"] == ["Actor_11", "Actor_12"]
    # all emotions serve adapter training
    assert len(record["utterances"]) == 2 * 16


def test_debug_runs_leave_no_scores(tiny, tmp_path):
    call(
        *("train_classifier.py", "classifier", *tiny, *CLASSIFIER, "--debug"),
        f"--output_folder={tmp_path}",
    )
    assert (tmp_path / "predictions.csv").is_file()
    assert not (tmp_path / "scores.json").exists()
    with pytest.raises(RecipeError, match="no checkpoint"):
        call(
            *("train_classifier.py", "classifier", *tiny, *CLASSIFIER),
            *("--test_only", f"--output_folder={tmp_path}"),
        )


def test_a_weighted_sum_of_layers_goes_through_both_stages(
    tiny, make_checkpoint, tmp_path
):
    source = make_checkpoint(tmp_path / "wavlm", "wavlm")
    layers = [*tiny, f"--encoder_source={source}", "--encoder_layer=weighted"]
    layers += ["--number_of_epochs=1", "--precision=bf16"]
    folder = tmp_path / "adapter"
    call(
        *("train_adapter.py", "adapter", *layers, "--num_attributes=8"),
        f"--output_folder={folder}",
    )
    call(
        *("train_classifier.py", "classifier", *layers),
        f"--adapter_folder={folder}",
        f"--output_folder={tmp_path / 'classifier'}",
    )
    learned = load_checkpoint(folder)["student"]["encoder_layer_weights"]
    assert learned.shape == (3,)
    assert learned.unique().numel() == 3
    assert (tmp_path / "classifier" / "predictions.csv").is_file()


def read_entries(cache_folder):
    """Reads the files of all entries of the one cache in a folder."""
    (folder,) = (
        path.parent for path in Path(cache_folder).glob("*/cache.json")
    )
    entries = folder.glob("*/*.safetensors")
    return {path.name: path.read_bytes() for path in entries}


def test_features_are_the_same_whoever_made_them(tiny, tmp_path):
    """Workers, ranks, and two runs at one cache at the same time."""
    arguments = ["train_adapter.py", "adapter", *tiny, *ADAPTER]
    arguments.append("--number_of_epochs=1")
    caches = [tmp_path / name for name in ("alone", "ranks", "both")]
    call(
        *(*arguments, "--feature_workers=0", f"--cache_folder={caches[0]}"),
        f"--output_folder={tmp_path / 'run0'}",
    )
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher.append("--nproc_per_node=2")
    run_well(
        *(*arguments, "--feature_workers=2", f"--cache_folder={caches[1]}"),
        *("--device=cpu", "--distributed_backend=gloo"),
        f"--output_folder={tmp_path / 'run1'}",
        launcher=launcher,
    )
    typed = [*arguments, "--feature_workers=2", f"--cache_folder={caches[2]}"]
    processes = [
        subprocess.Popen(
            **command(*typed, f"--output_folder={tmp_path / f'run{number}'}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in (2, 3)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    alone, ranks, both = map(read_entries, caches)
    assert len(alone) > 50
    assert ranks == alone
    assert both == alone
    # nor does it matter to what is learned who made them
    states = [load_checkpoint(tmp_path / f"run{n}") for n in (0, 2, 3)]
    assert_equal_states(states[0], states[1])
    assert_equal_states(states[0], states[2])


def test_an_own_module_can_take_the_encoders_place(tiny, tmp_path):
    recipe = tmp_path / "my_recipe"
    (recipe / "hparams").mkdir(parents=True)
    (recipe / "my_encoder.py").write_text(
        "import torch\n"
        "class Blocks(torch.nn.Module):\n"
        "    def __init__(self, size):\n"
        "        super().__init__()\n"
        "        self.size = size\n"
        "    def forward(self, wavs, lens):\n"
        "        return wavs.unfold(1, self.size, self.size)\n"
    )
    theirs = RECIPES / "IEMOCAP" / "wap_adapter"
    shutil.copy(theirs / "iemocap_prepare.py", recipe)
    text = (theirs / "hparams" / "classifier.yaml").read_text("utf-8")
    text, count = re.subn(
        "encoder: !new:.*SpeechEncoder\n(    .*\n)+",
        "encoder: !new:my_encoder.Blocks\n    size: 400\n",
        text,
    )
    assert count == 1
    text = text.replace("!include:", f"!include:{theirs}/hparams/")
    (recipe / "hparams" / "own.yaml").write_text(text, "utf-8")
    script = load_script("train_classifier.py")
    script.main(
        [str(recipe / "hparams" / "own.yaml"), *tiny, *CLASSIFIER]
        + [f"--output_folder={tmp_path / 'out'}"]
    )
    weights = load_checkpoint(tmp_path / "out")["model"]
    assert weights["backbone.input_mean"].shape == (400,)


def test_another_system_is_trained_by_its_name(tiny, adapter, tmp_path):
    keys = ("d_model", "nhead", "d_ffn")  # which it does not have
    rest = [text for text in tiny if not text.startswith(keys, 2)]
    arguments = ["train_classifier.py", "classifier", *rest, "--system=linear"]
    arguments += ["--number_of_epochs=2", "--classifier_lr=0.01"]
    call(*arguments, f"--output_folder={tmp_path}")
    model = load_checkpoint(tmp_path)["model"]
    assert model["classifier.w.weight"].shape == (4, 80)
    losses = [row["train"]["loss"] for row in read_history(tmp_path)]
    assert losses[1] < losses[0]
    with pytest.raises(RecipeError, match="is of no use .*MeanPoolingClass"):
        call(
            *(*arguments, f"--adapter_folder={adapter}"),
            f"--output_folder={tmp_path / 'other'}",
        )


def test_an_own_corpus_brings_its_own_classes(corpus, cache, tmp_path):
    turns = sorted(corpus.glob("Session[123]/sentences/wav/*/Ses*.wav"))
    labels = {}
    for path in corpus.glob("Session*/dialog/EmoEvaluation/Ses*.txt"):
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("["):
                _, name, emo = line.split("\t")[:3]
                labels[name] = emo
    keep = {"ang": "hot", "sad": "cold"}
    rows = [
        {
            "id": path.stem,
            "wav": path,
            "speaker": path.stem[:5] + path.stem.split("_")[-1][0],
            "session": {"1": "north", "2": "south", "3": "Ost"}[path.stem[4]],
            "emo": keep.get(labels[path.stem], ""),
        }
        for path in turns
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "own.csv", index=False)
    run_well(
        *("cross_validate.py", "adapter", "classifier", *TINY),
        f"--corpus_csv={tmp_path / 'own.csv'}",
        f"--cache_folder={cache}",
        "--num_attributes=8",
        "--number_of_epochs=1",
        f"--output_folder={tmp_path / 'out'}",
        corpus="EmoDB",
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"] == ["cold", "hot"]
    assert {r["session"] for r in results["runs"]} == {"north", "south", "Ost"}


def test_runs_with_other_settings_never_share_a_default_folder(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = str(RECIPES / "IEMOCAP/wap_adapter/hparams/adapter.yaml")
    folders = set()
    changes = ["--fold=2", "--seed=1", "--lr=0.5", "--precision=bf16"]
    needed = load_script("train_adapter.py").NEEDED
    for change in [[], *([c] for c in changes)]:
        command = read_command([file, *tiny, *change])
        folders.add(Experiment(command, needed).folder)
    assert len(folders) == len(changes) + 1


BAD_INPUT = {
    "no data folder": ([], "--data_folder"),
    "missing folder": (["--data_folder=nowhere"], "nowhere does not exist"),
    "not IEMOCAP": (["--data_folder=."], "Session1"),
    "no such fold": (["--fold=9"], "fold 9 does not exist"),
    "unknown key": (["--number_of_epoch=3"], "--number_of_epochs"),
    "no such class": (
        ["--classes={joy: [joy], sad: [sad]}"],
        "no utterance of the class joy",
    ),
    "unknown style": (["--dialogue_style=sung"], "dialogue_style=sung"),
    "unknown encoder": (["--encoder_source=no/such"], "no/such"),
    "unknown layer": (["--encoder_layer=7"], "encoder_layer=7"),
    "unknown context": (["--encoder_context=half"], "encoder_context=half"),
    "unknown precision": (["--feature_precision=int8"], "precision=int8"),
    "workers": (["--feature_workers=-1"], "feature_workers=-1"),
    "no adapter": (["--adapter_folder=nowhere"], "nowhere"),
    "unknown protocol": (["--protocol=other"], "protocol=other"),
    "long utterance": (["--max_frames=10"], "max_frames=10"),
    "one class": (["--classes={sad: [sad]}"], "two classes"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_sentence(case, tiny, tmp_path, monkeypatch):
    folder = RECIPES / "IEMOCAP" / "wap_adapter"
    script = load_script("train_classifier.py")
    options, expected = BAD_INPUT[case]
    usual = TINY if "data folder" in case else tiny
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=re.escape(expected)):
        script.main(
            [str(folder / "hparams/classifier.yaml"), *usual, *CLASSIFIER]
            + ["--output_folder=out", *options]
        )


def test_an_unreadable_wav_is_named_without_a_traceback(tiny, corpus, tmp_path):
    turns = sorted(corpus.glob("Session*/sentences/wav/*/Ses*.wav"))
    rows = [
        {"id": p.stem, "wav": p, "speaker": p.stem[:5], "session": p.stem[4]}
        for p in turns[::10]
    ]
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    rows[3]["wav"] = broken
    pd.DataFrame(rows).assign(emo="").to_csv(tmp_path / "own.csv", index=False)
    arguments = ["train_adapter.py", "adapter", *tiny, *ADAPTER]
    arguments += [f"--corpus_csv={tmp_path / 'own.csv'}"]
    arguments += [f"--output_folder={tmp_path / 'out'}"]
    code, said = run(*arguments)
    assert code != 0 and "broken.wav" in said and "Traceback" not in said
    # let pass on demand, and listed
    call(*arguments, "--max_skipped=0.5")
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped["id"].tolist() == [rows[3]["id"]]


# Several corpora -------------------------------------------------------------


@pytest.fixture(scope="module")
def two_tables(adapter, tmp_path_factory):
    """The demo corpus as two tables: sessions 1 to 3, and the other ones.

    The second has other classes, other names of the same people, and sessions
    that are counted from 1.
    """
    folder = tmp_path_factory.mktemp("tables")
    table = pd.read_csv(adapter / "corpus.csv", dtype=str)
    is_first = table["session"].isin(["1", "2", "3"])
    table[is_first].to_csv(folder / "first.csv", index=False)
    rest = table[~is_first & table["emo"].isin(["ang", "sad"])]
    rest = rest[["id", "wav", "speaker", "session", "emo"]].assign(
        speaker=rest["speaker"].str[-2:],
        session=rest["session"].map({"4": "1", "5": "2"}),
        emo=rest["emo"].map({"ang": "hot", "sad": "cold"}),
    )
    rest.to_csv(folder / "second.csv", index=False)
    return folder


def test_one_adapter_serves_another_corpus_with_other_classes(
    two_tables, cache, tmp_path
):
    """Stage 1 on tables alone, stage 2 on another one, for all folds."""
    usual = [*TINY, f"--cache_folder={cache}", "--number_of_epochs=1"]
    universal = tmp_path / "universal"
    call(
        *("train_adapter.py", "adapter", *usual, "--num_attributes=8"),
        f"--corpora={two_tables / 'first.csv'}",
        f"--output_folder={universal}",
    )
    settings = json.loads((universal / "save/settings.json").read_text())
    assert settings["settings"]["fold"] is None
    assert len(json.loads((universal / "valid.json").read_text())) == 0
    arguments = [
        *("cross_validate.py", "adapter", "classifier", *usual),
        f"--adapter_folder={universal}",
    ]
    second = f"--corpus_csv={two_tables / 'second.csv'}"
    out = tmp_path / "second"
    call(*arguments, second, "--folds=2", f"--output_folder={out}")
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results["classes"] == ["cold", "hot"]
    assert [r["session"] for r in results["runs"]] == ["2"]
    assert results["settings"]["adapter_folder"] == str(universal)
    assert not any(k.startswith("adapter.") for k in results["settings"])
    report = (out / "report.md").read_text("utf-8")
    assert "6 speakers of first" in report and str(universal) in report
    # statistics and weights of stage 1 go on
    stage_1 = load_checkpoint(universal)["teacher"]["model.input_mean"]
    run_folder = out / "seed1993" / "fold2" / "classifier"
    stage_2 = load_checkpoint(run_folder)["model"]
    assert torch.equal(stage_1, stage_2["backbone.input_mean"])
    with pytest.raises(RecipeError, match="another value of the adapter"):
        call(
            *arguments[:-1],
            "--adapter_training=False",
            "--folds=2",
            second,
            f"--output_folder={out}",
        )
    # the corpus that it has heard is refused before any work
    with pytest.raises(RecipeError, match="fold 1: speaker Ses01. "):
        call(
            *arguments,
            f"--corpus_csv={two_tables / 'first.csv'}",
            f"--output_folder={tmp_path / 'first'}",
        )
    assert not (tmp_path / "first" / "seed1993").exists()
    # nor does a comparison train an adapter of its own
    out = tmp_path / "comparison"
    compare = ["compare", *arguments[1:], second, "--folds=2"]
    call(*compare, "--label_fractions=0.5,1.0", f"--output_folder={out}")
    content = json.loads((out / "comparison.json").read_text("utf-8"))
    used = [
        entry["settings"].get("adapter_folder")
        for entry in content["systems"]
        if "adapter_training" in entry["settings"]
    ]
    assert used == 2 * [None, str(universal)]
    assert not list(out.rglob("adapter.json"))


def test_each_seed_may_have_an_earlier_adapter_of_its_own(
    two_tables, cache, tmp_path
):
    usual = [*TINY, f"--cache_folder={cache}", "--number_of_epochs=1"]
    for seed in (3, 4):
        call(
            *("train_adapter.py", "adapter", *usual, "--num_attributes=8"),
            *(f"--corpora={two_tables / 'first.csv'}", f"--seed={seed}"),
            f"--output_folder={tmp_path / f'adapter {seed}'}",
        )
    out = tmp_path / "out"
    arguments = [
        *("compare", "adapter", "classifier", *usual, "--folds=2"),
        f"--corpus_csv={two_tables / 'second.csv'}",
        f"--adapter_folder={tmp_path}/adapter {{seed}}",
        f"--output_folder={out}",
    ]
    call(*arguments, "--seeds=3")
    call(*arguments, "--seeds=3,4")  # a seed more
    text = (out / "comparison.md").read_text("utf-8")
    assert "One earlier adapter" not in text
    report = (out / "with_adapter/report.md").read_text("utf-8")
    assert "one earlier adapter for each seed" in report
    for seed in (3, 4):
        run = Path(f"seed{seed}/fold2/classifier/save/settings.json")
        settings = json.loads((out / "with_adapter" / run).read_text())
        record = read_adapter_record(tmp_path / f"adapter {seed}")
        identity = settings["settings"]["adapter_identity"]
        assert identity == identify_adapter(record)
    # not by an adapter of another seed, nor by none
    copy = tmp_path / "adapter 5"
    shutil.copytree(tmp_path / "adapter 4", copy)
    with pytest.raises(RecipeError, match="trained with seed=4, but .seed."):
        call(*arguments, "--seeds=3,5")
    with pytest.raises(RecipeError, match="adapter 6 holds no adapter.json"):
        call(
            *arguments[:-1], "--seeds=3,6", f"--output_folder={tmp_path / 'b'}"
        )
    assert not list((tmp_path / "b").rglob("scores.json"))
    without = arguments[:-2] + [f"--output_folder={out / 'with_adapter'}"]
    with pytest.raises(RecipeError, match="another value of the adapter"):
        call("cross_validate.py", *without[1:], "--adapter_training=False")
    scores = out / "with_adapter/seed3/fold2/classifier/scores.json"
    before = scores.read_bytes()
    shutil.rmtree(tmp_path / "adapter 3")
    call(
        *("train_adapter.py", "adapter", *usual, "--num_attributes=9"),
        *(f"--corpora={two_tables / 'first.csv'}", "--seed=3"),
        f"--output_folder={tmp_path / 'adapter 3'}",
    )
    with pytest.raises(RecipeError, match="fold2 holds a run with another ada"):
        call(*arguments, "--seeds=3,4")
    assert scores.read_bytes() == before


def test_both_stages_begin_with_the_same_weights(tiny, tmp_path):
    """So that with and without adapter training differ in nothing else."""
    rest = ["--seed=5", "--lr=0", "--number_of_epochs=1", "--protocol=paper"]
    for stage, branch in (("adapter", "student"), ("classifier", "model")):
        folder = tmp_path / stage
        call(
            *(f"train_{stage}.py", stage, *tiny, *rest, "--num_layers=2"),
            f"--output_folder={folder}",
        )
        weights = {
            name.removeprefix("backbone."): weight
            for name, weight in load_checkpoint(folder)[branch].items()
            # of labelled utterances alone in stage 2
            if not name.endswith(("input_mean", "input_std"))
            and not name.startswith(("pooling.", "classifier."))
        }
        if stage == "adapter":
            student = weights
    assert_equal_states(weights, student)


def test_a_finished_fold_with_further_corpora_is_not_run_again(
    two_tables, cache, tmp_path
):
    out = tmp_path / "out"
    arguments = [
        *("cross_validate.py", "adapter", "classifier", *TINY, "--folds=2"),
        *("--number_of_epochs=1", "--num_attributes=8"),
        f"--cache_folder={cache}",
        f"--corpus_csv={two_tables / 'second.csv'}",
        f"--corpora={two_tables / 'first.csv'}",
        f"--output_folder={out}",
    ]
    call(*arguments)
    run_folder = out / "seed1993" / "fold2"
    files = [*run_folder.rglob("CKPT.yaml"), *run_folder.rglob("scores.json")]
    before = {path: path.read_bytes() for path in files}
    assert len(before) >= 3
    call(*arguments)
    assert before == {path: path.read_bytes() for path in files}
    # the probe is of all corpora's training sessions
    rows = read_history(run_folder / "adapter")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(0.0 < row["probe_teacher"] <= 1.0 for row in rows)
    # with one epoch more, stage 2 begins anew
    call(*arguments, "--adapter.number_of_epochs=2")
    settings = json.loads(
        (run_folder / "classifier/save/settings.json").read_text()
    )
    record = read_adapter_record(run_folder / "adapter")
    assert record["number_of_epochs"] == 2 and record["corpora"]
    identity = settings["settings"]["adapter_identity"]
    assert identity == identify_adapter(record)


def test_further_corpora_come_as_often_however_it_is_run(
    two_tables, cache, tmp_path, monkeypatch
):
    """Whole, stopped within an epoch, and on two ranks."""
    first, second = two_tables / "first.csv", two_tables / "second.csv"
    arguments = [
        *("train_adapter.py", "adapter", *TINY, f"--cache_folder={cache}"),
        *("--num_attributes=8", "--number_of_epochs=3", "--dropout=0.0"),
        *(f"--corpus_csv={first}", "--corpus_weight=0.5", *ON_CPUS),
        f"--corpora=[{{table: {second}, weight: 1.6, speakers: own}}]",
        "--grad_accumulation_factor=2",
    ]
    whole, stopped, ranks = (tmp_path / n for n in ("whole", "stopped", "rank"))
    call(*arguments, "--batch_size=4", f"--output_folder={whole}")
    often = ["--ckpt_interval_minutes=0", "--ckpt_interval_steps=2"]
    often += ["--batch_size=4", f"--output_folder={stopped}"]
    fit_batch = RecipeBrain.fit_batch

    def stop_in_the_second_epoch(brain, batch):
        if (brain.hparams.epoch_counter.current, brain.step) == (2, 8):
            raise KeyboardInterrupt
        return fit_batch(brain, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecipeBrain, "fit_batch", stop_in_the_second_epoch)
        call(*arguments, *often)
    call(*arguments, *often)
    assert_equal_states(load_checkpoint(stopped), load_checkpoint(whole))
    output = f"--output_folder={ranks}"
    run_well(*arguments, "--batch_size=2", output, launcher=TWO_RANKS)
    assert_same_training(whole, ranks, "adapter")

    train = json.loads((whole / "train.json").read_text())
    assert not {"Ses01F", "Ses01M"} & {e["speaker"] for e in train.values()}
    assert {e.get("table") for e in train.values()} == {None, "second"}
    with pytest.raises(RecipeError, match=" corpus_weight=0.5"):
        call(*arguments, "--corpus_weight=1", f"--output_folder={whole}")
    table = pd.read_csv(second, dtype=str)
    table.iloc[:-1].to_csv(second, index=False)
    before = (whole / "train.json").read_bytes()
    with pytest.raises(RecipeError, match="another value of the corpus"):
        call(*arguments, "--batch_size=4", f"--output_folder={whole}")
    assert (whole / "train.json").read_bytes() == before
