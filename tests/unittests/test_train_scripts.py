"""What the train scripts do with a batch: targets, losses, optimisers."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    assert_near,
    generator,
    make_utterances,
    pad_batch,
    randomise_,
)
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from speechbrain_wap.augmentation import Augmentation
from speechbrain_wap.baselines.linear import MeanPoolingClassifier
from speechbrain_wap.baselines.spk_norm import SpkNorm
from speechbrain_wap.data.batches import pad_frames
from speechbrain_wap.data.sampling import EpochPlan
from speechbrain_wap.emotion_model import EmotionModel
from speechbrain_wap.local_attributes import LocalAttributes
from speechbrain_wap.losses import AdapterObjective
from speechbrain_wap.masking import UtteranceMasks
from speechbrain_wap.packing import select_frames, send, valid_frames
from speechbrain_wap.pooling import StatisticalAttentivePooling
from speechbrain_wap.targets import Predictor, Targets, frame_spread
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.training.statistics import EpochStatistics
from speechbrain_wap.wap_transformer import WAPTransformer

FOLDER = "recipes/IEMOCAP/wap_adapter"
LENGTHS = [40, 13, 25]


@pytest.fixture
def utterances():
    """Three utterances, as a dataset gives them."""
    utterances = make_utterances(LENGTHS, 3)
    return [{"id": f"u{n}", "feats": x} for n, x in enumerate(utterances)]


def make_brain(cls, modules, **hparams):
    """A Brain of one rank, within an epoch, with what its steps need only."""
    brain = object.__new__(cls)
    brain.device = "cpu"
    brain.modules = SimpleNamespace(**modules)
    counter = SimpleNamespace(current=2)
    brain.hparams = SimpleNamespace(
        epoch_counter=counter, **{**modules, **hparams}
    )
    brain.statistics, brain.batch_counts = EpochStatistics(""), []
    brain.ends_with_repeat = lambda: False
    brain.progress = lambda: 0.25
    brain.should_step = True
    return brain


# Stage 1 ---------------------------------------------------------------------


def make_adapter_brain(import_script, **hparams):
    """An AdapterBrain with networks that differ."""
    student = WAPTransformer(3, d_model=8, nhead=2, d_ffn=8, dropout=0.0)
    teacher = EMATeacher(randomise_(student, seed=1))
    modules = {
        "student": randomise_(student, seed=2),
        "teacher": teacher,
        "predictor": randomise_(Predictor(8, num_layers=1)),
        "local_attributes": LocalAttributes(5, 8),
    }
    given = {
        "masks": UtteranceMasks(0.4, span=3, seed=1),
        "targets": Targets(2, "layer"),
        "objective": AdapterObjective(),
    }
    script = import_script(f"{FOLDER}/train_adapter.py")
    brain = make_brain(script.AdapterBrain, modules, **{**given, **hparams})
    brain.valid_statistics = EpochStatistics("")
    return brain


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.VALID])
def test_the_student_predicts_the_teachers_frames_at_the_masks(
    import_script, utterances, stage
):
    targets = Targets(4, "layer")
    brain = make_adapter_brain(import_script, targets=targets)
    collate = brain.make_collate(stage)
    if stage == Stage.TRAIN:
        collate.epoch.fill_(2)
    batch = collate(utterances)
    z, frames, masked, spread = brain.compute_forward(batch, stage)
    feats, lens = pad_frames(batch.feats, "cpu")
    num_frames, valid = valid_frames(lens, feats.shape[1])
    # the teacher has seen everything
    expected = targets.select(brain.modules.teacher(feats, lens), valid)
    assert_near(spread, frame_spread(expected))
    assert_near(frames, targets.normalise(expected))
    # masks are an epoch's in training, and always the same in validation
    epoch = 2 if stage == Stage.TRAIN else 0
    mask = brain.hparams.masks(batch.id, num_frames, epoch)
    assert torch.equal(masked, mask[valid].nonzero()[:, 0])
    seen = brain.modules.student(feats, lens, mask)
    seen = brain.modules.predictor(select_frames(seen, mask))
    assert_near(z, seen)
    assert len(z) == len(masked) == sum(round(0.4 * n) for n in LENGTHS)


def test_attributes_move_after_the_losses_and_in_training_only(
    import_script, utterances
):
    brain = make_adapter_brain(import_script)
    batch = brain.make_collate(Stage.TRAIN)(utterances)
    attributes = brain.modules.local_attributes
    predictions = brain.compute_forward(batch, Stage.TRAIN)
    z, frames, masked, _ = predictions
    brain.compute_objectives(predictions, batch, Stage.VALID)
    start = attributes.codebook.clone()
    assert attributes.initialised and attributes.num_updates == 0
    codes = attributes.assign(frames)
    logits = attributes.logits(z)
    expected = brain.hparams.objective(
        z, frames[masked], logits, codes[masked], 0.25
    )
    assert brain.valid_statistics.means()["loss"] == pytest.approx(
        float(expected["loss"].detach())
    )
    loss = brain.compute_objectives(predictions, batch, Stage.TRAIN)
    assert torch.equal(loss, expected["loss"])
    assert attributes.num_updates == 1
    after = LocalAttributes(5, 8)
    after.codebook.copy_(start)
    after.update(frames, codes)
    assert torch.equal(attributes.codebook, after.codebook)
    means = brain.statistics.means()
    agreed = (logits.argmax(dim=-1) == codes[masked]).float().mean()
    assert means["agreement"] == pytest.approx(float(agreed))
    # between accumulated batches, frames are only collected
    brain.should_step = False
    brain.compute_objectives(predictions, batch, Stage.TRAIN)
    assert attributes.num_updates == 1 and attributes.collected is not None


class FakeCuda(TorchDispatchMode):
    """Lets tensors on "cuda" have no values, and those on a CPU theirs.

    An operation on tensors of both is an error, and so is a look at a value.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:  # from now on, torch asks no driver for the device
            pass

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given, _ = tree_flatten((args, kwargs))
        is_fake = any(
            isinstance(one, FakeTensor)
            or (isinstance(one, torch.device) and one.type == "cuda")
            for one in given
        )
        with self.fake if is_fake else nullcontext():
            return operation(*args, **(kwargs or {}))


@pytest.fixture(params=["meta", "cuda"])
def device(request, monkeypatch):
    """A device whose tensors have no values.

    Whatever looks at one on the host, as what waits for a GPU does, is an
    error.
    """
    # not known there, and is off
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    if request.param == "meta":
        yield "meta"
        return

    def pin(tensor):
        assert tensor.device.type == "cpu"  # a GPU's cannot be pinned
        return tensor

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    with FakeCuda():
        yield "cuda"


def test_what_is_on_a_device_is_not_sent_again(device):
    """As are lengths of batches that were moved whole, see before_fit."""
    lens = torch.ones(2, device=device)
    assert send(lens, device).device == lens.device
    assert send(torch.ones(2), device).device == lens.device


def go_back(loss):
    """Computes gradients; torch's engine looks for a real GPU."""
    assert loss.requires_grad
    if loss.device.type == "meta":
        loss.backward()


def test_a_step_of_stage_1_waits_for_no_device(
    import_script, utterances, device
):
    brain = make_adapter_brain(import_script)
    attributes = brain.modules.local_attributes
    attributes.revive_after, attributes.initialised = 9, True
    attributes.next_look = 9
    for module in vars(brain.modules).values():
        module.to(device)
    brain.device = device
    batch = brain.make_collate(Stage.TRAIN)(utterances)
    predictions = brain.compute_forward(batch, Stage.TRAIN)
    go_back(brain.compute_objectives(predictions, batch, Stage.TRAIN))
    brain.modules.teacher.update(brain.modules.student)
    assert attributes.num_updates == 1
    with pytest.raises(RuntimeError):  # the law can be broken
        attributes.next_look = 0
        brain.compute_objectives(predictions, batch, Stage.TRAIN)


def test_a_step_of_stage_2_waits_for_no_device(
    make_emotion_brain, utterances, device
):
    backbone = partial(WAPTransformer, d_model=4, nhead=2, d_ffn=4)
    model = EmotionModel(backbone, StatisticalAttentivePooling, input_size=3)
    model.set_classes(3)
    augmenter = Augmentation("all")
    brain = make_emotion_brain(model.to(device), augmenter=augmenter)
    brain.experiment = SimpleNamespace(caches={"": None})
    brain.device, brain.class_weights = device, torch.ones(3, device=device)
    given = {"mask_probability": 1.0, "target": 2, "speaker_index": 0}
    utterances = [{**one, **given} for one in utterances]
    batch = brain.make_collate(Stage.TRAIN)(utterances)
    logits = brain.compute_forward(batch, Stage.TRAIN)
    go_back(brain.compute_objectives(logits, batch, Stage.TRAIN))
    assert logits.shape == (3, 3)


# Stage 2 ---------------------------------------------------------------------


@pytest.fixture
def make_emotion_brain(import_script):
    """Makes an EmotionBrain of a model, or of one that has no losses."""
    script = import_script(f"{FOLDER}/train_classifier.py")

    def make(model=None, **hparams):
        brain = make_brain(
            script.EmotionBrain,
            {"model": model or nn.Identity()},
            compute_cost=F.cross_entropy,
            **hparams,
        )
        brain.class_weights = torch.tensor([0.5, 2.0, 1.0])
        brain.predicted, brain.loss_sums = {}, EpochStatistics("")
        return brain

    return make


def make_labelled(targets):
    """A batch of classes and speakers."""
    return PaddedBatch(
        [
            {"id": f"u{n}", "target": target, "speaker_index": n}
            for n, target in enumerate(targets)
        ]
    )


def test_the_weighted_loss_is_a_mean_over_utterances(make_emotion_brain):
    logits = torch.randn(5, 3, generator=generator())
    targets = [0, 1, 1, 2, 0]
    losses = -logits.log_softmax(dim=-1)[range(5), targets]
    weighted = losses * torch.tensor([0.5, 2.0, 1.0])[targets]
    brain = make_emotion_brain()
    for stage in (Stage.TRAIN, Stage.VALID):
        loss = brain.compute_objectives(logits, make_labelled(targets), stage)
        assert_near(loss, weighted.mean())
    for means in (brain.statistics.means(), brain.loss_sums.means()):
        assert means == {"loss": pytest.approx(float(weighted.mean()))}
    assert list(brain.predicted) == [f"u{n}" for n in range(5)]
    assert_near(list(brain.predicted.values()), logits.softmax(dim=-1))
    # the last batch of validation may be smaller: utterances count alike
    one = make_labelled(targets[:1])
    brain.compute_objectives(logits[:1], one, Stage.VALID)
    mean = (weighted.sum() + weighted[0]) / 6
    assert brain.loss_sums.means()["loss"] == pytest.approx(float(mean))


def test_a_rank_with_nothing_new_gives_gradients_that_others_wait_for(
    make_emotion_brain,
):
    model = SpkNorm(3)
    model.set_classes(3)
    brain = make_emotion_brain(model)
    brain.ends_with_repeat = lambda: True
    logits = model(*pad_batch(make_utterances([5], 3)))
    batch = make_labelled([1])
    brain.compute_objectives(logits, batch, Stage.TRAIN).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("has_backbone", [True, False])
def test_the_backbone_has_an_optimiser_of_its_own(
    make_emotion_brain, has_backbone
):
    backbone = partial(WAPTransformer, d_model=4, nhead=2, d_ffn=4)
    model = (
        EmotionModel(backbone, StatisticalAttentivePooling, input_size=3)
        if has_backbone
        else MeanPoolingClassifier(3)
    )
    model.set_classes(3)
    make = partial(torch.optim.SGD, lr=0.5)
    brain = make_emotion_brain(model, classifier_opt_class=make)
    brain.opt_class = partial(torch.optim.SGD, lr=0.25)
    saved = {}
    brain.checkpointer = SimpleNamespace(add_recoverable=saved.__setitem__)
    brain.init_optimizers()
    parts = {"classifier_optimizer": (0.5, model)}
    if has_backbone:
        parts["optimizer"] = (0.25, model.backbone)
    assert brain.optimizers_dict == saved and saved.keys() == parts.keys()
    trained = []
    for name, (lr, part) in parts.items():
        (group,) = saved[name].param_groups
        assert group["lr"] == lr
        assert {*map(id, group["params"])} <= {*map(id, part.parameters())}
        trained += group["params"]
    ids = sorted(map(id, trained))
    assert ids == sorted(map(id, model.parameters()))  # each once


@pytest.mark.parametrize("places", [10, 25])
def test_balanced_classes_weigh_the_same_in_an_epoch(import_script, places):
    script = import_script(f"{FOLDER}/train_classifier.py")
    entries = {f"u{n}": {"label": c} for n, c in enumerate("aaaaaabbbc")}
    plan = EpochPlan(entries, [(list(entries), places)], seed=1)
    weights = script.weigh_classes(plan, "abc", "balanced")
    counts = torch.tensor([6.0, 3.0, 1.0])
    assert_near(weights * counts, torch.full((3,), 10 / 3))
    weights = script.weigh_classes(plan, "abc", "none")
    assert torch.equal(weights, torch.ones(3))
