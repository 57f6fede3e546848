"""The command line: a YAML file, values for its keys, SpeechBrain's options."""

import io
import math
from contextlib import redirect_stderr
from typing import NamedTuple

import speechbrain as sb
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.files import expand_path
from speechbrain_wap.training.hparams_file import PLACE_SUFFIXES, HparamsFile
from speechbrain_wap.training.settings import find_near

# Options that could only mislead a train script, and why
REFUSED_OPTIONS = {
    "adapter_training": "it is for cross_validate.py; see adapter_folder",
    "nonfinite_patience": "a loss that is not finite stops the run",
    "skip_nonfinite_grads": "a loss that is not finite stops the run",
    "jit": "TorchScript cannot read the adapter; --compile can",
    "jit_module_keys": "TorchScript cannot read the adapter; --compile can",
    "data_parallel_backend": "start several ranks with torchrun instead",
    "data_parallel_count": "start several ranks with torchrun instead",
    "remove_vector_weight_decay": "set weight_decay in the YAML's opt_class",
    "optimizer_step_limit": "set number_of_epochs",
    "auto_mix_prec": "write --precision=fp16",
    "bfloat16_mix_prec": "write --precision=bf16",
}
# Options that take no value, so that the next word is not theirs
FLAGS = {k for k, v in RunOptions().as_dict().items() if v is False}


class Command(NamedTuple):
    """What a script is told: a YAML file and the user's values for its keys."""

    hparams_file: str
    overrides: dict
    run_opts: RunOptions

    def change(self, **overrides):
        """Makes a command with further values, which count more."""
        return self._replace(overrides={**self.overrides, **overrides})


def split_options(arguments):
    """Splits a command line into positional arguments and options.

    Arguments
    ---------
    arguments : list of str
        As in ``sys.argv[1:]``; options are ``--key=value``, ``--key value`` or
        a flag.

    Returns
    -------
    positional : list of str
    options : list of tuple
        Key and text, or None for a flag.

    Example
    -------
    >>> split_options(["a.yaml", "--fold", "2", "--debug"])
    (['a.yaml'], [('fold', '2'), ('debug', None)])
    """
    positional, options = [], []
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, text = argument[2:].partition("=")
            options.append((key, text if equals else None))
        elif options and options[-1][1] is None and options[-1][0] not in FLAGS:
            options[-1] = (options[-1][0], argument)
        else:
            positional.append(expand_path(argument))
    return positional, options


def read_command(arguments):
    """Reads a script's command line, refusing keys that nothing reads.

    ``speechbrain.parse_arguments`` takes any key and joins values at "=";
    here the YAML's keys are set apart first.

    Arguments
    ---------
    arguments : list of str
        As in ``sys.argv[1:]``: a YAML file, then ``--key=value``.

    Returns
    -------
    command : Command

    Raises
    ------
    RecipeError
        If the file is missing or a key is unknown.
    """
    positional, options = split_options(arguments)
    if not positional:
        raise RecipeError(
            "no hyperparameter file given: put hparams/<name>.yaml first."
        )
    if positional[1:]:
        raise RecipeError(
            f"{positional[1]} is neither an option nor the value of one: "
            "write --key=value."
        )
    return read_options(positional[0], options)


def read_options(hparams_file, options):
    """Reads the options that are given with a YAML file.

    Arguments
    ---------
    hparams_file : str
        The file.
    options : list of tuple
        What :func:`split_options` gave.

    Returns
    -------
    command : Command

    Raises
    ------
    RecipeError
        If a key is unknown, or a value cannot be read.
    """
    keys = HparamsFile(hparams_file, dict(options)).keys()
    overrides, rest = {}, [str(hparams_file)]
    for key, text in options:
        if key in REFUSED_OPTIONS:
            raise RecipeError(
                f"--{key} has no effect here: {REFUSED_OPTIONS[key]}."
            )
        if key in keys:
            if text is None:
                raise RecipeError(f"--{key} needs a value: --{key}=...")
            overrides[key] = _parse_value(key, text)
        elif key in RunOptions().keys():  # argparse would take prefixes, too
            rest.append(f"--{key}" if text is None else f"--{key}={text}")
        else:
            raise unknown_key(key, [*keys, *RunOptions().keys()])
    run_opts = _read_run_options(rest)
    if run_opts["ckpt_interval_steps"] > 0 and "ckpt_interval_minutes" in keys:
        overrides.setdefault("ckpt_interval_minutes", 0)  # one or the other
    return Command(hparams_file, overrides, run_opts)


def _parse_value(key, text):
    """Reads what stands behind ``--key=`` as YAML.

    Folders, files and lists of files without brackets stay text: a folder may
    be called 2024.
    """
    is_text = key in ("system", "encoder_revision") or key.endswith(
        PLACE_SUFFIXES
    )
    is_list = key == "corpora" and not text.lstrip().startswith(("[", "{"))
    if is_text or is_list:
        return None if text in ("", "null", "None") else text
    try:
        # as HyperPyYAML: 1e-4 is a number, which PyYAML takes for text
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise RecipeError(f"--{key}={text} cannot be read as a YAML value.")


def unknown_key(key, known):
    """Makes the error for a key that is none of those that are known."""
    near = find_near(key, known)
    hint = f"did you mean --{near}?" if near else "see the YAML file."
    return RecipeError(f"unknown key --{key}: {hint}")


def _read_run_options(arguments):
    """Reads SpeechBrain's own options, refusing those that cannot be met."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # argparse prints its usage
            _, run_opts, _ = sb.parse_arguments(arguments)
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise RecipeError(f"{reason}.")
    device = run_opts["device"] or infer_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).rstrip(".")
        raise RecipeError(f"--device={device} cannot be used: {reason}.")
    for option in ("precision", "eval_precision"):
        if run_opts[option] == "fp16" and torch.device(device).type == "cpu":
            raise RecipeError(
                f"--{option}=fp16 needs a GPU: use --{option}=bf16 on a CPU."
            )
    for option, least in (
        ("grad_accumulation_factor", 1),
        ("ckpt_interval_steps", 0),
    ):
        if run_opts[option] < least:
            raise RecipeError(
                f"--{option}={run_opts[option]} must be at least {least}."
            )
    if not math.isfinite(run_opts["max_grad_norm"]):
        raise RecipeError(
            f"--max_grad_norm={run_opts['max_grad_norm']} must be finite; "
            "below 0, nothing is clipped."
        )
    return run_opts
