"""Several ranks under torchrun learn what one process does."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from recipe_runs import (
    ON_CPUS,
    RECIPES,
    TINY,
    assert_equal_states,
    call,
    kill_after_epoch,
    load_checkpoint,
    read_history,
    run_forked,
    run_well,
)

from speechbrain_wap.evaluation.diagnostics import DIAGNOSTICS
from speechbrain_wap.training.brain import RecipeBrain

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
STATES = {
    "adapter": ["student", "teacher", "local_attributes"],
    "classifier": ["model"],
}


def assert_same_training(one, two, stage, atol=1e-5):
    """Compares checkpoints, histories and predictions of two runs."""
    states = load_checkpoint(one), load_checkpoint(two)
    for part in STATES[stage]:
        for name, tensor in states[0][part].items():
            # whether attributes are equal to the bit: a rounding may tip it
            if torch.is_tensor(tensor) and name != "is_copy":
                other = states[1][part][name].double()
                difference = float((tensor.double() - other).abs().max())
                assert difference <= atol, f"{part}.{name}"
    for rows in zip(*map(read_history, (one, two)), strict=True):
        looks = [{k: row.get(k) or 0.0 for k in DIAGNOSTICS} for row in rows]
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
        assert any(looks[0].values())
    else:
        tables = [pd.read_csv(Path(f, "predictions.csv")) for f in (one, two)]
        pd.testing.assert_frame_equal(*tables, atol=1e-4)


def read_entries(cache_folder):
    """Reads all entries of the feature cache in a folder."""
    entries = Path(cache_folder).glob("*/*/*.safetensors")
    return {path.name: path.read_bytes() for path in entries}


@pytest.fixture(scope="module")
def one_rank(corpus_csv, tmp_path_factory):
    """Both stages on one rank: no dropout, an odd number of utterances."""
    folder = tmp_path_factory.mktemp("one rank")
    pd.read_csv(corpus_csv).iloc[:-1].to_csv(folder / "odd.csv", index=False)
    options = [*TINY, f"--corpus_csv={folder / 'odd.csv'}", "--dropout=0.0"]
    options += ["--number_of_epochs=2", "--protocol=held_out", *ON_CPUS]
    commands = {
        "adapter": ["train_adapter.py", "adapter", *options]
        # more attributes than the first batch has frames
        + ["--revive_after=3", "--num_attributes=700", "--mask_span=3"]
        + ["--predictor_layers=1", "--ema_decay_start=0.9"],
        "classifier": ["train_classifier.py", "classifier", *options]
        + [f"--adapter_folder={folder / 'adapter'}", "--label_fraction=0.3"]
        + ["--pooled_norm=True", "--class_weights=balanced"],
    }
    for stage, arguments in commands.items():
        call(
            *(*arguments, "--batch_size=8", "--feature_workers=0"),
            f"--cache_folder={folder / 'cache'}",
            f"--output_folder={folder / stage}",
        )
    return folder, commands


@pytest.mark.parametrize("stage", STATES)
def test_two_ranks_learn_what_one_does(one_rank, stage, tmp_path):
    folder, commands = one_rank
    arguments = [
        *commands[stage],
        *("--batch_size=4", "--feature_workers=2"),  # half the batch each
        f"--cache_folder={tmp_path / 'cache'}",
        f"--output_folder={tmp_path / 'out'}",
    ]
    if stage == "adapter":
        run_well(*arguments, launcher=TORCHRUN)
    else:
        run_forked(*arguments, ranks=2)
    assert_same_training(folder / stage, tmp_path / "out", stage)
    # held_out leaves a session to validate on, in stage 1 too
    assert read_history(tmp_path / "out")[-1]["valid"]["loss"] > 0
    # nor does it matter who made the features
    alone = read_entries(folder / "cache")
    assert len(alone) > 50
    mine = read_entries(tmp_path / "cache")
    assert mine and mine == {name: alone[name] for name in mine}


def test_killed_ranks_end_as_if_they_had_not_been(tiny, tmp_path):
    """With dropout, whose random states are the ranks' own."""
    arguments = ["train_classifier.py", "classifier", *tiny, *ON_CPUS]
    arguments += ["--number_of_epochs=6", "--num_layers=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_forked(*arguments, f"--output_folder={whole}", ranks=2)
    kill_after_epoch(2, killed, *arguments, ranks=2)
    run_forked(*arguments, f"--output_folder={killed}", ranks=2)
    for name in ("predictions.csv", "scores.json", "history.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_nodes_need_not_share_a_disk(tiny, tmp_path):
    """Two nodes whose folders have the same names on other disks."""
    arguments = [
        *("cross_validate.py", "adapter", "classifier", *tiny, *ON_CPUS),
        *("--num_attributes=8", "--number_of_epochs=1", "--folds=2"),
        *("--cache_folder=cache", "--output_folder=out"),
    ]
    # as if each had a recipe folder of its own
    disks = [tmp_path / "disk 0", tmp_path / "disk 1"]
    for disk in disks:
        shutil.copytree(RECIPES / "IEMOCAP" / "wap_adapter", disk)
    out = disks[0] / "out"
    results = []
    for _ in ("fresh", "resumed"):
        run_forked(*arguments, ranks=2, folders=disks)
        entries = [read_entries(disk / "cache") for disk in disks]
        assert entries[0] == entries[1] and entries[0]
        results.append((out / "results.json").read_bytes())
        # stage 2 is tested again, from what only node 0 has
        (out / "results.json").unlink()
        (out / "seed1993/fold2/classifier/scores.json").unlink()
    assert results[0] == results[1]
    assert not (disks[1] / "out" / "corpus.csv").exists()


def test_further_corpora_come_as_often_however_it_is_run(
    tables, cache, tmp_path, monkeypatch
):
    """Whole, stopped within an epoch, and then on one rank or on two."""
    first, second = tables
    arguments = [
        *("train_adapter.py", "adapter", *TINY, f"--cache_folder={cache}"),
        *("--num_attributes=8", "--number_of_epochs=2", "--dropout=0.0"),
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
    shutil.copytree(stopped, ranks)
    call(*arguments, *often)
    assert_equal_states(load_checkpoint(stopped), load_checkpoint(whole))
    often[2:] = ["--batch_size=2", f"--output_folder={ranks}"]
    said = run_forked(*arguments, *often, ranks=2)
    assert "Loading a checkpoint" in said
    assert_same_training(whole, ranks, "adapter")
