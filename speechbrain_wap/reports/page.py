"""report.html: how good a model is, where it fails and why, and to hear it.

One file without network: the template ``page.html``, the script ``page.js``,
figures as SVG, and the utterances as data that the script shows. The script is
ours, since no table of a library also draws and plays; one of hundreds of
kilobytes would be a copy in this repository and in each page.
"""

import io
import json
import os
import re
from importlib.resources import files
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from speechbrain_wap.data.speakers import natural_key
from speechbrain_wap.errors import escape_controls
from speechbrain_wap.evaluation.details import BINS, DIGITS
from speechbrain_wap.evaluation.metrics import calibration, emotion_scores
from speechbrain_wap.files import ANY_BYTES, write_text
from speechbrain_wap.reports.report import (
    ADAPTER_PANELS,
    CLASSIFIER_PANELS,
    draw_curves,
    finish_figure,
    percent,
)
from speechbrain_wap.training.run_folds import SCORES

PAGE = "report.html"
# Told apart by the colour-blind (Okabe and Ito, Tol), on black and on white
COLORS = "#0072b2 #e69f00 #009e73 #cc79a7 #56b4e9 #d55e00 #999999".split()
COLORS += ["#882255"]
# Stands in a figure for the colour of the text around it
INK = "#010203"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same figure has the same names
    "axes.prop_cycle": f"cycler('color', {COLORS})",
    "axes.facecolor": "none",
    "legend.framealpha": 0.0,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
}
# Seconds that bound the groups of lengths
LENGTHS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, float("inf"))
# What the weights of a model's layers are called, by the parameter's name
LAYERS = {
    "layer_weights": "layers of the network",
    "encoder_layer_weights": "layers of the encoder",
}
# Panels of the adapter's curves that are about the codebook
CODEBOOK = ("perplexity of the attributes", "share of attributes used")


def write_page(facts):
    """Writes report.html.

    Arguments
    ---------
    facts : speechbrain_wap.reports.report_facts.Facts
        What to show.
    """
    write_text(facts.folder / PAGE, make_page(facts))


def make_page(facts):
    """Makes report.html.

    Arguments
    ---------
    facts : speechbrain_wap.reports.report_facts.Facts
        What to show.

    Returns
    -------
    text : str
        All that is not ours in it is escaped.
    """
    here = files(__package__)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: escape_controls(x) if type(x) is str else x,
    )
    template = environment.from_string(
        (here / "page.html").read_text(encoding="utf-8")
    )
    results, tested = facts.results, facts.utterances
    counts = np.sum([run["confusion"] for run in results["runs"]], axis=0)
    calibrated, error = None, None
    if len(tested):
        calibrated, error = calibration(*_find_confidence(tested, results))
    notes = [_read_note(note) for note in facts.notes]
    panels = {"codebook": {}, "adapter": {}}
    for title, column in ADAPTER_PANELS.items():
        is_codebook = title in CODEBOOK
        panels["codebook" if is_codebook else "adapter"][title] = column
    figures = {
        "calibration": _draw(_draw_calibration, calibrated),
        "classifier": _draw(draw_curves, facts.classifiers, CLASSIFIER_PANELS),
        "adapter": _draw(draw_curves, facts.adapters, panels["adapter"]),
        "codebook": _draw(draw_curves, facts.adapters, panels["codebook"]),
        "layers": _draw(
            _draw_layers,
            _average_layers(facts.details),
            results["settings"].get("classifier.encoder_layer"),
        ),
    }
    return template.render(
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
        data=_write_data(facts),
        classes=results["classes"],
        colors=[COLORS[i % len(COLORS)] for i in range(len(counts))],
        name=facts.folder.absolute().name,
        num_seeds=len({run["seed"] for run in results["runs"]}),
        summary=_describe_run(facts),
        scores=_list_scores(facts, counts),
        std_over=len(results["runs"]) > 1 and results["settings"]["std_over"],
        warnings=[note for note in notes if note[0]],
        notes=[text for mark, text in notes if not mark],
        costs=_list_costs(facts.costs),
        confusion=_list_confusion(counts),
        groups=_list_groups(tested),
        calibration_error=error,
        figures=figures,
        percent=percent,
    )


def _read_note(note):
    """Reads a note's Markdown: its mark in bold, "" if it has none, its text.

    It has been written by report.escape_markdown, whose backslashes go.
    """
    mark, text = re.fullmatch(r"(?:\*\*(.+?)\*\*:?\s*)?(.*)", note).groups()
    return mark or "", re.sub(r"\\(.)", r"\1", text)


def _describe_run(facts):
    """Says in a sentence what was run."""
    runs, classes = facts.results["runs"], facts.results["classes"]
    folds, seeds = ({run[key] for run in runs} for key in ("fold", "seed"))
    once = {run["fold"]: run["n"] for run in runs}
    speakers = facts.utterances["speaker"].nunique()

    def count(number, word):
        """Counts in words."""
        return f"{number} {word}{'s' * (number != 1)}"

    # none where the predictions are gone
    whose = f" of {count(speakers, 'speaker')}" if speakers else ""
    return (
        f"{count(sum(once.values()), 'utterance')}{whose}, "
        f"{len(classes)} classes "
        f"({', '.join(classes)}), held out in {count(len(folds), 'fold')}, "
        f"with {count(len(seeds), 'seed')}."
    )


def _list_scores(facts, counts):
    """Lists each score with its spread, that of chance and of the probe."""
    results = facts.results
    classes, totals = results["classes"], counts.sum(axis=1)
    labels = np.repeat(classes, totals)
    guess = classes[int(totals.argmax())]
    chance = emotion_scores(labels, [guess] * len(labels), classes)
    probes = [d["linear_probe"] for d in facts.details if d["linear_probe"]]
    probe = None
    if len(probes) == len(facts.details):
        probe = pd.DataFrame(probes).mean()
    return [
        {
            "name": name,
            "mean": results["mean"][name],
            "std": results["std"][name],
            "chance": chance[name],
            "guess": guess,
            "probe": None if probe is None else probe[name],
        }
        for name in SCORES
    ]


def _list_costs(costs):
    """Says what the runs took, as far as all have recorded it."""
    texts = []
    for key, words, join in (
        ("trained_parameters", "{:,.0f} trained parameters", max),
        ("minutes", "{:,.1f} minutes, all runs together", sum),
        ("peak_memory_mb", "{:,.0f} MB of memory at most", max),
    ):
        values = [cost[key] for cost in costs if cost.get(key) is not None]
        if values and len(values) == len(costs):
            texts.append(words.format(join(values)))
    return texts


def _list_confusion(counts):
    """Lists the rows of the confusion matrix: counts and shares."""
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    return [
        [{"count": int(n), "share": float(s)} for n, s in zip(*row)]
        for row in zip(counts, shares)
    ]


def _list_groups(tested):
    """Scores what was tested by fold, speaker, gender and length.

    The UA of a group is over the classes that it has.
    """
    lengths = pd.cut(
        tested["duration"].astype(float),
        LENGTHS,
        right=False,
        labels=[
            f"{low:g} to {high:g} s" if np.isfinite(high) else f"from {low:g} s"
            for low, high in zip(LENGTHS, LENGTHS[1:])
        ],
    )
    groups = {}
    for title, column in (
        ("Held-out session", tested["session"]),
        ("Speaker", tested["speaker"]),
        ("Gender", tested["gender"].replace("", None)),
        ("Length of the utterance", lengths),
    ):
        rows = []
        for value, part in tested.groupby(column, observed=True):
            labels, found = part["label"].tolist(), part["prediction"].tolist()
            scores = emotion_scores(labels, found, sorted(set(labels)))
            rows.append({"value": str(value), "n": len(part), **scores})
        if title != "Length of the utterance":
            rows.sort(key=lambda row: natural_key(row["value"]))
        if rows:
            groups[title] = rows
    return groups


# Figures ----------------------------------------------------------------------


def _draw(draw, facts, *args):
    """Draws a figure as SVG in the page's own colours; None of nothing."""
    if facts is None or not len(facts):
        return None
    with rc_context(STYLE):
        figure = draw(facts, *args)
        finish_figure(figure)
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=True, metadata={"Date": None}
        )
    _, _, svg = stream.getvalue().partition("<svg")
    start, _, rest = svg.partition(">")
    # as wide as there is room, and no wider than it was drawn
    start = re.sub(r'\s(width|height)="[^"]*"', "", start)
    width = figure.get_figwidth()
    start = f'<svg{start} style="max-width: {width:.1f}in">'
    return Markup(start + rest.replace(INK, "currentColor"))


def _find_confidence(tested, results):
    """Finds the highest probability of each row, and whether it is right."""
    probabilities = tested[list(range(len(results["classes"])))].to_numpy(float)
    correct = tested["label"] == tested["prediction"]
    return probabilities.max(axis=1), correct.to_numpy()


def _draw_calibration(bins):
    """Draws the reliability diagram."""
    figure = Figure(figsize=(4.4, 4.0))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    width = 0.1
    axes.bar((bins.index + 0.5) * width, bins["accuracy"], width * 0.9)
    axes.plot(
        bins["confidence"], bins["accuracy"], "o", color=COLORS[1], zorder=3
    )
    for _, one in bins.iterrows():
        axes.annotate(
            f"{one['count']:.0f}",
            (one["confidence"], one["accuracy"]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set(xlabel="confidence", ylabel="share that is right")
    axes.set(xlim=(0, 1), ylim=(0, 1.08))
    return figure


def _average_layers(details):
    """Averages the weights of layers over the runs; those of one are left out.

    Gives mean and standard deviation by the parameter's name.
    """
    averages = {}
    for name in details[0]["layer_weights"]:
        rows = [d["layer_weights"].get(name, ()) for d in details]
        if 1 < len(rows[0]) == min(map(len, rows)):
            averages[name] = np.mean(rows, axis=0), np.std(rows, axis=0)
    return averages


def _draw_layers(averages, encoder_layer):
    """Draws the weights of layers, a panel for each parameter."""
    figure = Figure(figsize=(4.4 * len(averages), 3.2))
    for number, (name, (mean, std)) in enumerate(averages.items(), start=1):
        axes = figure.add_subplot(1, len(averages), number)
        error = {"ecolor": INK, "capsize": 3}
        name = name.rpartition(".")[2]
        layers = range(1, len(mean) + 1)
        if name == "encoder_layer_weights":
            # as the key has them: "weighted" begins with what enters the first
            layers = range(len(mean))
            # one stream of several may have a key of its own
            is_list = isinstance(encoder_layer, list)
            if is_list and len(encoder_layer) == len(mean):
                layers = encoder_layer
        axes.bar([*map(str, layers)], mean, yerr=std, error_kw=error)
        axes.set(xlabel="layer", ylabel="weight")
        axes.set_title(LAYERS.get(name, name), fontsize=10)
    return figure


# Utterances -------------------------------------------------------------------


def _write_data(facts):
    """Writes the utterances as JSON that can stand in a page."""
    tested, classes = facts.utterances, facts.results["classes"]
    known = tested.drop_duplicates("id").set_index("id")
    ids = sorted(known.index, key=natural_key)
    known = known.loc[ids]
    speakers = sorted(set(known["speaker"]), key=natural_key)
    numbers = {
        "label": {name: number for number, name in enumerate(classes)},
        "speaker": {name: number for number, name in enumerate(speakers)},
    }
    envelopes, ends = {}, {}
    for details in facts.details:
        envelopes.update(details["envelope"])
        ends.update(details["heard_end"])
    heard = known.index.isin(ends)
    # what is drawn is played, no more
    known["end"] = known["end"].where(~heard, known.index.map(ends))
    data = {
        "bins": BINS,
        "digits": DIGITS,
        "classes": [*map(escape_controls, classes)],
        "speakers": [*map(escape_controls, speakers)],
        "id": [*map(escape_controls, ids)],
        "speaker": known["speaker"].map(numbers["speaker"]).tolist(),
        "label": known["label"].map(numbers["label"]).tolist(),
        "seconds": _shorten(known["duration"], 2),
        "start": _shorten(known["start"], 3),
        "end": _shorten(known["end"], 3),
        "cut": np.flatnonzero(heard).tolist(),
        "wav": [_link(wav, facts.folder) for wav in known["wav"]],
        "envelope": [envelopes.get(key) for key in ids],
        "runs": [],
    }
    for seed, part in tested.groupby("seed", sort=False):
        part = part.set_index("id")
        here = part.reindex(ids)
        attention = {}
        for run, details in zip(facts.results["runs"], facts.details):
            if run["seed"] == seed:
                attention.update(details["attention"])
        shares = (1000 * here[list(range(len(classes)))]).astype(float)
        data["runs"].append(
            {
                "seed": int(seed),
                "predicted": [
                    numbers["label"].get(name) for name in here["prediction"]
                ],
                "probabilities": [
                    None if np.isnan(row).any() else np.rint(row).astype(int)
                    for row in shares.to_numpy()
                ],
                "attention": [attention.get(key) for key in ids],
            }
        )
    text = json.dumps(
        data,
        separators=(",", ":"),
        default=lambda array: array.tolist(),
        allow_nan=False,  # a browser would read none of it
    )
    return Markup(text.replace("<", "\\u003c"))


def _shorten(column, digits):
    """Lists numbers with few digits, None where there is none."""
    return [
        None if pd.isna(value) else round(float(value), digits)
        for value in column
    ]


def _link(wav, folder):
    """Links a recording from the page; None where nobody knows it."""
    if not isinstance(wav, str) or not wav:
        return None
    path = os.path.relpath(wav, folder.absolute())
    return quote(path.encode(**ANY_BYTES))
