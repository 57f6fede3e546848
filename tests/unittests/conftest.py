"""What the unit tests share: tiny audio files, checkpoints and corpora."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from encoder_cases import KINDS, NUM_LAYERS, WEIGHT_FREE, Blocks
from speechbrain.dataio import audio_io

from speechbrain_wap.baselines.linear import MeanPoolingClassifier
from speechbrain_wap.data import audio_index
from speechbrain_wap.data.folds import SPLITS, FoldPlan
from speechbrain_wap.data.further_corpora import parse_corpora
from speechbrain_wap.data.manifests import read_manifests
from speechbrain_wap.data.preparation import (
    prepare_adapter_data,
    prepare_classifier_data,
)
from speechbrain_wap.training.checkpoints import Checkpointer

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(__file__).resolve().parents[3] / "shared"
COLUMNS = ["id", "wav", "speaker", "session", "emo"]  # of an own corpus

# The tensors here are too small to be worth a second thread.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository():
    """The project's folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared():
    """Finds real data beside the project, or skips the test."""

    def find(*parts):
        path = SHARED.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"{path} is absent: real data are not part of this")
        return path

    return find


@pytest.fixture(scope="session")
def import_script():
    """Imports a file of the recipes, which are no package."""

    def load(path):
        path = REPOSITORY / path
        # under another name than the scripts use among themselves
        name = "tested_" + "_".join(path.relative_to(REPOSITORY).parts)[:-3]
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return load


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working folder, in which the recipe's own modules are found."""
    recipe = REPOSITORY / "recipes" / "IEMOCAP" / "wap_adapter"
    monkeypatch.setattr(sys, "path", [*sys.path, str(recipe)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def signal():
    """Makes a tone in noise, like no other seed's; shape [samples]."""

    def make(seconds, sample_rate=16000, seed=0):
        generator = torch.Generator().manual_seed(seed)
        times = torch.arange(round(seconds * sample_rate)) / sample_rate
        noise = torch.rand(len(times), generator=generator) - 0.5
        return 0.3 * torch.sin(2 * torch.pi * 440 * times) + 0.2 * noise

    return make


@pytest.fixture(scope="session")
def make_wav(signal):
    """Writes a tiny audio file."""

    def make(path, seconds=0.1, sample_rate=16000, seed=0):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = signal(seconds, sample_rate, seed)
        audio_io.save(path, samples[None], sample_rate)
        return path

    return make


@pytest.fixture
def make_corpus(make_wav):
    """Writes an own corpus: a table, and a wav of 0.1 s per utterance.

    Each of its sessions s1, s2, ... has a woman and a man, who say each label
    once; the last label is empty.
    """

    def make(folder, num_sessions=5, labels=("joy", "rage", "calm", "")):
        rows = []
        for session in range(1, num_sessions + 1):
            for gender in "fm":
                for number, label in enumerate(labels):
                    speaker = f"s{session}{gender}"
                    key = f"{speaker}{number}"
                    make_wav(folder / "wav" / f"{key}.wav", seed=len(rows))
                    row = [key, f"wav/{key}.wav", speaker, f"s{session}", label]
                    rows.append(row)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(
            folder / "own.csv", index=False
        )
        return folder / "own.csv"

    return make


@pytest.fixture(scope="session")
def sources(make_checkpoint, tmp_path_factory):
    """The source of an encoder of each kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: name for name in WEIGHT_FREE} | {
        name: make_checkpoint(folder / name, num_layers=NUM_LAYERS, **kind)
        for name, kind in KINDS.items()
    }


@pytest.fixture
def make_cache(tmp_path):
    """Makes a cache that encodes in this process unless told otherwise."""

    from speechbrain_wap.features import FeatureCache

    def make(encoder=None, precision="float16", num_workers=0, device="cpu"):
        folder, encoder = tmp_path / "cache", encoder or Blocks()
        return FeatureCache(folder, encoder, precision, device, num_workers)

    return make


RUN = """
data_folder: /data/tones
encoder: &encoder !new:speechbrain_wap.encoders.SpeechEncoder
    source: fbank
feature_cache: !new:speechbrain_wap.features.FeatureCache
    cache_folder: /nowhere
    encoder: *encoder
model: !apply:speechbrain_wap.emotion_model.build_model
    system: !name:speechbrain_wap.baselines.linear.MeanPoolingClassifier
    input_size: 80
    num_encoder_layers: 1
"""


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """Makes a model folder that tells high tones from low ones.

    It is exported of a run that looks like a finished one.
    """
    from speechbrain_wap.encoders import SpeechEncoder
    from speechbrain_wap.evaluation.trained_run import TrainedRun
    from speechbrain_wap.export import export
    from speechbrain_wap.features import FeatureCache

    def make(classes=("low", "high"), **settings):
        folder = tmp_path_factory.mktemp("model")
        run = folder / "run"
        model = MeanPoolingClassifier(80)
        model.set_classes(2)
        with torch.no_grad():
            weight = torch.ones(80) / 80
            weight[40:] *= -1
            model.classifier.w.weight.copy_(torch.stack([weight, -weight]))
            model.classifier.w.bias.zero_()
        checkpointer = Checkpointer(run / "save", {"model": model})
        checkpointer.save_checkpoint(meta={"epoch": 1, "UA": 0.5})
        (run / "hyperparams.yaml").write_text(RUN)
        scores = dict.fromkeys(("UA", "WA", "F1"), 0.5)
        scores |= {"fold": 1, "session": "s1", "n": 2, "number_of_epochs": 1}
        scores["classes"] = list(classes)
        (run / "scores.json").write_text(json.dumps(scores))
        settings = {
            "encoder_key": FeatureCache("", SpeechEncoder("fbank")).key,
            "max_frames": 500,
            "long_utterances": "error",
            **settings,
        }
        path = run / "save" / "settings.json"
        path.write_text(json.dumps({"settings": settings}))
        export([TrainedRun(run)], folder / "model")
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def model(make_model):
    """A model folder that tells high tones from low ones."""
    return make_model()


@pytest.fixture(scope="session")
def write_sound():
    """Writes silence, low and high tones: [("low", seconds), ...]."""

    def write(path, *parts, rate=16000, channels=1, **kwargs):
        samples = []
        for kind, seconds in parts:
            times = np.arange(round(seconds * rate)) / rate
            hertz = {"low": 200, "high": 3500}.get(kind, 0)
            samples.append(0.3 * np.sin(2 * np.pi * hertz * times))
        samples = np.tile(np.concatenate(samples), (channels, 1)).T
        noise = np.random.default_rng(0).normal(size=samples.shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples + 1e-4 * noise, rate, **kwargs)
        return str(path)

    return write


@pytest.fixture
def start():
    """Starts processes, and sees to it that none outlives the test."""
    processes = []
    fork = multiprocessing.get_context("fork")

    def start(target, *args):
        processes.append(fork.Process(target=target, args=args))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def decoded(monkeypatch):
    """Lists the files that are decoded."""
    files = []
    inspect_segments = audio_index.inspect_segments

    def inspect(path, segments):
        files.append(os.path.basename(path))
        return inspect_segments(path, segments)

    monkeypatch.setattr(audio_index, "inspect_segments", inspect)
    return files


@pytest.fixture
def write_csv(tmp_path):
    """Writes a table of a user's own corpus."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "own.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


@pytest.fixture
def own_csv(make_corpus, tmp_path):
    """5 sessions, 2 speakers each, with the labels joy, rage, calm, none."""
    return make_corpus(tmp_path / "corpus")


@pytest.fixture
def corpus(own_csv, tmp_path):
    """Arguments of prepare_table."""

    def refuse(*args, **kwargs):
        raise AssertionError("an own corpus is not prepared by the recipe")

    return {
        "prepare_corpus": refuse,
        "data_folder": "",
        "corpus_csv": str(own_csv),
        "corpus_table": str(tmp_path / "out" / "corpus.csv"),
        "max_skipped": 0.0,
        "cache_folder": str(tmp_path / "cache"),
    }


@pytest.fixture
def manifests(tmp_path):
    """Where the manifests of a fold are written."""
    return {name: str(tmp_path / "out" / f"{name}.json") for name in SPLITS}


@pytest.fixture
def write_table(make_wav, tmp_path):
    """Writes a further table of (id, speaker[, audio]) rows.

    The audio is another file for each row, unless one is named.
    """
    seeds = count(1000)

    def write(name, *rows):
        folder = tmp_path / f"further {name}"
        table = []
        for key, speaker, *audio in rows:
            wav = make_wav(folder / f"{key}.wav", seed=next(seeds))
            if audio:
                shutil.copyfile(audio[0], wav)
            table.append([key, wav.name, speaker, "one", ""])
        path = folder / f"{name}.csv"
        pd.DataFrame(table, columns=COLUMNS).to_csv(path, index=False)
        return str(path)

    return write


@pytest.fixture
def left_out_csv(tmp_path):
    """Lists what of further tables is left out."""
    return tmp_path / "out" / "left_out.csv"


@pytest.fixture
def prepare_adapter(corpus, manifests, left_out_csv):
    """Prepares stage 1 and reads the splits back."""

    def prepare(
        fold=1, protocol="paper", adapter_data="train", corpora=None, **changed
    ):
        prepare_adapter_data(
            {**corpus, **changed},
            FoldPlan(fold, protocol),
            adapter_data,
            manifests,
            parse_corpora(corpora),
            left_out_csv,
        )
        return read_manifests(manifests, protocol=protocol)

    return prepare


@pytest.fixture
def prepare_classifier(corpus, manifests):
    """Prepares stage 2 and reads the splits back."""

    def prepare(fold=1, protocol="paper", classes=None, explicit=True):
        prepare_classifier_data(
            corpus,
            FoldPlan(fold, protocol),
            # "calm" and "" are no class
            classes or {"happy": ["joy"], "angry": ["rage"]},
            explicit,
            "improvised",
            manifests,
        )
        return read_manifests(manifests, protocol=protocol)

    return prepare
