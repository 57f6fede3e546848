"""What the stages' scripts do with a batch: targets and masks."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_near, generator, make_utterances
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from speechbrain_wap.packing import select_frames, valid_frames
from speechbrain_wap.targets import smooth_frames
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
    )
    given = {"target_smoothing": 0, "target_norm": "none"}
    brain.hparams = SimpleNamespace(
        mask_ratio=0.4, seed=1, mask_span=3, **{**given, **hparams}
    )
    return brain


@pytest.mark.parametrize("reach", [0, 4])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_targets_are_the_teachers_frames_smoothed_then_normalised(
    import_script, batch, reach, norm
):
    brain = make_adapter_brain(
        import_script, target_smoothing=reach, target_norm=norm
    )
    _, frames, masked, _ = brain.compute_forward(batch, Stage.VALID)
    feats, lens = batch.feats
    _, valid = valid_frames(lens, feats.shape[1])
    expected = brain.modules.teacher(feats, lens)
    expected = smooth_frames(expected, valid, reach)
    expected = select_frames(expected, valid)
    if norm == "layer":
        expected = nn.functional.layer_norm(expected, [8])
    assert_near(frames, expected)
    assert len(masked) == sum(round(0.4 * n) for n in LENGTHS)


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
