"""What a comparison of systems leaves behind: a table, a test, a figure."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import sem, ttest_1samp

from speechbrain_wap.files import write_text
from speechbrain_wap.report import SCORES, markdown_table, percent, save_figure

PROBE = "linear probe"
WITHOUT = "without adapter training"
WITH = "with adapter training"


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
        for a single run), "p" of a two-sided paired t-test (None where all
        differences are the same) and the number of runs that are "better",
        "equal" and "worse" than the baseline.

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
    one, other = np.array([(ua, other[run]) for run, ua in one.items()]).T
    differences = (one - other).round(12)  # what is equal differs by nothing
    error = sem(differences) if len(differences) > 1 else None
    p = ttest_1samp(differences, 0.0).pvalue if np.ptp(differences) else None
    return {
        "runs": len(differences),
        "mean": float(differences.mean()),
        "standard_error": None if error is None else float(error),
        "p": None if p is None else float(p),
        "better": int((differences > 0).sum()),
        "equal": int((differences == 0).sum()),
        "worse": int((differences < 0).sum()),
    }


def score_rows(systems):
    """Tabulates the systems' scores, in percent.

    Arguments
    ---------
    systems : list of dict
        "system", "label_fraction" and what results.json holds.

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
            + [f"{100 * entry['label_fraction']:g} %"] * shares
            + [len(entry["per_seed"])]
            + [
                percent(entry["mean"][s])
                + (f" ± {percent(entry['std'][s])}" if several else "")
                for s in SCORES
            ]
        )
    header = ["system"] + ["labels"] * shares + ["seeds", *SCORES]
    return markdown_table(header, rows)


def difference_rows(differences):
    """Tabulates what adapter training gains.

    Arguments
    ---------
    differences : list of dict
        "label_fraction" and what :func:`paired_difference` gave.

    Returns
    -------
    text : str
        Markdown, differences in points of UA.
    """
    rows = []
    for entry in differences:
        error, p = entry["standard_error"], entry["p"]
        rows.append(
            [
                f"{100 * entry['label_fraction']:g} %",
                entry["runs"],
                f"{100 * entry['mean']:+.1f}",
                "" if error is None else percent(error),
                "" if p is None else f"{p:.2g}",
                f"{entry['better']} / {entry['equal']} / {entry['worse']}",
            ]
        )
    return markdown_table(
        [
            "labels",
            "folds x seeds",
            "UA gained",
            "standard error",
            "p",
            "better / equal / worse",
        ],
        rows,
    )


def draw_label_curve(systems, path):
    """Draws the UA of each system against the share of the labels.

    Arguments
    ---------
    systems : list of dict
        "system", "label_fraction" and what results.json holds.
    path : str
        PNG file to write.
    """
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    for name in dict.fromkeys(entry["system"] for entry in systems):
        points = [entry for entry in systems if entry["system"] == name]
        axes.errorbar(
            [100 * entry["label_fraction"] for entry in points],
            [100 * entry["mean"]["UA"] for entry in points],
            yerr=[  # over seeds, or none
                100 * entry["std"]["UA"] * (len(entry["per_seed"]) > 1)
                for entry in points
            ],
            label=name,
            marker="o",
            capsize=3,
        )
    chance = 100 / len(systems[0]["classes"])
    axes.axhline(chance, color="grey", linestyle=":", label="chance")
    axes.set_xscale("log")
    shares = sorted({100 * entry["label_fraction"] for entry in systems})
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labels used in fine-tuning, percent")
    axes.set_ylabel("UA, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def write_comparison(output_folder, systems):
    """Writes comparison.json, comparison.md and, for a curve, comparison.png.

    Arguments
    ---------
    output_folder : str
        Where to.
    systems : list of dict
        "system" (PROBE, WITHOUT or WITH), "label_fraction" and what
        results.json holds.

    Returns
    -------
    table : str
        The scores and differences, in Markdown.
    """
    folder = Path(output_folder)
    found = {(e["system"], e["label_fraction"]): e for e in systems}
    fractions = list(
        dict.fromkeys(entry["label_fraction"] for entry in systems)
    )
    differences = [
        {
            "label_fraction": fraction,
            **paired_difference(
                found[WITH, fraction], found[WITHOUT, fraction]
            ),
        }
        for fraction in fractions
    ]
    scores, gains = score_rows(systems), difference_rows(differences)
    parts = [
        "# Comparison of systems",
        "Percent, mean over folds, then mean and standard deviation over "
        "seeds. Linear probe: logistic regression on mean and standard "
        "deviation of the frozen encoder's frames, for which a seed does no "
        "more than choose labels.",
        scores,
    ]
    if fractions != [1.0]:
        parts.append(
            "Labels: share of the labelled training utterances of each class "
            "whose labels are used (`label_fraction`), chosen by the seed, "
            "the same for all systems. Fine-tuning repeats them: it takes as "
            "many steps as with all labels. Adapter training, the mean and "
            "standard deviation by which inputs are scaled, and the held-out "
            "sessions do not depend on it."
        )
    if len(fractions) > 1:
        draw_label_curve(systems, folder / "comparison.png")
        parts.append("![UA against the share of labels](comparison.png)")
    parts += [
        "## With against without adapter training",
        gains,
        "Points of UA, paired over folds and seeds; p of a two-sided paired "
        "t-test. Folds share training data and seeds share folds, so that the "
        "runs are not independent: p is optimistic.",
    ]
    write_text(folder / "comparison.md", "\n\n".join(parts) + "\n")
    content = {"systems": systems, "differences": differences}
    write_text(folder / "comparison.json", json.dumps(content, indent=1))
    return f"{scores}\n\n{gains}"
