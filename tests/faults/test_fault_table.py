"""The table of faults can be read as it was written."""

from fault_table import hide_places, read_faults, write_fault_table
from recipe_runs import REPOSITORY


def test_faults_are_grouped_by_kind_and_read_back(tmp_path):
    path = tmp_path / "docs" / "faults.md"
    rows = [
        ("bad input", "a | b", "refused:\ntwo lines", "all"),
        ("kill", "while saving", "went on", "epoch 1"),
        ("bad input", "c", "used", "all"),
    ]
    write_fault_table(rows, path)
    assert read_faults(path, "bad input") == ["a | b", "c"]
    assert read_faults(path, "kill") == ["while saving"]
    assert read_faults(path, "else") == []
    text = path.read_text("utf-8")
    assert "## Bad input (2)" in text
    assert r"| a \| b | refused: two lines | all |" in text


def test_temporary_folders_are_not_shown(tmp_path):
    base = tmp_path.parent
    said = f"{tmp_path}/a b.wav and {base}/hubert0, which {REPOSITORY}/x"
    assert hide_places(said, base) == ".../a b.wav and ..., which .../x"
