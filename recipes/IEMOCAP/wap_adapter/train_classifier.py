#!/usr/bin/env python3
"""Stage 2: fine-tunes adapter and classifier for emotion recognition.

Frames of the frozen encoder go through the WAP-Transformer, statistical
attentive pooling and a linear classifier (Sec. II-C of the paper).

To run this recipe:
> python train_classifier.py hparams/classifier.yaml \
    --data_folder=/path/to/corpus --adapter_folder=/output/of/train_adapter

Without --adapter_folder the WAP-Transformer is trained from scratch.
"""

import json

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.distributed import (
    if_main_process,
    infer_device,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from speechbrain_wap.augmentation import augment_minorities, is_masked
from speechbrain_wap.data.datasets import (
    extract_features,
    make_dataset,
    measure_features,
)
from speechbrain_wap.data.folds import (
    FoldPlan,
    check_labels,
    describe_data,
    list_classes,
    read_manifests,
)
from speechbrain_wap.data.preparation import prepare_classifier_data
from speechbrain_wap.data.sampling import (
    EpochPlan,
    choose_labelled,
    count_labels,
)
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.metrics import emotion_scores
from speechbrain_wap.files import (
    digest_file,
    only_process,
    write_atomically,
    write_text,
)
from speechbrain_wap.masking import sample_utterance_masks
from speechbrain_wap.packing import valid_frames
from speechbrain_wap.training.brain import RecipeBrain
from speechbrain_wap.training.ranks import gather_over_ranks, start_ranks
from speechbrain_wap.training.run_folders import check_adapter, load_branch
from speechbrain_wap.training.settings import (
    load_recipe,
    parse_arguments,
    record_settings,
    restored_if_refused,
    run_script,
)

logger = get_logger(__name__)


class EmotionBrain(RecipeBrain):
    """Fine-tunes adapter, pooling and classifier by cross entropy."""

    def compute_forward(self, batch, stage):
        """Computes the logits of the classes."""
        # lengths and masks stay on the CPU: a GPU need not be waited for
        mask = None
        if stage == sb.Stage.TRAIN:
            mask = self.augmentation_mask(batch)
        lens = batch.feats.lengths
        feats = batch.to(self.device, non_blocking=True).feats.data
        z = self.modules.adapter(feats, lens, mask)  # (B, T, D)
        pooled = self.modules.pooling(z, batch.feats.lengths)  # (B, 2 H D)
        return self.modules["classifier"](pooled)

    def augmentation_mask(self, batch):
        """Masks embeddings of the utterances that are to be augmented (D11)."""
        feats, lens = batch.feats
        num_frames, _ = valid_frames(lens, feats.shape[1])
        seed, epoch = self.hparams.seed, self.hparams.epoch_counter.current
        mask = sample_utterance_masks(
            batch.id,
            num_frames,
            self.hparams.augment_mask_ratio,
            seed,
            epoch,
            purpose="augment",
            span=self.hparams.augment_mask_span,
        )
        chosen = [
            is_masked(key, probability, seed, epoch)
            for key, probability in zip(
                batch.id, batch.mask_probability.tolist()
            )
        ]
        # all False where nothing is masked, so that the mask embedding always
        # takes part in the graph, as distributed training asks for
        return mask & torch.tensor(chosen)[:, None]

    def compute_objectives(self, predictions, batch, stage):
        """Computes the cross entropy and keeps predictions to be scored."""
        targets = batch.target.to(self.device)
        if stage == sb.Stage.TRAIN:
            return self.train_objectives(predictions, targets)
        loss = self.weighted_loss(predictions.float(), targets)
        probabilities = predictions.float().softmax(dim=-1).cpu().tolist()
        self.predicted.update(zip(batch.id, probabilities))
        self.loss_sum += float(loss) * len(batch.id)
        return loss

    def on_fit_start(self):
        """Measures what is pooled at first, unless it goes on with a run."""
        super().on_fit_start()
        if self.hparams.pooled_norm and self.optimizer_step == 0:
            # by one rank, of the modules as they are under the wrappers
            statistics = run_on_main(self.measure_pooled)
            self.hparams.pooling.set_output_statistics(*statistics)

    @torch.no_grad()
    def measure_pooled(self):
        """Measures what is pooled of the training utterances (D19).

        Without their labels, at every label_fraction: see input_norm in
        :func:`train`.

        Returns
        -------
        mean : torch.Tensor
            Shape [2 * H * D].
        std : torch.Tensor
            Standard deviation, likewise.
        """
        adapter, pooling = self.hparams.adapter, self.hparams.pooling
        was_training = adapter.training
        adapter.eval()
        one, pooled = torch.ones(1), []
        for item in self.measured:
            feats = item["feats"][None].to(self.device)
            z = adapter(feats, one)
            pooled.append(pooling(z, one.to(self.device))[0].double().cpu())
        adapter.train(was_training)
        pooled = torch.stack(pooled)
        return pooled.mean(dim=0), pooled.std(dim=0, unbiased=False)

    def train_objectives(self, predictions, targets):
        """Computes the loss of which the ranks' mean is the batch's."""
        count = len(targets) - self.repeats_last()
        predictions, targets = predictions[:count].float(), targets[:count]
        if count:
            loss = self.weighted_loss(predictions, targets)
        else:
            loss = predictions.sum()  # 0, and still a part of the graph
        share, weight = self.weigh_batch(count)
        self.hparams.statistics.add({"loss": loss}, share)
        return weight * loss

    def weighted_loss(self, predictions, targets):
        """Computes the cross entropy with the classes' weights (D19).

        Arguments
        ---------
        predictions : torch.Tensor
            Logits, shape [B, C].
        targets : torch.Tensor
            Indices of the classes, shape [B].

        Returns
        -------
        loss : torch.Tensor
            A scalar.
        """
        weights = self.class_weights.to(targets.device)[targets]
        losses = self.hparams.compute_cost(
            predictions, targets, reduction="none"
        )
        # not divided by the batch's own weights: batches add up
        return (weights * losses).mean()

    def init_optimizers(self):
        """Makes one optimiser for the adapter and one for what is on top."""
        top = [
            *self.modules.pooling.parameters(),
            *self.modules["classifier"].parameters(),
        ]
        self.optimizer = self.opt_class(self.modules.adapter.parameters())
        self.optimizers_dict = {
            "optimizer": self.optimizer,
            "classifier_optimizer": self.hparams.classifier_opt_class(top),
        }
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(name, optimizer)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        self.set_learning_rates(self.hparams.lr_schedule(self.progress()))

    def on_stage_start(self, stage, epoch=None):
        """Empties the list of predictions."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.predicted, self.loss_sum = {}, 0.0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the scores, saves checkpoints, writes the predictions."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_stats = self.hparams.statistics.means()
            return
        self.gather_predictions()
        split = "valid" if stage == sb.Stage.VALID else "test"
        table = self.prediction_table(self.splits[split])
        scores = emotion_scores(
            table["label"], table["prediction"], self.classes
        )
        stats = {"loss": self.loss_sum / len(table), **scores}
        if stage == sb.Stage.VALID:
            row = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
            self.hparams.train_logger.log_stats(
                row, train_stats=self.train_stats, valid_stats=stats
            )
            self.hparams.statistics.end_epoch(
                {**row, "train": self.train_stats, "valid": stats}
            )
            best = self.hparams.model_selection == "best"
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, "UA": scores["UA"]},
                num_to_keep=2,
                max_keys=["UA"] if best else [],
            )
        else:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            if if_main_process():
                self.write_results(table, scores)

    def gather_predictions(self):
        """Joins the ranks' shares of the predictions."""
        shares = gather_over_ranks((self.predicted, self.loss_sum))
        self.predicted = {k: v for share, _ in shares for k, v in share.items()}
        self.loss_sum = sum(loss for _, loss in shares)

    def prediction_table(self, split):
        """Tabulates the predictions in the order of the manifest."""
        rows = []
        for key, entry in split.items():
            if self.debug and key not in self.predicted:
                continue  # --debug stops after a few batches
            probabilities = self.predicted[key]
            best = max(range(len(self.classes)), key=probabilities.__getitem__)
            rows.append(
                {
                    "id": key,
                    "session": entry["session"],
                    "speaker": entry["speaker"],
                    "label": entry["label"],
                    "prediction": self.classes[best],
                    **dict(zip(self.classes, probabilities)),
                }
            )
        return pd.DataFrame(rows)

    def write_results(self, table, scores):
        """Writes predictions.csv, then scores.json, which marks the end."""
        with write_atomically(self.hparams.predictions_csv) as temporary:
            table.to_csv(temporary, index=False)
        if self.debug:
            return  # scores.json says that a fold is finished
        confusion = pd.crosstab(table["label"], table["prediction"])
        confusion = confusion.reindex(
            index=self.classes, columns=self.classes, fill_value=0
        )
        result = {
            "classes": self.classes,
            "fold": self.hparams.fold,
            "seed": self.hparams.seed,
            "number_of_epochs": self.hparams.number_of_epochs,
            "num_labelled": self.num_labelled,
            "session": "+".join(sorted(set(table["session"]))),
            "n": len(table),
            **scores,
            "confusion": confusion.to_numpy().tolist(),
            "predictions_digest": digest_file(self.hparams.predictions_csv),
        }
        write_text(self.hparams.scores_file, json.dumps(result, indent=1))


def dataio_prep(hparams, splits, cache, labelled, classes):
    """Makes the datasets of the labelled utterances.

    Arguments
    ---------
    hparams : dict
        The YAML's values.
    splits : dict
        Manifest entries by utterance id of each split.
    cache : speechbrain_wap.features.FeatureCache
        The filled feature cache.
    labelled : dict
        Those of the training utterances whose labels are used.
    classes : list of str
        The classes in their order.

    Returns
    -------
    datasets : dict
        "train" (with the minority classes' copies), "valid" and "test".
    plan : speechbrain_wap.data.sampling.EpochPlan
        How often an epoch has each training utterance: it has as many of them
        as with all labels.
    """

    @takes("label")
    @provides("target")
    def target_pipeline(label):
        """Turns the label into the class's index."""
        return classes.index(label)

    how = {"strategy": hparams["augmentation"], "seed": hparams["seed"]}
    train = augment_minorities(labelled, **how)
    places = len(augment_minorities(splits["train"], **how))
    plan = EpochPlan(train, [(list(train), places)], hparams["seed"])
    entries = {**splits, "train": plan.entries}
    datasets = {
        name: make_dataset(
            entries[name],
            cache,
            max_frames=hparams["max_frames"],
            long_utterances=hparams["long_utterances"],
            dynamic_items=[target_pipeline],
            keys=["target"] + ["mask_probability"] * (name == "train"),
        )
        for name in ("train", "valid", "test")
    }
    return datasets, plan


def weigh_classes(plan, classes, class_weights):
    """Weighs the classes' losses.

    Arguments
    ---------
    plan : speechbrain_wap.data.sampling.EpochPlan
        How often an epoch has each utterance.
    classes : list of str
        The classes in their order.
    class_weights : str
        "none": 1; "balanced": inverse to how often an epoch has the class,
        with a mean of 1 over the epoch.

    Returns
    -------
    weights : torch.Tensor
        Shape [C].
    """
    if class_weights == "none":
        return torch.ones(len(classes))
    counts = torch.zeros(len(classes))
    for key, weight in plan.weights.items():
        counts[classes.index(plan.entries[key]["label"])] += weight
    return counts.sum() / (len(classes) * counts)


def main(arguments):
    """Trains and tests one fold.

    Arguments
    ---------
    arguments : list of str
        The command line: a YAML file and ``--key=value``.
    """
    hparams_file, run_opts, overrides = parse_arguments(arguments)
    start_ranks(run_opts)
    hparams, overrides, settings = load_recipe(
        hparams_file, overrides, run_opts, expected_key="sap_heads"
    )
    folder = hparams["output_folder"]
    prepared = [hparams["corpus_table"], *hparams["manifests"].values()]
    with (
        only_process(folder),
        restored_if_refused(folder, hparams["save_folder"], prepared),
    ):
        sb.create_experiment_directory(
            experiment_directory=folder,
            hyperparams_to_save=hparams_file,
            overrides=overrides,
        )
        train(hparams, overrides, settings, run_opts)


def train(hparams, overrides, settings, run_opts):
    """Prepares, trains and tests one fold.

    Arguments
    ---------
    hparams : dict
        What HyperPyYAML built.
    overrides : dict
        The user's values.
    settings : dict
        Plain values, for the settings guard.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.
    """
    manifests = hparams["manifests"]
    if not hparams["skip_prep"]:
        run_on_main(
            prepare_classifier_data,
            kwargs={
                "corpus": hparams["corpus"],
                "plan": FoldPlan(hparams["fold"], hparams["protocol"]),
                "classes": hparams["classes"],
                # an own corpus given to a recipe for another one
                "explicit_classes": "corpus_csv" not in overrides
                or "classes" in overrides,
                "dialogue_style": hparams["dialogue_style"],
                "manifests": manifests,
            },
        )
    # read by one rank: nodes may have disks of their own
    splits = run_on_main(
        read_manifests,
        args=[manifests],
        kwargs={
            "fields": ("wav", "speaker", "session", "label"),
            # those that have just been made are of the files that there are
            "cache_folder": hparams["cache_folder"]
            if hparams["skip_prep"]
            else None,
        },
    )
    classes = list_classes(splits, hparams["classes"])
    cache = hparams["feature_cache"]
    cache.device = run_opts.get("device") or infer_device()
    splits = extract_features(
        cache, splits, hparams["skipped_csv"], hparams["max_skipped"]
    )
    check_labels(
        {
            name: [entry["label"] for entry in split.values()]
            for name, split in splits.items()
        },
        classes,
    )
    settings["encoder_key"] = cache.key
    settings["class_names"] = classes
    settings["data"] = describe_data(splits, classes)
    labelled = choose_labelled(
        splits["train"], hparams["label_fraction"], hparams["seed"]
    )
    settings["num_labelled"] = count_labels(labelled, classes)
    listing = ", ".join(f"{k} {n}" for k, n in settings["num_labelled"].items())
    logger.info(
        f"label_fraction={hparams['label_fraction']}: {len(labelled)} of "
        f"{len(splits['train'])} labelled training utterances ({listing})."
    )
    settings["adapter_identity"] = None
    if hparams["adapter_folder"]:
        settings["adapter_identity"] = run_on_main(
            check_adapter,
            args=[hparams["adapter_folder"], settings, splits],
            kwargs={"corpus_table": hparams["corpus_table"]},
        )
    run_on_main(record_settings, args=[hparams["save_folder"], settings])
    datasets, plan = dataio_prep(hparams, splits, cache, labelled, classes)

    # Loading an encoder draws random numbers, reading the cache does not.
    sb.utils.seed.seed_everything(hparams["seed"])
    classifier = hparams["classifier"](n_neurons=len(classes))
    hparams["checkpointer"].add_recoverable("classifier", classifier)
    if hparams["adapter_folder"]:
        load_branch(
            hparams["adapter_folder"],
            hparams["adapter_branch"],
            hparams["adapter"],
        )
    elif hparams["input_norm"]:
        # without their labels, as adapter training measures them: what a
        # fraction of the labels costs is then not mixed with this
        statistics = measure_features(cache, splits["train"])
        hparams["adapter"].set_input_statistics(*statistics)
    brain = EmotionBrain(
        modules={**hparams["modules"], "classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.splits, brain.classes = splits, classes
    brain.class_weights = weigh_classes(plan, classes, hparams["class_weights"])
    brain.measured = make_dataset(
        splits["train"],
        cache,
        max_frames=hparams["max_frames"],
        long_utterances=hparams["long_utterances"],
    )
    brain.num_labelled = settings["num_labelled"]
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
            f"--test_only: {hparams['save_folder']} holds no checkpoint to "
            "test; train first."
        )
    # D9: the last epoch, unless the best on the validation set is asked for
    best = hparams["model_selection"] == "best"
    brain.evaluate(
        datasets["test"],
        max_key="UA" if best else None,
        test_loader_kwargs=hparams["valid_dataloader_options"],
    )


if __name__ == "__main__":
    run_script(main)
