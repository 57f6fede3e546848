#!/usr/bin/env python3
"""One table: linear probe, no adapter training, adapter training.

> python compare_systems.py hparams/adapter.yaml hparams/classifier.yaml \
    --data_folder=/path/to/corpus --seeds=1993,1994,1995 \
    --output_folder=results/comparison

Takes the options of cross_validate.py but --adapter_training; with
--adapter_folder=DIR, the adapter is that of an earlier run. All systems see the
same features of the same folds. --label_fractions=0.05,0.1,0.25,0.5,1.0
compares them at each share of the labels and draws the curve; the adapters are
trained once. The same command again, with more fractions too, takes up what
there is.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.comparison import PROBE, WITH, WITHOUT, write_comparison
from speechbrain_wap.data import SPLITS, list_classes, read_manifests
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.hparams import load_recipe, run_script, split_options
from speechbrain_wap.key_values import check_values, find_mistake
from speechbrain_wap.label_fraction import choose_labelled
from speechbrain_wap.probe import linear_probe
from speechbrain_wap.report import sum_up

# The other scripts lie beside this one, wherever it is started from.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cross_validate  # noqa: E402

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
    except ValueError:
        fractions = {None}
    if any(find_mistake("label_fraction", value) for value in fractions):
        raise RecipeError(
            f"--label_fractions={text} must be numbers above 0 and at most 1: "
            "--label_fractions=0.1,0.5,1.0."
        )
    return sorted(fractions)


def read_hparams(stage, folder):
    """Loads the classifier's YAML.

    Arguments
    ---------
    stage : dict
        The stage, of what ``cross_validate.parse_command`` gave.
    folder : str
        Output folder of a finished cross-validation.

    Returns
    -------
    hparams : dict
    """
    hparams, _, _ = load_recipe(
        stage["file"],
        {**stage["overrides"], "output_folder": str(folder)},
        stage["run_opts"],
        expected_key="sap_heads",
    )
    with suppress(OSError):  # loading made it, each fold has its own
        os.rmdir(hparams["save_folder"])
    return hparams


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
        See :func:`speechbrain_wap.probe.linear_probe`.

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


def run_systems(arguments, root, adapter_folder, fractions):
    """Cross-validates with and without adapter training.

    Arguments
    ---------
    arguments : list of str
        The command line of cross_validate.py.
    root : pathlib.Path
        Where to: a comparison of all labels lies in it, the others below.
    adapter_folder : str or None
        An earlier adapter, which is then used in place of stage 1.
    fractions : list of float
        Shares of the labels.

    Returns
    -------
    results : dict
        Content of results.json by share and system.
    """
    options = {
        WITHOUT: "--adapter_training=False",
        # of all shares: no labels go into them
        WITH: f"--adapters_folder={root / FOLDERS[WITH]}",
    }
    if adapter_folder:
        key = "--adapter_folder="
        arguments = [a for a in arguments if not a.startswith(key)]
        options[WITH] = f"{key}{adapter_folder}"
    return {
        (fraction, name): cross_validate.main(
            [
                *arguments,
                options[name],
                f"--label_fraction={fraction}",
                f"--output_folder={place(root, fraction) / folder}",
            ]
        )
        for fraction in fractions
        for name, folder in FOLDERS.items()
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
    kept = positional + [
        f"--{key}" if text is None else f"--{key}={text}"
        for key, text in options
        if key != "label_fractions"
    ]
    command = cross_validate.parse_command(kept)
    root = Path(command["output_folder"])
    stage = command["stages"]["classifier"]
    if fractions is None:
        check_values(stage["settings"], "sap_heads", stage["file"])
        fractions = [float(stage["settings"]["label_fraction"])]
    results = run_systems(kept, root, command["adapter_folder"], fractions)
    if not if_main_process():
        return
    scratch = {f: place(root, f) / FOLDERS[WITHOUT] for f in fractions}
    hparams = read_hparams(stage, scratch[fractions[0]])
    pooled = {}
    for fraction, folder in scratch.items():
        results[fraction, PROBE] = probe_folds(
            hparams, folder, results[fraction, WITHOUT], fraction, pooled
        )
    systems = [
        {"system": name, "label_fraction": f, **results[f, name]}
        for f in fractions
        for name in (PROBE, WITHOUT, WITH)
    ]
    table = write_comparison(root, systems)
    print(f"\n{table}\n\nWritten to {root}/comparison.md")


if __name__ == "__main__":
    run_script(main)
