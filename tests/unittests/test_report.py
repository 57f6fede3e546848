"""The report: means and spreads over what they are said to be over."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from readings import STAGES, find_yaml

from speechbrain_wap.data.corpus_table import note_partial
from speechbrain_wap.files import write_table
from speechbrain_wap.reports.cross_validation_report import (
    _list_missing,
    list_defaults,
    list_shared_speakers,
)
from speechbrain_wap.reports.report import (
    STYLES,
    draw_curves,
    save_figure,
    score_table,
    sum_up,
    write_report,
)
from speechbrain_wap.reports.report_facts import read_facts, record_facts
from speechbrain_wap.training.cross_validation import CrossValidation

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


ONE_SEED = [make_run(1, 7, 0.5), make_run(2, 7, 0.6), make_run(3, 7, 1.0)]
OTHER_SEED = [make_run(fold, 8, 0.2 * fold) for fold in (1, 2, 3)]


@pytest.mark.parametrize(
    "runs, over, means",
    [
        (ONE_SEED, "folds", [0.5, 0.6, 1.0]),
        # each seed counts the same, however many folds it has
        (ONE_SEED + OTHER_SEED[:1], "seeds", [0.7, 0.2]),
        (ONE_SEED[:1], "folds", [0.5]),
    ],
)
def test_means_are_over_folds_then_seeds_and_spread_over_what_is_said(
    runs, over, means
):
    results = sum_up(runs, {"lr": 0.1})
    ua = np.mean(means)
    std = np.std(means, ddof=1) if len(means) > 1 else 0.0
    for score, share in (("UA", 1), ("WA", 2), ("F1", 4)):
        assert results["mean"][score] == pytest.approx(ua / share)
        assert results["std"][score] == pytest.approx(std / share)
    assert results["settings"] == {"lr": 0.1, "std_over": over}


def test_results_hold_the_interfaces_fields_and_are_plain_json():
    results = sum_up(ONE_SEED + OTHER_SEED, {"folds": [1, 2, 3]})
    assert json.loads(json.dumps(results)) == results
    assert list(results) == [
        *["classes", "runs", "mean", "std", "per_seed", "settings"]
    ]
    scores = ["UA", "WA", "F1"]
    fields = ["fold", "seed", "session", "n", *scores, "confusion"]
    assert all(list(run) == fields for run in results["runs"])
    for entry in results["per_seed"]:
        assert list(entry) == ["seed", *scores]
    assert [entry["seed"] for entry in results["per_seed"]] == [7, 8]
    assert results["per_seed"][1]["UA"] == pytest.approx(0.4)


def test_scores_are_shown_in_percent_with_mean_and_spread():
    lines = score_table(sum_up(ONE_SEED, {})).splitlines()
    lines = [" ".join(line.split()) for line in lines]
    assert lines[0] == "| fold | held-out session | seed | n | UA | WA | F1 |"
    assert lines[4] == "| 3 | s3 | 7 | 2 | 100.0 | 50.0 | 25.0 |"
    assert lines[-1].startswith("| mean | | | 6 | 70.0 ± ")


def report(output_folder, *facts):
    """Writes a report of what is recorded; gives its text."""
    record_facts(output_folder, *facts)
    return write_report(read_facts(output_folder))


def write_history(folder, rows):
    Path(folder).mkdir(parents=True)
    Path(folder, "history.json").write_text(json.dumps(rows))
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    """Two runs of each stage: one with a probe, one of before there was one."""
    numbers = {f"rank_{branch}": 5.5 for branch in STYLES}
    numbers |= {f"probe_{branch}": 0.25 for branch in STYLES}
    names = ("rec_loss", "pce_loss", "agreement", "perplexity", "used")
    train = dict.fromkeys((*names, "teacher_spread"), 0.111)
    rows = [{"epoch": e, "train": train, "valid": None} for e in (1, 2)]
    probed = [
        {"epoch": 0, **numbers, "train": None, "valid": None},
        {**rows[0], **dict.fromkeys(numbers)},
        {**rows[1], **numbers, "probe_raw": 0.876, "probe_teacher": 0.5},
    ]
    rows_of_2 = [
        {"epoch": e, "train": {"loss": 1.0}, "valid": {"loss": 1.1, "UA": 0.5}}
        for e in (1, 2)
    ]
    adapters, classifiers = {}, {"gone": str(tmp_path / "nowhere")}
    for fold, rows_of_1 in enumerate((probed, rows), start=1):
        name = f"fold {fold}, seed 7"
        adapters[name] = write_history(tmp_path / f"a{fold}", rows_of_1)
        classifiers[name] = write_history(tmp_path / f"c{fold}", rows_of_2)
    return adapters, classifiers


def test_a_report_comes_with_results_and_figures(
    tmp_path, folders, monkeypatch
):
    drawn = {}
    monkeypatch.setattr(
        "speechbrain_wap.reports.report.save_figure",
        lambda *args: drawn.update({args[1].name: args[0]})
        or save_figure(*args),
    )
    runs = [
        make_run(1, 7, 0.5, ((1, 2), (3, 4))),
        make_run(2, 7, 0.9, ((10, 20), (30, 40))),
    ]
    results = sum_up(runs, {"lr": 0.1, "encoder": "fbank", "folds": [1, 2]})
    out = tmp_path / "out"
    defaults = {"lr": 0.2, "encoder": "fbank"}
    notes = ["Note one.", "Note two."]
    text = report(out, results, *folders, notes, defaults)
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
        "| angry | 11    | 22  |\n| sad   | 33    | 44  |",
        "| fold 2, seed 7 | 2      | 0.111    | 0.111    | 0.111",
    ):
        assert part in text
    # what differs from the YAML comes first, the rest is folded away
    differing, folded = text.split("<details>")
    assert "| lr       | 0.1     | 0.2  |" in differing
    assert "| folds    | [1, 2]  |      |" in differing
    assert '| encoder | "fbank" |' in folded.split("</details>")[0]
    # without stage 1 there is no word of it
    text = report(tmp_path / "b", results, {}, folders[1], [], {})
    assert "adapter" not in text.lower()
    assert not (tmp_path / "b" / "adapter_curves.png").exists()
    # no "nan %" where nobody is of a class
    results = sum_up([make_run(1, 7, 0.5, ((1, 2), (0, 0)))], {})
    text = report(tmp_path, results, *folders, [], {})
    shares = [x.get_text() for x in drawn["confusion.png"].axes[0].texts]
    assert shares == ["33.3 %\n1", "66.7 %\n2", "0.0 %\n0", "0.0 %\n0"]
    # the probe where there is one, in table and curves
    rows = [x.split() for x in text.splitlines() if ", seed 7 |" in x]
    assert rows[0][-6:-1:2] == ["87.6", "25.0", "50.0"]
    assert rows[1][-6:-1:2] == ["-", "-", "-"]
    panels = {
        axes.get_title(): axes.get_lines()
        for axes in drawn["adapter_curves.png"].axes
    }
    teacher = panels["probe UA of teacher (student --, raw ..)"][0]
    assert teacher.get_xydata().tolist() == [[0, 0.25], [2, 0.5]]
    assert list(panels["teacher spread"][0].get_xdata()) == [1, 2]


def test_defaults_are_what_the_yaml_says_without_the_users_values():
    plan = CrossValidation(
        [*map(find_yaml, STAGES), "--data_folder=D", "--system=linear"]
        + ["--classifier.lr=0.5", "--adapter.precision=bf16"]
    )
    defaults = list_defaults(plan)
    differing = {
        f"{stage}.{key}"
        for stage in plan.stages
        for key, value in plan.settings[stage].items()
        if defaults.get(f"{stage}.{key}") != value
    }
    assert differing == {
        *("adapter.data_folder", "classifier.data_folder"),
        *("classifier.lr", "classifier.classifier_lr", "adapter.precision"),
        *("classifier.system", "classifier.system.model"),
    }
    assert defaults["classifier.lr"] == 0.0001


def test_a_reader_is_told_what_of_the_corpus_is_not_there(tmp_path):
    folders = [tmp_path / name for name in ("all", "one", "two")]
    for folder in folders:
        folder.mkdir()
    assert _list_missing(folders[0], folders[1:]) == []
    note_partial(folders[0] / "corpus.csv", "3 of 4_5 turns.")
    for folder, ids in zip(folders, ("a", "ab", "bc"), strict=True):
        rows = "".join(f"{key},broken\n" for key in ids)
        (folder / "skipped.csv").write_text(f"id,reason\n{rows}")
    partial, skipped = _list_missing(folders[0], folders[1:])
    assert partial.startswith("**Partial corpus**: 3 of 4_5 turns.")
    assert skipped.startswith("**Skipped utterances**: 3,")
    note_partial(folders[0] / "corpus.csv", "")
    assert len(_list_missing(folders[0], folders[1:])) == 1


def test_a_single_epoch_is_a_point():
    histories = {"fold 1": [{"epoch": 1, "loss": 2.0}]}
    (line,) = draw_curves(histories, {"loss": "loss"}).axes[0].lines
    assert line.get_marker() == "."


def test_speakers_of_two_splits_may_have_any_names(tmp_path):
    table = {name: [*"uvw"] for name in ("id", "wav", "digest", "sound")}
    table |= {"duration": 1.0, "session": "1", "emo": "x"}
    table |= {"speaker": "a\nb*c*", "split": ["train", "valid", "test"]}
    write_table(tmp_path / "corpus.csv", pd.DataFrame(table))
    plan = SimpleNamespace(
        settings={"classifier": {"protocol": "predefined"}},
        output_folder=str(tmp_path),
    )
    (note,) = list_shared_speakers(plan)
    assert r"(a\\nb\*c\*)" in note


def test_labels_are_plain_text_wherever_they_are_shown(tmp_path):
    classes = ["$_$", "a|b\n", "<b>*c*", "\x1b[31m", "=1", r"$\frac{1}{2}$"]
    eye = np.eye(len(classes), dtype=int).tolist()
    run = {**make_run(1, 7, 1.0, eye), "classes": classes, "session": "_s_|"}
    results = sum_up([run], {"classes": classes})
    text = report(tmp_path, results, {}, {}, [], {})
    assert (tmp_path / "confusion.png").read_bytes()[:8] == PNG
    assert "\x1b" not in text and "<b>" not in text.replace("\\<b>", "")
    table = text.partition("## Confusion")[2]
    (header,) = (x for x in table.splitlines() if x.startswith("|   "))
    cells = re.split(r"(?<!\\)\|", header)[2:-1]
    assert [cell.strip() for cell in cells] == [
        *(r"\$\_\$", r"a\|b\\n", r"\<b>\*c\*", r"\\x1b[31m", "=1"),
        r"\$\\frac{1}{2}\$",
    ]
    assert r"\_s\_\|" in score_table(results)


def test_what_looks_like_mathematics_is_drawn_as_it_is_written(tmp_path):
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_title(r"$\frac$")
    axes.set_xticks([0, 1], ["$_$", r"\$ $^$"])
    axes.plot([0, 1], [0, 1], label="$x_$")
    axes.legend()
    save_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:8] == PNG
