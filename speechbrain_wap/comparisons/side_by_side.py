"""Systems side by side: the same folds and seeds, one table, paired tests.

What the commands compare, sweep and table1 write.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from speechbrain_wap.comparisons.running import find_common
from speechbrain_wap.evaluation.significance import (
    average_seeds,
    bound_mean,
    compare_units,
    correct_holm,
)
from speechbrain_wap.files import write_table, write_text
from speechbrain_wap.reports.cross_validation_report import summarise
from speechbrain_wap.reports.report import (
    SCORES,
    escape_markdown,
    markdown_table,
    percent,
    save_figure,
)
from speechbrain_wap.reports.report_facts import read_cost
from speechbrain_wap.training.cross_validation import find_run
from speechbrain_wap.training.run_folds import list_finished

COSTS = ("trained parameters", "minutes a fold", "peak memory, MB")
TESTS = (
    "Points of UA, paired over folds, of which each counts once, with its mean "
    "over seeds: 95 % confidence interval of Student's t; p of a two-sided "
    "permutation test, which changes the signs of the folds' differences (the "
    "least that n folds can give is 2 / 2^n), and corrected by Holm's method "
    "for the number of tests here. Folds share training data, so that all of "
    "this is optimistic."
)


class Row(NamedTuple):
    """A system of the table.

    results is the content of results.json; cells are further columns by name;
    transductive says what it hears of the test speakers, None if nothing.
    """

    system: str
    results: dict
    cells: dict
    transductive: str | None = None


def gather_rows(plans):
    """Reads what of several systems is finished, the runs that all have.

    Arguments
    ---------
    plans : dict
        What was run, by the systems' names.

    Returns
    -------
    rows : list of Row
        Without systems of which nothing is finished; empty where there is no
        run that all others have.
    """
    begun = {
        name: plan for name, plan in plans.items() if list_finished(plan)[0]
    }
    rows = []
    common = find_common(list(begun.values())) if begun else []
    for (name, plan), runs in zip(begun.items(), common):
        if not runs:
            return []
        said = runs[0].get("transductive")
        if plan.adapter_training:
            hears_all = plan.settings["adapter"]["adapter_data"] == "all"
            said = "adapts to the held-out session" if hears_all else said
        results = summarise(plan, runs)[1]
        rows.append(Row(name, results, measure_cost(plan, runs), said))
    return rows


def measure_cost(plan, runs):
    """Looks up what the runs of a system have cost.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What was run.
    runs : list of dict
        Contents of scores.json.

    Returns
    -------
    cells : dict
        COSTS: trained parameters of stage 2, minutes of a fold in both stages
        (mean), peak memory; None where a run has not recorded it.
    """
    costs = []
    for run in runs:
        place = run["seed"], run["fold"]
        folders = [Path(find_run(plan.output_folder, *place), "classifier")]
        if plan.adapter_training:
            folders.append(Path(plan.find_adapter(*place)))
        costs.append(read_cost(folders))
    minutes, peaks = (
        [cost[key] for cost in costs if cost[key] is not None]
        for key in ("minutes", "peak_memory_mb")
    )
    found = (
        runs[0].get("trained_parameters"),
        float(np.mean(minutes)) if minutes else None,
        max(peaks, default=None),
    )
    return dict(zip(COSTS, found))


def compare_pairs(pairs):
    """Tests the UA of systems against others, with Holm's correction.

    Arguments
    ---------
    pairs : list of tuple
        Content of results.json of a system, and of the one that it is
        compared with.

    Returns
    -------
    differences : list of dict
        Fields of PairedDifference, and "p_holm".

    Example
    -------
    >>> one, other = (
    ...     {"runs": [{"fold": f, "seed": 1, "UA": ua} for f in (1, 2)]}
    ...     for ua in (0.75, 0.5)
    ... )
    >>> (difference,) = compare_pairs([(one, other)])
    >>> difference["mean"], difference["p_holm"]
    (0.25, 0.5)
    """
    found = [
        compare_units(*(average_seeds(results["runs"]) for results in pair))
        for pair in pairs
    ]
    corrected = correct_holm([difference.p for difference in found])
    return [
        {**difference._asdict(), "p_holm": p}
        for difference, p in zip(found, corrected)
    ]


def format_difference(difference):
    """Formats what :func:`compare_pairs` found, in points of UA.

    Arguments
    ---------
    difference : dict
        One of them.

    Returns
    -------
    cells : dict
        By column.

    Example
    -------
    >>> found = {"units": 5, "mean": 0.02, "low": -0.01, "high": 0.05}
    >>> list(format_difference({**found, "p": 0.1, "p_holm": 0.2}).values())
    [5, '+2.0', '-1.0 to +5.0', '0.1', '0.2']
    """
    low, high = difference["low"], difference["high"]
    p_values = [difference[key] for key in ("p", "p_holm")]
    interval = "" if low is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    p, p_holm = ("" if p is None else f"{p:.2g}" for p in p_values)
    return {
        "folds": difference["units"],
        "UA gained": f"{100 * difference['mean']:+.1f}",
        "95 % interval": interval,
        "p": p,
        "p, Holm": p_holm,
    }


def format_scores(results):
    """Formats the scores of a system, in percent.

    Arguments
    ---------
    results : dict
        Content of results.json.

    Returns
    -------
    cells : dict
        By column; with the standard deviation where there are several seeds.

    Example
    -------
    >>> results = {"per_seed": [{}], "mean": dict.fromkeys(SCORES, 0.5)}
    >>> format_scores(results)
    {'seeds': 1, 'UA': '50.0', 'WA': '50.0', 'F1': '50.0'}
    """
    cells = {"seeds": len(results["per_seed"])}
    for score in SCORES:
        cells[score] = percent(results["mean"][score])
        if cells["seeds"] > 1:
            cells[score] += f" ± {percent(results['std'][score])}"
    return cells


def _format_cell(value):
    """Formats a further cell, "" where there is none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_side_by_side(output_folder, stem, title, rows, pairs, notes=()):
    """Writes a table of systems: Markdown, two CSV files and a figure.

    Arguments
    ---------
    output_folder : str
        Where to.
    stem : str
        Of the files' names: stem.md, stem.csv, stem_folds.csv (what the tests
        are of) and stem.png.
    title : str
        Of the Markdown file.
    rows : list of Row
        The systems; all have the same runs.
    pairs : list of tuple
        Names of two systems: the first is tested against the second.
    notes : list of str
        What a reader of the scores must know.

    Returns
    -------
    table : str
        Scores and differences, in Markdown.
    path : pathlib.Path
        The Markdown file.
    """
    by_name = {row.system: row for row in rows}
    marked = {
        row.system: f"{row.system} †" if row.transductive else row.system
        for row in rows
    }
    notes = [
        *notes,
        *(
            f"† **Transductive**: {escape_markdown(row.system)} "
            f"{escape_markdown(row.transductive)}."
            for row in rows
            if row.transductive
        ),
    ]
    differences = compare_pairs(
        [(by_name[a].results, by_name[b].results) for a, b in pairs]
    )
    columns = dict.fromkeys(column for row in rows for column in row.cells)
    scores = [
        {
            "system": marked[row.system],
            **format_scores(row.results),
            **{key: _format_cell(row.cells.get(key)) for key in columns},
        }
        for row in rows
    ]
    table = markdown_table(scores[0], [cells.values() for cells in scores])
    parts = [
        f"# {title}",
        "Percent, mean over folds, then mean and standard deviation over seeds "
        "where there are several.",
        table,
        "\n".join(f"- {note}" for note in notes),
        f"![UA with confidence intervals]({stem}.png)",
    ]
    if pairs:
        tests = [
            {
                "system": marked[a],
                "against": marked[b],
                **format_difference(difference),
            }
            for (a, b), difference in zip(pairs, differences)
        ]
        tests = markdown_table(tests[0], [cells.values() for cells in tests])
        parts += ["## Paired tests", tests, TESTS]
        table += f"\n\n{tests}"
    path = Path(output_folder, f"{stem}.md")
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    _draw(rows, marked, path.with_suffix(".png"))
    tested = {
        a: {"against": b, **difference}
        for (a, b), difference in zip(pairs, differences)
    }
    write_table(
        path.with_suffix(".csv"),
        pd.DataFrame([_list_numbers(row, tested) for row in rows]),
    )
    folds = [
        {"system": row.system}
        | {key: run[key] for key in ("seed", "fold", "session", "n", *SCORES)}
        for row in rows
        for run in row.results["runs"]
    ]
    write_table(Path(output_folder, f"{stem}_folds.csv"), pd.DataFrame(folds))
    return table, path


def _list_numbers(row, tested):
    """Lists a system's numbers for the CSV file; scores are fractions."""
    results = row.results
    numbers = {"system": row.system, "seeds": len(results["per_seed"])}
    for score in SCORES:
        low, high = bound_mean(average_seeds(results["runs"], score))
        numbers |= {
            score: results["mean"][score],
            f"{score}_std": results["std"][score],
            f"{score}_low": low,
            f"{score}_high": high,
        }
    found = tested.get(row.system, {})
    return {
        **numbers,
        **row.cells,
        "transductive": row.transductive,
        **{
            key if key == "against" else f"UA_difference_{key}": value
            for key, value in found.items()
        },
    }


def _draw(rows, names, path):
    """Draws the UA of each system with its 95 % confidence interval."""
    figure = Figure(figsize=(7.0, 1.2 + 0.35 * len(rows)))
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        units = 100 * average_seeds(row.results["runs"])
        low, high = bound_mean(units)
        mean = units.mean()
        error = None if low is None else [[mean - low], [high - mean]]
        axes.errorbar(mean, place, xerr=error, fmt="o", capsize=3, color="C0")
    axes.set_yticks(range(len(rows)), [names[r.system] for r in rows[::-1]])
    axes.set_ylim(-0.5, len(rows) - 0.5)
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, 0), min(right, 100))
    axes.set_xlabel("UA, percent: mean over folds, 95 % confidence interval")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
