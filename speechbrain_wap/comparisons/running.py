"""Running systems one beside another: their folders, options and failures."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

from speechbrain.utils.distributed import is_distributed_initialized
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.training.resume_guard import digest_settings
from speechbrain_wap.training.run_folds import list_finished

logger = get_logger(__name__)


def name_folder(name):
    """Names the folder of a system below the output folder.

    Arguments
    ---------
    name : str
        What the table calls it.

    Returns
    -------
    folder : str

    Example
    -------
    >>> name_folder("num_attributes=128"), name_folder("W2v2-PT (corpus)")
    ('num_attributes=128', 'W2v2-PT_corpus')
    """
    return re.sub(r"[^\w.,=+-]+", "_", name).strip("_")[-100:]


def write_option(key, value):
    """Writes a key and its value as they are typed.

    Arguments
    ---------
    key : str
        The key.
    value : object
        As YAML has it.

    Returns
    -------
    option : str

    Example
    -------
    >>> write_option("system", "linear"), write_option("encoder_layer", [1, 2])
    ('--system=linear', '--encoder_layer=[1, 2]')
    """
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--{key}={text}"


def share_adapters(plan, root):
    """Lets stage 1, if it is run, lie where all with its settings have it.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What is to be run.
    root : str
        The output folder of the whole table.

    Returns
    -------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
    """
    if not plan.adapter_training:
        return plan
    digest = digest_settings(plan.settings["adapter"])
    return plan.change(adapters_folder=str(Path(root, "adapters", digest)))


@contextmanager
def going_on(failures, name):
    """Notes what fails in the block, so that other systems are run.

    Arguments
    ---------
    failures : dict
        Gets the reason by the system's name.
    name : str
        The system's.

    Example
    -------
    >>> failures = {}
    >>> with going_on(failures, "mine"):
    ...     raise RecipeError("lr=-1 must be at least 0.")
    >>> failures
    {'mine': 'lr=-1 must be at least 0.'}
    """
    try:
        yield
    except Exception as error:  # of any module that a YAML may name
        if is_distributed_initialized():
            raise  # the other ranks may not have failed
        failures[name] = first_line(error)
        logger.error(
            f"{name} fails, the others go on: {failures[name]}",
            exc_info=not isinstance(error, RecipeError),
        )


def report_failures(failures):
    """Ends a command in which some systems have failed.

    Arguments
    ---------
    failures : dict
        Reasons by the systems' names.

    Raises
    ------
    RecipeError
        If there are any.

    Example
    -------
    >>> report_failures({})
    """
    if failures:
        listing = "; ".join(
            f"{name}: {reason.rstrip('.')}" for name, reason in failures.items()
        )
        raise RecipeError(
            f"not all systems were run ({listing}); the same command again "
            "tries them anew."
        )


def find_common(plans):
    """Reads the runs that are finished in all cross-validations.

    Arguments
    ---------
    plans : list of CrossValidation
        At least one.

    Returns
    -------
    runs : list of list of dict
        Of each plan, contents of scores.json of the same seeds and folds.
    """
    finished = [list_finished(plan)[0] for plan in plans]
    names = [{(r["seed"], r["fold"]) for r in runs} for runs in finished]
    common = set.intersection(*names)
    return [
        [run for run in runs if (run["seed"], run["fold"]) in common]
        for runs in finished
    ]
