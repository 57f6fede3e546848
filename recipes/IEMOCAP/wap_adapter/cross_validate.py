#!/usr/bin/env python3
"""Both stages for every fold and seed, then the report.

> python cross_validate.py hparams/adapter.yaml hparams/classifier.yaml \
    --data_folder=/path/to/corpus --output_folder=results/my_run

Options of its own: --folds=1,2,3 (default: all), --seeds=1993,1994 (default:
the YAML's), --adapter_training=False (no stage 1), --adapter_folder=DIR (no
stage 1, but this earlier adapter for all folds; DIR_{seed}: one for each seed),
--adapters_folder=results/run (where stage 1 of each fold and seed lies or is to
lie, for runs that differ in stage 2 only; default: the output folder), --jobs=4
(that many folds at a time, each in a process of its own). Any other key goes to
the stages whose YAML has it; --adapter.key=value and --classifier.key=value to
one stage. The same command again takes up what was interrupted.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import yaml
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.data.folds import (
    FoldPlan,
    choose_classes,
    label_utterances,
    list_sessions,
)
from speechbrain_wap.data.further_corpora import read_tables
from speechbrain_wap.data.preparation import prepare_table
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.report import (
    SCORES,
    score_table,
    sum_up,
    write_report,
)
from speechbrain_wap.files import digest_file, only_process, read_json
from speechbrain_wap.training.jobs import run_jobs
from speechbrain_wap.training.ranks import start_ranks
from speechbrain_wap.training.run_folders import (
    MODEL_KEYS,
    RECORD,
    check_adapter,
    describe_adapter,
    find_finished,
    identify_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.settings import (
    UNGUARDED_KEYS,
    default_output_folder,
    load_recipe,
    name_data,
    parse_arguments,
    read_corpora,
    read_keys,
    read_settings,
    record_settings,
    restored_if_refused,
    run_script,
    split_options,
    unknown_key,
)

logger = get_logger(__name__)

# The stages' scripts lie beside this one, wherever it is started from.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import train_adapter  # noqa: E402
import train_classifier  # noqa: E402

# The outcome of such runs is no result.
REFUSED_OPTIONS = ("debug", "debug_persistently", "test_only")
STAGES = ("adapter", "classifier")
# What stands for the seed in adapter_folder
SEED_MARK = "{seed}"
# Keys that decide, with the seed, what weights a network begins with
START_KEYS = ("projection_init", "residual_init")
OWN_KEYS = (
    "folds",
    "seeds",
    "adapter_training",
    "adapter_folder",
    "adapters_folder",
    "output_folder",
    "jobs",
)
# Set here for each run.
SET_KEYS = {
    "fold": "use --folds",
    "seed": "use --seeds",
    "adapter_folder": "use --adapter_folder without a stage",
    "save_folder": "each run has its own",
    "corpus_table": "it lies in the output folder",
    "predictions_csv": "each run has its own",
    "skipped_csv": "each run has its own",
    "left_out_csv": "each run has its own",
    "output_folder": "use --output_folder without a stage",
    "skip_prep": "each run prepares its own fold",
}


def route_options(options, stages):
    """Sends each option to the stages that know it.

    Arguments
    ---------
    options : list of tuple
        Key and text, or None for a flag.
    stages : dict
        Keys of each stage's YAML, by the stage's name.

    Returns
    -------
    own : dict
        Text of this script's own options.
    routed : dict
        Command line arguments of each stage.

    Raises
    ------
    RecipeError
        If no stage has a key, or this script sets it itself.
    """
    run_options = set(RunOptions().keys())
    own, routed = {}, {name: [] for name in stages}
    for key, text in options:
        argument = f"--{key}" if text is None else f"--{key}={text}"
        stage, _, stage_key = key.partition(".")
        if key in OWN_KEYS:
            if text is None:
                raise RecipeError(f"--{key} needs a value: --{key}=...")
            own[key] = text
            continue
        bare = stage_key if stage in stages and stage_key else key
        if bare in SET_KEYS or bare.endswith(("_file", "_log", "_annotation")):
            reason = SET_KEYS.get(bare, "each run has its own")
            raise RecipeError(f"--{key} cannot be set here: {reason}.")
        if stage in stages and stage_key:
            if stage_key not in stages[stage] and stage_key not in run_options:
                raise unknown_key(key, [f"{stage}.{k}" for k in stages[stage]])
            routed[stage].append(argument.replace(f"{stage}.", "", 1))
            continue
        takers = [name for name, keys in stages.items() if key in keys]
        if not takers and key in run_options:
            takers = list(stages)
        if not takers:
            known = [*OWN_KEYS, *run_options]
            known += [k for keys in stages.values() for k in keys]
            raise unknown_key(key, known)
        for name in takers:
            routed[name].append(argument)
    return own, routed


def parse_list(text, name):
    """Reads "1,2,3" or "[1, 2, 3]" as whole numbers.

    Arguments
    ---------
    text : str
        What the user wrote.
    name : str
        The option's name, for the error.

    Returns
    -------
    numbers : list of int
        Without repetitions, in the order given.
    """
    try:
        numbers = [int(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        raise RecipeError(
            f"--{name}={text} must be whole numbers: --{name}=1,2,3."
        )
    return list(dict.fromkeys(numbers))


def parse_command(arguments):
    """Reads the command line of this script.

    Arguments
    ---------
    arguments : list of str
        Two YAML files and options.

    Returns
    -------
    command : dict
        "stages" (YAML, arguments, overrides and settings of each stage),
        "run_opts", "folds" (None: all), "seeds", "adapter_training",
        "adapter_folder" (see :func:`list_earlier_adapters`, or None),
        "adapters_folder" (the root of stage 1), "corpora" (of stage 1), "jobs"
        and "output_folder".
    """
    positional, options = split_options(arguments)
    if len(positional) != 2:
        raise RecipeError(
            "give two hyperparameter files, hparams/adapter.yaml and "
            "hparams/classifier.yaml."
        )
    files = dict(zip(STAGES, positional))
    keys = {name: read_keys(file) for name, file in files.items()}
    own, routed = route_options(options, keys)
    adapter_training = yaml.safe_load(own.get("adapter_training", "True"))
    if not isinstance(adapter_training, bool):
        raise RecipeError(
            f"--adapter_training={own['adapter_training']} must be True or "
            "False."
        )
    adapter_folder = own.get("adapter_folder")
    if adapter_folder is not None:
        refuse_stage_1_options(own, options, keys)
        adapter_training = False
    elif "adapters_folder" in own and not adapter_training:
        raise RecipeError(
            "--adapters_folder is of no use with --adapter_training=False."
        )
    jobs = parse_list(own.get("jobs", "1"), "jobs")
    if len(jobs) != 1 or jobs[0] < 1:
        raise RecipeError(
            f"--jobs={own['jobs']} must be a whole number of at least 1."
        )
    stages = {}
    for name, file in files.items():
        refused = [k for k, _ in options if k in REFUSED_OPTIONS]
        if refused:
            raise RecipeError(
                f"--{refused[0]} is for a single run: give it to "
                "train_adapter.py or train_classifier.py."
            )
        _, run_opts, overrides = parse_arguments([file, *routed[name]])
        stages[name] = {
            "file": file,
            "arguments": routed[name],
            "overrides": overrides,
            "run_opts": run_opts,
            "settings": read_settings(file, overrides, run_opts),
        }
    settings = {name: stage["settings"] for name, stage in stages.items()}
    corpora = []
    if adapter_training:
        stage = stages["adapter"]
        corpora = read_corpora(stage["file"], stage["overrides"])
    output_folder = own.get("output_folder")
    if output_folder is None:
        overrides = stages["classifier"]["overrides"]
        output_folder = default_output_folder(
            {**settings["classifier"], "fold": "s", **settings},
            "results/cross_validation",
            name_data(
                overrides.get("corpus_csv") or overrides.get("data_folder"),
                corpora,
            )
            + (adapter_folder or ""),
        )
        if adapter_folder:
            output_folder += "-earlier_adapter"
        elif not adapter_training:
            output_folder += "-no_adapter"
    seed = str(settings["classifier"]["seed"])
    folds = own.get("folds")
    return {
        "stages": stages,
        "run_opts": run_opts,
        "folds": None if folds is None else parse_list(folds, "folds"),
        "seeds": parse_list(own.get("seeds", seed), "seeds"),
        "adapter_training": adapter_training,
        "adapter_folder": adapter_folder,
        "corpora": corpora,
        "jobs": jobs[0],
        "output_folder": output_folder,
        "adapters_folder": own.get("adapters_folder") or output_folder,
    }


def find_run(root, seed, fold):
    """Names the folder of a fold and a seed.

    Arguments
    ---------
    root : str
        The output folder, or that of the adapters.
    seed : int
        The seed.
    fold : int
        Counted from 1.

    Returns
    -------
    folder : str
        Has the folders adapter and classifier.
    """
    return os.path.join(root, f"seed{seed}", f"fold{fold}")


def list_earlier_adapters(command):
    """Lists the earlier adapters that take the place of stage 1.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave; in its "adapter_folder", "{seed}"
        stands for the seed.

    Returns
    -------
    folders : dict
        Output folder of an adapter training, by seed; empty where there is
        none.
    """
    pattern = command["adapter_folder"]
    if not pattern:
        return {}
    return {s: pattern.replace(SEED_MARK, str(s)) for s in command["seeds"]}


def has_adapter_per_seed(command):
    """Tells whether each seed has an earlier adapter of its own.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.

    Returns
    -------
    has_own : bool
    """
    return SEED_MARK in (command["adapter_folder"] or "")


def refuse_stage_1_options(own, options, keys):
    """Refuses what would have no effect, since stage 1 is left out.

    Arguments
    ---------
    own : dict
        Text of this script's own options.
    options : list of tuple
        Key and text of all options.
    keys : dict
        Keys of each stage's YAML.

    Raises
    ------
    RecipeError
        If there is such an option; names it.
    """
    if not own["adapter_folder"]:
        raise RecipeError(
            "--adapter_folder= is empty: give the output folder of "
            "train_adapter.py, or --adapter_training=False."
        )
    only = set(keys["adapter"]) - set(keys["classifier"])
    only |= {"adapter_training", "adapters_folder"}
    for key, _ in options:
        if key in only or key.startswith("adapter."):
            raise RecipeError(
                f"--{key} has no effect with --adapter_folder, whose adapter "
                "is used for all folds: leave one of them out."
            )


def prepare(command):
    """Writes the corpus table and settles the folds before any training.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.

    Returns
    -------
    folds : list of int
    sessions : list of str
        All sessions; fold k holds out the k-th.
    """
    stage, folder = command["stages"]["classifier"], command["output_folder"]
    if command["adapter_training"]:
        refuse_different_models(command)
    hparams, _, settings = load_recipe(
        stage["file"],
        {**stage["overrides"], "output_folder": folder},
        stage["run_opts"],
        expected_key="sap_heads",
    )
    with suppress(OSError):  # loading made it, each fold has its own
        os.rmdir(hparams["save_folder"])
    table = prepare_table(**hparams["corpus"])
    overrides = stage["overrides"]
    classes = choose_classes(
        table,
        hparams["classes"],
        "corpus_csv" not in overrides or "classes" in overrides,
    )
    style = hparams["dialogue_style"]
    sessions = list_sessions(table)
    # A session without labels is no fold: it serves adapter training only.
    labelled = set(label_utterances(table, classes, style)["session"])
    folds = command["folds"] or [
        fold
        for fold, session in enumerate(sessions, start=1)
        if session in labelled
    ]
    splits = {
        fold: FoldPlan(fold, hparams["protocol"]).split_labelled(
            table, classes, style
        )
        for fold in folds
    }
    settings["encoder_key"] = hparams["feature_cache"].key
    identity = None
    earlier = list_earlier_adapters(command)
    for adapter in dict.fromkeys(earlier.values()):
        identity = check_earlier_adapter(
            adapter, settings, splits, hparams["corpus_table"]
        )
    if has_adapter_per_seed(command):
        for seed, adapter in earlier.items():
            check_start(adapter, seed, settings)
        # seeds may be added: each fold is guarded by itself
        identity = "one for each seed"
    content = table[["id", "digest", "speaker", "session", "emo"]].to_csv()
    if command["corpora"]:
        further, _ = read_tables(command["corpora"], hparams["cache_folder"])
        content += further[["id", "digest", "speaker"]].to_csv()
    guarded = {
        f"{name}.{key}": value
        for name in list_stages(command)
        for key, value in command["stages"][name]["settings"].items()
        if key not in UNGUARDED_KEYS
    }
    guarded["encoder_key"] = settings["encoder_key"]
    guarded["adapter_training"] = command["adapter_training"]
    guarded["adapter_identity"] = identity
    guarded["data"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    record_settings(folder, {**guarded, "number_of_epochs": 0})
    return folds, sessions


def list_stages(command):
    """Lists the stages whose YAML says how the scores came about.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.

    Returns
    -------
    names : list of str
        Without the adapter's where it is not trained, or in an earlier run.
    """
    return list(STAGES) if command["adapter_training"] else ["classifier"]


def check_earlier_adapter(adapter_folder, settings, splits, corpus_table):
    """Refuses an adapter that does not fit or heard a fold's held-out speakers.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    settings : dict
        Settings of the classifier, with the encoder's key.
    splits : dict
        Table of each split, by fold.
    corpus_table : str
        The corpus table.

    Returns
    -------
    identity : str
        See :func:`speechbrain_wap.training.run_folders.check_adapter`.

    Raises
    ------
    RecipeError
        If the adapter is not for all folds; names those that it is for.
    """
    identity, reasons = None, {}
    for fold, tables in splits.items():
        entries = {
            name: table.set_index("id").to_dict("index")
            for name, table in tables.items()
        }
        try:
            identity = check_adapter(
                adapter_folder, settings, entries, corpus_table
            )
        except RecipeError as error:
            reasons[fold] = str(error)
    if reasons:
        fold = min(reasons)
        left = ",".join(str(k) for k in splits if k not in reasons)
        cure = f" It may be used with --folds={left}." if left else ""
        raise RecipeError(f"fold {fold}: {reasons[fold]}{cure}")
    find_finished(adapter_folder)
    return identity


def check_start(adapter_folder, seed, settings):
    """Refuses an adapter that did not begin as the seed's network does.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    seed : int
        The seed that it is for.
    settings : dict
        Settings of the classifier.

    Raises
    ------
    RecipeError
        If it was trained with another seed, or began with other weights:
        against a network that began with the seed's, both would be compared,
        the start and the training.
    """
    path = Path(adapter_folder, "save", "settings.json")
    recorded = read_json(path, "run train_adapter.py again.", ("settings",))
    began = recorded["settings"]
    for key, mine in {
        "seed": seed,
        **{key: settings[key] for key in START_KEYS if key in settings},
    }.items():
        if key in began and began[key] != mine:
            raise RecipeError(
                f"the adapter in {adapter_folder} was trained with {key}="
                f"{began[key]}, but {SEED_MARK} in --adapter_folder stands for "
                f"adapters that began as the network of each seed does, here "
                f"{key}={mine}: train it so, or name one adapter for all seeds."
            )


def run_fold(command, fold, seed):
    """Runs both stages of one fold, or takes up where they stopped.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.
    fold : int
        Counted from 1.
    seed : int
        The seed of both stages.

    Returns
    -------
    scores : dict
        Content of the classifier's scores.json.
    """
    folder = find_run(command["output_folder"], seed, fold)
    adapter = find_run(command["adapters_folder"], seed, fold)
    adapter = os.path.join(adapter, "adapter")
    if command["adapter_folder"]:
        adapter = list_earlier_adapters(command)[seed]
    scores = run_on_main(find_scores, args=[command, folder, adapter])
    if scores is not None:
        return scores
    run = [f"--fold={fold}", f"--seed={seed}"]
    if command["jobs"] > 1:
        run.append("--noprogressbar")  # several would overwrite each other
    stages = command["stages"]
    if command["adapter_training"]:
        train_adapter.main(
            [stages["adapter"]["file"], *stages["adapter"]["arguments"]]
            + [*run, f"--output_folder={adapter}"]
        )
    with_adapter = command["adapter_training"] or command["adapter_folder"]
    # none, whatever the YAML names
    given = adapter if with_adapter else ""
    run.append(f"--adapter_folder={given}")
    train_classifier.main(
        [stages["classifier"]["file"], *stages["classifier"]["arguments"]]
        + [*run, f"--output_folder={os.path.join(folder, 'classifier')}"]
    )
    ddp_barrier()  # the main process writes the scores
    return run_on_main(read_scores, args=[folder])


def read_scores(folder):
    """Reads what a finished fold has scored.

    Arguments
    ---------
    folder : str
        Holds the folder classifier.

    Returns
    -------
    scores : dict
        Content of the classifier's scores.json.
    """
    keys = ("classes", "fold", "seed", "session", "n", *SCORES, "confusion")
    path = os.path.join(folder, "classifier", "scores.json")
    return read_json(path, "run the same command again.", keys)


def find_scores(command, folder, adapter):
    """Looks whether a fold has been run to its end.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.
    folder : str
        Holds the folder classifier.
    adapter : str
        Output folder of stage 1, or of the earlier adapter.

    Returns
    -------
    scores : dict or None
        None where a stage is still to be run, or has got more epochs. Where
        the adapter has, be it in a run that shares it, its stage 2 is
        removed: it began with another one.
    """
    wanted = {
        stage: command["stages"][stage]["settings"]["number_of_epochs"]
        for stage in STAGES
    }
    if command["adapter_training"] and Path(adapter, RECORD).is_file():
        cure = f"delete {adapter} to run the fold anew."
        has = read_adapter_record(adapter, cure)
        missing = wanted["adapter"] - has["number_of_epochs"]
        if missing > 0 or began_with_another(folder, has):
            classifier = Path(folder, "classifier")
            if classifier.is_dir():
                logger.warning(
                    f"{classifier} is removed and trained anew: the adapter "
                    f"that it began with gets {wanted['adapter']} epochs."
                )
                shutil.rmtree(classifier)
        if missing:
            return None  # stage 1 goes on, or refuses to shrink
    if command["adapter_folder"] and began_with_another(
        folder, read_adapter_record(adapter)
    ):
        raise RecipeError(
            f"{folder} holds a run with another adapter than {adapter} "
            "(adapter_folder): choose another output_folder, or delete this "
            "one to start anew."
        )
    if not Path(folder, "classifier", "scores.json").is_file():
        return None
    try:
        scores = read_scores(folder)
    except RecipeError as error:
        logger.warning(f"{error} The fold is tested again.")
        return None
    predictions = os.path.join(folder, "classifier", "predictions.csv")
    # an earlier version wrote no digest
    found = digest_file(predictions)
    if found is None or scores.get("predictions_digest", found) != found:
        logger.warning(
            f"{predictions} is missing or is not as it was written: the fold "
            "is tested again."
        )
        return None
    done = scores.get("number_of_epochs", wanted["classifier"])
    if done > wanted["classifier"]:
        raise RecipeError(
            f"{folder} holds a run with classifier.number_of_epochs={done}, "
            f"which may grow but not shrink to {wanted['classifier']}: choose "
            "another output_folder, or delete this one to start anew."
        )
    return scores if done == wanted["classifier"] else None


def began_with_another(folder, record):
    """Tells whether stage 2 began with another adapter than there is.

    Arguments
    ---------
    folder : str
        Holds the folder classifier.
    record : dict
        What :func:`speechbrain_wap.training.run_folders.read_adapter_record` gave.

    Returns
    -------
    is_another : bool
        False where stage 2 has not begun.
    """
    path = Path(folder, "classifier", "save", "settings.json")
    if not path.is_file():
        return False
    settings = read_json(path, f"delete {folder} to run the fold anew.")
    identity = settings.get("settings", {}).get("adapter_identity")
    return identity != identify_adapter(record)


def refuse_different_models(command):
    """Makes sure that both stages mean the same model and the same folds.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.
    """
    settings = [command["stages"][s]["settings"] for s in STAGES]
    keys = {*MODEL_KEYS, "encoder_source", "encoder_layer", "protocol"}
    keys.add("feature_precision")
    for key in sorted(keys):
        adapter, classifier = (s.get(key) for s in settings)
        if adapter != classifier:
            raise RecipeError(
                f"{key} is {adapter} for the adapter, but {classifier} for "
                "the classifier: both stages need the same."
            )


def list_notes(command):
    """Says in words how the scores came about.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.

    Returns
    -------
    notes : list of str
    """
    settings = command["stages"]["classifier"]["settings"]
    source = os.path.basename(os.path.normpath(settings["encoder_source"]))
    how = "without adapter training (from scratch)."
    if command["adapter_training"]:
        how = "with adapter training."
    earlier = list(dict.fromkeys(list_earlier_adapters(command).values()))
    if earlier:
        each = "each seed" if has_adapter_per_seed(command) else "all folds"
        learned = dict.fromkeys(describe_adapter(one) for one in earlier)
        how = (
            f"one earlier adapter for {each}, {command['adapter_folder']} "
            f"({'; '.join(learned)})."
        )
    notes = [
        f"Encoder {source}, layer {settings['encoder_layer']}, frozen; {how}",
        (
            "The held-out session is validation and test set in one, as in "
            "the paper."
            if settings["protocol"] == "paper"
            else "Validated on one session, tested on another (held_out)."
        ),
    ]
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
        notes.append("The epoch was chosen on the validation session.")
    if command["corpora"]:
        own = {"own": ", speakers' names its own", "shared": ""}
        listing = ", ".join(
            f"{item['name']} (weight {item['weight']:g}{own[item['speakers']]})"
            for item in command["corpora"]
        )
        notes.append(
            f"The adapter was also trained on {listing}, without labels."
        )
    if command["adapter_training"]:
        adapter_data = command["stages"]["adapter"]["settings"]["adapter_data"]
        if adapter_data == "all":
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


def summarise_settings(command, folds):
    """Picks the settings that results.json and the report show.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.
    folds : list of int
        The folds that were run.

    Returns
    -------
    settings : dict
    """
    summary = {
        "adapter_training": command["adapter_training"],
        "folds": folds,
        "seeds": command["seeds"],
    }
    if command["adapter_folder"]:
        summary["adapter_folder"] = command["adapter_folder"]
    for name in list_stages(command):
        for key, value in command["stages"][name]["settings"].items():
            text = json.dumps(value)
            built = "!" in text or "<" in text  # of other keys
            if not built and not key.endswith(
                ("_folder", "_annotation", "_csv", "_table", "_file", "_log")
            ):
                if key not in ("fold", "seed", "skip_prep"):
                    summary[f"{name}.{key}"] = value
    return summary


def main(arguments):
    """Runs the cross-validation.

    Arguments
    ---------
    arguments : list of str
        The command line.

    Returns
    -------
    results : dict
        Content of results.json.
    """
    command = parse_command(arguments)
    start_ranks(command["run_opts"])
    if command["jobs"] > 1 and is_distributed_initialized():
        raise RecipeError(
            "--jobs is for a single process: under torchrun the ranks work on "
            "one fold together."
        )
    folder = command["output_folder"]
    prepared = [os.path.join(folder, "corpus.csv")]
    with (
        only_process(folder),
        restored_if_refused(folder, folder, prepared),
    ):
        return run_all(command)


def run_folds(command, tasks):
    """Runs the folds, one after the other or several at a time.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.
    tasks : list of tuple
        Arguments of :func:`run_fold`.

    Yields
    ------
    number : int
        Number of the task that has ended.
    scores : dict
        Content of the classifier's scores.json.
    """
    if command["jobs"] > 1:
        yield from run_jobs(
            command["jobs"], "cross_validate", "run_fold", tasks
        )
        return
    for number, task in enumerate(tasks):
        yield number, run_fold(*task)


def run_all(command):
    """Runs all folds of all seeds and writes the report.

    Arguments
    ---------
    command : dict
        What :func:`parse_command` gave.

    Returns
    -------
    results : dict
        Content of results.json.
    """
    folder = command["output_folder"]
    folds, sessions = run_on_main(prepare, args=[command])
    plan = [(seed, fold) for seed in command["seeds"] for fold in folds]
    names = [f"fold {fold}, seed {seed}" for seed, fold in plan]
    tasks = [(command, fold, seed) for seed, fold in plan]
    runs, started = [None] * len(plan), time.time()
    for done, (number, scores) in enumerate(run_folds(command, tasks), 1):
        runs[number] = scores
        if if_main_process():
            minutes = (time.time() - started) / 60
            left = minutes / done * (len(plan) - done)
            print(
                f"[{done}/{len(plan)}] {names[number]}, held-out session "
                f"{sessions[plan[number][1] - 1]}: "
                f"UA {100 * scores['UA']:.1f} %, WA "
                f"{100 * scores['WA']:.1f} %, F1 {100 * scores['F1']:.1f} % "
                f"({minutes:.1f} min so far, about {left:.1f} min left)",
                flush=True,
            )
    adapters, classifiers = (
        {
            name: os.path.join(find_run(root, *run), stage)
            for name, run in zip(names, plan)
        }
        for stage, root in zip(STAGES, (command["adapters_folder"], folder))
    )
    if not command["adapter_training"]:
        adapters = {
            f"earlier adapter, seed {seed}": adapter
            for seed, adapter in list_earlier_adapters(command).items()
        }
        if adapters and not has_adapter_per_seed(command):
            adapters = {"earlier adapter": command["adapter_folder"]}
    results = sum_up(runs, summarise_settings(command, folds))
    if if_main_process():
        write_report(
            folder,
            results,
            adapters,
            classifiers,
            list_notes(command),
        )
        print(f"\n{score_table(results)}\n\nReport: {folder}/report.md")
    return results


if __name__ == "__main__":
    run_script(main)
