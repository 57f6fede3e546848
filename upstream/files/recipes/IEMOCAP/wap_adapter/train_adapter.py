#!/usr/bin/env python3
"""Stage 1: trains an adapter without labels (Sec. II-B of the paper).

A student WAP-Transformer predicts, on masked frames, what its EMA teacher makes
of the unmasked ones: the teacher's frames themselves (Eq. 1) and their nearest
local attributes (Eq. 4, 6).

To run this recipe, from its folder or from that of EmoDB's:
> python train_adapter.py hparams/adapter.yaml --data_folder=/path/to/corpus --fold=1
"""

import os
import sys
from pydoc import locate

import torch
from hyperpyyaml import load_hyperpyyaml

from wap_data import (
    encode_all,
    make_dataset,
    read_manifest,
    write_manifests,
)

import speechbrain as sb
from speechbrain.lobes.models.wap_adapter.frames import (
    measure_frames,
    select_frames,
    valid_frames,
)
from speechbrain.lobes.models.wap_adapter.targets import (
    frame_spread,
)
from speechbrain.utils.distributed import (
    if_main_process,
    run_on_main,
)


class AdapterBrain(sb.Brain):
    """Trains the student by mask prediction and self-distillation."""

    def progress(self):
        """Computes the share of the training that is done, 0 to 1."""
        return self.optimizer_step / max(self.num_steps - 1, 1)

    def compute_forward(self, batch, stage):
        """Runs the student on masked and the teacher on whole utterances."""
        feats, lens = batch.to(self.device).feats  # (B, T, D)
        num_frames, valid = valid_frames(lens, feats.shape[1])
        epoch = self.hparams.epoch_counter.current
        mask = self.hparams.masks(batch.id, num_frames, epoch)
        mask = mask.to(self.device)  # (B, T)

        z_student = self.modules.student(feats, lens, mask)
        z_student = select_frames(z_student, mask)  # (M, D)
        z_teacher = self.modules.teacher(feats, lens)
        z_teacher = self.hparams.targets.select(z_teacher, valid)  # (N, D)
        return z_student, z_teacher, mask[valid]

    def compute_objectives(self, predictions, batch, stage):
        """Joins reconstruction and pseudo-label cross entropy (Eq. 6)."""
        z_student, z_teacher, masked = predictions
        spread = frame_spread(z_teacher)
        frames = self.hparams.targets.normalise(z_teacher)
        attributes = self.modules.local_attributes
        if not attributes.initialised:
            attributes.initialise_(frames)
        codes = attributes.assign(frames)  # Eq. 4
        logits = attributes.logits(z_student)
        losses = self.hparams.objective(
            z_student, frames[masked], logits, codes[masked], self.progress()
        )
        # Eq. 5, once per optimiser step; after the losses, which used the
        # attributes as they were
        if self.should_step:
            attributes.update(frames, codes)
        else:
            attributes.collect_(frames, codes)
        for name, value in {**losses, "teacher_spread": spread}.items():
            self.values.setdefault(name, []).append(float(value))
        return losses["loss"]

    def init_optimizers(self):
        """Gives the optimiser the student's parameters alone."""
        self.optimizer = self.opt_class(self.modules.student.parameters())
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        self.should_step = should_step
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr_schedule(self.progress())

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Moves the teacher, once per optimiser step (Eq. 2)."""
        if should_step:
            self.modules.teacher.update(self.modules.student, self.progress())

    def on_stage_start(self, stage, epoch=None):
        """Starts the epoch's means, and the count of used attributes."""
        self.values = {}
        self.modules.local_attributes.reset_usage()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the epoch and saves a checkpoint."""
        stats = {k: sum(v) / len(v) for k, v in self.values.items()}
        stats.update(self.modules.local_attributes.usage_statistics())
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
            train_stats=stats,
        )
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch}, num_to_keep=1
        )


def dataio_prep(hparams, device):
    """Makes the dataset of the training sessions, labelled or not (D8)."""
    entries = read_manifest(
        hparams["train_annotation"], hparams["data_folder"]
    )
    dataset = make_dataset(
        entries, hparams["encoder"], hparams["feature_folder"], device
    )
    run_on_main(encode_all, args=[dataset])
    return dataset


if __name__ == "__main__":
    # EmoDB's link to this file lies beside its prepare script
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))

    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    if not hparams["skip_prep"]:
        read_corpus = locate(hparams["read_corpus"])
        run_on_main(
            write_manifests,
            kwargs={
                "rows": read_corpus(hparams["data_folder"]),
                "fold": hparams["fold"],
                "train": hparams["train_annotation"],
                "valid": hparams["valid_annotation"],
                "test": hparams["test_annotation"],
            },
        )

    brain = AdapterBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    dataset = dataio_prep(hparams, brain.device)
    if hparams["input_norm"]:
        with dataset.output_keys_as(["feats"]):
            statistics = measure_frames((item["feats"], 1) for item in dataset)
        hparams["student"].set_input_statistics(*statistics)
        hparams["teacher"].model.set_input_statistics(*statistics)

    loader = brain.make_dataloader(
        dataset, sb.Stage.TRAIN, **hparams["dataloader_options"]
    )
    steps = max(1, len(loader) // brain.grad_accumulation_factor)
    brain.num_steps = hparams["number_of_epochs"] * steps
    brain.fit(hparams["epoch_counter"], loader)

    # D13: what goes on is the teacher, or the student
    branch = hparams["student"]
    if hparams["adapter_branch"] == "teacher":
        branch = hparams["teacher"].model
    if if_main_process():
        torch.save(
            {"fold": hparams["fold"], "backbone": branch.state_dict()},
            os.path.join(hparams["output_folder"], "adapter.ckpt"),
        )
