"""What a comparison of systems leaves behind: a table, a test, a figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import sem, ttest_1samp

from speechbrain_wap.evaluation.report import (
    SCORES,
    markdown_table,
    percent,
    save_figure,
)
from speechbrain_wap.files import write_text

PROBE = "linear probe"
WITHOUT = "without adapter training"
WITH = "with adapter training"
LENGTH = ["epochs", "steps"]  # of adapter training


def paired_difference(results, baseline):
    """Compares the UA of two systems run by run.

    Arguments
    ---------
    results : dict
        Content of a system's results.json.
    baseline : dict
        Content of another one's, with the same folds and seeds.

    Returns
    -------
    difference : dict
        "runs" (their number), "mean" and its "standard_error" (fractions; None
        for a single run), "p" of a two-sided paired t-test over the runs and
        "p_folds" over the folds' means over seeds (None where all differences
        are the same) and the number of runs that are "better", "equal" and
        "worse" than the baseline.

    Example
    -------
    >>> better = {"runs": [{"seed": 1, "fold": k, "UA": 0.5} for k in (1, 2)]}
    >>> worse = {"runs": [{"seed": 1, "fold": k, "UA": k / 5} for k in (1, 2)]}
    >>> found = paired_difference(better, worse)
    >>> round(found["mean"], 3), round(found["standard_error"], 3)
    (0.2, 0.1)
    >>> found["better"], found["equal"], found["worse"]
    (2, 0, 0)
    """
    one, other = (
        {(run["seed"], run["fold"]): run["UA"] for run in system["runs"]}
        for system in (results, baseline)
    )
    # what is equal differs by nothing
    gains = pd.Series({run: one[run] - other[run] for run in one}).round(12)
    differences = gains.to_numpy()
    error = sem(differences) if len(differences) > 1 else None
    # seeds of a fold have its speakers in common
    of_folds = gains.groupby(level=1).mean().round(12).to_numpy()
    return {
        "runs": len(differences),
        "mean": float(differences.mean()),
        "standard_error": None if error is None else float(error),
        "p": p_value(differences),
        "p_folds": p_value(of_folds),
        "better": int((differences > 0).sum()),
        "equal": int((differences == 0).sum()),
        "worse": int((differences < 0).sum()),
    }


def p_value(differences):
    """Computes p of a two-sided t-test against 0.

    Arguments
    ---------
    differences : numpy.ndarray
        Shape [N].

    Returns
    -------
    p : float or None
        None where they are all the same, or there is one only.
    """
    if not np.ptp(differences):
        return None
    return float(ttest_1samp(differences, 0.0).pvalue)


def format_length(entry):
    """Says how long the adapter was trained.

    Arguments
    ---------
    entry : dict
        A system, or a difference.

    Returns
    -------
    cells : list of str
        Epochs and steps; nothing for a system without adapter training.
    """
    if entry.get("adapter_epochs") is None:
        return ["", ""]
    steps = entry["adapter_steps"]
    told = "" if steps is None else f"{steps:.0f}"
    return [f"{entry['adapter_epochs']}", told]


def score_rows(systems, lengths=False):
    """Tabulates the systems' scores, in percent.

    Arguments
    ---------
    systems : list of dict
        See :func:`write_comparison`.
    lengths : bool
        Tells how long each adapter was trained.

    Returns
    -------
    text : str
        Markdown; the labels' share is left out where all have all labels.
    """
    shares = {entry["label_fraction"] for entry in systems} != {1.0}
    rows = []
    for entry in systems:
        several = len(entry["per_seed"]) > 1
        rows.append(
            [entry["system"]]
            + format_length(entry) * lengths
            + [f"{100 * entry['label_fraction']:g} %"] * shares
            + [len(entry["per_seed"])]
            + [
                percent(entry["mean"][s])
                + (f" ± {percent(entry['std'][s])}" if several else "")
                for s in SCORES
            ]
        )
    header = ["system"] + LENGTH * lengths + ["labels"] * shares
    return markdown_table(header + ["seeds", *SCORES], rows)


def difference_rows(differences, lengths=False):
    """Tabulates what adapter training gains.

    Arguments
    ---------
    differences : list of dict
        "label_fraction", "adapter_epochs", "adapter_steps" and what
        :func:`paired_difference` gave.
    lengths : bool
        Tells how long each adapter was trained.

    Returns
    -------
    text : str
        Markdown, differences in points of UA.
    """
    rows = []
    for entry in differences:
        error = entry["standard_error"]
        rows.append(
            format_length(entry) * lengths
            + [
                f"{100 * entry['label_fraction']:g} %",
                entry["runs"],
                f"{100 * entry['mean']:+.1f}",
                "" if error is None else percent(error),
                *(
                    "" if entry[p] is None else f"{entry[p]:.2g}"
                    for p in ("p", "p_folds")
                ),
                f"{entry['better']} / {entry['equal']} / {entry['worse']}",
            ]
        )
    header = LENGTH * lengths + [
        "labels",
        "folds x seeds",
        "UA gained",
        "standard error",
        "p",
        "p over folds",
        "better / equal / worse",
    ]
    return markdown_table(header, rows)


def draw_curve(systems, key, label, path, chance=None):
    """Draws the UA of each system against a quantity.

    Arguments
    ---------
    systems : list of dict
        See :func:`write_comparison`.
    key : str
        The quantity, above 0. A system without it is drawn as a level line.
    label : str
        Says what it is, and its unit.
    path : str
        PNG file to write.
    chance : float
        UA in percent of guessing, or None where that is far below.
    """
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    names = list(dict.fromkeys(entry["system"] for entry in systems))
    for name, color in zip(names, ("C0", "C1", "C2")):
        points = [entry for entry in systems if entry["system"] == name]
        # over seeds, or none
        errors = [
            100 * e["std"]["UA"] * (len(e["per_seed"]) > 1) for e in points
        ]
        means = [100 * entry["mean"]["UA"] for entry in points]
        if points[0].get(key) is None:
            axes.axhline(means[0], color=color, linestyle="--", label=name)
            axes.axhspan(
                means[0] - errors[0],
                means[0] + errors[0],
                color=color,
                alpha=0.1,
            )
            continue
        axes.errorbar(
            [entry[key] for entry in points],
            means,
            yerr=errors,
            label=name,
            color=color,
            marker="o",
            capsize=3,
        )
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle=":", label="chance")
    ticks = sorted({entry[key] for entry in systems if entry.get(key)})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{round(tick, 1):g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.set_ylabel("UA, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def write_comparison(output_folder, systems, lengths=False):
    """Writes comparison.json, comparison.md and, for a curve, comparison.png.

    Where lengths are compared, the files are comparison_epochs.*, so that the
    curve over labels in the same folder stays.

    Arguments
    ---------
    output_folder : str
        Where to.
    systems : list of dict
        "system" (PROBE, WITHOUT or WITH), "label_fraction" and what
        results.json holds; of those with adapter training also
        "adapter_epochs" and "adapter_steps" of it (None: an earlier run's).
        They differ in labels or in the adapter's length, not in both.
    lengths : bool
        Whether the adapter's lengths are compared.

    Returns
    -------
    table : str
        The scores and differences, in Markdown.
    path : pathlib.Path
        The Markdown file.
    """
    stem = "comparison_epochs" if lengths else "comparison"
    figure = Path(output_folder, f"{stem}.png")
    baselines = {
        entry["label_fraction"]: entry
        for entry in systems
        if entry["system"] == WITHOUT
    }
    differences = [
        {
            "label_fraction": entry["label_fraction"],
            "adapter_epochs": entry.get("adapter_epochs"),
            "adapter_steps": entry.get("adapter_steps"),
            **paired_difference(entry, baselines[entry["label_fraction"]]),
        }
        for entry in systems
        if entry["system"] == WITH
    ]
    scores = score_rows(systems, lengths)
    gains = difference_rows(differences, lengths)
    parts = [
        "# Comparison of systems",
        "Percent, mean over folds, then mean and standard deviation over "
        "seeds. Linear probe: logistic regression on mean and standard "
        "deviation of the frozen encoder's frames, for which a seed does no "
        "more than choose labels.",
        scores,
    ]
    if list(baselines) != [1.0]:
        parts.append(
            "Labels: share of the labelled training utterances of each class "
            "whose labels are used (`label_fraction`), chosen by the seed, "
            "the same for all systems. Fine-tuning repeats them: it takes as "
            "many steps as with all labels. Adapter training, the mean and "
            "standard deviation by which inputs are scaled, and the held-out "
            "sessions do not depend on it."
        )
    if len(baselines) > 1:
        shares = [{**e, "share": 100 * e["label_fraction"]} for e in systems]
        draw_curve(
            shares,
            "share",
            "labels used in fine-tuning, percent",
            figure,
            100 / len(systems[0]["classes"]),
        )
        parts.append(f"![UA against the share of labels]({figure.name})")
    if lengths:
        parts.append(
            "Epochs and steps: of adapter training (`number_of_epochs`; steps "
            "are the mean over folds). Each length is a training of its own, "
            "with its own schedules."
        )
    if lengths and len(differences) > 1:
        axis = "steps"
        if any(entry["adapter_steps"] is None for entry in differences):
            axis = "epochs"  # whose runs do not tell their steps
        draw_curve(
            systems, f"adapter_{axis}", f"{axis} of adapter training", figure
        )
        parts.append(f"![UA against {axis}]({figure.name})")
    parts += [
        "## With against without adapter training",
        gains,
        "Points of UA, paired over folds and seeds; p of a two-sided paired "
        "t-test over all runs, and over the folds, of which each counts once, "
        "with its mean over seeds. Seeds share a fold's speakers, so that the "
        "first is optimistic; folds share training data, so that both are.",
    ]
    settings = [entry.get("settings", {}) for entry in systems]
    earlier = [values.get("adapter_folder") for values in settings]
    several = any(len(entry["per_seed"]) > 1 for entry in systems)
    if several and any(one and "{seed}" not in one for one in earlier):
        parts.append(
            "One earlier adapter for all seeds: it began with the weights of "
            "one seed, the systems without adapter training with those of "
            "each. What weights they begin with may change more than adapter "
            "training does: an adapter for each seed "
            "(`--adapter_folder=..._{seed}`) is a fairer comparison."
        )
    path = figure.with_suffix(".md")
    write_text(path, "\n\n".join(parts) + "\n")
    content = {"systems": systems, "differences": differences}
    write_text(figure.with_suffix(".json"), json.dumps(content, indent=1))
    return f"{scores}\n\n{gains}", path
