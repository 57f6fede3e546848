"""A step on made-up frames, before anything is computed that it could lose.

What a YAML wires may be built and still not fit together. One step of training
is taken with copies of it, on few frames of noise, which leaves no trace.
"""

import linecache
import logging
import random
import re
import traceback
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace

import numpy as np
import torch
from speechbrain.utils.logger import get_logger
from torch import nn
from torch.nn.parameter import is_lazy

from speechbrain_wap.data.datasets import feats_key
from speechbrain_wap.encoders import get_frame_shape
from speechbrain_wap.errors import RecipeError, first_line

logger = get_logger(__name__)

# Frames of every other utterance, unless max_frames is less
LENGTHS = (40, 25)
# What is asked of a part, by its key
CONTRACTS = {
    "lr_schedule": "it must map the share of the training that is done, 0 to "
    "1, to a share of the learning rate, as "
    "speechbrain_wap.schedules.Schedule does; SpeechBrain's schedulers do not",
    "compute_cost": "it must map logits [B, C], targets [B] and "
    'reduction="none" to losses [B], as torch.nn.functional.cross_entropy does',
    "model": "it must have set_classes(num_classes) and map (feats, lens, "
    "mask) to logits [B, C], see speechbrain_wap.emotion_model",
    "model.pooling": "it must map frames [B, T, input_size] and lens to [B, "
    "output_size], as speechbrain_wap.pooling.StatisticalAttentivePooling does",
}


@contextmanager
def trial(experiment):
    """Gives a copy of a run to take a step with, and says what fails.

    Arguments
    ---------
    experiment : speechbrain_wap.training.experiment.Experiment
        The run; nothing of it changes, nor do random numbers that it draws.

    Yields
    ------
    tried : speechbrain_wap.training.experiment.Experiment or None
        Only encoders and logger are shared. None where something cannot be
        copied, which is warned of.

    Raises
    ------
    RecipeError
        If what is done with the copy fails; names the key and the class.
    """
    tried = copy(experiment)
    caches = list(experiment.caches.values())
    shared = [*caches, *(cache.encoder for cache in caches)]
    shared.append(experiment.hparams["train_logger"])  # it is told nothing
    try:
        memo = {id(one): one for one in shared}
        tried.hparams = deepcopy(experiment.hparams, dict(memo))
    except Exception as error:  # of any module that a YAML may name
        logger.warning(
            "what the YAML wires is not tried before the features are "
            f"extracted: it cannot be copied ({first_line(error)})."
        )
        yield None
        return
    # to compile takes minutes
    tried.run_opts = replace(experiment.run_opts, compile=False)
    disabled = logging.root.manager.disable
    states = random.getstate(), np.random.get_state()
    # a hook may hold the module that it was made for, not the copy
    kept = [
        (tensor, tensor.clone())
        for part in experiment.hparams.values()
        if isinstance(part, nn.Module) and id(part) not in memo
        for tensor in part.state_dict().values()
        if torch.is_tensor(tensor) and not is_lazy(tensor)
    ]
    try:
        logging.disable(max(disabled, logging.INFO))
        on_gpu = torch.cuda.is_initialized()
        devices = [torch.cuda.current_device()] if on_gpu else []
        with torch.random.fork_rng(devices):
            yield tried
    except (RecipeError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any module that a YAML may name
        raise _explain(error, tried.hparams)
    finally:
        logging.disable(disabled)
        for tensor, value in kept:
            tensor.copy_(value)
        random.setstate(states[0])
        np.random.set_state(states[1])


def make_utterances(experiment, count):
    """Makes utterances as a dataset gives them, of noise.

    Arguments
    ---------
    experiment : speechbrain_wap.training.experiment.Experiment
        The run.
    count : int
        How many; two at least.

    Returns
    -------
    utterances : list of dict
        id and frames by each cache's key.
    """
    generator = torch.Generator().manual_seed(0)
    most = experiment.hparams["max_frames"]
    utterances = []
    for number in range(max(count, 2)):
        utterances.append({"id": f"trial {number}"})
        for name, cache in experiment.caches.items():
            shape = get_frame_shape(cache.encoder)
            frames = min(LENGTHS[number % 2], most)
            feats = torch.randn(frames, *shape, generator=generator)
            utterances[-1][feats_key(name)] = feats.to(cache.dtype)
    return utterances


def try_functions(hparams):
    """Refuses a schedule of the learning rate, a cost or a logger of no use.

    Arguments
    ---------
    hparams : dict
        What HyperPyYAML built.

    Raises
    ------
    RecipeError
        If it does not; names its class.
    """
    targets = torch.tensor([0, 1, 1])
    logits = 2.0 * torch.eye(2)[targets]
    for key, function in (
        ("lr_schedule", lambda schedule: float(schedule(0.0))),
        ("train_logger", lambda train_logger: train_logger.log_stats),
        ("compute_cost", lambda cost: _check_cost(cost, logits, targets)),
    ):
        try:
            if key in hparams:
                function(hparams[key])
        except Exception as error:  # of any module that a YAML may name
            part = [key, getattr(hparams[key], "func", hparams[key])]
            raise _make_error(hparams, part, error)


def _check_cost(cost, logits, targets):
    """Refuses a cost that does not fit, or is of other than logits."""
    losses = cost(logits, targets, reduction="none").reshape(len(targets))
    if (losses < 0).any():  # it would fall without end
        raise ValueError("it is negative, as if it wanted log-probabilities")


def _explain(error, hparams):
    """Says which key's part fails in a step, and what is asked of it."""
    parts = {}  # key and object by the identity of what belongs to it
    for key, value in hparams.items():
        if isinstance(value, nn.Module):
            for name, module in value.named_modules():
                first = name.partition(".")[0]
                part = [key, value]
                if first and not first.isdigit():
                    part = [f"{key}.{first}", getattr(value, first)]
                parts.setdefault(id(module), part)
        elif callable(value):
            function = getattr(value, "func", value)
            code = getattr(function, "__code__", function)
            parts[id(value)] = parts[id(code)] = [key, function]
    found = ["what is wired", None]
    for frame, line in traceback.walk_tb(error.__traceback__):
        line = linecache.getline(frame.f_code.co_filename, line)
        read = re.search(r"(?:hparams|modules)\.(\w+)", line)
        if read and found[1] is None:
            found = [read[1], None]
        own = frame.f_locals.get("self")
        if isinstance(own, torch.optim.Optimizer):
            keys = [key for key in hparams if key.endswith("opt_class")]
            found = [" or ".join(keys), own]
        for one in (own, frame.f_code):
            found = parts.get(id(one), found)
    missing = getattr(error, "obj", None)  # of what lacks an attribute
    return _make_error(hparams, parts.get(id(missing), found), error)


def _make_error(hparams, part, error):
    """Makes the error for a part, [key, object], that fails in a step."""
    key, value = part
    name = getattr(value, "__name__", type(value).__name__)
    name = "" if value is None else f" ({name})"
    contract = f"; {CONTRACTS[key]}" if key in CONTRACTS else ""
    return RecipeError(
        f"{hparams.hparams_file}: {key}{name} fails in a step on made-up "
        f"frames: {first_line(error).rstrip('.')}{contract}."
    )
