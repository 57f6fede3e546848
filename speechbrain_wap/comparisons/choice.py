"""Which of its configurations a system of Table I is run with.

The one that is best on a session that is trained on; the test session has no
say. Chosen once for an output folder (choice/SYSTEM/choice.json).
"""

import json
from pathlib import Path

from speechbrain.utils.distributed import (
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from speechbrain_wap.comparisons.running import name_folder, share_adapters
from speechbrain_wap.data.speakers import natural_key
from speechbrain_wap.errors import DivergedError, RecipeError
from speechbrain_wap.files import only_process, read_json, write_text
from speechbrain_wap.reports.report_facts import read_histories
from speechbrain_wap.training.cross_validation import find_run
from speechbrain_wap.training.jobs import run_jobs
from speechbrain_wap.training.run_folds import run_all, settle_folds

logger = get_logger(__name__)

CHOICE = "choice.json"


def choose_configuration(root, name, plans):
    """Chooses by the UA on a session that is trained on, or as before.

    The first fold is taken that has enough labels for it. A configuration that
    diverges is not chosen.

    Arguments
    ---------
    root : str
        The output folder of the table.
    name : str
        The system's.
    plans : dict
        What is run with each configuration, by the configuration's name.

    Returns
    -------
    chosen : str
        A configuration's name.

    Raises
    ------
    RecipeError
        If the choice was made among others, with other settings or on another
        corpus; if no fold can be chosen on, or all diverge.
    """
    if len(plans) == 1:
        return next(iter(plans))
    folder = Path(root, "choice", name_folder(name))
    # refuses other settings than those of an earlier choice; of any one
    settled = plans[min(plans)].change(output_folder=str(folder))
    _, sessions, _ = run_on_main(settle_folds, args=[settled])
    with only_process(folder, wait=True):
        chosen = run_on_main(find_choice, args=[root, name, plans])
        if chosen is not None:
            return chosen
        first = min(plans)
        place = folder / name_folder(first)
        arguments = [root, place, plans[first], len(sessions)]
        fold = run_on_main(_find_fold, args=arguments)
        trials = [
            plan_trial(root, folder / name_folder(label), plan, fold)
            for label, plan in plans.items()
        ]
        jobs = 1 if is_distributed_initialized() else trials[0].jobs
        tasks = [(plan,) for plan in trials]
        found = dict(run_jobs(jobs, validate, tasks))
        scores = {label: found[n] for n, label in enumerate(plans)}
        finite = [label for label in plans if scores[label] is not None]
        if not finite:
            raise RecipeError(
                "each of its configurations diverges: give lower learning "
                "rates in a table of yours (--table=...)."
            )
        chosen = max(finite, key=scores.get)  # of equals the first
        choice = {"chosen": chosen, "validation_UA": scores}
        if if_main_process():
            write_text(folder / CHOICE, json.dumps(choice, indent=1))
    return chosen


def find_choice(root, name, plans):
    """Reads which configuration was chosen.

    Arguments
    ---------
    root, name, plans
        See :func:`choose_configuration`.

    Returns
    -------
    chosen : str or None
        None where nothing has been chosen; the only one, if there is one.

    Raises
    ------
    RecipeError
        If the choice is damaged, or was made among others.
    """
    if len(plans) == 1:
        return next(iter(plans))
    path = Path(root, "choice", name_folder(name), CHOICE)
    if not path.is_file():
        return None
    cure = "delete it to choose anew; what was tried is not run again."
    choice = read_json(path, cure, ("chosen", "validation_UA"))
    chosen, scores = choice["chosen"], choice["validation_UA"]
    if not isinstance(scores, dict) or chosen not in scores:
        raise RecipeError(f"{path} is damaged: {cure}")
    if scores.keys() != plans.keys():
        raise RecipeError(
            f"{path} is a choice among other configurations "
            f"({'; '.join(scores)}): choose another output_folder, or delete "
            "this one to start anew."
        )
    return chosen


def _find_fold(root, folder, plan, num_folds):
    """Finds the first fold that can be trained and validated.

    Whatever --folds says: other processes may run other folds.
    """
    reasons = []
    for fold in range(1, num_folds + 1):
        try:
            settle_folds(plan_trial(root, folder, plan, fold))
        except RecipeError as error:
            reasons.append(str(error))
            continue
        return fold
    raise RecipeError(
        "a configuration is chosen on one of a fold's training sessions, which "
        f"no fold has to spare ({reasons[0].rstrip('.')}): give each system a "
        "single configuration in a table of yours (--table=...)."
    )


def plan_trial(root, folder, plan, fold):
    """Plans a fold with one of its training sessions to validate on.

    Arguments
    ---------
    root : str
        The output folder of the table, where adapters are shared.
    folder : pathlib.Path
        Where it is run.
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        The configuration.
    fold : int
        Counted from 1.

    Returns
    -------
    trial : speechbrain_wap.training.cross_validation.CrossValidation
    """
    protocol = plan.settings["classifier"]["protocol"]
    # official splits have utterances to validate on
    protocol = "held_out" if protocol == "paper" else protocol
    trial = plan.change(
        adapter={"protocol": protocol},
        classifier={"protocol": protocol},
        folds=[fold],
        seeds=plan.seeds[:1],
        output_folder=str(folder),
    )
    return share_adapters(trial, root)


def validate(plan):
    """Trains a configuration on a fold; gives its UA on the validation set.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What is run.

    Returns
    -------
    ua : float or None
        A fraction, of the epoch that is tested; None where it diverges.
    """
    try:
        run_all(plan, lambda finished, unfinished: None)
    except DivergedError as error:
        if is_distributed_initialized():
            raise  # the other ranks may not have diverged
        logger.warning(f"{plan.output_folder} is not chosen: {error}")
        return None
    place = find_run(plan.output_folder, plan.seeds[0], plan.folds[0])
    (rows,) = read_histories({"": Path(place, "classifier")}).values()
    scores = [row["valid"]["UA"] for row in rows]
    best = plan.settings["classifier"]["model_selection"] == "best"
    return max(scores) if best else scores[-1]


def split_training(splits, protocol):
    """Splits off what a configuration is chosen on; nothing of the test split.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of each split.
    protocol : str
        Of the folds; "paper" has the test session as validation set.

    Returns
    -------
    splits : dict
        "train", and "test", on which is validated.

    Example
    -------
    >>> train = {"a": {"session": "2"}, "b": {"session": "3"}}
    >>> found = split_training({"train": train, "valid": {}}, "paper")
    >>> [list(found[name]) for name in ("train", "test")]
    [['b'], ['a']]
    """
    train, valid = splits["train"], splits["valid"]
    if protocol == "paper":
        # the session after the held-out one, of fold 1
        chosen = min((e["session"] for e in train.values()), key=natural_key)
        valid = {k: e for k, e in train.items() if e["session"] == chosen}
        train = {k: e for k, e in train.items() if k not in valid}
    return {"train": train, "test": valid}
