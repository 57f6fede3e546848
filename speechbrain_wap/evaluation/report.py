"""What a cross-validation leaves behind: results.json, report.md, figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from speechbrain.utils.logger import get_logger

from speechbrain_wap.files import write_atomically, write_text

logger = get_logger(__name__)

SCORES = ("UA", "WA", "F1")
# Of student and teacher against the encoder's own frames
STYLES = {"teacher": "solid", "student": "dashed", "raw": "dotted"}
DIAGNOSTIC_PANELS = [
    (
        f"{title} of teacher (student --, raw ..)",
        None,
        {f"{name}_{branch}": style for branch, style in STYLES.items()},
    )
    for title, name in (("probe UA", "probe"), ("effective rank", "rank"))
]


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
    classes = runs[0]["classes"]
    kept = ("fold", "seed", "session", "n", *SCORES, "confusion")
    return {
        "classes": classes,
        "runs": [{key: run[key] for key in kept} for run in runs],
        "mean": {s: float(per_seed[s].mean()) for s in SCORES},
        "std": {s: float(std[s]) for s in SCORES},
        "per_seed": [
            {"seed": int(seed), **{s: float(row[s]) for s in SCORES}}
            for seed, row in per_seed.iterrows()
        ],
        "settings": {
            **settings,
            "std_over": "seeds" if over_seeds else "folds",
        },
    }


def markdown_table(header, rows):
    """Lays out a Markdown table with columns of equal width.

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
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def percent(value):
    """Writes a fraction as a percentage with one decimal.

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
    rows = [
        [run["fold"], run["session"], run["seed"], run["n"]]
        + [percent(run[score]) for score in SCORES]
        for run in results["runs"]
    ]
    rows.append(
        ["mean", "", "", sum(run["n"] for run in results["runs"])]
        + [
            f"{percent(results['mean'][s])} ± {percent(results['std'][s])}"
            for s in SCORES
        ]
    )
    header = ["fold", "held-out session", "seed", "n", *SCORES]
    return markdown_table(header, rows)


def total_confusion(results):
    """Adds up the confusion matrices of all runs.

    Arguments
    ---------
    results : dict
        Content of results.json.

    Returns
    -------
    confusion : numpy.ndarray
        Rows are true classes.
    """
    return np.sum([run["confusion"] for run in results["runs"]], axis=0)


def save_figure(figure, path):
    """Writes a figure as PNG, without a display.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    path : str
        The file to write.
    """
    FigureCanvasAgg(figure)
    figure.tight_layout()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_confusion(results, path):
    """Draws the confusion matrix as recalls with counts.

    Arguments
    ---------
    results : dict
        Content of results.json.
    path : str
        PNG file to write.
    """
    counts, classes = total_confusion(results), results["classes"]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(1.6 + 0.9 * len(classes),) * 2)
    axes = figure.add_subplot()
    axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues")
    for (i, j), share in np.ndenumerate(shares):
        axes.text(
            j,
            i,
            f"{percent(share)} %\n{counts[i, j]}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "black",
            fontsize=8,
        )
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"All runs, UA {percent(results['mean']['UA'])} %")
    save_figure(figure, path)


def _find_curve(rows, split, name):
    """Lists the epochs of a history that have a value, and the values."""
    epochs, values = [], []
    for row in rows:
        value = ((row[split] or {}) if split else row).get(name)
        if value is not None:
            epochs.append(row["epoch"])
            values.append(value)
    return epochs, values


def draw_curves(histories, panels, path):
    """Draws one panel for each quantity, one colour for each run.

    Arguments
    ---------
    histories : dict
        Rows of each run's history.json, by the run's name.
    panels : list of tuple
        Title; "train", "valid", or None for what a row itself has; and the
        quantity's name, or a dict of the styles (solid, dashed, dotted) of
        the lines of several quantities. Epochs without a value are left out.
    path : str
        PNG file to write.
    """
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines))
    for number, (title, split, name) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        styles = name if isinstance(name, dict) else {name: "solid"}
        for color, (run, rows) in enumerate(histories.items()):
            for quantity, style in styles.items():
                epochs, values = _find_curve(rows, split, quantity)
                axes.plot(
                    epochs,
                    values,
                    label=run if style == "solid" else None,
                    color=f"C{color % 10}",
                    linestyle=style,
                    linewidth=1.2,
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if number == 1 and len(histories) <= 10:
            axes.legend(fontsize=7)
    save_figure(figure, path)


def read_histories(folders):
    """Reads the history of each run that has one.

    Arguments
    ---------
    folders : dict
        Output folder of each run, by the run's name.

    Returns
    -------
    histories : dict
        Rows by the run's name.
    """
    histories = {}
    for name, folder in folders.items():
        path = Path(folder, "history.json")
        if not path.is_file():
            continue
        try:
            histories[name] = json.loads(path.read_text("utf-8"))
        except ValueError:
            logger.warning(f"{path} is damaged: the figures are without it.")
    return histories


def write_report(output_folder, results, adapters, classifiers, notes):
    """Writes results.json, the figures and report.md.

    Arguments
    ---------
    output_folder : str
        Where to.
    results : dict
        What :func:`sum_up` gave.
    adapters : dict
        Output folder of each stage-1 run, by name; empty without stage 1.
    classifiers : dict
        Output folder of each stage-2 run, by name.
    notes : list of str
        What a reader of the scores must know.

    Returns
    -------
    text : str
        Content of report.md.
    """
    folder = Path(output_folder)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    classes = results["classes"]
    confusion = [
        [name, *row] for name, row in zip(classes, total_confusion(results))
    ]
    parts = [
        "# Cross-validation",
        f"UA **{percent(results['mean']['UA'])} %** (unweighted accuracy, mean "
        f"recall of the classes; standard deviation over "
        f"{results['settings']['std_over']} below), {len(results['runs'])} "
        "runs. All scores in percent.",
        score_table(results),
        "\n".join(f"- {note}" for note in notes),
        "## Confusion",
        "Rows are true classes, columns predictions, summed over all runs.",
        markdown_table(["", *classes], confusion),
        "![Confusion matrix](confusion.png)",
        "## Fine-tuning",
        "![Fine-tuning curves](classifier_curves.png)",
    ]
    draw_confusion(results, folder / "confusion.png")
    draw_curves(
        read_histories(classifiers),
        [
            ("training loss", "train", "loss"),
            ("validation loss", "valid", "loss"),
            ("validation UA", "valid", "UA"),
        ],
        folder / "classifier_curves.png",
    )
    histories = read_histories(adapters)
    if histories:
        draw_curves(
            histories,
            [
                ("reconstruction loss (Eq. 1)", "train", "rec_loss"),
                ("pseudo-label cross entropy", "train", "pce_loss"),
                ("student agrees with teacher", "train", "agreement"),
                ("perplexity of the attributes", "train", "perplexity"),
                ("share of attributes used", "train", "used"),
                ("teacher spread", "train", "teacher_spread"),
                *DIAGNOSTIC_PANELS,
            ],
            folder / "adapter_curves.png",
        )
        names = ("rec_loss", "pce_loss", "agreement", "perplexity", "used")
        probes = ("probe_raw", "probe_student", "probe_teacher")
        rows = [
            [run, rows[-1]["epoch"]]
            + [f"{rows[-1]['train'][name]:.3g}" for name in names]
            + [
                "-" if rows[-1].get(name) is None else percent(rows[-1][name])
                for name in probes
            ]
            for run, rows in histories.items()
        ]
        parts += [
            "## Adapter training",
            "At the last epoch; `agreement`: masked frames whose local "
            "attribute the student predicts; `perplexity` and `used` of the "
            "codebook; `probe_...`: UA, in percent, with which a linear probe "
            "of the frames of the encoder (raw), student and teacher tells the "
            "labels of training sessions that it was not fitted on.",
            markdown_table(["run", "epochs", *names, *probes], rows),
            "![Adapter training curves](adapter_curves.png)",
        ]
    settings = results["settings"]
    parts += [
        "## Settings",
        markdown_table(
            ["key", "value"],
            [[key, json.dumps(settings[key])] for key in sorted(settings)],
        ),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(folder / "report.md", text)
    return text
