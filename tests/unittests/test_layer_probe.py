"""benchmarks/layer_probe.py: a line for each layer, whatever the files are."""

import shutil
from pathlib import Path

import pytest

from speechbrain_wap.data.preparation import prepare_table
from speechbrain_wap.errors import RecipeError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_each_layer_is_probed_on_the_named_sessions(
    corpus, own_csv, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import layer_probe

    wavs = own_csv.parent / "wav"
    shutil.copy(wavs / "s3f0.wav", wavs / "s4f0.wav")  # two of one digest
    table = prepare_table(**corpus)
    assert table["digest"].duplicated().any()
    options = [str(corpus["corpus_table"]), "--encoder=fbank"]
    options += ["--classes=joy,rage,calm", f"--cache_folder={tmp_path / 'c'}"]
    layer_probe.main([*options, "--sessions=s1,s2"])
    header, _, *lines = capsys.readouterr().out.strip().splitlines()[-3:]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        *("layer", "s1", "s2", "mean")
    ]
    (line,) = lines
    one, two, mean = map(float, line.split("|")[2:5])
    assert mean == pytest.approx((one + two) / 2, abs=0.06)
    with pytest.raises(RecipeError, match="no session s9"):
        layer_probe.main([*options, "--sessions=s9"])
