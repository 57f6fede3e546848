"""Packages that do not go together end in one sentence with the cure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from speechbrain_wap import requirements

RECIPE = Path(__file__).parents[2] / "recipes" / "IEMOCAP" / "wap_adapter"


def test_an_installed_version_out_of_bounds_is_named(monkeypatch):
    """transformers 5.0 to 5.3 fail deep in their own code."""
    needed = {n: Requirement(f"{n}>=5.4,<6") for n in ("transformers", "torch")}
    found = {"transformers": "5.2.0", "torch": "5.5"}
    monkeypatch.setattr(requirements, "_list_requirements", lambda: needed)
    monkeypatch.setattr(requirements, "_find", found.get)
    with pytest.raises(ImportError) as error:
        requirements.check_requirements()
    assert "transformers is 5.2.0" in str(error.value)
    assert "torch is" not in str(error.value)
    assert str(error.value).endswith('pip install "transformers<6,>=5.4"')


@pytest.mark.parametrize(
    "command",
    [
        ["train_adapter.py", "hparams/adapter.yaml", "--data_folder=x"],
        ["-m", "speechbrain_wap", "features", "--help"],
    ],
)
def test_a_torchaudio_that_cannot_be_loaded_ends_in_the_pip_command(
    tmp_path, command
):
    """As a torchaudio built for another torch, or for another CUDA, does."""
    broken = tmp_path / "torchaudio"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('undefined symbol')")
    result = subprocess.run(
        [sys.executable, *command],
        cwd=RECIPE,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{RECIPE.parents[2]}"},
        capture_output=True,
        text=True,
    )
    (last,) = result.stderr.strip().splitlines()
    assert result.returncode == 1
    assert "cannot be loaded" in last and "pip install" in last
    assert "torchaudio" in last and "--force-reinstall" in last
