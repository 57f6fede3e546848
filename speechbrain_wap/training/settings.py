"""The configuration: command line and YAML, read once.

A script gets what HyperPyYAML built and one flat dictionary of plain settings.
"""

import difflib
import functools
import os
import re
import sys
import traceback
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.data.further_corpora import describe_corpora, parse_corpora
from speechbrain_wap.errors import (
    RecipeError,
    check_choice,
    check_flag,
    check_number,
    check_whole,
    report_path_errors,
    unwritable,
)
from speechbrain_wap.training.hparams_file import (
    HparamsFile,
    one_line,
    read_tag,
    to_plain,
)

logger = get_logger(__name__)

# Run options of SpeechBrain that decide what a run computes
NUMERIC_OPTIONS = (
    "precision",
    "eval_precision",
    "grad_accumulation_factor",
    "max_grad_norm",
)
# Keys that the training loop and the scripts read as they are, some of them
# late (--lr=x: "lr=x must be ..."); what is built of the others checks them.
LOOP_KEYS = {
    "seed": (check_whole, {}),
    "batch_size": (check_whole, {"least": 1}),
    "number_of_epochs": (check_whole, {"least": 1}),
    "num_workers": (check_whole, {"or_none": "as the device needs"}),
    "probe_every": (check_whole, {"or_none": "never"}),
    "probe_utterances": (check_whole, {"least": 1}),
    "ckpt_interval_minutes": (check_number, {"least": 0.0}),
    "lr": (check_number, {"least": 0.0, "most": 1e30}),
    "classifier_lr": (check_number, {"least": 0.0, "most": 1e30}),
    "max_skipped": (check_number, {"least": 0.0, "most": 1.0}),
    "label_fraction": (check_number, {"above": 0.0, "most": 1.0}),
    "corpus_weight": (check_number, {"least": 0.001, "most": 1000.0}),
    "skip_prep": (check_flag, {}),
    "adapter_training": (check_flag, {}),
    "adapter_data": (check_choice, {"choices": ("train", "all")}),
    "adapter_branch": (check_choice, {"choices": ("teacher", "student")}),
    "long_utterances": (check_choice, {"choices": ("error", "cut")}),
    "model_selection": (check_choice, {"choices": ("last", "best")}),
    "class_weights": (check_choice, {"choices": ("none", "balanced")}),
}


class Hparams(dict):
    """What HyperPyYAML built of a file; a key it lacks is a user's mistake."""

    def __init__(self, hparams_file, built):
        super().__init__(built)
        self.hparams_file = hparams_file

    def __missing__(self, key):
        """Names the file and the key."""
        raise RecipeError(f"{self.hparams_file} lacks the key {key}: add it.")


class Reading:
    """One reading of a script's YAML file with the user's values.

    Arguments
    ---------
    command : Command
        What the script is told.

    Attributes
    ----------
    settings : dict
        Plain values by key, the run options that decide what a run computes
        among them; ``fold`` is None where there is no corpus under test.
    corpora : list of dict
        See :func:`speechbrain_wap.data.further_corpora.parse_corpora`; empty
        where the YAML has no such key.
    data : str
        The corpus under test: its folder or table; "" where there is none.
    adapter_training : bool
        Whether cross_validate.py runs stage 1, unless it is told otherwise.
    text : str
        What is built: the YAML with the user's values, without references.
    output_folder : str
        Where the run is to write.

    Raises
    ------
    RecipeError
        If no corpus is given, or a plain value does not fit.
    """

    def __init__(self, command):
        self.command = command
        overrides = dict(command.overrides)
        self.file = HparamsFile(command.hparams_file, overrides)
        self.file.set_values(overrides)
        self.file.wire_streams()
        tree = self.file.tree
        self.corpora = parse_corpora(to_plain(tree.get("corpora")))
        folder, table = tree.get("data_folder"), tree.get("corpus_csv")
        if read_tag(folder) == "!PLACEHOLDER" or folder is None or table:
            tree["data_folder"] = ""
        self.file.expand_wired()
        settings = self._resolve()
        self.data = str(
            settings.get("corpus_csv") or settings["data_folder"] or ""
        )
        for key, (check, bounds) in LOOP_KEYS.items():
            if key in settings:
                check(key, settings[key], **bounds)
        # of a cross-validation: no setting of a single run
        self.adapter_training = settings.pop("adapter_training", True)
        if "corpora" in settings:
            settings["corpora"] = describe_corpora(self.corpora)
            if self.corpora and not self.data:
                _refuse_folds(settings)
                settings["fold"] = None
        for option in NUMERIC_OPTIONS:
            settings.setdefault(option, command.run_opts[option])
        self.settings = settings

    def _resolve(self):
        """Resolves the file; returns its settings."""
        resolved = None
        while resolved is None or self.file.expand_a_path(resolved):
            self.text = self.file.resolve()
            resolved = YAML().load(self.text)
        settings = self.file.list_settings(resolved)
        self.output_folder = settings.get("output_folder")
        if not self.output_folder:
            raise RecipeError(
                f"{self.command.hparams_file} has no output_folder: give one "
                "with --output_folder=..."
            )
        for key in ("output_folder", "cache_folder", "encoder_source"):
            try:  # HyperPyYAML and safetensors take no others
                str(settings.get(key)).encode()
            except UnicodeEncodeError as error:
                raise unwritable(error)
        return settings

    def set_output_folder(self, output_folder):
        """Sets the folder where the run is to write."""
        self.file.tree["output_folder"] = str(output_folder)
        self._resolve()

    def set_encoder_revision(self, revision):
        """Sets the commit at which the encoder was found on the hub."""
        self.settings["encoder_revision"] = revision
        self.file.tree["encoder_revision"] = revision
        self._resolve()

    def check_stage(self, needed):
        """Refuses a YAML file that is not for this script.

        Arguments
        ---------
        needed : tuple of str
            Keys that the script reads; what tells its stage comes first.

        Raises
        ------
        RecipeError
            If the file lacks one; names it.
        """
        path = self.command.hparams_file
        if needed[0] not in self.file.tree:
            raise RecipeError(
                f"{path} is not for this script: it has no key {needed[0]}."
            )
        for key in needed:
            if key not in self.file.tree:
                raise RecipeError(f"{path} lacks the key {key}: add it.")

    def check_corpus(self):
        """Refuses a run that has nothing to train on."""
        if not self.data and not self.corpora:
            raise RecipeError(
                "no corpus given: say where it lies with --data_folder=..., or "
                "give an own corpus table with --corpus_csv=..."
            )

    def warn_of_unread(self, script, needed):
        """Warns of keys that nothing reads, such as misspelt ones.

        Arguments
        ---------
        script : str
            File of the train script.
        needed : tuple of str
            Keys that it reads.
        """
        sources = {script, *map(str, Path(__file__).parent.glob("*.py"))}
        for stage in ("adapter", "classifier"):
            module = sys.modules.get(f"train_{stage}")
            if hasattr(module, "run"):  # where it is, not its starter
                sources.add(module.run.__code__.co_filename)
        unread = self.file.list_unread(filter(os.path.isfile, sources))
        unread = [key for key in unread if key not in needed]
        if unread and if_main_process():
            _warn_of_unread(self.file.path, *unread, known=(*self.file.keys(),))

    def build(self):
        """Builds what the file wires.

        The recipe's folder and the corpus's folder above it become
        importable, for the prepare function that the YAML names.

        Returns
        -------
        hparams : Hparams

        Raises
        ------
        RecipeError
            If something cannot be built; names the key.
        """
        recipe = Path(self.command.hparams_file).resolve().parent.parent
        for folder in (recipe, recipe.parent):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        try:
            with report_path_errors():
                built = load_hyperpyyaml(self.text)
                # what is made once features are there, is tried out now
                for key, make in built.items():
                    if key.endswith("opt_class"):
                        make([torch.nn.Parameter(torch.zeros(1))])
        except Exception as error:  # of any module that a YAML may name
            raise self._explain(error)
        return Hparams(self.command.hparams_file, built)

    def _explain(self, error):
        """Says what cannot be built, in the user's words."""
        names, place = [], ""  # of what was being built, the innermost first
        for frame, _ in traceback.walk_tb(error.__traceback__):
            local = frame.f_locals
            if "callable_string" in local:
                names.insert(0, local["callable_string"].rpartition(".")[2])
                place = f"{self._find_key(local['node'])} ({names[0]}): "
            elif "make" in local and "built" in local:  # it was tried out
                make = getattr(local["make"], "func", type(local["make"]))
                names.insert(0, make.__name__)
                place = f"{local['key']} ({names[0]}): "
            elif frame.f_code.co_name == "__init__" and "self" in local:
                names.insert(0, type(local["self"]).__name__)
        text = one_line(error)
        if not isinstance(error, RecipeError):
            return RecipeError(f"{self.command.hparams_file}: {place}{text}")
        argument, _, rest = text.partition("=")
        keys = self.file.name_keys()
        for key in (k for n in names for k in keys.get((n, argument), ())):
            # several of a class may be wired: it is the one with this value
            if rest.startswith(f"{self.settings.get(key)} "):
                return RecipeError(f"{key}={rest}")
        return error

    def _find_key(self, node):
        """Names the top-level key in whose lines a node of the text lies."""
        lines = self.text.splitlines()[: node.start_mark.line + 1]
        keys = (re.match(r"(\w+):", line) for line in reversed(lines))
        return next(match[1] for match in keys if match)


@functools.cache
def _warn_of_unread(path, *unread, known):
    """Says once which keys of a file nothing reads."""
    for key in unread:
        near = find_near(key, [k for k in known if k not in unread])
        cure = f"did you mean {near}?" if near else "remove it"
        cure += "" if near else f", or give it to a part with !ref <{key}>."
        logger.warning(f"{path}: nothing reads the key {key}: {cure}")


def find_near(key, known):
    """Finds the key that a user may have meant.

    Arguments
    ---------
    key : str
        What he wrote.
    known : list of str
        What there is.

    Returns
    -------
    near : str or None

    Example
    -------
    >>> known = ["lr", "number_of_epochs", "dropout"]
    >>> find_near("learning_rate", known), find_near("epochs", known)
    ('lr', 'number_of_epochs')
    """

    def abbreviate(name):
        """Joins the initials of a name's words."""
        return "".join(word[:1] for word in name.split("_"))

    close = [k for k in known if k == abbreviate(key) or abbreviate(k) == key]
    close += difflib.get_close_matches(key, known, n=1)
    words = {word for word in key.split("_") if len(word) > 3}
    close += [k for k in known if words & {*k.split("_")}]
    return close[0] if close else None


def read_defaults(command):
    """Reads the settings of a YAML file as they are without the user's values.

    Arguments
    ---------
    command : Command
        What the script is told.

    Returns
    -------
    defaults : dict
        As :attr:`Reading.settings`. The keys of an included system are those
        of the system that the user chose, and what the YAML leaves to the user
        (``!PLACEHOLDER``) is missing.
    """
    file = HparamsFile(command.hparams_file)
    left_open = {
        k for k, v in file.tree.items() if read_tag(v) == "!PLACEHOLDER"
    }
    defaults = {}
    for kept in (left_open | file.included.keys(), left_open):
        given = {k: v for k, v in command.overrides.items() if k in kept}
        usual = command._replace(overrides=given, run_opts=RunOptions())
        defaults |= Reading(usual).settings
    return {k: v for k, v in defaults.items() if k not in left_open}


def _refuse_folds(settings):
    """Refuses keys that mean nothing without a corpus under test."""
    without = {"fold": 1, "protocol": "paper", "adapter_data": "train"}
    for key, value in without.items():
        if settings.get(key, value) != value:
            raise RecipeError(
                f"{key}={settings[key]} means nothing where the adapter trains "
                "on corpora alone, without folds: leave it out, or give the "
                "corpus under test with --data_folder=... or --corpus_csv=..."
            )
