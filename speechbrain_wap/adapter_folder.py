"""What stage 2 takes over from an adapter training, and what it refuses."""

import hashlib
import json
import os
from pathlib import Path

import torch
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_wap.checkpoints import Checkpointer
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import read_json, write_text
from speechbrain_wap.hparams import guard

logger = get_logger(__name__)

RECORD = "adapter.json"
# What both stages must agree on (shapes alone would not show nhead), and the
# keys that set it.
MODEL_KEYS = {
    "encoder_key": "encoder_source, encoder_layer, encoder_context or "
    "feature_precision",
    "d_model": "d_model",
    "num_layers": "num_layers",
    "nhead": "nhead",
    "d_ffn": "d_ffn",
    "max_frames": "max_frames",
    "layer_weights": "layer_weights",
    "mlp_layers": "mlp_layers",
    "mlp_residual": "mlp_residual",
    "normalize_before": "normalize_before",
    "input_norm": "input_norm",
}


def record_digest(text):
    """Digests a text for comparison.

    Arguments
    ---------
    text : str
        Any text.

    Returns
    -------
    digest : str
        16 hexadecimal digits.
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def utterance_name(utterance_id, entry):
    """Names an utterance whatever the bytes of its audio file are.

    Arguments
    ---------
    utterance_id : str
        The utterance's id.
    entry : dict
        Its manifest entry.

    Returns
    -------
    name : str
        Speaker and id: another copy of a corpus, at another sample rate say,
        has the same.
    """
    return f"{entry['speaker']}/{utterance_id}"


def write_adapter_record(output_folder, settings, train, adapter_data):
    """Records what an adapter is and which utterances it has seen.

    Arguments
    ---------
    output_folder : str
        Output folder of the adapter training.
    settings : dict
        Its settings.
    train : dict
        Manifest entries of its training utterances by id.
    adapter_data : str
        "train" or "all" (D8).
    """
    # the ranks may share the same batch otherwise when a run goes on
    kept = {
        key: value
        for key, value in guard(settings).items()
        if not key.endswith("batch_size")
    }
    record = {
        "model": {key: settings[key] for key in MODEL_KEYS},
        "settings": record_digest(json.dumps(kept)),
        "number_of_epochs": settings["number_of_epochs"],
        "adapter_data": adapter_data,
        "speakers": sorted({entry["speaker"] for entry in train.values()}),
        "utterances": sorted(
            name
            for key, entry in train.items()
            for name in (entry["digest"], utterance_name(key, entry))
        ),
    }
    path = os.path.join(output_folder, RECORD)
    write_text(path, json.dumps(record, indent=1))


def identify_adapter(record):
    """Digests what an adapter is and what it was trained on.

    Arguments
    ---------
    record : dict
        What :func:`write_adapter_record` wrote.

    Returns
    -------
    identity : str
        For the settings guard of what is trained on top of it.
    """
    return record_digest(json.dumps(record, sort_keys=True))


def check_adapter(adapter_folder, settings, splits):
    """Refuses an adapter of another model or one that saw a held-out speaker.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    settings : dict
        Settings of the classifier training.
    splits : dict
        Manifest entries by utterance id of each split.

    Returns
    -------
    identity : str
        Digest of the adapter training's settings, for the settings guard.

    Raises
    ------
    RecipeError
        If there is no adapter, a key differs (named), or the adapter was
        trained on a speaker of the validation or test split (named).
    """
    path = Path(adapter_folder) / RECORD
    if not path.is_file():
        raise RecipeError(
            f"adapter_folder={adapter_folder} holds no {RECORD}: give the "
            "output folder of train_adapter.py."
        )
    keys = ("model", "adapter_data", "speakers", "utterances")
    record = read_json(path, "run train_adapter.py again.", keys)
    identity = identify_adapter(record)
    for key in MODEL_KEYS:
        mine, theirs = settings[key], record["model"].get(key)
        if mine != theirs:
            shown = MODEL_KEYS[key]
            raise RecipeError(
                f"the adapter in {adapter_folder} was trained with {shown}="
                f"{theirs}, but the classifier's is {mine}: make them agree."
            )
    if record["adapter_data"] == "all":
        logger.warning(
            f"The adapter in {adapter_folder} is transductive "
            "(adapter_data=all): it has seen the held-out speakers."
        )
        return identity
    seen, speakers = set(record["utterances"]), set(record["speakers"])
    same_corpus = any(
        entry["digest"] in seen or utterance_name(key, entry) in seen
        for split in splits.values()
        for key, entry in split.items()
    )
    for name in ("valid", "test"):
        for entry in splits[name].values():
            if entry["digest"] in seen or (
                same_corpus and entry["speaker"] in speakers
            ):
                raise RecipeError(
                    f"speaker {entry['speaker']} is in the {name} split, but "
                    f"the adapter in {adapter_folder} was trained on that "
                    "speaker: use the adapter of the same fold and protocol."
                )
    return identity


def read_branch(adapter_folder, branch):
    """Reads what a finished adapter training has learned.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    branch : str
        "teacher" or "student".

    Returns
    -------
    state : dict
        Weights of the WAP-Transformer.

    Raises
    ------
    RecipeError
        If there is no checkpoint, or the training is not finished.
    """
    folder = os.path.join(adapter_folder, "save")
    checkpoint = None
    if os.path.isdir(folder):
        checkpoint = Checkpointer(folder).find_checkpoint()
    if checkpoint is None:
        raise RecipeError(
            f"adapter_folder={adapter_folder} holds no checkpoint: give the "
            "output folder of train_adapter.py."
        )
    record = read_json(
        os.path.join(adapter_folder, RECORD), "run train_adapter.py again."
    )
    epoch, epochs = checkpoint.meta.get("epoch"), record["number_of_epochs"]
    if epoch != epochs:
        raise RecipeError(
            f"the adapter training in {adapter_folder} is not finished (last "
            f"full epoch saved: {epoch or 'none'} of {epochs}): run "
            "train_adapter.py with the same options again."
        )
    state = torch.load(
        checkpoint.paramfiles[branch], map_location="cpu", weights_only=True
    )
    if branch == "teacher":
        state = {k.removeprefix("model."): v for k, v in state.items()}
    return state


def load_branch(adapter_folder, branch, adapter):
    """Starts stage 2 from what stage 1 learned (Sec. II-C, D13).

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    branch : str
        "teacher" or "student".
    adapter : torch.nn.Module
        The WAP-Transformer that takes the weights.

    Raises
    ------
    RecipeError
        If the branch is unknown, the weights do not fit, or see
        :func:`read_branch`.
    """
    if branch not in ("teacher", "student"):
        raise RecipeError(
            f"adapter_branch={branch} is unknown: choose teacher or student."
        )
    state = run_on_main(read_branch, args=[adapter_folder, branch])
    try:
        adapter.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RecipeError(
            f"the adapter in {adapter_folder} does not fit the YAML: {reason}"
        )
