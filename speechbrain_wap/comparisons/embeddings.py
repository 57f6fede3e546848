r"""Fig. 2: a map of the held-out session before and after the adapter.

> python -m speechbrain_wap embeddings \
      --run_folder=results/my_run/seed1993/fold1/classifier

draws each utterance of the session that a run of train_classifier.py held out
as a point: (a) the encoder's frames, (b) those of the adapter that the run
began with, if any, and (c) those of the network after fine-tuning, all averaged
over time. Under each: the silhouette of the emotions, and the UA of a linear
probe fitted on the training sessions, both of the vectors, not of the map.
Typed in the folder that the run was started in.

--output=DIR     where embeddings.png, .pdf and .csv go; the run's folder
--method=tsne    or umap, pacmap, where umap-learn or pacmap is installed
--seed=0         of the map
"""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler
from speechbrain.utils.distributed import infer_device

from speechbrain_wap.errors import CommandParser, RecipeError, escape_controls
from speechbrain_wap.evaluation.linear_probe import score_probe
from speechbrain_wap.evaluation.trained_run import TrainedRun
from speechbrain_wap.files import expand_path, write_atomically, write_table
from speechbrain_wap.reports.page import COLORS
from speechbrain_wap.reports.report import (
    finish_figure,
    markdown_table,
    percent,
    save_figure,
)
from speechbrain_wap.training.adapter_folder import load_branch

METHODS = ("tsne", "umap", "pacmap")
MARKERS = "osD^vPX"  # one fewer than colours: 56 classes look different
TITLES = {
    "encoder": "(a) encoder",
    "adapter": "(b) adapter",
    "fine_tuned": "(c) after fine-tuning",
}


def draw_map(vectors, method="tsne", seed=0):
    """Draws vectors as points of a plane that keep their neighbours.

    Arguments
    ---------
    vectors : numpy.ndarray
        Shape [N, F].
    method : str
        "tsne", "umap" or "pacmap".
    seed : int
        The same seed gives the same map.

    Returns
    -------
    points : numpy.ndarray
        Shape [N, 2].

    Raises
    ------
    RecipeError
        If the method's package is not installed, or there is but one vector.

    Example
    -------
    >>> draw_map(np.random.default_rng(0).normal(size=(9, 4))).shape
    (9, 2)
    """
    if len(vectors) < 2:
        raise RecipeError("a map needs two utterances at least: test on more.")
    if method == "tsne":
        # of a few points, each has fewer neighbours than the usual 30
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        mapper = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    else:
        try:
            if method == "umap":
                from umap import UMAP as Mapper
            else:
                from pacmap import PaCMAP as Mapper
        except ImportError:
            package = {"umap": "umap-learn"}.get(method, method)
            raise RecipeError(
                f"--method={method} needs {package}: pip install {package}."
            )
        mapper = Mapper(n_components=2, random_state=seed)
    return np.asarray(mapper.fit_transform(vectors), dtype=float)


def score_silhouette(vectors, labels):
    """Computes the silhouette of the emotions.

    Arguments
    ---------
    vectors : numpy.ndarray
        Shape [N, F].
    labels : list of str
        Of each.

    Returns
    -------
    silhouette : float or None
        -1 to 1; None where all have one label, or each another.

    Example
    -------
    >>> score_silhouette(np.array([[0.0], [0.0], [1.0]]), ["a", "a", "b"])
    0.6666666666666666
    >>> score_silhouette(np.ones((2, 1)), ["a", "a"])
    """
    if not 1 < len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(vectors, labels))


def _format_silhouette(value):
    """Formats a silhouette, "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


@torch.no_grad()
def _pool(run, entries, networks):
    """Averages the frames of utterances over time, as each network has them.

    Gives an array [N, F] by the network's name.
    """
    cache, most = run.caches[""], run.settings["max_frames"]
    pooled = {"encoder": [], **{name: [] for name in networks}}
    for entry in entries.values():
        frames = cache.read(entry["digest"])[:most].float()  # (T, D)
        pooled["encoder"].append(frames.flatten(start_dim=1).mean(dim=0))
        for name, network in networks.items():
            z = network(frames[None], torch.ones(1))  # (1, T, d_model)
            pooled[name].append(z[0].float().mean(dim=0))
    return {name: torch.stack(v).numpy() for name, v in pooled.items()}


def _list_networks(run):
    """Lists the networks that enrich frames: the adapter, what became of it."""
    model = run.build_model()
    if not hasattr(model, "backbone"):
        raise RecipeError(
            f"{run.folder} trained the system {type(model).__name__}, which "
            "has no backbone to look at: give a run of another system."
        )
    networks, adapter = {}, run.tree.get("adapter_folder")
    if adapter:
        networks["adapter"] = deepcopy(model.backbone)
        branch = run.tree["adapter_branch"]
        load_branch(expand_path(adapter), branch, networks["adapter"])
    networks["fine_tuned"] = model.backbone
    return {name: network.eval() for name, network in networks.items()}


def embed(run, method="tsne", seed=0):
    """Maps a run's held-out session, before and after its networks.

    Arguments
    ---------
    run : speechbrain_wap.evaluation.trained_run.TrainedRun
        The run.
    method, seed
        See :func:`draw_map`.

    Returns
    -------
    table : pandas.DataFrame
        id, speaker and label of each utterance, and for each of TITLES that
        there is its point, the columns x_... and y_....
    scores : dict
        "silhouette" and "UA" of each.

    Raises
    ------
    RecipeError
        If the run has no network to look at, or its files are gone.
    """
    if "" not in run.caches:
        raise RecipeError(
            f"{run.folder} has several feature_caches: give a run with one."
        )
    splits = {name: run.read_split(name) for name in ("train", "test")}
    cache = run.caches[""]
    cache.device = infer_device()
    cache.extract({e["digest"]: e for s in splits.values() for e in s.values()})
    splits = {
        name: {k: e for k, e in part.items() if cache.has_entry(e["digest"])}
        for name, part in splits.items()
    }
    networks = _list_networks(run)
    pooled = [_pool(run, splits[name], networks) for name in ("train", "test")]
    labels = [
        [entry["label"] for entry in splits[name].values()]
        for name in ("train", "test")
    ]
    test = splits["test"]
    speakers = [entry["speaker"] for entry in test.values()]
    table = pd.DataFrame(
        {"id": list(test), "speaker": speakers, "label": labels[1]}
    )
    scores = {}
    for name in TITLES:
        if name not in pooled[0]:
            continue
        scaler = StandardScaler().fit(pooled[0][name])
        scaled = [scaler.transform(part[name]) for part in pooled]
        points = draw_map(scaled[1], method, seed)
        table[f"x_{name}"], table[f"y_{name}"] = points.T
        scores[name] = {
            "silhouette": score_silhouette(scaled[1], labels[1]),
            "UA": score_probe(scaled, labels, run.scores["classes"])["UA"],
        }
    return table, scores


def draw_embeddings(table, scores, classes):
    """Draws the maps side by side, with the same colours and marks.

    Arguments
    ---------
    table, scores
        See :func:`embed`.
    classes : list of str
        In the order of the colours.

    Returns
    -------
    figure : matplotlib.figure.Figure
    """
    figure = Figure(figsize=(4.2 * len(scores), 4.4))
    for number, (name, values) in enumerate(scores.items(), start=1):
        axes = figure.add_subplot(1, len(scores), number)
        for index, label in enumerate(classes):
            part = table[table["label"] == label]
            axes.scatter(
                part[f"x_{name}"],
                part[f"y_{name}"],
                s=16,
                color=COLORS[index % len(COLORS)],
                marker=MARKERS[index % len(MARKERS)],
                label=escape_controls(label),
                alpha=0.8,
                linewidths=0,
            )
        axes.set_title(TITLES[name], fontsize=11)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(
            f"silhouette {_format_silhouette(values['silhouette'])}, "
            f"linear probe UA {percent(values['UA'])} %"
        )
        if number == 1:
            axes.legend(fontsize=8)
    return figure


def main(arguments):
    """Maps a run's held-out session and writes figure and table.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    parser = CommandParser("embeddings")
    parser.add_argument("--run_folder", required=True)
    parser.add_argument("--output")
    parser.add_argument("--method", choices=METHODS, default="tsne")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    run = TrainedRun(given.run_folder)
    table, scores = embed(run, given.method, given.seed)
    stem = Path(expand_path(given.output or given.run_folder), "embeddings")
    write_table(stem.with_suffix(".csv"), table)
    figure = draw_embeddings(table, scores, run.scores["classes"])
    save_figure(figure, stem.with_suffix(".png"))
    finish_figure(figure)
    with write_atomically(stem.with_suffix(".pdf")) as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
    rows = [
        [
            TITLES[name],
            _format_silhouette(one["silhouette"]),
            percent(one["UA"]),
        ]
        for name, one in scores.items()
    ]
    print(markdown_table(["", "silhouette", "probe UA"], rows))
    print(f"Written to {stem}.png, .pdf and .csv")
