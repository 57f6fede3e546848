"""Table I and Table II from end to end, tiny, as a user starts them."""

import json
import re
import shutil

import pandas as pd
import pytest
from recipe_runs import ForkedRun, call, read_json

from speechbrain_wap.errors import RecipeError

TABLE = """
reference: WAP
systems:
    linear probe:
        probe: True
        configurations: [{C: 0.01}, {C: 1.0}]
    W2v2-PT:
        options:
            system: w2v2_pt
            adapter_training: False
            encoder_layer: weighted
            normalization: speaker
        configurations: [{classifier_lr: 0.01}, {classifier_lr: 0.0001}]
        published: 12.3 UA
    Spk-norm:
        options: {system: spk_norm, adapter_training: False}
    GLRF:
        options: {system: glrf, adapter_training: False}
    Co-att:
        options:
            system: co_attention
            adapter_training: False
            embedding_size: 2
            lstm_size: 2
            segment_frames: 32
            cnn_channels: [2, 2, 2, 2, 2]
    LPMN-s60:
        options:
            system: lpmn
            adapter_training: False
            num_prototypes: 8
            selection: 0.6
    broken:
        options: {system: linear, adapter_training: True}
    mistyped:
        configurations: [{clasifier_lr: 0.01}]
    WAP:
        configurations: [{}, {classifier_lr: 0.0001}]
"""
OTHERS = """
    LPMN:
        options: {system: lpmn, adapter_training: False}
    nowhere:
        options: {system: nowhere}
"""
FILES = ["adapter", "classifier"]


@pytest.fixture(scope="module")
def short(tiny):
    """Options of tiny runs of two folds."""
    return [
        *tiny,
        *("--folds=1,3", "--num_attributes=8", "--num_layers=1"),
        *("--number_of_epochs=1", "--adapter.probe_every=0"),
    ]


def list_times(folder):
    """Lists when checkpoints were written."""
    return {p: p.stat().st_mtime_ns for p in folder.glob("**/CKPT*/*")}


def test_table_1(short, tmp_path):
    table, out = tmp_path / "my.yaml", tmp_path / "out"
    table.write_text(TABLE)
    arguments = [*short, f"--table={table}", f"--output_folder={out}"]
    arguments.append("--jobs=2")
    run = ForkedRun("table1", *arguments)
    assert run.wait() == 1
    said = run.said()
    # what fails is named, and the others are there
    assert (
        "error: not all systems were run (mistyped: unknown key --clas" in said
    )
    assert "; broken: the system MeanPooling" in said
    text = (out / "table1.md").read_text("utf-8")
    assert "Without broken, which failed: the system MeanPooling" in text
    scores = pd.read_csv(out / "table1.csv").set_index("system")
    others = ["Spk-norm", "GLRF", "Co-att", "LPMN-s60"]
    assert list(scores.index) == ["linear probe", "W2v2-PT", *others, "WAP"]
    assert scores["published, other folds"]["W2v2-PT"] == "12.3 UA"
    assert (scores["trained parameters"] > 0).all()
    assert (scores["minutes a fold"][1:] > 0).all()
    assert list(scores["against"][:-1]) == ["WAP"] * 6
    assert (out / "table1.png").stat().st_size > 5000
    # each has chosen on fold 1, whose held-out session nobody has trained on
    assert "W2v2-PT †" in text and "layer weighted" in text
    for name in ("W2v2-PT", "WAP"):
        choice = read_json(out, "choice", name, "choice.json")
        best = max(choice["validation_UA"].values())
        assert choice["validation_UA"][choice["chosen"]] == best
        assert scores.loc[name, "chosen"] == choice["chosen"]
        lr = float(choice["chosen"].removeprefix("classifier_lr="))
        for fold in (1, 3):
            save = f"{name}/seed1993/fold{fold}/classifier/save"
            settings = read_json(out, save, "settings.json")["settings"]
            assert settings["classifier_lr"] == lr
    trials = [*out.glob("choice/*/*/seed1993/fold1/classifier")]
    assert len(trials) == 4
    for trial in trials:
        sessions = [
            {e["session"] for e in read_json(trial, f"{split}.json").values()}
            for split in ("train", "valid", "test")
        ]
        assert sessions == [{"3", "4", "5"}, {"2"}, {"1"}]
    assert scores.loc["linear probe", "chosen"] in ("C=0.01", "C=1.0")
    # configurations of stage 2 share stage 1: one for the choice, one for folds
    assert len([*out.glob("adapters/*/*/*/adapter")]) == 3
    # the same command takes up what there is, and chooses nothing anew
    path = out / "choice" / "WAP" / "choice.json"
    choice = json.loads(path.read_text())
    choice["validation_UA"] = dict.fromkeys(choice["validation_UA"], 0.123)
    path.write_text(json.dumps(choice))
    shutil.rmtree(out / "W2v2-PT" / "seed1993" / "fold3")
    before, folds = list_times(out), (out / "table1_folds.csv").read_text()
    with pytest.raises(RecipeError, match="not all systems were run"):
        call("table1", *arguments[:-1])
    after = list_times(out)
    assert before.items() <= after.items()
    new = {path.parents[3].name for path in after.keys() - before.keys()}
    assert new == {"fold3"}
    assert (out / "table1_folds.csv").read_text() == folds
    assert json.loads(path.read_text()) == choice
    # of one system alone, the table keeps the others; typed may be what only a
    # system has that is left out, and one of these may be broken
    table.write_text(f"{TABLE}{OTHERS}")
    one = *arguments[:-1], "--systems=W2v2-PT", "--num_prototypes=4"
    before = (out / "table1.csv").read_text()
    call("table1", *one)
    assert (out / "table1.csv").read_text() == before
    # but not those of other seeds, or of other settings
    call("table1", *one, "--seeds=7")
    text = (out / "table1.md").read_text("utf-8")
    assert "Without WAP: it lacks folds or seeds of the others." in text
    assert "Not tested against WAP, which is not in the table." in text
    # nor is a choice made with other settings taken over
    shutil.rmtree(out / "W2v2-PT")
    other = "--label_fraction=0.5"
    with pytest.raises(RecipeError, match="choice/W2v2-PT holds.*label_fract"):
        call("table1", *one, other)
    shutil.rmtree(out / "choice" / "W2v2-PT")
    call("table1", *one, other)
    text = (out / "table1.md").read_text("utf-8")
    assert re.search("Without WAP: .*/out/WAP holds .*label_fraction", text)


def test_table_2(short, tmp_path):
    arguments = ["sweep", *FILES, *short, f"--output_folder={tmp_path}"]
    ForkedRun(*arguments, "--sweep=num_attributes=4", "--seeds=1").finish()
    before = list_times(tmp_path)
    # a value more takes up what there is
    call(*arguments, "--sweep=num_attributes=4,16", "--seeds=1")
    assert before.items() <= list_times(tmp_path).items()
    names = ["num_attributes=4", "num_attributes=16", "w/o adapter training"]
    stem = tmp_path / "sweep_num_attributes"
    scores = pd.read_csv(stem.with_suffix(".csv"))
    assert list(scores["system"]) == names
    assert list(scores["against"][:2]) == [names[2]] * 2
    folds = pd.read_csv(f"{stem}_folds.csv")
    assert len(folds) == 6 and set(folds["fold"]) == {1, 3}
    assert stem.with_suffix(".png").stat().st_size > 5000
    # the network without adapter training is run once for all values
    assert len([*tmp_path.glob("w_o_adapter_training/seed1/*/classifier")]) == 2
    assert len([*tmp_path.glob("*/seed*/*/classifier")]) == 6
    assert len([*tmp_path.glob("adapters/*/seed*/*/adapter")]) == 4
