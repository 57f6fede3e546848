"""What SpeechBrain's own checks ask of a recipe (tests/recipes/*.csv)."""

import csv
import re
import shlex
import shutil

import numpy as np
import pytest
import soundfile
from recipe_runs import RECIPES, REPOSITORY, load_script
from ruamel.yaml import YAML
from speechbrain.utils.run_opts import RunOptions

ROWS = [
    row
    for table in sorted((REPOSITORY / "tests" / "recipes").glob("*.csv"))
    for row in csv.DictReader(table.read_text("utf-8").splitlines())
]
SAMPLES = "tests/samples/annotation/emotion.csv"


def name_row(row):
    """Names a row by its YAML."""
    return re.sub(r"recipes/|wap_adapter/hparams/", "", row["Hparam_file"])


each_row = pytest.mark.parametrize("row", ROWS, ids=name_row)


def test_every_yaml_is_listed_once():
    yamls = RECIPES.glob("*/wap_adapter/hparams/*.yaml")
    assert sorted(row["Hparam_file"] for row in ROWS) == sorted(
        path.relative_to(REPOSITORY).as_posix() for path in yamls
    )


@each_row
def test_the_files_of_a_row_exist(row):
    for field in ("Script_file", "Hparam_file", "Data_prep_file"):
        assert (REPOSITORY / row[field]).is_file()
    readme = (REPOSITORY / row["Readme_file"]).read_text("utf-8")
    assert row["Dataset"] in readme


@each_row
def test_every_key_is_used_by_its_script(row):
    text = (REPOSITORY / row["Hparam_file"]).read_text("utf-8")
    script = (REPOSITORY / row["Script_file"]).read_text("utf-8")
    # cross_validate.py's, of which what is laid out upstream has nothing
    others = {*RunOptions().as_dict(), "adapter_training"}
    for key in set(YAML().load(text)) - others:
        uses = rf'\["{key}"\]|hparams\.{key}\b|modules\.{key}\b'
        is_referred_to = re.search(rf"!ref.*<{key}[>\[]", text)
        is_applied = re.search(rf"^{key}: !apply", text, re.MULTILINE)
        assert is_referred_to or is_applied or re.search(uses, script), key


@each_row
def test_a_row_runs_as_upstream_starts_it(row, tmp_path, monkeypatch):
    """In the root of a checkout that has SpeechBrain's samples."""
    samples = tmp_path / SAMPLES
    samples.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / SAMPLES, samples)
    generator = np.random.default_rng(0)
    for entry in csv.DictReader(samples.read_text("utf-8").splitlines()):
        wav = samples.parent / entry["wav"]
        wav.parent.mkdir(exist_ok=True)
        soundfile.write(wav, generator.normal(0.0, 0.1, 16000), 16000)
    shutil.copytree(RECIPES, tmp_path / "recipes", symlinks=True)
    monkeypatch.chdir(tmp_path)
    script = load_script(row["Script_file"].rsplit("/", 1)[1])
    script.main(
        [row["Hparam_file"], *shlex.split(row["test_debug_flags"])]
        + ["--device=cpu", "--debug", "--debug_persistently"]
        + ["--output_folder=output", "--noprogressbar"]
    )
    wanted = re.fullmatch(r"file_exists=\[(.*)\]", row["test_debug_checks"])[1]
    for name in wanted.split(","):
        assert (tmp_path / "output" / name).is_file(), name
