"""W2v2-PT against its formula in numpy; whom its normalisation hears."""

import numpy as np
import pytest
import torch
from helpers import assert_near, make_utterances, pad_batch, randomise_
from readings import find_yaml
from recipe_runs import load_script, read_json
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_wap.baselines.w2v2_pt import W2v2PT
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.export import main as call_export
from speechbrain_wap.training.checkpoints import Checkpointer

DIM, LAYERS, CLASSES = 3, 2, 4
LENGTHS, SPEAKERS = [5, 9, 1, 6], ["a", "b", "b", "a"]


@pytest.mark.parametrize("normalization", ["corpus", "speaker"])
def test_logits_are_those_of_the_formula(normalization):
    utterances = make_utterances(LENGTHS, LAYERS, DIM)
    utterances = [3.0 * n + (n + 1) * x for n, x in enumerate(utterances)]
    model = W2v2PT(DIM, LAYERS, d_model=5, normalization=normalization)
    model.set_classes(CLASSES)
    model.before_fit(
        PaddedBatch([{"feats": x, "speaker_name": speaker}])
        for x, speaker in zip(utterances, SPEAKERS)
    )
    model = randomise_(model).eval()
    told = [SPEAKERS] * (normalization == "speaker")
    logits = model(*pad_batch(utterances, float("nan")), None, *told)

    weights = {k: v.detach().numpy() for k, v in model.named_parameters()}
    shares = np.exp(weights["encoder_layer_weights"])
    shares /= shares.sum()
    for row, x, speaker in zip(logits, utterances, SPEAKERS):
        alike = [normalization == "corpus" or s == speaker for s in SPEAKERS]
        frames = [u.numpy() for u, same in zip(utterances, alike) if same]
        frames = np.concatenate(frames).astype("float64")
        x = (x.numpy() - frames.mean(axis=0)) / frames.std(axis=0)
        x = sum(share * x[:, n] for n, share in enumerate(shares))
        for n in (0, 3):
            x = (
                x @ weights[f"layers.{n}.weight"].T
                + weights[f"layers.{n}.bias"]
            )
            x = np.maximum(x, 0.0)
        expected = weights["classifier.w.weight"] @ x.mean(axis=0)
        assert_near(row, expected + weights["classifier.w.bias"])


@pytest.fixture
def train(workplace, make_corpus):
    """Trains a fold on a tiny corpus; returns the run's folder."""
    (workplace / "corpus").mkdir()
    table = make_corpus(workplace / "corpus", num_sessions=3)

    def run(*options):
        load_script("train_classifier.py").main(
            [find_yaml("classifier"), f"--corpus_csv={table}", "--fold=2"]
            + ["--system=w2v2_pt", "--encoder_source=fbank", "--batch_size=4"]
            + ["--feature_workers=0", "--number_of_epochs=1"]
            + ["--output_folder=out", "--noprogressbar", *options]
        )
        return workplace / "out"

    return run


def load_model(folder):
    """Loads what a run's checkpoint has of the model."""
    checkpoint = Checkpointer(folder / "save").find_checkpoint()
    return torch.load(checkpoint.paramfiles["model"], weights_only=True)


@pytest.fixture
def seen(monkeypatch):
    """The datasets of a run, once it is over."""
    script = load_script("train_classifier.py")
    seen, make = {}, script.dataio_prep

    def watch(*args):
        datasets, plan = make(*args)
        seen.update(datasets)
        return datasets, plan

    monkeypatch.setattr(script, "dataio_prep", watch)
    return seen


def test_only_normalised_by_speaker_it_hears_the_test_speakers(train, seen):
    folder = train("--normalization=speaker")
    train_ids = {item["id"] for item in seen["train"]}
    heard = list(seen["measured"])
    assert {item["target"] for item in heard} == {-1}
    test_ids = {item["id"] for item in seen["test"]}
    assert {item["id"] for item in heard} == train_ids | test_ids
    assert not train_ids & test_ids
    statistics = load_model(folder)["_extra_state"]
    assert set(statistics) == {
        f"s{n}{gender}" for n in (1, 2, 3) for gender in "fm"
    }
    frames = [x["feats"].double() for x in heard if x["id"].startswith("s2f")]
    assert_near(statistics["s2f"][0], torch.cat(frames).mean(dim=0))
    assert (
        "hears the held-out"
        in read_json(folder / "scores.json")["transductive"]
    )
    with pytest.raises(RecipeError, match="W2v2PT in .* hears the held-out"):
        call_export([f"--run_folder={folder}", "--output=model"])


def test_normalised_by_corpus_it_hears_the_training_speakers_only(train, seen):
    folder = train()
    state = load_model(folder)
    assert state["_extra_state"] == {}
    frames = torch.cat([item["feats"].double() for item in seen["train"]])
    assert_near(state["input_mean"], frames.mean(dim=0))
    assert read_json(folder / "scores.json")["transductive"] is None
    call_export([f"--run_folder={folder}", "--output=model"])
