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
import os
import re
import shutil
import sysconfig
from copy import deepcopy
from pathlib import Path

import torch
from ruamel.yaml.comments import CommentedMap, Tag
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

import speechbrain_wap
from speechbrain_wap.data.datasets import feats_key
from speechbrain_wap.emotion_model import AveragedModels
from speechbrain_wap.encoders.checkpoints import CHECKPOINT_FILES
from speechbrain_wap.encoders.fbank import WeightFreeFrontEnd
from speechbrain_wap.encoders.speech_encoder import digest_encoder
from speechbrain_wap.errors import (
    CommandParser,
    RecipeError,
    first_line,
    report_path_errors,
)
from speechbrain_wap.evaluation.trained_run import (
    TrainedRun,
    build,
    read_yaml,
    write_yaml,
)
from speechbrain_wap.files import digest_file, expand_path, write_text
from speechbrain_wap.model_card import write_model_card
from speechbrain_wap.onnx_export import check_onnx, export_onnx
from speechbrain_wap.training.adapter_folder import (
    RECORD,
    find_finished,
    identify_adapter,
    read_adapter_record,
)
from speechbrain_wap.training.hparams_file import make_wired, refer_to

logger = get_logger(__name__)

# What models that are averaged must agree on, beside classes and encoder
SHARED = ("system", "max_frames", "long_utterances", "eval_precision")
INTERFACE = '''"""The model, for SpeechBrain's foreign_class."""

from speechbrain_wap.inference import EmotionRecognizer


class CustomInterface(EmotionRecognizer):
    """Recognises emotions; see EmotionRecognizer."""
'''


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
        check_onnx(first)
    bundled = _find_checkpoints(first) if bundle_encoder else {}
    models, nodes = [run.build_model() for run in runs], []
    num_classes = len(first.scores["classes"])
    for run in runs:
        node = deepcopy(run.model)
        if node.tag.value == "!apply:speechbrain_wap.emotion_model.build_model":
            node["num_classes"] = num_classes
        else:
            name = "!apply:speechbrain_wap.emotion_model.add_classes"
            given = {"model": node, "num_classes": num_classes}
            node = make_wired(name, given)
        nodes.append(node)
    (model, *others), (node, *_) = models, nodes
    if others:
        model = AveragedModels(models)
        name = "!new:speechbrain_wap.emotion_model.AveragedModels"
        node = make_wired(name, {"models": nodes})
    _check_rebuilt(node, model, first)
    with report_path_errors():
        _clear(output)
        # first, by which an unfinished folder is known to be a model's
        write_text(output / "custom_interface.py", INTERFACE)
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
        (output / target).mkdir(exist_ok=True)
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
    tree["label_encoder"] = make_wired(name, {})
    modules = [name for name in wired if name != "targets"]
    tree["modules"] = {name: refer_to(name) for name in modules}
    loaded = [*modules, "label_encoder"]
    hooks = {
        name: make_wired(
            "!name:speechbrain_wap.inference.load_checked",
            {"digest": Quoted(digest_file(output / f"{name}.ckpt"))},
        )
        for name in loaded
    }
    loadables = {name: refer_to(name) for name in loaded}
    tree["pretrainer"] = make_wired(
        "!new:speechbrain.utils.parameter_transfer.Pretrainer",
        {"loadables": loadables, "custom_hooks": hooks},
    )
    return (
        "# A model that recognises emotions: see README.md. Exported by\n"
        f"# speechbrain_wap {speechbrain_wap.__version__}.\n\n"
        f"{write_yaml(tree)}"
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
