"""Fig. 2: the same points and colours side by side."""

import sys

import numpy as np
import pandas as pd
import pytest

from speechbrain_wap.comparisons.embeddings import (
    draw_embeddings,
    draw_map,
    score_silhouette,
)
from speechbrain_wap.errors import RecipeError

CLASSES = ["angry", "sad"]


def test_a_map_keeps_neighbours_and_is_the_same_for_a_seed():
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    vectors[:15] += 20.0
    points = draw_map(vectors, seed=3)
    assert np.array_equal(points, draw_map(vectors, seed=3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert ((distances.argmin(axis=1) < 15) == (np.arange(30) < 15)).all()


@pytest.mark.parametrize("method", ["umap", "pacmap"])
def test_a_method_that_is_not_installed_is_named(monkeypatch, method):
    monkeypatch.setitem(sys.modules, method, None)
    with pytest.raises(RecipeError, match=f"pip install {method}"):
        draw_map(np.ones((4, 2)), method)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_utterances_have_a_map(count):
    points = draw_map(np.random.default_rng(0).normal(size=(count, 4)))
    assert points.shape == (count, 2) and np.isfinite(points).all()


def test_a_single_utterance_has_no_map():
    with pytest.raises(RecipeError, match="two utterances"):
        draw_map(np.ones((1, 4)))


def test_one_class_has_a_map_but_no_silhouette():
    silhouette = score_silhouette(np.random.rand(3, 2), ["sad"] * 3)
    table = pd.DataFrame({"label": ["sad"] * 3, "x_encoder": 0, "y_encoder": 1})
    scores = {"encoder": {"silhouette": silhouette, "UA": 0.5}}
    figure = draw_embeddings(table, scores, CLASSES)
    assert figure.axes[0].get_xlabel().startswith("silhouette -, ")


def test_panels_have_the_same_points_and_colours():
    names, generator = ("encoder", "fine_tuned"), np.random.default_rng(0)
    table = pd.DataFrame({"label": ["sad", "angry", "sad"]})
    for name in names:
        table[f"x_{name}"], table[f"y_{name}"] = generator.random((2, 3))
    scores = dict.fromkeys(names, {"silhouette": 0.125, "UA": 0.5})
    figure = draw_embeddings(table, scores, CLASSES)
    for axes, name in zip(figure.axes, names, strict=True):
        for points, label in zip(axes.collections, CLASSES, strict=True):
            part = table[table["label"] == label]
            wanted = part[[f"x_{name}", f"y_{name}"]].to_numpy()
            assert np.array_equal(points.get_offsets(), wanted)
        assert "silhouette 0.125, linear probe UA 50.0 %" in axes.get_xlabel()
    one, other = (
        [points.get_facecolor().tolist() for points in axes.collections]
        for axes in figure.axes
    )
    assert one == other and one[0] != one[1]


def test_twenty_classes_are_twenty_looks():
    labels = [f"class {number}" for number in range(20)]
    table = pd.DataFrame({"label": labels, "x_encoder": 0.0, "y_encoder": 0.0})
    scores = {"encoder": {"silhouette": None, "UA": 0.5}}
    (axes,) = draw_embeddings(table, scores, labels).axes
    looks = {
        (
            points.get_facecolor().tobytes(),
            points.get_paths()[0].vertices.tobytes(),
        )
        for points in axes.collections
    }
    assert len(looks) == 20
