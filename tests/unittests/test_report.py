"""The report: means and spreads over what they are said to be over."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechbrain_wap.evaluation.report import (
    STYLES,
    draw_confusion,
    markdown_table,
    percent,
    read_histories,
    score_table,
    sum_up,
    total_confusion,
    write_report,
)

PNG = b"\x89PNG\r\n\x1a\n"


def make_run(fold, seed, score, confusion=((1, 0), (0, 1))):
    return {
        "classes": ["angry", "sad"],
        "fold": fold,
        "seed": seed,
        "session": f"s{fold}",
        "n": int(np.sum(confusion)),
        "UA": score,
        "WA": score / 2,
        "F1": score / 4,
        "confusion": [list(row) for row in confusion],
        "more": "not kept",
    }


@pytest.fixture
def one_seed():
    return [make_run(1, 7, 0.5), make_run(2, 7, 0.6), make_run(3, 7, 1.0)]


@pytest.fixture
def two_seeds(one_seed):
    return [*one_seed, *(make_run(f, 8, 0.2 * f) for f in (1, 2, 3))]


def test_with_one_seed_the_spread_is_over_folds(one_seed):
    results = sum_up(one_seed, {"lr": 0.1})
    assert results["mean"]["UA"] == pytest.approx(0.7)
    assert results["mean"]["WA"] == pytest.approx(0.35)
    assert results["mean"]["F1"] == pytest.approx(0.175)
    assert results["std"]["UA"] == pytest.approx(
        np.std([5, 6, 10], ddof=1) / 10
    )
    assert results["settings"] == {"lr": 0.1, "std_over": "folds"}


def test_with_several_seeds_the_spread_is_over_seeds(two_seeds):
    results = sum_up(two_seeds, {})
    assert results["mean"]["UA"] == pytest.approx((0.7 + 0.4) / 2)
    assert results["std"]["UA"] == pytest.approx(np.std([0.7, 0.4], ddof=1))
    assert results["std"]["WA"] == pytest.approx(results["std"]["UA"] / 2)
    assert results["settings"]["std_over"] == "seeds"
    assert results["per_seed"] == [
        {"seed": seed, "UA": pytest.approx(ua), **rest}
        for seed, ua, rest in [
            (7, 0.7, {"WA": pytest.approx(0.35), "F1": pytest.approx(0.175)}),
            (8, 0.4, {"WA": pytest.approx(0.2), "F1": pytest.approx(0.1)}),
        ]
    ]


def test_each_seed_counts_the_same_however_many_folds_it_has(one_seed):
    results = sum_up([*one_seed, make_run(1, 8, 0.1)], {})
    assert results["mean"]["UA"] == pytest.approx((0.7 + 0.1) / 2)


def test_a_single_run_has_no_spread():
    results = sum_up([make_run(1, 7, 0.5)], {})
    assert results["std"] == {"UA": 0.0, "WA": 0.0, "F1": 0.0}


def test_results_hold_the_interfaces_fields_and_are_plain_json(two_seeds):
    results = sum_up(two_seeds, {"folds": [1, 2, 3]})
    assert json.loads(json.dumps(results)) == results
    assert list(results) == [
        *["classes", "runs", "mean", "std", "per_seed", "settings"]
    ]
    assert results["classes"] == ["angry", "sad"]
    assert len(results["runs"]) == 6
    for run in results["runs"]:
        assert set(run) == {
            *["fold", "seed", "session", "n", "UA", "WA", "F1", "confusion"]
        }


def test_confusions_are_added_cell_by_cell():
    runs = [
        make_run(1, 7, 0.5, ((1, 2), (3, 4))),
        make_run(2, 7, 0.5, ((10, 20), (30, 40))),
    ]
    results = sum_up(runs, {})
    assert total_confusion(results).tolist() == [[11, 22], [33, 44]]


def test_a_markdown_table_keeps_its_columns_in_line():
    text = markdown_table(["name", "n"], [["a", 1], ["longer", 100]])
    lines = text.split("\n")
    assert lines[0] == "| name   | n   |"
    assert lines[1] == "|--------|-----|"
    assert lines[3] == "| longer | 100 |"
    assert len({len(line) for line in lines}) == 1


def test_scores_are_shown_in_percent_with_mean_and_spread(one_seed):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in score_table(sum_up(one_seed, {})).split("\n")
    ]
    assert rows[0] == [
        "fold",
        "held-out session",
        "seed",
        "n",
        "UA",
        "WA",
        "F1",
    ]
    assert rows[2] == ["1", "s1", "7", "2", "50.0", "25.0", "12.5"]
    assert rows[-1][0] == "mean"
    assert rows[-1][3] == "6"
    assert rows[-1][4] == "70.0 ± 26.5"
    assert percent(0.99949) == "99.9"


@pytest.fixture
def folders(tmp_path):
    """Two runs' folders of each stage, with histories of two epochs."""
    adapters, classifiers = {}, {}
    for fold in (1, 2):
        name = f"fold {fold}, seed 7"
        adapters[name] = str(tmp_path / "runs" / f"adapter{fold}")
        classifiers[name] = str(tmp_path / "runs" / f"classifier{fold}")
        train = {
            "rec_loss": 0.111,
            "pce_loss": 0.222,
            "agreement": 0.333,
            "perplexity": 44.4,
            "used": 0.555,
            "teacher_spread": 0.666,
        }
        write_history(adapters[name], train, None)
        write_history(
            classifiers[name], {"loss": 1.0}, {"loss": 1.1, "UA": 0.5}
        )
    return adapters, classifiers


def write_history(folder, train, valid):
    Path(folder).mkdir(parents=True)
    rows = [{"epoch": e, "train": train, "valid": valid} for e in (1, 2)]
    Path(folder, "history.json").write_text(json.dumps(rows))


def test_a_report_comes_with_results_and_figures(tmp_path, folders, one_seed):
    results = sum_up(one_seed, {"lr": 0.1, "encoder": "fbank"})
    out = tmp_path / "out"
    text = write_report(out, results, *folders, ["Note one.", "Note two."])
    assert (out / "report.md").read_text("utf-8") == text
    assert json.loads((out / "results.json").read_text("utf-8")) == results
    pictures = ["confusion.png", "classifier_curves.png", "adapter_curves.png"]
    for picture in pictures:
        assert (out / picture).read_bytes().startswith(PNG)
        assert f"({picture})" in text
    for part in (
        "UA **70.0 %**",
        "standard deviation over folds",
        "- Note one.\n- Note two.",
        score_table(results),
        "| fold 1, seed 7 | 2      | 0.111    | 0.222    | 0.333",
        '| encoder  | "fbank" |',
        "| lr       | 0.1     |",
    ):
        assert part in text
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*pictures, "report.md", "results.json"]
    )


def test_the_probe_is_in_table_and_curves_where_there_is_one(
    tmp_path, folders, one_seed, monkeypatch
):
    """One run as it is written now, one of before there was a probe."""
    path = Path(folders[0]["fold 1, seed 7"], "history.json")
    _, second = json.loads(path.read_text())
    numbers = {f"rank_{branch}": 5.5 for branch in STYLES}
    numbers |= {f"probe_{branch}": 0.25 for branch in STYLES}
    rows = [
        {"epoch": 0, **numbers, "train": None, "valid": None},
        {"epoch": 1, **dict.fromkeys(numbers), **{"train": second["train"]}},
        {**second, **numbers, "probe_raw": 0.876, "probe_teacher": 0.5},
    ]
    path.write_text(json.dumps(rows))
    drawn = {}
    monkeypatch.setattr(
        "speechbrain_wap.evaluation.report.save_figure",
        lambda figure, path: drawn.setdefault(path.name, figure),
    )
    text = write_report(tmp_path, sum_up(one_seed, {}), *folders, [])
    header = next(x for x in text.splitlines() if x.startswith("| run "))
    assert header.split()[-6:-1:2] == [
        *("probe_raw", "probe_student", "probe_teacher")
    ]
    runs = [x.split() for x in text.splitlines() if ", seed 7 |" in x]
    assert runs[0][-6:-1:2] == ["87.6", "25.0", "50.0"]
    assert runs[1][-6:-1:2] == ["-", "-", "-"]
    panels = {
        axes.get_title(): axes.get_lines()
        for axes in drawn["adapter_curves.png"].axes
    }
    (probe,) = [v for k, v in panels.items() if k.startswith("probe UA")]
    curves = {
        line.get_linestyle(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in probe[:3]
    }
    assert curves == {
        "-": ([0, 2], [0.25, 0.5]),
        "--": ([0, 2], [0.25, 0.25]),
        ":": ([0, 2], [0.25, 0.876]),
    }
    # lines of one run have one colour, and those of training no epoch 0
    assert len({line.get_color() for line in probe[:3]}) == 1
    assert len({line.get_color() for line in probe}) == 2
    assert list(panels["teacher spread"][0].get_xdata()) == [1, 2]
    (rank,) = [v for k, v in panels.items() if k.startswith("effective rank")]
    assert list(rank[0].get_ydata()) == [5.5, 5.5]


def test_a_report_without_adapter_training_does_not_speak_of_it(
    tmp_path, folders, one_seed
):
    results = sum_up(one_seed, {})
    text = write_report(tmp_path / "out", results, {}, folders[1], [])
    assert "Adapter training" not in text
    assert "adapter_curves" not in text
    assert not (tmp_path / "out" / "adapter_curves.png").exists()


def test_a_run_without_history_is_left_out_of_the_curves(tmp_path, folders):
    _, classifiers = folders
    classifiers["gone"] = str(tmp_path / "nowhere")
    histories = read_histories(classifiers)
    assert list(histories) == ["fold 1, seed 7", "fold 2, seed 7"]
    assert [row["epoch"] for row in histories["fold 1, seed 7"]] == [1, 2]


def test_the_confusion_matrix_in_the_report_is_the_sum_of_all_runs(
    tmp_path, folders
):
    runs = [
        make_run(1, 7, 0.5, ((1, 2), (3, 4))),
        make_run(2, 7, 0.5, ((10, 20), (30, 40))),
    ]
    text = write_report(tmp_path, sum_up(runs, {}), {}, folders[1], [])
    assert "| angry | 11    | 22  |" in text
    assert "| sad   | 33    | 44  |" in text


def test_a_class_without_utterances_can_be_drawn(tmp_path):
    results = sum_up([make_run(1, 7, 0.5, ((2, 1), (0, 0)))], {})
    with np.errstate(invalid="raise"):  # no "nan %" in the empty row
        draw_confusion(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
