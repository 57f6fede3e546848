"""benchmarks/layer_probe.py: a line for each layer, whatever the files are."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from encoder_cases import NUM_LAYERS

from speechbrain_wap.data.preparation import prepare_table
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.linear_probe import frame_statistics
from speechbrain_wap.features import FeatureCache

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


def test_each_layer_is_probed_by_its_own_frames(
    corpus, sources, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import layer_probe

    csv, source = str(corpus["corpus_table"]), sources["hubert"]
    table, seen = prepare_table(**corpus), []
    monkeypatch.setattr(
        layer_probe,
        "linear_probe",
        lambda *_, pooled: seen.append(pooled) or {"UA": len(seen) / 10},
    )
    scores = tmp_path / "scores.csv"
    options = [csv, f"--encoder={source}", "--classes=joy,rage,calm"]
    options += ["--sessions=s1", f"--cache_folder={tmp_path / 'c'}"]
    layer_probe.main([*options, f"--output={scores}"])
    lines = capsys.readouterr().out.strip().splitlines()[-NUM_LAYERS - 1 :]
    assert [line.split("|")[1].strip() for line in lines] == [*"0123"]
    assert [*pd.read_csv(scores)["mean"]] == [0.1, 0.2, 0.3, 0.4]
    row = table.to_dict("records")[0]
    for layer, pooled in enumerate(seen):
        encoder = SpeechEncoder(source, layer, "clip")
        cache = FeatureCache(tmp_path / "alone", encoder)
        cache.extract({row["digest"]: row})
        alone = frame_statistics(cache.read(row["digest"]))
        torch.testing.assert_close(pooled[row["digest"]], alone)
