"""The configuration: command line and YAML, read once.

A script gets what HyperPyYAML built and one flat dictionary of plain settings.
"""

import difflib
import functools
import io
import os
import re
import sys
import traceback
from copy import deepcopy
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from hyperpyyaml.core import recursive_update
from ruamel.yaml import YAML, Tag
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.error import YAMLError
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
from speechbrain_wap.files import expand_path

logger = get_logger(__name__)

# Run options of SpeechBrain that decide what a run computes
NUMERIC_OPTIONS = (
    "precision",
    "eval_precision",
    "grad_accumulation_factor",
    "max_grad_norm",
)
# Keys whose values are folders or files, or may be, hence text
PLACE_SUFFIXES = ("_folder", "_csv", "_annotation")
PLACE_SUFFIXES += ("train_log", "encoder_source")
# Arguments of SpeechBrain's loggers and checkpointers that are
WIRED_PLACES = ("save_file", "checkpoints_dir")
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
    "adapter_data": (check_choice, {"choices": ("train", "all")}),
    "adapter_branch": (check_choice, {"choices": ("teacher", "student")}),
    "long_utterances": (check_choice, {"choices": ("error", "cut")}),
    "model_selection": (check_choice, {"choices": ("last", "best")}),
    "class_weights": (check_choice, {"choices": ("none", "balanced")}),
}
# Mappings that the user's replace, where others are merged
REPLACED = ("classes", "corpora")
# Of what a YAML wires
WIRED = ("!new:", "!name:", "!apply:", "!applyref:", "!module:")


class HparamsFile:
    """A HyperPyYAML file as it is written, with the user's values.

    The keys of a file that a top-level key includes (``!include:``) are given
    as the others are. A key that includes may be set to another file, by its
    path or, beside the first one, by its name.

    Arguments
    ---------
    path : str
        The file.
    overrides : dict, optional
        Values for its keys; here, only those that choose what is included
        matter.

    Attributes
    ----------
    tree : ruamel.yaml.comments.CommentedMap
        Its content, tags and references among it.
    included : dict
        Tree of each included file, by the key that includes it.
    """

    def __init__(self, path, overrides=None):
        self.path = path
        self.tree = _read_tree(path)
        self.included = {}
        for key, node in self.tree.items():
            if _tag(node).startswith("!include:"):
                self._include(key, node, overrides or {})

    def _include(self, key, node, overrides):
        """Reads the file that a key includes."""
        name = _tag(node).removeprefix("!include:")
        given = dict(node) if isinstance(node, dict) else {}
        if key in overrides:
            # what is given to the usual file is not for another one
            name, given = self._choose(key, name, overrides[key]), {}
        name = self._find(name)
        try:
            folder = os.path.dirname(os.path.realpath(self.path))
            included = _read_tree(os.path.join(folder, name))
        except RecipeError as error:
            raise RecipeError(
                f"{self.path} includes {name} as {key}, from its own folder "
                f"on: {error}"
            )
        for same in included.keys() & self.tree.keys() - {key, "model"}:
            given.setdefault(same, refer_to(same))
        self.tree[key] = make_wired(f"!include:{name}", given)
        self.included[key] = included

    def _choose(self, key, usual, chosen):
        """Names the file that takes the place of the one that is included."""
        if chosen in (None, "", "null", "None"):
            raise RecipeError(
                f"--{key}= is empty: give the name of a file beside {usual}, "
                "or its path."
            )
        if " " in chosen:
            raise RecipeError(
                f"--{key}={chosen} has a space, which an include in YAML must "
                "not have: give another path."
            )
        if chosen.endswith(".yaml"):
            return expand_path(chosen, f"--{key}=")
        return os.path.join(os.path.dirname(usual), f"{chosen}.yaml")

    def _find(self, name):
        """Finds an included file from the YAML's folder on.

        A copy of a recipe's YAML may lie elsewhere: what is not beside it is
        looked for from where the user stands.
        """
        folder = os.path.dirname(os.path.realpath(self.path))
        for place in (folder, "hparams", "."):
            found = os.path.relpath(os.path.join(place, name), folder)
            if os.path.isfile(os.path.join(place, name)) and " " not in found:
                return found if place != folder else name
        return name

    def keys(self):
        """Lists the keys that a user may set.

        Returns
        -------
        keys : list of str
        """
        keys = [key for tree in self._trees() for key in tree]
        return list(dict.fromkeys(k for k in keys if not k.startswith("__")))

    def _trees(self):
        """Lists the file's own tree, then those that it includes."""
        return [self.tree, *self.included.values()]

    def set_values(self, overrides):
        """Puts the user's values into the tree."""
        for key, value in overrides.items():
            if key in self.included:
                continue  # which file it is was settled at first
            if key not in self.tree:
                for place, tree in self.included.items():
                    if key in tree:
                        self.tree[place][key] = value
            elif isinstance(value, dict) and key not in REPLACED:
                self.tree[key] = self._merge(key, value)
            else:
                self.tree[key] = value

    def _merge(self, key, value):
        """Puts a mapping's values into a key's, arguments of what it wires."""
        node = self.tree[key]
        if _tag(node).startswith(WIRED) and not isinstance(node, (dict, list)):
            node = make_wired(_tag(node), {})
        if node is not None and not isinstance(node, dict):
            raise RecipeError(
                f"--{key}={value} gives a mapping to a key that has none: give "
                "a plain value."
            )
        if node is None:
            return value
        recursive_update(node, value)
        return node

    def wire_streams(self):
        """Wires what a system's key ``streams`` asks for.

        Each further stream, {name: encoder_source}, gets a feature cache like
        the encoder's own, which is called "speech"; the model is given all
        their sizes.
        """
        for place, included in self.included.items():
            given = self.tree[place]
            streams = given.get("streams", included.get("streams"))
            if not streams:
                continue
            if not isinstance(streams, dict) or "feature_caches" in self.tree:
                raise RecipeError(
                    f"streams={_plain(streams)} must map names to encoder "
                    "sources, in a YAML that wires no feature_caches itself."
                )
            caches = {"speech": refer_to("feature_cache")}
            sizes = {"speech": refer_to("encoder_dim")}
            for name, source in streams.items():
                encoder = "!new:speechbrain_wap.encoders.SpeechEncoder"
                cache = deepcopy(self.tree["feature_cache"])
                cache["encoder"] = make_wired(encoder, {"source": source})
                caches[name] = cache
                size = "!apply:speechbrain_wap.encoders.get_encoder_dim"
                at = f"feature_caches[{name}][encoder]"
                sizes[name] = make_wired(size, {"encoder": refer_to(at)})
            self.tree["feature_caches"] = CommentedMap(caches)
            self.tree["model"]["input_size"] = CommentedMap(sizes)

    def resolve(self):
        """Writes the file as HyperPyYAML without references and includes."""
        stream = io.StringIO()
        YAML().dump(self.tree, stream)
        stream.seek(0)
        stream.name = os.path.realpath(self.path)  # includes lie beside it
        try:
            return resolve_references(stream).getvalue()
        except UnicodeEncodeError as error:
            raise unwritable(error)
        except (ValueError, TypeError, KeyError) as error:
            raise RecipeError(f"{self.path}: {_one_line(error)}")

    def expand_a_path(self, resolved):
        """Puts a whole path in the place of the first with ~ or $NAME.

        Those that refer to others come after them: they may follow.

        Arguments
        ---------
        resolved : dict
            The file without references.

        Returns
        -------
        is_expanded : bool
            False where there is none.
        """
        places = [
            (tree, key, part)
            for part, tree in [(None, self.tree), *self.included.items()]
            for key in tree
            if key.endswith(PLACE_SUFFIXES)
            and (part is None or key not in self.tree)
        ]
        places.sort(key=lambda place: _tag(place[0][place[1]]) == "!ref")
        for tree, key, part in places:
            value = (resolved if part is None else resolved[part])[key]
            if not isinstance(value, str) or _tag(value):
                continue
            path = expand_path(value, f"{key}=")
            if path != value:
                (tree if part is None else self.tree[part])[key] = path
                return True
        return False

    def list_unread(self, sources):
        """Lists the keys that nothing reads.

        Arguments
        ---------
        sources : iterable of str
            Python files that may read keys; a key that is quoted in one, or an
            attribute of hparams or modules, is taken for read, and so is one
            that the file refers to.

        Returns
        -------
        unread : list of str
        """
        read = set(RunOptions().keys())
        for source in sources:
            text = Path(source).read_text("utf-8")
            text = re.sub('""".*?"""', "", text, flags=re.DOTALL)
            found = re.findall(
                r"""["'](\w+)["']|(?:hparams|modules)\.(\w+)""", text
            )
            read.update(name for names in found for name in names)
        for text in self._list_texts([*self._trees()]):
            for reference in re.findall("<([^<>]*)>", text):
                read.update(re.findall(r"\w+", reference))
        given = [
            f"{place}.{key}"
            for place, tree in self.included.items()
            for key in self.tree[place]
            if key not in tree
        ]
        return given + [
            key
            for tree in self._trees()
            for key, node in tree.items()
            if not key.startswith("__")
            and key not in {*read, *self.included}
            and not _tag(node).startswith("!apply")
        ]

    def _list_texts(self, node):
        """Lists all texts below a node."""
        parts = [part for _, part in _list_items(node)]
        if not parts:
            return [str(getattr(node, "value", node))]
        return [text for part in parts for text in self._list_texts(part)]

    def name_keys(self):
        """Lists, by class and argument, the keys that set the argument."""
        keys = {}

        def walk(node):
            name = _tag(node).rpartition(".")[2]
            for argument, value in _list_items(node):
                match = _tag(value) == "!ref" and re.fullmatch(
                    r"<(\w+)>", value.value
                )
                if match:
                    keys.setdefault((name, argument), []).append(match[1])
                walk(value)

        for tree in self._trees():
            walk(tree)
        return keys


def _read_tree(path):
    """Reads a YAML file of keys, with its tags."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = YAML().load(file)
        if not isinstance(tree, dict):
            raise ValueError("it must map keys to values")
        return tree
    except OSError as error:
        raise RecipeError(
            f"hyperparameter file {path} cannot be read: {error.strerror}."
        )
    except (YAMLError, ValueError) as error:
        raise RecipeError(
            f"hyperparameter file {path} is no YAML file of keys: "
            f"{_one_line(error)}"
        )


def _one_line(error):
    """Writes what an error says as a sentence of one line."""
    parts = [str(part) for part in error.args] or [str(error)]
    return " ".join(" ".join(parts).split()).rstrip(".") + "."


def _expand_wired(node, depth=0):
    """Puts whole paths into the arguments of what is wired."""
    for key, value in _list_items(node):
        is_place = depth and str(key).endswith((*PLACE_SUFFIXES, *WIRED_PLACES))
        if is_place and isinstance(value, str):
            node[key] = expand_path(value, f"{key}: ")
        _expand_wired(value, depth + 1)


def _tag(node):
    """Reads the tag of a node, "" where it has none."""
    tag = getattr(node, "tag", None)
    return (tag.value or "") if tag is not None else ""


def make_wired(tag, arguments):
    """Makes a YAML node with a tag and arguments."""
    node = CommentedMap(arguments)
    node.yaml_set_ctag(Tag(suffix=tag))
    return node


def refer_to(key):
    """Makes a YAML reference to another key."""
    return TaggedScalar(f"<{key}>", tag="!ref")


def _plain(node):
    """Turns a YAML node into a plain value."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, (int, float)):  # 0 is a type of its own to ruamel
        return int(node) if isinstance(node, int) else float(node)
    return str(node)


def _list_settings(file, resolved):
    """Lists the plain settings of a file, given its tree without references.

    Of what is wired, that is the class's name without its module; a plain
    value that is written inside has the key and the argument with a dot between
    them. A reference there is kept as it is written: what it refers to is
    there by its own key.
    """
    settings = {}

    def add(key, node, value):
        tag = _tag(node)
        if tag.startswith("!include:"):  # within what is included
            node, tag = value, ""
        if tag.startswith(WIRED):
            settings[key] = tag.rpartition(".")[2]
        if tag.startswith(WIRED) or _has_tags(node):
            for part, inner in _list_items(node):
                is_reference = _tag(inner) == "!ref"
                value = inner.value if is_reference else inner
                add(f"{key}.{part}", None if is_reference else inner, value)
        elif tag != "!ref" or not _tag(value):  # what is wired has its key
            settings[key] = _plain(value)

    for key, node in file.tree.items():
        if key.startswith("__"):
            continue
        if key in file.included:
            settings[key] = Path(_tag(node).partition(":")[2]).stem
            for inner, inner_node in file.included[key].items():
                if _tag(inner_node).startswith(WIRED):
                    add(f"{key}.{inner}", inner_node, None)
                elif inner not in file.tree:
                    add(inner, inner_node, resolved[key][inner])
        else:
            add(key, node, resolved[key])
    return settings


def _list_items(node):
    """Lists a mapping's or list's parts, none of anything else."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _has_tags(node):
    """Tells whether a mapping or list wires something."""
    return any(_tag(part) or _has_tags(part) for _, part in _list_items(node))


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
        self.corpora = parse_corpora(_plain(tree.get("corpora")))
        folder, table = tree.get("data_folder"), tree.get("corpus_csv")
        if _tag(folder) == "!PLACEHOLDER" or folder is None or table:
            tree["data_folder"] = ""
        _expand_wired(tree)
        settings = self._resolve()
        self.data = str(
            settings.get("corpus_csv") or settings["data_folder"] or ""
        )
        for key, (check, bounds) in LOOP_KEYS.items():
            if key in settings:
                check(key, settings[key], **bounds)
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
        settings = _list_settings(self.file, resolved)
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
        text = _one_line(error)
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
    left_open = {k for k, v in file.tree.items() if _tag(v) == "!PLACEHOLDER"}
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
