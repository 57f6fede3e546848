"""The command line, the YAML and the settings guard of the recipes."""

import difflib
import hashlib
import io
import json
import math
import os
import sys
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from hyperpyyaml.core import recursive_update
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import YAMLError
from speechbrain.utils.distributed import (
    if_main_process,
    infer_device,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.data.further_corpora import describe_corpora, parse_corpora
from speechbrain_wap.errors import RecipeError, places_as_mistakes, say_mistakes
from speechbrain_wap.files import read_json, write_atomically, write_text
from speechbrain_wap.training.key_values import check_values
from speechbrain_wap.training.ranks import count_ranks, is_lost_rank, own_rank

logger = get_logger(__name__)

# Keys that say where things lie or how a run is watched, not what it computes.
UNGUARDED_KEYS = {
    "data_folder",
    "corpus_csv",
    "output_folder",
    "cache_folder",
    "encoder_source",  # guarded by the encoder's identity instead
    "adapter_folder",  # guarded by the adapter's own settings instead
    "skip_prep",
    "max_skipped",
    "feature_workers",
    "num_workers",
    "ckpt_interval_minutes",
    "probe_every",
    "probe_utterances",
    "number_of_epochs",  # may grow
}


# What a run meant that was made before there was the key
IMPLIED = {
    "target_smoothing": 0,
    "augment_mask_span": 1,
}
# Keys that do not give a run another default folder.
UNNAMED_KEYS = {
    "skip_prep",
    "max_skipped",
    "feature_workers",
    "num_workers",
    "ckpt_interval_minutes",
    "probe_every",
    "probe_utterances",
}
# Run options of SpeechBrain that decide what a run computes.
GUARDED_RUN_OPTIONS = (
    "precision",
    "eval_precision",
    "grad_accumulation_factor",
    "max_grad_norm",
)
# Run options of SpeechBrain that could only mislead here, and why.
REFUSED_RUN_OPTIONS = {
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
# How errors call what is not a key by itself.
LABELS = {
    "encoder_key": "the encoder (encoder_source, encoder_layer, "
    "encoder_context, feature_precision or their code)",
    "data": "the corpus (data_folder, corpus_csv or corpora)",
    "adapter_identity": "the adapter (adapter_folder)",
    "class_names": "classes",
}
# Options that take no value, so that the next word is not theirs.
FLAGS = {k for k, v in RunOptions().as_dict().items() if v is False}


def is_text_key(key):
    """Tells whether a key's value is text whatever it looks like.

    Arguments
    ---------
    key : str
        A YAML key.

    Returns
    -------
    is_text : bool
        True for folders, files and the encoder, so that a folder may be
        called 2024.
    """
    return key == "encoder_source" or key.endswith(
        ("_folder", "_csv", "_table", "_annotation")
    )


def read_keys(hparams_file):
    """Lists the top-level keys of a YAML file.

    Arguments
    ---------
    hparams_file : str
        A HyperPyYAML file.

    Returns
    -------
    keys : list of str
    """
    try:
        with open(hparams_file, encoding="utf-8") as file:
            tree = YAML().load(file)
        if not isinstance(tree, dict):
            raise ValueError("it must map keys to values")
    except OSError as error:
        raise RecipeError(
            f"hyperparameter file {hparams_file} cannot be read: "
            f"{error.strerror}."
        )
    except (YAMLError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(
            f"hyperparameter file {hparams_file} is no YAML file of keys: "
            f"{reason}."
        )
    return [key for key in tree if not key.startswith("__")]


def parse_value(key, text):
    """Turns what stands behind ``--key=`` into a value.

    Arguments
    ---------
    key : str
        The key.
    text : str
        YAML, but for folders, files and lists of files without brackets, which
        stay text.

    Returns
    -------
    value : object

    Example
    -------
    >>> parse_value("fold", "2"), parse_value("output_folder", "2")
    (2, '2')
    """
    is_list = key == "corpora" and not text.lstrip().startswith(("[", "{"))
    if is_text_key(key) or is_list:
        return None if text in ("", "null", "None") else text
    try:
        # as HyperPyYAML: 1e-4 is a number, which PyYAML takes for text
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise RecipeError(f"--{key}={text} cannot be read as a YAML value.")
    # a mapping would be merged with the YAML's value
    is_item = key == "corpora" and isinstance(value, dict)
    return [value] if is_item else value


def unknown_key(key, known):
    """Makes the error for a key that nothing reads.

    Arguments
    ---------
    key : str
        What the user wrote.
    known : list of str
        What there is.

    Returns
    -------
    error : RecipeError
    """
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean --{close[0]}?" if close else "see the YAML file."
    return RecipeError(f"unknown key --{key}: {hint}")


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
            positional.append(argument)
    return positional, options


def parse_arguments(arguments):
    """Reads a recipe's command line, refusing keys that nothing reads.

    ``speechbrain.parse_arguments`` takes any key and joins values at "=";
    here the YAML's keys are set apart first.

    Arguments
    ---------
    arguments : list of str
        As in ``sys.argv[1:]``: a YAML file, then ``--key=value``.

    Returns
    -------
    hparams_file : str
        The YAML file.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.
    overrides : dict
        Values for the YAML's keys.

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
    keys = read_keys(positional[0])
    overrides, rest = {}, [positional[0]]
    for key, text in options:
        if key in REFUSED_RUN_OPTIONS:
            raise RecipeError(
                f"--{key} has no effect here: {REFUSED_RUN_OPTIONS[key]}."
            )
        if key in keys:
            if text is None:
                raise RecipeError(f"--{key} needs a value: --{key}=...")
            overrides[key] = parse_value(key, text)
        elif key in RunOptions().keys():  # argparse would take prefixes, too
            rest.append(f"--{key}" if text is None else f"--{key}={text}")
        else:
            raise unknown_key(key, keys + list(RunOptions().keys()))
    if positional[1:]:
        raise RecipeError(
            f"{positional[1]} is neither an option nor the value of one: "
            "write --key=value."
        )
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            hparams_file, run_opts, _ = sb.parse_arguments(rest)
    except SystemExit:  # argparse has printed its usage
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise RecipeError(f"{reason}.")
    check_run_options(run_opts)
    if run_opts["ckpt_interval_steps"] > 0 and "ckpt_interval_minutes" in keys:
        overrides.setdefault("ckpt_interval_minutes", 0)  # one or the other
    if overrides.get("corpus_csv") and "data_folder" in keys:
        overrides.setdefault("data_folder", "")
    return hparams_file, run_opts, overrides


def check_run_options(run_opts):
    """Refuses options of SpeechBrain that this machine has no use for.

    Arguments
    ---------
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.

    Raises
    ------
    RecipeError
        If the device is not there, or cannot compute in fp16.
    """
    device = run_opts["device"] or infer_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
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


def drop_replaced_entries(hparams_file, overrides):
    """Makes classes on the command line replace the YAML's.

    HyperPyYAML would merge the mappings; classes that the override leaves out
    become null, which means that they are dropped.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : dict
        Values for its keys.

    Returns
    -------
    overrides : dict
    """
    with open(hparams_file, encoding="utf-8") as file:
        tree = YAML().load(file)
    mine, theirs = overrides.get("classes"), tree.get("classes")
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return {**overrides, "classes": {**dict.fromkeys(theirs), **mine}}
    return dict(overrides)


def _plain(node):
    """Turns a YAML tree into plain values that show tags, too."""
    if isinstance(node, TaggedScalar):
        return f"{node.tag.value} {node.value}"
    if isinstance(node, CommentedMap):
        plain = {str(key): _plain(value) for key, value in node.items()}
        return {"!": node.tag.value, **plain} if node.tag.value else plain
    if isinstance(node, (CommentedSeq, list)):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, (int, float)):  # 0 is a type of its own to ruamel
        return int(node) if isinstance(node, int) else float(node)
    return str(node)


def _resolve(hparams_file, overrides):
    """Reads a YAML with its references resolved, and without; no places."""
    places = {
        key: "-"
        for key in read_keys(hparams_file)
        if key in ("data_folder", "output_folder", "cache_folder")
    }
    overrides = drop_replaced_entries(hparams_file, {**overrides, **places})
    with open(hparams_file, encoding="utf-8") as file:
        text = resolve_references(file, overrides).getvalue()
    with open(hparams_file, encoding="utf-8") as file:
        tree = YAML().load(file)
    recursive_update(tree, overrides)
    return YAML().load(text), tree


def read_corpora(hparams_file, overrides):
    """Reads which further corpora a run trains on.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : dict
        Values for its keys.

    Returns
    -------
    corpora : list of dict
        See :func:`speechbrain_wap.data.further_corpora.parse_corpora`; empty where the YAML
        has no such key.
    """
    resolved, _ = _resolve(hparams_file, overrides)
    return parse_corpora(_plain(resolved.get("corpora")))


def name_data(corpus, corpora):
    """Names what a run is about, for the digest in its default folder's name.

    Arguments
    ---------
    corpus : str or None
        The corpus under test: its folder or its table.
    corpora : list of dict
        Further tables.

    Returns
    -------
    name : str
    """
    further = [[item["table"], item["speakers"]] for item in corpora]
    return str(corpus) + (json.dumps(further) if further else "")


def read_settings(hparams_file, overrides, run_opts=None):
    """Reads what a run computes off the YAML, without building anything.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : dict
        Values for its keys.
    run_opts : speechbrain.utils.run_opts.RunOptions, optional
        SpeechBrain's own options; those that matter become settings.

    Returns
    -------
    settings : dict
        Plain value of each key. Where things lie is left out everywhere.
    """
    resolved, tree = _resolve(hparams_file, overrides)
    # What is built of other keys is kept as it is written, with references:
    # else it would change with keys that may change.
    settings = {
        key: _plain(tree[key] if isinstance(value, (dict, list)) else value)
        for key, value in resolved.items()
        if not key.startswith("__")
    }
    if "corpora" in settings:
        settings["corpora"] = describe_corpora(
            parse_corpora(_plain(resolved["corpora"]))
        )
    if run_opts is not None:
        for option in GUARDED_RUN_OPTIONS:
            settings.setdefault(option, run_opts[option])
    return settings


def default_output_folder(settings, root, data_folder):
    """Names a folder that no other settings share.

    Arguments
    ---------
    settings : dict
        What :func:`read_settings` gave.
    root : str
        The YAML's own output folder, under which it lies.
    data_folder : str or None
        The corpus, which is part of the name's digest.

    Returns
    -------
    folder : str
        root/encoder-layer/fold-seed-digest; a universal adapter has no fold.
    """
    named = {k: v for k, v in settings.items() if k not in UNNAMED_KEYS}
    text = json.dumps([named, str(data_folder)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    source = os.path.basename(os.path.normpath(settings["encoder_source"]))
    layer = settings["encoder_layer"]
    layers = layer if isinstance(layer, list) else [layer]
    encoder = f"{source}-layer_{'+'.join(map(str, layers))}"
    fold = "no_fold" if settings["fold"] is None else f"fold{settings['fold']}"
    run = f"{fold}-seed{settings['seed']}-{digest}"
    return os.path.join(root, encoder, run)


class Hparams(dict):
    """What HyperPyYAML built of a file; a key it lacks is a user's mistake.

    Arguments
    ---------
    hparams_file : str
        The file.
    built : dict
        Its content.
    """

    def __init__(self, hparams_file, built):
        super().__init__(built)
        self.hparams_file = hparams_file

    def __missing__(self, key):
        """Names the file and the key."""
        raise RecipeError(f"{self.hparams_file} lacks the key {key}: add it.")


def load_recipe(hparams_file, overrides, run_opts, expected_key):
    """Loads a recipe's YAML with the user's values.

    The recipe's folder and the corpus's folder above it become importable,
    for the prepare function that the YAML names. Where the user names no
    output folder, it gets one that no other settings share.

    Arguments
    ---------
    hparams_file : str
        The YAML file, ``recipes/<CORPUS>/<recipe>/hparams/<name>.yaml``.
    overrides : dict
        Values for its keys.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.
    expected_key : str
        A key that the script's YAML has and the other stage's has not.

    Returns
    -------
    hparams : Hparams
        What HyperPyYAML built.
    overrides : dict
        With the output folder, as it is to be recorded.
    settings : dict
        What :func:`read_settings` gave.

    Raises
    ------
    RecipeError
        If the data folder is not given, a value does not fit, or the output
        folder holds a run with other settings, which is left as it is.
    """
    recipe = Path(hparams_file).resolve().parent.parent
    for folder in (recipe, recipe.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    overrides = drop_replaced_entries(hparams_file, overrides)
    with open(hparams_file, encoding="utf-8") as file:
        tree = YAML().load(file)
    if tree.get("corpus_csv") and "corpus_csv" not in overrides:
        overrides.setdefault("data_folder", "")
    data_folder = overrides.get("data_folder", tree["data_folder"])
    corpora = []
    if overrides.get("corpora", tree.get("corpora")) is not None:
        corpora = read_corpora(hparams_file, overrides)
    if isinstance(data_folder, TaggedScalar) or data_folder is None:
        if not corpora:
            raise RecipeError(
                "no corpus given: say where it lies with --data_folder=..., or "
                "give an own corpus table with --corpus_csv=..."
            )
        overrides["data_folder"] = data_folder = ""
    settings = read_settings(hparams_file, overrides, run_opts)
    check_values(settings, expected_key, hparams_file)
    own = overrides.get("corpus_csv", tree.get("corpus_csv"))
    if corpora and not (data_folder or own):
        refuse_folds(settings)
        settings["fold"] = None
    if "output_folder" not in overrides:
        overrides["output_folder"] = default_output_folder(
            settings,
            tree["output_folder"],
            name_data(overrides.get("corpus_csv") or data_folder, corpora),
        )
    # before anything in the folder is written over
    refuse_changes(os.path.join(overrides["output_folder"], "save"), settings)
    try:
        with places_as_mistakes():
            with open(hparams_file, encoding="utf-8") as file:
                hparams = load_hyperpyyaml(
                    file, overrides, overrides_must_match=False
                )
    except RecipeError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise RecipeError(f"{hparams_file}: {' '.join(reason.split())}")
    return Hparams(hparams_file, hparams), overrides, settings


def refuse_folds(settings):
    """Refuses keys that mean nothing without a corpus under test.

    Arguments
    ---------
    settings : dict
        What :func:`read_settings` gave.

    Raises
    ------
    RecipeError
        If a fold, a validation session or what is held out is asked for;
        names the key.
    """
    without = {"fold": 1, "protocol": "paper", "adapter_data": "train"}
    for key, value in without.items():
        if settings.get(key, value) != value:
            raise RecipeError(
                f"{key}={settings[key]} means nothing where the adapter trains "
                "on corpora alone, without folds: leave it out, or give the "
                "corpus under test with --data_folder=... or --corpus_csv=..."
            )


def guard(settings):
    """Keeps the settings that decide what a run computes.

    Arguments
    ---------
    settings : dict
        Plain values by key.

    Returns
    -------
    guarded : dict
        As they come back from a JSON file.
    """
    kept = {k: v for k, v in settings.items() if k not in UNGUARDED_KEYS}
    return json.loads(json.dumps(kept, sort_keys=True))


def refuse_changes(save_folder, settings):
    """Refuses to go on with a run that other settings made.

    Arguments
    ---------
    save_folder : str
        Where the run's checkpoints and its settings.json lie.
    settings : dict
        Values of the keys to compare.

    Raises
    ------
    RecipeError
        If the folder holds a run with other settings; names the keys.
    """
    path = Path(save_folder) / "settings.json"
    if not path.is_file():
        return
    cure = "choose another output_folder, or delete this one to start anew."
    recorded = read_json(path, cure, ("settings", "number_of_epochs"))
    before, guarded = recorded["settings"], guard(settings)
    changed = [
        key
        for key in sorted(guarded)
        if before.get(key, IMPLIED.get(key.rpartition(".")[2])) != guarded[key]
    ]
    ranks, now = recorded.get("num_ranks", 1), count_ranks()
    if ranks != now:
        # another share of the same batch is the same training
        changed = [key for key in changed if not key.endswith("batch_size")]
        for key in (k for k in guarded if k.endswith("batch_size")):
            if key not in before:
                continue
            whole, now_whole = ranks * before[key], now * guarded[key]
            if whole != now_whole and if_main_process():
                logger.warning(
                    f"{save_folder} holds a run of {ranks} ranks, now there "
                    f"are {now}: the batch of all ranks is {now_whole}, not "
                    f"{whole}, unless you set {key} so that it stays."
                )
    # where d_model changed, so did the objects that are built with it
    plain = [k for k in changed if not isinstance(guarded[k], dict)]
    if changed:
        listing = ", ".join(
            f"another value of {LABELS[key]}"
            if key in LABELS
            else f"{key}={json.dumps(before.get(key))} (now "
            f"{json.dumps(guarded[key])})"
            for key in plain or changed
        )
        raise RecipeError(f"{save_folder} holds a run with {listing}: {cure}")
    if settings["number_of_epochs"] < recorded["number_of_epochs"]:
        raise RecipeError(
            f"{save_folder} holds a run with number_of_epochs="
            f"{recorded['number_of_epochs']}, which may grow but not shrink "
            f"to {settings['number_of_epochs']}: {cure}"
        )


@contextmanager
def restored_if_refused(output_folder, save_folder, paths):
    """Puts an earlier run's files back where this one may not go on with it.

    That the corpus has changed is only known once it is prepared.

    Arguments
    ---------
    output_folder : str
        Of the run.
    save_folder : str
        Holds settings.json where there was an earlier run.
    paths : list of str
        Files that are written before the settings are compared.

    Raises
    ------
    RecipeError
        Whatever was raised within.
    """
    before = {}
    if if_main_process() and Path(save_folder, "settings.json").is_file():
        paths = [Path(output_folder, "hyperparams.yaml"), *map(Path, paths)]
        before = {p: p.read_bytes() for p in paths if p.is_file()}
    try:
        yield
    except RecipeError:
        for path, content in before.items():
            if not path.is_file() or path.read_bytes() != content:
                with write_atomically(path) as temporary:
                    Path(temporary).write_bytes(content)
        raise


def record_settings(save_folder, settings):
    """Records the settings of a run, or refuses those that differ.

    Arguments
    ---------
    save_folder : str
        Where the run's checkpoints lie; settings.json is written there.
    settings : dict
        What :func:`read_settings` gave and whatever else the run depends on.

    Raises
    ------
    RecipeError
        See :func:`refuse_changes`.
    """
    refuse_changes(save_folder, settings)
    text = {
        "number_of_epochs": settings["number_of_epochs"],
        "num_ranks": count_ranks(),
        "settings": guard(settings),
    }
    path = Path(save_folder) / "settings.json"
    write_text(path, json.dumps(text, indent=1))


def run_script(main):
    """Runs a script's main function and says a user's mistake in a sentence.

    ``--help`` prints what stands at the top of the script.

    Arguments
    ---------
    main : callable
        Takes the list of command line arguments.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(main.__globals__["__doc__"])
        print("Options are the YAML's keys and those of SpeechBrain:")
        print(" ".join(f"--{key}" for key in RunOptions().keys()))
        return
    with say_mistakes():
        try:
            main(sys.argv[1:])
        except RuntimeError as error:
            # the ranks wait for one that has said why it stopped
            if own_rank() > 0 and is_lost_rank(error):
                sys.exit("error: another rank has stopped.")
            raise
    if is_distributed_initialized():
        torch.distributed.destroy_process_group()
