"""Laws of the steps that both stages share."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_near, generator
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from speechbrain_wap.data.sampling import EpochPlan
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.brain import RecipeBrain
from speechbrain_wap.training.checkpoints import Checkpointer

NUM_UTTERANCES = 11


class FrameBrain(RecipeBrain):
    """Fits a line to frames, of which utterances have different numbers."""

    def compute_forward(self, batch, stage):
        """Predicts all frames."""
        feats, lens = batch.feats
        valid = torch.arange(feats.shape[1]) < lens[:, None] * feats.shape[1]
        frames = feats[valid]
        self.seen.append((self.place, len(frames), list(batch.id)))
        return self.modules["model"](frames), frames.sum(dim=-1, keepdim=True)

    def compute_objectives(self, predictions, batch, stage):
        """Averages over the frames."""
        predicted, wanted = predictions
        loss = (predicted - wanted).square().mean()
        _, weight = self.weigh_batch(len(wanted))
        return weight * loss

    def init_optimizers(self):
        """Makes an optimiser for each parameter."""
        names = ("weight", "bias")
        self.optimizers_dict = {
            name: self.opt_class([getattr(self.modules["model"], name)])
            for name in names
        }

    def on_fit_batch_start(self, batch, should_step):
        """Notes the rates."""
        self.set_learning_rates(1.0 - 0.5 * self.progress())
        groups = self.optimizers_dict["bias"].param_groups
        self.rates.append(groups[0]["lr"])


def make_dataset(num_utterances=NUM_UTTERANCES):
    """Utterances of 1 to 9 frames."""
    source = generator()
    items = {
        f"u{i}": {"feats": torch.randn(1 + 5 * i % 9, 3, generator=source)}
        for i in range(num_utterances)
    }
    return DynamicItemDataset(items, output_keys=["id", "feats"])


@pytest.fixture
def fit(tmp_path):
    """Fits the line; returns the brain."""

    def run(
        batch_size,
        epochs=2,
        lr=0.1,
        optimizer=torch.optim.SGD,
        places=None,
        **opts,
    ):
        torch.manual_seed(0)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        wired = {
            "modules": {"model": nn.Linear(3, 1)},
            "opt_class": lambda parameters: optimizer(parameters, lr=lr),
            "checkpointer": Checkpointer(folder),
        }
        hparams = {
            "epoch_counter": EpochCounter(epochs),
            "number_of_epochs": epochs,
            "seed": 1,
        }
        brain = FrameBrain(
            SimpleNamespace(
                hparams=hparams,
                run_opts={"noprogressbar": True, "device": "cpu", **opts},
                history=folder / "history.json",
            ),
            **wired,
        )
        brain.seen, brain.rates = [], []
        dataset, plan = make_dataset(), None
        if places:
            groups = [(dataset.data_ids, places)]
            plan = EpochPlan(dataset.data, groups, seed=1)
            dataset = DynamicItemDataset(
                plan.entries, output_keys=["id", "feats"]
            )
        loader = brain.make_train_loader(dataset, 3, batch_size, plan)
        brain.fit(brain.hparams.epoch_counter, loader)
        return brain

    return run


def assert_same_weights(one, two, atol=1e-6):
    """Compares the lines that two brains have found."""
    for a, b in zip(
        one.modules.parameters(), two.modules.parameters(), strict=True
    ):
        assert_near(a, b, atol)


def test_more_ranks_than_an_epoch_has_utterances_are_refused(fit, monkeypatch):
    monkeypatch.setattr("speechbrain_wap.training.brain.count_ranks", lambda: 2)
    with pytest.raises(RecipeError, match="2 training utter.* 2 ranks.*weight"):
        fit(batch_size=2, places=2)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("max_grad_norm", [-1.0, 0.5])
def test_accumulated_batches_are_one_large_batch(fit, optimizer, max_grad_norm):
    # 11 utterances: the epoch's last step has one batch of two
    options = {"optimizer": optimizer, "max_grad_norm": max_grad_norm}
    whole = fit(8, **options)
    parts = fit(4, grad_accumulation_factor=2, **options)
    assert whole.optimizer_step == parts.optimizer_step == 4
    assert_same_weights(whole, parts)
    # and it is not for want of a difference
    assert len({count for _, count, _ in parts.seen}) > 2


@pytest.mark.parametrize("places", [5, 11, 29])
def test_an_epoch_has_what_is_planned(fit, places):
    brain = fit(3, places=places, grad_accumulation_factor=2)
    assert len(brain.seen) == 2 * -(-places // 3)
    ids = [key for _, _, batch in brain.seen for key in batch]
    for seen in (ids[:places], ids[places:]):
        assert len(set(seen)) == places  # copies have ids of their own
        originals = [key.partition("+")[0] for key in seen]
        assert len(set(originals)) == min(places, NUM_UTTERANCES)
    place, _, _ = brain.seen[-1]
    assert place == brain.num_steps - 1
    large = fit(6, places=places)
    for name, weights in large.modules["model"].state_dict().items():
        assert_near(brain.modules["model"].state_dict()[name], weights)


def test_every_utterance_is_in_a_step_of_each_epoch(fit):
    brain = fit(2, epochs=1, grad_accumulation_factor=4)
    ids = [key for _, _, keys in brain.seen for key in keys]
    assert sorted(ids) == sorted(f"u{i}" for i in range(NUM_UTTERANCES))
    assert [place for place, _, _ in brain.seen] == [0, 0, 0, 0, 1, 1]
    assert brain.optimizer_step == 2


def test_progress_goes_from_zero_to_one(fit):
    brain = fit(4, epochs=3)
    rates = [0.1 * (1.0 - 0.5 * place / 8) for place in range(9)]
    assert brain.rates == pytest.approx(rates)
    assert brain.progress() == 1.0


def test_all_parameters_are_clipped_together(fit):
    brain = fit(11, epochs=1, lr=1.0, max_grad_norm=1e-3)
    torch.manual_seed(0)
    start = nn.Linear(3, 1)
    moved = torch.cat(
        [
            (a - b).detach().flatten()
            for a, b in zip(start.parameters(), brain.modules.parameters())
        ]
    )
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_left_alone_where_the_norm_is_negative(fit):
    one, two = fit(11, max_grad_norm=-1.0), fit(11, max_grad_norm=1e9)
    assert_same_weights(one, two, atol=0.0)


def test_a_loss_that_is_not_finite_stops_the_run(fit):
    with pytest.raises(
        RecipeError, match=r"at optimiser step \d+: try a lower"
    ):
        fit(4, epochs=20, lr=1e20, max_grad_norm=-1.0)


def test_no_checkpoint_is_made_between_accumulated_batches(fit, monkeypatch):
    saved_at = []
    monkeypatch.setattr(
        FrameBrain,
        "_save_intra_epoch_ckpt",
        lambda self: saved_at.append(self.step),
    )
    fit(2, epochs=1, grad_accumulation_factor=4, ckpt_interval_steps=1)
    assert saved_at == [4, 6]
