"""What a comparison of systems leaves behind: a table, a test, a figure."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from speechbrain_wap.comparisons.side_by_side import (
    TESTS,
    compare_pairs,
    format_difference,
    format_scores,
)
from speechbrain_wap.files import write_text
from speechbrain_wap.reports.report import markdown_table, save_figure

WITHOUT = "without adapter training"
WITH = "with adapter training"


def _format_length(entry):
    """Formats epochs and steps of adapter training, "" where there is none."""
    epochs, steps = entry.get("adapter_epochs"), entry.get("adapter_steps")
    return {
        "epochs": "" if epochs is None else epochs,
        "steps": "" if steps is None else f"{steps:.0f}",
    }


def _format_share(entry):
    """Formats the share of the labels that are used."""
    return {"labels": f"{100 * entry['label_fraction']:g} %"}


def _tabulate_scores(systems, lengths):
    """Tabulates the systems' scores, in percent."""
    some_labels = {entry["label_fraction"] for entry in systems} != {1.0}
    rows = []
    for entry in systems:
        row = {"system": entry["system"]}
        row |= _format_length(entry) if lengths else {}
        row |= _format_share(entry) if some_labels else {}
        row |= format_scores(entry)
        rows.append(row)
    return markdown_table(rows[0], [row.values() for row in rows])


def _tabulate_differences(differences, lengths):
    """Tabulates what adapter training gains, in points of UA."""
    rows = [
        {
            **(_format_length(entry) if lengths else {}),
            **_format_share(entry),
            **format_difference(entry),
        }
        for entry in differences
    ]
    return markdown_table(rows[0], [row.values() for row in rows])


def _draw_curve(systems, key, label, path, chance=None):
    """Draws the UA of each system against a quantity above 0.

    A system without it is drawn as a level line; chance is the UA of guessing
    in percent, None where that is far below.
    """
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    names = dict.fromkeys(entry["system"] for entry in systems)
    for color, name in enumerate(names):
        points = [entry for entry in systems if entry["system"] == name]
        means = np.array([100 * entry["mean"]["UA"] for entry in points])
        # over seeds, or none
        errors = np.array(
            [100 * e["std"]["UA"] * (len(e["per_seed"]) > 1) for e in points]
        )
        style = {"color": f"C{color}", "label": name}
        if points[0].get(key) is None:
            axes.axhline(means[0], linestyle="--", **style)
            low, high = means[0] - errors[0], means[0] + errors[0]
            axes.axhspan(low, high, color=f"C{color}", alpha=0.1)
        else:
            values = [entry[key] for entry in points]
            axes.errorbar(values, means, errors, marker="o", capsize=3, **style)
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle=":", label="chance")
    ticks = sorted({entry[key] for entry in systems if entry.get(key)})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{round(tick, 1):g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=label, ylabel="UA, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def write_comparison(output_folder, systems, lengths=False, notes=()):
    """Writes comparison.json, comparison.md and, for a curve, comparison.png.

    Where lengths are compared, the files are comparison_epochs.*, so that the
    curve over labels in the same folder stays.

    Arguments
    ---------
    output_folder : str
        Where to.
    systems : list of dict
        "system" (PROBE, WITHOUT or WITH), "label_fraction" and the content of
        results.json; of those with adapter training also its "adapter_epochs"
        and "adapter_steps" (None: an earlier run's). They differ in labels or
        in the adapter's length, not in both.
    lengths : bool
        Whether the adapter's lengths are compared.
    notes : list of str
        What a reader of the scores must know.

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
    trained = [entry for entry in systems if entry["system"] == WITH]
    found = compare_pairs(
        [(entry, baselines[entry["label_fraction"]]) for entry in trained]
    )
    differences = [
        {
            "label_fraction": entry["label_fraction"],
            "adapter_epochs": entry.get("adapter_epochs"),
            "adapter_steps": entry.get("adapter_steps"),
            **difference,
        }
        for entry, difference in zip(trained, found)
    ]
    scores = _tabulate_scores(systems, lengths)
    gains = _tabulate_differences(differences, lengths)
    parts = [
        "# Comparison of systems",
        "Percent, mean over folds, then mean and standard deviation over "
        "seeds. Linear probe: logistic regression on mean and standard "
        "deviation of the frozen encoder's frames, for which a seed does no "
        "more than choose labels.",
        *notes,
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
        label = "labels used in fine-tuning, percent"
        chance = 100 / len(systems[0]["classes"])
        _draw_curve(shares, "share", label, figure, chance)
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
            axis = "epochs"  # some runs do not record their steps
        label = f"{axis} of adapter training"
        _draw_curve(systems, f"adapter_{axis}", label, figure)
        parts.append(f"![UA against {axis}]({figure.name})")
    parts += [
        "## With against without adapter training",
        gains,
        TESTS,
    ]
    several = any(len(entry["per_seed"]) > 1 for entry in systems)
    earlier = [
        entry.get("settings", {}).get("adapter_folder") for entry in systems
    ]
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
