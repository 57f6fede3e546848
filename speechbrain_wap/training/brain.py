"""What the trainings of both stages have in common.

SpeechBrain's Brain with what a run needs to be the same for any number of
ranks, for accumulated gradients, and after an interruption.
"""

import speechbrain as sb
import torch
from speechbrain import Stage
from torch.nn.parallel import DistributedDataParallel

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.checkpoints import RandomState
from speechbrain_wap.training.machine import (
    give_back_freed_memory,
    keep_freed_memory,
)
from speechbrain_wap.training.ranks import (
    BatchOrderSampler,
    average_over_ranks,
    count_ranks,
    own_rank,
)
from speechbrain_wap.training.statistics import EpochStatistics

# Batches after which freed memory goes back to the system: seldom enough to
# cost nothing, often enough for a long epoch to need little more than a short.
GIVE_BACK_EVERY = 20


class RecipeBrain(sb.Brain):
    """A Brain whose steps depend on seed, epoch and utterances only.

    A step's gradient is that of the mean over all items (masked frames or
    utterances) of all ranks and of all batches that it accumulates.

    Arguments
    ---------
    experiment : speechbrain_wap.training.experiment.Experiment
        The run.
    **wired : dict
        ``modules``, ``opt_class`` and ``checkpointer``, as SpeechBrain's.
    """

    def __init__(self, experiment, **wired):
        super().__init__(
            hparams=experiment.hparams, run_opts=experiment.run_opts, **wired
        )
        self.statistics = EpochStatistics(experiment.history)
        self.checkpointer.add_recoverables(
            {"statistics": self.statistics, "random_state": RandomState()}
        )

    def make_train_loader(
        self, dataset, seed, batch_size, plan=None, **options
    ):
        """Makes the training loader, with the same batches for any ranks.

        Arguments
        ---------
        dataset : speechbrain.dataio.dataset.DynamicItemDataset
            The training data.
        seed : int
            Of the order.
        batch_size : int
            Of one rank.
        plan : speechbrain_wap.data.sampling.EpochPlan, optional
            What of the dataset (its ``entries``) each epoch has; all, once, by
            default.
        **options : dict
            Further options of the loader.

        Returns
        -------
        loader : speechbrain.dataio.dataloader.SaveableDataLoader

        Raises
        ------
        RecipeError
            If an epoch has no more utterances than there are ranks.
        """
        num_utterances = len(dataset if plan is None else plan)
        if 1 < count_ranks() >= num_utterances:
            raise RecipeError(
                f"an epoch has {num_utterances} training utterances for "
                f"{count_ranks()} ranks, which need one more at least: start "
                "fewer ranks, or give more data (or corpora higher weights)."
            )
        self.train_sampler = BatchOrderSampler(
            dataset, batch_size, count_ranks(), plan, seed=seed
        )
        self.num_utterances = len(self.train_sampler)
        loader = self.make_dataloader(
            dataset,
            Stage.TRAIN,
            sampler=self.train_sampler,
            batch_size=batch_size,
            **options,
        )
        self.num_batches = len(loader)
        # An epoch's last step may be of fewer batches.
        self.steps_per_epoch = -(
            -self.num_batches // self.grad_accumulation_factor
        )
        self.num_steps = self.hparams.number_of_epochs * self.steps_per_epoch
        # Within an epoch, the place is counted in batches of all ranks.
        self.checkpointer.batch_size = batch_size * count_ranks()
        return loader

    def make_dataloader(self, dataset, stage, ckpt_prefix=None, **options):
        """Makes a loader; ranks share what is to be evaluated.

        Arguments
        ---------
        dataset : speechbrain.dataio.dataset.DynamicItemDataset
            The data.
        stage : speechbrain.Stage
            TRAIN, VALID or TEST.
        ckpt_prefix : str, optional
            See SpeechBrain's; the training loader is always checkpointed.
        **options : dict
            Further options of the loader.

        Returns
        -------
        loader : speechbrain.dataio.dataloader.SaveableDataLoader
        """
        if stage == Stage.TRAIN:
            ckpt_prefix = "dataloader-"
        elif count_ranks() > 1:
            # each utterance once, none repeated to make the shares even
            options["sampler"] = range(own_rank(), len(dataset), count_ranks())
        return super().make_dataloader(
            dataset, stage, ckpt_prefix=ckpt_prefix, **options
        )

    def on_fit_start(self):
        """Lets each rank draw its own dropout, then resumes."""
        if self.device_type == "cpu":
            keep_freed_memory()
        if own_rank() > 0:
            torch.manual_seed(self.hparams.seed + 1_000_003 * own_rank())
        super().on_fit_start()

    def _compile(self):
        """Compiles for any lengths: else each new one would take minutes."""
        self.compile_using_dynamic_shape_tracing = True
        super()._compile()

    def _wrap_distributed(self):
        """Wraps what is trained, and makes all else the same on all ranks."""
        super()._wrap_distributed()
        if count_ranks() == 1:
            return
        for module in self.modules.values():
            if isinstance(module, DistributedDataParallel):
                # They are fixed before the training; to send them at every
                # forward would also let ranks wait for others in validation,
                # where they have different numbers of batches.
                module.broadcast_buffers = False
            else:
                for tensor in module.state_dict().values():
                    if torch.is_tensor(tensor):
                        torch.distributed.broadcast(tensor, 0)

    def on_stage_start(self, stage, epoch=None):
        """Finds the place in the training where an epoch starts or goes on.

        Arguments
        ---------
        stage : speechbrain.Stage
            TRAIN, VALID or TEST.
        epoch : int, optional
            From 1.
        """
        if stage == Stage.TRAIN:
            self.batch_counts = []
            # of the batch before, which may have been the epoch's last
            self.place = self.find_place(max(self.step - 1, 0))

    def find_place(self, step):
        """Counts the optimiser steps before a batch of the current epoch.

        Arguments
        ---------
        step : int
            Number of batches of the epoch before it.

        Returns
        -------
        place : int
        """
        before = self.hparams.epoch_counter.current - 1
        done = step // self.grad_accumulation_factor
        return before * self.steps_per_epoch + done

    def progress(self):
        """Computes the share of the training that is done.

        Returns
        -------
        progress : float
            0 at the first optimiser step, 1 at the last.
        """
        return self.place / max(self.num_steps - 1, 1)

    def repeats_last(self):
        """Tells whether this batch ends with an utterance of another rank.

        SpeechBrain repeats utterances at the end of an epoch, so that all
        ranks have as many; they must not count twice.

        Returns
        -------
        repeats : bool
            True at an epoch's last batch on some ranks, where the number of
            utterances is no multiple of that of the ranks.
        """
        surplus = self.num_utterances % count_ranks()
        return self.step == self.num_batches and 0 < surplus <= own_rank()

    def weigh_batch(self, count):
        """Weighs a mean so that a step's gradient is that of the whole mean.

        Arguments
        ---------
        count : int
            How many items this rank's mean is over; may be 0.

        Returns
        -------
        share : float
            Among the ranks, on average 1: for the statistics.
        weight : float
            Among the ranks and the batches of a step: for the loss.
        """
        mean = count
        if count_ranks() > 1:
            mean = float(average_over_ranks(torch.tensor(float(count))))
        mean = max(mean, 1e-6)
        self.batch_counts.append(mean)
        share = count / mean
        # the later batches' counts are not known yet: see optimizers_step
        return share, share * mean / self.batch_counts[0]

    def fit_batch(self, batch):
        """Fits a batch; SpeechBrain drops the last ones of an epoch.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            The batch.

        Returns
        -------
        loss : torch.Tensor
            A scalar, on the CPU.
        """
        self.place = self.find_place(self.step - 1)
        should_step = self.should_step = (
            self.step % self.grad_accumulation_factor == 0
            or self.step == self.num_batches
        )
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, Stage.TRAIN)
            self.check_loss_isfinite(loss)
            self.scaler.scale(loss).backward()
        self.has_stepped = False
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        is_last = self.step == self.num_batches
        is_due = is_last or self.step % GIVE_BACK_EVERY == 0
        if self.device_type == "cpu" and is_due:
            give_back_freed_memory()
        return loss.detach().cpu()

    def set_learning_rates(self, share):
        """Sets each optimiser to a share of the rate it was made with.

        Arguments
        ---------
        share : float
            0 to 1.
        """
        for optimizer in self.optimizers_dict.values():
            for group in optimizer.param_groups:
                group["lr"] = share * optimizer.defaults["lr"]

    def check_loss_isfinite(self, loss):
        """Stops at the first loss that is not finite, and says where.

        Arguments
        ---------
        loss : torch.Tensor
            A scalar.

        Raises
        ------
        RecipeError
            If it is NaN or infinite.
        """
        if not torch.isfinite(loss):
            raise self.not_finite(f"the loss is {float(loss.detach())}", 1)

    def not_finite(self, what, ahead=0):
        """Makes the error for numbers that are not finite.

        Arguments
        ---------
        what : str
            What they are.
        ahead : int
            1 within a step that is not yet counted.

        Returns
        -------
        error : RecipeError
        """
        return RecipeError(
            f"{what} at optimiser step {self.optimizer_step + ahead}: try a "
            "lower lr, or --precision=fp32; the last checkpoint is kept."
        )

    def evaluate_batch(self, batch, stage):
        """Evaluates a batch, and stops where its loss is not finite.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            The batch.
        stage : speechbrain.Stage
            VALID or TEST.

        Returns
        -------
        loss : torch.Tensor
            A scalar, on the CPU.

        Raises
        ------
        RecipeError
            If it is NaN or infinite.
        """
        loss = super().evaluate_batch(batch, stage)
        if not torch.isfinite(loss):
            raise self.not_finite(f"the {stage.name} loss is {float(loss)}")
        return loss

    def check_weights(self):
        """Stops before weights that are not finite are saved or tested.

        Raises
        ------
        RecipeError
            If a weight is NaN or infinite.
        """
        weights = [p for p in self.modules.parameters() if p.requires_grad]
        if not all(torch.isfinite(weight).all() for weight in weights):
            raise self.not_finite("weights are not finite")

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Looks at what an epoch has learned.

        Arguments
        ---------
        stage : speechbrain.Stage
            TRAIN, VALID or TEST.
        stage_loss : float
            Taken for SpeechBrain's interface.
        epoch : int, optional
            From 1.
        """
        if stage == Stage.TRAIN:
            self.check_weights()

    def _save_intra_epoch_ckpt(self):
        """Saves within an epoch what is worth it."""
        self.check_weights()
        super()._save_intra_epoch_ckpt()

    def optimizers_step(self):
        """Clips the gradient of all parameters together, and steps.

        SpeechBrain clips each optimiser's first group by itself. With fp16, a
        step whose gradient overflows is left out.
        """
        optimizers = list(self.optimizers_dict.values())
        parameters = [
            parameter
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        if len(self.batch_counts) > 1:
            # each batch was weighed against the step's first one only
            share = self.batch_counts[0] / sum(self.batch_counts)
            torch._foreach_mul_([p.grad for p in parameters], share)
        self.batch_counts = []
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        before = self.scaler.get_scale()
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        # the scale falls where a step was left out
        self.has_stepped = self.scaler.get_scale() >= before
        self.optimizer_step += 1

    def _should_save_intra_epoch_ckpt(self, *args):
        """Saves between optimiser steps only: gradients are not saved."""
        is_due = super()._should_save_intra_epoch_ckpt(*args)
        return is_due and not self.batch_counts
