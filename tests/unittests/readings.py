"""Readings of the recipes' YAML files, as the tests of settings need them."""

import shutil
from pathlib import Path

from recipe_runs import RECIPES

from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.settings import Reading

STAGES = ("adapter", "classifier")
CORPORA = ("IEMOCAP", "EmoDB", "RAVDESS", "nEMO")
# What is built in no time, and without a download
SMALL = [
    "--data_folder=D",
    "--encoder_source=fbank",
    "--d_model=8",
    "--nhead=2",
    "--d_ffn=8",
    "--num_layers=1",
]


def find_yaml(stage="adapter", corpus="IEMOCAP"):
    """Names a recipe's YAML file."""
    return str(RECIPES / corpus / "wap_adapter" / "hparams" / f"{stage}.yaml")


FILES = [find_yaml(stage) for stage in STAGES]


def read(stage, *options, corpus="IEMOCAP"):
    """Reads a YAML, a recipe's by its stage or any by its path."""
    is_path = str(stage).endswith(".yaml")
    path = stage if is_path else find_yaml(stage, corpus)
    return Reading(read_command([str(path), *options]))


def copy_yaml(folder, stage, *changes):
    """Copies a YAML and its systems; changes are pairs of texts, old and new.

    The folder above is importable once the file is built, as a recipe's is.
    """
    hparams = Path(folder) / "hparams"
    shutil.copytree(Path(find_yaml()).parent, hparams, dirs_exist_ok=True)
    path = hparams / f"{stage}.yaml"
    text = path.read_text("utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    return path
