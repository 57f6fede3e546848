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
from contextlib import suppress
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.data.folds import SPLITS, list_classes, read_manifests
from speechbrain_wap.data.sampling import choose_labelled
from speechbrain_wap.errors import RecipeError, check_number
from speechbrain_wap.evaluation.comparison import (
    PROBE,
    WITH,
    WITHOUT,
    write_comparison,
)
from speechbrain_wap.evaluation.cross_validate import cross_validate
from speechbrain_wap.evaluation.linear_probe import linear_probe
from speechbrain_wap.evaluation.report import read_histories, sum_up
from speechbrain_wap.training.command_line import split_options
from speechbrain_wap.training.cross_validation import (
    CrossValidation,
    find_run,
    load_scripts,
    parse_list,
)
from speechbrain_wap.training.experiment import Experiment

# Where the systems that are trained lie
FOLDERS = {WITHOUT: "from_scratch", WITH: "with_adapter"}
REFUSED_OPTIONS = {
    "adapter_training": "both are run",
    "adapters_folder": "they lie in the output folder",
}


def parse_fractions(text):
    """Reads the shares of the labels.

    Arguments
    ---------
    text : str
        What the user wrote, as "0.1,1.0".

    Returns
    -------
    fractions : list of float
        Without repetitions, the smallest first.

    Raises
    ------
    RecipeError
        If one is no number above 0 and at most 1.
    """
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


def parse_lengths(text):
    """Reads the numbers of epochs of adapter training.

    Arguments
    ---------
    text : str
        What the user wrote, as "5,15".

    Returns
    -------
    lengths : list of int
        Without repetitions, the smallest first.

    Raises
    ------
    RecipeError
        If one is no whole number above 0.
    """
    lengths = sorted(parse_list(text, "adapter_epochs"))
    if lengths[0] < 1:
        raise RecipeError(
            f"--adapter_epochs={text} must be whole numbers above 0: "
            "--adapter_epochs=5,15; the system without adapter training is "
            "run anyway."
        )
    return lengths


def read_hparams(plan, folder):
    """Builds what the classifier's YAML wires.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What is compared.
    folder : pathlib.Path
        Output folder of a finished cross-validation.

    Returns
    -------
    hparams : dict
    """
    command = plan.commands["classifier"].change(output_folder=str(folder))
    experiment = Experiment(command, load_scripts()["classifier"].NEEDED)
    with suppress(OSError):  # building made it, each fold has its own
        os.rmdir(experiment.save_folder)
    return experiment.hparams


def probe_folds(hparams, folder, finished, fraction, pooled):
    """Fits the linear probe on the folds of a finished cross-validation.

    Arguments
    ---------
    hparams : dict
        Values of the classifier's YAML.
    folder : str
        Output folder of that cross-validation.
    finished : dict
        Content of its results.json.
    fraction : float
        Share of the labels that are used.
    pooled : dict
        See :func:`speechbrain_wap.evaluation.linear_probe.linear_probe`.

    Returns
    -------
    results : dict
        As in results.json, without confusion matrices.
    """
    cache = hparams["feature_cache"]
    first = finished["runs"][0]["seed"]
    runs = []
    for run in finished["runs"]:
        if fraction == 1.0 and run["seed"] != first:
            continue  # the probe draws no random numbers
        run_folder = Path(folder, f"seed{run['seed']}", f"fold{run['fold']}")
        splits = read_manifests(
            {s: run_folder / "classifier" / f"{s}.json" for s in SPLITS}
        )
        # what has been pooled was sound: its entry is not read once more
        splits = {
            name: {
                key: entry
                for key, entry in split.items()
                if entry["digest"] in pooled or cache.is_sound(entry["digest"])
            }
            for name, split in splits.items()
        }
        classes = list_classes(splits, hparams["classes"])
        labelled = choose_labelled(splits["train"], fraction, run["seed"])
        scores = linear_probe(splits, cache, classes, labelled, pooled)
        kept = {"classes": classes, "confusion": None}
        runs.append({**run, **kept, **scores})
    return sum_up(runs, {})


def plan_systems(plan, fractions, lengths):
    """Lists the cross-validations to run.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What is compared; an earlier adapter of it is used in place of stage 1.
        A comparison of all labels lies in its folder, the others below.
    fractions : list of float
        Shares of the labels.
    lengths : list of int, or None
        Epochs of adapter training; None: the YAML's or the user's.

    Returns
    -------
    systems : list of tuple
        System, share, cross-validation, and the folder in which the system's
        stage 1 lies or is to lie (None: it has none).
    """
    root = Path(plan.output_folder)
    trained = root / FOLDERS[WITH]  # of all shares: no labels go into it
    adapters = {trained: {}}
    if lengths and not plan.adapter_folder:
        adapters = {
            root / f"{trained.name}_{epochs}_epochs": {
                "number_of_epochs": epochs
            }
            for epochs in lengths
        }
    systems = []
    for fraction in fractions:
        here, labels = place(root, fraction), {"label_fraction": fraction}
        without = plan.change(
            classifier=labels,
            adapter_training=False,
            adapter_folder=None,
            output_folder=str(here / FOLDERS[WITHOUT]),
        )
        systems.append((WITHOUT, fraction, without, None))
        for folder, values in adapters.items():
            with_adapter = plan.change(
                adapter=values,
                classifier=labels,
                adapters_folder=str(folder),
                output_folder=str(here / folder.name),
            )
            folder = None if plan.adapter_folder else folder
            systems.append((WITH, fraction, with_adapter, folder))
    return systems


def measure_length(adapters, results):
    """Says how long a system's adapters were trained.

    Arguments
    ---------
    adapters : pathlib.Path or None
        Where their stage 1 lies.
    results : dict
        Content of the system's results.json.

    Returns
    -------
    length : dict
        "adapter_epochs" and "adapter_steps", the mean over the runs; None
        where stage 1 was not run for them, or does not tell its steps.
    """
    if adapters is None:
        return {"adapter_epochs": None, "adapter_steps": None}
    histories = read_histories(
        {
            run: os.path.join(find_run(adapters, *run), "adapter")
            for run in [(run["seed"], run["fold"]) for run in results["runs"]]
        }
    )
    # one of an earlier version, or a damaged one, does not tell
    steps = [rows[-1].get("steps") for rows in histories.values() if rows]
    known = None not in steps and len(steps) == len(results["runs"])
    return {
        "adapter_epochs": results["settings"]["adapter.number_of_epochs"],
        "adapter_steps": sum(steps) / len(steps) if known else None,
    }


def place(root, fraction):
    """Names the folder of a share of the labels.

    Arguments
    ---------
    root : pathlib.Path
        Output folder of the comparison.
    fraction : float
        The share.

    Returns
    -------
    folder : pathlib.Path
    """
    return root if fraction == 1.0 else root / f"labels_{fraction}"


def main(arguments):
    """Runs the three systems and writes comparison.md, .json and .png.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    positional, options = split_options(arguments)
    given = dict(options)
    for key, reason in REFUSED_OPTIONS.items():
        if key in given:
            raise RecipeError(f"--{key} cannot be set here: {reason}.")
    fractions = None
    if "label_fractions" in given:
        fractions = parse_fractions(given["label_fractions"] or "")
        if {"label_fraction", "classifier.label_fraction"} & given.keys():
            raise RecipeError(
                "give either --label_fraction or --label_fractions."
            )
    lengths = None
    if "adapter_epochs" in given:
        lengths = parse_lengths(given["adapter_epochs"] or "")
        refuse_beside_lengths(given, fractions)
    kept = positional + [
        f"--{key}" if text is None else f"--{key}={text}"
        for key, text in options
        if key not in ("label_fractions", "adapter_epochs")
    ]
    command = CrossValidation(kept)
    model = read_hparams(command, command.output_folder)["model"]
    if not hasattr(model, "backbone"):
        raise RecipeError(
            f"the system {type(model).__name__} has no backbone that an "
            "adapter could train, hence nothing to compare: run "
            "cross_validate.py --adapter_training=False."
        )
    if fractions is None:
        fraction = command.settings["classifier"]["label_fraction"]
        fractions = [float(fraction)]
    systems = []
    plan = plan_systems(command, fractions, lengths)
    # an earlier adapter that will not do is refused before anything is trained
    order = sorted(
        range(len(plan)),
        key=lambda n: bool(command.adapter_folder) and plan[n][0] != WITH,
    )
    for number in order:
        name, fraction, version, adapters = plan[number]
        results = cross_validate(version)
        entry = {"system": name, "label_fraction": fraction, **results}
        if name == WITH and if_main_process():
            entry.update(measure_length(adapters, results))
        systems.append((number, entry))
    if not if_main_process():
        return
    systems = [entry for _, entry in sorted(systems, key=lambda pair: pair[0])]
    root = Path(command.output_folder)
    hparams, pooled, compared = None, {}, []
    for entry in systems:
        if entry["system"] == WITHOUT:
            fraction = entry["label_fraction"]
            folder = place(root, fraction) / FOLDERS[WITHOUT]
            hparams = hparams or read_hparams(command, folder)
            probe = probe_folds(hparams, folder, entry, fraction, pooled)
            compared.append(
                {"system": PROBE, "label_fraction": fraction, **probe}
            )
        compared.append(entry)
    table, path = write_comparison(root, compared, lengths is not None)
    print(f"\n{table}\n\nWritten to {path}")


def refuse_beside_lengths(given, fractions):
    """Refuses what --adapter_epochs cannot be combined with.

    Arguments
    ---------
    given : dict
        Text of the user's options.
    fractions : list of float, or None
        Shares of the labels.

    Raises
    ------
    RecipeError
        If there is such an option; names it.
    """
    for key, reason in {
        "adapter.number_of_epochs": "it sets that",
        "adapter_folder": "an earlier adapter has its length",
    }.items():
        if key in given:
            raise RecipeError(
                f"--adapter_epochs and --{key} exclude each other: {reason}."
            )
    if fractions and len(fractions) > 1:
        raise RecipeError(
            "give either --adapter_epochs or several --label_fractions: "
            "a curve has one axis."
        )
