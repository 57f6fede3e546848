"""Output folders of cross-validations that nobody has run."""

import json

import numpy as np
import pandas as pd

from speechbrain_wap.evaluation.details import BINS, DETAILS, DIGITS
from speechbrain_wap.files import write_table
from speechbrain_wap.reports.report import sum_up
from speechbrain_wap.reports.report_facts import name_run, record_facts

CLASSES = ["angry", "sad", "neutral"]


def make_curve(generator):
    """Draws a curve as digits."""
    return "".join(DIGITS[n] for n in generator.integers(0, 62, BINS))


def make_report_folder(
    folder,
    num_utterances=12,
    classes=CLASSES,
    wav="/gone/{}.wav",
    name="u{}",
    speaker="s{}",
    seeds=(7, 8),
    notes=(),
    extra=None,
):
    """Writes what a cross-validation of two folds leaves; gives predictions.

    name, speaker and wav are templates; extra are columns of the corpus table.
    """
    generator = np.random.default_rng(0)
    numbers = np.arange(num_utterances)
    table = pd.DataFrame(
        {
            "id": [name.format(n) for n in numbers],
            "session": [str(1 + n % 2) for n in numbers],
            "speaker": [speaker.format(n % 4) for n in numbers],
            "label": [classes[n % len(classes)] for n in numbers],
        }
    )
    corpus = table[["id", "speaker", "session"]].assign(
        wav=[wav.format(n) for n in numbers],
        duration=0.5 + numbers % 7,
        emo="x",
        digest="0",
        **(extra or {}),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "corpus.csv", corpus)
    runs, tables, places, adapters = [], [], {}, {}
    for seed in seeds:
        for fold in (1, 2):
            part = table[table["session"] == str(fold)].copy()
            shares = generator.dirichlet(np.ones(len(classes)), len(part))
            part["prediction"] = [classes[n] for n in shares.argmax(axis=1)]
            part[list(range(len(classes)))] = shares
            confusion = pd.crosstab(part["label"], part["prediction"])
            confusion = confusion.reindex(index=classes, columns=classes)
            run = {
                "classes": classes,
                "fold": fold,
                "seed": seed,
                "session": str(fold),
                "n": len(part),
                **dict.fromkeys(("UA", "WA", "F1"), 0.5),
                "confusion": confusion.fillna(0).astype(int).values.tolist(),
            }
            runs.append(run)
            tables.append(part.assign(seed=seed, fold=fold))
            place = folder / f"seed{seed}" / f"fold{fold}" / "classifier"
            place.mkdir(parents=True, exist_ok=True)
            places[name_run(run)] = place
            names = dict(enumerate(classes))
            write_table(place / "predictions.csv", part.rename(columns=names))
            scores = {**run, "trained_parameters": 1234567}
            (place / "scores.json").write_text(json.dumps(scores))
            adapter = place.parent / "adapter"
            adapter.mkdir(exist_ok=True)
            adapters[name_run(run)] = adapter
            for stage, minutes, peak in ((place, 1.5, 70), (adapter, 2.5, 90)):
                cost = {"minutes": minutes, "peak_memory_mb": peak}
                (stage / "cost.json").write_text(json.dumps(cost))
            details = {
                "linear_probe": {"UA": 0.4, "WA": 0.41, "F1": 0.42},
                "layer_weights": {"backbone.layer_weights": [0.25, 0.75]},
                "envelope": {k: make_curve(generator) for k in part["id"]},
                "attention": {k: make_curve(generator) for k in part["id"]},
            }
            (place / DETAILS).write_text(json.dumps(details))
            rows = [
                {"epoch": e, "train": {"loss": 1.0}, "valid": {"UA": 0.5}}
                for e in (1, 2)
            ]
            (place / "history.json").write_text(json.dumps(rows))
    record_facts(folder, sum_up(runs, {}), adapters, places, list(notes), {})
    return pd.concat(tables, ignore_index=True)
