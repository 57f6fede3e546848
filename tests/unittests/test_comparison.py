"""The comparison of systems: pairs, table, curve; and the linear probe."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import generator

from speechbrain_wap.comparisons.comparison import (
    WITH,
    WITHOUT,
    write_comparison,
)
from speechbrain_wap.comparisons.side_by_side import PROBE, probe_folds
from speechbrain_wap.data.folds import FoldPlan
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.evaluation.linear_probe import StandardScaler, linear_probe
from speechbrain_wap.features.extraction import cut_long_utterances


def make_results(scores, seeds=(1, 2)):
    """Results whose UA is given by seed and fold."""
    runs = [
        {"seed": seed, "fold": fold, "UA": ua}
        for seed, row in zip(seeds, scores)
        for fold, ua in enumerate(row, start=1)
    ]
    means = [float(np.mean(row)) for row in scores]
    per_seed = [{"seed": s, "UA": m} for s, m in zip(seeds, means)]
    return {
        "classes": ["angry", "sad"],
        "runs": runs,
        "mean": dict.fromkeys(("UA", "WA", "F1"), float(np.mean(means))),
        "std": dict.fromkeys(("UA", "WA", "F1"), 0.0125),
        "per_seed": per_seed,
    }


BASELINE = [[0.5, 0.6, 0.7], [0.4, 0.8, 0.6]]
RESULTS = [[0.6, 0.6, 0.8], [0.3, 0.9, 0.8]]


def make_systems(*fractions):
    """Three systems at each share of the labels."""
    return [
        {"system": name, "label_fraction": fraction, **results}
        for fraction in fractions
        for name, results in (
            (PROBE, make_results([[0.5, 0.6, 0.9]])),
            (WITHOUT, make_results(BASELINE)),
            (WITH, make_results(RESULTS)),
        )
    ]


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Writes a comparison; gives its table's lines, its text and the axes."""
    axes = []
    monkeypatch.setattr(
        "speechbrain_wap.comparisons.comparison.save_figure",
        lambda figure, path: axes.extend(figure.axes),
    )

    def run(systems, **kwargs):
        axes.clear()
        said, path = write_comparison(tmp_path, systems, **kwargs)
        text = path.read_text("utf-8")
        assert all(line in text for line in said.splitlines())
        assert bool(axes) == (path.with_suffix(".png").name in text)
        results = json.loads(path.with_suffix(".json").read_text("utf-8"))
        assert results["systems"] == systems
        lines = [" ".join(line.split()) for line in said.splitlines()]
        return lines, text, axes

    return run


def test_shares_of_the_labels_are_rows_and_a_curve(compare):
    lines, text, (axes,) = compare(make_systems(0.05, 0.5, 1.0))
    assert lines[0] == "| system | labels | seeds | UA | WA | F1 |"
    row = "| without adapter training | 5 % | 2 |" + " 60.0 ± 1.2 |" * 3
    assert lines[3] == row
    assert "| linear probe | 100 % | 1 | 66.7 | 66.7 | 66.7 |" in lines
    # each fold once; of 8 changes of signs, 4 are as extreme
    assert "| 5 % | 3 | +6.7 | -12.3 to +25.6 | 0.5 | 1 |" in lines
    assert "is optimistic" in text and "label_fraction" in text
    # a line for each system, and one for chance
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "50", "100"]
    curves = {bars.get_label(): bars.lines for bars in axes.containers}
    assert list(curves) == [PROBE, WITHOUT, WITH]
    for name, ua, spread in ((PROBE, 66.67, 0.0), (WITHOUT, 60.0, 1.25)):
        line, _, (bars,) = curves[name]
        assert line.get_xdata() == pytest.approx([5, 50, 100])
        assert line.get_ydata() == pytest.approx([ua] * 3, abs=0.01)
        low, high = bars.get_segments()[0][:, 1]
        assert high - low == pytest.approx(2 * spread, abs=1e-6)
    (chance,) = (x for x in axes.lines if x.get_label() == "chance")
    assert set(chance.get_ydata()) == {50.0}
    # all labels alone are no curve
    lines, text, axes = compare(make_systems(1.0))
    assert lines[0] == "| system | seeds | UA | WA | F1 |"
    assert "label_fraction" not in text and not axes


@pytest.mark.parametrize("steps", [41.5, None])
def test_lengths_of_adapter_training_are_rows_and_a_curve(compare, steps):
    probe, without, trained = make_systems(1.0)
    longer = make_results([[0.7, 0.7, 0.9], [0.6, 1.0, 0.8]])
    lengths = [(5, steps, trained), (15, 124.5, {**trained, **longer})]
    systems = [probe, without] + [
        {**entry, "adapter_epochs": epochs, "adapter_steps": count}
        for epochs, count, entry in lengths
    ]
    lines, text, (axes,) = compare(systems, lengths=True)
    assert "steps" in text and "label_fraction" not in text
    (bars,) = axes.containers
    assert bars.get_label() == WITH
    # over epochs where steps are unknown
    places = bars.lines[0].get_xdata().tolist()
    assert places == ([5, 15] if steps is None else [41.5, 124.5])
    # a system that has no adapter is a level line
    level = {line.get_label(): line for line in axes.lines}
    assert level[WITHOUT].get_ydata() == pytest.approx([60.0] * 2)
    if steps is not None:
        assert lines[0] == "| system | epochs | steps | seeds | UA | WA | F1 |"
        assert lines[3].startswith("| without adapter training | | | 2 | 60.0")
        row = "| with adapter training | 15 | 124 | 2 | 78.3"
        assert lines[5].startswith(row)
        gained = "| 15 | 124 | 100 % | 3 | +18.3 |"
        assert any(line.startswith(gained) for line in lines)
    assert compare(systems[:3], lengths=True)[2] == []  # one is no curve


@pytest.mark.parametrize(
    "folder, num_seeds, says",
    [("uni", 2, True), ("uni_{seed}", 2, False), ("uni", 1, False)],
)
def test_one_earlier_adapter_for_several_seeds_is_said(
    compare, folder, num_seeds, says
):
    systems = [
        {"system": name, "label_fraction": 1.0, "settings": settings}
        | make_results([[0.5, 0.6], [0.7, 0.6]][:num_seeds])
        for name, settings in (
            (PROBE, {}),
            (WITHOUT, {"adapter_training": False}),
            (WITH, {"adapter_folder": folder}),
        )
    ]
    _, text, _ = compare(systems)
    assert ("One earlier adapter for all seeds" in text) == says


# The linear probe ------------------------------------------------------------


class FakeCache:
    """Frames whose mean tells the class, and how often they are read."""

    def __init__(self, sizes):
        self.reads = 0
        self.feats, self.splits = {}, {}
        source = generator()
        for split, size in sizes.items():
            self.splits[split] = {}
            for i in range(size):
                label = "ab"[i % 2]
                shift = 1.0 if label == "a" else -1.0
                feats = shift + torch.randn(9, 4, generator=source)
                self.feats[f"{split}{i}"] = feats
                entry = {"digest": f"{split}{i}", "label": label}
                self.splits[split][f"{split}{i}"] = entry

    def read(self, digest):
        self.reads += 1
        return self.feats[digest]


def test_the_probe_learns_from_the_labels_it_is_given_only(monkeypatch):
    cache, pooled = FakeCache({"train": 40, "test": 20}), {}
    fitted, original = [], StandardScaler.fit
    monkeypatch.setattr(
        "speechbrain_wap.evaluation.linear_probe.StandardScaler.fit",
        lambda self, rows: fitted.append(len(rows)) or original(self, rows),
    )
    splits = cache.splits
    assert linear_probe(splits, cache, ["a", "b"], None, pooled)["UA"] == 1.0
    labelled = dict(list(splits["train"].items())[:6])
    expected = linear_probe(splits, cache, ["a", "b"], labelled, pooled)
    # but scales by all training speech, which is read once
    assert fitted == [40, 40] and cache.reads == len(pooled) == 60
    for key, entry in splits["train"].items():
        if key not in labelled:  # lies that must not matter
            entry["label"] = "a" if entry["label"] == "b" else "b"
    assert linear_probe(splits, cache, ["a", "b"], labelled) == expected
    assert linear_probe(splits, cache, ["a", "b"])["UA"] < 0.5


def test_the_probe_reads_long_utterances_as_they_were_cut(
    own_csv, make_wav, prepare_classifier, manifests, make_cache, tmp_path
):
    for seed, key in enumerate(["s1f0", "s2f0"], 90):  # to test and to train on
        make_wav(own_csv.parent / "wav" / f"{key}.wav", 3.0, seed=seed)
    splits, cache = prepare_classifier(), make_cache(SpeechEncoder("fbank"))
    cut = cut_long_utterances(splits, [cache], 20)
    assert cut != splits
    entries = [e for split in cut.values() for e in split.values()]
    cache.extract({entry["digest"]: entry for entry in entries})
    place = tmp_path / "seed1" / "fold1" / "classifier"
    place.mkdir(parents=True)
    for path in manifests.values():
        shutil.copy(path, place)
    hparams = {"feature_cache": cache, "classes": None, "max_frames": 20}
    hparams |= {"long_utterances": "cut", "fold_plan": FoldPlan(1)}
    plan = SimpleNamespace(output_folder=tmp_path)
    pooled = {}
    runs = [{"seed": 1, "fold": 1, "session": "s1", "n": 4}]
    probe_folds(hparams, plan, runs, 1.0, pooled)
    assert pooled.keys() == {entry["digest"] for entry in entries}
