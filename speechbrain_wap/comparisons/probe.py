"""The linear probe on the folds of a finished cross-validation."""

from pathlib import Path

from speechbrain_wap.data.classes import list_classes
from speechbrain_wap.data.folds import SPLITS
from speechbrain_wap.data.manifests import read_manifests
from speechbrain_wap.data.sampling import choose_labelled
from speechbrain_wap.evaluation.linear_probe import STRENGTH, linear_probe
from speechbrain_wap.features.extraction import cut_long_utterances
from speechbrain_wap.reports.report import sum_up
from speechbrain_wap.training.cross_validation import find_run, load_scripts
from speechbrain_wap.training.experiment import Experiment

PROBE = "linear probe"


def build_hparams(plan):
    """Builds what the classifier's YAML wires.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What is run.

    Returns
    -------
    hparams : dict
    """
    command = plan.commands["classifier"].change(
        output_folder=plan.output_folder
    )
    experiment = Experiment(command, load_scripts()["classifier"].NEEDED)
    experiment.remove_empty_save_folder()
    return experiment.hparams


def probe_folds(hparams, plan, runs, fraction, pooled, strength=STRENGTH):
    """Fits the linear probe on the folds of a finished cross-validation.

    Arguments
    ---------
    hparams : dict
        What :func:`build_hparams` gave.
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        Its runs have the manifests.
    runs : list of dict
        The runs; of each fold the first, unless the seeds choose labels.
    fraction : float
        Share of the labels that is used.
    pooled : dict
        Pooled frames by digest, see :func:`linear_probe`.
    strength : float
        Inverse of the regularisation.

    Returns
    -------
    results : dict
        Content of results.json.
    """
    if fraction == 1.0:  # the probe draws no random numbers
        firsts = {run["fold"]: run for run in reversed(runs)}
        runs = [firsts[fold] for fold in sorted(firsts)]
    probed = []
    for run in runs:
        splits = read_splits(hparams, plan, run, pooled)
        classes = list_classes(splits, hparams["classes"])
        labelled = choose_labelled(splits["train"], fraction, run["seed"])
        read = hparams["feature_cache"].make_reader(hparams["max_frames"])
        scores = linear_probe(splits, read, classes, labelled, pooled, strength)
        if fraction == 1.0:
            run = {**run, "seed": runs[0]["seed"]}  # as good as any
        probed.append({**run, "classes": classes, "confusion": None, **scores})
    return sum_up(probed, {})


def read_splits(hparams, plan, run, pooled):
    """Reads the splits of a finished fold, as far as they are in the cache.

    Arguments
    ---------
    hparams, plan, pooled
        See :func:`probe_folds`.
    run : dict
        The fold and the seed.

    Returns
    -------
    splits : dict
        Manifest entries by utterance id of each split.
    """
    cache = hparams["feature_cache"]
    place = find_run(plan.output_folder, run["seed"], run["fold"])
    splits = read_manifests(
        {s: Path(place, "classifier", f"{s}.json") for s in SPLITS},
        protocol=hparams["fold_plan"].protocol,
    )
    if hparams["long_utterances"] == "cut":
        splits = cut_long_utterances(splits, [cache], hparams["max_frames"])
    # what has been pooled is not checked again
    return {
        name: {
            key: entry
            for key, entry in split.items()
            if entry["digest"] in pooled or cache.has_entry(entry["digest"])
        }
        for name, split in splits.items()
    }
