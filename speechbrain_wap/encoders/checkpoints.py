"""Pretrained checkpoints on disk: found, read and identified."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.files import read_json

# Files of a checkpoint that decide what the encoder computes.
CHECKPOINT_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin"]
# Weights that are not read, by the end of their name, and what to do
OTHER_FORMATS = {
    "adapter_model.safetensors": "merge the LoRA adapter into its base model "
    "(peft's merge_and_unload) and save that",
    **dict.fromkeys(
        (".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".onnx"),
        "convert it to Hugging Face's format (save_pretrained), or take the "
        "model's Hugging Face version",
    ),
    **dict.fromkeys(
        (".incomplete", ".part", ".crdownload", ".download"),
        "it is half a download: finish it",
    ),
}
LFS_POINTER = b"version https://git-lfs"


def resolve_source(source, revision=None):
    """Finds the folder of a checkpoint, from the hub if need be.

    Arguments
    ---------
    source : str
        A folder, or a Hugging Face hub id such as
        "facebook/hubert-large-ll60k".
    revision : str, optional
        Commit, tag or branch of a hub id; "main" if not given.

    Returns
    -------
    folder : str
        A local folder with config.json and weights.
    commit : str or None
        Of a hub id, what its weights are from now on.

    Raises
    ------
    RecipeError
        If it is neither a folder nor to be had from the hub or its cache.
    """
    if os.path.isdir(source):
        if not os.path.isfile(os.path.join(source, "config.json")):
            cure = "give the folder of a Hugging Face checkpoint"
            if os.path.isdir(os.path.join(source, "snapshots")):
                cure = "give one of the folders in its snapshots/"
            elif other := _find_other_format(source):
                cure = f"of {other[0]}, {other[1]}"
            elif _list_weights(source):
                cure = "take config.json from the model that its weights are of"
            raise RecipeError(
                f"encoder_source={source} holds no config.json: {cure}."
            )
        if revision is not None:
            raise RecipeError(
                f"encoder_revision={revision} is for hub ids, but encoder_"
                f"source={source} is a folder: leave it out."
            )
        return str(source), None
    from huggingface_hub import HfApi, snapshot_download

    cached = _list_cached(source)
    chosen = {} if revision is None else {"revision": revision}
    # What is there once is used from then on: it needs no network, and a
    # second run has the same weights.
    with suppress(Exception):
        # a commit may be shortened, as git does it
        found = [c for c in cached if c.startswith(str(revision))]
        if len(found) == 1 and len(revision) >= 7:
            chosen["revision"], folder = found[0], cached[found[0]]
        else:
            folder = snapshot_download(source, local_files_only=True, **chosen)
        _check_complete(folder)
        return folder, _find_commit(folder)
    patterns = CHECKPOINT_FILES
    try:
        files = HfApi().list_repo_files(source, **chosen)
        if any(name.endswith(".safetensors") for name in files):
            patterns = CHECKPOINT_FILES[:2]
        folder = snapshot_download(source, allow_patterns=patterns, **chosen)
        _check_complete(folder)
        return folder, _find_commit(folder)
    except Exception as error:
        if type(error).__name__ == "HFValidationError":  # a path, or an URL
            raise RecipeError(
                f"encoder_source={source} is no folder, nor a hub id, which is "
                "owner/name: check the path or the name."
            )
        reason = first_line(error).rstrip(".")
        at, cure = "", ": check the name and"
        if revision is not None:
            at = f" at encoder_revision={revision}"
            has = f" (the cache has {', '.join(cached)})" if cached else ""
            cure = f": check both{has} and"
        if type(error).__name__ == "GatedRepoError":
            cure = (
                ": accept its terms on its page, log in (hf auth login), check"
            )
        raise RecipeError(
            f"encoder_source={source} is no folder, and neither the hub nor "
            f"its local cache gives it{at} ({reason}){cure} "
            "the network, or download it and give the folder."
        )


def _list_cached(source):
    """Lists what the hub's local cache has of a hub id, folders by commit."""
    from huggingface_hub import constants

    name = "--".join(["models", *source.split("/")])
    folders = Path(constants.HF_HUB_CACHE, name).glob("snapshots/*")
    return {path.name: str(path) for path in sorted(folders)}


def _find_commit(folder):
    """Reads the commit off the name of a folder of the hub's cache."""
    folder = Path(folder)
    return folder.name if folder.parent.name == "snapshots" else None


def read_config(folder, name):
    """Reads one of a checkpoint's JSON files."""
    path = Path(folder, name)
    cure = "download the checkpoint (encoder_source) again."
    with suppress(OSError):
        if _is_pointer(path):
            cure = f"it is a pointer of Git LFS: run git lfs pull in {folder}."
    return read_json(path, cure)


def _is_pointer(path):
    """Tells whether a file only says where Git LFS has its content."""
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _find_other_format(folder):
    """Finds weights that are not read: name and what to do; None without."""
    for name in sorted(os.listdir(folder)):
        for end, cure in OTHER_FORMATS.items():
            if name.endswith(end):
                return name, cure
    return None


def _list_weights(folder):
    """Lists the .safetensors files, or the .bin files where there are none."""
    names = sorted(os.listdir(folder))
    return [n for n in names if n.endswith(".safetensors")] or [
        n for n in names if n.endswith(".bin")
    ]


def _check_weights(folder, weights):
    """Refuses weights that are not there, or not whole; says what to do."""
    place = f"encoder_source={folder}"
    kind = ".bin" if weights and weights[0].endswith(".bin") else ".safetensors"
    for index in Path(folder).glob(f"*{kind}.index.json"):
        listed = read_config(folder, index.name).get("weight_map", {})
        names = sorted(set(listed.values()))
        lost = [name for name in names if name not in weights]
        if lost and index.name.removesuffix(".index.json") not in weights:
            raise RecipeError(
                f"{place} lacks {len(lost)} of the {len(names)} files that "
                f"{index.name} lists, first {lost[0]}: download them."
            )
    if not weights or weights == ["adapter_model.safetensors"]:
        cure = "a .safetensors or .bin file belongs beside config.json"
        if other := _find_other_format(folder):
            cure = f"of {other[0]}, {other[1]}"
        raise RecipeError(f"{place} holds no weights: {cure}.")
    for path in (Path(folder, name) for name in weights):
        if _is_pointer(path):
            raise RecipeError(
                f"{path} is a pointer of Git LFS, not the weights: run git lfs "
                f"pull in {folder}."
            )
        try:
            if kind == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.name.startswith("pytorch_model") and not is_zipfile(path):
                # of torch before 1.6 it may be, which has no end to look for
                if path.read_bytes()[:1] != b"\x80":
                    raise ValueError("it is cut, or no PyTorch file")
        except (SafetensorError, ValueError) as error:
            raise RecipeError(
                f"{path} is not whole ({first_line(error)}): download it again."
            )


def _check_complete(folder):
    """Refuses a folder of the hub's cache that lacks a config or weights."""
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise FileNotFoundError("it holds no config.json")
    _check_weights(folder, _list_weights(folder))


def weights_digest(folder):
    """Hashes the files that hold weights; the same weights, the same digest."""
    weights = _list_weights(folder)
    _check_weights(folder, weights)
    digest = hashlib.sha256()
    for name in weights:
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
