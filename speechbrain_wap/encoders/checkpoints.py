"""Pretrained checkpoints on disk: found, read and identified."""

import hashlib
import os
from contextlib import suppress

from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.files import read_json

# Files of a checkpoint that decide what the encoder computes.
CHECKPOINT_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin"]


def resolve_source(source):
    """Finds the folder of a checkpoint, from the hub if need be.

    Arguments
    ---------
    source : str
        A folder, or a Hugging Face hub id such as
        "facebook/hubert-large-ll60k".

    Returns
    -------
    folder : str
        A local folder with config.json and weights.

    Raises
    ------
    RecipeError
        If it is neither a folder nor to be had from the hub or its cache.
    """
    if os.path.isdir(source):
        if not os.path.isfile(os.path.join(source, "config.json")):
            raise RecipeError(
                f"encoder_source={source} holds no config.json: give the "
                "folder of a Hugging Face checkpoint."
            )
        return str(source)
    from huggingface_hub import HfApi, snapshot_download

    # What is there once is used from then on: it needs no network, and a
    # second run has the same weights.
    with suppress(Exception):
        folder = snapshot_download(source, local_files_only=True)
        if _is_complete(folder):
            return folder
    patterns = CHECKPOINT_FILES
    try:
        files = HfApi().list_repo_files(source)
        if any(name.endswith(".safetensors") for name in files):
            patterns = CHECKPOINT_FILES[:2]
        folder = snapshot_download(source, allow_patterns=patterns)
        if not _is_complete(folder):
            raise FileNotFoundError("it holds no config.json or no weights")
        return folder
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise RecipeError(
            f"encoder_source={source} is no folder, and neither the hub nor "
            f"its local cache gives it ({reason}): check the name and the "
            "network, or download it and give the folder."
        )


def read_config(folder, name):
    """Reads one of a checkpoint's JSON files."""
    cure = "download the checkpoint (encoder_source) again."
    return read_json(os.path.join(folder, name), cure)


def _list_weights(folder):
    """Lists the .safetensors files, or the .bin files where there are none."""
    names = sorted(os.listdir(folder))
    return [n for n in names if n.endswith(".safetensors")] or [
        n for n in names if n.endswith(".bin")
    ]


def _is_complete(folder):
    """Tells whether a folder holds a config and weights."""
    config = os.path.join(folder, "config.json")
    return os.path.isfile(config) and bool(_list_weights(folder))


def weights_digest(folder):
    """Hashes the files that hold weights; the same weights, the same digest."""
    weights = _list_weights(folder)
    if not weights:
        raise RecipeError(
            f"encoder_source={folder} holds no weights: a .safetensors or "
            ".bin file belongs beside config.json."
        )
    digest = hashlib.sha256()
    for name in weights:
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
