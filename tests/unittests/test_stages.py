"""What the stages' scripts do with a batch: targets and masks."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_near, generator, make_utterances
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from speechbrain_wap.checkpoints import EpochStatistics
from speechbrain_wap.lengths import select_frames, valid_frames
from speechbrain_wap.local_attributes import LocalAttributes
from speechbrain_wap.losses import masked_reconstruction_loss, pseudo_label_loss
from speechbrain_wap.running_norm import RunningNorm, sum_frames
from speechbrain_wap.smoothing import smooth_frames
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.wap_transformer import WAPTransformer

FOLDER = "recipes/IEMOCAP/wap_adapter"
LENGTHS = [40, 13, 25]


@pytest.fixture
def batch():
    """Three utterances, which are all to be masked but the last."""
    utterances = make_utterances(LENGTHS, 3)
    return PaddedBatch(
        [
            {"id": f"u{n}", "feats": x, "mask_probability": float(n < 2)}
            for n, x in enumerate(utterances)
        ]
    )


def count_runs(mask):
    """Counts the runs of masked frames in a row."""
    starts = mask[1:] & ~mask[:-1]
    return int(mask[0]) + int(starts.sum())


def make_adapter_brain(import_script, **hparams):
    """A Brain that computes targets, with a network of its own."""
    script = import_script(f"{FOLDER}/train_adapter.py")
    student = WAPTransformer(3, d_model=8, nhead=2, d_ffn=8, dropout=0.0)
    teacher = EMATeacher(student)
    brain = object.__new__(script.AdapterBrain)
    brain.device = "cpu"
    brain.modules = SimpleNamespace(
        student=student,
        teacher=teacher,
        predictor=nn.Identity(),
        running_norm=RunningNorm(8),
    )
    given = {"target": "output", "target_smoothing": 0, "target_norm": "none"}
    brain.hparams = SimpleNamespace(
        mask_ratio=0.4, seed=1, mask_span=3, **{**given, **hparams}
    )
    return brain


@pytest.mark.parametrize("target", ["output", "average", "input"])
@pytest.mark.parametrize("reach", [0, 4])
@pytest.mark.parametrize("norm", ["none", "layer", "corpus"])
def test_targets_are_the_teachers_frames_smoothed_then_normalised(
    import_script, batch, target, reach, norm
):
    brain = make_adapter_brain(
        import_script, target=target, target_smoothing=reach, target_norm=norm
    )
    if norm == "corpus":
        brain.measured = [{"feats": x} for x in make_utterances(LENGTHS, 3)]
        brain.modules.running_norm.initialise_(brain.measure_targets())
    _, frames, masked, _ = brain.compute_forward(batch, Stage.VALID)
    feats, lens = batch.feats
    _, valid = valid_frames(lens, feats.shape[1])
    expected = brain.modules.teacher(feats, lens, target=target)
    expected = smooth_frames(expected, valid, reach)
    expected = select_frames(expected, valid)
    if norm == "layer":
        expected = nn.functional.layer_norm(expected, [8])
    if norm == "corpus":  # which is this batch
        std = expected.std(dim=0, unbiased=False)
        expected = (expected - expected.mean(dim=0)) / std
    assert_near(frames, expected)
    assert len(masked) == sum(round(0.4 * n) for n in LENGTHS)


def test_running_statistics_are_of_the_training_and_count_afterwards(
    import_script,
):
    brain = make_adapter_brain(import_script, target_norm="corpus")
    norm = brain.modules.running_norm
    one, two = torch.randn(2, 9, 8, generator=generator())
    brain.should_step = True
    norm.initialise_(sum_frames(one))
    before = norm.moments.clone()
    brain.normalise_targets(two, training=False)
    assert torch.equal(norm.moments, before)
    trained = brain.normalise_targets(two, training=True)
    assert_near(trained, (two - one.mean(0)) / one.std(0, correction=0))
    assert not torch.equal(norm.moments, before)
    assert (norm(two) - trained).abs().max() > 0.01


def test_attributes_wait_for_their_warm_up(import_script, batch):
    brain = make_adapter_brain(
        import_script, attribute_warmup=3, rec_reduction="mean"
    )
    attributes = LocalAttributes(4, dim=8)
    brain.modules.local_attributes = attributes
    brain.hparams.rec_weight_schedule = lambda progress: 0.75
    brain.valid_statistics = EpochStatistics("")
    brain.num_steps = 10
    predictions = brain.compute_forward(batch, Stage.VALID)
    z_student, frames, masked, _ = predictions
    rec_loss = masked_reconstruction_loss(
        z_student, frames[masked], reduction="mean"
    )
    brain.place = 2
    loss = brain.compute_objectives(predictions, batch, Stage.VALID)
    assert not attributes.initialised
    assert_near(loss, 0.75 * rec_loss)
    brain.place = 3
    loss = brain.compute_objectives(predictions, batch, Stage.VALID)
    assert attributes.initialised
    codes = attributes.assign(frames)[masked]
    pce_loss = pseudo_label_loss(attributes.logits(z_student), codes)
    assert_near(loss, 0.75 * rec_loss + 0.25 * pce_loss)


@pytest.mark.parametrize("epoch, rate", [(1, 0.0), (2, 0.0), (3, 0.1)])
def test_a_frozen_adapter_does_not_learn_what_is_on_top_does(
    import_script, epoch, rate
):
    script = import_script(f"{FOLDER}/train_classifier.py")
    brain = object.__new__(script.EmotionBrain)
    counter = EpochCounter(4)
    counter.current = epoch
    brain.hparams = SimpleNamespace(
        epoch_counter=counter, frozen_epochs=2, lr_schedule=lambda share: 0.5
    )
    brain.place, brain.num_steps = 0, 10
    brain.optimizer, top = (
        torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=lr)
        for lr in (0.2, 0.6)
    )
    brain.optimizers_dict = {"optimizer": brain.optimizer, "top": top}
    brain.on_fit_batch_start(None, True)
    assert brain.optimizer.param_groups[0]["lr"] == rate
    assert top.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("span, most", [(1, 99), (8, 3)])
def test_fine_tuning_masks_runs_of_the_chosen_utterances(
    import_script, batch, span, most
):
    script = import_script(f"{FOLDER}/train_classifier.py")
    brain = object.__new__(script.EmotionBrain)
    counter = EpochCounter(3)
    counter.current = 2
    brain.hparams = SimpleNamespace(
        seed=1,
        epoch_counter=counter,
        augment_mask_ratio=0.4,
        augment_mask_span=span,
    )
    mask = brain.augmentation_mask(batch)
    assert mask.sum(dim=1).tolist() == [16, 5, 0]
    runs = count_runs(mask[0])
    assert runs <= most if span > 1 else runs > 4


def test_the_validation_loss_has_the_trainings_class_weights(import_script):
    script = import_script(f"{FOLDER}/train_classifier.py")
    brain = object.__new__(script.EmotionBrain)
    brain.device = "cpu"
    brain.class_weights = torch.tensor([0.5, 2.0, 1.0])
    brain.hparams = SimpleNamespace(compute_cost=nn.functional.cross_entropy)
    brain.predicted, brain.loss_sum = {}, 0.0
    logits = torch.randn(4, 3, generator=generator())
    targets = [0, 1, 2, 1]
    batch = PaddedBatch(
        [{"id": f"u{n}", "target": t} for n, t in enumerate(targets)]
    )
    loss = brain.compute_objectives(logits, batch, Stage.VALID)
    chosen = logits.log_softmax(dim=-1)[range(4), targets]
    weights = brain.class_weights[targets]
    assert_near(loss, -(weights * chosen).mean())
    assert brain.loss_sum == pytest.approx(4 * float(loss))
