"""The linear probe: what it learns from, and what it reads."""

import shutil
from math import sqrt
from types import SimpleNamespace

import pytest
import torch
from helpers import generator

from speechbrain_wap.comparisons.probe import probe_folds
from speechbrain_wap.data.folds import FoldPlan
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.evaluation.linear_probe import (
    StandardScaler,
    frame_statistics,
    linear_probe,
)
from speechbrain_wap.features.extraction import cut_long_utterances


class FakeCache:
    """Frames whose mean tells the class, and how often they are read."""

    def __init__(self, sizes):
        self.reads = 0
        self.feats, self.splits = {}, {}
        source = generator()
        for split, size in sizes.items():
            self.splits[split] = {}
            for i in range(size):
                label = "ab"[i % 2]
                shift = 1.0 if label == "a" else -1.0
                feats = shift + torch.randn(9, 4, generator=source)
                self.feats[f"{split}{i}"] = feats
                entry = {"digest": f"{split}{i}", "label": label}
                self.splits[split][f"{split}{i}"] = entry

    def read(self, digest):
        self.reads += 1
        return self.feats[digest]


def test_frames_are_pooled_to_mean_and_deviation_in_any_order():
    feats = torch.randn(7, 2, 3, generator=generator())  # 2 layers
    means, deviations = [], []
    for layer in range(2):
        for place in range(3):
            values = [float(feats[frame, layer, place]) for frame in range(7)]
            mean = sum(values) / 7
            means.append(mean)
            deviations.append(sqrt(sum((v - mean) ** 2 for v in values) / 7))
    found = frame_statistics(feats)
    assert found == pytest.approx(means + deviations, abs=1e-12)
    assert frame_statistics(feats.flip(0)) == pytest.approx(found, abs=1e-12)


def test_the_probe_learns_from_the_labels_it_is_given_only(monkeypatch):
    cache, pooled = FakeCache({"train": 40, "test": 20}), {}
    fitted, original = [], StandardScaler.fit
    monkeypatch.setattr(
        "speechbrain_wap.evaluation.linear_probe.StandardScaler.fit",
        lambda self, rows: fitted.append(len(rows)) or original(self, rows),
    )
    splits, read = cache.splits, cache.read
    assert linear_probe(splits, read, ["a", "b"], None, pooled)["UA"] == 1.0
    labelled = dict(list(splits["train"].items())[:6])
    expected = linear_probe(splits, cache.read, ["a", "b"], labelled, pooled)
    # but scales by all training speech, which is read once
    assert fitted == [40, 40] and cache.reads == len(pooled) == 60
    for key, entry in splits["train"].items():
        if key not in labelled:  # lies that must not matter
            entry["label"] = "a" if entry["label"] == "b" else "b"
    assert linear_probe(splits, cache.read, ["a", "b"], labelled) == expected
    assert linear_probe(splits, cache.read, ["a", "b"])["UA"] < 0.5


def test_the_probe_reads_long_utterances_as_they_were_cut(
    own_csv, make_wav, prepare_classifier, manifests, make_cache, tmp_path
):
    for seed, key in enumerate(["s1f0", "s2f0"], 90):  # to test and to train on
        make_wav(own_csv.parent / "wav" / f"{key}.wav", 3.0, seed=seed)
    splits, cache = prepare_classifier(), make_cache(SpeechEncoder("fbank"))
    cut = cut_long_utterances(splits, [cache], 20)
    assert cut != splits
    entries = [e for split in cut.values() for e in split.values()]
    cache.extract({entry["digest"]: entry for entry in entries})
    place = tmp_path / "seed1" / "fold1" / "classifier"
    place.mkdir(parents=True)
    for path in manifests.values():
        shutil.copy(path, place)
    hparams = {"feature_cache": cache, "classes": None, "max_frames": 20}
    hparams |= {"long_utterances": "cut", "fold_plan": FoldPlan(1)}
    plan = SimpleNamespace(output_folder=tmp_path)
    pooled = {}
    runs = [{"seed": 1, "fold": 1, "session": "s1", "n": 4}]
    probe_folds(hparams, plan, runs, 1.0, pooled)
    assert pooled.keys() == {entry["digest"] for entry in entries}
    # more is encoded than is used
    lengths = {d: len(cache.read(d)) for d in pooled}
    assert max(lengths.values()) > 20
    for digest, found in pooled.items():
        expected = frame_statistics(cache.read(digest)[:20])
        assert found == pytest.approx(expected)


def test_each_fold_is_probed_once_whatever_seeds_have_it(monkeypatch):
    where = "speechbrain_wap.comparisons.probe."
    read, scores = [], {"UA": 0.5, "WA": 0.5, "F1": 0.5}
    for name, fake in {
        "read_splits": lambda h, p, run, _: read.append(run) or {"train": {}},
        "list_classes": lambda *_: ["a", "b"],
        "choose_labelled": lambda *_: {},
        "linear_probe": lambda *_: scores,
    }.items():
        monkeypatch.setattr(where + name, fake)
    cache = SimpleNamespace(make_reader=lambda _: None)
    hparams = {"classes": None, "feature_cache": cache, "max_frames": 9}
    pairs = [(2, 1), (5, 1), (5, 2), (5, 3)]  # of seed 2, one fold
    runs = [{"seed": s, "fold": f, "session": f, "n": 1} for s, f in pairs]
    results = probe_folds(hparams, None, runs, 1.0, {})
    assert read == [runs[0], runs[2], runs[3]]
    assert {run["seed"] for run in results["runs"]} == {2}
    read.clear()
    probe_folds(hparams, None, runs, 0.5, {})
    assert read == runs  # the seed chooses the labels
