"""What the unit tests share: tiny audio files, checkpoints and corpora."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from speechbrain.dataio import audio_io

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(__file__).resolve().parents[3] / "shared"

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


def make_signal(seconds, sample_rate=16000, seed=0):
    """A tone in noise, like no other seed's; shape [samples]."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(round(seconds * sample_rate)) / sample_rate
    noise = torch.rand(len(times), generator=generator) - 0.5
    return 0.3 * torch.sin(2 * torch.pi * 440 * times) + 0.2 * noise


@pytest.fixture(scope="session")
def signal():
    """Makes a tone in noise of a given length."""
    return make_signal


@pytest.fixture(scope="session")
def make_wav():
    """Writes a tiny audio file."""

    def make(path, seconds=0.1, sample_rate=16000, seed=0):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = make_signal(seconds, sample_rate, seed)
        audio_io.save(path, samples[None], sample_rate)
        return path

    return make


@pytest.fixture(scope="session")
def corpus_wavs(make_wav, tmp_path_factory):
    """Audio of 0.1 s for own corpora, different in every file."""
    folder = tmp_path_factory.mktemp("wavs")
    return [make_wav(folder / f"{i}.wav", seed=i) for i in range(40)]


@pytest.fixture
def make_corpus(corpus_wavs):
    """Writes an own corpus: a table, and a wav of 0.1 s per utterance.

    Each of its sessions s1, s2, ... has a woman and a man, who say each label
    once; the last label is empty.
    """

    def make(folder, num_sessions=5, labels=("joy", "rage", "calm", "")):
        rows = []
        (folder / "wav").mkdir(parents=True)
        for session in range(1, num_sessions + 1):
            for gender in "fm":
                for number, label in enumerate(labels):
                    key = f"s{session}{gender}{number}"
                    wav = f"wav/{key}.wav"
                    shutil.copyfile(corpus_wavs[len(rows)], folder / wav)
                    rows.append([key, wav, key[:-1], f"s{session}", label])
        table = pd.DataFrame(
            rows, columns=["id", "wav", "speaker", "session", "emo"]
        )
        table.to_csv(folder / "own.csv", index=False)
        return folder / "own.csv"

    return make
