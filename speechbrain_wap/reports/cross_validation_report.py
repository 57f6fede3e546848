"""A cross-validation from the command line to its report."""

import json
import os
from copy import copy
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.data.corpus_table import (
    PARTIAL_NAME,
    SKIPPED_NAME,
    read_corpus_table,
    read_skipped,
)
from speechbrain_wap.data.folds import FoldPlan, describe_shared_speakers
from speechbrain_wap.reports.report import escape_markdown, score_table, sum_up
from speechbrain_wap.reports.report_command import make_reports
from speechbrain_wap.reports.report_facts import name_run, record_facts
from speechbrain_wap.training.adapter_folder import (
    describe_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.cross_validation import find_run
from speechbrain_wap.training.resume_guard import PATH_KEYS, name_encoder
from speechbrain_wap.training.run_folds import run_all
from speechbrain_wap.training.settings import read_defaults

# What a reader of the scores need not know, or is told otherwise
HIDDEN_KEYS = {"fold", "seed", "skip_prep"}
PROTOCOL_NOTES = {
    "paper": "The held-out session is validation and test set in one, as in "
    "the paper.",
    "held_out": "Validated on one session, tested on another (held_out).",
    "predefined": "Official splits (predefined): validated on valid, tested on "
    "test, one fold.",
}


def cross_validate(plan):
    """Runs both stages for every fold and seed, and writes the report.

    The report is of all that is finished in the output folder: of several
    processes that share the folds, the last one writes it whole.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What to run.

    Returns
    -------
    results : dict or None
        Content of results.json; None where other processes are at work and
        nothing is finished.
    """

    def report(runs, unfinished):
        """Sums up the runs, and writes what the main process writes."""
        if not runs:
            if if_main_process():
                print("No report: whoever finishes a fold writes it.")
            return None
        whole, results = summarise(plan, runs)
        if if_main_process():
            adapters, classifiers = _list_run_folders(whole, runs)
            notes = _list_notes(whole) + _list_missing(
                plan.output_folder, classifiers.values()
            )
            heard = runs[0].get("transductive")  # of one system, all alike
            if heard:
                notes.append(f"**Transductive**: the system {heard}.")
            if unfinished:
                listing = "; ".join(
                    f"fold {fold}, seed {seed}" for seed, fold in unfinished
                )
                notes.append(
                    f"Without what is not finished with these settings: "
                    f"{listing}."
                )
            record_facts(
                plan.output_folder,
                results,
                adapters,
                classifiers,
                notes,
                list_defaults(plan),
            )
            make_reports(plan.output_folder)
            print(
                f"\n{score_table(results)}\n\n"
                f"Report: {plan.output_folder}/report.md, report.html"
            )
        return results

    return run_all(plan, report)


def summarise(plan, runs):
    """Sums up finished runs, be they the plan's or another process's.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What was run.
    runs : list of dict
        Content of each scores.json.

    Returns
    -------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        With the seeds of all of them.
    results : dict
        Content of results.json.
    """
    plan = copy(plan)
    folds, plan.seeds = (
        list(dict.fromkeys(run[key] for run in runs))
        for key in ("fold", "seed")
    )
    return plan, sum_up(runs, summarise_settings(plan, folds))


def _list_run_folders(plan, runs):
    """Names the output folders of both stages' runs, by the run's name."""
    places = {name_run(run): (run["seed"], run["fold"]) for run in runs}
    classifiers = {
        name: os.path.join(find_run(plan.output_folder, *place), "classifier")
        for name, place in places.items()
    }
    if plan.adapter_training:
        adapters = {
            name: plan.find_adapter(*place) for name, place in places.items()
        }
    elif plan.has_adapter_per_seed:
        adapters = {
            f"earlier adapter, seed {seed}": adapter
            for seed, adapter in plan.earlier_adapters.items()
        }
    elif plan.adapter_folder:
        adapters = {"earlier adapter": plan.adapter_folder}
    else:
        adapters = {}
    return adapters, classifiers


def _list_notes(plan):
    """Says in words how the scores came about."""
    how = "without adapter training (from scratch)."
    if plan.adapter_training:
        how = "with adapter training."
    earlier = list(dict.fromkeys(plan.earlier_adapters.values()))
    if earlier:
        each = "each seed" if plan.has_adapter_per_seed else "all folds"
        learned = dict.fromkeys(describe_adapter(one) for one in earlier)
        how = (
            f"one earlier adapter for {each}, "
            f"{escape_markdown(plan.adapter_folder)} "
            f"({escape_markdown('; '.join(learned))})."
        )
    ground, *notes = list_common_notes(plan)
    system = plan.settings["classifier"].get("system")
    if system:
        how = f"system {escape_markdown(system)}, {how}"
    notes = [f"{ground.rstrip('.')}; {how}", *notes]
    if plan.corpora:
        own = {"own": ", speakers' names its own", "shared": ""}
        listing = ", ".join(
            f"{escape_markdown(item['name'])} (weight {item['weight']:g}"
            f"{own[item['speakers']]})"
            for item in plan.corpora
        )
        notes.append(
            f"The adapter was also trained on {listing}, without labels."
        )
    if plan.adapter_training:
        if plan.settings["adapter"]["adapter_data"] == "all":
            notes.append(
                "**Transductive**: the adapter has seen the held-out session, "
                "without labels (adapter_data: all)."
            )
    else:
        records = [read_adapter_record(adapter) for adapter in earlier]
        if any(record["adapter_data"] == "all" for record in records):
            notes.append(
                "**Transductive** if it is of this corpus: the earlier adapter "
                "has seen its own corpus's held-out session, without labels "
                "(adapter_data: all)."
            )
    return notes


def _list_missing(output_folder, classifiers):
    """Says what of the corpus is not there, or could not be used."""
    notes, skipped = [], {}
    partial = Path(output_folder, PARTIAL_NAME)
    if partial.is_file():
        sentence = escape_markdown(partial.read_text("utf-8"))
        notes.append(f"**Partial corpus**: {sentence}")
    for folder in (output_folder, *classifiers):
        skipped.update(read_skipped(Path(folder, SKIPPED_NAME)))
    if skipped:
        notes.append(
            f"**Skipped utterances**: {len(skipped)}, which could not be used; "
            f"{SKIPPED_NAME} says why."
        )
    return notes


def list_common_notes(plan):
    """Says of the scores what systems on the same ground have in common.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What was run.

    Returns
    -------
    notes : list of str
        The first one names corpus and encoder.
    """
    settings = plan.settings["classifier"]
    encoder, layer = name_encoder(settings)
    encoder = escape_markdown(encoder)
    corpus = escape_markdown(os.path.basename(os.path.normpath(plan.data)))
    encoder += "" if layer is None else f", layer {layer}"
    notes = [
        f"Corpus {corpus}; encoder {encoder}, frozen.",
        PROTOCOL_NOTES[settings["protocol"]],
    ]
    notes += list_shared_speakers(plan)
    if settings["label_fraction"] != 1.0:
        notes.append(
            f"Fine-tuned on {100 * settings['label_fraction']:g} % of the "
            "labelled training utterances of each class (label_fraction), in "
            "as many steps as on all."
        )
    if settings["model_selection"] == "last":
        notes.append("Scores are those of the last epoch.")
    elif settings["protocol"] == "paper":
        notes.append(
            "**Optimistic**: the epoch was chosen on the very session that "
            "the scores are from (model_selection: best)."
        )
    else:
        part = "split" if settings["protocol"] == "predefined" else "session"
        notes.append(f"The epoch was chosen on the validation {part}.")
    return notes


def list_shared_speakers(plan):
    """Says which speakers official splits have on several sides.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What was run.

    Returns
    -------
    notes : list of str
        Empty where speakers are in one split each.
    """
    protocol = plan.settings["classifier"]["protocol"]
    if protocol != "predefined":
        return []
    table = read_corpus_table(os.path.join(plan.output_folder, "corpus.csv"))
    shared = describe_shared_speakers(FoldPlan(1, protocol).split(table))
    shared = escape_markdown(shared)  # speakers have any names
    return [f"**Not speaker-independent**: {shared}."] * bool(shared)


def summarise_settings(plan, folds):
    """Picks the settings that results.json and the report show."""
    summary = {
        "adapter_training": plan.adapter_training,
        "folds": folds,
        "seeds": plan.seeds,
    }
    if plan.adapter_folder:
        summary["adapter_folder"] = plan.adapter_folder
    for stage in plan.stages:
        for key, value in plan.settings[stage].items():
            if key not in PATH_KEYS | HIDDEN_KEYS and "<" not in str(value):
                summary[f"{stage}.{key}"] = json.loads(json.dumps(value))
    return summary


def list_defaults(plan):
    """Lists what the settings of the stages would be without the user's values.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What was run.

    Returns
    -------
    defaults : dict
    """
    stages = {
        f"{stage}.{key}": value
        for stage in plan.stages
        for key, value in read_defaults(plan.commands[stage]).items()
    }
    return {"adapter_training": plan.usual_adapter_training, **stages}
