"""What training.py and gpu.py time: corpora, trainings, their arithmetic.

A training runs an epoch two ways with the same mathematics: through the
recipe's Brain, and as a bare loop over batches that lie in memory.

> python benchmarks/workloads.py CORPUS [--key=value ...]

prints the peak memory of an epoch of stage 1 through the Brain, and what it
was before, in bytes.
"""

import hashlib
import json
import logging
import shutil
import sys
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.seed import seed_everything
from timing import RECIPES, Stopwatch, measure_seconds, peak_memory
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from train_adapter import NEEDED as ADAPTER_KEYS, AdapterBrain
from train_classifier import NEEDED as CLASSIFIER_KEYS, EmotionBrain

from speechbrain_wap.data.batches import pad_frames
from speechbrain_wap.data.datasets import make_dataset, make_labelled_dataset
from speechbrain_wap.data.preparation import prepare_adapter_data
from speechbrain_wap.packing import select_frames, send, valid_frames
from speechbrain_wap.targets import smooth_frames
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.experiment import Experiment

FRAMES_PER_SECOND = 50
# The recipe, the dimension of its features, utterances' lengths and arguments.
# Lengths in seconds are lognormal (median, deviation of the logarithm), and
# clipped; the paper's have a mean of 4.5 s.
SETTINGS = {
    "paper": ("IEMOCAP", 1024, (3.5, 0.71, 0.6, 34.0), ["--max_frames=1800"]),
    "emodb": ("EmoDB", 384, (2.6, 0.35, 1.2, 2.0), []),
}
# The smallest model that has every part, for a quick look
SMALL = ["--d_model=16", "--nhead=2", "--d_ffn=32", "--batch_size=8"]
QUICK = {"adapter": [*SMALL, "--num_attributes=16"], "classifier": SMALL}
KEYS = {"adapter": ADAPTER_KEYS, "classifier": CLASSIFIER_KEYS}
CLASSES = ["anger", "happiness", "sadness", "neutral"]


def draw_lengths(setting, count, seed=0):
    """Draws lengths of utterances, in frames."""
    median, deviation, shortest, longest = SETTINGS[setting][2]
    random = np.random.default_rng(seed)
    seconds = median * np.exp(deviation * random.standard_normal(count))
    frames = FRAMES_PER_SECOND * seconds.clip(shortest, longest)
    return frames.round().astype(int).tolist()


def build_experiment(setting, stage, folder, options=()):
    """Builds what a recipe's YAML describes; on a CPU without a --device."""
    recipe = RECIPES / SETTINGS[setting][0] / "wap_adapter"
    arguments = ["--device=cpu", f"--output_folder={folder}/run", *options]
    yaml = str(recipe / f"hparams/{stage}.yaml")
    return Experiment(read_command([yaml, *arguments]), KEYS[stage])


# Corpora ----------------------------------------------------------------------


def make_corpus(setting, count, folder, input_size=None, copies=1):
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
    copies : int
        How many utterances share the features of each of them.

    Returns
    -------
    folder : pathlib.Path
    """
    input_size = input_size or SETTINGS[setting][1]
    options = [
        "--data_folder=none",
        "--encoder_source=fbank",  # whose place the random features take
        f"--encoder_dim={input_size}",
        f"--cache_folder={folder}/cache",
    ]
    experiment = build_experiment(setting, "adapter", folder, options)
    random = torch.Generator().manual_seed(0)
    entries = {}
    for number, length in enumerate(draw_lengths(setting, count)):
        key = f"utterance{number:05d}"
        digest = hashlib.md5(key.encode()).hexdigest()
        feats = torch.randn(length, input_size, generator=random)
        seconds = length / FRAMES_PER_SECOND
        experiment.hparams["feature_cache"].write(digest, feats, seconds)
        entries[key] = {"digest": digest}
    entries |= {
        f"{key}+{number}": entry
        for number in range(1, copies)
        for key, entry in entries.items()
    }
    return record_corpus(folder, setting, options, entries)


def encode_emodb(options, folder):
    """Caches the features of EmoDB's first fold; as make_corpus."""
    options = [*options, f"--cache_folder={folder}/cache"]
    experiment = build_experiment("emodb", "adapter", folder, options)
    manifests = experiment.manifests
    hparams = experiment.hparams
    corpus = {**hparams["corpus"], "corpus_table": experiment.corpus_table}
    prepare_adapter_data(corpus, hparams["fold_plan"], "train", manifests)
    entries = experiment.read_splits(("wav", "speaker"))["train"]
    cache = experiment.hparams["feature_cache"]
    seconds = measure_seconds(lambda: fill_cache(cache, entries.values()))
    return record_corpus(folder, "emodb", options, entries, seconds)


def list_wired(experiment):
    """Lists what the scripts give a Brain of what the YAML wires."""
    keys = ("modules", "opt_class", "checkpointer")
    return {key: experiment.hparams[key] for key in keys}


def fill_cache(cache, entries):
    """Encodes the audio of a manifest's entries."""
    failures = cache.extract({entry["digest"]: entry for entry in entries})
    if failures:
        raise RuntimeError(f"not encoded: {failures}")


def record_corpus(folder, setting, options, entries, seconds=None):
    """Writes what a child process needs to train on a corpus.

    Classes are even, so that augmentation has nothing to do.
    """
    given = {"speaker": "", "mask_probability": 0}
    entries = {
        key: {**entry, **given, "label": CLASSES[number % 4]}
        for number, (key, entry) in enumerate(entries.items())
    }
    record = {"setting": setting, "options": options, "entries": entries}
    record["seconds"] = seconds
    Path(folder, "corpus.json").write_text(json.dumps(record), "utf-8")
    return Path(folder)


# Trainings --------------------------------------------------------------------


class Training:
    """A stage's training on a corpus, an epoch at a time.

    Every epoch starts from the same weights and random numbers.

    Arguments
    ---------
    folder : pathlib.Path
        The corpus: what make_corpus made.
    stage : str
        "adapter" or "classifier".
    options : list of str
        Further arguments of the recipe's script.
    """

    def __init__(self, folder, stage="adapter", options=()):
        self.corpus = json.loads(Path(folder, "corpus.json").read_text("utf-8"))
        setting = self.corpus["setting"]
        own = ["--number_of_epochs=1", *SETTINGS[setting][3]]
        if stage == "classifier":  # once a training, whatever its length
            own += ["--input_norm=False", "--pooled_norm=False"]
        options = [*own, *self.corpus["options"], *options]
        self.is_adapter = stage == "adapter"
        self.build = partial(build_experiment, setting, stage, folder, options)
        self.rewind()
        self.device = torch.device(self.experiment.run_opts["device"])
        given = self.corpus["entries"], self.experiment.caches
        limits = {k: self.hparams[k] for k in ("max_frames", "long_utterances")}
        if self.is_adapter:
            self.brain = lambda run: AdapterBrain(run, **list_wired(run))
            self.dataset = make_dataset(*given, **limits)
        else:
            splits, weights = {}, torch.ones(len(CLASSES))
            self.brain = lambda run: EmotionBrain(
                run, splits, CLASSES, weights, **list_wired(run)
            )
            keys = ["mask_probability"]
            self.dataset = make_labelled_dataset(
                *given, CLASSES, [], keys=keys, **limits
            )

    def rewind(self):
        """Goes back to the start: builds all anew."""
        self.experiment = self.build()
        self.hparams = self.experiment.hparams
        self.modules = self.hparams["modules"]
        # else the next epoch would go on from the last one's checkpoint
        shutil.rmtree(self.experiment.save_folder)
        Path(self.experiment.save_folder).mkdir()
        seed_everything(self.hparams["seed"])
        if not self.is_adapter:
            self.modules["model"].set_classes(len(CLASSES))

    def make_brain(self):
        """Makes the Brain of a new training, and its loader."""
        self.rewind()
        brain = self.brain(self.experiment)
        brain.has_validation = False
        loader = brain.make_train_loader(
            self.dataset,
            self.hparams["seed"],
            **self.hparams["dataloader_options"],
        )
        return brain, loader

    def run_epoch(self, start=None):
        """Runs an epoch through the Brain, which start is given before.

        Returns
        -------
        seconds : float
            Of Brain.fit.
        """
        brain, loader = self.make_brain()
        if start is not None:
            start(brain)
        counter = self.hparams["epoch_counter"]
        return measure_seconds(
            lambda: brain.fit(counter, loader, progressbar=False)
        )

    def time_steps(self):
        """Runs an epoch through the Brain; the seconds within its steps."""
        watch = Stopwatch()
        self.run_epoch(lambda brain: watch.wrap_method(brain, "fit_batch"))
        return watch.seconds

    def start_steps(self):
        """Makes the Brain of a new training, ready for its first step."""
        brain, loader = self.make_brain()
        next(iter(self.hparams["epoch_counter"]))  # epoch 1
        brain.on_fit_start()
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        brain.train_sampler.set_epoch(1)
        return brain, loader

    @staticmethod
    def run_steps(brain, batches):
        """Runs a step of a Brain for each batch; their losses."""
        losses = []
        for batch in batches:
            brain.step += 1
            # a copy: a Brain moves a batch's tensors in place
            losses.append(brain.fit_batch(copy(batch)))
        return losses

    def load_batches(self):
        """Loads what an epoch of the Brain is made of, masks included.

        Features are where they can be sent to a GPU without waiting.
        """
        brain, loader = self.make_brain()
        brain.train_sampler.set_epoch(1)
        batches = []
        brain.train_collate.epoch.fill_(1)
        for batch in loader:
            _, lens = pad_frames(batch.feats, "meta")
            mask = batch.masks["feats"]
            _, valid = valid_frames(lens, mask.shape[1])
            target = None if self.is_adapter else batch.target
            batches.append((batch.feats, lens, valid, mask, target))
        return batches

    def place_modules(self):
        """Goes back to the start, with all modules on the device."""
        self.rewind()
        for module in self.modules.values():
            module.to(self.device)

    def run_bare_epoch(self, batches):
        """Runs the same epoch as a bare loop; its seconds."""
        self.place_modules()
        if self.is_adapter:
            student, teacher = self.modules["student"], self.modules["teacher"]
            groups = [{"params": student.parameters()}]
        else:
            model, lr = self.modules["model"], self.hparams["classifier_lr"]
            top = [*model.pooling.parameters(), *model.classifier.parameters()]
            groups = [{"params": model.backbone.parameters()}]
            groups.append({"params": top, "lr": lr})
        optimizer = self.hparams["opt_class"](groups)
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        max_grad_norm = self.experiment.run_opts["max_grad_norm"]
        last = max(len(batches) - 1, 1)
        share = self.hparams["lr_schedule"]
        schedule = LambdaLR(optimizer, lambda step: share(step / last))
        is_half = self.experiment.run_opts["precision"] == "bf16"
        half = torch.autocast(self.device.type, torch.bfloat16, is_half)

        def run():
            for step, batch in enumerate(batches):
                with half:
                    values = self.compute_losses(batch, step / last)
                values["loss"].backward()
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                if self.is_adapter:
                    teacher.update(student, step / last)

        return measure_seconds(run)

    def compute_losses(self, batch, progress, codes=None):
        """Computes a step's loss and what it is made of, plainly.

        Stage 1 (Eq. 1 to 6) also moves the local attributes; codes replace
        those that it would find.

        Returns
        -------
        values : dict
            Tensors by name, "loss" among them.
        """
        feats, *rest = batch
        feats, _ = pad_frames(feats, self.device)
        if self.is_adapter:
            return self._compute_stage1(feats, *rest, progress, codes)
        return self._compute_stage2(feats, *rest)

    def compute_gradients(self, batch, codes=None):
        """Computes a step's values and gradients from the start.

        Returns
        -------
        values : dict
            See compute_losses; with the local attributes that it moved.
        gradients : list of torch.Tensor
        """
        self.place_modules()
        values = self.compute_losses(batch, 0.5, codes)
        values["loss"].backward()
        if self.is_adapter:
            attributes = self.modules["local_attributes"]
            values["local attributes"] = attributes.codebook
        modules = torch.nn.ModuleDict(self.modules)
        gradients = [p.grad for p in modules.parameters() if p.grad is not None]
        return {k: value.detach() for k, value in values.items()}, gradients

    def _compute_stage1(self, feats, lens, valid, mask, _, progress, codes):
        """Eq. 1 to 6."""
        attributes = self.modules["local_attributes"]
        z_student = self.modules["student"](feats, lens, mask, only_masked=True)
        z_student = select_frames(z_student, mask)
        z_teacher = self.modules["teacher"](feats, lens)
        reach = self.hparams["targets"].smoothing
        if reach:
            z_teacher = smooth_frames(z_teacher, valid, reach)
        frames = select_frames(z_teacher, valid).float()
        frames = F.layer_norm(frames, frames.shape[-1:])  # D6
        if not attributes.initialised:
            attributes.initialise_(frames)
        found = attributes.assign(frames)
        codes = found if codes is None else codes
        masked = send(mask[valid].nonzero()[:, 0], self.device)
        rec_loss = F.mse_loss(z_student, frames[masked])  # D10: the mean
        logits = attributes.logits(z_student)
        pce_loss = F.cross_entropy(logits, codes[masked])
        attributes.update(frames, codes)
        rec_weight = self.hparams["objective"].rec_weight(progress)
        loss = rec_weight * rec_loss + (1 - rec_weight) * pce_loss
        return {
            "student": z_student,
            "teacher": frames,
            "codes": found,
            "reconstruction loss": rec_loss,
            "pseudo-label loss": pce_loss,
            "loss": loss,
        }

    def _compute_stage2(self, feats, lens, _, mask, target):
        """Cross entropy of the classes."""
        model = self.modules["model"]
        pooled = model.pool(feats, lens, mask)
        logits = model.classifier(pooled)
        target = send(target, self.device)
        loss = F.cross_entropy(logits, target)
        return {"pooling": pooled, "classifier": logits, "loss": loss}

    def flatten_weights(self):
        """Joins all weights and buffers as they are now."""
        tensors = [
            tensor.detach().flatten().double()
            for module in self.modules.values()
            for tensor in (*module.parameters(), *module.buffers())
        ]
        return torch.cat(tensors)


def measure_epoch_memory(corpus, *options):
    """Runs an epoch of stage 1; peak memory after and before, in bytes."""
    training = Training(corpus, "adapter", options)
    before = peak_memory()
    training.run_epoch()
    return peak_memory(), before


# Arithmetic -------------------------------------------------------------------


def find_peak(sizes, device="cpu", dtype=torch.float32):
    """Measures products of square matrices; the most operations a second."""
    rates = []
    for size in sizes:
        shape = {"device": device, "dtype": dtype}
        one, other = torch.rand(2, size, size, **shape)
        product = torch.empty(size, size, **shape)
        multiply = partial(torch.mm, one, other, out=product)
        multiply()
        seconds = min(measure_seconds(multiply) for _ in range(3))
        rates.append(2 * size**3 / seconds)
    return max(rates)


def count_forward(hparams, num_frames, attention_area):
    """Floating point operations of the matrix products of a forward pass.

    Of num_frames that layers treat each by itself, and of attention_area pairs
    of a query and a key.
    """
    d = hparams["d_model"]
    layer = 4 * d * d + 2 * d * hparams["d_ffn"]
    per_frame = hparams["encoder_dim"] * d + hparams["mlp_layers"] * d * d
    per_frame += hparams["num_layers"] * layer
    attention = 2 * hparams["num_layers"] * d
    return 2 * (num_frames * per_frame + attention_area * attention)


def count_step(hparams, valid, mask):
    """Floating point operations of a step of stage 1, on valid frames only.

    Student forward and backward, teacher forward, distances to the local
    attributes (which are searched without gradient) and the student's logits
    (whose gradient reaches the student only); of the frames of a batch that are
    valid and those that are masked.
    """
    lengths, num_masked = valid.sum(dim=1).tolist(), int(mask.sum())
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


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(json.dumps(measure_epoch_memory(*sys.argv[1:])))
