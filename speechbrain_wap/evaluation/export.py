r"""Exports a trained fold as a model that recognises emotions.

> python -m speechbrain_wap export --output=model/ \
      --run_folder=results/O/seed1/fold1/classifier

writes a folder in SpeechBrain's form: hyperparams.yaml, weights, label encoder,
custom_interface.py for SpeechBrain's foreign_class, and a model card. It needs
nothing but this package, and the encoder, which it names and recognises.

All folds of a results folder, as a model that averages their probabilities:
> python -m speechbrain_wap export --output=model/ \
      --results_folder=results/O --all_folds --seed=1

--bundle_encoder  puts the encoder's checkpoint into the folder
--onnx            also writes model.onnx: frames and relative lengths to logits,
                  checked against PyTorch (needs onnx, onnxscript, onnxruntime)
"""

import argparse
import io
import os
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, Tag, TaggedScalar
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

import speechbrain_wap
from speechbrain_wap.data.batches import OneByOne
from speechbrain_wap.data.datasets import feats_key, make_labelled_dataset
from speechbrain_wap.encoders.checkpoints import CHECKPOINT_FILES
from speechbrain_wap.encoders.speech_encoder import (
    count_encoder_layers,
    digest_encoder,
    get_encoder_dim,
)
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.evaluation.model_card import write_model_card
from speechbrain_wap.files import digest_file, read_json, write_text
from speechbrain_wap.training.adapter_folder import find_finished
from speechbrain_wap.training.checkpoints import Checkpointer

logger = get_logger(__name__)

LARGEST_ERROR = 1e-4  # of logits by ONNX Runtime against PyTorch's
INTERFACE = '''"""The model, for SpeechBrain's foreign_class."""

from speechbrain_wap.inference import EmotionRecognizer


class CustomInterface(EmotionRecognizer):
    """Recognises emotions; see EmotionRecognizer."""
'''


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
    front_ends : dict
        The YAML nodes of its encoders and their precision, by the features'
        key.
    model : ruamel.yaml.comments.CommentedMap
        The YAML node of its model, with the sizes as numbers.
    encoders : dict
        The encoders, by the features' key.

    Raises
    ------
    RecipeError
        If it is no such folder, or its encoder cannot be had.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        for name in ("hyperparams.yaml", "scores.json", "save/settings.json"):
            if not (self.folder / name).is_file():
                raise RecipeError(
                    f"{folder} is no finished run of train_classifier.py, for "
                    f"it has no {name}: give its output folder."
                )
        cure = "run train_classifier.py again."
        self.scores = read_json(self.folder / "scores.json", cure, ["classes"])
        path = self.folder / "save/settings.json"
        self.settings = read_json(path, cure, ["settings"])["settings"]
        text = (self.folder / "hyperparams.yaml").read_text("utf-8")
        self.tree = tree = YAML().load(text)
        caches = tree.get("feature_caches") or {"": tree["feature_cache"]}
        self.front_ends = {feats_key(k): node for k, node in caches.items()}
        nodes = {key: node["encoder"] for key, node in self.front_ends.items()}
        self.encoders = dict(zip(nodes, build(list(nodes.values()))))
        # what the YAML computes of the encoder is a number here
        self.sizes = {
            id(tree.get(key)): size(self.encoders.get("feats"))
            for key, size in (
                ("encoder_dim", get_encoder_dim),
                ("num_encoder_layers", count_encoder_layers),
            )
            if "feats" in self.encoders and isinstance(tree.get(key), list)
        }
        self.model = self._replace_sizes(tree["model"])

    def _replace_sizes(self, node):
        """Copies a node, with numbers for what is computed of the encoder."""
        if id(node) in self.sizes:
            return self.sizes[id(node)]
        if isinstance(node, dict):
            copy = CommentedMap()
            for key, value in node.items():
                copy[key] = self._replace_sizes(value)
            if node.tag.value:
                copy.yaml_set_ctag(node.tag)
            return copy
        return deepcopy(node)

    def find_weights(self):
        """Finds the weights that were tested, a path."""
        best = self.settings.get("model_selection") == "best"
        checkpoint = Checkpointer(self.folder / "save").find_checkpoint(
            max_key="UA" if best else None
        )
        if checkpoint is None:
            raise RecipeError(
                f"{self.folder}/save holds no checkpoint: run "
                "train_classifier.py again."
            )
        return checkpoint.paramfiles["model"]

    def build_model(self):
        """Builds the model with its tested weights.

        Returns
        -------
        model : torch.nn.Module
        """
        (model,) = build([self.model])
        model.set_classes(len(self.scores["classes"]))
        weights = torch.load(self.find_weights(), "cpu", weights_only=True)
        model.load_state_dict(weights)
        model.eval()
        if hasattr(model, "after_fit"):
            with torch.no_grad():
                model.after_fit(OneByOne(self._list_training_data(), "cpu"))
        return model

    def _list_training_data(self):
        """Makes the dataset that a model's hooks see in training."""
        path = self.folder / "train.json"
        entries = read_json(path, "run train_classifier.py again.")
        caches = build(list(self.front_ends.values()))
        names = [key.removeprefix("feats").strip("_") for key in self.encoders]
        return make_labelled_dataset(
            entries,
            dict(zip(names, caches)),
            self.scores["classes"],
            sorted({entry["speaker"] for entry in entries.values()}),
            max_frames=self.settings["max_frames"],
            long_utterances="cut",
        )


def build(nodes):
    """Builds YAML nodes, a list of what they wire."""
    stream = io.StringIO()
    YAML().dump({"nodes": deepcopy(nodes)}, stream)
    try:
        return load_hyperpyyaml(stream.getvalue())["nodes"]
    except (ImportError, ValueError, TypeError) as error:
        raise RecipeError(
            f"the run's YAML cannot be built again: {first_line(error)}; its "
            "modules have to be importable, as from a package, or from the "
            "current folder."
        )


def tag(name, **arguments):
    """Makes a YAML node that wires something."""
    node = CommentedMap(arguments)
    node.yaml_set_ctag(Tag(suffix=name))
    return node


def refer_to(key):
    """Makes a YAML reference to another key."""
    return TaggedScalar(f"<{key}>", style=None, tag=Tag(suffix="!ref"))


# The model folder -------------------------------------------------------------


def export(runs, output, bundle_encoder=False, onnx=False):
    """Writes a model folder.

    Arguments
    ---------
    runs : list of TrainedRun
        One, or several whose probabilities are averaged.
    output : str
        The folder to write; it must be empty, or an earlier model's.
    bundle_encoder : bool
        Whether the encoder's checkpoint is put in.
    onnx : bool
        Whether model.onnx is written, too.

    Raises
    ------
    RecipeError
        If the runs do not fit each other, or something cannot be exported.
    """
    first, output = runs[0], Path(output)
    _check_alike(runs)
    _check_output(output)
    models = [run.build_model() for run in runs]
    output.mkdir(parents=True, exist_ok=True)
    # last, so that a folder without it is none yet
    (output / "hyperparams.yaml").unlink(missing_ok=True)
    num_classes = len(first.scores["classes"])
    nodes = []
    for run in runs:
        node = deepcopy(run.model)
        if node.tag.value == "!apply:speechbrain_wap.emotion_model.build_model":
            node["num_classes"] = num_classes
        else:
            name = "!apply:speechbrain_wap.emotion_model.add_classes"
            node = tag(name, model=node, num_classes=num_classes)
        nodes.append(node)
    if len(runs) == 1:
        (model,), (node,) = models, nodes
    else:
        from speechbrain_wap.inference import AveragedModels

        model = AveragedModels(models)
        node = tag(
            "!new:speechbrain_wap.inference.AveragedModels", models=nodes
        )
    torch.save(model.state_dict(), output / "model.ckpt")
    labels = CategoricalEncoder()
    labels.update_from_iterable(first.scores["classes"], sequence_input=False)
    labels.save(output / "label_encoder.ckpt")
    loadables = {"model": node}
    loadables |= _export_attributes(first, output) if len(runs) == 1 else {}
    front_ends = {
        key: {
            "encoder": _describe_encoder(first, key, output, bundle_encoder),
            "precision": str(first.front_ends[key].get("precision", "float16")),
            "digest": Quoted(digest_encoder(first.encoders[key])),
        }
        for key in first.encoders
    }
    text = _write_yaml(first, front_ends, loadables, output)
    write_text(output / "custom_interface.py", INTERFACE)
    write_model_card(runs, output, bundle_encoder)
    if onnx:
        export_onnx(model, first, output / "model.onnx")
    write_text(output / "hyperparams.yaml", text)


def _check_alike(runs):
    """Refuses to average what is not alike."""
    for run in runs[1:]:
        for key in ("class_names", "encoder_key", "system", "max_frames"):
            one, other = (r.settings.get(key) for r in (runs[0], run))
            if one != other:
                raise RecipeError(
                    f"{run.folder} has {key}={other}, but {runs[0].folder} has "
                    f"{one}: only models of one kind can be averaged."
                )


def _check_output(output):
    """Refuses a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise RecipeError(f"--output={output} is a file: give a folder.")
    is_empty = not output.exists() or not any(output.iterdir())
    if not is_empty and not (output / "custom_interface.py").is_file():
        raise RecipeError(
            f"--output={output} holds something else than a model: give an "
            "empty folder."
        )


def _describe_encoder(run, key, output, bundle):
    """Makes the node of an encoder, made once the model folder is known."""
    node, encoder = run.front_ends[key]["encoder"], run.encoders[key]
    described = deepcopy(node)
    name = node.tag.value.replace("!new:", "!name:")
    described.yaml_set_ctag(Tag(suffix=name))
    if os.path.isdir(str(described.get("source"))):
        described["source"] = os.path.abspath(described["source"])
    if bundle:
        folder = getattr(getattr(encoder, "front_end", None), "folder", None)
        if folder is None:
            raise RecipeError(
                f"--bundle_encoder: {type(encoder).__name__} has no checkpoint "
                "to put in; leave it out."
            )
        described["source"] = name = key.replace("feats", "encoder")
        described.pop("revision", None)
        (output / name).mkdir(exist_ok=True)
        for pattern in CHECKPOINT_FILES:
            for path in sorted(Path(folder).glob(pattern)):
                shutil.copyfile(path, output / name / path.name)
    return described


def _export_attributes(run, output):
    """Writes the local attributes of the adapter that a run started from."""
    folder = run.tree.get("adapter_folder")
    if not folder:
        return {}
    path = Path(folder) / "hyperparams.yaml"
    if not path.is_file():
        logger.warning(
            f"adapter_folder={folder} is gone: the model has no local "
            "attributes, and encode_batch gives no codes."
        )
        return {}
    tree = YAML().load(path.read_text("utf-8"))
    weights = find_finished(folder).paramfiles["local_attributes"]
    shutil.copyfile(weights, output / "local_attributes.ckpt")
    return {
        "local_attributes": deepcopy(tree["local_attributes"]),
        "targets": deepcopy(tree["targets"]),
    }


def _write_yaml(run, front_ends, wired, output):
    """Writes hyperparams.yaml, in which references are resolved."""
    weights = [name for name in wired if name != "targets"]
    tree = CommentedMap()
    tree["front_ends"] = front_ends
    tree["max_frames"] = run.settings["max_frames"]
    tree["long_utterances"] = run.settings["long_utterances"]
    tree["precision"] = run.settings.get("eval_precision") or "fp32"
    tree.update(wired)
    name = "!new:speechbrain.dataio.encoder.CategoricalEncoder"
    tree["label_encoder"] = tag(name)
    tree["modules"] = {name: refer_to(name) for name in weights}
    loadables = {**tree["modules"], "label_encoder": refer_to("label_encoder")}
    tree["pretrainer"] = tag(
        "!new:speechbrain.utils.parameter_transfer.Pretrainer",
        loadables=loadables,
        custom_hooks={
            name: tag(
                "!name:speechbrain_wap.inference.load_weights",
                digest=Quoted(digest_file(output / f"{name}.ckpt")),
            )
            for name in weights
        },
    )
    stream, yaml = io.StringIO(), YAML()
    yaml.representer.ignore_aliases = lambda data: True
    yaml.dump(tree, stream)
    return (
        "# A model that recognises emotions: see README.md. Exported by\n"
        f"# speechbrain_wap {speechbrain_wap.__version__}.\n\n"
        f"{stream.getvalue()}"
    )


# ONNX -------------------------------------------------------------------------


def export_onnx(model, run, path):
    """Writes a model for ONNX Runtime, frames and relative lengths to logits.

    Arguments
    ---------
    model : torch.nn.Module
        In eval mode.
    run : TrainedRun
        Where it comes from.
    path : pathlib.Path
        The file to write.

    Raises
    ------
    RecipeError
        If a package is missing, or the system cannot be exported.
    """
    system = type(model).__name__
    if list(run.encoders) != ["feats"]:
        raise RecipeError(
            f"--onnx: {system} takes several streams of features, which is "
            "not supported."
        )
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  which torch needs
    except ImportError as error:
        raise RecipeError(
            f"--onnx needs {error.name}: pip install onnx onnxscript "
            "onnxruntime."
        )
    encoder = run.encoders["feats"]
    layers = count_encoder_layers(encoder)
    shape = [layers] * (layers > 1) + [get_encoder_dim(encoder)]
    random = torch.Generator().manual_seed(0)

    def draw(num_utterances, num_frames):
        """Draws a batch."""
        size = num_utterances, num_frames, *shape
        lens = 0.5 + 0.5 * torch.rand(num_utterances, generator=random)
        return torch.randn(size, generator=random), lens

    batch = torch.export.Dim("batch", min=1, max=1024)
    frames = torch.export.Dim("frames", min=1, max=run.settings["max_frames"])
    try:
        program = torch.onnx.export(
            model,
            draw(3, 20),
            dynamo=True,
            input_names=["feats", "lens"],
            output_names=["logits"],
            dynamic_shapes=({0: batch, 1: frames}, {0: batch}),
            verbose=False,
        )
    except Exception as error:  # of any system
        raise RecipeError(
            f"--onnx: {system} cannot be exported: {first_line(error)}"
        )
    program.save(path)
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    for size in ((1, 1), (1, 57), (5, 31)):
        feats, lens = draw(*size)
        given = {"feats": feats.numpy(), "lens": lens.numpy()}
        (logits,) = session.run(None, given)
        with torch.no_grad():
            expected = model(feats, lens)
        error = float((torch.from_numpy(logits) - expected).abs().max())
        if not error <= LARGEST_ERROR:
            path.unlink()
            raise RecipeError(
                f"--onnx: {system} gives other logits in ONNX Runtime, by up "
                f"to {error:.1e} (batch {size[0]}, {size[1]} frames)."
            )


# The command ------------------------------------------------------------------


def find_runs(results_folder, seed):
    """Finds the finished runs of all folds of a seed."""
    folders = sorted(Path(results_folder).glob(f"seed{seed}/fold*/classifier"))
    runs = [TrainedRun(f) for f in folders if (f / "scores.json").is_file()]
    if not runs:
        raise RecipeError(
            f"{results_folder} holds no finished fold of seed {seed}: give the "
            "output folder of cross_validate.py and one of its seeds."
        )
    return sorted(runs, key=lambda run: run.scores["fold"])


def main(arguments):
    """Exports what a command line names."""

    class Parser(argparse.ArgumentParser):
        """Says what is wrong in a sentence."""

        def error(self, message):
            raise RecipeError(f"export: {message}; --help says what it takes.")

    parser = Parser(add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("--run_folder")
    add("--results_folder")
    add("--all_folds", action="store_true")
    add("--seed", type=int)
    add("--output", required=True)
    add("--bundle_encoder", action="store_true")
    add("--onnx", action="store_true")
    options = parser.parse_args(arguments)
    if bool(options.run_folder) == bool(options.results_folder):
        parser.error("give either --run_folder or --results_folder")
    if options.results_folder and not (options.all_folds and options.seed):
        parser.error("--results_folder goes with --all_folds and --seed")
    if options.run_folder:
        runs = [TrainedRun(options.run_folder)]
    else:
        runs = find_runs(options.results_folder, options.seed)
    export(runs, options.output, options.bundle_encoder, options.onnx)
    print(f"Model: {options.output}")
