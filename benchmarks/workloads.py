"""What benchmarks/training.py times: corpora, trainings, their arithmetic.

A training runs an epoch two ways with the same mathematics: through the
recipe's Brain, and as a bare loop over batches that lie in memory.

> python benchmarks/workloads.py CORPUS [--key=value ...]

prints the peak memory of an epoch of stage 1 through the Brain, and what it
was before, in bytes.
"""

import copy
import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.seed import seed_everything
from timing import RECIPES, Stopwatch, measure_seconds, peak_memory
from torch.nn import functional as F
from train_adapter import AdapterBrain
from train_classifier import EmotionBrain

from speechbrain_wap.data.datasets import make_dataset
from speechbrain_wap.data.folds import FoldPlan, read_manifests
from speechbrain_wap.data.preparation import prepare_adapter_data
from speechbrain_wap.losses import (
    adapter_loss,
    masked_reconstruction_loss,
    pseudo_label_loss,
)
from speechbrain_wap.masking import sample_utterance_masks
from speechbrain_wap.packing import select_frames, valid_frames
from speechbrain_wap.targets import smooth_frames
from speechbrain_wap.training.settings import load_recipe, parse_arguments

FRAMES_PER_SECOND = 50
# Lengths in seconds are lognormal (median, deviation of the logarithm), and
# clipped; the paper's have a mean of 4.5 s.
SETTINGS = {
    "paper": {
        "recipe": "IEMOCAP",
        "input_size": 1024,
        "lengths": (3.5, 0.71, 0.6, 34.0),
        "options": ["--max_frames=1800"],
    },
    "emodb": {
        "recipe": "EmoDB",
        "input_size": 384,
        "lengths": (2.6, 0.35, 1.2, 2.0),
        "options": [],
    },
}
# The smallest model that has every part, for a quick look
QUICK = {
    "adapter": [
        "--d_model=16",
        "--nhead=2",
        "--d_ffn=32",
        "--batch_size=8",
        "--num_attributes=16",
    ],
    "classifier": [
        "--d_model=16",
        "--nhead=2",
        "--d_ffn=32",
        "--batch_size=8",
    ],
}
BRAINS = {"adapter": AdapterBrain, "classifier": EmotionBrain}


def draw_lengths(setting, count, seed=0):
    """Draws lengths of utterances, in frames."""
    median, deviation, shortest, longest = SETTINGS[setting]["lengths"]
    random = np.random.default_rng(seed)
    seconds = median * np.exp(deviation * random.standard_normal(count))
    frames = FRAMES_PER_SECOND * seconds.clip(shortest, longest)
    return frames.round().astype(int).tolist()


def build_recipe(setting, stage, folder, options=()):
    """Builds what a recipe's YAML describes, on a CPU."""
    recipe = RECIPES / SETTINGS[setting]["recipe"] / "wap_adapter"
    hparams_file, run_opts, overrides = parse_arguments(
        [
            str(recipe / f"hparams/{stage}.yaml"),
            "--device=cpu",
            f"--output_folder={folder}/run",
            *options,
        ]
    )
    expected = {"adapter": "mask_ratio", "classifier": "sap_heads"}[stage]
    hparams, *_ = load_recipe(hparams_file, overrides, run_opts, expected)
    return hparams, run_opts


def make_corpus(setting, count, folder, input_size=None):
    """Caches random features of a corpus that has no audio.

    Arguments
    ---------
    setting : str
        "paper" or "emodb".
    count : int
        Number of utterances.
    folder : pathlib.Path
        Where to put the cache and corpus.json, which says all of it.
    input_size : int, optional
        Another dimension than the setting's.

    Returns
    -------
    folder : pathlib.Path
    """
    input_size = input_size or SETTINGS[setting]["input_size"]
    options = [
        "--data_folder=none",
        "--encoder_source=fbank",  # whose place the random features take
        f"--encoder_dim={input_size}",
        f"--cache_folder={folder}/cache",
    ]
    hparams, _ = build_recipe(setting, "adapter", folder, options)
    random = torch.Generator().manual_seed(0)
    entries = {}
    for number, length in enumerate(draw_lengths(setting, count)):
        key = f"utterance{number:05d}"
        digest = hashlib.md5(key.encode()).hexdigest()
        feats = torch.randn(length, input_size, generator=random)
        seconds = length / FRAMES_PER_SECOND
        hparams["feature_cache"].write(digest, feats, seconds)
        entries[key] = {"digest": digest, "frames": length, "class": number}
    return _record_corpus(folder, setting, options, entries)


def encode_emodb(data_folder, encoder_options, folder):
    """Caches the features of EmoDB's first fold; as make_corpus."""
    options = [
        f"--data_folder={data_folder}",
        *encoder_options,
        f"--cache_folder={folder}/cache",
    ]
    hparams, _ = build_recipe("emodb", "adapter", folder, options)
    manifests = hparams["manifests"]
    prepare_adapter_data(hparams["corpus"], FoldPlan(1), "train", manifests)
    train = read_manifests(manifests)["train"]
    cache = hparams["feature_cache"]
    cache.extract({entry["digest"]: entry for entry in train.values()})
    entries = {
        key: {
            "digest": entry["digest"],
            "frames": cache.count_frames(entry["digest"]),
            "class": number,
        }
        for number, (key, entry) in enumerate(train.items())
    }
    return _record_corpus(folder, "emodb", options, entries)


def _record_corpus(folder, setting, options, entries):
    """Writes what a child process needs to train on the corpus."""
    record = {"setting": setting, "options": options, "entries": entries}
    Path(folder, "corpus.json").write_text(json.dumps(record), "utf-8")
    return Path(folder)


class Training:
    """A stage's training on a corpus, an epoch at a time.

    Every epoch starts from the same weights and random numbers.

    Arguments
    ---------
    corpus : pathlib.Path
        What make_corpus made.
    stage : str
        "adapter" or "classifier".
    options : list of str
        Further arguments of the recipe's script.
    """

    def __init__(self, corpus, stage="adapter", options=()):
        record = json.loads(Path(corpus, "corpus.json").read_text("utf-8"))
        setting = record["setting"]
        self.stage = stage
        self.name = setting
        self.hparams, self.run_opts = build_recipe(
            setting,
            stage,
            corpus,
            [
                *SETTINGS[setting]["options"],
                *record["options"],
                "--number_of_epochs=1",
                # once a training, whatever its length
                *(["--pooled_norm=False"] * (stage == "classifier")),
                *options,
            ],
        )
        # Classes are even, so that augmentation has nothing to do.
        entries = {
            key: {**entry, "target": entry["class"] % 4, "mask_probability": 0}
            for key, entry in record["entries"].items()
        }
        self.frames = [entry["frames"] for entry in entries.values()]
        self.dataset = make_dataset(
            entries,
            self.hparams["feature_cache"],
            self.hparams["max_frames"],
            "error",
            keys=["target", "mask_probability"] * (stage == "classifier"),
        )
        # an epoch of few batches saves more often than a real one
        self.saving = Stopwatch()
        checkpointer = self.hparams["checkpointer"]
        checkpointer.save_and_keep_only = self.saving.wrap(
            checkpointer.save_and_keep_only
        )
        self.modules = dict(self.hparams["modules"])
        if stage == "classifier":
            self.modules["classifier"] = self.hparams["classifier"](n_neurons=4)
        self.start = {
            name: copy.deepcopy(module.state_dict())
            for name, module in self.modules.items()
        }

    def make_brain(self):
        """Makes the Brain of a new training, and its loader."""
        self.rewind()
        brain = BRAINS[self.stage](
            self.modules,
            self.hparams["opt_class"],
            self.hparams,
            self.run_opts,
            self.hparams["checkpointer"],
        )
        brain.has_validation = False
        brain.class_weights = torch.ones(4)
        loader = brain.make_train_loader(
            self.dataset,
            self.hparams["seed"],
            **self.hparams["dataloader_options"],
        )
        return brain, loader

    def rewind(self):
        """Goes back to the start."""
        # else the next epoch would go on from this one's checkpoint
        shutil.rmtree(self.hparams["save_folder"], ignore_errors=True)
        Path(self.hparams["save_folder"]).mkdir(parents=True)
        for name, module in self.modules.items():
            module.load_state_dict(copy.deepcopy(self.start[name]))
            module.train()
        self.hparams["epoch_counter"].current = 0
        statistics = self.hparams["statistics"]
        statistics.rows, statistics.sums, statistics.weight = [], {}, 0.0
        seed_everything(self.hparams["seed"])

    def run_epoch(self, watch=None):
        """Runs an epoch through the Brain.

        Arguments
        ---------
        watch : callable, optional
            Is given the Brain and the loader before.

        Returns
        -------
        seconds : float
            Of Brain.fit.
        """
        brain, loader = self.make_brain()
        if watch is not None:
            watch(brain, loader)
        counter = self.hparams["epoch_counter"]
        return measure_seconds(
            lambda: brain.fit(counter, loader, progressbar=False)
        )

    def load_batches(self):
        """Loads what an epoch of the Brain is made of, masks included."""
        brain, loader = self.make_brain()
        brain.train_sampler.set_epoch(1)
        self.max_grad_norm = brain.max_grad_norm
        batches = []
        for batch in loader:
            feats, lens = batch.feats
            num_frames, valid = valid_frames(lens, feats.shape[1])
            mask = torch.zeros_like(valid)
            if self.stage == "adapter":
                mask = sample_utterance_masks(
                    batch.id,
                    num_frames,
                    self.hparams["mask_ratio"],
                    self.hparams["seed"],
                    epoch=1,
                    span=self.hparams["mask_span"],
                )
                mask = mask & valid
            targets = getattr(batch, "target", None)
            batches.append((feats, lens, valid, mask, targets))
        return batches

    def run_bare_epoch(self, batches):
        """Runs the same epoch as a bare loop; its seconds."""
        self.rewind()
        losses = {"adapter": self._stage1_loss, "classifier": self._stage2_loss}
        compute_loss = losses[self.stage]
        optimizers = self._make_optimizers()
        groups = [g for o in optimizers for g in o.param_groups]
        parameters = [p for group in groups for p in group["params"]]

        def run():
            for step, batch in enumerate(batches):
                progress = step / max(len(batches) - 1, 1)
                share = self.hparams["lr_schedule"](progress)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = share * optimizer.defaults["lr"]
                compute_loss(batch, progress).backward()
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if self.stage == "adapter":
                    teacher = self.modules["teacher"]
                    teacher.ema_decay = self.hparams["ema_schedule"](progress)
                    teacher.update(self.modules["student"])

        return measure_seconds(run)

    def _make_optimizers(self):
        """Makes the optimisers of a bare loop."""
        make = self.hparams["opt_class"]
        if self.stage == "adapter":
            return [make(self.modules["student"].parameters())]
        top = [
            *self.modules["pooling"].parameters(),
            *self.modules["classifier"].parameters(),
        ]
        return [
            make(self.modules["adapter"].parameters()),
            self.hparams["classifier_opt_class"](top),
        ]

    def _stage1_loss(self, batch, progress):
        """Eq. 1 to 6, plainly; moves the local attributes."""
        feats, lens, valid, mask, _ = batch
        attributes = self.modules["local_attributes"]
        z_student = self.modules["student"](feats, lens, mask, only_masked=True)
        z_student = select_frames(z_student, mask)
        z_teacher = self.modules["teacher"](feats, lens)
        reach = self.hparams["target_smoothing"]
        if reach:
            z_teacher = smooth_frames(z_teacher, valid, reach)
        frames = select_frames(z_teacher, valid)
        if self.hparams["target_norm"] == "layer":
            frames = F.layer_norm(frames, frames.shape[-1:])
        if not attributes.initialised:
            attributes.initialise_(frames)
        codes = attributes.assign(frames)
        masked = mask[valid]
        loss = adapter_loss(
            masked_reconstruction_loss(
                z_student,
                frames[masked],
                reduction=self.hparams["rec_reduction"],
            ),
            pseudo_label_loss(attributes.logits(z_student), codes[masked]),
            self.hparams["rec_weight_schedule"](progress),
        )
        attributes.update(frames, codes)
        return loss

    def _stage2_loss(self, batch, progress):
        """Cross entropy of the classes."""
        feats, lens, _, mask, targets = batch
        z = self.modules["adapter"](feats, lens, mask)
        logits = self.modules["classifier"](self.modules["pooling"](z, lens))
        return F.cross_entropy(logits, targets)

    def flatten_weights(self):
        """Joins all weights and buffers as they are now."""
        return torch.cat(
            [
                tensor.detach().flatten().double()
                for module in self.modules.values()
                for tensor in (*module.parameters(), *module.buffers())
            ]
        )


def count_forward(hparams, num_frames, attention_area):
    """Floating point operations of the matrix products of a forward pass.

    Arguments
    ---------
    hparams : dict
        Of the recipe.
    num_frames : int
        Frames that layers compute which treat each by itself.
    attention_area : int
        Pairs of a query and a key that attention computes.

    Returns
    -------
    operations : int
    """
    d = hparams["d_model"]
    layer = 4 * d * d + 2 * d * hparams["d_ffn"]
    per_frame = (
        hparams["encoder_dim"] * d
        + hparams["num_layers"] * layer
        + hparams["mlp_layers"] * d * d
    )
    attention = 2 * hparams["num_layers"] * d
    return 2 * (num_frames * per_frame + attention_area * attention)


def count_step(hparams, lengths, num_masked):
    """Floating point operations of a step of stage 1, on valid frames only.

    Student forward and backward, teacher forward, distances to the local
    attributes (which are searched without gradient) and the student's logits
    (whose gradient reaches the student only).

    Arguments
    ---------
    hparams : dict
        Of the recipe.
    lengths : list of int
        Frames of each utterance of the batch.
    num_masked : int
        Masked frames of the batch.

    Returns
    -------
    operations : int
    """
    d, num_frames = hparams["d_model"], sum(lengths)
    forward = count_forward(hparams, num_frames, sum(n * n for n in lengths))
    # beyond the last layer's attention, the student computes masked frames
    per_frame = 2 * d * hparams["d_ffn"] + hparams["mlp_layers"] * d * d
    left_out = 2 * (num_frames - num_masked) * per_frame
    # the features need no gradient
    student = 3 * (forward - left_out)
    student -= 2 * num_frames * hparams["encoder_dim"] * d
    distances = 2 * num_frames * hparams["num_attributes"] * d
    logits = 2 * 2 * num_masked * hparams["num_attributes"] * d
    return student + forward + distances + logits


def measure_epoch_memory(corpus, *options):
    """Runs an epoch of stage 1; peak memory after and before, in bytes."""
    training = Training(corpus, "adapter", options)
    before = peak_memory()
    training.run_epoch()
    return peak_memory(), before


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(json.dumps(measure_epoch_memory(*sys.argv[1:])))
