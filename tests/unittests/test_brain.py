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
        frames, _ = batch.feats
        self.seen.append((self.steps_done, len(frames), list(batch.id)))
        return self.modules["model"](frames), frames.sum(dim=-1, keepdim=True)

    def compute_objectives(self, predictions, batch, stage):
        predicted, wanted = predictions
        loss = (predicted - wanted).square().mean()
        _, weight = self.batch_weights(len(wanted))
        return weight * loss

    def init_optimizers(self):
        self.optimizers_dict = {
            name: self.opt_class([parameter])
            for name, parameter in self.modules["model"].named_parameters()
        }

    def on_fit_batch_start(self, batch, should_step):
        self.set_learning_rates(1.0 - 0.5 * self.progress())
        groups = self.optimizers_dict["bias"].param_groups
        self.rates.append(groups[0]["lr"])


@pytest.fixture
def fit(tmp_path):
    """Fits the line; returns the brain."""

    def run(
        batch_size,
        epochs=2,
        lr=0.1,
        optimizer=torch.optim.SGD,
        places=NUM_UTTERANCES,
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
                cost=folder / "cost.json",
            ),
            **wired,
        )
        brain.seen, brain.rates = [], []
        source = generator()
        items = {
            f"u{i}": {"feats": torch.randn(1 + 5 * i % 9, 3, generator=source)}
            for i in range(NUM_UTTERANCES)
        }  # of 1 to 9 frames
        plan = EpochPlan(items, [(list(items), places)], seed=1)
        dataset = DynamicItemDataset(plan.entries, output_keys=["id", "feats"])
        loader = brain.make_train_loader(dataset, 3, batch_size, plan)
        brain.fit(brain.hparams.epoch_counter, loader)
        return brain

    return run


@pytest.mark.parametrize("places", [5, 11, 29])
@pytest.mark.parametrize(
    "optimizer, max_grad_norm",
    [(torch.optim.SGD, 0.5), (torch.optim.Adam, -1.0)],
)
def test_accumulated_batches_are_one_large_batch(
    fit, places, optimizer, max_grad_norm
):
    # an epoch's last step may have one batch, of fewer utterances
    options = {"optimizer": optimizer, "max_grad_norm": max_grad_norm}
    options["places"] = places
    whole = fit(6, **options)
    parts = fit(3, grad_accumulation_factor=2, **options)
    assert whole.optimizer_step == parts.optimizer_step == whole.num_steps
    for a, b in zip(
        whole.modules.parameters(), parts.modules.parameters(), strict=True
    ):
        assert_near(a, b, 1e-6)
    ids = [key for _, _, batch in parts.seen for key in batch]
    for seen in (ids[:places], ids[places:]):
        assert len(set(seen)) == places  # an epoch has what is planned
    # and it is not for want of a difference
    assert len({count for _, count, _ in parts.seen}) > 2


def test_progress_goes_from_zero_to_one_by_steps(fit):
    brain = fit(2, epochs=3, grad_accumulation_factor=4)
    places = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5]
    assert [place for place, _, _ in brain.seen] == places
    rates = [0.1 * (1.0 - 0.5 * place / 5) for place in places]
    assert brain.rates == pytest.approx(rates)
    assert brain.progress() == 1.0


def test_all_parameters_are_clipped_together(fit):
    brain = fit(11, epochs=1, lr=1.0, max_grad_norm=1e-3)
    torch.manual_seed(0)
    start = nn.Linear(3, 1)
    moved = [
        (a - b).detach().flatten()
        for a, b in zip(start.parameters(), brain.modules.parameters())
    ]
    assert float(torch.cat(moved).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(fit):
    with pytest.raises(RecipeError, match=r"at optimiser step \d+: try a low"):
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


def test_more_ranks_than_an_epoch_has_utterances_are_refused(fit, monkeypatch):
    monkeypatch.setattr("speechbrain_wap.training.brain.count_ranks", lambda: 2)
    with pytest.raises(RecipeError, match="2 training utter.* 2 ranks.*weight"):
        fit(batch_size=2, places=2)
