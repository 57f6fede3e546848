r"""Does adapter training pay? The tables of docs/adapter_study.md, one a call.

> python benchmarks/adapter_study.py paper --encoder=/path/to/whisper-base \
    --nemo=/path/to/nEMO --output=results/study

Tables: "small" (0: EmoDB and RAVDESS, IEMOCAP's YAMLs), "paper" (1: the paper's
settings on nEMO), "recipe" (2: nEMO's YAMLs), "universal" (3: one adapter for
all corpora, on more and more hours). The plan, who judges and what decides are
in docs/adapter_study.md. The same command again goes on with what was
interrupted, and with further seeds and shares. --known=FILE adds the rows of
what was run elsewhere, say docs/adapter_study/small.csv, and spares no run.
--print shows the commands and runs none of them; what follows "--", say
--device=cuda, goes to all of them (a key of one stage alone is written
--classifier.augmentation=all). The rows (CSV) are written when some are there,
the table and the figure when all are: who judges is looked at once.
"""

import argparse
import importlib.util
import json
import math
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from speechbrain_wap.comparisons.comparison import WITH, WITHOUT
from speechbrain_wap.comparisons.probe import PROBE
from speechbrain_wap.comparisons.side_by_side import format_difference
from speechbrain_wap.data.audio_index import AUDIO_INDEX
from speechbrain_wap.data.corpus_table import (
    find_audio,
    open_data_folder,
    write_corpus_table,
)
from speechbrain_wap.data.folds import list_sessions
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.significance import compare_units
from speechbrain_wap.reports.report import markdown_table, save_figure
from speechbrain_wap.training.experiment import run_command

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
YAMLS = ["hparams/adapter.yaml", "hparams/classifier.yaml"]
# Whom an adapter leaves out together; the other three are for settings
PAIRS = [("EB0", "KS0"), ("IC0", "SM0"), ("MK0", "TP0")]
SPEAKERS = ["EB0", "IC0", "KD0", "KS0", "MK0", "MP0", "SM0", "TP0", "WR0"]
STEPS = 3000
HOURS = (0.3, 1.0, 3.0, math.inf)
# Folds that judge; those of nEMO's other three speakers are for settings
JUDGING = {"nEMO": [1, 2, 4, 5, 7, 8], "EmoDB": [1, 2, 3], "RAVDESS": [1, 2, 3]}
CHOOSING = ("KD0", "MP0", "WR0")
CLASSES = {
    "nEMO": "anger happiness sadness neutral",
    "EmoDB": "anger happiness sadness neutral",
    "RAVDESS": "angry happy sad neutral",
}
COLUMNS = "corpus system hours labels fold session seed UA".split()
SMALL = (
    "--d_model=128 --nhead=4 --d_ffn=512 --num_attributes=128 --batch_size=32 "
    "--lr=5e-4 --adapter.number_of_epochs=30 --classifier.number_of_epochs=20"
).split()
WIDTHS = {
    128: ["--d_model=128", "--nhead=4", "--d_ffn=512"],
    384: [],  # the paper's, IEMOCAP's YAMLs
}


class Chain(NamedTuple):
    """Commands that are run in turn, and the folders of results they give.

    commands: each with the recipe whose folder it is typed in; results: each
    with its corpus and, in table 3, the hours of stage 1.
    """

    folder: Path
    commands: list
    results: list


# Corpora ---------------------------------------------------------------------


def find_prepare(corpus):
    """Loads a recipe's function that reads its corpus."""
    name = f"{corpus.lower()}_prepare"
    path = RECIPES / corpus / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"prepare_{corpus.lower()}")


def prepare_wild(data_folder, csv, audio_index):
    """Writes the table of unlabelled speech in the wild.

    Its files, help-safe-None-...-<hash of the user>.wav, lie in a folder for
    each place; a file is a speaker, since many share the hash of nobody. Left
    out is "background", where nobody speaks.
    """
    rows = [
        {
            "id": f"{folder.name}_{key}",
            "wav": str(path.resolve()),
            "speaker": f"{folder.name}_{key}",
            "session": folder.name,
            "emo": "",
        }
        for folder in sorted(open_data_folder(data_folder).iterdir())
        for key, path in find_audio(folder).items()
        if not key.startswith("background")
    ]
    if not rows:
        raise RecipeError(
            f"--wild={data_folder} has no folder of audio files: give the root "
            "of the repository, in which House, Metro and so on lie."
        )
    write_corpus_table(pd.DataFrame(rows), csv, 0.05, audio_index)


def write_speech(table, csv):
    """Writes speech for stage 1, without labels; counts its utterances."""
    columns = ["id", "wav", "speaker", "session"]
    table[columns].assign(emo="").to_csv(csv, index=False)
    return len(table)


def count_epochs(utterances, batch_size):
    """Counts the epochs of which the steps are STEPS, or a few more."""
    return math.ceil(STEPS / math.ceil(utterances / batch_size))


# Tables ----------------------------------------------------------------------


def list_small(options):
    """Table 0: IEMOCAP's YAMLs at 128 dimensions on small corpora."""
    for corpus, csv in write_tables(options, "EmoDB", "RAVDESS").items():
        folder = options.root / corpus
        command = compare(options, corpus, csv, folder, *SMALL)
        yield Chain(folder, [("IEMOCAP", command)], [(folder, corpus, None)])


def list_paper(options):
    """Table 1: the paper's settings on nEMO, an adapter for each pair."""
    csv = write_tables(options, "nEMO")["nEMO"]
    usual = [*WIDTHS[options.width], "--lr=5e-4"]
    for pair in options.pairs:
        speech, count = leave_out(csv, pair)
        epochs = f"--number_of_epochs={count_epochs(count, 96)}"
        yield share_adapter(
            *(options, "IEMOCAP", csv, pair, speech, [*usual, epochs]),
            [*usual, "--classifier.number_of_epochs=12"],
        )


def list_recipe(options):
    """Table 2: nEMO's own settings; the choosing speakers share an adapter."""
    csv = write_tables(options, "nEMO")["nEMO"]
    if options.speakers == "choosing":
        speech, _ = leave_out(csv, CHOOSING)
        yield share_adapter(options, "nEMO", csv, CHOOSING, speech, [], [])
        return
    for fold in JUDGING["nEMO"]:
        folder = options.root / SPEAKERS[fold - 1]
        command = compare(
            *(options, "nEMO", csv, folder, f"--folds={fold}"),
            f"--label_fractions={options.labels}",
        )
        yield Chain(folder, [("nEMO", command)], [(folder, "nEMO", None)])


def leave_out(csv, speakers):
    """Writes the speech of all others; gives its path and its length."""
    table = pd.read_csv(csv, dtype=str)
    speech = csv.with_name(f"without_{'_'.join(speakers)}.csv")
    table = table[~table["speaker"].isin(speakers)]
    return speech, write_speech(table, speech)


def share_adapter(options, recipe, csv, speakers, speech, adapter, compared):
    """Chains an adapter for each seed and the comparison in speakers' folds.

    adapter, compared: further arguments of the two commands.
    """
    folder = options.root / "_".join(speakers)
    folds = ",".join(str(SPEAKERS.index(one) + 1) for one in speakers)
    commands = [
        train_adapter(
            *(options, folder / f"adapter_{seed}", seed, speech, *adapter)
        )
        for seed in options.seeds
    ]
    commands.append(
        compare(
            *(options, "nEMO", csv, folder / "compared", *compared),
            *(f"--folds={folds}", f"--label_fractions={options.labels}"),
            f"--adapter_folder={folder}/adapter_{{seed}}",
        )
    )
    commands = [(recipe, one) for one in commands]
    return Chain(folder, commands, [(folder / "compared", "nEMO", None)])


def list_universal(options):
    """Table 3: one adapter for all corpora, on more and more hours."""
    csvs = write_tables(options, *JUDGING, "wild")
    tables = []
    for corpus, csv in csvs.items():
        table = pd.read_csv(csv, dtype=str, keep_default_na=False)
        sessions = list_sessions(table)
        judging = {sessions[fold - 1] for fold in JUDGING.get(corpus, ())}
        tables.append(table[~table["session"].isin(judging)])
    # the same order for all amounts: a smaller one lies inside a larger one
    speech = pd.concat(tables).sample(frac=1.0, random_state=0)
    so_far = speech["duration"].astype(float).cumsum() / 3600
    wild = csvs.pop("wild")
    for hours in HOURS:
        name = "all" if math.isinf(hours) else f"{hours:g}h"
        csv = wild.with_name(f"speech_{name}.csv")
        count = write_speech(speech[so_far <= hours], csv)
        used = round(min(hours, so_far.iloc[-1]), 2)
        adapters = options.root / "adapters"
        commands = [
            train_adapter(
                *(options, adapters / f"{name}_{seed}", seed, csv),
                *(f"--number_of_epochs={count_epochs(count, 16)}",),
                "--probe_every=0",
            )
            for seed in options.seeds
        ]
        results = []
        for corpus, csv in csvs.items():
            folds = ",".join(map(str, JUDGING[corpus]))
            common = (
                f"--folds={folds}",
                f"--adapter_folder={adapters}/{name}_{{seed}}",
            )
            folder = options.root / name / corpus
            if name == "all":
                labels = f"--label_fractions={options.labels}"
                command = compare(options, corpus, csv, folder, *common, labels)
                commands.append(command)
                results.append((folder, corpus, used))
                continue
            for share in options.labels.split(","):
                one = folder / share
                label = f"--label_fraction={share}"
                commands.append(
                    validate(options, corpus, csv, one, *common, label)
                )
                results.append((one, corpus, used))
        folder = options.root / name
        yield Chain(folder, [("EmoDB", c) for c in commands], results)


TABLES = {
    "small": list_small,
    "paper": list_paper,
    "recipe": list_recipe,
    "universal": list_universal,
}


def write_tables(options, *corpora):
    """Writes the corpora's tables; gives their paths by name.

    A corpus whose folder is not given must have been read before.
    """
    paths = {}
    for corpus in corpora:
        path = options.output / "tables" / corpus.lower() / "corpus.csv"
        folder = getattr(options, corpus.lower())
        if folder is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            prepare = prepare_wild if corpus == "wild" else find_prepare(corpus)
            prepare(folder, path, audio_index=path.with_name(AUDIO_INDEX))
        elif not path.is_file():
            raise RecipeError(
                f"--{corpus.lower()}=/path/to/{corpus} is needed."
            )
        paths[corpus] = path
    if "nEMO" in paths:
        speakers = {*pd.read_csv(paths["nEMO"], dtype=str)["speaker"]}
        if speakers != {*SPEAKERS}:
            raise RecipeError(
                f"{paths['nEMO']} has not the nine speakers "
                f"{', '.join(SPEAKERS)}, by which the folds are numbered."
            )
    return paths


def train_adapter(options, folder, seed, csv, *arguments):
    """Names the command that trains an adapter on a table alone."""
    handed_on = [
        option.replace("--adapter.", "--", 1)
        for option in options.handed_on
        if not option.startswith("--classifier.")
    ]
    return [
        *("train_adapter.py", YAMLS[0], *options.usual, f"--corpora={csv}"),
        *(f"--seed={seed}", f"--output_folder={folder}"),
        *(*arguments, *handed_on),
    ]


def compare(options, *arguments):
    """Names the command that compares with and without adapter training."""
    command = ("-m", "speechbrain_wap", "compare")
    return [*command, *describe_corpus(options, *arguments)]


def validate(options, *arguments):
    """Names the command that fine-tunes an adapter in all judging folds."""
    return ["cross_validate.py", *describe_corpus(options, *arguments)]


def describe_corpus(options, corpus, csv, folder, *arguments):
    """Lists what all commands of a corpus have in common."""
    classes = ", ".join(f"{c}: [{c}]" for c in CLASSES[corpus].split())
    seeds = ",".join(map(str, options.seeds))
    handed_on = options.handed_on
    if any(one.startswith("--adapter_folder=") for one in arguments):
        # stage 1 is over: its keys are for train_adapter, and refused here
        handed_on = [o for o in handed_on if not o.startswith("--adapter.")]
    return [
        *(*YAMLS, *options.usual, f"--corpus_csv={csv}"),
        *(f"--classes={{{classes}}}", f"--seeds={seeds}"),
        *(f"--output_folder={folder}", *arguments, *handed_on),
    ]


# Running ---------------------------------------------------------------------


def run_all(chains, jobs):
    """Runs the commands of each chain in turn, several chains at a time."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}

    def run(chain):
        """Runs one chain; says where its log is if a command fails."""
        log = chain.folder.with_name(f"{chain.folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        for number, (recipe, command) in enumerate(chain.commands, 1):
            progress = f"command {number} of {len(chain.commands)}"
            print(f"{chain.folder}: {progress}", flush=True)
            with log.open("a") as file:
                ended = subprocess.run(
                    [sys.executable, *command],
                    cwd=RECIPES / recipe / "wap_adapter",
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **threads},
                )
            if ended.returncode:
                print(f"{chain.folder}: {progress} failed, see {log}")
                return False
        return True

    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(run, chains)))


# Results ---------------------------------------------------------------------


def collect(chains, known):
    """Reads the UA of every fold and seed of what is finished.

    What the tables in `known` have is taken from them, unless it was run here.
    """
    rows = []
    for folder, corpus, hours in (r for chain in chains for r in chain.results):
        for system in read_systems(folder):
            rows += [
                {
                    "corpus": corpus,
                    "system": system["system"],
                    "hours": hours if system["system"] == WITH else None,
                    "labels": system["label_fraction"],
                    "fold": run["fold"],
                    "session": run["session"],
                    "seed": run["seed"],
                    "UA": round(run["UA"], 6),
                }
                for run in system["runs"]
            ]
    for table in known:
        rows += table.to_dict("records")
    rows = pd.DataFrame(rows, columns=COLUMNS)
    rows["hours"] = rows["hours"].astype(float)  # NaN where None
    return rows.drop_duplicates(COLUMNS[:-1], ignore_index=True)


def read_known(path):
    """Reads what was run elsewhere: a table that this script has written."""
    try:
        table = pd.read_csv(path, dtype={"session": str})
    except (OSError, ValueError) as error:
        raise RecipeError(f"--known={path} cannot be read: {error}")
    lacking = {*COLUMNS} - {"hours", *table.columns}
    if lacking:
        raise RecipeError(
            f"--known={path} has no column {', '.join(sorted(lacking))}."
        )
    return table


def read_systems(folder):
    """Reads a comparison, or a cross-validation with adapter training."""
    for name in ("comparison.json", "results.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text("utf-8"))
            if name == "comparison.json":
                return found["systems"]
            share = float(found["settings"]["classifier.label_fraction"])
            return [{**found, "system": WITH, "label_fraction": share}]
    return []


def tabulate(rows):
    """Tabulates systems and paired differences, the fold as the unit."""
    pooled = rows["corpus"].nunique() > 1
    parts = [*rows["corpus"].unique(), *["all"] * pooled]
    header = ["corpus", "hours", "labels", "seeds", "folds"]
    header += [PROBE, WITHOUT, WITH, "difference", "95 % interval", "p"]
    unit, lines = ["corpus", "session"], []
    for corpus in parts:
        own = rows if corpus == "all" else rows[rows["corpus"] == corpus]
        groups = own[own["system"] == WITH].groupby(
            ["labels", "hours"], dropna=False
        )
        for (share, hours), tuned in groups:
            same = own[own["labels"] == share]
            runs = [tuned, same[same["system"] == WITHOUT]]
            runs = [some.set_index([*unit, "seed"])["UA"] for some in runs]
            # seeds that only one of the two has would not be paired
            common = runs[0].index.intersection(runs[1].index)
            if not len(common):
                continue  # nothing to compare with is finished yet
            one, two = (some.loc[common].groupby(unit).mean() for some in runs)
            probe = same[same["system"] == PROBE].groupby(unit)["UA"].mean()
            probe = probe[probe.index.isin(one.index)]
            gain = compare_units(one, two)._asdict()
            gain = format_difference({**gain, "p_holm": None})
            lines.append(
                [
                    *(corpus, "" if pd.isna(hours) else f"{hours:g}"),
                    *(f"{100 * share:g} %", count_seeds(common)),
                    gain["folds"],
                    *(f"{100 * u.mean():.1f}" for u in (probe, two, one)),
                    *(gain["UA gained"], gain["95 % interval"], gain["p"]),
                ]
            )
    if rows["hours"].isna().all():
        header.remove("hours")
        lines = [[line[0], *line[2:]] for line in lines]
    return markdown_table(header, lines)


def count_seeds(runs):
    """Counts the seeds of a unit, "1 to 3" where the units differ."""
    seeds = runs.droplevel("seed").value_counts()
    least, most = seeds.min(), seeds.max()
    return str(most) if least == most else f"{least} to {most}"


def draw(rows, path):
    """Draws UA against the share of the labels, or against the hours."""
    by_hours = rows["hours"].notna().any()
    key = "hours" if by_hours else "labels"
    panels = list(rows.groupby(["corpus", "labels"] if by_hours else "corpus"))
    shares = rows["labels"].nunique()
    across = shares if by_hours and shares > 1 else len(panels)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.2 * across, 3.6 * down))
    for place, (name, own) in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, place)
        for color, system in enumerate((PROBE, WITHOUT, WITH)):
            some = own[own["system"] == system]
            style = {"color": f"C{color}", "label": system}
            if by_hours and system != WITH:
                units = some.groupby("session")["UA"].mean()
                axes.axhline(100 * units.mean(), linestyle="--", **style)
                continue
            units = 100 * some.groupby([key, "session"])["UA"].mean()
            means, errors = units.groupby(key).mean(), units.groupby(key).sem()
            axes.errorbar(
                *(means.index, means, errors.fillna(0.0)),
                **{"marker": "o", "capsize": 3, **style},
            )
        ticks = sorted(own[key].dropna().unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        label = "hours of stage 1" if by_hours else "share of the labels"
        title = name
        if by_hours:
            title = f"{name[0]}, {100 * name[1]:g} % of the labels"
        spread = "UA, percent (bars: standard error over folds)"
        axes.set(xlabel=label, ylabel=spread, title=title)
        axes.yaxis.label.set_size(8)
        axes.grid(alpha=0.3)
        axes.margins(y=0.3)  # room for the legend
        axes.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)


def name_table(options):
    """Names a table after what its rows have in common."""
    parts = [options.table, f"layer_{options.layer}"]
    parts += [f"width_{options.width}"] * (options.table == "paper")
    if len(options.pairs) < len(PAIRS):
        parts += ["_".join(pair) for pair in options.pairs]
    parts += ["choosing"] * (options.speakers == "choosing")
    return "_".join([*parts, *(o.strip("-") for o in options.levers)])


def main(arguments):
    """Runs a table, or what is left of it, and writes it.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=TABLES)
    for name in ("nemo", "emodb", "ravdess", "wild"):
        parser.add_argument(f"--{name}", help="the corpus's folder")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--layer", default="last")
    parser.add_argument("--context", default="clip")
    parser.add_argument("--width", type=int, default=128, choices=WIDTHS)
    parser.add_argument(
        "--labels", default="0.1,1.0", help="all shares that are to be there"
    )
    names = ["_".join(pair) for pair in PAIRS]
    parser.add_argument(
        "--pairs",
        nargs="+",
        default=names,
        choices=names,
        help="of table 1: whose adapters are trained",
    )
    parser.add_argument(
        "--speakers",
        default="judging",
        choices=("judging", "choosing"),
        help="of table 2",
    )
    parser.add_argument(
        "--levers",
        default="",
        help="of table 2: keys of nEMO's YAMLs, of stage 1 as --adapter.key",
    )
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--known", action="append", default=[], type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="show")
    place = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:place])
    if options.table != "paper" and options.width != 128:
        parser.error("--width is of table 1 (paper).")
    if options.table != "paper" and options.pairs != names:
        parser.error("--pairs is of table 1 (paper).")
    is_judging = options.speakers == "judging" and not options.levers
    if options.table != "recipe" and not is_judging:
        parser.error("--speakers and --levers are of table 2 (recipe).")
    options.output = options.output.resolve()
    if os.path.isdir(options.encoder):  # commands run in recipes' folders
        options.encoder = os.path.abspath(options.encoder)
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.levers = shlex.split(options.levers)
    options.handed_on = [*options.levers, *arguments[place + 1 :]]
    options.pairs = [tuple(name.split("_")) for name in options.pairs]
    options.root = options.output / name_table(options)
    options.usual = [
        f"--encoder_source={options.encoder}",
        f"--encoder_layer={options.layer}",
        f"--encoder_context={options.context}",
        f"--cache_folder={options.output / 'cache'}",
    ]
    known = [read_known(path) for path in options.known]
    chains = list(TABLES[options.table](options))
    if options.show:
        for chain in chains:
            for recipe, command in chain.commands:
                folder = RECIPES / recipe / "wap_adapter"
                print(f"(cd {folder} && python {shlex.join(command)})")
        return
    complete = run_all(chains, options.jobs)
    rows = collect(chains, known)
    stem = str(options.root)  # a name may have a dot
    if len(rows):
        named = rows.dropna(axis="columns", how="all")
        named.to_csv(f"{stem}.csv", index=False)
    if not complete:
        raise RecipeError(
            f"the table is not complete ({len(rows)} rows, in {stem}.csv): the "
            "same command again goes on."
        )
    text = tabulate(rows)
    Path(f"{stem}.md").write_text(text + "\n", "utf-8")
    draw(rows, f"{stem}.png")
    print(f"\n{text}\n\nWritten to {stem}.md, .csv and .png")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
