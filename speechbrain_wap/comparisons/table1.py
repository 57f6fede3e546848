r"""Table I: the paper's system and the others, on the same ground.

> python -m speechbrain_wap table1 --data_folder=/path/to/corpus \
    --seeds=1993,1994,1995 --output_folder=results/table1

Typed in a recipe's folder; other YAML files than hparams/adapter.yaml and
hparams/classifier.yaml may be given first. Takes the options of
cross_validate.py; a key that only some systems have goes to these.
--systems="LPMN,WAP-Transformer" runs some (the table has what is finished of
the others), --table=my.yaml the systems of another file than the package's
table1.yaml, --jobs=4 four folds, or configurations, at a time. Each system
chooses among its configurations on the training sessions of the first fold (the
session after the held-out one validates, the held-out one has no say), with the
first seed, once for an output folder (choice/SYSTEM/choice.json). A system that
fails is named, and the others go on. Writes table1.md, .csv, _folds.csv and
.png. The same command again, with more systems too, takes up what there is;
processes may share it.
"""

from contextlib import suppress
from itertools import chain, starmap
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import yaml
from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.comparisons.choice import (
    choose_configuration,
    find_choice,
    split_training,
)
from speechbrain_wap.comparisons.probe import (
    build_hparams,
    probe_folds,
    read_splits,
)
from speechbrain_wap.comparisons.running import (
    going_on,
    name_folder,
    report_failures,
    share_adapters,
    write_option,
)
from speechbrain_wap.comparisons.side_by_side import (
    COSTS,
    Row,
    gather_rows,
    write_side_by_side,
)
from speechbrain_wap.data.sampling import choose_labelled
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.evaluation.linear_probe import linear_probe
from speechbrain_wap.files import expand_path, only_process
from speechbrain_wap.reports.cross_validation_report import (
    cross_validate,
    list_common_notes,
)
from speechbrain_wap.training.adapter_folder import ENCODER_KEYS
from speechbrain_wap.training.command_line import split_options
from speechbrain_wap.training.cross_validation import (
    STAGES,
    CrossValidation,
    list_keys,
)
from speechbrain_wap.training.ranks import start_ranks
from speechbrain_wap.training.run_folds import list_finished, settle_folds

TABLE = Path(__file__).with_name("table1.yaml")
FILES = ["hparams/adapter.yaml", "hparams/classifier.yaml"]
# What the systems themselves say
REFUSED_OPTIONS = ("system", "adapter_training", "adapter_folder")
REFUSED_OPTIONS += ("adapters_folder",)
SAME = ("seeds", "folds")  # of all systems
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
    files, options, entries, wanted, reference = _read_arguments(arguments)
    trained = [e for e in entries if not e.probe and e.name in wanted]
    known = {}
    for entry in entries:
        with suppress(Exception):  # said where it is run, or looked for
            known[entry.name] = _read_keys(files, entry)
    # what is typed, and nothing else
    (base,) = list_plans(files, options, [_Entry("")], known)[""].values()
    root = base.output_folder
    start_ranks(base.commands["classifier"].run_opts)
    listed, plans, chosen, failures = {}, {}, {}, {}
    for entry in trained:  # what cannot be is said before anything is trained
        with going_on(failures, entry.name):
            listed.update(list_plans(files, options, [entry], known))
    for name, configurations in listed.items():
        with going_on(failures, name):
            chosen[name] = choose_configuration(root, name, configurations)
            plan = _place(root, name, configurations[chosen[name]])
            plans[name] = plan
            cross_validate(plan)
    for name in failures:
        plans.pop(name, None)
    if if_main_process():
        with only_process(root, wait=True):
            left_out = {}
            for entry in entries:
                if entry.probe or entry.name in wanted:
                    continue
                try:
                    found = _find_finished(
                        root, files, options, entry, known, plans
                    )
                except Exception as error:  # of any module that a YAML names
                    left_out[entry.name] = first_line(error)
                    continue
                if found is not None:
                    chosen[entry.name], plans[entry.name] = found
            reasons = failures, left_out
            _write(base, entries, wanted, plans, chosen, reference, *reasons)
    report_failures(failures)


def _place(root, name, plan):
    """Gives a system's runs a folder of their own, and shared adapters."""
    folder = str(Path(root, name_folder(name)))
    return share_adapters(plan.change(output_folder=folder), root)


# What is to be run -----------------------------------------------------------


def _read_arguments(arguments):
    """Reads files, options, systems, which to run, and the reference."""
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
    wanted = [*entries]
    if "systems" in own:
        wanted = [name.strip() for name in own["systems"].split(",")]
    for name in wanted:
        if name not in entries:
            raise RecipeError(
                f"--systems={own['systems']}: there is no {name}: choose of "
                f"{', '.join(entries)}."
            )
    if all(entries[name].probe for name in wanted):
        raise RecipeError(
            "the linear probe takes the folds of another system: give one more "
            "of --systems."
        )
    return files or FILES, options, [*entries.values()], wanted, reference


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
        same = {*SAME} & {key for one in (entry.options, *tried) for key in one}
        if same:
            raise RecipeError(
                f"{path}: {entry.name}: {min(same)} is the same for all "
                f"systems: type --{min(same)}=... instead."
            )
        own = {*REFUSED_OPTIONS} & {key for one in tried for key in one}
        if own:
            raise RecipeError(
                f"{path}: {entry.name}: {min(own)} belongs into its options, "
                "not into a configuration."
            )
        if entry.probe and not all(map(_is_strength, tried)):
            raise RecipeError(
                f"{path}: {entry.name} is the linear probe, of which a "
                "configuration is a value of C, a number above 0: "
                "[{C: 0.1}, {C: 1.0}] (YAML takes 1.0e-3, not 1e-3, as one)."
            )
        if not 1 <= len(entry.configurations) <= MOST:
            raise RecipeError(
                f"{path}: {entry.name} has {len(entry.configurations)} "
                f"configurations, but may have 1 to {MOST}, as all others."
            )
    reference = table.get("reference")
    reference = None if reference is None else str(reference)
    if reference not in (None, *entries):
        raise RecipeError(
            f"{path}: reference: {reference} is none of its systems: choose of "
            f"{', '.join(entries)}."
        )
    folders = ["", ".", "..", "adapters", "choice", *map(name_folder, entries)]
    if len({*folders}) < len(folders) or any("," in name for name in entries):
        raise RecipeError(
            f"{path}: names of systems must have no comma and give different "
            "folders, other than adapters and choice."
        )
    return entries, reference


def _is_strength(values):
    """Tells whether a configuration is one of the linear probe."""
    strength = values.get("C")
    is_number = type(strength) in (int, float) and strength > 0
    return is_number and values.keys() == {"C"}


def list_plans(files, options, entries, known=MappingProxyType({})):
    """Lists the configurations of the systems, those that differ.

    Arguments
    ---------
    files : list of str
        The two YAML files.
    options : list of tuple
        What is typed; each goes to the systems that have the key.
    entries : list of _Entry
        The systems.
    known : dict
        By the system's name, the keys that it has, of further systems too,
        whose keys may be typed; those of `entries` that are missing are read.

    Returns
    -------
    plans : dict
        By the system's name, CrossValidation by the configuration's.
    """
    missing = [entry for entry in entries if entry.name not in known]
    known = {**known, **{e.name: _read_keys(files, e) for e in missing}}
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
        told = dict.fromkeys(chain(*entry.configurations))
        for configuration in entry.configurations:
            tried = starmap(write_option, configuration.items())
            arguments = [*files, *tried, *typed]
            plan = CrossValidation(arguments, adapter_training=True)
            # the values as they are, since what is typed counts more
            values = {
                key: plan.settings[stage].get(key)
                for stage, key in map(_split_key, told)
            }
            label = ", ".join(f"{key}={value}" for key, value in values.items())
            plans[entry.name].setdefault(label or "the only one", plan)
    return plans


def _read_keys(files, entry):
    """Reads which keys a system has, of both stages."""
    _, options = split_options(starmap(write_option, entry.options.items()))
    return {*chain(*list_keys(files, options).values())}


def _split_key(key):
    """Splits a key into its stage, the classifier by default, and its name."""
    stage, _, name = key.rpartition(".")
    return (stage, name) if stage in STAGES else ("classifier", key)


# The table -------------------------------------------------------------------


def _find_finished(root, files, options, entry, known, plans):
    """Finds what an earlier command has finished of a system; None if nothing.

    Gives the configuration's name and its plan. Refused is what was run with
    other settings, or lacks runs of those that are in the table.
    """
    if not Path(root, name_folder(entry.name)).is_dir():
        return None
    listed = list_plans(files, options, [entry], known)[entry.name]
    choice = find_choice(root, entry.name, listed)
    if choice is None:
        return None
    plan = _place(root, entry.name, listed[choice])
    runs, *needed = (
        {(run["seed"], run["fold"]) for run in list_finished(one)[0]}
        for one in (plan, *plans.values())
    )
    if not runs:
        return None
    settle_folds(plan)
    needed = [one for one in needed if one]
    if needed and not runs >= set.intersection(*needed):
        raise RecipeError("it lacks folds or seeds of the others.")
    return choice, plan


def _write(base, entries, wanted, plans, chosen, reference, failures, left_out):
    """Writes the table of what is finished in all systems."""
    found = {row.system: row for row in gather_rows(plans)}
    if not found:
        print("No table: no fold is finished in all systems yet.")
        return
    rows = []
    for entry in entries:
        row = found.get(entry.name)
        if entry.probe:
            reasons = failures if entry.name in wanted else left_out
            with going_on(reasons, entry.name):
                row = _probe(base, entry, plans, [*found.values()])
        if row is not None:
            cells = dict.fromkeys(COSTS) | {"chosen": chosen.get(entry.name)}
            cells |= {**row.cells, PUBLISHED: entry.published}
            rows.append(row._replace(cells=cells))
    names = [row.system for row in rows]
    pairs = []
    if reference in names:
        pairs = [(name, reference) for name in names if name != reference]
    untested = [f"Not tested against {reference}, which is not in the table."]
    untested *= reference not in (None, *names)
    own_layer = [e.name for e in entries if "encoder_layer" in e.options]
    usual = min(found, key=own_layer.__contains__)  # one without, if there is
    notes = [
        *list_common_notes(plans[usual]),
        "Chosen: of at most four configurations, the one that was best on one "
        "of the training sessions of the first fold (the probe's C: of the "
        "first one that is run), with one seed; in another fold, that session "
        "is tested on. All else is as its YAML has it.",
        "Trained parameters: of stage 2. Minutes: of both stages, without "
        "extraction of features. Peak memory: on a GPU that of tensors, else "
        "that of the whole process, with what systems before it have left.",
        f"{PUBLISHED}: on IEMOCAP, with other encoders, folds and metrics: "
        "not to be compared with the rest of the table.",
        *(
            f"{entry.name}: encoder layer {entry.options['encoder_layer']}."
            for entry in entries
            if entry.name in found and entry.name in own_layer
        ),
        *untested,
        *(
            f"Without {name}, which failed: {failures[name]}"
            for name in failures
        ),
        *(f"Without {name}: {left_out[name]}" for name in left_out),
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
        read = hparams["feature_cache"].make_reader(hparams["max_frames"])
        scores = {
            C: linear_probe(splits, read, classes, labelled, pooled, C)["UA"]
            for C in strengths
        }
        strength = max(scores, key=scores.get)
    results = probe_folds(hparams, plan, runs, fraction, pooled, strength)
    size = len(next(iter(pooled.values())))
    num_classes = len(results["classes"])
    cells = {
        # of two classes, the probability of one is that of the other
        COSTS[0]: (size + 1) * (num_classes if num_classes > 2 else 1),
        "chosen": f"C={strength}",
    }
    return Row(entry.name, results, cells)
