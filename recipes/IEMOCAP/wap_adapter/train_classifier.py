#!/usr/bin/env python3
"""Stage 2: fine-tunes an emotion model (Sec. II-C of the paper).

Frames of the frozen encoder go through the model that the YAML wires, by
default the WAP-Transformer, statistical attentive pooling and a linear
classifier.

To run this recipe:
> python train_classifier.py hparams/classifier.yaml \
    --data_folder=/path/to/corpus --adapter_folder=/output/of/train_adapter

Without --adapter_folder the WAP-Transformer is trained from scratch.
--system=linear trains another model of hparams/models.
"""

import speechbrain_wap  # isort: skip  # noqa: F401  checks packages
import json

import pandas as pd
import speechbrain as sb
import torch
from sklearn.metrics import confusion_matrix
from speechbrain.utils.distributed import (
    if_main_process,
    infer_device,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.batches import Collate, OneByOne, pad_frames
from speechbrain_wap.data.classes import check_labels, list_classes
from speechbrain_wap.data.datasets import (
    extract_features,
    feats_key,
    make_labelled_dataset,
)
from speechbrain_wap.data.manifests import describe_data
from speechbrain_wap.data.preparation import prepare_classifier_data
from speechbrain_wap.data.sampling import (
    EpochPlan,
    choose_labelled,
    count_labels,
)
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.evaluation.details import weigh_frames, write_details
from speechbrain_wap.evaluation.linear_probe import linear_probe
from speechbrain_wap.evaluation.metrics import emotion_scores
from speechbrain_wap.files import digest_file, write_table, write_text
from speechbrain_wap.packing import send
from speechbrain_wap.training.adapter_folder import check_adapter, load_branch
from speechbrain_wap.training.brain import RecipeBrain
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.experiment import Experiment, run_script
from speechbrain_wap.training.ranks import gather_over_ranks, start_ranks
from speechbrain_wap.training.statistics import EpochStatistics
from speechbrain_wap.training.trial import make_utterances, trial, try_functions

logger = get_logger(__name__)

# Keys that a YAML for this script must have; the first tells it from others
NEEDED = (
    "model augmenter modules compute_cost opt_class classifier_opt_class "
    "lr_schedule epoch_counter train_logger checkpointer classes corpus fold "
    "fold_plan model_selection label_fraction adapter_folder seed "
    "encoder_source encoder_layer number_of_epochs batch_size max_frames "
    "dataloader_options valid_dataloader_options"
).split()


# Data ------------------------------------------------------------------------


def prepare_data(experiment):
    """Writes the manifests, encodes their audio; gives splits and classes."""
    hparams, settings = experiment.hparams, experiment.settings
    if not hparams["skip_prep"]:
        table = {"corpus_table": experiment.corpus_table}
        # an own corpus given to a recipe for another one has other classes
        is_own = "corpus_csv" in experiment.overrides
        run_on_main(
            prepare_classifier_data,
            kwargs={
                "corpus": {**hparams["corpus"], **table},
                "plan": hparams["fold_plan"],
                "classes": hparams["classes"],
                "explicit_classes": not is_own
                or "classes" in experiment.overrides,
                "dialogue_style": hparams["dialogue_style"],
                "manifests": {
                    "train": hparams["train_annotation"],
                    "valid": hparams["valid_annotation"],
                    "test": hparams["test_annotation"],
                },
            },
        )
    splits = experiment.read_splits(("wav", "speaker", "session", "label"))
    classes = list_classes(splits, hparams["classes"])
    try_out(experiment, classes)
    # hparams["feature_cache"], or several
    for cache in experiment.caches.values():
        cache.device = experiment.run_opts.get("device") or infer_device()
        splits = extract_features(
            cache, splits, experiment.skipped_csv, hparams["max_skipped"]
        )
    labels = {
        name: [entry["label"] for entry in split.values()]
        for name, split in splits.items()
    }
    check_labels(labels, classes)
    settings["encoder_key"] = experiment.encoder_key
    settings["class_names"] = classes
    settings["data"] = describe_data(splits, classes)
    return splits, classes


def dataio_prep(hparams, caches, splits, labelled, classes):
    """Makes the datasets, and the plan of how often an epoch has what.

    "train" has the labelled utterances, and copies: an epoch has as many as
    with all labels; "measured" has all training utterances, once each, or, for
    a transductive model, all utterances without their labels.
    """
    augmenter = hparams["augmenter"]
    train = augmenter.plan(labelled)
    places = len(augmenter.plan(splits["train"]))
    plan = EpochPlan(train, [(list(train), places)], hparams["seed"])
    speakers = sorted({e["speaker"] for e in splits["train"].values()})
    entries = {**splits, "train": plan.entries, "measured": splits["train"]}
    if getattr(hparams["model"], "transductive", None):
        entries["measured"] = {
            key: {**entry, "label": None}
            for split in splits.values()
            for key, entry in split.items()
        }
    datasets = {
        name: make_labelled_dataset(
            entries[name],
            caches,
            classes,
            speakers,
            max_frames=hparams["max_frames"],
            long_utterances=hparams["long_utterances"],
            keys=["mask_probability"] * (name == "train"),
        )
        for name in ("train", "valid", "test", "measured")
    }
    return datasets, plan


def weigh_classes(plan, classes, class_weights):
    """Weighs the classes' losses, shape [C] (D19).

    By 1, or ("balanced") inversely to how often an epoch has the class, with a
    mean of 1 over the epoch.
    """
    if class_weights == "none":
        return torch.ones(len(classes))
    counts = torch.zeros(len(classes))
    for key, weight in plan.weights.items():
        counts[classes.index(plan.entries[key]["label"])] += weight
    return counts.sum() / (len(classes) * counts)


# Model, loss, step, evaluation -----------------------------------------------


class EmotionBrain(RecipeBrain):
    """Trains whatever emotion model the YAML wires.

    Arguments
    ---------
    experiment : speechbrain_wap.training.experiment.Experiment
        The run.
    splits : dict
        Manifest entries by utterance id of each split.
    classes : list of str
        The classes in their order.
    class_weights : torch.Tensor
        Weight of each class in the cross entropy, shape [C] (D19).
    **wired : dict
        SpeechBrain's ``modules``, ``opt_class`` and ``checkpointer``.
    """

    measured = ()  # the training utterances that the model's hooks see
    labelled = None  # those whose labels are used

    def __init__(self, experiment, splits, classes, class_weights, **wired):
        super().__init__(experiment, **wired)
        self.experiment = experiment
        self.splits, self.classes = splits, classes
        self.class_weights = class_weights.to(self.device)

    def make_collate(self, stage):
        """Masks training utterances, as the augmentation says."""
        if stage != sb.Stage.TRAIN:
            return Collate()
        keys = ["id", "mask_probability"]
        return Collate(self.hparams.augmenter.mask, keys)

    def compute_forward(self, batch, stage):
        """Computes the logits of the classes."""
        feats, lens, mask = {}, {}, {}
        for name in self.experiment.caches:
            key = feats_key(name)
            # lengths and masks stay on the CPU: a GPU need not be waited for
            feats[name], lens[name] = pad_frames(batch[key], self.device)
            mask[name] = batch.masks[key] if stage == sb.Stage.TRAIN else None
        if list(feats) == [""]:
            feats, lens, mask = feats[""], lens[""], mask[""]
        if stage == sb.Stage.TEST:
            self.frame_weights.update(
                weigh_frames(self.hparams.model, batch.id, feats, lens)
            )
        told = []
        if getattr(self.hparams.model, "transductive", None):
            told = [batch.speaker_name]
        return self.modules.model(feats, lens, mask, *told)

    def compute_objectives(self, predictions, batch, stage):
        """Adds up the losses, and keeps predictions to be scored."""
        predictions = predictions.float()
        batch.target = send(batch.target, self.device)
        batch.speaker = send(batch.speaker_index, self.device)
        training = stage == sb.Stage.TRAIN
        if training and self.ends_with_repeat():
            predictions = predictions[:-1]
            batch.target, batch.speaker = batch.target[:-1], batch.speaker[:-1]
        count = len(predictions)
        if count:
            losses = self.compute_losses(predictions, batch)
        else:
            # weighs 0, but is of all parameters, those of the model's own
            # losses among them: the other ranks wait for their gradients
            trained = self.modules.model.parameters()
            losses = {"loss": sum(p.sum() for p in trained if p.requires_grad)}
        if training:
            share, weight = self.batch_weights(count)
            self.statistics.add(losses, share)
            return weight * losses["loss"]
        probabilities = predictions.softmax(dim=-1).cpu().tolist()
        self.predicted.update(zip(batch.id, probabilities))
        sums = {name: float(loss) for name, loss in losses.items()}
        self.loss_sums.add(sums, count)
        return losses["loss"]

    def compute_losses(self, predictions, batch):
        """Joins the cross entropy with the model's own losses, if any."""
        weights = self.class_weights[batch.target]
        losses = self.hparams.compute_cost(
            predictions, batch.target, reduction="none"
        )
        # the plain mean, not that by weights: batches of a step add up
        losses = {"cross_entropy": (weights * losses).mean()}
        model = self.hparams.model
        if hasattr(model, "losses"):
            losses.update(model.losses(predictions, batch))
        if "loss" in losses:
            raise RecipeError(
                f"{type(model).__name__}.losses gives one that is called loss, "
                "which their sum is called: give it another name."
            )
        if list(losses) == ["cross_entropy"]:
            return {"loss": losses["cross_entropy"]}
        return {"loss": sum(losses.values()), **losses}

    def init_optimizers(self):
        """Makes one optimiser for the backbone and one for all else."""
        backbone = getattr(self.hparams.model, "backbone", None)
        lower = [] if backbone is None else list(backbone.parameters())
        known = set(map(id, lower))
        upper = [
            parameter
            for parameter in self.modules.model.parameters()
            if id(parameter) not in known
        ]
        self.optimizers_dict = {}
        if lower:
            self.optimizers_dict["optimizer"] = self.opt_class(lower)
        if upper:
            make = self.hparams.classifier_opt_class
            self.optimizers_dict["classifier_optimizer"] = make(upper)
        self.optimizer = next(iter(self.optimizers_dict.values()))
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(name, optimizer)

    def call_hook(self, hook):
        """Calls a hook of the model on one rank, and shares what it found."""
        model = self.hparams.model  # as it is under the wrappers
        if not hasattr(model, hook):
            return

        def measure():
            """Lets the model look at the data; gives its state."""
            getattr(model, hook)(OneByOne(self.measured, self.device))
            return {
                key: value.cpu() if torch.is_tensor(value) else value
                for key, value in model.state_dict().items()
            }

        model.load_state_dict(run_on_main(measure))

    def on_fit_start(self):
        """Shows the model the training data, unless a run goes on."""
        super().on_fit_start()
        if self.optimizer_step == 0:
            self.call_hook("before_fit")

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        self.set_learning_rates(self.hparams.lr_schedule(self.progress()))

    def on_evaluate_start(self, **kwargs):
        """Shows the model that is tested the training data."""
        super().on_evaluate_start(**kwargs)
        self.call_hook("after_fit")

    def on_stage_start(self, stage, epoch=None):
        """Empties the list of predictions."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.predicted, self.loss_sums = {}, EpochStatistics("")
            self.frame_weights = {}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the scores, saves checkpoints, writes the predictions."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_stats = self.statistics.means()
            return
        table = self.tabulate_predictions(
            self.splits["valid" if stage == sb.Stage.VALID else "test"]
        )
        scores = emotion_scores(
            table["label"], table["prediction"], self.classes
        )
        stats = {**self.loss_sums.means(), **scores}
        if stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            weights = self.join_ranks(self.frame_weights)
            if if_main_process():
                self.write_results(table, scores, weights)
            return
        row = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        self.hparams.train_logger.log_stats(
            row, train_stats=self.train_stats, valid_stats=stats
        )
        self.statistics.end_epoch(
            {**row, "train": self.train_stats, "valid": stats}
        )
        best = self.hparams.model_selection == "best"
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, "UA": scores["UA"]},
            num_to_keep=2,
            max_keys=["UA"] if best else [],
        )

    def join_ranks(self, own):
        """Joins what each rank has found of its utterances, by their ids."""
        joined = {}
        for share in gather_over_ranks(own):
            joined.update(share)
        return joined

    def tabulate_predictions(self, split):
        """Joins the ranks' predictions, in the order of the manifest."""
        predicted = self.join_ranks(self.predicted)
        # --debug stops after a few batches
        keys = [key for key in split if key in predicted or not self.debug]
        probabilities = pd.DataFrame(
            [predicted[key] for key in keys], columns=self.classes
        )
        table = pd.DataFrame(
            [split[key] for key in keys],
            columns=["session", "speaker", "label"],
        )
        table.insert(0, "id", keys)
        table["prediction"] = probabilities.idxmax(axis="columns")
        return pd.concat([table, probabilities], axis="columns")

    def probe_frames(self):
        """Scores a linear probe of the encoder's frames on the same fold."""
        caches = self.experiment.caches
        if list(caches) != [""]:
            return None
        read = caches[""].make_reader(self.hparams.max_frames)
        return linear_probe(self.splits, read, self.classes, self.labelled)

    def write_results(self, table, scores, weights):
        """Writes the predictions, then scores.json, which marks the end."""
        predictions_csv = self.experiment.predictions_csv
        write_table(predictions_csv, table)
        if self.debug:
            return  # scores.json says that a fold is finished
        write_details(
            self.experiment.folder,
            self.hparams.model,
            self.splits["test"],
            weights,
            self.probe_frames(),
            self.experiment.used_seconds,
        )
        confusion = confusion_matrix(
            table["label"], table["prediction"], labels=self.classes
        )
        result = {
            "classes": self.classes,
            "fold": self.hparams.fold,
            "seed": self.hparams.seed,
            "number_of_epochs": self.hparams.number_of_epochs,
            "num_labelled": self.experiment.settings["num_labelled"],
            "trained_parameters": self.count_trained(),
            "session": self.hparams.fold_plan.name_held_out(table["session"]),
            "n": len(table),
            **scores,
            "confusion": confusion.tolist(),
            "transductive": getattr(self.hparams.model, "transductive", None),
            "predictions_digest": digest_file(predictions_csv),
        }
        write_text(self.experiment.scores, json.dumps(result, indent=1))


# The experiment --------------------------------------------------------------


def find_adapter_identity(experiment, splits):
    """Checks the adapter to start from; gives its identity, None without."""
    model = experiment.hparams["model"]
    adapter_folder = experiment.hparams["adapter_folder"]
    if not adapter_folder:
        return None
    if not hasattr(model, "backbone"):
        raise RecipeError(
            f"adapter_folder={adapter_folder} cannot start the system "
            f"{type(model).__name__}, which has no backbone: leave it out."
        )
    if len(experiment.caches) > 1:
        raise RecipeError(
            f"adapter_folder={adapter_folder} was trained on one stream of "
            "features, but the YAML wires several feature_caches: leave one "
            "of them out."
        )
    return run_on_main(
        check_adapter,
        args=[adapter_folder, experiment.settings, splits],
        kwargs={"corpus_table": experiment.corpus_table},
    )


def try_out(experiment, classes):
    """Takes a step on made-up frames with a copy of what the YAML wires."""
    with trial(experiment) as tried:
        if tried is None:
            return
        hparams = tried.hparams
        try_functions(hparams)
        hparams["model"].set_classes(len(classes))
        brain = EmotionBrain(
            tried,
            {},
            classes,
            torch.ones(len(classes)),
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            checkpointer=hparams["checkpointer"],
        )
        brain.measured = [
            {
                **utterance,
                "target": number % len(classes),
                "speaker_index": 0,
                "speaker_name": "trial",
                "mask_probability": 0.5,
            }
            for number, utterance in enumerate(
                make_utterances(tried, len(classes))
            )
        ]
        try:
            if hasattr(hparams["model"], "before_fit"):
                batches = OneByOne(brain.measured, brain.device)
                hparams["model"].before_fit(batches)
        except Exception as error:  # it may need more data, or real ones
            logger.warning(
                "the model is not tried before the features are extracted: "
                f"its before_fit fails on noise ({first_line(error)})."
            )
            return
        brain.try_step(brain.measured)
        given = {len(p) for p in brain.predicted.values()}
        if given != {len(classes)}:
            raise RecipeError(
                f"model ({type(hparams['model']).__name__}) gives "
                f"{', '.join(map(str, given))} logits for {len(classes)} "
                "classes: let set_classes(num_classes) decide how many."
            )


def train(experiment):
    """Prepares, trains and tests one fold."""
    hparams, settings = experiment.hparams, experiment.settings
    splits, classes = prepare_data(experiment)
    labelled = choose_labelled(
        splits["train"], hparams["label_fraction"], hparams["seed"]
    )
    settings["num_labelled"] = count_labels(labelled, classes)
    listing = ", ".join(f"{k} {n}" for k, n in settings["num_labelled"].items())
    logger.info(
        f"label_fraction={hparams['label_fraction']}: {len(labelled)} of "
        f"{len(splits['train'])} labelled training utterances ({listing})."
    )
    settings["adapter_identity"] = find_adapter_identity(experiment, splits)
    experiment.record()
    datasets, plan = dataio_prep(
        hparams, experiment.caches, splits, labelled, classes
    )

    # Loading an encoder draws random numbers, reading the cache does not.
    sb.utils.seed.seed_everything(hparams["seed"])
    model, adapter_folder = hparams["model"], hparams["adapter_folder"]
    model.set_classes(len(classes))
    if adapter_folder:
        load_branch(adapter_folder, hparams["adapter_branch"], model.backbone)
    brain = EmotionBrain(
        experiment,
        splits,
        classes,
        weigh_classes(plan, classes, hparams["class_weights"]),
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        checkpointer=hparams["checkpointer"],
    )
    brain.measured, brain.labelled = datasets["measured"], labelled
    train_loader = brain.make_train_loader(
        datasets["train"],
        seed=hparams["seed"],
        plan=plan,
        **hparams["dataloader_options"],
    )
    brain.fit(
        brain.hparams.epoch_counter,
        train_loader,
        datasets["valid"],
        valid_loader_kwargs=hparams["valid_dataloader_options"],
    )
    if brain.test_only and not hparams["checkpointer"].list_checkpoints():
        raise RecipeError(
            f"--test_only: {experiment.save_folder} holds no checkpoint to "
            "test; train first."
        )
    # D9: the last epoch, unless the best on the validation set is asked for
    best = hparams["model_selection"] == "best"
    brain.evaluate(
        datasets["test"],
        max_key="UA" if best else None,
        test_loader_kwargs=hparams["valid_dataloader_options"],
    )


def run(command):
    """Trains and tests one fold.

    Arguments
    ---------
    command : speechbrain_wap.training.command_line.Command
        A YAML file and the user's values.
    """
    start_ranks(command.run_opts)
    experiment = Experiment(command, NEEDED)
    with experiment.open():
        sb.create_experiment_directory(experiment.folder)
        train(experiment)


def main(arguments):
    """Reads the command line, a list of str, and runs."""
    run(read_command(arguments))


if __name__ == "__main__":
    run_script(main)
