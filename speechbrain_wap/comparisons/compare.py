r"""One table: linear probe, no adapter training, adapter training.

> python -m speechbrain_wap compare hparams/adapter.yaml \
    hparams/classifier.yaml --data_folder=/path/to/corpus \
    --seeds=1993,1994,1995 --output_folder=results/comparison

Typed in a recipe's folder. Takes the options of cross_validate.py but
--adapter_training; with --adapter_folder=DIR_{seed}, the adapters are those of
earlier runs, one for each seed, which begins as the system without adapter
training does. All systems see the same features of the same folds.
--label_fractions=0.05,0.1,0.25,0.5,1.0 compares them at each share of the
labels and draws the curve; the adapters are trained once.
--adapter_epochs=5,15,45 trains an adapter of each length, in a folder of its
own, and draws UA against the steps (comparison_epochs.md). The same command
again, with more fractions or lengths too, takes up what there is.
"""

import os
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.comparisons.comparison import (
    WITH,
    WITHOUT,
    write_comparison,
)
from speechbrain_wap.comparisons.probe import PROBE, build_hparams, probe_folds
from speechbrain_wap.comparisons.running import find_common
from speechbrain_wap.errors import RecipeError, check_number
from speechbrain_wap.files import only_process
from speechbrain_wap.reports.cross_validation_report import (
    cross_validate,
    list_shared_speakers,
    summarise,
)
from speechbrain_wap.reports.report_facts import read_histories
from speechbrain_wap.training.command_line import split_options
from speechbrain_wap.training.cross_validation import (
    CrossValidation,
    find_run,
    parse_list,
)

REFUSED_OPTIONS = {
    "adapter_training": "both are run",
    "adapters_folder": "they lie in the output folder",
}


class _System(NamedTuple):
    """A system to run: its name, the share of the labels, and where.

    adapters is the folder in which its stage 1 lies or is to lie, None where
    it has none or an earlier one.
    """

    name: str
    fraction: float
    plan: CrossValidation
    adapters: Path | None = None


def main(arguments):
    """Runs the three systems and writes comparison.md, .json and .png.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    plan, fractions, lengths = _read_arguments(arguments)
    hparams = build_hparams(plan)
    if not hasattr(hparams["model"], "backbone"):
        raise RecipeError(
            f"the system {type(hparams['model']).__name__} has no backbone "
            "that an adapter could train, hence nothing to compare: run "
            "cross_validate.py --adapter_training=False."
        )
    systems = _list_systems(plan, fractions, lengths)
    # an earlier adapter that will not do is refused before anything is trained
    first = WITH if plan.adapter_folder else None
    for system in sorted(systems, key=lambda one: one.name != first):
        cross_validate(system.plan)
    if if_main_process():
        with only_process(plan.output_folder, wait=True):
            _compare(plan, hparams, systems, lengths is not None)


def _compare(plan, hparams, systems, lengths):
    """Writes the comparison of what is finished in all systems."""
    finished = find_common([system.plan for system in systems])
    if not finished[0]:
        print("No comparison: no fold is finished in all systems yet.")
        return
    pooled, compared = {}, []
    for system, runs in zip(systems, finished):
        results = summarise(system.plan, runs)[1]
        entry = {"system": system.name, "label_fraction": system.fraction}
        if system.name == WITHOUT:
            source = [hparams, system.plan, results["runs"]]
            probe = probe_folds(*source, system.fraction, pooled)
            compared.append({**entry, "system": PROBE, **probe})
        else:
            results = {**results, **_measure_length(system, results)}
        compared.append({**entry, **results})
    table, path = write_comparison(
        plan.output_folder,
        compared,
        lengths,
        list_shared_speakers(systems[0].plan),
    )
    print(f"\n{table}\n\nWritten to {path}")


def _read_arguments(arguments):
    """Reads the plan, the shares of the labels and the adapters' lengths."""
    positional, options = split_options(arguments)
    given = dict(options)
    for key, reason in REFUSED_OPTIONS.items():
        if key in given:
            raise RecipeError(f"--{key} cannot be set here: {reason}.")
    fractions = lengths = None
    if "label_fractions" in given:
        fractions = _parse_fractions(given["label_fractions"] or "")
        if {"label_fraction", "classifier.label_fraction"} & given.keys():
            raise RecipeError(
                "give either --label_fraction or --label_fractions."
            )
    if "adapter_epochs" in given:
        lengths = _parse_lengths(given["adapter_epochs"] or "")
        for key, reason in {
            "adapter.number_of_epochs": "it sets that",
            "adapter_folder": "an earlier adapter has its length",
        }.items():
            if key in given:
                raise RecipeError(
                    f"--adapter_epochs and --{key} exclude each other: "
                    f"{reason}."
                )
        if fractions and len(fractions) > 1:
            raise RecipeError(
                "give either --adapter_epochs or several --label_fractions: "
                "a curve has one axis."
            )
    plan = CrossValidation(
        positional
        + [
            f"--{key}" if text is None else f"--{key}={text}"
            for key, text in options
            if key not in ("label_fractions", "adapter_epochs")
        ],
        adapter_training=True,  # both are run, whatever the YAML says
    )
    if fractions is None:
        fractions = [float(plan.settings["classifier"]["label_fraction"])]
    return plan, fractions, lengths


def _parse_fractions(text):
    """Reads shares of the labels, as "0.1,1.0"; the smallest comes first."""
    try:
        fractions = {float(part) for part in text.strip("[]() ").split(",")}
        for value in fractions:
            check_number("label_fraction", value, above=0.0, most=1.0)
    except ValueError:  # no number, or a RecipeError
        raise RecipeError(
            f"--label_fractions={text} must be numbers above 0 and at most 1: "
            "--label_fractions=0.1,0.5,1.0."
        )
    return sorted(fractions)


def _parse_lengths(text):
    """Reads epochs of adapter training, as "5,15"; the smallest comes first."""
    lengths = sorted(parse_list(text, "adapter_epochs"))
    if lengths[0] < 1:
        raise RecipeError(
            f"--adapter_epochs={text} must be whole numbers above 0: "
            "--adapter_epochs=5,15; the system without adapter training is "
            "run anyway."
        )
    return lengths


def _list_systems(plan, fractions, lengths):
    """Lists what is to be run, at each share of the labels.

    A comparison of all labels lies in the output folder, others below it.
    """
    root = Path(plan.output_folder)
    # stage 1 uses no labels: all shares of them have the same adapters
    adapters = {root / "with_adapter": {}}
    if lengths:
        adapters = {
            root / f"with_adapter_{epochs}_epochs": {"number_of_epochs": epochs}
            for epochs in lengths
        }
    systems = []
    for fraction in fractions:
        labels = {"label_fraction": fraction}
        here = root if fraction == 1.0 else root / f"labels_{fraction}"
        without = plan.change(
            classifier=labels,
            adapter_training=False,
            adapter_folder=None,
            output_folder=str(here / "from_scratch"),
        )
        systems.append(_System(WITHOUT, fraction, without))
        for folder, values in adapters.items():
            with_adapter = plan.change(
                adapter=values,
                classifier=labels,
                adapters_folder=str(folder),
                output_folder=str(here / folder.name),
            )
            own = None if plan.adapter_folder else folder
            systems.append(_System(WITH, fraction, with_adapter, own))
    return systems


def _measure_length(system, results):
    """Looks up epochs and mean steps of a system's adapter training.

    None where stage 1 was not run for it, or a history lacks the steps.
    """
    if system.adapters is None:
        return {"adapter_epochs": None, "adapter_steps": None}
    places = [
        find_run(system.adapters, run["seed"], run["fold"])
        for run in results["runs"]
    ]
    histories = read_histories(
        {place: os.path.join(place, "adapter") for place in places}
    )
    # a history of an earlier version, or a damaged one, lacks them
    steps = [rows[-1].get("steps") for rows in histories.values() if rows]
    is_known = None not in steps and len(steps) == len(places)
    return {
        "adapter_epochs": results["settings"]["adapter.number_of_epochs"],
        "adapter_steps": sum(steps) / len(steps) if is_known else None,
    }
