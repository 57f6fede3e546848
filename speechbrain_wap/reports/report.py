"""A cross-validation as a person reads it: its means, report.md, figures."""

import json
import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

from speechbrain_wap.errors import escape_controls
from speechbrain_wap.files import write_atomically, write_text
from speechbrain_wap.training.run_folds import SCORES

# Panels of the figures: a column of the histories, or several and their styles
CLASSIFIER_PANELS = {
    "training loss": "train.loss",
    "validation loss": "valid.loss",
    "validation UA": "valid.UA",
}
STYLES = {"teacher": "solid", "student": "dashed", "raw": "dotted"}
ADAPTER_PANELS = {
    "reconstruction loss (Eq. 1)": "train.rec_loss",
    "pseudo-label cross entropy": "train.pce_loss",
    "student agrees with teacher": "train.agreement",
    "perplexity of the attributes": "train.perplexity",
    "share of attributes used": "train.used",
    "teacher spread": "train.teacher_spread",
    **{
        f"{title} of teacher (student --, raw ..)": {
            f"{name}_{branch}": style for branch, style in STYLES.items()
        }
        for title, name in (("probe UA", "probe"), ("effective rank", "rank"))
    },
}


def sum_up(runs, settings):
    """Averages the runs: over folds, then over seeds.

    Arguments
    ---------
    runs : list of dict
        Each with fold, seed, classes and the scores.
    settings : dict
        What the runs were made with; std_over is added.

    Returns
    -------
    results : dict
        Content of results.json; scores are fractions, std is over seeds where
        there are several, else over folds.
    """
    table = pd.DataFrame(runs)
    per_seed = table.groupby("seed")[list(SCORES)].mean()
    over_seeds = len(per_seed) > 1
    spread = per_seed if over_seeds else table[list(SCORES)]
    std = spread.std(ddof=1) if len(spread) > 1 else spread.std(ddof=0)
    kept = ("fold", "seed", "session", "n", *SCORES, "confusion")
    return {
        "classes": runs[0]["classes"],
        "runs": [{key: run[key] for key in kept} for run in runs],
        "mean": {s: float(per_seed[s].mean()) for s in SCORES},
        "std": std.to_dict(),
        "per_seed": per_seed.reset_index().to_dict("records"),
        "settings": {
            **settings,
            "std_over": "seeds" if over_seeds else "folds",
        },
    }


def escape_markdown(text):
    r"""Escapes what Markdown or HTML would not show as it is written.

    Arguments
    ---------
    text : str
        Such as a label.

    Returns
    -------
    text : str
        One line.

    Example
    -------
    >>> print(escape_markdown("a_b |<c>| *d* _e_ $f$ [g](h)"))
    a_b \|\<c>\| \*d\* \_e\_ \$f\$ [g\](h)
    """
    special = r"[\\`*<|$]|~~|(?<!\w)_|_(?!\w)|\](?=\()|&(?=#?\w+;)"
    return re.sub(special, r"\\\g<0>", escape_controls(text))


def markdown_table(header, rows):
    """Formats a Markdown table of plain text, with columns of equal width.

    Arguments
    ---------
    header : list of str
        Names of the columns.
    rows : list of list
        Cells.

    Returns
    -------
    text : str

    Example
    -------
    >>> print(markdown_table(["a", "b"], [[1, 22]]))
    | a | b  |
    |---|----|
    | 1 | 22 |
    """
    cells = [[escape_markdown(str(c)) for c in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def percent(value):
    """Formats a fraction as a percentage with one decimal.

    Arguments
    ---------
    value : float
        0 to 1.

    Returns
    -------
    text : str

    Example
    -------
    >>> percent(0.9238)
    '92.4'
    """
    return f"{100 * value:.1f}"


def score_table(results):
    """Tabulates the runs and their mean, in percent.

    Arguments
    ---------
    results : dict
        Content of results.json.

    Returns
    -------
    text : str
        Markdown.
    """
    runs, mean, std = results["runs"], results["mean"], results["std"]
    rows = [
        [run["fold"], run["session"], run["seed"], run["n"]]
        + [percent(run[score]) for score in SCORES]
        for run in runs
    ]
    rows.append(
        ["mean", "", "", sum(run["n"] for run in runs)]
        + [f"{percent(mean[s])} ± {percent(std[s])}" for s in SCORES]
    )
    header = ["fold", "held-out session", "seed", "n", *SCORES]
    return markdown_table(header, rows)


def finish_figure(figure):
    """Lays a figure out; "$" in it is no mathematics.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.tight_layout()


def save_figure(figure, path):
    """Writes a figure as PNG, without a display.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    path : str
        The file to write.
    """
    finish_figure(figure)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_confusion(counts, results, path):
    """Draws a confusion matrix as shares of the true classes, with counts."""
    classes = results["classes"]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(1.6 + 0.9 * len(classes),) * 2)
    axes = figure.add_subplot()
    labels = [escape_controls(label) for label in classes]
    display = ConfusionMatrixDisplay(shares, display_labels=labels).plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        xticks_rotation=30,
        im_kw={"vmin": 0.0, "vmax": 1.0},
        text_kw={"fontsize": 8},
    )
    for place, text in np.ndenumerate(display.text_):
        text.set_text(f"{percent(shares[place])} %\n{counts[place]}")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"All runs, UA {percent(results['mean']['UA'])} %")
    save_figure(figure, path)


def draw_curves(histories, panels):
    """Draws a panel for each quantity, with a colour for each run.

    Arguments
    ---------
    histories : dict
        Rows by the run's name.
    panels : dict
        Column of each panel, or the style of each of its columns, by title.

    Returns
    -------
    figure : matplotlib.figure.Figure
    """
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    tables = {run: pd.json_normalize(rows) for run, rows in histories.items()}
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines))
    for number, (title, styles) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, number)
        if isinstance(styles, str):
            styles = {styles: "solid"}
        for color, (run, table) in enumerate(tables.items()):
            for name, style in styles.items():
                # epochs without a value are left out
                curve = table.reindex(columns=["epoch", name]).dropna()
                axes.plot(
                    curve["epoch"],
                    curve[name],
                    label=run if style == "solid" else None,
                    color=f"C{color % 10}",
                    linestyle=style,
                    marker="." if len(curve) == 1 else None,
                    linewidth=1.2,
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if number == 1 and axes.lines and len(histories) <= 10:
            axes.legend(fontsize=7)
    return figure


def write_report(facts):
    """Writes report.md and its figures.

    Arguments
    ---------
    facts : speechbrain_wap.reports.report_facts.Facts
        What to say.

    Returns
    -------
    text : str
        Content of report.md.
    """
    folder, results = facts.folder, facts.results
    classes = results["classes"]
    counts = np.sum([run["confusion"] for run in results["runs"]], axis=0)
    parts = [
        "# Cross-validation",
        f"UA **{percent(results['mean']['UA'])} %** (unweighted accuracy, mean "
        f"recall of the classes; standard deviation over "
        f"{results['settings']['std_over']} below), {len(results['runs'])} "
        "runs. All scores in percent.",
        "[report.html](report.html): the same, and every utterance to hear.",
        score_table(results),
        "\n".join(f"- {note}" for note in facts.notes),
        *_list_settings(results["settings"], facts.defaults),
        "## Confusion",
        "Rows are true classes, columns predictions, summed over all runs.",
        markdown_table(
            ["", *classes], [[c, *row] for c, row in zip(classes, counts)]
        ),
        "![Confusion matrix](confusion.png)",
        "## Fine-tuning",
        "![Fine-tuning curves](classifier_curves.png)",
    ]
    _draw_confusion(counts, results, folder / "confusion.png")
    save_figure(
        draw_curves(facts.classifiers, CLASSIFIER_PANELS),
        folder / "classifier_curves.png",
    )
    if facts.adapters:
        figure = folder / "adapter_curves.png"
        save_figure(draw_curves(facts.adapters, ADAPTER_PANELS), figure)
        parts += [
            "## Adapter training",
            "At the last epoch; `agreement`: masked frames whose local "
            "attribute the student predicts; `perplexity` and `used` of the "
            "codebook; `probe_...`: UA, in percent, with which a linear probe "
            "of the frames of the encoder (raw), student and teacher tells the "
            "labels of training sessions that it was not fitted on.",
            _tabulate_adapters(facts.adapters),
            f"![Adapter training curves]({figure.name})",
        ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(folder / "report.md", text)
    return text


def _list_settings(settings, defaults):
    """Lists what differs from the YAML files, and folds away the rest."""
    texts, usual = (
        {key: json.dumps(value) for key, value in values.items()}
        for values in (settings, defaults)
    )
    differing, others = [], []
    for key, text in sorted(texts.items()):
        if text == usual.get(key):
            others.append([key, text])
        else:
            differing.append([key, text, usual.get(key, "")])
    parts = ["## Settings", markdown_table(["key", "value", "YAML"], differing)]
    if others:
        table = markdown_table(["key", "value"], others)
        summary = "<details>\n<summary>All others: as in the YAML</summary>"
        parts += [summary, table, "</details>"]
    return parts


def _tabulate_adapters(histories):
    """Tabulates the last epoch of each adapter training."""
    names = ("rec_loss", "pce_loss", "agreement", "perplexity", "used")
    probes = ("probe_raw", "probe_student", "probe_teacher")
    rows = []
    for run, (*_, last) in histories.items():
        values = [last.get(name) for name in probes]
        rows.append(
            [run, last["epoch"]]
            + [f"{last['train'][name]:.3g}" for name in names]
            + ["-" if value is None else percent(value) for value in values]
        )
    return markdown_table(["run", "epochs", *names, *probes], rows)
