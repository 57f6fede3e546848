"""A run goes on with the settings that it began with, or not at all.

What decides the numbers is compared: every plain value of the YAML and the run
options, a user's own keys among them, and of what is wired the class's name,
without its module, which may move.
"""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import read_json, write_atomically, write_text
from speechbrain_wap.training.ranks import count_ranks

logger = get_logger(__name__)

RECORD = "settings.json"
# Which content settings.json has; an earlier one cannot be compared
LAYOUT = 2
# Where things lie
PATH_KEYS = {
    "data_folder",
    "corpus_csv",
    "adapter_folder",
    "output_folder",
    "save_folder",
    "cache_folder",
    "train_log",
    "train_annotation",
    "valid_annotation",
    "test_annotation",
}
# How data are loaded, what is logged, how far a run has come
UNGUARDED_KEYS = {
    # the encoder's key has a digest of the weights
    "encoder_revision",
    "encoder.revision",
    "skip_prep",
    "max_skipped",
    "num_workers",
    "feature_workers",
    "dataloader_options",
    "valid_dataloader_options",
    "train_logger",
    "checkpointer",
    "ckpt_interval_minutes",
    "probe_every",
    "probe_utterances",
}
# Compared otherwise: the encoder by its key; epochs may only grow
NAMED_ONLY = {"encoder_source", "number_of_epochs"}
# How errors call what is not a key by itself
LABELS = {
    "encoder_key": "the encoder (encoder_source, encoder_layer, "
    "encoder_context, feature_precision or their code)",
    "data": "the corpus (data_folder, corpus_csv or corpora)",
    "adapter_identity": "the adapter (adapter_folder)",
    "class_names": "classes",
}


def is_guarded(key):
    """Tells whether a setting decides what a run computes.

    Example
    -------
    >>> is_guarded("lr"), is_guarded("my_own_key"), is_guarded("cache_folder")
    (True, True, False)
    """
    first = key.partition(".")[0]
    if key.endswith(".batch_size"):
        return True
    return not {first, key} & (PATH_KEYS | UNGUARDED_KEYS | NAMED_ONLY)


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
    kept = {key: value for key, value in settings.items() if is_guarded(key)}
    return json.loads(json.dumps(kept, sort_keys=True))


def select_named(settings):
    """Keeps the settings that a default folder's name tells apart."""
    return {
        key: value
        for key, value in settings.items()
        if is_guarded(key)
        or key in NAMED_ONLY
        or key == "adapter_folder"
        or (key == "encoder_revision" and value is not None)
    }


def name_encoder(settings):
    """Names a run's encoder and its layer; an own module has no layer.

    Arguments
    ---------
    settings : dict
        Plain values by key.

    Returns
    -------
    name : str
    layer : int, str, list or None
    """
    if settings["encoder"] != "SpeechEncoder":  # what the YAML wires
        return settings["encoder"], None
    source = os.path.basename(os.path.normpath(settings["encoder_source"]))
    return source, settings["encoder_layer"]


def digest_settings(settings, data=""):
    """Digests what tells runs apart.

    Arguments
    ---------
    settings : dict
        Plain values by key.
    data : str
        What the run is about.

    Returns
    -------
    digest : str
        Eight hexadecimal digits.

    Example
    -------
    >>> one, other = {"lr": 1, "output_folder": "a"}, {"lr": 1}
    >>> digest_settings(one) == digest_settings(other)
    True
    """
    text = json.dumps([select_named(settings), data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_output_folder(settings, root, data):
    """Names a folder that no other settings share.

    Arguments
    ---------
    settings : dict
        Plain values by key.
    root : str
        The YAML's own output folder, under which it lies.
    data : str
        What the run is about, which is part of the name's digest.

    Returns
    -------
    folder : str
        root/encoder-layer/fold-seed-digest; a universal adapter has no fold.
    """
    digest = digest_settings(settings, data)
    source, layer = name_encoder(settings)
    layers = layer if isinstance(layer, list) else [layer]
    encoder = source
    if layer is not None:
        encoder += f"-layer_{'+'.join(map(str, layers))}"
    fold = "no_fold" if settings["fold"] is None else f"fold{settings['fold']}"
    run = f"{fold}-seed{settings['seed']}-{digest}"
    return os.path.join(root, encoder, run)


def name_data(data, corpora):
    """Names what a run is about, for the digest in its default folder's name.

    Arguments
    ---------
    data : str
        The corpus under test: its folder or its table.
    corpora : list of dict
        Further tables.

    Returns
    -------
    name : str
    """
    further = [[item["table"], item["speakers"]] for item in corpora]
    return data + (json.dumps(further) if further else "")


def refuse_changes(save_folder, settings, is_complete=False):
    """Refuses to go on with a run that other settings made.

    Arguments
    ---------
    save_folder : str
        Where the run's checkpoints and its settings.json lie.
    settings : dict
        Values of the keys to compare.
    is_complete : bool
        Whether a key that is not there any more is a change, too; before the
        corpus is prepared, some are not known yet.

    Raises
    ------
    RecipeError
        If the folder holds a run with other settings; names the keys.
    """
    path = Path(save_folder) / RECORD
    if not path.is_file():
        return
    cure = "choose another output_folder, or delete this one to start anew."
    recorded = read_json(path, cure, ("settings", "number_of_epochs"))
    if recorded.get("layout") != LAYOUT:
        raise RecipeError(
            f"{save_folder} holds a run of an earlier version of "
            f"speechbrain-wap: go on with that version, or {cure}"
        )
    before, guarded = recorded["settings"], guard(settings)
    changed = [
        key
        for key in sorted(guarded)
        if key not in before or before[key] != guarded[key]
    ]
    if is_complete:
        changed += sorted(before.keys() - guarded.keys())
    ranks, now = recorded["num_ranks"], count_ranks()
    if ranks != now:
        # another share of the same batch is the same training
        changed = [key for key in changed if not key.endswith("batch_size")]
        for key in (k for k in guarded if k.endswith("batch_size")):
            if key not in before or isinstance(guarded[key], str):
                continue  # a reference to another
            whole, now_whole = ranks * before[key], now * guarded[key]
            if whole != now_whole and if_main_process():
                logger.warning(
                    f"{save_folder} holds a run of {ranks} ranks, now there "
                    f"are {now}: the batch of all ranks is {now_whole}, not "
                    f"{whole}, unless you set {key} so that it stays."
                )
    if "adapter_training" in changed:  # all keys of stage 1 come or go with it
        changed = [key for key in changed if not key.startswith("adapter.")]
    if changed:
        listing = ", ".join(
            f"another value of {LABELS[key]}"
            if key in LABELS
            else f"{key}={json.dumps(before.get(key))} (now "
            f"{json.dumps(guarded.get(key))})"
            for key in changed
        )
        raise RecipeError(f"{save_folder} holds a run with {listing}: {cure}")
    if settings["number_of_epochs"] < recorded["number_of_epochs"]:
        raise RecipeError(
            f"{save_folder} holds a run with number_of_epochs="
            f"{recorded['number_of_epochs']}, which may grow but not shrink "
            f"to {settings['number_of_epochs']}: {cure}"
        )


def record_settings(save_folder, settings):
    """Writes a run's settings.json, or refuses as :func:`refuse_changes` does.

    Arguments
    ---------
    save_folder : str
        Where the run's checkpoints lie.
    settings : dict
        Plain values by key, and whatever else the run depends on.
    """
    refuse_changes(save_folder, settings, is_complete=True)
    record = {
        "layout": LAYOUT,
        "number_of_epochs": settings["number_of_epochs"],
        "num_ranks": count_ranks(),
        "settings": guard(settings),
    }
    write_text(Path(save_folder) / RECORD, json.dumps(record, indent=1))


@contextmanager
def restored_if_refused(save_folder, paths):
    """Puts an earlier run's files back where this one may not go on with it.

    That the corpus has changed is only known once it is prepared.

    Arguments
    ---------
    save_folder : str
        Holds settings.json where there was an earlier run.
    paths : list of str
        Files that are written before the settings are compared.
    """
    before = {}
    if if_main_process() and Path(save_folder, RECORD).is_file():
        before = {
            path: path.read_bytes()
            for path in map(Path, paths)
            if path.is_file()
        }
    try:
        yield
    except RecipeError:
        for path, content in before.items():
            if not path.is_file() or path.read_bytes() != content:
                with write_atomically(path) as temporary:
                    Path(temporary).write_bytes(content)
        raise
