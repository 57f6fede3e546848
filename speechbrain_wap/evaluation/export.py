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

import importlib
import io
import json
import logging
import os
import re
import shutil
import sysconfig
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap, Tag, TaggedScalar
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

import speechbrain_wap
from speechbrain_wap.data.batches import OneByOne
from speechbrain_wap.data.datasets import feats_key, make_labelled_dataset
from speechbrain_wap.emotion_model import AveragedModels
from speechbrain_wap.encoders.checkpoints import CHECKPOINT_FILES
from speechbrain_wap.encoders.fbank import WeightFreeFrontEnd
from speechbrain_wap.encoders.speech_encoder import (
    count_encoder_layers,
    digest_encoder,
    get_encoder_dim,
)
from speechbrain_wap.errors import (
    CommandParser,
    RecipeError,
    first_line,
    report_path_errors,
)
from speechbrain_wap.evaluation.model_card import write_model_card
from speechbrain_wap.files import (
    digest_file,
    expand_path,
    read_json,
    write_text,
)
from speechbrain_wap.training.adapter_folder import (
    RECORD,
    find_finished,
    identify_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.checkpoints import Checkpointer

logger = get_logger(__name__)

CURE = "run train_classifier.py again."
# What models that are averaged must agree on, beside classes and encoder
SHARED = ("system", "max_frames", "long_utterances", "eval_precision")
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

    def _list_training_data(self):
        """Makes the dataset that a model's hooks see in training."""
        entries = read_json(self.folder / "train.json", CURE)
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
            layers = count_encoder_layers(cache.encoder)
            shape = [layers] * (layers > 1) + [get_encoder_dim(cache.encoder)]
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
        return load_hyperpyyaml(_write_yaml({"nodes": nodes}))["nodes"]
    except (ImportError, ValueError, TypeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"the run's YAML cannot be built again: {first_line(error)}; its "
            "modules have to be importable, as from a package, or from the "
            "current folder."
        )


def _write_yaml(tree):
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
    first, output = runs[0], Path(expand_path(output))
    _check_alike(runs)
    _check_output(output)
    if onnx:
        _check_onnx(first)
    bundled = _find_checkpoints(first) if bundle_encoder else {}
    models, nodes = [run.build_model() for run in runs], []
    num_classes = len(first.scores["classes"])
    for run in runs:
        node = deepcopy(run.model)
        if node.tag.value == "!apply:speechbrain_wap.emotion_model.build_model":
            node["num_classes"] = num_classes
        else:
            name = "!apply:speechbrain_wap.emotion_model.add_classes"
            node = tag(name, model=node, num_classes=num_classes)
        nodes.append(node)
    (model, *others), (node, *_) = models, nodes
    if others:
        model = AveragedModels(models)
        name = "!new:speechbrain_wap.emotion_model.AveragedModels"
        node = tag(name, models=nodes)
    _check_rebuilt(node, model, first)
    with report_path_errors():
        _clear(output)
        torch.save(model.state_dict(), output / "model.ckpt")
        labels = CategoricalEncoder()
        labels.update_from_iterable(
            first.scores["classes"], sequence_input=False
        )
        labels.save(output / "label_encoder.ckpt")
        wired = {"model": node}
        wired |= {} if others else _export_attributes(first, output)
        text = _describe(first, wired, output, bundled)
        _copy_modules(text, output)
        write_text(output / "custom_interface.py", INTERFACE)
        write_model_card(runs, output, bundle_encoder)
        if onnx:
            export_onnx(model, first, output / "model.onnx")
        write_text(output / "hyperparams.yaml", text)


def _clear(output):
    """Makes the folder, or removes what an earlier model might leave in it."""
    output.mkdir(parents=True, exist_ok=True)
    # last to be written, so that a folder without it is none yet
    for name in ("hyperparams.yaml", "local_attributes.ckpt", "model.onnx"):
        (output / name).unlink(missing_ok=True)
    for path in output.glob("encoder*/config.json"):
        shutil.rmtree(path.parent)


def _check_rebuilt(node, model, run):
    """Refuses a model that its weights do not make again."""
    given = run.draw_frames(2, 20)
    reason = "it gives other logits"
    try:
        (copy,) = build([node])
        copy.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits, expected = copy.eval()(*given), model(*given)
        if torch.allclose(logits, expected, atol=1e-5, equal_nan=True):
            return
    except Exception as error:  # of any system
        reason = first_line(error)
    raise RecipeError(
        f"the system of {run.folder} cannot be made again of its state_dict ("
        f"{reason}): keep all that it learns in parameters, or in buffers that "
        "set_classes registers."
    )


def _copy_modules(text, output):
    """Copies the modules of one's own that a YAML names."""
    installed = {sysconfig.get_path(key) for key in ("stdlib", "purelib")}
    installed.add(sysconfig.get_path("platlib"))
    for name in sorted(set(re.findall(r"!(?:new|name|apply):(\w+)", text))):
        path = getattr(importlib.import_module(name), "__file__", None)
        # a package of several files has to be installed
        is_own = path and not path.endswith("__init__.py")
        if is_own and not any(path.startswith(place) for place in installed):
            shutil.copyfile(path, output / Path(path).name)


def _check_alike(runs):
    """Refuses to average what is not alike."""
    for run in runs[1:]:
        for key in ("class_names", "encoder_key", *SHARED):
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


def _find_checkpoints(run):
    """Finds the folders of the encoders' checkpoints, by the caches' names."""
    folders = {}
    for name, cache in run.caches.items():
        front_end = getattr(cache.encoder, "front_end", None)
        if folders and isinstance(front_end, WeightFreeFrontEnd):
            continue  # a further stream, which needs nothing
        folders[name] = getattr(front_end, "folder", None)
        if folders[name] is None:
            raise RecipeError(
                f"--bundle_encoder: {type(cache.encoder).__name__} has no "
                "checkpoint to put in; leave it out."
            )
    return folders


def _describe_encoder(run, name, output, bundled):
    """Makes the node of an encoder, made once the model folder is known."""
    node, encoder = run.nodes[name]["encoder"], run.caches[name].encoder
    described = deepcopy(node)
    described.yaml_set_ctag(
        Tag(suffix=node.tag.value.replace("new", "name", 1))
    )
    if getattr(encoder, "revision", None):
        described["revision"] = encoder.revision  # the commit that was found
    if os.path.isdir(str(getattr(encoder, "source", ""))):
        described["source"] = os.path.abspath(encoder.source)
    if name in bundled:
        described["source"] = target = feats_key(name).replace(
            "feats", "encoder"
        )
        described.pop("revision", None)
        (output / target).mkdir()
        for pattern in (*CHECKPOINT_FILES, "README.md", "LICENSE*"):
            for path in Path(bundled[name]).glob(pattern):
                shutil.copyfile(path, output / target / path.name)
    return described


def _export_attributes(run, output):
    """Writes the local attributes of the adapter that a run started from."""
    folder = run.tree.get("adapter_folder")
    if not folder:
        return {}
    # a results folder may have been moved
    for place in (Path(folder), run.folder.parent / "adapter"):
        if (place / RECORD).is_file():
            identity = identify_adapter(read_adapter_record(place))
            if identity == run.settings["adapter_identity"]:
                break
    else:
        logger.warning(
            f"adapter_folder={folder} is gone, or has been trained since: the "
            "model has no local attributes, and encode_batch gives no codes."
        )
        return {}
    tree = read_yaml(place / "hyperparams.yaml")
    weights = find_finished(place).paramfiles["local_attributes"]
    shutil.copyfile(weights, output / "local_attributes.ckpt")
    return {
        "local_attributes": deepcopy(tree["local_attributes"]),
        "targets": deepcopy(tree["targets"]),
    }


def _describe(run, wired, output, bundled):
    """Writes the text of hyperparams.yaml, in which references are resolved."""
    tree = CommentedMap()
    tree["front_ends"] = {
        feats_key(name): {
            "encoder": _describe_encoder(run, name, output, bundled),
            "precision": cache.precision,
            "digest": Quoted(digest_encoder(cache.encoder)),
        }
        for name, cache in run.caches.items()
    }
    tree["max_frames"] = run.settings["max_frames"]
    tree["long_utterances"] = run.settings["long_utterances"]
    tree["precision"] = run.settings.get("eval_precision") or "fp32"
    tree.update(wired)
    name = "!new:speechbrain.dataio.encoder.CategoricalEncoder"
    tree["label_encoder"] = tag(name)
    modules = [name for name in wired if name != "targets"]
    tree["modules"] = {name: refer_to(name) for name in modules}
    loaded = [*modules, "label_encoder"]
    tree["pretrainer"] = tag(
        "!new:speechbrain.utils.parameter_transfer.Pretrainer",
        loadables={name: refer_to(name) for name in loaded},
        custom_hooks={
            name: tag(
                "!name:speechbrain_wap.inference.load_checked",
                digest=Quoted(digest_file(output / f"{name}.ckpt")),
            )
            for name in loaded
        },
    )
    return (
        "# A model that recognises emotions: see README.md. Exported by\n"
        f"# speechbrain_wap {speechbrain_wap.__version__}.\n\n"
        f"{_write_yaml(tree)}"
    )


# ONNX -------------------------------------------------------------------------


def _check_onnx(run):
    """Refuses what cannot be exported to ONNX here."""
    if "" not in run.caches:
        raise RecipeError(
            "--onnx: a system that takes several streams of features is not "
            "supported."
        )
    try:
        import onnxruntime
        import onnxscript  # which torch needs
    except ImportError as error:
        raise RecipeError(
            f"--onnx needs {error.name}: pip install 'speechbrain-wap[onnx]'."
        )
    return onnxscript and onnxruntime


@contextmanager
def _silence():
    """Keeps to itself what torch says while it exports, pages of it."""
    nowhere = io.StringIO()
    logging.disable()
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


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
    onnxruntime = _check_onnx(run)
    system = type(model).__name__
    batch = torch.export.Dim("batch", min=1, max=1024)
    frames = torch.export.Dim("frames", min=1, max=run.settings["max_frames"])
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                run.draw_frames(3, 20)[:2],
                dynamo=True,
                input_names=["feats", "lens"],
                output_names=["logits"],
                dynamic_shapes=({0: batch, 1: frames}, {0: batch}),
                verbose=False,
            )
    except Exception as error:  # of any system
        raise RecipeError(
            f"--onnx: {system} cannot be exported: "
            f"{first_line(error.__cause__ or error)}"
        )
    program.save(path)
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    for size in ((1, 1), (1, 57), (5, 31)):
        feats, lens, _ = run.draw_frames(*size)
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
    """Finds the runs of all folds of a seed, which must be finished."""
    place = Path(expand_path(results_folder))
    runs = [
        TrainedRun(folder)
        for folder in place.glob(f"seed{seed}/fold*/classifier")
    ]
    if not runs:
        raise RecipeError(
            f"{results_folder} holds no fold of seed {seed}: give the output "
            "folder of cross_validate.py and one of its seeds."
        )
    return sorted(runs, key=lambda run: run.scores["fold"])


def main(arguments):
    """Exports what a command line names."""
    parser = CommandParser("export")
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
    of_folds = [options.results_folder, options.all_folds]
    of_folds.append(options.seed is not None)
    if any(of_folds) != all(of_folds):
        parser.error("--results_folder, --all_folds and --seed go together")
    if options.run_folder:
        runs = [TrainedRun(options.run_folder)]
    else:
        runs = find_runs(options.results_folder, options.seed)
    export(runs, options.output, options.bundle_encoder, options.onnx)
    print(f"Model: {options.output}")
