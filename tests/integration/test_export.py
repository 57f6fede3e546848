"""A trained fold as a model folder: what it says is what training said."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from recipe_runs import RECIPES, call, load_script, read_json
from speechbrain.inference.interfaces import foreign_class
from torch.nn.utils.rnn import pad_sequence

from speechbrain_wap import recognize
from speechbrain_wap.data.audio import read_audio
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.trained_run import TrainedRun
from speechbrain_wap.inference import EmotionRecognizer
from speechbrain_wap.onnx_export import LARGEST_ERROR, export_onnx

CLASSIFIER = ["train_classifier.py", "classifier"]
SYSTEM_KEYS = ("--d_model", "--nhead", "--d_ffn")
# One module: an encoder, and a system that keeps prototypes
OWN_MODULE = """
import torch


class Blocks(torch.nn.Module):
    def forward(self, wavs, lens):
        return wavs.unfold(1, 80, 400)


class Nearest(torch.nn.Module):
    def __init__(self, input_size, num_encoder_layers=1):
        super().__init__()
        self.frames = torch.nn.Linear(input_size, 8)

    def set_classes(self, num_classes):
        self.register_buffer("prototypes", torch.zeros(num_classes, 8))

    def pool(self, feats, lens=None, mask=None):
        valid = torch.arange(feats.shape[1]) < (
            (lens.cpu() * feats.shape[1]).round()[:, None]
        )
        frames = self.frames(feats.float()) * valid[:, :, None]
        return frames.sum(dim=1) / valid.sum(dim=1)[:, None]

    def forward(self, feats, lens=None, mask=None):
        return -torch.cdist(self.pool(feats, lens), self.prototypes)

    @torch.no_grad()
    def after_fit(self, batches):
        sums = torch.zeros(len(self.prototypes), 9)
        for batch in batches:
            z = self.pool(batch.feats.data, batch.feats.lengths)
            sums[batch.target] += torch.cat([z, torch.ones(1, 1)], dim=1)
        self.prototypes.copy_(sums[:, :8] / sums[:, 8:])


class Forgetful(Nearest):
    def set_classes(self, num_classes):
        self.prototypes = torch.zeros(num_classes, 8)
"""


def export(run_folder, output, *options):
    """Exports a run within this process."""
    call("export", f"--run_folder={run_folder}", f"--output={output}", *options)
    return output


def predict(recognizer, run_folder, batched=False):
    """The largest difference from predictions.csv, over all utterances."""
    classes = read_json(run_folder, "scores.json")["classes"]
    assert recognizer.classes == classes
    table = pd.read_csv(run_folder / "predictions.csv").set_index("id")
    wavs = [e["wav"] for e in read_json(run_folder, "test.json").values()]
    assert len(wavs) == len(table) > 20
    if batched:
        signals = [read_audio(wav, recognizer.sample_rate) for wav in wavs]
        lens = torch.tensor([float(len(signal)) for signal in signals])
        padded = pad_sequence(signals, batch_first=True)
        found = recognizer.classify_batch(padded, lens / lens.max())
        labels, found = found[3], found[0]
    else:
        said = [recognizer.classify_file(wav) for wav in wavs]
        labels = [one[3][0] for one in said]
        found = torch.cat([one[0] for one in said])
    assert labels == table["prediction"].tolist()
    return np.abs(found.numpy() - table[classes].to_numpy()).max()


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """A cross-validation of two folds, with adapters."""
    folder = tmp_path_factory.mktemp("results")
    call(
        *("cross_validate.py", "adapter", "classifier", *tiny, "--folds=1,2"),
        *("--seeds=0", "--num_attributes=8", "--adapter.number_of_epochs=1"),
        *("--classifier.number_of_epochs=2", f"--output_folder={folder}"),
    )
    return folder


@pytest.fixture(scope="module")
def run_folder(results):
    """Its first classifier."""
    return results / "seed0" / "fold1" / "classifier"


@pytest.fixture(scope="module")
def model(run_folder, tmp_path_factory):
    """What is exported of it, moved to a path with a space."""
    output = export(run_folder, tmp_path_factory.mktemp("model") / "first")
    return output.rename(output.with_name("moved model"))


@pytest.fixture(scope="module")
def recognizer(model):
    """The exported model, loaded."""
    return EmotionRecognizer.from_hparams(model)


@pytest.fixture
def no_hub(monkeypatch):
    """Sees to it that nothing is looked for elsewhere."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_model_says_what_predictions_csv_says(recognizer, run_folder):
    assert predict(recognizer, run_folder) < 1e-5
    assert predict(recognizer, run_folder, batched=True) < 1e-5


def test_a_model_stays_in_eval_mode_and_has_no_gradient(recognizer, run_folder):
    recognizer.train(), recognizer.mods.train()
    recognizer.mods.model.requires_grad_(True)
    assert predict(recognizer, run_folder) < 1e-5
    wavs = torch.rand(1, 16000, requires_grad=True)
    assert not recognizer(wavs)[0].requires_grad
    embeddings = recognizer.encode_batch(wavs)
    assert not any(x.requires_grad for x in embeddings)
    assert not any(module.training for module in recognizer.modules())


def test_a_model_works_in_another_place_without_the_recipe(
    model, run_folder, tmp_path
):
    entry = next(iter(read_json(run_folder, "test.json").values()))
    code = (
        "import sys, torch\n"
        "from speechbrain.inference.interfaces import foreign_class\n"
        "from speechbrain_wap.inference import EmotionRecognizer\n"
        "model, wav = sys.argv[1:]\n"
        "for recognizer in (EmotionRecognizer.from_hparams(model),\n"
        "    foreign_class(model, pymodule_file='custom_interface.py',\n"
        "                  classname='CustomInterface')):\n"
        "    print(*recognizer.classify_file(wav)[0][0].tolist())\n"
    )
    shutil.copytree(model, tmp_path / "a b")
    done = subprocess.run(
        [sys.executable, "-c", code, "a b", entry["wav"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(run_folder / "predictions.csv")
    for line in done.stdout.strip().splitlines()[-2:]:
        said = np.array(line.split(), dtype=float)
        assert np.abs(said - table.iloc[0, 5:].astype(float)).max() < 1e-5


def test_a_model_is_collected_elsewhere_by_speechbrain(
    model, run_folder, tmp_path
):
    recognizer = foreign_class(
        str(model),
        pymodule_file="custom_interface.py",
        classname="CustomInterface",
        savedir=str(tmp_path / "saved"),
    )
    assert isinstance(recognizer, EmotionRecognizer)
    assert predict(recognizer, run_folder, batched=True) < 1e-5


def test_embeddings_have_frames_an_utterance_and_codes(recognizer):
    wavs = pad_sequence([torch.rand(16000), torch.rand(8000)], batch_first=True)
    frames, lens, utterances, codes = recognizer.encode_batch(
        wavs, torch.tensor([1.0, 0.5])
    )
    num_frames = round(float(lens[1]) * 51)
    assert frames.shape == (2, 51, 16) and utterances.shape == (2, 128)
    assert codes.shape == (2, 51) and num_frames == 26
    assert (codes[0] >= 0).all() and (codes < 8).all()
    assert (codes[1] == -1).tolist() == [n >= num_frames for n in range(51)]
    alone = recognizer.encode_batch(wavs[1:, :8000])
    torch.testing.assert_close(alone.frames[0], frames[1, :num_frames])
    torch.testing.assert_close(alone.utterances[0], utterances[1])
    assert alone.codes[0].tolist() == codes[1, :num_frames].tolist()


def test_bf16_and_other_samples_are_taken(model, run_folder):
    half = EmotionRecognizer.from_hparams(
        model, run_opts={"device": "cpu", "precision": "bf16"}
    )
    entry = next(iter(read_json(run_folder, "test.json").values()))
    probabilities = half.classify_file(entry["wav"])[0][0]
    table = pd.read_csv(run_folder / "predictions.csv")
    expected = table.iloc[0, 5:].astype(float)
    assert np.abs(probabilities.numpy() - expected).max() < 0.05
    frames = half.encode_batch(torch.rand(16000))  # no batch
    assert frames.codes.shape == (1, 51)


def test_all_folds_give_the_mean_of_their_probabilities(
    results, run_folder, recognizer, tmp_path
):
    options = [f"--results_folder={results}", "--all_folds", "--seed=0"]
    call("export", *options, f"--output={tmp_path / 'all'}")
    both = EmotionRecognizer.from_hparams(tmp_path / "all")
    other = results / "seed0" / "fold2" / "classifier"
    second = EmotionRecognizer.from_hparams(export(other, tmp_path / "two"))
    for entry in list(read_json(run_folder, "test.json").values())[:3]:
        one, two, mean = (
            m.classify_file(entry["wav"])[0] for m in (recognizer, second, both)
        )
        torch.testing.assert_close(mean, (one + two) / 2)
    assert both.encode_batch(torch.rand(1, 8000)).codes is None
    card = (tmp_path / "all" / "README.md").read_text("utf-8")
    assert "average of 2 models" in card and "there is no" in card

    shutil.copytree(results, tmp_path / "half")
    scores = tmp_path / "half" / "seed0" / "fold2" / "classifier/scores.json"
    scores.unlink()
    options[0] = f"--results_folder={tmp_path / 'half'}"
    with pytest.raises(RecipeError, match="fold2.* is no finished run"):
        call("export", *options, f"--output={tmp_path / 'none'}")
    with pytest.raises(RecipeError, match="holds no fold of seed 5"):
        call("export", *options[:2], "--seed=5", f"--output={tmp_path / 'x'}")


def test_a_moved_results_folder_is_exported_with_its_attributes(
    results, run_folder, tmp_path
):
    moved = tmp_path / "moved"
    shutil.copytree(results / "seed0" / "fold1", moved)
    record = read_json(moved, "adapter", "adapter.json")
    text = (moved / "classifier/hyperparams.yaml").read_text("utf-8")
    assert str(results) in text
    path = moved / "classifier/hyperparams.yaml"
    path.write_text(text.replace(str(results), "/nowhere"), "utf-8")
    output = export(moved / "classifier", tmp_path / "model")
    assert (output / "local_attributes.ckpt").is_file()
    # another adapter has taken its place: none is better than a wrong one
    record["number_of_epochs"] += 1
    (moved / "adapter/adapter.json").write_text(json.dumps(record))
    export(moved / "classifier", output)
    assert not (output / "local_attributes.ckpt").exists()
    recognizer = EmotionRecognizer.from_hparams(output)
    assert recognizer.encode_batch(torch.rand(1, 8000)).codes is None
    assert predict(recognizer, run_folder, batched=True) < 1e-5


def test_the_card_says_what_the_model_is_and_of_what_the_scores_are(
    model, run_folder
):
    scores = read_json(run_folder, "scores.json")
    card = (model / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: speechbrain\n")
    for text in (
        "# Speech emotion recognition: angry, happy, sad, neutral",
        "IEMOCAP räkning: session 1 did not train it",
        f"| {100 * scores['UA']:.1f} |",
        "(protocol: paper)",
        "## What it must not be used for",
        "wap_sap, started from an adapter",
        f"value: {round(scores['UA'], 4)}",
    ):
        assert text in card


def test_the_best_epoch_is_exported_where_it_was_tested(
    tiny, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    call(
        *(*CLASSIFIER, *tiny, "--model_selection=best", "--lr=0.01"),
        *("--number_of_epochs=3", f"--output_folder={run}"),
        "--eval_precision=bf16",
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    export("~/run", "~/m")
    recognizer = EmotionRecognizer.from_hparams("~/m")
    assert recognizer.precision == "bf16"
    assert predict(recognizer, run, batched=True) < 1e-5
    # it has been trained on, but not to the end
    scores = read_json(run, "scores.json")
    scores["number_of_epochs"] = 2
    (run / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(RecipeError, match="after epoch 2, but has been train"):
        export(run, tmp_path / "m")


def test_long_utterances_are_cut_as_in_training(tiny, tmp_path):
    run = tmp_path / "run"
    rest = [o for o in tiny if not o.startswith("--max_frames")]
    call(
        *(*CLASSIFIER, *rest, "--max_frames=40", "--long_utterances=cut"),
        *("--number_of_epochs=1", f"--output_folder={run}"),
    )
    recognizer = EmotionRecognizer.from_hparams(export(run, tmp_path / "m"))
    entries = read_json(run, "test.json").values()
    assert max(entry["duration"] for entry in entries) > 1.0
    assert predict(recognizer, run) < 1e-5
    assert predict(recognizer, run, batched=True) < 1e-5


@pytest.mark.parametrize("system", ["linear", "w2v2_pt", "spk_norm", "glrf"])
def test_another_system_is_exported(tiny, tmp_path, system):
    run = tmp_path / "run"
    rest = [o for o in tiny if not o.startswith(SYSTEM_KEYS)]
    call(
        *(*CLASSIFIER, *rest, f"--system={system}"),
        "--feature_precision=float32",
        *("--number_of_epochs=1", f"--output_folder={run}"),
    )
    recognizer = EmotionRecognizer.from_hparams(export(run, tmp_path / "m"))
    assert predict(recognizer, run) < 1e-5
    assert predict(recognizer, run, batched=True) < 1e-5
    embeddings = recognizer.encode_batch(torch.rand(1, 16000))
    assert embeddings.frames is None and embeddings.codes is None


def test_an_own_encoder_and_system_go_along(tiny, tmp_path, monkeypatch):
    recipe, run = tmp_path / "recipe", tmp_path / "run"
    shutil.copytree(RECIPES / "IEMOCAP" / "wap_adapter" / "hparams", recipe)
    (recipe / "own_parts.py").write_text(OWN_MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(recipe)])
    text, count = re.subn(
        "encoder: !new:.*SpeechEncoder\n(    .*\n)+",
        "encoder: !new:own_parts.Blocks\n",
        (recipe / "classifier.yaml").read_text("utf-8"),
    )
    assert count == 1
    (recipe / "own.yaml").write_text(text, "utf-8")
    load_script("iemocap_prepare.py")
    rest = [o for o in tiny if not o.startswith(SYSTEM_KEYS)]
    for name in ("Nearest", "Forgetful"):
        system = recipe / f"{name}.yaml"
        system.write_text(f"model: !name:own_parts.{name}\n")
        load_script("train_classifier.py").main(
            [str(recipe / "own.yaml"), *rest, f"--system={system}"]
            + ["--number_of_epochs=1", f"--output_folder={run / name}"]
        )
    output = export(run / "Nearest", tmp_path / "m")
    with pytest.raises(
        RecipeError, match="Forgetful cannot be made again of its state_dict"
    ):
        export(run / "Forgetful", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "own_parts")
    shutil.rmtree(recipe)
    recognizer = EmotionRecognizer.from_hparams(output)
    assert predict(recognizer, run / "Nearest", batched=True) < 1e-5
    assert recognizer.mods.model.prototypes.abs().sum() > 0


@pytest.fixture(scope="module")
def hubert_run(tiny, make_checkpoint, tmp_path_factory):
    """A run with a checkpoint as its encoder, and where that is."""
    folder = tmp_path_factory.mktemp("hubert")
    source = make_checkpoint(folder / "hubert", "hubert")
    (folder / "hubert" / "README.md").write_text("---\nlicense: mit\n---\n")
    rest = [o for o in tiny if not o.startswith(SYSTEM_KEYS)]
    call(
        *(*CLASSIFIER, *rest, f"--encoder_source={source}", "--system=linear"),
        *("--encoder_layer=weighted", "--number_of_epochs=1"),
        f"--output_folder={folder / 'run'}",
    )
    return folder / "run", folder / "hubert"


def test_the_encoder_is_in_the_folder_or_recognised(
    hubert_run, make_checkpoint, tmp_path, no_hub
):
    run, source = hubert_run
    kept = tmp_path / "kept"
    shutil.copytree(source, kept)
    bundled = export(run, tmp_path / "bundled", "--bundle_encoder")
    plain = export(run, tmp_path / "plain")
    card = (plain / "README.md").read_text("utf-8")
    assert "licence: mit" in card and "; not in this folder" in card
    assert predict(EmotionRecognizer.from_hparams(plain), run) < 1e-5
    try:
        make_checkpoint(source, "hubert", seed=1)
        with pytest.raises(
            RecipeError, match="the encoder .*hubert is another one than"
        ):
            EmotionRecognizer.from_hparams(plain)
        with pytest.raises(RecipeError, match="hubert is another one than the"):
            export(run, tmp_path / "third")
        shutil.rmtree(source)
        with pytest.raises(RecipeError, match="hubert is no folder, nor a hub"):
            EmotionRecognizer.from_hparams(plain)
        moved = bundled.rename(tmp_path / "bundled, moved")
        recognizer = EmotionRecognizer.from_hparams(moved)
        assert predict(recognizer, run) < 1e-5
        assert predict(recognizer, run, batched=True) < 1e-5
        assert "; in this folder" in (moved / "README.md").read_text("utf-8")
        for options in ({}, {"savedir": str(tmp_path / "saved")}):
            recognizer = foreign_class(
                str(moved),
                pymodule_file="custom_interface.py",
                classname="CustomInterface",
                **options,
            )
            assert predict(recognizer, run, batched=True) < 1e-5
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(kept, source)
    # exported again without it, nothing of it is left
    export(run, moved)
    assert not (moved / "encoder").exists()


def test_an_export_that_was_interrupted_is_made_again(
    hubert_run, tmp_path, monkeypatch
):
    def interrupt(source, target):
        raise KeyboardInterrupt

    run, _ = hubert_run
    with monkeypatch.context() as patch:
        patch.setattr("speechbrain_wap.export.shutil.copyfile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(run, tmp_path / "m", "--bundle_encoder")
    model = export(run, tmp_path / "m", "--bundle_encoder")
    assert predict(EmotionRecognizer.from_hparams(model), run) < 1e-5


def test_onnx_gives_the_same_logits_for_any_batch_and_length(
    results, run_folder, tmp_path, capfd
):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"--onnx needs {name}")
    onnxruntime = pytest.importorskip("onnxruntime")
    capfd.readouterr()
    output = export(run_folder, tmp_path / "m", "--onnx")
    said = capfd.readouterr()
    assert said.err == "" and said.out == f"Model: {output}\n"
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    model = EmotionRecognizer.from_hparams(output).mods.model
    source = torch.Generator().manual_seed(7)
    for size in ((1, 1), (1, 300), (2, 2), (7, 111), (16, 30)):
        feats = torch.randn(*size, 80, generator=source)
        lens = torch.rand(size[0], generator=source).clamp(min=0.05)
        given = {"feats": feats.numpy(), "lens": lens.numpy()}
        (logits,) = session.run(["logits"], given)
        with torch.no_grad():
            expected = model(feats, lens)
        assert (torch.from_numpy(logits) - expected).abs().max() < LARGEST_ERROR
    # none is left that is not of this model
    export(run_folder, output)
    assert not (output / "model.onnx").exists()

    class Branching(torch.nn.Module):
        def forward(self, feats, lens, mask=None):
            return feats.mean(1)[:, : 3 if feats.sum() > 0 else 4]

    capfd.readouterr()
    with pytest.raises(RecipeError, match="--onnx: Branching cannot be exp"):
        export_onnx(Branching(), TrainedRun(run_folder), tmp_path / "b.onnx")
    assert capfd.readouterr() == ("", "")


def test_what_is_no_finished_run_is_refused(run_folder, tmp_path):
    for options, says in (
        ([f"--run_folder={tmp_path}"], "no finished run .* no hyperparams"),
        ([], "give either --run_folder or --results_folder"),
        ([f"--run_folder={run_folder}", "--seed=1"], "go together"),
        ([f"--run_folder={run_folder}", "--what"], "unrecognized arg.*--help"),
    ):
        with pytest.raises(RecipeError, match=says):
            call("export", *options, f"--output={tmp_path / 'm'}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(RecipeError, match="holds something else than a model"):
        export(run_folder, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(RecipeError, match="is a file: give a folder"):
        export(run_folder, tmp_path / "mine" / "thesis.txt")
    model = export(run_folder, tmp_path / "m")
    before = {path: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(RecipeError, match="has no checkpoint to put in"):
        export(run_folder, model, "--bundle_encoder")
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    (copy / "hyperparams.yaml").write_text("a: [1\n")
    with pytest.raises(RecipeError, match="hyperparams.yaml is damaged"):
        export(copy, tmp_path / "m")
    (copy / "scores.json").unlink()
    with pytest.raises(RecipeError, match="is no finished run .* scores.json"):
        export(copy, tmp_path / "m")


# What a user may get wrong with a model --------------------------------------


def flip_byte(path):
    """Changes a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(name, old, new):
    """Another text in a file of the model folder."""

    def spoil(folder):
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), "utf-8")

    return spoil


YAML, WEIGHTS = "hyperparams.yaml", "model.ckpt"
MODELS = {
    "a folder that is no model": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "is no model folder, for it has no hyperparams.yaml",
    ),
    "no folder at all": (
        shutil.rmtree,
        "is no folder, and neither the hub nor its local cache gives it",
    ),
    "weights missing": (
        lambda folder: (folder / WEIGHTS).unlink(),
        "is no model folder, for it has no model.ckpt",
    ),
    "a byte of the weights flipped": (
        lambda folder: flip_byte(folder / WEIGHTS),
        "model.ckpt is damaged or another model's: export the model again",
    ),
    "attributes cut": (
        lambda folder: (folder / "local_attributes.ckpt").write_bytes(b""),
        "local_attributes.ckpt is damaged",
    ),
    "label encoder missing": (
        lambda folder: (folder / "label_encoder.ckpt").unlink(),
        "has no label_encoder.ckpt",
    ),
    "label encoder of another model": (
        swap("label_encoder.ckpt", "'sad'", "'glad'"),
        "label_encoder.ckpt is damaged or another model's",
    ),
    "YAML that is none": (
        lambda folder: (folder / YAML).write_text("model: [1"),
        "cannot be loaded .while parsing.* export the model again",
    ),
    "module that is not installed": (
        swap(YAML, "!name:speechbrain_wap.emotion_model", "!name:no_such"),
        "cannot be loaded .*no_such.*: install what it names",
    ),
    "another encoder than in training": (
        swap(YAML, 'float16\n    digest: "', 'float16\n    digest: "0'),
        "the encoder fbank is another one than the model in .* was trained",
    ),
    "encoder that does not exist": (
        swap(YAML, "source: fbank", "source: no/such"),
        "encoder_source=no/such is no folder, and neither the hub",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_none_is_refused(
    name, model, tmp_path, no_hub, record_fault
):
    fault, says = MODELS[name]
    folder = tmp_path / "spoilt"
    shutil.copytree(model, folder)
    fault(folder)
    with pytest.raises(RecipeError, match=says) as error:
        recognize.main([str(folder), "no-such-file.wav"])
    said = str(error.value)
    assert len(said.splitlines()) == 1
    record_fault("models", name, said, "nothing was recognised")
