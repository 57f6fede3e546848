"""The weights of the classes' losses, and of what is pooled at first (D19)."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_near, make_utterances

from speechbrain_wap.data.sampling import EpochPlan
from speechbrain_wap.pooling import StatisticalAttentivePooling
from speechbrain_wap.wap_transformer import WAPTransformer

SCRIPT = "recipes/IEMOCAP/wap_adapter/train_classifier.py"
CLASSES = ["angry", "calm", "sad"]


@pytest.fixture
def script(import_script):
    """The stage-2 script as a module."""
    return import_script(SCRIPT)


def make_plan(places=None):
    """Six angry, three calm and one sad utterance."""
    labels = ["angry"] * 6 + ["calm"] * 3 + ["sad"]
    entries = {f"u{n}": {"label": label} for n, label in enumerate(labels)}
    return EpochPlan(entries, [(list(entries), places or 10)], seed=1)


@pytest.mark.parametrize("places", [10, 25])
def test_balanced_classes_weigh_the_same_in_an_epoch(script, places):
    weights = script.weigh_classes(make_plan(places), CLASSES, "balanced")
    counts = torch.tensor([6.0, 3.0, 1.0])
    assert_near(weights * counts, torch.full((3,), 10 / 3))
    assert_near((weights * counts).sum() / 10, 1.0)


def test_without_weights_all_losses_count_alike(script):
    weights = script.weigh_classes(make_plan(), CLASSES, "none")
    assert torch.equal(weights, torch.ones(3))


def test_the_weighted_loss_is_a_mean_over_utterances(script):
    brain = object.__new__(script.EmotionBrain)
    brain.repeats_last = lambda: False
    brain.weigh_batch = lambda count: (1.0, 1.0)
    brain.class_weights = torch.tensor([0.5, 2.0, 1.0])
    brain.hparams = SimpleNamespace(
        compute_cost=torch.nn.functional.cross_entropy,
        statistics=SimpleNamespace(add=lambda *_: None),
    )
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 1, 2, 0])
    losses = -logits.log_softmax(dim=-1)[range(5), targets]
    expected = (losses * brain.class_weights[targets]).mean()
    assert_near(brain.train_objectives(logits, targets), expected)


def test_pooled_statistics_are_those_of_the_utterances_alone(script):
    net = WAPTransformer(3, d_model=4, nhead=2, d_ffn=4, dropout=0.5)
    pool = StatisticalAttentivePooling(4, num_heads=2)
    utterances = make_utterances([5, 9, 1], 3)
    brain = object.__new__(script.EmotionBrain)
    brain.device = "cpu"
    brain.hparams = SimpleNamespace(adapter=net.train(), pooling=pool)
    brain.measured = [{"feats": x} for x in utterances]
    before = torch.get_rng_state()
    mean, std = brain.measure_pooled()
    assert net.training and torch.equal(torch.get_rng_state(), before)
    net.eval()
    one = torch.ones(1)
    with torch.no_grad():
        pooled = torch.cat([pool(net(x[None], one), one) for x in utterances])
    assert_near(mean, pooled.double().mean(dim=0))
    assert_near(std, pooled.double().std(dim=0, unbiased=False))
