"""A system of one's own: two streams of features, a loss and hooks of its own.

What emotion_model.py says that a system may have, end to end.
"""

import json
import sys

import pandas as pd
import pytest
import torch
from readings import copy_yaml, find_yaml
from recipe_runs import load_script, read_json

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.export import main as call_export
from speechbrain_wap.inference import EmotionRecognizer

TOY = '''
"""Mean-pooled frames of two streams; tells emotions and speakers apart."""

import torch
from speechbrain.lobes.features import Fbank
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.packing import valid_frames

SEEN = []  # what the script showed


class Bands(nn.Module):
    """Fewer mel bands, twice as often."""

    def __init__(self, n_mels):
        super().__init__()
        self.output_size = n_mels
        self.fbank = Fbank(n_mels=n_mels, hop_length=10)

    def forward(self, wavs, lens):
        return self.fbank(wavs)


class Toy(nn.Module):
    def __init__(self, low_size, high_size, own_cross_entropy):
        super().__init__()
        self.own_cross_entropy = own_cross_entropy
        self.streams = nn.ModuleDict(
            {"low": nn.Linear(low_size, 6), "high": nn.Linear(high_size, 6)}
        )
        self.speakers = nn.Linear(12, 9)
        self.register_buffer("visits", torch.zeros(2))

    def get_extra_state(self):
        return {"name": "toy"}  # as LocalAttributes has

    def set_extra_state(self, state):
        assert state == {"name": "toy"}

    def set_classes(self, num_classes):
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, feats, lens, mask=None):
        assert list(feats) == list(lens) == list(mask) == ["low", "high"]
        pooled = []
        for name, layer in self.streams.items():
            num_frames, chosen = valid_frames(lens[name], feats[name].shape[1])
            if self.training:
                assert torch.equal(chosen & mask[name], mask[name])
                SEEN.append((name, num_frames, mask[name].sum(dim=1)))
                chosen = chosen & ~mask[name]
            else:
                assert mask[name] is None
            total = layer(feats[name].float()) * chosen[:, :, None]
            pooled.append(total.sum(dim=1) / chosen.sum(dim=1, keepdim=True))
        self.embedding = torch.cat(pooled, dim=1)
        return self.classifier(self.embedding)

    def losses(self, logits, batch):
        stage = "train" if self.training else "evaluate"
        SEEN.append((stage, batch.id, batch.speaker.tolist()))
        known = batch.speaker >= 0
        scores = self.speakers(self.embedding[: len(logits)])[known]
        loss = F.cross_entropy(scores, batch.speaker[known], reduction="sum")
        losses = {"speaker_loss": loss / max(1, len(scores))}
        if self.own_cross_entropy:
            losses["cross_entropy"] = 7.0 + 0.0 * logits.sum()
        return losses

    def look(self, hook, batches):
        assert len(batches[0].feats_low.data) == 1
        ids = [batch.id[0] for batch in batches]
        self.visits["before_fit after_fit".split().index(hook)] += 1
        SEEN.append((hook, ids, self.speakers.weight.clone()))

    def before_fit(self, batches):
        self.look("before_fit", list(batches))

    def after_fit(self, batches):
        self.look("after_fit", list(batches))
'''
MODEL = """model: !apply:speechbrain_wap.emotion_model.build_model
    system: !ref <system[model]>
    input_size: !ref <encoder_dim>
    num_encoder_layers: !ref <num_encoder_layers>
"""
OTHER_MODEL = """other_encoder: !new:toy_system.Bands
    n_mels: 20
other_cache: !new:speechbrain_wap.features.FeatureCache
    cache_folder: !ref <cache_folder>
    encoder: !ref <other_encoder>
feature_caches:
    low: !ref <feature_cache>
    high: !ref <other_cache>
own_cross_entropy: False
model: !new:toy_system.Toy
    low_size: !ref <encoder_dim>
    high_size: 20
    own_cross_entropy: !ref <own_cross_entropy>
"""
# What the toy calls training, and validation or test
STAGES = ("train", "evaluate")


@pytest.fixture
def run_toy(workplace, make_corpus, monkeypatch):
    """Trains the system on a tiny corpus; returns the run's folder."""
    monkeypatch.delitem(sys.modules, "toy_system", raising=False)
    (workplace / "toy_system.py").write_text(TOY)
    system = "system: !include:models/wap_sap.yaml\n    max_frames: !ref"
    yaml = copy_yaml(
        workplace,
        "classifier",
        (f"{system} <max_frames>\n", ""),
        (MODEL, OTHER_MODEL),
    )
    (workplace / "corpus").mkdir()
    table = make_corpus(workplace / "corpus", num_sessions=4)

    def run(*options):
        load_script("train_classifier.py").main(
            [str(yaml), f"--corpus_csv={table}", "--encoder_source=fbank"]
            + ["--fold=2", "--batch_size=4", "--number_of_epochs=2"]
            + ["--feature_workers=0", "--lr=0.1", "--augment_mask_ratio=0.3"]
            + ["--output_folder=out", "--noprogressbar", *options]
        )
        return workplace / "out"

    return run


@pytest.fixture
def untried(monkeypatch):
    """Leaves out the step on noise, which the system would remember."""
    script = load_script("train_classifier.py")
    monkeypatch.setattr(script, "try_out", lambda *args: None)


def test_a_system_is_tried_on_noise_of_its_streams(run_toy):
    run_toy("--number_of_epochs=1")
    hooks = [x for x in sys.modules["toy_system"].SEEN if "_fit" in x[0]]
    assert [hook for hook, *_ in hooks] == [*2 * ["before_fit"], "after_fit"]
    assert hooks[0][1] == [f"trial {number}" for number in range(3)]
    assert hooks[1][1][0].startswith("s")


@pytest.mark.usefixtures("untried")
def test_a_system_gets_its_streams_speakers_hooks_and_losses(run_toy):
    folder = run_toy("--label_fraction=0.5", "--augmentation=all")
    seen = sys.modules["toy_system"].SEEN
    rows = read_json(folder / "history.json")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        for split in (row["train"], row["valid"]):
            named = split["cross_entropy"] + split["speaker_loss"]
            assert split["loss"] == pytest.approx(named, rel=1e-5)
        assert row["train"]["speaker_loss"] > 0
        assert row["valid"]["speaker_loss"] == 0  # of nobody who trains
        assert "UA" in row["valid"]

    train = read_json(folder / "train.json")
    speakers = sorted({entry["speaker"] for entry in train.values()})
    assert len(speakers) == 6 and "s2f" not in speakers
    shown = {stage: [x[1:] for x in seen if x[0] == stage] for stage in STAGES}
    for ids, numbers in shown["train"]:
        assert [speakers[n] for n in numbers] == [key[:3] for key in ids]
    for ids, numbers in shown["evaluate"]:
        assert {key[:3] for key in ids} <= {"s2f", "s2m"}
        assert set(numbers) == {-1}
    # with half of the labels, an epoch is as long, and hooks see all speech
    trained = [key[:4] for ids, _ in shown["train"] for key in ids]
    assert len(trained) == 2 * len(train) == 2 * 18
    assert len(set(trained)) == 9
    hooks = {x[0]: x[1:] for x in seen if x[0].endswith("_fit")}
    assert len(hooks) == len([x for x in seen if x[0].endswith("_fit")]) == 2
    for ids, _ in hooks.values():
        assert ids == list(train)
    # what only the system's own loss sees has learned
    assert not torch.equal(hooks["before_fit"][1], hooks["after_fit"][1])
    # of each stream, the share of its own frames is masked
    for name, num_frames in (("low", 6), ("high", 11)):
        counts = [x[1:] for x in seen if x[0] == name]
        assert all(set(frames.tolist()) == {num_frames} for frames, _ in counts)
        masked = {n for _, numbers in counts for n in numbers.tolist()}
        assert masked == {round(0.3 * num_frames)}


@pytest.mark.usefixtures("untried")
def test_a_run_goes_on_and_a_loss_called_cross_entropy_takes_its_place(run_toy):
    run_toy("--number_of_epochs=1", "--own_cross_entropy=True")
    folder = run_toy("--number_of_epochs=2", "--own_cross_entropy=True")
    hooks = [x[0] for x in sys.modules["toy_system"].SEEN]
    assert hooks.count("before_fit") == 1 and hooks.count("after_fit") == 2
    rows = read_json(folder / "history.json")
    assert [row["epoch"] for row in rows] == [1, 2]
    for split in (rows[-1]["train"], rows[-1]["valid"]):
        assert split["cross_entropy"] == 7.0
        named = 7.0 + split["speaker_loss"]
        assert split["loss"] == pytest.approx(named, rel=1e-5)
    # both streams are what the run depends on
    settings = read_json(folder / "save" / "settings.json")["settings"]
    assert list(json.loads(settings["encoder_key"])) == ["low", "high"]


def test_a_system_of_several_streams_is_exported_with_its_module(
    run_toy, workplace, monkeypatch
):
    run = run_toy("--number_of_epochs=1")
    call_export([f"--run_folder={run}", "--output=model"])
    with pytest.raises(RecipeError, match="--onnx: .* several streams"):
        call_export([f"--run_folder={run}", "--output=other", "--onnx"])
    (workplace / "toy_system.py").unlink()
    monkeypatch.delitem(sys.modules, "toy_system")
    recognizer = EmotionRecognizer.from_hparams("model")
    table = pd.read_csv(run / "predictions.csv")
    wavs = [e["wav"] for e in read_json(run / "test.json").values()]
    found = torch.cat([recognizer.classify_file(wav)[0] for wav in wavs])
    expected = table[recognizer.classes].to_numpy()
    assert abs(found.numpy() - expected).max() < 1e-5


def test_an_adapter_is_refused_where_nothing_could_start_from_it(run_toy):
    with pytest.raises(RecipeError, match="A cannot start the system Toy"):
        run_toy("--adapter_folder=A")


SYSTEMS = {
    "co_attention": """--lstm_size=2 --segment_frames=32 --embedding_size=8
        --cnn_channels=[2,2,2,2,2]""",
    "lpmn": "--selection=0.6",  # LPMN-1024-s60
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_trains_and_recognises_by_its_name_alone(
    workplace, make_corpus, system
):
    (workplace / "corpus").mkdir()
    table = make_corpus(workplace / "corpus", num_sessions=3)
    load_script("train_classifier.py").main(
        [find_yaml("classifier"), f"--corpus_csv={table}", "--fold=2"]
        + [f"--system={system}", "--encoder_source=fbank", "--batch_size=4"]
        + ["--number_of_epochs=2", "--feature_workers=0", "--noprogressbar"]
        + ["--output_folder=out", *SYSTEMS[system].split()]
    )
    call_export(["--run_folder=out", "--output=model"])
    recognizer = EmotionRecognizer.from_hparams("model")
    rows = pd.read_csv("out/predictions.csv")
    wavs = [e["wav"] for e in read_json(workplace / "out/test.json").values()]
    found = torch.cat([recognizer.classify_file(wav)[0] for wav in wavs])
    expected = rows[recognizer.classes].to_numpy()
    assert abs(found.numpy() - expected).max() < 1e-5
