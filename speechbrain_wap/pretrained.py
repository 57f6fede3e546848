"""Pretrained checkpoints on disk: found, read and identified."""

import hashlib
import json
import os

from speechbrain_wap.errors import RecipeError

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
    from huggingface_hub.errors import HFValidationError

    patterns = CHECKPOINT_FILES
    try:
        try:
            files = HfApi().list_repo_files(source)
            if any(name.endswith(".safetensors") for name in files):
                patterns = CHECKPOINT_FILES[:2]
        except HFValidationError:
            raise
        except Exception as unreachable:
            # Offline: the hub's local cache may hold it all the same.
            try:
                return snapshot_download(source, local_files_only=True)
            except Exception:
                raise unreachable
        return snapshot_download(source, allow_patterns=patterns)
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise RecipeError(
            f"encoder_source={source} is no folder, and neither the hub nor "
            f"its local cache gives it ({reason}): check the name and the "
            "network, or download it and give the folder."
        )


def read_json(folder, name):
    """Reads a JSON file of a checkpoint.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    name : str
        The file.

    Returns
    -------
    content : dict

    Raises
    ------
    RecipeError
        If it is damaged.
    """
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
    except ValueError as error:
        raise RecipeError(
            f"encoder_source={folder}: {name} is damaged ({error}): download "
            "it again."
        )
    return content


def weights_digest(folder):
    """Hashes the files of a checkpoint that hold weights.

    Arguments
    ---------
    folder : str
        A checkpoint's folder.

    Returns
    -------
    digest : str
        Hexadecimal; the same weights have the same digest anywhere.
    """
    names = sorted(os.listdir(folder))
    weights = [n for n in names if n.endswith(".safetensors")] or [
        n for n in names if n.endswith(".bin")
    ]
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
