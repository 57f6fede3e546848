"""The comparison of systems: pairs, table, curve; and the linear probe."""

import json

import numpy as np
import pytest

from speechbrain_wap.comparisons.comparison import (
    WITH,
    WITHOUT,
    write_comparison,
)
from speechbrain_wap.comparisons.probe import PROBE


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
