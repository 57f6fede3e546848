"""What a cross-validation is: the folds and seeds of both stages, and where."""

import importlib
import os
from copy import copy

import yaml
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import expand_path
from speechbrain_wap.training.command_line import (
    read_options,
    split_options,
    unknown_key,
)
from speechbrain_wap.training.hparams_file import HparamsFile
from speechbrain_wap.training.resume_guard import (
    default_output_folder,
    name_data,
    select_named,
)
from speechbrain_wap.training.settings import Reading

# The outcome of such runs is no result.
REFUSED_OPTIONS = ("debug", "debug_persistently", "test_only")
STAGES = ("adapter", "classifier")
# What stands for the seed in adapter_folder
SEED_MARK = "{seed}"
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
    "adapter_training": "use --adapter_training without a stage",
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
    adapter_training : bool, optional
        Whether stage 1 is run where no option says it; default: as the
        classifier's YAML has it.

    Attributes
    ----------
    commands : dict
        What each stage is told, by its name.
    settings : dict
        Plain settings of each stage.
    data : str
        The corpus under test: its folder or its table.
    folds : list of int, or None
        None: all.
    seeds : list of int
    adapter_training : bool
        Whether stage 1 is run.
    usual_adapter_training : bool
        Whether it is as the YAML has it.
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

    def __init__(self, arguments, adapter_training=None):
        files, options = split_options(arguments)
        keys = list_keys(files, options)
        files = dict(zip(STAGES, files))
        own, routed = route_options(options, keys)
        for key in own:
            if key.endswith("_folder"):
                own[key] = expand_path(own[key], f"--{key}=")
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
        usual = self.usual_adapter_training
        if adapter_training is not None:
            usual = adapter_training
        self._set_adapter(own, options, keys, usual)
        self.output_folder = own.get("output_folder")
        if self.output_folder is None:
            self.output_folder = self._default_folder()
        self.adapters_folder = own.get("adapters_folder", self.output_folder)
        folds, seeds = own.get("folds"), own.get("seeds")
        self.folds = None if folds is None else parse_list(folds, "folds")
        self.seeds = [self.settings["classifier"]["seed"]]
        if seeds is not None:
            self.seeds = parse_list(seeds, "seeds")

    def _set_adapter(self, own, options, keys, usual):
        """Settles where the adapters come from."""
        if "adapter_training" in keys["adapter"]:
            raise RecipeError(
                f"{self.commands['adapter'].hparams_file}: adapter_training "
                "belongs into the classifier's YAML."
            )
        text = own.get("adapter_training", str(usual))
        self.adapter_training = yaml.safe_load(text)
        if not isinstance(self.adapter_training, bool):
            raise RecipeError(
                f"--adapter_training={text} must be True or False."
            )
        self.adapter_folder = own.get("adapter_folder")
        if self.adapter_folder is not None:
            self._refuse_stage_1_options(
                options,
                keys,
                "--adapter_folder, whose adapter is used for all folds: leave "
                "one of them out.",
            )
            self.adapter_training = False
        elif not usual and "adapter_training" not in own:
            self._refuse_stage_1_options(
                options,
                keys,
                "adapter_training: False of "
                f"{self.commands['classifier'].hparams_file}: leave it out, or "
                "give --adapter_training=True.",
            )
        elif "adapters_folder" in own and not self.adapter_training:
            raise RecipeError(
                "--adapters_folder is of no use with --adapter_training=False."
            )

    def _refuse_stage_1_options(self, options, keys, reason):
        """Refuses what has no effect where stage 1 is not run."""
        if self.adapter_folder == "":
            raise RecipeError(
                "--adapter_folder= is empty: give the output folder of "
                "train_adapter.py, or --adapter_training=False."
            )
        only = set(keys["adapter"]) - set(keys["classifier"])
        only |= {"adapter_training", "adapters_folder"}
        for key, _ in options:
            if key in only or key.startswith("adapter."):
                raise RecipeError(f"--{key} has no effect with {reason}")

    def _read(self):
        """Reads the settings of what the stages are told."""
        readings = {name: Reading(c) for name, c in self.commands.items()}
        self.settings = {name: r.settings for name, r in readings.items()}
        self.usual_adapter_training = readings["classifier"].adapter_training
        self._further = readings["adapter"].corpora
        self.data = readings["classifier"].data

    def _default_folder(self):
        """Names a folder that no other settings share."""
        named = {s: select_named(x) for s, x in self.settings.items()}
        folder = default_output_folder(
            # "folds-seed..." in the name
            {**self.settings["classifier"], "fold": "s", **named},
            "results/cross_validation",
            name_data(self.data, self.corpora) + (self.adapter_folder or ""),
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
