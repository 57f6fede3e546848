r"""Table II: one key at several values, with and without adapter training.

> python -m speechbrain_wap sweep hparams/adapter.yaml hparams/classifier.yaml \
    --sweep num_attributes=128,256,512,1024 --data_folder=/path/to/corpus \
    --seeds=1993,1994,1995 --output_folder=results/sweep

Typed in a recipe's folder. Sweeps any key of either stage (--sweep
classifier.lr=0.0001,0.0003: of one), over all folds and seeds, and takes the
options of cross_validate.py. Each value is tested against the same network
without adapter training: one for all values where the key is the adapter's
alone, else one for each. With --adapter_training=False it is tested against
the first value. Stage 1 is shared where its settings are the same. Writes
sweep_KEY.md, .csv, _folds.csv and .png. The same command again, with more
values too, takes up what there is; processes may share it.
"""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.comparisons.running import (
    going_on,
    name_folder,
    report_failures,
    share_adapters,
    write_option,
)
from speechbrain_wap.comparisons.side_by_side import (
    gather_rows,
    write_side_by_side,
)
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import only_process
from speechbrain_wap.reports.cross_validation_report import (
    cross_validate,
    list_common_notes,
)
from speechbrain_wap.reports.report import escape_markdown
from speechbrain_wap.training.command_line import split_options
from speechbrain_wap.training.cross_validation import OWN_KEYS, CrossValidation
from speechbrain_wap.training.resume_guard import digest_settings

WITHOUT = "w/o adapter training"


def main(arguments):
    """Runs all values and writes the table.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    key, swept, arguments = _read_arguments(arguments)
    base = CrossValidation(arguments, adapter_training=True)
    plans, pairs = _list_plans(base.output_folder, arguments, swept)
    failures = {}
    for name, plan in plans.items():
        with going_on(failures, name):
            cross_validate(plan)
    for name in failures:
        del plans[name]
    if if_main_process():
        with only_process(base.output_folder, wait=True):
            _write(base.output_folder, key, plans, pairs)
    report_failures(failures)


def _read_arguments(arguments):
    """Reads the key and an option for each value; gives the others, too."""
    positional, options = split_options(arguments)
    swept = [text or "" for key, text in options if key == "sweep"]
    usage = "--sweep num_attributes=128,256"
    if len(swept) != 1:
        raise RecipeError(f"give one key and its values: {usage}.")
    key, _, text = swept[0].partition("=")
    if key in OWN_KEYS:
        raise RecipeError(
            f"{key} cannot be swept, but a key of a YAML: {usage}."
        )
    try:
        values = YAML(typ="safe", pure=True).load(f"[{text}]")
    except YAMLError:
        values = []
    if not key or not values:
        raise RecipeError(f"--sweep {swept[0]} has no values: {usage}.")
    swept = [write_option(key, value) for value in values]
    others = [
        f"--{other}" if text is None else f"--{other}={text}"
        for other, text in options
        if other != "sweep"
    ]
    return key, list(dict.fromkeys(swept)), positional + others


def _list_plans(root, arguments, swept):
    """Lists what is to be run by name, and which pairs are tested."""
    plans, scratch = {}, {}
    for option in swept:
        name = option.removeprefix("--")
        # whatever the YAML says: each value is tested against without
        plan = CrossValidation([*arguments, option], adapter_training=True)
        plan = plan.change(output_folder=str(Path(root, name_folder(name))))
        plan = share_adapters(plan, root)
        plans[name] = plan
        scratch[name] = plan.change(adapter_training=False, adapter_folder=None)
    if not plan.has_adapter:
        first, *others = plans
        return plans, [(name, first) for name in others]
    pairs = []
    starts = {
        digest_settings(s.settings["classifier"]) for s in scratch.values()
    }
    for name in scratch:
        # the adapter's own keys change nothing of the network without it
        other = WITHOUT if len(starts) == 1 else f"{name}, {WITHOUT}"
        folder = str(Path(root, name_folder(other)))
        plans[other] = scratch[name].change(output_folder=folder)
        pairs.append((name, other))
    return plans, pairs


def list_notes(plans):
    """Lists what holds for all systems, and what for some, with their names.

    Arguments
    ---------
    plans : dict
        What was run, by the systems' names.

    Returns
    -------
    notes : list of str
    """
    systems = {}
    for name, plan in plans.items():
        for note in list_common_notes(plan):
            systems.setdefault(note, []).append(escape_markdown(name))
    return [
        note if len(names) == len(plans) else f"{', '.join(names)}: {note}"
        for note, names in systems.items()
    ]


def _write(root, key, plans, pairs):
    """Writes the table of what is finished in all systems."""
    rows = gather_rows(plans)
    if not rows:
        print("No table: no fold is finished for all values yet.")
        return
    there = {row.system for row in rows}
    table, path = write_side_by_side(
        root,
        f"sweep_{key}",
        f"{key} at several values",
        rows,
        [pair for pair in pairs if there.issuperset(pair)],
        list_notes({name: plans[name] for name in plans if name in there}),
    )
    print(f"\n{table}\n\nWritten to {path}")
