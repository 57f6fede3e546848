"""One training of one stage."""

import re
import shutil

import pandas as pd
import pytest
from recipe_runs import (
    RECIPES,
    ForkedRun,
    assert_equal_states,
    call,
    load_checkpoint,
    load_script,
    read_history,
)

from speechbrain_wap.errors import RecipeError

ADAPTER = ["train_adapter.py", "adapter"]
CLASSIFIER = ["train_classifier.py", "classifier"]
MY_ENCODER = """
import torch
class Blocks(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
    def forward(self, wavs, lens):
        return wavs.unfold(1, self.size, self.size)
"""


def test_emotions_are_probed_as_often_as_asked_for(adapter):
    log = (adapter / "train_log.txt").read_text("utf-8").splitlines()
    rows = read_history(adapter)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for row, line in zip(rows, log, strict=True):
        is_due = row["epoch"] in (0, 2, 3)
        # the training sessions' labels are told better than by chance (1/7)
        assert is_due == bool(row["probe_raw"] and row["probe_raw"] > 0.3)
        assert is_due == ("probe_teacher: " in line and "rank_raw: " in line)


def test_two_processes_do_not_share_an_output_folder(tiny, tmp_path):
    arguments = [*CLASSIFIER, *tiny, "--number_of_epochs=500"]
    arguments.append(f"--output_folder={tmp_path}")
    other = ForkedRun(*arguments)
    try:
        while not (tmp_path / "history.json").is_file():
            assert other.wait(0.05) is None, other.said()
        with pytest.raises(RecipeError, match="another process is at work"):
            call(*arguments, "--debug")
        assert other.wait(0) is None
    finally:
        other.kill()
    # the system frees what a killed process held
    call(*arguments, "--debug")


def test_debug_runs_leave_no_scores(tiny, tmp_path):
    arguments = [*CLASSIFIER, *tiny, f"--output_folder={tmp_path}"]
    call(*arguments, "--debug")
    assert (tmp_path / "predictions.csv").is_file()
    assert not (tmp_path / "scores.json").exists()
    with pytest.raises(RecipeError, match="no checkpoint"):
        call(*arguments, "--test_only")


@pytest.mark.long  # minutes of the C++ compiler
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_modules_learn_the_same(tiny, tmp_path):
    arguments = [*CLASSIFIER, *tiny, "--dropout=0.0", "--num_layers=1"]
    arguments.append("--number_of_epochs=1")
    tables = []
    for options in ([], ["--compile"]):
        folder = tmp_path / f"run{len(options)}"
        call(*arguments, *options, f"--output_folder={folder}")
        tables.append(pd.read_csv(folder / "predictions.csv"))
    pd.testing.assert_frame_equal(*tables, atol=1e-4)


def test_a_weighted_sum_of_layers_goes_through_both_stages(
    tiny, make_checkpoint, tmp_path
):
    source = make_checkpoint(tmp_path / "wavlm", "wavlm")
    layers = [*tiny, f"--encoder_source={source}", "--encoder_layer=weighted"]
    layers += ["--number_of_epochs=1", "--precision=bf16"]
    folder = tmp_path / "adapter"
    call(*ADAPTER, *layers, "--num_attributes=8", f"--output_folder={folder}")
    call(
        *(*CLASSIFIER, *layers, f"--adapter_folder={folder}"),
        f"--output_folder={tmp_path / 'classifier'}",
    )
    learned = load_checkpoint(folder)["student"]["encoder_layer_weights"]
    assert learned.shape == (3,)
    assert learned.unique().numel() == 3
    assert (tmp_path / "classifier" / "predictions.csv").is_file()


def test_an_own_module_can_take_the_encoders_place(tiny, tmp_path):
    recipe = tmp_path / "my_recipe"
    (recipe / "hparams").mkdir(parents=True)
    (recipe / "my_encoder.py").write_text(MY_ENCODER)
    theirs = RECIPES / "IEMOCAP" / "wap_adapter"
    shutil.copy(theirs / "iemocap_prepare.py", recipe)
    text = (theirs / "hparams" / "classifier.yaml").read_text("utf-8")
    text, count = re.subn(
        "encoder: !new:.*SpeechEncoder\n(    .*\n)+",
        "encoder: !new:my_encoder.Blocks\n    size: 400\n",
        text,
    )
    assert count == 1
    shutil.copytree(theirs / "hparams/models", recipe / "hparams/models")
    (recipe / "hparams" / "own.yaml").write_text(text, "utf-8")
    load_script("train_classifier.py").main(
        [str(recipe / "hparams" / "own.yaml"), *tiny, "--number_of_epochs=1"]
        + [f"--output_folder={tmp_path / 'out'}"]
    )
    weights = load_checkpoint(tmp_path / "out")["model"]
    assert weights["backbone.input_mean"].shape == (400,)


@pytest.mark.parametrize("stage", ["adapter", "classifier"])
def test_the_yaml_may_log_to_tensorboard(tiny, tmp_path, monkeypatch, stage):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    recipe = RECIPES / "IEMOCAP" / "wap_adapter"
    text = (recipe / "hparams" / f"{stage}.yaml").read_text("utf-8")
    text, count = re.subn(
        "FileTrainLogger\n    save_file: .*\n",
        "TensorboardLogger\n    save_dir: !ref <output_folder>/tensorboard\n",
        text,
    )
    assert count == 1
    shutil.copytree(recipe / "hparams", tmp_path / "hparams")
    own = tmp_path / "hparams" / "own.yaml"
    own.write_text(text, "utf-8")
    monkeypatch.chdir(recipe)
    monkeypatch.syspath_prepend(recipe)
    load_script(f"train_{stage}.py").main(
        [str(own), *tiny, "--number_of_epochs=2"]
        + [f"--output_folder={tmp_path / 'out'}"]
    )
    found = events.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    found.Reload()
    rows = [row for row in read_history(tmp_path / "out") if row["train"]]
    for part in ("train", "valid"):
        for name in rows[0][part] or ():
            logged = [one.value for one in found.Scalars(f"{name}/{part}")]
            wanted = [row[part][name] for row in rows]
            assert logged[-2:] == pytest.approx(wanted, rel=1e-5), name
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


def test_another_system_is_trained_by_its_name(tiny, adapter, tmp_path):
    keys = ("d_model", "nhead", "d_ffn")  # which it does not have
    rest = [text for text in tiny if not text.startswith(keys, 2)]
    arguments = [*CLASSIFIER, *rest, "--system=linear", "--classifier_lr=0.01"]
    arguments.append("--number_of_epochs=2")
    call(*arguments, f"--output_folder={tmp_path}")
    model = load_checkpoint(tmp_path)["model"]
    assert model["classifier.w.weight"].shape == (4, 80)
    losses = [row["train"]["loss"] for row in read_history(tmp_path)]
    assert losses[1] < losses[0]
    with pytest.raises(
        RecipeError, match="cannot start the system MeanPoolingClass"
    ):
        call(
            *(*arguments, f"--adapter_folder={adapter}"),
            f"--output_folder={tmp_path / 'other'}",
        )


def test_both_stages_begin_with_the_same_weights(tiny, tmp_path):
    """So that with and without adapter training differ in nothing else."""
    weights = {}
    for stage, part in (("adapter", "student"), ("classifier", "model")):
        folder = tmp_path / stage
        call(
            *(f"train_{stage}.py", stage, *tiny, "--seed=5", "--lr=0"),
            *("--number_of_epochs=1", "--num_layers=2"),
            f"--output_folder={folder}",
        )
        weights[stage] = {
            name.removeprefix("backbone."): weight
            for name, weight in load_checkpoint(folder)[part].items()
            # of labelled utterances alone in stage 2
            if not name.endswith(("input_mean", "input_std"))
            and not name.startswith(("pooling.", "classifier."))
        }
    assert_equal_states(weights["adapter"], weights["classifier"])
