"""The source archive, and the wheel of it, work by themselves."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run(*command, cwd):
    """Runs a Python command outside the checkout; returns what it printed."""
    result = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def read_version():
    """Reads the version without importing the package."""
    text = (REPOSITORY / "speechbrain_wap" / "__init__.py").read_text("utf-8")
    return re.search(r'__version__ = "(.+)"', text)[1]


def test_the_version_is_the_same_everywhere():
    changes = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## (.+)", changes, re.MULTILINE)[1] == read_version()
    citation = (REPOSITORY / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {read_version()}\n" in citation


def test_the_package_works_without_the_checkout(tmp_path, monkeypatch):
    """Installed into an empty folder, it is found there and does something.

    pip makes a wheel of the source archive, which has no more than that has.
    """
    monkeypatch.delenv("PYTHONPATH", raising=False)
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "speechbrain_wap", source / "speechbrain_wap")
    run("setup.py", "-q", "sdist", cwd=source)
    (archive,) = (source / "dist").iterdir()
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "--no-index", "--target", site, archive, cwd=tmp_path)
    installed = {path.name.split("-")[0] for path in site.iterdir()}
    assert installed == {"speechbrain_wap"}  # no tests, demo or recipes
    (record,) = site.glob("*.dist-info")
    assert f"-{read_version()}." in record.name
    assert len(list(record.rglob("LICENSE"))) == 1
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = (
        "import speechbrain_wap, torch\n"
        "from speechbrain_wap.comparisons.table1 import TABLE, read_table\n"
        "read_table(TABLE)\n"
        "from speechbrain_wap.pooling import StatisticalAttentivePooling\n"
        "pooling = StatisticalAttentivePooling(4)\n"
        "z = pooling(torch.ones(2, 3, 4), torch.ones(2))\n"
        "print(speechbrain_wap.__file__, z.shape[1])"
    )
    assert run("-c", code, cwd=tmp_path).split() == [
        str(site / "speechbrain_wap" / "__init__.py"),
        "32",
    ]
    for name in ("page.html", "page.js"):
        assert (site / "speechbrain_wap" / "reports" / name).is_file()
    assert "compare" in run("-m", "speechbrain_wap", "--help", cwd=tmp_path)
