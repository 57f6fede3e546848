"""A step is taken before the features are extracted, and leaves no trace."""

import random

import numpy as np
import pytest
import torch
from readings import copy_yaml
from torch import nn

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.experiment import Experiment

pytestmark = pytest.mark.usefixtures("workplace")
SMALL = ["--encoder_source=fbank", "--data_folder=D", "--max_frames=30"]
OWN = ["--d_model=8", "--nhead=2", "--d_ffn=8"]
CLASSES = ["a", "b", "c"]


@pytest.fixture
def make(import_script, workplace):
    """Makes a script, and a run of it with another YAML."""

    def make(stage, *options, changes=(), system=None):
        path = copy_yaml(workplace, stage, *changes)
        if system is not None:
            (path.parent / "models" / "own.yaml").write_text(system, "utf-8")
            options = [*options, "--system=own"]
        script = import_script(f"recipes/IEMOCAP/wap_adapter/train_{stage}.py")
        command = read_command([str(path), *SMALL, *options])
        return script, Experiment(command, script.NEEDED)

    return make


def list_states(hparams):
    """Everything that a step may change, as bytes or values."""
    tensors = [
        tensor
        for value in hparams.values()
        if isinstance(value, nn.Module)
        for tensor in value.state_dict().values()
        if torch.is_tensor(tensor)
    ]
    states = [tensor.numpy().tobytes() for tensor in tensors]
    states += [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    states += [np.random.get_state()[1].tobytes()]
    recoverables = hparams["checkpointer"].recoverables
    return [*states, sorted(recoverables), hparams["epoch_counter"].current]


@pytest.mark.parametrize(
    "stage, options",
    [
        ("adapter", OWN),
        ("adapter", [*OWN, "--encoder_layer=weighted", "--max_frames=1"]),
        ("adapter", [*OWN, "--attribute_update=constant", "--precision=bf16"]),
        ("classifier", [*OWN, "--pooled_norm=True", "--compile"]),
        ("classifier", ["--system=linear", "--grad_accumulation_factor=3"]),
    ],
)
def test_what_fits_together_takes_a_step_that_leaves_no_trace(
    make, stage, options, workplace
):
    script, experiment = make(stage, *options)
    before = list_states(experiment.hparams)
    script.try_out(experiment, CLASSES)
    assert list_states(experiment.hparams) == before
    experiment.remove_empty_save_folder()
    assert not [p for p in workplace.glob("results/**/*") if p.is_file()]


def test_a_hook_of_the_run_itself_leaves_no_trace_either(make):
    script, experiment = make("classifier", *OWN)
    model = experiment.hparams["model"]
    model.register_buffer("seen", torch.zeros(1))

    def hook(*_):
        model.seen.add_(torch.rand(1))

    model.register_forward_hook(hook)
    before = list_states(experiment.hparams)
    script.try_out(experiment, CLASSES)
    assert list_states(experiment.hparams) == before


SCHEDULE = """lr_schedule: !new:speechbrain_wap.schedules.Schedule
    start: 1.0
    end: 0.0
    shape: cosine
"""
SCHEDULERS = {
    "NewBobScheduler": "initial_value: 0.1",
    "NoamScheduler": "lr_initial: 0.1\n    n_warmup_steps: 10",
    "LinearScheduler": "initial_value: 1\n    final_value: 0\n"
    "    epoch_count: 3",
    "CyclicLRScheduler": "base_lr: 0.1",
    "StepScheduler": "initial_value: 0.1",
    "CyclicCosineScheduler": "n_warmup_steps: 5",
}


@pytest.mark.parametrize("stage", ["adapter", "classifier"])
@pytest.mark.parametrize("name, arguments", SCHEDULERS.items())
def test_schedulers_of_speechbrain_are_refused_by_name(
    make, stage, name, arguments
):
    other = f"lr_schedule: !new:speechbrain.nnet.schedulers.{name}\n"
    changes = [(SCHEDULE, f"{other}    {arguments}\n")]
    script, experiment = make(stage, *OWN, changes=changes)
    with pytest.raises(RecipeError, match=f"lr_schedule .{name}. .*Schedule "):
        script.try_out(experiment, CLASSES)


MODEL = """model: !name:speechbrain_wap.emotion_model.EmotionModel
    input_norm: False
    backbone: !name:speechbrain_wap.wap_transformer.WAPTransformer
        d_model: 8
        nhead: 2
        d_ffn: 8
    pooling: """
ECAPA = "speechbrain.lobes.models.ECAPA_TDNN"
POOLINGS = {
    "StatisticsPooling": "!name:speechbrain.nnet.pooling.StatisticsPooling",
    "StatisticsPooling.for": "!new:speechbrain.nnet.pooling.StatisticsPooling",
    "AttentiveStatisticsPooling": f"!name:{ECAPA}.AttentiveStatisticsPooling"
    "\n        channels: 8",
    "Linear.* has no output_size": "!name:speechbrain.nnet.linear.Linear"
    "\n        n_neurons: 8",
}


@pytest.mark.parametrize("name, wired", POOLINGS.items())
def test_poolings_that_are_others_are_refused_by_name(make, name, wired):
    with pytest.raises(RecipeError, match=f"pooling.*{name}.* Statistical"):
        make("classifier", system=f"{MODEL}{wired}\n")


def test_a_classifier_is_no_system(make):
    system = f"model: !name:{ECAPA}.Classifier\n    out_neurons: 4\n"
    with pytest.raises(RecipeError, match="Classifier.*num_encoder_layers"):
        make("classifier", system=system)
    with pytest.raises(RecipeError, match="Identity is no system.*set_classes"):
        make("classifier", system="model: !name:torch.nn.Identity\n")
    script, experiment = make("classifier", "--system=linear")
    experiment.hparams["model"] = nn.Linear(80, 4)
    says = r"model \(Linear\) fails in a step .*it must have set_classes"
    with pytest.raises(RecipeError, match=says):
        script.try_out(experiment, CLASSES)


def test_a_model_that_decides_about_the_classes_is_refused(make):
    script, experiment = make("classifier", "--system=linear")
    experiment.hparams["model"].set_classes(4)
    experiment.hparams["model"].set_classes = len  # of what is given
    with pytest.raises(RecipeError, match="model"):
        script.try_out(experiment, CLASSES)
    experiment.hparams["model"].set_classes = lambda number: None
    with pytest.raises(RecipeError, match="gives 4 logits for 3 classes"):
        script.try_out(experiment, CLASSES)


@pytest.mark.parametrize(
    "option, says",
    [
        ("student={d_model: 24}", r"local_attributes \(LocalAttrib.*size"),
        ("local_attributes={dim: 12}", r"local_attributes \(LocalAttributes\)"),
        (
            "predictor={d_model: 8, num_layers: 1}",
            r"predictor \(Predictor\) fails in a step.*shapes",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_named(make, option, says):
    script, experiment = make("adapter", *OWN, "--d_model=16", f"--{option}")
    before = list_states(experiment.hparams)
    with pytest.raises(RecipeError, match=f"adapter.yaml: {says}"):
        script.try_out(experiment, CLASSES)
    assert list_states(experiment.hparams) == before


COST = "compute_cost: !name:torch.nn.functional.cross_entropy"
OPTIMISER = """classifier_opt_class: !name:torch.optim.Adam
    lr: !ref <classifier_lr>
    fused: True
"""
LBFGS = "classifier_opt_class: !name:torch.optim.LBFGS\n    lr: 0.1\n"


@pytest.mark.parametrize(
    "old, new, says",
    [
        (COST, COST.replace("cross_entropy", "mse_loss"), "compute_cost .mse_"),
        (COST, COST.replace("cross_entropy", "nll_loss"), "it is negative"),
        (
            COST,
            "compute_cost: !name:speechbrain.nnet.losses.nll_loss",
            "compute_cost .nll_loss.*it is negative",
        ),
        (
            "train_logger: !new:speechbrain.utils.train_logger.FileTrainLogger"
            "\n    save_file: !ref <train_log>\n",
            "train_logger: null\n",
            "train_logger fails",
        ),
        (
            "\ndataloader_options:\n",
            "\ndataloader_options:\n    shuffle: True\n",
            "dataloader_options fails .* shuffle=True",
        ),
        (
            "\nvalid_dataloader_options:\n",
            "\nvalid_dataloader_options:\n    batch_sise: 3\n",
            "valid_dataloader_options fails .*'batch_sise'",
        ),
        (
            "    model: !ref <model>\n\n",
            "    mdel: !ref <model>\n\n",
            "model fails .* no attribute 'model'",
        ),
        (OPTIMISER, LBFGS, "opt_class or classifier_opt_class .LBFGS.*closure"),
    ],
)
def test_functions_that_do_not_fit_are_named(make, old, new, says):
    script, experiment = make("classifier", *OWN, changes=[(old, new)])
    with pytest.raises(RecipeError, match=says):
        script.try_out(experiment, CLASSES)


def test_an_argument_of_the_corpus_that_nothing_takes_is_named(make):
    changes = [("\ncorpus:\n", "\ncorpus:\n    folder: x\n")]
    for stage in ("adapter", "classifier"):
        with pytest.raises(RecipeError, match="corpus .* argument 'folder'"):
            make(stage, *OWN, changes=changes)


def test_what_cannot_be_copied_is_not_tried_but_said(make, caplog):
    script, experiment = make("adapter", *OWN)
    experiment.hparams["mine"] = (number for number in range(3))
    experiment.hparams["lr_schedule"] = None
    script.try_out(experiment)
    assert "it cannot be copied (cannot pickle 'generator'" in caplog.text
