"""What a report is of: gathered once, for report.md and report.html alike.

``results.json`` and ``report.json`` in the output folder, and what each run has
left in its own, are all that a report is made of.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.classes import PREDICTION_COLUMNS
from speechbrain_wap.data.corpus_table import read_corpus_table
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.evaluation.details import read_details
from speechbrain_wap.files import (
    ANY_BYTES,
    digest_file,
    read_json,
    unquote_formula,
    write_text,
)

logger = get_logger(__name__)

RESULTS, RECORD = "results.json", "report.json"
CURE = "run cross_validate.py again: what is finished is not run again."
CSV_OPTIONS = {
    "dtype": str,
    "keep_default_na": False,
    "encoding": ANY_BYTES["encoding"],
    "encoding_errors": ANY_BYTES["errors"],
}


class Facts(NamedTuple):
    """What a report says.

    Attributes
    ----------
    folder : pathlib.Path
        The output folder.
    results : dict
        Content of results.json.
    notes : list of str
        What a reader of the scores must know, in Markdown.
    defaults : dict
        The settings' values without the user's.
    adapters, classifiers : dict
        Rows of the histories of each stage's runs, by the run's name.
    costs : list of dict
        Of each run of the results: trained_parameters of stage 2, minutes and
        peak_memory_mb of both stages, as far as they were recorded.
    details : list of dict
        Content of each stage-2 run's details.json, in the same order.
    utterances : pandas.DataFrame
        What was tested, a row for each utterance of each run: the columns of
        predictions.csv, seed, fold, and of the corpus table wav, duration and,
        where it has them, start, end and gender.
    """

    folder: Path
    results: dict
    notes: list
    defaults: dict
    adapters: dict
    classifiers: dict
    costs: list
    details: list
    utterances: pd.DataFrame


def name_run(run):
    """Names a run by fold and seed.

    Example
    -------
    >>> name_run({"fold": 2, "seed": 7, "UA": 0.5})
    'fold 2, seed 7'
    """
    return f"fold {run['fold']}, seed {run['seed']}"


def record_facts(
    output_folder, results, adapters, classifiers, notes, defaults
):
    """Writes results.json, and in report.json what else a report needs.

    Arguments
    ---------
    output_folder : str
        Where to.
    results : dict
        Content of results.json.
    adapters : dict
        Output folder of each stage-1 run, by name; empty without stage 1.
    classifiers : dict
        Output folder of each stage-2 run, by name.
    notes : list of str
        What a reader of the scores must know.
    defaults : dict
        The settings' values without the user's.
    """
    folder = Path(output_folder)

    def shorten(places):
        """Names folders from the output folder, so that it can be moved.

        What lies outside may be moved with it, as the adapters that a table's
        systems share, or stay: it has two names.
        """
        root = folder.absolute()
        names = {}
        for name, place in places.items():
            path = Path(place).absolute()
            names[name] = [os.path.relpath(path, root)]
            if not path.is_relative_to(root):
                names[name].append(str(path))
        return names

    record = {
        "notes": notes,
        "adapters": shorten(adapters),
        "classifiers": shorten(classifiers),
        "defaults": defaults,
    }
    write_text(folder / RESULTS, json.dumps(results, indent=1))
    write_text(folder / RECORD, json.dumps(record, indent=1))


def read_facts(output_folder):
    """Gathers what a report says.

    Arguments
    ---------
    output_folder : str
        Of cross_validate.py.

    Returns
    -------
    facts : Facts
        Without what is missing or damaged of single runs, which is warned of.

    Raises
    ------
    RecipeError
        If the folder holds no results.
    """
    folder = Path(output_folder)
    for name in (RESULTS, RECORD):
        if not (folder / name).is_file():
            raise RecipeError(f"{folder} holds no {name}: {CURE}")
    results = read_json(folder / RESULTS, CURE, ["classes", "runs", "mean"])
    keys = ["notes", "adapters", "classifiers", "defaults"]
    record = read_json(folder / RECORD, CURE, keys)
    places = {
        key: {name: _find(folder, where) for name, where in record[key].items()}
        for key in ("adapters", "classifiers")
    }
    costs, details, tables, missing = [], [], [], []
    for run in results["runs"]:
        place = places["classifiers"].get(name_run(run), folder)
        # an earlier adapter has another name: its training is not this run's
        stages = [place, places["adapters"].get(name_run(run))]
        scores = _read_loosely(place, "scores.json")
        size = scores.get("trained_parameters")
        cost = read_cost([stage for stage in stages if stage is not None])
        costs.append({"trained_parameters": size, **cost})
        details.append(read_details(place))
        table = _read_predictions(place, results["classes"], run, scores)
        tables += table
        missing += [name_run(run)] * (not table)
    utterances = pd.DataFrame(columns=[*PREDICTION_COLUMNS, "seed", "fold"])
    if tables:
        utterances = pd.concat(tables, ignore_index=True)
    if missing:
        record["notes"].append(
            f"**Without utterances** of {'; '.join(missing)}, whose "
            "predictions.csv is missing or damaged. To test them again, "
            f"{CURE}"
        )
    return Facts(
        folder,
        results,
        record["notes"],
        record["defaults"],
        *(read_histories(places[key]) for key in ("adapters", "classifiers")),
        costs,
        details,
        utterances.merge(_read_corpus(folder), on="id", how="left"),
    )


def _find(folder, places):
    """Finds a run's folder: the first there is of its names."""
    # an earlier version recorded one name
    names = [places] if isinstance(places, str) else places
    paths = [os.path.normpath(folder.absolute() / name) for name in names]
    return Path(next(filter(os.path.isdir, paths), paths[0]))


def _read_loosely(place, name):
    """Reads what a run of an earlier version may lack; {} without it."""
    try:
        return read_json(Path(place, name), CURE)
    except (OSError, RecipeError):
        return {}


def read_cost(folders):
    """Adds up what the stages of a run have cost.

    Arguments
    ---------
    folders : list of str
        Output folders of the stages that were run.

    Returns
    -------
    cost : dict
        "minutes" and "peak_memory_mb"; None where a stage has not recorded it.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> cost = {"minutes": 1.5, "peak_memory_mb": 300.0}
    >>> _ = (folder / "cost.json").write_text(json.dumps(cost))
    >>> read_cost([folder, folder])
    {'minutes': 3.0, 'peak_memory_mb': 300.0}
    """
    costs = [_read_loosely(folder, "cost.json") for folder in folders]
    minutes = [cost.get("minutes") for cost in costs]
    peaks = [cost.get("peak_memory_mb") for cost in costs]
    return {
        "minutes": None if None in minutes else sum(minutes),
        "peak_memory_mb": None if None in peaks else max(peaks),
    }


def _read_predictions(place, classes, run, scores):
    """Reads a run's predictions, a list with a table; empty without them."""
    path = Path(place, "predictions.csv")
    try:
        # an earlier version wrote no digest
        found = digest_file(path)
        if scores.get("predictions_digest", found) != found:
            raise ValueError("it is not as it was written")
        table = pd.read_csv(path, **CSV_OPTIONS)
        first = len(PREDICTION_COLUMNS)
        probabilities = table.iloc[:, first:].astype(float)
        table = table.iloc[:, :first].map(unquote_formula)
        table.columns = PREDICTION_COLUMNS
        probabilities.columns = range(len(classes))
    except (OSError, ValueError):
        logger.warning(
            f"{path} is missing or damaged: the report is without its "
            "utterances."
        )
        return []
    table["seed"], table["fold"] = run["seed"], run["fold"]
    return [pd.concat([table, probabilities], axis="columns")]


def _read_corpus(folder):
    """Reads where each utterance is, how long, and whose voice's gender."""
    columns = ["id", "wav", "duration", "start", "end", "gender"]
    try:
        table = read_corpus_table(folder / "corpus.csv")
    except ValueError as error:  # as a RecipeError is, too
        logger.warning(f"{first_line(error)} The report is without audio.")
        return pd.DataFrame(columns=columns)
    return table.reindex(columns=columns)


def read_histories(folders):
    """Reads the history of each run; what is missing is warned of.

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
        try:
            histories[name] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            logger.warning(
                f"{path} is missing or damaged: the figures are without it."
            )
    return histories
