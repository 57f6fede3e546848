#!/usr/bin/env python3
"""Stage 2: fine-tunes an emotion model (Sec. II-C of the paper).

Frames of the frozen encoder go through the WAP-Transformer, statistical
attentive pooling and a linear classifier.

To run this recipe, from its folder or from that of EmoDB's:
> python train_classifier.py hparams/classifier.yaml --data_folder=/path/to/corpus --fold=1 --adapter_folder=/output/of/train_adapter

Without --adapter_folder the WAP-Transformer is trained from scratch.
"""

import os
import sys
from pydoc import locate

import torch
from hyperpyyaml import load_hyperpyyaml

from wap_data import (
    emotion_scores,
    encode_all,
    label_utterances,
    make_dataset,
    read_manifest,
    write_manifests,
)

import speechbrain as sb
from speechbrain.lobes.models.wap_adapter.frames import (
    valid_frames,
)
from speechbrain.utils.distributed import (
    if_main_process,
    run_on_main,
)


class Batches:
    """The utterances of a dataset, one in each batch, on a device."""

    def __init__(self, dataset, device):
        self.loader = sb.dataio.dataloader.make_dataloader(dataset)
        self.device = device

    def __iter__(self):
        return (batch.to(self.device) for batch in self.loader)


class EmotionBrain(sb.Brain):
    """Trains backbone, pooling and classifier."""

    def progress(self):
        """Computes the share of the training that is done, 0 to 1."""
        return self.optimizer_step / max(self.num_steps - 1, 1)

    def compute_forward(self, batch, stage):
        """Computes the logits of the classes."""
        feats, lens = batch.to(self.device).feats  # (B, T, D)
        mask = None
        if stage == sb.Stage.TRAIN:
            num_frames, _ = valid_frames(lens, feats.shape[1])
            mask = self.hparams.augmenter.mask(
                batch.id,
                batch.mask_probability.tolist(),
                num_frames,
                self.hparams.epoch_counter.current,
            ).to(self.device)
        return self.modules.model(feats, lens, mask)  # (B, C)

    def compute_objectives(self, predictions, batch, stage):
        """Computes the cross entropy, and keeps predictions to be scored."""
        weights = self.class_weights.to(self.device)[batch.target]
        losses = self.hparams.compute_cost(
            predictions, batch.target, reduction="none"
        )
        if stage != sb.Stage.TRAIN:
            self.targets += batch.target.tolist()
            self.predicted += predictions.argmax(dim=-1).tolist()
        return (weights * losses).mean()

    def init_optimizers(self):
        """Makes one optimiser for the backbone and one for all else."""
        model = self.hparams.model
        self.optimizer = self.opt_class(model.backbone.parameters())
        classifier_optimizer = self.hparams.classifier_opt_class(
            [*model.pooling.parameters(), *model.classifier.parameters()]
        )
        self.optimizers_dict = {
            "optimizer": self.optimizer,
            "classifier_optimizer": classifier_optimizer,
        }
        self.checkpointer.add_recoverables(self.optimizers_dict)

    def on_fit_start(self):
        """Measures the training data (D14, D19), unless a run goes on."""
        super().on_fit_start()
        if self.optimizer_step == 0:
            self.hparams.model.before_fit(Batches(self.measured, self.device))

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rates of the coming step."""
        share = self.hparams.lr_schedule(self.progress())
        for optimizer in self.optimizers_dict.values():
            for group in optimizer.param_groups:
                group["lr"] = share * optimizer.defaults["lr"]

    def on_stage_start(self, stage, epoch=None):
        """Empties the lists of predictions."""
        self.targets, self.predicted = [], []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs losses and scores, saves checkpoints and the final model."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {"loss": stage_loss}
        stats.update(emotion_scores(self.targets, self.predicted))
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            # D9: the last epoch is tested, as in the paper
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch}, num_to_keep=1
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        if if_main_process():  # for EmotionRecognizer.from_hparams
            folder = self.hparams.output_folder
            state = self.hparams.model.state_dict()
            torch.save(state, os.path.join(folder, "model.ckpt"))
            self.hparams.label_encoder.save(
                os.path.join(folder, "label_encoder.ckpt")
            )


def dataio_prep(hparams, device):
    """Makes the datasets, and the weights of the classes (D19).

    "train" has masked copies of minority classes (D11), "measured" has each
    training utterance once.
    """
    label_encoder, classes = hparams["label_encoder"], hparams["classes"]
    label_encoder.update_from_iterable(classes)
    label_encoder.expect_len(len(classes))
    entries = {}
    for name in ("train", "valid", "test"):
        manifest = hparams[f"{name}_annotation"]
        entries[name] = label_utterances(
            read_manifest(manifest, hparams["data_folder"]),
            classes,
            hparams["dialogue_style"],
        )
        for entry in entries[name].values():
            entry["target"] = label_encoder.encode_label(entry["label"])
    entries["measured"] = entries["train"]
    entries["train"] = hparams["augmenter"].plan(entries["train"])
    datasets = {
        name: make_dataset(
            entries[name],
            hparams["encoder"],
            hparams["feature_folder"],
            device,
            ["target", *["mask_probability"] * (name == "train")],
        )
        for name in entries
    }
    for name in ("measured", "valid", "test"):
        run_on_main(encode_all, args=[datasets[name]])
    weights = torch.ones(len(classes))
    if hparams["class_weights"] == "balanced":
        targets = [entry["target"] for entry in entries["train"].values()]
        counts = torch.tensor(targets).bincount(minlength=len(classes))
        weights = len(targets) / (len(classes) * counts.clamp(min=1))
    return datasets, weights


def load_adapter(adapter_folder, fold, backbone):
    """Starts the backbone from an adapter of the same fold."""
    path = os.path.join(adapter_folder, "adapter.ckpt")
    adapter = torch.load(path, map_location="cpu")
    if adapter["fold"] != fold:
        raise ValueError(
            f"{path} is of fold {adapter['fold']}, hence has seen the speakers "
            f"that fold {fold} holds out: train one of this fold."
        )
    backbone.load_state_dict(adapter["backbone"])


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

    if hparams["adapter_folder"]:
        load_adapter(
            hparams["adapter_folder"],
            hparams["fold"],
            hparams["model"].backbone,
        )
    brain = EmotionBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    datasets, brain.class_weights = dataio_prep(hparams, brain.device)
    brain.measured = datasets["measured"]

    loader = brain.make_dataloader(
        datasets["train"], sb.Stage.TRAIN, **hparams["dataloader_options"]
    )
    steps = max(1, len(loader) // brain.grad_accumulation_factor)
    brain.num_steps = hparams["number_of_epochs"] * steps
    brain.fit(
        hparams["epoch_counter"],
        loader,
        datasets["valid"],
        valid_loader_kwargs=hparams["valid_dataloader_options"],
    )
    brain.evaluate(
        datasets["test"],
        test_loader_kwargs=hparams["valid_dataloader_options"],
    )
