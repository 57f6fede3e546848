#!/usr/bin/env python3
"""Stage 1: trains the adapter without labels (Sec. II-B of the paper).

A student WAP-Transformer predicts, on masked frames, what its EMA teacher
makes of the unmasked ones: the teacher's frames themselves (Eq. 1) and their
nearest local attributes (Eq. 4, 6).

To run experiment recipe:
> python train_adapter.py hparams/adapter.yaml --data_folder=/path/to/corpus

On further corpora, or on them alone, without --data_folder:
> python train_adapter.py hparams/adapter.yaml --corpora=a.csv,b.csv ...

On several GPUs:
> torchrun --nproc_per_node=4 train_adapter.py hparams/adapter.yaml ...
"""

import speechbrain_wap  # isort: skip  # noqa: F401  checks packages
import speechbrain as sb
from speechbrain.utils.distributed import infer_device, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.batches import Collate, pad_frames
from speechbrain_wap.data.datasets import extract_features, make_dataset
from speechbrain_wap.data.further_corpora import parse_corpora, plan_epochs
from speechbrain_wap.data.manifests import describe_data
from speechbrain_wap.data.preparation import prepare_adapter_data
from speechbrain_wap.errors import check_flag
from speechbrain_wap.evaluation.diagnostics import (
    DIAGNOSTICS,
    REMEDIES,
    Diagnostics,
    explain_lost,
)
from speechbrain_wap.packing import select_frames, send, valid_frames
from speechbrain_wap.targets import frame_spread
from speechbrain_wap.training.adapter_folder import write_adapter_record
from speechbrain_wap.training.brain import RecipeBrain
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.experiment import Experiment, run_script
from speechbrain_wap.training.ranks import start_ranks
from speechbrain_wap.training.statistics import EpochStatistics
from speechbrain_wap.training.trial import make_utterances, trial, try_functions

logger = get_logger(__name__)

# Below this spread (1 is that of white noise) the teacher says the same of all
# frames (D6).
COLLAPSED_SPREAD = 0.05
# Keys that a YAML for this script must have; the first tells it from others
NEEDED = (
    "student teacher predictor local_attributes masks targets objective "
    "modules opt_class lr_schedule epoch_counter train_logger checkpointer "
    "corpora corpus fold fold_plan adapter_data seed encoder_source "
    "encoder_layer number_of_epochs batch_size probe_every "
    "dataloader_options valid_dataloader_options"
).split()


# Data ------------------------------------------------------------------------


def prepare_data(experiment, corpora):
    """Writes the manifests, encodes their audio; gives the splits."""
    hparams, settings = experiment.hparams, experiment.settings
    if not hparams["skip_prep"]:
        table = {"corpus_table": experiment.corpus_table}
        run_on_main(
            prepare_adapter_data,
            kwargs={
                "corpus": {**hparams["corpus"], **table},
                "plan": hparams["fold_plan"],
                "adapter_data": hparams["adapter_data"],
                "manifests": {
                    "train": hparams["train_annotation"],
                    "valid": hparams["valid_annotation"],
                    "test": hparams["test_annotation"],
                },
                "corpora": corpora,
                "left_out_csv": experiment.left_out_csv,
            },
        )
    splits = experiment.read_splits(("wav", "speaker"))
    cache = hparams["feature_cache"]
    cache.device = experiment.run_opts.get("device") or infer_device()
    settings["encoder_key"] = cache.key
    settings["data"] = describe_data(splits)
    experiment.record()
    try_out(experiment)

    del splits["test"]  # the held-out session is not even encoded
    splits = extract_features(
        cache, splits, experiment.skipped_csv, hparams["max_skipped"]
    )
    record = [settings, splits["train"], hparams["adapter_data"]]
    run_on_main(write_adapter_record, args=[experiment.folder, *record])
    return splits


def dataio_prep(hparams, splits, plan):
    """Makes the datasets "train" and, where there is such a split, "valid"."""
    entries = {"train": plan.entries, "valid": splits["valid"]}
    return {
        name: make_dataset(
            entries[name],
            {"": hparams["feature_cache"]},
            max_frames=hparams["max_frames"],
            long_utterances=hparams["long_utterances"],
        )
        for name in entries
        if entries[name]
    }


# Model, loss, step, evaluation -----------------------------------------------


class AdapterBrain(RecipeBrain):
    """Trains the student by mask prediction and self-distillation."""

    has_validation = True
    diagnostics = None  # what is watched, if anything

    def make_collate(self, stage):
        """Masks each utterance in each epoch anew; not so in validation."""
        return Collate(self.hparams.masks)

    def compute_forward(self, batch, stage):
        """Runs the student on masked and the teacher on whole utterances."""
        # lengths and masks stay on the CPU: a GPU need not be waited for
        feats, lens = pad_frames(batch.feats, self.device)  # (B, T, D)
        _, valid = valid_frames(lens, feats.shape[1])
        if stage == sb.Stage.TRAIN and self.ends_with_repeat():
            valid[-1] = False
        mask = batch.masks["feats"] & valid

        z_student = self.modules.student(
            feats, lens, mask, only_masked=True
        )  # (B, T, D)
        z_student = select_frames(z_student, mask)  # (M, D)
        z_student = self.modules.predictor(z_student)
        z_teacher = self.modules.teacher(feats, lens)  # (B, T, D)
        frames = self.hparams.targets.select(z_teacher, valid)  # (N, D)
        spread = frame_spread(frames)
        frames = self.hparams.targets.normalise(frames)
        # numbers of the masked frames among the valid ones
        masked = send(mask[valid].nonzero()[:, 0], feats.device)
        return z_student, frames, masked, spread

    def compute_objectives(self, predictions, batch, stage):
        """Joins reconstruction and pseudo-label cross entropy (Eq. 6)."""
        z_student, frames, masked, spread = predictions
        attributes = self.modules.local_attributes
        if not attributes.initialised:
            attributes.initialise_(frames)
        codes = attributes.assign(frames)  # Eq. 4
        logits = attributes.logits(z_student)
        losses = self.hparams.objective(
            z_student, frames[masked], logits, codes[masked], self.progress()
        )
        agreed = logits.argmax(dim=-1) == codes[masked]
        values = {
            **losses,
            "agreement": agreed.float().mean(),
            "teacher_spread": spread,
        }
        if stage != sb.Stage.TRAIN:
            self.valid_statistics.add(values, len(masked))
            return losses["loss"]
        # Eq. 5, once per optimiser step; after the losses, which used the
        # attributes as they were
        if self.should_step:
            attributes.update(frames, codes)
        else:
            attributes.collect_(frames, codes)
        share, weight = self.batch_weights(len(masked))
        self.statistics.add(values, share)
        return weight * losses["loss"]

    def init_optimizers(self):
        """Gives the optimiser the parameters of student and predictor."""
        trained = [self.modules.student, self.modules.predictor]
        self.optimizer = self.opt_class(
            [parameter for part in trained for parameter in part.parameters()]
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_fit_start(self):
        """Looks at the untrained networks, unless it goes on with a run."""
        super().on_fit_start()
        values = self.diagnose(0) if self.optimizer_step == 0 else {}
        if values:
            row = dict.fromkeys(("lr", "rec_weight", "ema_decay"))
            self.log_row({"epoch": 0, "steps": 0, **row}, values, None, None)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        self.set_learning_rates(self.hparams.lr_schedule(self.progress()))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Moves the teacher, once per optimiser step (Eq. 2)."""
        if self.has_stepped:
            self.modules.teacher.update(self.modules.student, self.progress())

    def on_stage_start(self, stage, epoch=None):
        """Starts the count of used attributes or the validation means."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.valid_statistics = EpochStatistics("")
        elif self.step == 0:
            self.modules.local_attributes.reset_usage()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the epoch and saves a checkpoint."""
        super().on_stage_end(stage, stage_loss, epoch)
        valid_stats = None
        if stage == sb.Stage.TRAIN:
            usage = self.modules.local_attributes.usage_statistics()
            self.train_stats = {**self.statistics.means(), **usage}
            spread = self.train_stats["teacher_spread"]
            if spread < COLLAPSED_SPREAD:
                logger.warning(
                    f"Collapse: the teacher's spread fell to {spread:.3f} in "
                    f"epoch {epoch}, its frames are nearly all alike; try "
                    "target_norm=layer, a lower lr or a higher ema_decay."
                )
            if self.has_validation:
                return
        else:
            valid_stats = self.valid_statistics.means()
        row = {
            "epoch": epoch,
            "steps": self.optimizer_step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "rec_weight": self.hparams.objective.rec_weight(self.progress()),
            "ema_decay": self.modules.teacher.ema_schedule(self.progress()),
        }
        values = self.diagnose(epoch)
        self.log_row(row, values, self.train_stats, valid_stats)
        self.step = 0  # the checkpoint is of the epoch's end
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch}, num_to_keep=2
        )

    def diagnose(self, epoch):
        """Measures what the frames tell, in epochs that are due; else {}."""
        every, last = self.hparams.probe_every, self.hparams.number_of_epochs
        if self.diagnostics is None or not every:
            return {}
        if epoch % every != 0 and epoch != last:
            return {}
        # by one rank, which reads the cache of its node; the modules as they
        # are under the wrappers for several ranks, or for torch.compile
        values = run_on_main(
            self.diagnostics.measure,
            args=[self.hparams.student, self.hparams.teacher],
        )
        if any(value != value for value in values.values()):  # NaN
            raise self.nonfinite_error("the networks' frames are not finite")
        if epoch > 0:
            rows = self.statistics.rows
            rows = [row for row in rows if row.get("probe_raw") is not None]
            settings = {k: getattr(self.hparams, k, None) for k in REMEDIES}
            warning = explain_lost(epoch, values, rows, settings)
            if warning:
                logger.warning(warning)
        return values

    def log_row(self, row, values, train_stats, valid_stats):
        """Writes an epoch to train_log.txt and history.json."""
        shown = {k: v for k, v in {**row, **values}.items() if v is not None}
        stats = {"train": train_stats, "valid": valid_stats}
        self.hparams.train_logger.log_stats(
            shown, train_stats=train_stats, valid_stats=valid_stats
        )
        row = {**row, **dict.fromkeys(DIAGNOSTICS), **values, **stats}
        self.statistics.end_epoch(row)


# The experiment --------------------------------------------------------------


def try_out(experiment, classes=()):
    """Takes a step on made-up frames with a copy of what the YAML wires."""
    with trial(experiment) as tried:
        if tried is None:
            return
        hparams = tried.hparams
        try_functions(hparams)
        brain = AdapterBrain(
            tried,
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            checkpointer=hparams["checkpointer"],
        )
        brain.try_step(make_utterances(tried, 2))


def train(experiment):
    """Prepares one fold and trains its adapter."""
    hparams = experiment.hparams
    corpora = parse_corpora(hparams["corpora"])
    splits = prepare_data(experiment, corpora)
    cache = hparams["feature_cache"]
    plan = plan_epochs(
        splits["train"],
        corpora,
        hparams["corpus_weight"],
        hparams["seed"],
    )
    datasets = dataio_prep(hparams, splits, plan)
    if hparams["input_norm"]:
        statistics = cache.measure_frames(
            [
                (entry["digest"], plan.weights[key])
                for key, entry in splits["train"].items()
            ],
            hparams["max_frames"],
        )
        hparams["student"].set_input_statistics(*statistics)
        hparams["teacher"].model.set_input_statistics(*statistics)

    # Loading an encoder draws random numbers, reading the cache does not.
    sb.utils.seed.seed_everything(hparams["seed"])
    brain = AdapterBrain(
        experiment,
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        checkpointer=hparams["checkpointer"],
    )
    brain.has_validation = "valid" in datasets
    if hparams["probe_every"]:
        brain.diagnostics = Diagnostics(
            splits["train"],
            cache,
            max_frames=hparams["max_frames"],
            most=hparams["probe_utterances"],
            seed=hparams["seed"],
            device=brain.device,
        )
    train_loader = brain.make_train_loader(
        datasets["train"],
        seed=hparams["seed"],
        plan=plan,
        **hparams["dataloader_options"],
    )
    brain.fit(
        brain.hparams.epoch_counter,
        train_loader,
        datasets.get("valid"),
        valid_loader_kwargs=hparams["valid_dataloader_options"],
    )


def run(command):
    """Trains one fold's adapter, or a universal one.

    Arguments
    ---------
    command : speechbrain_wap.training.command_line.Command
        A YAML file and the user's values.
    """
    start_ranks(command.run_opts)
    experiment = Experiment(command, NEEDED)
    check_flag("input_norm", experiment.hparams["input_norm"])
    with experiment.open():
        sb.create_experiment_directory(experiment.folder)
        train(experiment)


def main(arguments):
    """Reads the command line, a list of str, and runs."""
    run(read_command(arguments))


if __name__ == "__main__":
    run_script(main)
