r"""Table I: the paper's system and the others, on the same ground.

> python -m speechbrain_wap table1 --data_folder=/path/to/corpus \
    --seeds=1993,1994,1995 --output_folder=results/table1

Typed in a recipe's folder; other YAML files than hparams/adapter.yaml and
hparams/classifier.yaml may be given first. Takes the options of
cross_validate.py; a key that only some systems have goes to these.
--systems="LPMN,WAP-Transformer" runs some, --table=my.yaml the systems of
another file than the package's table1.yaml, --jobs=4 four folds, or
configurations, at a time. Each system chooses among its configurations on the
training sessions of fold 1 (the session after the held-out one validates, the
held-out one has no say), with the first seed, once for an output folder
(choice/SYSTEM/choice.json). A system that fails is named, and the others go
on. Writes table1.md, .csv, _folds.csv and .png. The same command again, with
more systems too, takes up what there is; processes may share it.
"""

import json
from itertools import chain, starmap
from pathlib import Path
from typing import NamedTuple

import yaml
from speechbrain.utils.distributed import (
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)

from speechbrain_wap.comparisons.side_by_side import (
    COSTS,
    Row,
    build_hparams,
    gather_rows,
    going_on,
    name_folder,
    probe_folds,
    read_splits,
    report_failures,
    share_adapters,
    write_option,
    write_side_by_side,
)
from speechbrain_wap.data.sampling import choose_labelled
from speechbrain_wap.data.speakers import natural_key
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.evaluation.linear_probe import linear_probe
from speechbrain_wap.files import (
    expand_path,
    only_process,
    read_json,
    write_text,
)
from speechbrain_wap.reports.cross_validation_report import (
    cross_validate,
    list_common_notes,
)
from speechbrain_wap.reports.report_facts import read_histories
from speechbrain_wap.training.adapter_folder import ENCODER_KEYS
from speechbrain_wap.training.command_line import split_options
from speechbrain_wap.training.cross_validation import (
    STAGES,
    CrossValidation,
    find_run,
    list_keys,
)
from speechbrain_wap.training.jobs import run_jobs
from speechbrain_wap.training.ranks import start_ranks
from speechbrain_wap.training.run_folds import run_all

TABLE = Path(__file__).with_name("table1.yaml")
FILES = ["hparams/adapter.yaml", "hparams/classifier.yaml"]
# What the systems themselves say
REFUSED_OPTIONS = ("system", "adapter_training", "adapter_folder")
REFUSED_OPTIONS += ("adapters_folder",)
MOST = 4
PUBLISHED = "published, other folds"


class _Entry(NamedTuple):
    """A system of the table's file."""

    name: str
    options: dict = {}
    configurations: list = [{}]
    probe: bool = False
    published: str | None = None


def main(arguments):
    """Runs all systems and writes the table.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    files, options, entries, reference = _read_arguments(arguments)
    trained = [entry for entry in entries if not entry.probe]
    listed = list_plans(files, options, [_Entry(""), *trained])
    base = listed.pop("")[""]  # what is typed, and nothing else
    root = base.output_folder
    start_ranks(base.commands["classifier"].run_opts)
    plans, chosen, failures = {}, {}, {}
    for name, configurations in listed.items():
        with going_on(failures, name):
            chosen[name] = choose_configuration(root, name, configurations)
            folder = str(Path(root, name_folder(name)))
            plan = configurations[chosen[name]].change(output_folder=folder)
            plans[name] = share_adapters(plan, root)
            cross_validate(plans[name])
    for name in failures:
        plans.pop(name, None)
    if if_main_process():
        with only_process(root, wait=True):
            _write(base, entries, plans, chosen, reference, failures)
    report_failures(failures)


# What is to be run -----------------------------------------------------------


def _read_arguments(arguments):
    """Reads files and options, the systems, and which one is the reference."""
    files, options = split_options(arguments)
    own = {k: v or "" for k, v in options if k in ("table", "systems")}
    options = [(k, text) for k, text in options if k not in own]
    for key, _ in options:
        if key.rpartition(".")[2] in REFUSED_OPTIONS:
            raise RecipeError(
                f"--{key} cannot be set here: each system of the table has its "
                "own; write a table of yours and give it with --table=..."
            )
    path = expand_path(own.get("table", str(TABLE)), "--table=")
    entries, reference = read_table(path)
    if "systems" in own:
        wanted = [name.strip() for name in own["systems"].split(",")]
        for name in wanted:
            if name not in entries:
                raise RecipeError(
                    f"--systems={own['systems']}: there is no {name}: choose "
                    f"of {', '.join(entries)}."
                )
        entries = {n: e for n, e in entries.items() if n in wanted}
    if all(entry.probe for entry in entries.values()):
        raise RecipeError(
            "the linear probe takes the folds of another system: give one more "
            "of --systems."
        )
    return files or FILES, options, list(entries.values()), reference


def read_table(path):
    """Reads the systems of a table.

    Arguments
    ---------
    path : str
        Such as the package's table1.yaml.

    Returns
    -------
    entries : dict
        The systems by name.
    reference : str or None
        The one that all others are tested against.

    Raises
    ------
    RecipeError
        If it cannot be read, or says something else.

    Example
    -------
    >>> entries, reference = read_table(TABLE)
    >>> len(entries) > 5, entries[reference].options
    (True, {'adapter_training': True})
    """
    try:
        table = yaml.safe_load(Path(path).read_text("utf-8"))
        entries = {
            str(name): _Entry(str(name), **(fields or {}))
            for name, fields in table["systems"].items()
        }
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.")
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{path} is no table of systems ({first_line(error)}): see the "
            f"package's {TABLE.name}."
        )
    for entry in entries.values():
        tried = entry.configurations
        is_list = isinstance(tried, list) and isinstance(entry.options, dict)
        if not is_list or not all(isinstance(one, dict) for one in tried):
            raise RecipeError(
                f"{path}: {entry.name} must have a mapping of options and a "
                "list of configurations, which are mappings."
            )
        if entry.probe and any(one.keys() != {"C"} for one in tried):
            raise RecipeError(
                f"{path}: {entry.name} is the linear probe, of which a "
                "configuration is a value of C: [{C: 0.1}, {C: 1.0}]."
            )
        if not 1 <= len(entry.configurations) <= MOST:
            raise RecipeError(
                f"{path}: {entry.name} has {len(entry.configurations)} "
                f"configurations, but may have 1 to {MOST}, as all others."
            )
    reference = table.get("reference")
    if reference is not None and reference not in entries:
        raise RecipeError(
            f"{path}: reference: {reference} is none of its systems: choose of "
            f"{', '.join(entries)}."
        )
    if len({name_folder(name) for name in entries}) < len(entries):
        raise RecipeError(f"{path}: two names of systems give one folder.")
    return entries, reference


def list_plans(files, options, entries):
    """Lists the configurations of the systems, those that differ.

    Arguments
    ---------
    files : list of str
        The two YAML files.
    options : list of tuple
        What is typed; each goes to the systems that have the key.
    entries : list of _Entry
        The systems.

    Returns
    -------
    plans : dict
        By the system's name, CrossValidation by the configuration's.
    """
    known = {
        entry.name: {*chain(*list_keys(files, entry.options.items()).values())}
        for entry in entries
    }
    of_some = set().union(*known.values())
    plans = {entry.name: {} for entry in entries}
    for entry in entries:
        elsewhere = of_some - known[entry.name]
        typed = [
            f"--{key}" if text is None else f"--{key}={text}"
            for key, text in options
            if _split_key(key)[1] not in elsewhere
        ]
        typed += starmap(write_option, entry.options.items())
        for configuration in entry.configurations:
            tried = starmap(write_option, configuration.items())
            plan = CrossValidation([*files, *tried, *typed])
            # the values as they are, since what is typed counts more
            values = {
                key: plan.settings[stage].get(key)
                for stage, key in map(_split_key, configuration)
            }
            label = ", ".join(f"{key}={value}" for key, value in values.items())
            plans[entry.name].setdefault(label, plan)
    return plans


def _split_key(key):
    """Splits a key into its stage, the classifier by default, and its name."""
    stage, _, name = key.rpartition(".")
    return (stage, name) if stage in STAGES else ("classifier", key)


# Which configuration ---------------------------------------------------------


def choose_configuration(root, name, plans):
    """Chooses by the UA on a session that fold 1 trains on, or as before.

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
        If the choice was made among others.
    """
    if len(plans) == 1:
        return next(iter(plans))
    folder = Path(root, "choice", name_folder(name))
    path = folder / "choice.json"
    with only_process(folder, wait=True):
        choice = run_on_main(_read_choice, args=[path])
        if choice is None:
            trials = [
                _plan_trial(root, folder / name_folder(label), plan)
                for label, plan in plans.items()
            ]
            jobs = 1 if is_distributed_initialized() else trials[0].jobs
            tasks = [(plan,) for plan in trials]
            scores = dict(run_jobs(jobs, validate, tasks))
            scores = {label: scores[n] for n, label in enumerate(plans)}
            best = max(scores, key=scores.get)  # of equals the first
            choice = {"chosen": best, "validation_UA": scores}
            if if_main_process():
                write_text(path, json.dumps(choice, indent=1))
    if choice["validation_UA"].keys() != plans.keys():
        raise RecipeError(
            f"{path} is a choice among other configurations "
            f"({'; '.join(choice['validation_UA'])}): choose another "
            "output_folder, or delete this one to start anew."
        )
    return choice["chosen"]


def _read_choice(path):
    """Reads an earlier choice; None where there is none."""
    if not path.is_file():
        return None
    cure = f"delete {path.parent} to choose anew."
    return read_json(path, cure, ("chosen", "validation_UA"))


def _plan_trial(root, folder, plan):
    """Plans fold 1 with one of its training sessions to validate on."""
    protocol = plan.settings["classifier"]["protocol"]
    # official splits have utterances to validate on
    protocol = "held_out" if protocol == "paper" else protocol
    trial = plan.change(
        adapter={"protocol": protocol},
        classifier={"protocol": protocol},
        folds=[1],
        seeds=plan.seeds[:1],
        output_folder=str(folder),
    )
    return share_adapters(trial, root)


def validate(plan):
    """Trains a configuration on fold 1; gives its UA on the validation set.

    Arguments
    ---------
    plan : speechbrain_wap.training.cross_validation.CrossValidation
        What is run.

    Returns
    -------
    ua : float
        A fraction, of the epoch that is tested.
    """
    run_all(plan, lambda finished, unfinished: None)
    place = find_run(plan.output_folder, plan.seeds[0], 1)
    (rows,) = read_histories({"": Path(place, "classifier")}).values()
    scores = [row["valid"]["UA"] for row in rows]
    best = plan.settings["classifier"]["model_selection"] == "best"
    return max(scores) if best else scores[-1]


# The table -------------------------------------------------------------------


def _write(base, entries, plans, chosen, reference, failures):
    """Writes the table of what is finished in all systems."""
    found = {row.system: row for row in gather_rows(plans)}
    if not found:
        print("No table: no fold is finished in all systems yet.")
        return
    rows = []
    for entry in entries:
        row = found.get(entry.name)
        if entry.probe:
            with going_on(failures, entry.name):
                row = _probe(base, entry, plans, [*found.values()])
        if row is not None:
            cells = dict.fromkeys(COSTS) | {"chosen": chosen.get(entry.name)}
            cells |= {**row.cells, PUBLISHED: entry.published}
            rows.append(row._replace(cells=cells))
    names = [row.system for row in rows]
    pairs = []
    if reference in names:
        pairs = [(name, reference) for name in names if name != reference]
    own_layer = [e.name for e in entries if "encoder_layer" in e.options]
    usual = min(found, key=own_layer.__contains__)  # one without, if there is
    notes = [
        *list_common_notes(plans[usual]),
        "Chosen: of at most four configurations, the one that was best on one "
        "of the training sessions of fold 1 (the probe's C: of the first fold "
        "that is run), with one seed. Minutes: of both "
        "stages, without extraction of features. Peak memory: on a GPU that of "
        "tensors, else that of the whole process.",
        f"{PUBLISHED}: on IEMOCAP, with other encoders, folds and metrics: "
        "not to be compared with the rest of the table.",
        *(
            f"{entry.name}: encoder layer {entry.options['encoder_layer']}."
            for entry in entries
            if entry.name in found and entry.name in own_layer
        ),
        *(
            f"Without {name}, which failed: {failures[name]}"
            for name in failures
        ),
    ]
    title = "Table I side by side"
    table, path = write_side_by_side(
        base.output_folder, "table1", title, rows, pairs, notes
    )
    print(f"\n{table}\n\nWritten to {path}")


def _probe(base, entry, plans, rows):
    """Fits the linear probe on the folds of a system with the same features."""

    def list_encoder(plan):
        """Lists the settings of the encoder."""
        settings = plan.settings["classifier"]
        return [settings.get(key) for key in ("encoder", *ENCODER_KEYS)]

    wanted = list_encoder(base)
    same = [row for row in rows if list_encoder(plans[row.system]) == wanted]
    if not same:
        raise RecipeError(
            "it takes the features of another system, of the same encoder and "
            "layer: give one more of --systems."
        )
    plan, runs = plans[same[0].system], same[0].results["runs"]
    fraction = plan.settings["classifier"]["label_fraction"]
    hparams, pooled = build_hparams(plan), {}
    strengths = [values["C"] for values in entry.configurations]
    strength = strengths[0]
    if len(strengths) > 1:
        first = min(runs, key=lambda run: run["fold"])
        splits = read_splits(hparams, plan, first, pooled)
        splits = split_training(splits, hparams["fold_plan"].protocol)
        if not splits["train"]:
            raise RecipeError(
                "it needs two training sessions to choose C: give it a single "
                "configuration in a table of yours (--table=...)."
            )
        classes = sorted({e["label"] for e in splits["train"].values()})
        labelled = choose_labelled(splits["train"], fraction, first["seed"])
        cache = hparams["feature_cache"]
        scores = {
            C: linear_probe(splits, cache, classes, labelled, pooled, C)["UA"]
            for C in strengths
        }
        strength = max(scores, key=scores.get)
    results = probe_folds(hparams, plan, runs, fraction, pooled, strength)
    size = len(next(iter(pooled.values())))
    cells = {
        COSTS[0]: (size + 1) * len(results["classes"]),
        "chosen": f"C={strength}",
    }
    return Row(entry.name, results, cells)


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
