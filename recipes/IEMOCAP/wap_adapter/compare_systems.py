#!/usr/bin/env python3
"""One table: linear probe, no adapter training, adapter training.

> python compare_systems.py hparams/adapter.yaml hparams/classifier.yaml \
    --data_folder=/path/to/corpus --seeds=1993,1994,1995 \
    --output_folder=results/comparison

Takes the options of cross_validate.py but --adapter_training; with
--adapter_folder=DIR, the adapter is that of an earlier run. All systems see the
same features of the same folds. The same command again takes up what was
interrupted.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.data import SPLITS, list_classes, read_manifests
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_text
from speechbrain_wap.hparams import load_recipe, run_script, split_options
from speechbrain_wap.probe import linear_probe
from speechbrain_wap.report import SCORES, markdown_table, percent, sum_up

# The other scripts lie beside this one, wherever it is started from.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cross_validate  # noqa: E402

SYSTEMS = {
    "without adapter training": ("from_scratch", "False"),
    "with adapter training": ("with_adapter", "True"),
}


def probe_folds(command, folder):
    """Fits the linear probe on the folds of a finished cross-validation.

    Arguments
    ---------
    command : dict
        What ``cross_validate.parse_command`` gave.
    folder : str
        Output folder of that cross-validation.

    Returns
    -------
    results : dict
        As in results.json, without confusion matrices.
    """
    stage = command["stages"]["classifier"]
    hparams, _, _ = load_recipe(
        stage["file"],
        {**stage["overrides"], "output_folder": str(folder)},
        stage["run_opts"],
        expected_key="sap_heads",
    )
    with suppress(OSError):  # loading made it, each fold has its own
        os.rmdir(hparams["save_folder"])
    cache = hparams["feature_cache"]
    finished = json.loads(Path(folder, "results.json").read_text("utf-8"))
    seed = finished["runs"][0]["seed"]
    runs = []
    for run in finished["runs"]:
        if run["seed"] != seed:
            continue  # the probe draws no random numbers
        fold = Path(folder, f"seed{seed}", f"fold{run['fold']}", "classifier")
        splits = read_manifests({s: fold / f"{s}.json" for s in SPLITS})
        splits = {
            name: {
                k: e for k, e in split.items() if cache.is_sound(e["digest"])
            }
            for name, split in splits.items()
        }
        classes = list_classes(splits, hparams["classes"])
        scores = linear_probe(splits, cache, classes)
        kept = {"classes": classes, "confusion": None}
        runs.append({**run, **kept, **scores})
    return sum_up(runs, {})


def main(arguments):
    """Runs the three systems and writes comparison.md and .json.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    positional, options = split_options(arguments)
    if any(key == "adapter_training" for key, _ in options):
        raise RecipeError(
            "--adapter_training cannot be set here: both are run."
        )
    command = cross_validate.parse_command(arguments)
    kept = positional + [
        f"--{key}" if text is None else f"--{key}={text}"
        for key, text in options
        if key not in ("output_folder", "adapter_folder")
    ]
    results = {}
    for name, (folder, training) in SYSTEMS.items():
        folder = Path(command["output_folder"], folder)
        how = f"--adapter_training={training}"
        if training == "True" and command["adapter_folder"]:
            how = f"--adapter_folder={command['adapter_folder']}"
        results[name] = cross_validate.main(
            [*kept, f"--output_folder={folder}", how]
        )
    if not if_main_process():
        return
    scratch = Path(command["output_folder"], "from_scratch")
    results = {"linear probe": probe_folds(command, scratch), **results}
    rows = []
    for name, result in results.items():
        several = len(result["per_seed"]) > 1
        rows.append(
            [name, len(result["per_seed"]) if several else 1]
            + [
                percent(result["mean"][s])
                + (f" ± {percent(result['std'][s])}" if several else "")
                for s in SCORES
            ]
        )
    table = markdown_table(["system", "seeds", *SCORES], rows)
    text = (
        "# Comparison of systems\n\nPercent, mean over folds, then mean and "
        "standard deviation over seeds. Linear probe: logistic regression on "
        "mean and standard deviation of the frozen encoder's frames, which "
        f"has no seed.\n\n{table}\n"
    )
    folder = Path(command["output_folder"])
    write_text(folder / "comparison.md", text)
    write_text(folder / "comparison.json", json.dumps(results, indent=1))
    print(f"\n{table}\n\nWritten to {folder}/comparison.md")


if __name__ == "__main__":
    run_script(main)
