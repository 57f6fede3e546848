"""The comparison of systems: pairs, table, curve; and the linear probe."""

import json

import numpy as np
import pytest
import torch
from helpers import generator

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.compare import _parse_fractions, _parse_lengths
from speechbrain_wap.evaluation.comparison import (
    PROBE,
    WITH,
    WITHOUT,
    _paired_difference,
    write_comparison,
)
from speechbrain_wap.evaluation.linear_probe import StandardScaler, linear_probe

PNG = b"\x89PNG\r\n\x1a\n"


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


def test_runs_are_paired_by_seed_and_fold():
    results, baseline = make_results(RESULTS), make_results(BASELINE)
    baseline["runs"].reverse()
    found = _paired_difference(results, baseline)
    differences = np.array([0.1, 0.0, 0.1, -0.1, 0.1, 0.2])
    error = differences.std(ddof=1) / np.sqrt(6)
    assert found["runs"] == 6
    assert found["mean"] == pytest.approx(differences.mean())
    assert found["standard_error"] == pytest.approx(error)
    # two-sided, of Student's t with 5 degrees of freedom, found by integration
    t = np.linspace(0, differences.mean() / error, 100_001)
    density = 0.3796066898 * (1 + t**2 / 5) ** -3
    inside = ((density[1:] + density[:-1]) / 2).sum() * t[1]
    assert found["p"] == pytest.approx(1 - 2 * inside, abs=1e-6)
    # each fold once; with 2 degrees of freedom, p has a closed form
    folds = differences.reshape(2, 3).mean(axis=0)
    t = folds.mean() / (folds.std(ddof=1) / np.sqrt(3))
    p = 1 - t / np.sqrt(2 + t**2)
    assert found["p_folds"] == pytest.approx(p) and p > found["p"]
    assert (found["better"], found["equal"], found["worse"]) == (4, 1, 1)


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_differences_that_are_all_the_same_have_no_p(gain):
    shifted = [[ua + gain for ua in row] for row in BASELINE]
    found = _paired_difference(make_results(shifted), make_results(BASELINE))
    assert found["p"] is None and found["p_folds"] is None
    assert found["standard_error"] == pytest.approx(0.0)
    assert found["better" if gain else "equal"] == 6
    found = _paired_difference(make_results([[0.5]]), make_results([[0.7]]))
    assert (found["standard_error"], found["p"]) == (None, None)


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


def test_shares_of_the_labels_are_rows_and_a_curve(tmp_path):
    systems = make_systems(0.05, 1.0)
    said, _ = write_comparison(tmp_path, systems)
    text = (tmp_path / "comparison.md").read_text("utf-8")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "| system | labels | seeds | UA | WA | F1 |"
    row = "| without adapter training | 5 % | 2 |" + " 60.0 ± 1.2 |" * 3
    assert lines[3] == row
    assert "| linear probe | 100 % | 1 | 66.7 | 66.7 | 66.7 |" in lines
    assert "| 5 % | 6 | +6.7 | 4.2 | 0.17 | 0.27 | 4 / 1 / 1 |" in lines
    assert all(line in text for line in said.splitlines())
    assert "is optimistic" in text and "label_fraction" in text
    assert "](comparison.png)" in text
    assert (tmp_path / "comparison.png").read_bytes().startswith(PNG)
    content = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert content["systems"] == systems
    assert [d["label_fraction"] for d in content["differences"]] == [0.05, 1.0]


def test_lengths_of_adapter_training_are_rows_and_a_curve(tmp_path):
    probe, without, trained = make_systems(1.0)
    longer = make_results([[0.7, 0.7, 0.9], [0.6, 1.0, 0.8]])
    lengths = [(5, 41.5, trained), (15, 124.5, {**trained, **longer})]
    systems = [probe, without] + [
        {**entry, "adapter_epochs": epochs, "adapter_steps": steps}
        for epochs, steps, entry in lengths
    ]
    said, _ = write_comparison(tmp_path, systems, lengths=True)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "| system | epochs | steps | seeds | UA | WA | F1 |"
    assert lines[3].startswith("| without adapter training | | | 2 | 60.0")
    assert lines[5].startswith("| with adapter training | 15 | 124 | 2 | 78.3")
    assert (
        "| 5 | 42 | 100 % | 6 | +6.7 | 4.2 | 0.17 | 0.27 | 4 / 1 / 1 |" in lines
    )
    gained = "| 15 | 124 | 100 % | 6 | +18.3 | 1.7 |"
    assert any(line.startswith(gained) for line in lines)
    assert (tmp_path / "comparison_epochs.png").read_bytes().startswith(PNG)
    text = (tmp_path / "comparison_epochs.md").read_text("utf-8")
    assert "steps" in text and "label_fraction" not in text
    assert not (tmp_path / "comparison.md").exists()  # of the labels


@pytest.fixture
def figures(monkeypatch):
    """The axes of the figures in place of the files."""
    axes = []
    monkeypatch.setattr(
        "speechbrain_wap.evaluation.comparison.save_figure",
        lambda figure, path: axes.extend(figure.axes),
    )
    return axes


@pytest.mark.parametrize("steps", [41.5, None])
def test_a_curve_is_over_steps_or_over_epochs_where_they_are_unknown(
    tmp_path, figures, steps
):
    probe, without, trained = make_systems(1.0)
    systems = [probe, without] + [
        {**trained, "adapter_epochs": epochs, "adapter_steps": count}
        for epochs, count in ((5, steps), (10, 83.0))
    ]
    write_comparison(tmp_path, systems, lengths=True)
    (bars,) = figures[0].containers
    assert bars.get_label() == WITH
    assert bars.lines[0].get_xdata().tolist() == (
        [5, 10] if steps is None else [41.5, 83.0]
    )
    # a system that has no adapter is a level line
    level = {line.get_label(): line for line in figures[0].lines}
    assert level[WITHOUT].get_ydata() == pytest.approx([60.0] * 2)
    figures.clear()  # a single length is no curve
    write_comparison(tmp_path, systems[:3], lengths=True)
    assert figures == []


def test_all_labels_alone_are_no_curve(tmp_path):
    said, _ = write_comparison(tmp_path, make_systems(1.0))
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "| system | seeds | UA | WA | F1 |"
    assert "| 100 % | 6 | +6.7 | 4.2 | 0.17 | 0.27 | 4 / 1 / 1 |" in lines
    assert not (tmp_path / "comparison.png").exists()
    text = (tmp_path / "comparison.md").read_text("utf-8")
    assert "png" not in text and "label_fraction" not in text


def test_the_curve_has_a_line_for_each_system_and_one_for_chance(
    tmp_path, figures
):
    write_comparison(tmp_path, make_systems(0.1, 0.5, 1.0))
    (axes,) = figures
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10", "50", "100"]
    lines = {bars.get_label(): bars.lines for bars in axes.containers}
    assert list(lines) == [PROBE, WITHOUT, WITH]
    for name, ua, spread in ((PROBE, 66.67, 0.0), (WITHOUT, 60.0, 1.25)):
        line, _, (bars,) = lines[name]
        assert line.get_xdata() == pytest.approx([10, 50, 100])
        assert line.get_ydata() == pytest.approx([ua] * 3, abs=0.01)
        low, high = bars.get_segments()[0][:, 1]
        assert high - low == pytest.approx(2 * spread, abs=1e-6)
    (chance,) = (x for x in axes.lines if x.get_label() == "chance")
    assert set(chance.get_ydata()) == {50.0}


@pytest.mark.parametrize(
    "parse, text, numbers",
    [
        (_parse_fractions, "0.5,0.1,1.0,0.5", [0.1, 0.5, 1.0]),
        (_parse_fractions, "[1]", [1.0]),
        *((_parse_fractions, text, None) for text in ("0", "1.1", "x", "nan")),
        (_parse_lengths, "15,5,15", [5, 15]),
        *((_parse_lengths, text, None) for text in ("0", "1.5")),
    ],
)
def test_shares_and_lengths_are_read_once_each_the_smallest_first(
    parse, text, numbers
):
    if numbers is not None:
        assert parse(text) == numbers
        return
    option = (
        "label_fractions" if parse is _parse_fractions else "adapter_epochs"
    )
    with pytest.raises(RecipeError, match=f"--{option}={text} must be"):
        parse(text)


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


def test_the_probe_learns_from_the_labels_it_is_given_only():
    cache = FakeCache({"train": 40, "test": 20})
    splits = cache.splits
    assert linear_probe(splits, cache, ["a", "b"])["UA"] == 1.0
    labelled = dict(list(splits["train"].items())[:6])
    expected = linear_probe(splits, cache, ["a", "b"], labelled)
    for key, entry in splits["train"].items():
        if key not in labelled:  # lies that must not matter
            entry["label"] = "a" if entry["label"] == "b" else "b"
    assert linear_probe(splits, cache, ["a", "b"], labelled) == expected
    assert linear_probe(splits, cache, ["a", "b"])["UA"] < 0.5


def test_the_probe_scales_by_all_training_speech_and_reads_it_once(monkeypatch):
    cache, pooled = FakeCache({"train": 40, "test": 20}), {}
    fitted, original = [], StandardScaler.fit
    monkeypatch.setattr(
        "speechbrain_wap.evaluation.linear_probe.StandardScaler.fit",
        lambda self, rows: fitted.append(len(rows)) or original(self, rows),
    )
    for count in (4, 40):
        labelled = dict(list(cache.splits["train"].items())[:count])
        linear_probe(cache.splits, cache, ["a", "b"], labelled, pooled)
    assert fitted == [40, 40]
    assert cache.reads == len(pooled) == 60


@pytest.mark.parametrize(
    "folder, seeds, says",
    [
        ("uni", (1, 2), True),
        ("uni_{seed}", (1, 2), False),
        ("uni", (1,), False),
    ],
)
def test_one_earlier_adapter_for_several_seeds_is_said(
    tmp_path, folder, seeds, says
):
    rows = [[0.5, 0.6], [0.7, 0.6]][: len(seeds)]
    systems = [
        {"system": name, "label_fraction": 1.0, "settings": settings}
        | make_results(rows, seeds)
        for name, settings in (
            (PROBE, {}),
            (WITHOUT, {"adapter_training": False}),
            (WITH, {"adapter_folder": folder}),
        )
    ]
    _, path = write_comparison(tmp_path, systems)
    text = path.read_text("utf-8")
    assert ("One earlier adapter for all seeds" in text) == says
