"""A HyperPyYAML file as it is written: its keys, nodes and references."""

import io
import os
import re
from copy import deepcopy
from pathlib import Path

from hyperpyyaml import resolve_references
from hyperpyyaml.core import recursive_update
from ruamel.yaml import YAML, Tag
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.error import YAMLError
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.errors import RecipeError, unwritable
from speechbrain_wap.files import expand_path

# Keys whose values are folders or files, or may be, hence text
PLACE_SUFFIXES = ("_folder", "_csv", "_annotation")
PLACE_SUFFIXES += ("train_log", "encoder_source")
# Arguments of SpeechBrain's loggers and checkpointers that are
WIRED_PLACES = ("save_file", "checkpoints_dir")
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
            if read_tag(node).startswith("!include:"):
                self._include(key, node, overrides or {})

    def _include(self, key, node, overrides):
        """Reads the file that a key includes."""
        name = read_tag(node).removeprefix("!include:")
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
        if read_tag(node).startswith(WIRED) and not isinstance(
            node, (dict, list)
        ):
            node = make_wired(read_tag(node), {})
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
                    f"streams={to_plain(streams)} must map names to encoder "
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
            raise RecipeError(f"{self.path}: {one_line(error)}")

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
        places.sort(key=lambda place: read_tag(place[0][place[1]]) == "!ref")
        for tree, key, part in places:
            value = (resolved if part is None else resolved[part])[key]
            if not isinstance(value, str) or read_tag(value):
                continue
            path = expand_path(value, f"{key}=")
            if path != value:
                (tree if part is None else self.tree[part])[key] = path
                return True
        return False

    def expand_wired(self):
        """Puts whole paths into the arguments of what is wired."""

        def expand(node, depth):
            for key, value in _list_items(node):
                suffixes = (*PLACE_SUFFIXES, *WIRED_PLACES)
                is_place = depth and str(key).endswith(suffixes)
                if is_place and isinstance(value, str):
                    node[key] = expand_path(value, f"{key}: ")
                expand(value, depth + 1)

        expand(self.tree, 0)

    def list_settings(self, resolved):
        """Lists the plain settings.

        Of what is wired, that is the class's name without its module; a plain
        value that is written inside has the key and the argument with a dot
        between them. A reference there is kept as it is written: what it
        refers to is there by its own key.

        Arguments
        ---------
        resolved : dict
            The file without references.

        Returns
        -------
        settings : dict
        """
        settings = {}

        def add(key, node, value):
            tag = read_tag(node)
            if tag.startswith("!include:"):  # within what is included
                node, tag = value, ""
            if tag.startswith(WIRED):
                settings[key] = tag.rpartition(".")[2]
            if tag.startswith(WIRED) or _has_tags(node):
                for part, inner in _list_items(node):
                    is_reference = read_tag(inner) == "!ref"
                    value = inner.value if is_reference else inner
                    add(f"{key}.{part}", None if is_reference else inner, value)
            # what is wired has its own key
            elif tag != "!ref" or not read_tag(value):
                settings[key] = to_plain(value)

        for key, node in self.tree.items():
            if key.startswith("__"):
                continue
            if key in self.included:
                settings[key] = Path(read_tag(node).partition(":")[2]).stem
                for inner, inner_node in self.included[key].items():
                    if read_tag(inner_node).startswith(WIRED):
                        add(f"{key}.{inner}", inner_node, None)
                    elif inner not in self.tree:
                        add(inner, inner_node, resolved[key][inner])
            else:
                add(key, node, resolved[key])
        return settings

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
            and not read_tag(node).startswith("!apply")
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
            name = read_tag(node).rpartition(".")[2]
            for argument, value in _list_items(node):
                match = read_tag(value) == "!ref" and re.fullmatch(
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
            f"{one_line(error)}"
        )


def one_line(error):
    """Writes what an error says as a sentence of one line."""
    parts = [str(part) for part in error.args] or [str(error)]
    return " ".join(" ".join(parts).split()).rstrip(".") + "."


def read_tag(node):
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


def to_plain(node):
    """Turns a YAML node into a plain value."""
    if isinstance(node, dict):
        return {str(key): to_plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [to_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, (int, float)):  # 0 is a type of its own to ruamel
        return int(node) if isinstance(node, int) else float(node)
    return str(node)


def _list_items(node):
    """Lists a mapping's or list's parts, none of anything else."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _has_tags(node):
    """Tells whether a mapping or list wires something."""
    return any(
        read_tag(part) or _has_tags(part) for _, part in _list_items(node)
    )
