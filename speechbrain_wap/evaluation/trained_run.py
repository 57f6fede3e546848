"""A finished run of train_classifier.py: YAML, scores, tested weights."""

import io
import json
from copy import deepcopy
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap

from speechbrain_wap.data.batches import OneByOne
from speechbrain_wap.data.datasets import make_labelled_dataset
from speechbrain_wap.encoders import get_frame_shape
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.features.extraction import cut_long_utterances
from speechbrain_wap.files import expand_path, read_json
from speechbrain_wap.training.checkpoints import Checkpointer

CURE = "run train_classifier.py again."


class TrainedRun:
    """A finished run of train_classifier.py, as its folder tells it.

    Arguments
    ---------
    folder : str
        Its output folder.

    Attributes
    ----------
    scores, settings : dict
        What the run recorded.
    tree : ruamel.yaml.comments.CommentedMap
        Its YAML.
    caches : dict
        Its feature caches by name; a single one is called "".
    model : ruamel.yaml.comments.CommentedMap
        The YAML node of its model, with the sizes as numbers.

    Raises
    ------
    RecipeError
        If it is no such folder, or its encoder cannot be had.
    """

    def __init__(self, folder):
        self.folder = Path(expand_path(folder))
        for name in ("hyperparams.yaml", "scores.json", "save/settings.json"):
            if not (self.folder / name).is_file():
                raise RecipeError(
                    f"{folder} is no finished run of train_classifier.py, for "
                    f"it has no {name}: give its output folder."
                )
        self.scores = read_json(self.folder / "scores.json", CURE, ["classes"])
        path = self.folder / "save/settings.json"
        self.settings = read_json(path, CURE, ["settings"])["settings"]
        self.tree = read_yaml(self.folder / "hyperparams.yaml")
        nodes = self.tree.get("feature_caches")
        self.nodes = nodes or {"": self.tree["feature_cache"]}
        caches = build(list(self.nodes.values()))
        self.caches = dict(zip(self.nodes, caches))
        self._check_encoders()
        self.model = _replace_sizes(self.tree["model"])

    def _check_encoders(self):
        """Refuses other encoders than in training."""
        trained = self.settings["encoder_key"]
        keys = {"": trained} if "" in self.caches else json.loads(trained)
        for name, cache in self.caches.items():
            if cache.key == keys[name]:
                continue
            # which also depends on the versions of libraries
            path = Path(cache.cache_folder, keys[name], "cache.json")
            then = read_json(path, CURE)["encoder"] if path.is_file() else None
            now = json.dumps(cache.description["encoder"], default=str)
            if then != json.loads(now):
                encoder = cache.encoder
                raise RecipeError(
                    "the encoder "
                    f"{getattr(encoder, 'source', type(encoder).__name__)} is "
                    f"another one than the run in {self.folder} was trained "
                    "with: put that one in its place."
                )

    def find_weights(self):
        """Finds the weights that were tested, a path."""
        checkpointer = Checkpointer(self.folder / "save")
        best = self.settings.get("model_selection") == "best"
        checkpoint = checkpointer.find_checkpoint(
            max_key="UA" if best else None
        )
        if checkpoint is None:
            raise RecipeError(f"{self.folder}/save holds no checkpoint: {CURE}")
        newest = checkpointer.find_checkpoint().meta.get("epoch")
        if newest != self.scores["number_of_epochs"]:
            raise RecipeError(
                f"{self.folder} was tested after epoch "
                f"{self.scores['number_of_epochs']}, but has been trained "
                "since: run train_classifier.py to its end."
            )
        return checkpoint.paramfiles["model"]

    def build_model(self):
        """Builds the model with its tested weights.

        Returns
        -------
        model : torch.nn.Module
        """
        (model,) = build([self.model])
        if getattr(model, "transductive", None):
            raise RecipeError(
                f"{type(model).__name__} in {self.folder} "
                f"{model.transductive}, so that it cannot recognise others: "
                "export a system that does without."
            )
        model.set_classes(len(self.scores["classes"]))
        weights = torch.load(self.find_weights(), "cpu", weights_only=True)
        model.load_state_dict(weights)
        model.eval()
        if hasattr(model, "after_fit"):
            with torch.no_grad():
                model.after_fit(OneByOne(self._list_training_data(), "cpu"))
        return model

    def read_split(self, name):
        """Reads a manifest, as it is cut where it was (D12).

        Arguments
        ---------
        name : str
            "train", "valid" or "test".

        Returns
        -------
        entries : dict
            By utterance id.
        """
        entries = read_json(self.folder / f"{name}.json", CURE)
        if self.settings["long_utterances"] == "cut":
            limits = [*self.caches.values()], self.settings["max_frames"]
            entries = cut_long_utterances({name: entries}, *limits)[name]
        return entries

    def _list_training_data(self):
        """Makes the dataset that a model's hooks see in training."""
        entries = self.read_split("train")
        return make_labelled_dataset(
            entries,
            self.caches,
            self.scores["classes"],
            sorted({entry["speaker"] for entry in entries.values()}),
            max_frames=self.settings["max_frames"],
            long_utterances="cut",
        )

    def draw_frames(self, num_utterances, num_frames):
        """Draws what a model is given: frames, relative lengths, no mask."""
        random = torch.Generator().manual_seed(0)
        lens = 0.5 + 0.5 * torch.rand(num_utterances, generator=random)
        feats, all_lens = {}, {}
        for name, cache in self.caches.items():
            shape = get_frame_shape(cache.encoder)
            size = num_utterances, num_frames, *shape
            feats[name] = torch.randn(size, generator=random)
            all_lens[name] = lens
        if "" in feats:
            return feats[""], lens, None
        return feats, all_lens, dict.fromkeys(feats)


def read_yaml(path):
    """Reads a YAML file of a run, with what it wires as nodes."""
    try:
        return YAML().load(Path(path).read_text("utf-8"))
    except (YAMLError, ValueError) as error:
        raise RecipeError(f"{path} is damaged ({first_line(error)}): {CURE}")


def build(nodes):
    """Builds YAML nodes, a list of what they wire."""
    try:
        return load_hyperpyyaml(write_yaml({"nodes": nodes}))["nodes"]
    except (ImportError, ValueError, TypeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"the run's YAML cannot be built again: {first_line(error)}; its "
            "modules have to be importable, as from a package, or from the "
            "current folder."
        )


def write_yaml(tree):
    """Writes nodes as YAML."""
    stream, yaml = io.StringIO(), YAML()
    yaml.representer.ignore_aliases = lambda data: True
    yaml.dump(tree, stream)
    return stream.getvalue()


def _replace_sizes(node):
    """Copies a node, with numbers for what is computed of the encoder."""
    name = getattr(getattr(node, "tag", None), "value", None)
    if name and name.startswith("!apply:speechbrain_wap.encoders."):
        return build([node])[0]
    if isinstance(node, dict):
        copy = CommentedMap()
        for key, value in node.items():
            copy[key] = _replace_sizes(value)
        if name:
            copy.yaml_set_ctag(node.tag)
        return copy
    return deepcopy(node)
