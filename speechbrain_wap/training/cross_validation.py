"""The engine of cross-validations: both stages for every fold and seed.

It loads the two train scripts from the folder that it is started in and hands
them their settings. A finished fold is not run again, an interrupted one goes
on, and several may run at a time, each in a process of its own. Processes that
are started by themselves, on other nodes too, may share the folds of a run.
"""

import dataclasses
import hashlib
import importlib
import os
import re
import shutil
import time
from contextlib import ExitStack, suppress
from copy import copy
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

from speechbrain_wap.data.classes import choose_classes, label_utterances
from speechbrain_wap.data.folds import (
    SPLITS,
    FoldPlan,
    check_folds,
    list_sessions,
)
from speechbrain_wap.data.further_corpora import read_tables
from speechbrain_wap.data.preparation import prepare_table
from speechbrain_wap.errors import RecipeError, escape_controls
from speechbrain_wap.files import (
    ANY_BYTES,
    digest_file,
    expand_path,
    only_process,
    read_json,
    try_lock,
)
from speechbrain_wap.training.adapter_folder import (
    MODEL_KEYS,
    RECORD,
    check_adapter,
    find_finished,
    identify_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.command_line import (
    read_options,
    split_options,
    unknown_key,
)
from speechbrain_wap.training.experiment import Experiment
from speechbrain_wap.training.jobs import run_jobs
from speechbrain_wap.training.machine import use_one_thread, warn_of_slow_run
from speechbrain_wap.training.ranks import start_ranks
from speechbrain_wap.training.resume_guard import (
    default_output_folder,
    is_guarded,
    name_data,
    record_settings,
    restored_if_refused,
    select_named,
)
from speechbrain_wap.training.settings import HparamsFile, Reading

logger = get_logger(__name__)

# The outcome of such runs is no result.
REFUSED_OPTIONS = ("debug", "debug_persistently", "test_only")
STAGES = ("adapter", "classifier")
SCORES = ("UA", "WA", "F1")
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
# Set here for each run
SET_KEYS = {
    "fold": "use --folds",
    "seed": "use --seeds",
    "adapter_folder": "use --adapter_folder without a stage",
    "save_folder": "each run has its own",
    "output_folder": "use --output_folder without a stage",
    "skip_prep": "each run prepares its own fold",
}


def load_scripts():
    """Imports the train scripts of the folder that the command is run in.

    Returns
    -------
    scripts : dict
        Module of each stage.

    Raises
    ------
    RecipeError
        If they are not there.
    """
    try:
        return {s: importlib.import_module(f"train_{s}") for s in STAGES}
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("train_"):
            raise
        raise RecipeError(
            f"there is no {error.name}.py in {os.getcwd()}: run the command in "
            "a recipe's folder, such as recipes/IEMOCAP/wap_adapter."
        )


def list_keys(files, options):
    """Lists the keys of both stages' YAML files.

    Arguments
    ---------
    files : list of str
        The two files.
    options : list of tuple
        Key and text; those that choose what is included matter.

    Returns
    -------
    keys : dict
        By stage.

    Raises
    ------
    RecipeError
        If there are not two files, or one cannot be read.
    """
    if len(files) != 2:
        raise RecipeError(
            "give two hyperparameter files, hparams/adapter.yaml and "
            "hparams/classifier.yaml."
        )
    keys = {}
    for stage, file in zip(STAGES, files):
        typed = {key.removeprefix(f"{stage}."): text for key, text in options}
        keys[stage] = HparamsFile(file, typed).keys()
    return keys


def route_options(options, stages):
    """Splits options into the command's own and those of each stage.

    An option goes to the stages whose YAML has its key (``stages``: the keys
    by the stage's name); one that none has is refused.
    """
    run_options = set(RunOptions().keys())
    own, routed = {}, {name: [] for name in stages}
    for key, text in options:
        stage, _, stage_key = key.partition(".")
        has_stage = stage in stages and stage_key
        bare = stage_key if has_stage else key
        if key in OWN_KEYS:
            if text is None:
                raise RecipeError(f"--{key} needs a value: --{key}=...")
            own[key] = text
            continue
        if bare in REFUSED_OPTIONS:
            raise RecipeError(
                f"--{key} is for a single run: give it to train_adapter.py or "
                "train_classifier.py."
            )
        if bare in SET_KEYS or bare.endswith(("_file", "_log", "_annotation")):
            reason = SET_KEYS.get(bare, "each run has its own")
            raise RecipeError(f"--{key} cannot be set here: {reason}.")
        takers = [name for name, keys in stages.items() if bare in keys]
        if bare in run_options and not takers:
            takers = list(stages)
        if has_stage:
            takers = [stage] if stage in takers else []
        if not takers:
            known = [*OWN_KEYS, *run_options]
            known += [k for keys in stages.values() for k in keys]
            if has_stage:
                known = [f"{stage}.{k}" for k in stages[stage]]
            raise unknown_key(key, known)
        for name in takers:
            routed[name].append((bare, text))
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

    Example
    -------
    >>> parse_list("3,1,3", "folds")
    [3, 1]
    """
    try:
        numbers = [int(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        raise RecipeError(
            f"--{name}={text} must be whole numbers: --{name}=1,2,3."
        )
    return list(dict.fromkeys(numbers))


class CrossValidation:
    """What to run: stages, folds and seeds, and where.

    Arguments
    ---------
    arguments : list of str
        Two YAML files and options, as on the command line.

    Attributes
    ----------
    commands : dict
        What each stage is told, by its name.
    settings : dict
        Plain settings of each stage.
    folds : list of int, or None
        None: all.
    seeds : list of int
    adapter_training : bool
        Whether stage 1 is run.
    adapter_folder : str or None
        An earlier adapter in its place; "{seed}" in it stands for the seed.
    adapters_folder : str
        Where stage 1 of each fold and seed lies or is to lie.
    output_folder : str
    jobs : int
        Folds that are run at a time.

    Raises
    ------
    RecipeError
        If an option is unknown or does not fit the others.
    """

    def __init__(self, arguments):
        files, options = split_options(arguments)
        keys = list_keys(files, options)
        files = dict(zip(STAGES, files))
        own, routed = route_options(options, keys)
        for key in own:
            if key.endswith("_folder"):
                own[key] = expand_path(own[key], f"--{key}=")
        self._set_adapter(own, options, keys)
        jobs = parse_list(own.get("jobs", "1"), "jobs")
        if len(jobs) != 1 or jobs[0] < 1:
            raise RecipeError(
                f"--jobs={own['jobs']} must be a whole number of at least 1."
            )
        self.jobs = jobs[0]
        self.commands = {
            stage: read_options(file, routed[stage])
            for stage, file in files.items()
        }
        self._read()
        self.output_folder = own.get("output_folder")
        if self.output_folder is None:
            self.output_folder = self._default_folder()
        self.adapters_folder = own.get("adapters_folder", self.output_folder)
        folds, seeds = own.get("folds"), own.get("seeds")
        self.folds = None if folds is None else parse_list(folds, "folds")
        self.seeds = [self.settings["classifier"]["seed"]]
        if seeds is not None:
            self.seeds = parse_list(seeds, "seeds")

    def _set_adapter(self, own, options, keys):
        """Settles where the adapters come from."""
        text = own.get("adapter_training", "True")
        self.adapter_training = yaml.safe_load(text)
        if not isinstance(self.adapter_training, bool):
            raise RecipeError(
                f"--adapter_training={text} must be True or False."
            )
        self.adapter_folder = own.get("adapter_folder")
        if self.adapter_folder is not None:
            self._refuse_stage_1_options(options, keys)
            self.adapter_training = False
        elif "adapters_folder" in own and not self.adapter_training:
            raise RecipeError(
                "--adapters_folder is of no use with --adapter_training=False."
            )

    def _refuse_stage_1_options(self, options, keys):
        """Refuses what has no effect beside an earlier adapter."""
        if not self.adapter_folder:
            raise RecipeError(
                "--adapter_folder= is empty: give the output folder of "
                "train_adapter.py, or --adapter_training=False."
            )
        only = set(keys["adapter"]) - set(keys["classifier"])
        only |= {"adapter_training", "adapters_folder"}
        for key, _ in options:
            if key in only or key.startswith("adapter."):
                raise RecipeError(
                    f"--{key} has no effect with --adapter_folder, whose "
                    "adapter is used for all folds: leave one of them out."
                )

    def _read(self):
        """Reads the settings of what the stages are told."""
        readings = {name: Reading(c) for name, c in self.commands.items()}
        self.settings = {name: r.settings for name, r in readings.items()}
        self._further = readings["adapter"].corpora
        self._data = readings["classifier"].data

    def _default_folder(self):
        """Names a folder that no other settings share."""
        named = {s: select_named(x) for s, x in self.settings.items()}
        folder = default_output_folder(
            # "folds-seed..." in the name
            {**self.settings["classifier"], "fold": "s", **named},
            "results/cross_validation",
            name_data(self._data, self.corpora) + (self.adapter_folder or ""),
        )
        if self.adapter_folder:
            return f"{folder}-earlier_adapter"
        return folder + "-no_adapter" * (not self.adapter_training)

    def change(self, adapter=None, classifier=None, **attributes):
        """Makes another cross-validation of the same folds and seeds.

        Arguments
        ---------
        adapter : dict, optional
            Further values of stage 1's keys.
        classifier : dict, optional
            Of stage 2's.
        **attributes : dict
            Other attributes.

        Returns
        -------
        changed : CrossValidation
        """
        changed = copy(self)
        vars(changed).update(attributes)
        values = {"adapter": adapter or {}, "classifier": classifier or {}}
        changed.commands = {
            stage: self.commands[stage].change(**values[stage])
            for stage in STAGES
        }
        changed._read()
        return changed

    def pin_encoders(self, revisions):
        """Has all folds take an encoder of the hub at the same commit.

        Arguments
        ---------
        revisions : dict
            Commit by stage, None where there is none.
        """
        for stage, revision in revisions.items():
            if revision is not None:
                self.commands[stage] = self.commands[stage].change(
                    encoder_revision=revision
                )
                self.settings[stage]["encoder_revision"] = revision

    @property
    def corpora(self):
        """Further tables of stage 1; none where it is not run."""
        return self._further if self.adapter_training else []

    @property
    def stages(self):
        """The stages that are run."""
        return list(STAGES) if self.adapter_training else ["classifier"]

    @property
    def has_adapter(self):
        """Whether stage 2 starts from an adapter."""
        return bool(self.adapter_training or self.adapter_folder)

    @property
    def earlier_adapters(self):
        """Folders of earlier adapters by seed; empty where there are none."""
        if not self.adapter_folder:
            return {}
        return {seed: self.find_adapter(seed, None) for seed in self.seeds}

    @property
    def has_adapter_per_seed(self):
        """Whether each seed has an earlier adapter of its own."""
        return SEED_MARK in (self.adapter_folder or "")

    def find_adapter(self, seed, fold):
        """Names the output folder of stage 1, or of the earlier adapter.

        Arguments
        ---------
        seed : int
        fold : int

        Returns
        -------
        folder : str
        """
        if self.adapter_folder:
            return self.adapter_folder.replace(SEED_MARK, str(seed))
        return os.path.join(
            find_run(self.adapters_folder, seed, fold), "adapter"
        )


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


def prepare(plan):
    """Writes the corpus table and settles the folds before any training.

    Returns the folds that are run and all sessions, of which fold k holds out
    the k-th, and at which revision the encoder of each stage was found.
    """
    if plan.adapter_training:
        _refuse_different_models(plan)
    scripts, experiments, revisions = load_scripts(), {}, {}
    for stage in plan.stages:  # what cannot be built is said at once
        command = plan.commands[stage]
        experiments[stage] = experiment = Experiment(
            command.change(output_folder=plan.output_folder),
            scripts[stage].NEEDED,
        )
        experiment.remove_empty_save_folder()
        revisions[stage] = experiment.settings.get("encoder_revision")
    hparams = experiment.hparams  # the classifier's, which is the last one
    if plan.has_adapter and not hasattr(hparams["model"], "backbone"):
        raise RecipeError(
            f"the system {type(hparams['model']).__name__} has no backbone to "
            "start from an adapter: give --adapter_training=False."
        )
    table = prepare_table(
        **hparams["corpus"], corpus_table=experiment.corpus_table
    )
    classes = choose_classes(
        table,
        hparams["classes"],
        "corpus_csv" not in command.overrides or "classes" in command.overrides,
    )
    if not is_distributed_initialized():  # else this is the main rank alone
        for stage, one in experiments.items():
            scripts[stage].try_out(one, list(classes))
    style = hparams["dialogue_style"]
    protocol = hparams["protocol"]
    FoldPlan(1, protocol).warn_of_splits(table)
    sessions = list_sessions(table)
    # A session without labels is no fold: it serves adapter training only.
    labelled = set(label_utterances(table, classes, style)["session"])
    if protocol == "predefined":
        sessions = labelled = ["test"]
    folds = plan.folds or [
        fold
        for fold, session in enumerate(sessions, start=1)
        if session in labelled
    ]
    plans = [FoldPlan(fold, protocol) for fold in folds]
    check_folds(plans, table, classes, style)

    def split(plans):
        """Splits the labelled utterances as several folds hold them out."""
        if len(plans) == 1:
            return plans[0].split_labelled(table, classes, style)
        named = {s for one in plans for s in one.hold_out(sessions)}
        utterances = label_utterances(table, classes, style)
        is_held_out = utterances["session"].isin(named)
        parts = utterances[~is_held_out], utterances[:0]
        return dict(zip(SPLITS, (*parts, utterances[is_held_out])))

    settings = {**experiment.settings, "encoder_key": experiment.encoder_key}
    compared = ["id", "digest", "speaker", "session", "emo"]
    compared += ["split"] * (protocol == "predefined")
    content = table[compared].to_csv()
    if plan.corpora:
        further, _ = read_tables(plan.corpora, hparams["cache_folder"])
        content += further[["id", "digest", "speaker"]].to_csv()
    guarded = {
        f"{stage}.{key}": value
        for stage in plan.stages
        for key, value in plan.settings[stage].items()
        if is_guarded(key)
    }
    guarded["encoder_key"] = experiment.encoder_key
    guarded["adapter_training"] = plan.adapter_training
    guarded["adapter_identity"] = _check_earlier_adapters(
        plan, settings, plans, split, experiment.corpus_table
    )
    content = content.encode(**ANY_BYTES)
    guarded["data"] = hashlib.sha256(content).hexdigest()[:16]
    record_settings(plan.output_folder, {**guarded, "number_of_epochs": 0})
    return folds, sessions, revisions


def _refuse_different_models(plan):
    """Makes sure that both stages mean the same model and the same folds."""
    adapter, classifier = (plan.settings[stage] for stage in STAGES)
    keys = {*MODEL_KEYS, "feature_precision", "protocol", "fold_by"}
    for key, value in adapter.items():
        if key.startswith("encoder"):  # and the keys that it refers to
            keys |= {key, *re.findall(r"<(\w+)>", str(value))}
    for key in sorted(keys & adapter.keys() & classifier.keys()):
        if adapter[key] != classifier[key]:
            raise RecipeError(
                f"{key} is {adapter[key]} for the adapter, but "
                f"{classifier[key]} for the classifier: both stages need the "
                "same."
            )


def _check_earlier_adapters(plan, settings, plans, split, corpus_table):
    """Refuses adapters that may not be used; returns what identifies them."""
    identity = None
    for adapter in dict.fromkeys(plan.earlier_adapters.values()):
        identity = _check_folds(adapter, settings, plans, split, corpus_table)
    if plan.has_adapter_per_seed:
        for seed, adapter in plan.earlier_adapters.items():
            _check_start(adapter, seed, settings)
        # seeds may be added: each fold is guarded by itself
        identity = "one for each seed"
    return identity


def _check_folds(adapter_folder, settings, plans, split, corpus_table):
    """Refuses an adapter that does not fit or heard a fold's held-out speakers.

    All folds are checked at once; where one fails, one by one: the error names
    the folds that it may be used for.
    """

    def check(plans):
        """Checks the adapter for what several folds hold out."""
        return check_adapter(
            adapter_folder, settings, split(plans), corpus_table
        )

    identity, reasons = None, {}
    try:
        identity = check(plans)
    except RecipeError:
        for plan in plans:
            try:
                identity = check([plan])
            except RecipeError as error:
                reasons[plan.fold] = str(error)
    if reasons:
        fold = min(reasons)
        left = ",".join(str(p.fold) for p in plans if p.fold not in reasons)
        cure = f" It may be used with --folds={left}." if left else ""
        raise RecipeError(f"fold {fold}: {reasons[fold]}{cure}")
    find_finished(adapter_folder)
    return identity


def _check_start(adapter_folder, seed, settings):
    """Refuses an adapter that did not begin as the seed's network does.

    Else a comparison would be of two things, the start and the training.
    """
    path = Path(adapter_folder, "save", "settings.json")
    recorded = read_json(path, "run train_adapter.py again.", ("settings",))
    began = recorded["settings"]
    wanted = {key: settings[key] for key in START_KEYS if key in settings}
    for key, mine in {"seed": seed, **wanted}.items():
        if key in began and began[key] != mine:
            raise RecipeError(
                f"the adapter in {adapter_folder} was trained with {key}="
                f"{began[key]}, but {SEED_MARK} in --adapter_folder stands for "
                f"adapters that began as the network of each seed does, here "
                f"{key}={mine}: train it so, or name one adapter for all seeds."
            )


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
    folder = plan.output_folder
    written = [os.path.join(folder, "corpus.csv")]
    with (
        only_process(folder, wait=True),
        restored_if_refused(folder, written),
    ):
        folds, sessions, revisions = run_on_main(prepare, args=[plan])
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
    with only_process(folder, wait=True):
        return report(*run_on_main(list_finished, args=[plan]))
