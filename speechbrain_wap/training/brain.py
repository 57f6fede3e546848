"""What the trainings of both stages have in common.

SpeechBrain's Brain with what a run needs to be the same for any number of
ranks, for accumulated gradients, and after an interruption.
"""

import speechbrain as sb
import torch
from speechbrain import Stage
from speechbrain.utils.distributed import ddp_all_reduce, if_main_process
from torch.nn.parallel import DistributedDataParallel

from speechbrain_wap.data.batches import Collate
from speechbrain_wap.errors import DivergedError, RecipeError
from speechbrain_wap.features.extraction import START_METHOD
from speechbrain_wap.packing import send
from speechbrain_wap.progress import replace_bars
from speechbrain_wap.training.checkpoints import RandomState
from speechbrain_wap.training.machine import (
    RunCost,
    give_back_freed_memory,
    keep_freed_memory,
)
from speechbrain_wap.training.ranks import (
    BatchOrderSampler,
    count_ranks,
    own_rank,
)
from speechbrain_wap.training.statistics import EpochStatistics

# Batches after which freed memory goes back to the system: seldom enough to
# cost nothing, often enough for a long epoch to need little more than a short.
GIVE_BACK_EVERY = 20
# Processes that read ahead for a GPU, unless the YAML says how many
GPU_WORKERS = 2


class RecipeBrain(sb.Brain):
    """A Brain whose steps depend on seed, epoch and utterances only.

    A step's gradient is that of the mean over all items (masked frames or
    utterances) of all ranks and of all batches that it accumulates.

    Arguments
    ---------
    experiment : speechbrain_wap.training.experiment.Experiment
        The run.
    **wired : dict
        SpeechBrain's ``modules``, ``opt_class`` and ``checkpointer``.
    """

    def __init__(self, experiment, **wired):
        super().__init__(
            hparams=experiment.hparams, run_opts=experiment.run_opts, **wired
        )
        # --compile would take minutes anew for each length of a batch
        self.compile_using_dynamic_shape_tracing = True
        self.statistics = EpochStatistics(experiment.history)
        self.cost = RunCost(experiment.cost, self.device)
        self.checkpointer.add_recoverables(
            {"statistics": self.statistics, "random_state": RandomState()}
        )

    # The way through an epoch ------------------------------------------------

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
        ranks = count_ranks()
        self.num_utterances = len(dataset if plan is None else plan)
        if 1 < ranks >= self.num_utterances:
            raise RecipeError(
                f"an epoch has {self.num_utterances} training utterances for "
                f"{ranks} ranks, which need one more at least: start fewer "
                "ranks, or give more data (or corpora higher weights)."
            )
        self.train_sampler = BatchOrderSampler(
            dataset, batch_size, ranks, plan, seed=seed
        )
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
        self.checkpointer.batch_size = batch_size * ranks
        return loader

    def make_dataloader(self, dataset, stage, **options):
        """Makes a loader; ranks share what is to be evaluated."""
        on_gpu = self.device_type == "cuda"
        options["collate_fn"] = collate = self.make_collate(stage)
        options.setdefault("pin_memory", on_gpu)
        if options.get("num_workers") is None:
            options["num_workers"] = GPU_WORKERS if on_gpu else 0
        if options["num_workers"]:
            options.setdefault("multiprocessing_context", START_METHOD)
            collate.epoch.share_memory_()
        if stage == Stage.TRAIN:
            self.train_collate = collate
        if stage != Stage.TRAIN and count_ranks() > 1:
            # each utterance once, none repeated to make the shares even
            options["sampler"] = range(own_rank(), len(dataset), count_ranks())
        return super().make_dataloader(dataset, stage, **options)

    def make_collate(self, stage):
        """Makes what turns utterances into a batch; without masks, here.

        Arguments
        ---------
        stage : speechbrain.Stage
            What the batches are for.

        Returns
        -------
        collate : speechbrain_wap.data.batches.Collate
        """
        return Collate()

    def on_stage_start(self, stage, epoch=None):
        """Finds out where in the training an epoch starts or goes on."""
        if stage == Stage.TRAIN:
            self.train_collate.epoch.fill_(epoch)
            self.batch_counts = []
            self._count_steps()

    def _count_steps(self):
        """Counts the optimiser steps before the current one."""
        epochs = self.hparams.epoch_counter.current - 1
        # an epoch that is resumed at its very end is at its last batch
        batches = max(self.step - 1, 0)
        steps = batches // self.grad_accumulation_factor
        self.steps_done = epochs * self.steps_per_epoch + steps

    def progress(self):
        """Computes the share of the training that is done.

        Returns
        -------
        progress : float
            0 at the first optimiser step, 1 at the last.
        """
        return self.steps_done / max(self.num_steps - 1, 1)

    def count_trained(self):
        """Counts the parameters that are trained.

        Returns
        -------
        count : int
        """
        parameters = self.modules.parameters()
        return sum(p.numel() for p in parameters if p.requires_grad)

    # Ranks -------------------------------------------------------------------

    def on_fit_start(self):
        """Lets each rank draw its own dropout, then resumes."""
        if self.device_type == "cpu":
            keep_freed_memory()
        if own_rank() > 0:
            torch.manual_seed(self.hparams.seed + 1_000_003 * own_rank())
        super().on_fit_start()
        self.scale = self.scaler.get_scale()
        self.cost.start(goes_on=self.optimizer_step > 0)

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
                # nor what is on the CPU on purpose, lengths and masks
                module.device_ids = None
            else:
                for tensor in module.state_dict().values():
                    if torch.is_tensor(tensor):
                        torch.distributed.broadcast(tensor, 0)

    def ends_with_repeat(self):
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

    def batch_weights(self, count):
        """Weighs a mean so that a step's gradient is that of the whole mean.

        Arguments
        ---------
        count : int
            How many items this rank's mean is over; may be 0.

        Returns
        -------
        share : float or torch.Tensor
            This rank's items, divided by the mean over the ranks: the weight
            of its values in the epoch's statistics.
        weight : float or torch.Tensor
            The weight of its loss among the ranks and batches of a step.
        """
        mean = max(count, 1e-6)
        if count_ranks() > 1:
            # a number of the device, which the host need not wait for
            total = torch.tensor(float(count), dtype=torch.float64)
            total = send(total, self.device)
            ddp_all_reduce(total, torch.distributed.ReduceOp.SUM)
            mean = (total / count_ranks()).clamp(min=1e-6)
        self.batch_counts.append(mean)
        if count == 0:
            return 0.0, 0.0
        # the later batches' counts are not known yet: see optimizers_step
        return count / mean, count / self.batch_counts[0]

    # Bars ------------------------------------------------------------------

    def fit(self, *args, **kwargs):
        """Trains as SpeechBrain does, with bars like all others."""
        with replace_bars(sb.core):
            super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Tests as SpeechBrain does, with bars like all others."""
        with replace_bars(sb.core):
            return super().evaluate(*args, **kwargs)

    # Steps -------------------------------------------------------------------

    def fit_batch(self, batch):
        """Fits a batch, of which SpeechBrain leaves out an epoch's last ones.

        It steps at every n-th batch of those accumulated, and at the last.
        """
        self._count_steps()
        should_step = self.should_step = (
            self.step % self.grad_accumulation_factor == 0
            or self.step == self.num_batches
        )
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, Stage.TRAIN)
            value = self.check_loss_isfinite(loss)
            self.scaler.scale(loss).backward()
        self.has_stepped = False
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        is_last = self.step == self.num_batches
        is_due = is_last or self.step % GIVE_BACK_EVERY == 0
        if self.device_type == "cpu" and is_due:
            give_back_freed_memory()
        return value

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
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        # the scale falls where a step was left out; to look at it, the host
        # waits for the GPU, but only with fp16
        before, self.scale = self.scale, self.scaler.get_scale()
        self.has_stepped = self.scale >= before
        self.optimizer_step += 1

    def try_step(self, utterances):
        """Takes a step on utterances that are made up, see trial.py.

        Arguments
        ---------
        utterances : list of dict
            As a dataset gives them.
        """
        # what is wrong with the loaders' options is said now
        several = utterances * (count_ranks() + 1)
        self.make_train_loader(several, 0, **self.hparams.dataloader_options)
        valid = {"dataset": utterances, "stage": Stage.VALID}
        self.make_dataloader(**valid, **self.hparams.valid_dataloader_options)
        self.num_utterances = len(utterances) * count_ranks()
        self.num_batches = self.num_steps = self.steps_per_epoch = 1
        self.step, self.optimizer_step = 1, 0
        self.hparams.epoch_counter.current = 1
        self._count_steps()
        self.init_optimizers()
        self.scale = self.scaler.get_scale()
        self.train_collate = self.make_collate(Stage.TRAIN)
        for stage, collate in (
            (Stage.VALID, self.make_collate(Stage.VALID)),
            (Stage.TRAIN, self.train_collate),
        ):
            self.modules.train(stage == Stage.TRAIN)
            self.on_stage_start(stage, 1)
            batch = collate(utterances)
            if stage == Stage.TRAIN:
                self.fit_batch(batch)
                continue
            with torch.no_grad():
                self.evaluate_batch(batch, stage)

    # Numbers that are not finite stop the run, before they are saved ----------

    def nonfinite_error(self, what, ahead=0):
        """Makes the error for numbers that are not finite.

        Arguments
        ---------
        what : str
            What they are.
        ahead : int
            1 within a step that is not yet counted.

        Returns
        -------
        error : DivergedError
        """
        return DivergedError(
            f"{what} at optimiser step {self.optimizer_step + ahead}: try a "
            "lower lr, or --precision=fp32; the last checkpoint is kept."
        )

    def check_loss_isfinite(self, loss):
        """Stops at the first training loss that is not finite.

        Returns it on the CPU; that is the step's one wait for a GPU.
        """
        value = loss.detach().cpu()
        if not torch.isfinite(value):
            raise self.nonfinite_error(f"the loss is {float(value)}", 1)
        return value

    def evaluate_batch(self, batch, stage):
        """Evaluates a batch, and stops where its loss is not finite."""
        loss = super().evaluate_batch(batch, stage)
        if not torch.isfinite(loss):
            raise self.nonfinite_error(
                f"the {stage.name} loss is {float(loss)}"
            )
        return loss

    def _check_weights(self):
        """Stops before weights that are not finite are saved or tested."""
        weights = [p for p in self.modules.parameters() if p.requires_grad]
        if not all(torch.isfinite(weight).all() for weight in weights):
            raise self.nonfinite_error("weights are not finite")

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Checks the weights that an epoch has learned; notes what it cost."""
        if stage == Stage.TRAIN:
            self._check_weights()
        if if_main_process():
            self.cost.record()

    def _should_save_intra_epoch_ckpt(self, *args):
        """Saves between optimiser steps only: gradients are not saved."""
        is_due = super()._should_save_intra_epoch_ckpt(*args)
        return is_due and not self.batch_counts

    def _save_intra_epoch_ckpt(self):
        """Saves within an epoch weights that are finite."""
        self._check_weights()
        super()._save_intra_epoch_ckpt()
