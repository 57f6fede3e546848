"""The engine of cross-validations: both stages for every fold and seed.

It loads the two train scripts from the folder that it is started in and hands
them their settings. A finished fold is not run again, an interrupted one goes
on, and several may run at a time, each in a process of its own. Processes that
are started by themselves, on other nodes too, may share the folds of a run.
"""

import dataclasses
import os
import re
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError, escape_controls
from speechbrain_wap.files import digest_file, only_process, read_json, try_lock
from speechbrain_wap.training.adapter_folder import (
    RECORD,
    identify_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.cross_validation import (
    STAGES,
    find_run,
    load_scripts,
)
from speechbrain_wap.training.jobs import run_jobs
from speechbrain_wap.training.machine import use_one_thread, warn_of_slow_run
from speechbrain_wap.training.prepare_folds import prepare_folds
from speechbrain_wap.training.ranks import start_ranks
from speechbrain_wap.training.resume_guard import restored_if_refused

logger = get_logger(__name__)

SCORES = ("UA", "WA", "F1")


def run_fold(plan, fold, seed):
    """Runs both stages of one fold, or takes up where they stopped.

    Returns the content of the classifier's scores.json; None where another
    process is at work on the fold.
    """
    folder = find_run(plan.output_folder, seed, fold)
    adapter = plan.find_adapter(seed, fold)

    def run_stage(stage, **values):
        """Runs a stage with the values of this fold."""
        command = plan.commands[stage]
        if plan.jobs > 1:  # several progress bars would overwrite each other
            quiet = dataclasses.replace(command.run_opts, noprogressbar=True)
            command = command._replace(run_opts=quiet)
        script = load_scripts()[stage]
        script.run(command.change(fold=fold, seed=seed, **values))

    with ExitStack() as own, ExitStack() as shared:
        if not run_on_main(_claim, args=[own, folder]):
            return None
        if plan.adapter_training:
            run_on_main(_claim_adapter, args=[shared, folder, adapter])
        scores = run_on_main(_find_scores, args=[plan, folder, adapter])
        if scores is not None:
            return scores
        if plan.adapter_training:
            run_stage("adapter", output_folder=adapter)
        shared.close()
        run_stage(
            "classifier",
            # none, whatever the YAML names
            adapter_folder=adapter if plan.has_adapter else None,
            output_folder=os.path.join(folder, "classifier"),
        )
        ddp_barrier()  # the main process writes the scores
        return run_on_main(_read_scores, args=[folder])


def _claim(claims, folder, wait=False):
    """Keeps other processes off a fold's folder, unless one is there."""
    return claims.enter_context(try_lock(Path(folder, ".lock"), wait=wait))


def _claim_adapter(claims, folder, adapter):
    """Keeps runs that share an adapter from training it at the same time."""
    place = os.path.dirname(os.path.realpath(adapter))
    if place != os.path.realpath(folder):
        _claim(claims, place, wait=True)


def _read_scores(folder):
    """Reads what a finished fold has scored."""
    keys = ("classes", "fold", "seed", "session", "n", *SCORES, "confusion")
    path = os.path.join(folder, "classifier", "scores.json")
    return read_json(path, "run the same command again.", keys)


def _find_scores(plan, folder, adapter):
    """Reads the scores of a fold that has been run to its end.

    Returns None where a stage is still to be run, or has got more epochs.
    Where the adapter has, be it in a run that shares it, its stage 2 is
    removed: it began with another one.
    """
    wanted = {s: plan.settings[s]["number_of_epochs"] for s in STAGES}
    if plan.adapter_training and Path(adapter, RECORD).is_file():
        cure = f"delete {adapter} to run the fold anew."
        has = read_adapter_record(adapter, cure)
        missing = wanted["adapter"] - has["number_of_epochs"]
        if missing > 0 or _began_with_another(folder, has):
            classifier = Path(folder, "classifier")
            if classifier.is_dir():
                logger.warning(
                    f"{classifier} is removed and trained anew: the adapter "
                    f"that it began with gets {wanted['adapter']} epochs."
                )
                shutil.rmtree(classifier)
        if missing:
            return None  # stage 1 goes on, or refuses to shrink
    if plan.adapter_folder and _began_with_another(
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
        scores = _read_scores(folder)
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


def _began_with_another(folder, record):
    """Tells whether stage 2 has begun, with another adapter than there is."""
    path = Path(folder, "classifier", "save", "settings.json")
    if not path.is_file():
        return False
    settings = read_json(path, f"delete {folder} to run the fold anew.")
    identity = settings.get("settings", {}).get("adapter_identity")
    return identity != identify_adapter(record)


def list_finished(plan):
    """Reads what has been run to its end, by whatever process.

    Arguments
    ---------
    plan : CrossValidation
        What is run; of its output folder, folds and seeds that it does not
        name count, too.

    Returns
    -------
    finished : list of dict
        Content of each scores.json, by seed and fold; in the plan's order
        where there are no others.
    unfinished : list of tuple
        Seed and fold of what has begun, or been run for other epochs.
    """
    finished, unfinished = {}, []
    for folder in sorted(Path(plan.output_folder).glob("seed*/fold*")):
        name = re.fullmatch(r"seed(\d+)/fold(\d+)", "/".join(folder.parts[-2:]))
        if name is None:
            continue
        run, scores = (int(name[1]), int(name[2])), None
        with suppress(RecipeError, OSError):
            scores = _read_finished(plan, *run)
        if scores is None:
            unfinished.append(run)
        else:
            finished[run] = scores
    seeds, folds = map(set, zip(*finished)) if finished else (set(), set())
    if seeds <= {*plan.seeds} and folds <= {*(plan.folds or folds)}:
        order = plan.folds or sorted(folds)
        runs = [(seed, fold) for seed in plan.seeds for fold in order]
    else:
        runs = sorted(finished)
    return [finished[r] for r in runs if r in finished], sorted(unfinished)


def _read_finished(plan, seed, fold):
    """Reads the scores of a fold; None if others are wanted of it."""
    folder, adapter = (
        find_run(plan.output_folder, seed, fold),
        plan.find_adapter(seed, fold),
    )
    scores = _read_scores(folder)
    pairs = [("classifier", scores.get("number_of_epochs"))]
    if plan.has_adapter:
        record = read_adapter_record(adapter)
        if _began_with_another(folder, record):
            return None
        if plan.adapter_training:
            pairs.append(("adapter", record["number_of_epochs"]))
    for stage, epochs in pairs:
        if epochs not in (None, plan.settings[stage]["number_of_epochs"]):
            return None
    return scores


def settle_folds(plan):
    """Writes the corpus table and records the settings, or refuses others.

    For the main process alone.

    Arguments
    ---------
    plan : CrossValidation
        What to run.

    Returns
    -------
    folds : list of int
        Those that are run.
    sessions : list of str
        All; fold k holds out the k-th.
    revisions : dict
        At which the encoder of each stage was found.

    Raises
    ------
    RecipeError
        If the output folder holds a run with other settings or another corpus.
    """
    folder = plan.output_folder
    written = [os.path.join(folder, "corpus.csv")]
    with (
        only_process(folder, wait=True),
        restored_if_refused(folder, written),
    ):
        return prepare_folds(plan)


def run_all(plan, report):
    """Runs all folds of all seeds, but those that another process is at.

    Arguments
    ---------
    plan : CrossValidation
        What to run.
    report : callable
        Given what :func:`list_finished` gives, sums it up, while no other
        process may write to the output folder.

    Returns
    -------
    results : object
        What the report gave.

    Raises
    ------
    RecipeError
        If the output folder holds a run with other settings.
    """
    start_ranks(plan.commands["classifier"].run_opts)
    if plan.jobs > 1 and is_distributed_initialized():
        raise RecipeError(
            "--jobs is for a single process: under torchrun the ranks work on "
            "one fold together."
        )
    use_one_thread()
    for stage in plan.stages:
        warn_of_slow_run(plan.commands[stage].run_opts, plan.jobs)
    folds, sessions, revisions = run_on_main(settle_folds, args=[plan])
    plan.pin_encoders(revisions)
    runs = [(seed, fold) for seed in plan.seeds for fold in folds]
    left, done, started = runs, 0, time.time()
    while left:
        tasks, taken = [(plan, fold, seed) for seed, fold in left], []
        for number, scores in run_jobs(plan.jobs, run_fold, tasks):
            seed, fold = left[number]
            if scores is None:
                taken.append((seed, fold))
                continue
            done += 1
            if if_main_process():
                minutes = (time.time() - started) / 60
                remaining = minutes / done * (len(runs) - done)
                print(
                    f"[{done}/{len(runs)}] fold {fold}, seed {seed}, held-out "
                    f"session {escape_controls(sessions[fold - 1])}: "
                    f"UA {100 * scores['UA']:.1f} %, WA "
                    f"{100 * scores['WA']:.1f} %, F1 {100 * scores['F1']:.1f} "
                    f"% ({minutes:.1f} min so far, about {remaining:.1f} min "
                    "left)",
                    flush=True,
                )
        if len(taken) == len(left):
            break
        left = taken  # once more: their processes may have ended
    for seed, fold in left if if_main_process() else ():
        print(f"fold {fold}, seed {seed}: left to another process, at work.")
    with only_process(plan.output_folder, wait=True):
        return report(*run_on_main(list_finished, args=[plan]))
