"""Features, their datasets, and what is left out."""

import pandas as pd
import pytest
import torch

from speechbrain_wap.data.datasets import extract_features, make_dataset
from speechbrain_wap.data.folds import SPLITS
from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features.cache import FeatureCache

# Features --------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    encoder = SpeechEncoder("fbank")
    return FeatureCache(tmp_path / "cache", encoder, "float32", num_workers=0)


@pytest.fixture
def splits(prepare_classifier):
    return prepare_classifier(1, "held_out")


def test_every_utterance_of_every_split_gets_its_features(
    splits, cache, tmp_path
):
    kept = extract_features(cache, splits, tmp_path / "skipped.csv", 0.0)
    assert kept == splits
    digests = [e["digest"] for s in splits.values() for e in s.values()]
    assert cache.missing(digests) == []


def test_what_cannot_be_encoded_is_dropped_and_listed(
    splits, cache, tmp_path, make_wav
):
    names, csv = ("train", "test"), tmp_path / "skipped.csv"
    bad = [next(iter(splits[name].items())) for name in names]
    ids = [key for key, _ in bad]
    for number, (_, entry) in enumerate(bad):
        make_wav(entry["wav"], seconds=0.01)
        entry["digest"] = f"{number:032x}"
    with pytest.raises(RecipeError, match=f"2 of 20 .*{ids[0]}.*max_skipped"):
        extract_features(cache, splits, csv, 0.09)
    kept = extract_features(cache, splits, csv, 0.1)
    for name in SPLITS:
        assert kept[name].keys() == splits[name].keys() - set(ids)
    listing = pd.read_csv(csv)
    assert listing["id"].tolist() == ids
    assert listing["reason"].str.contains("too short").all()
    # once mended, they are used, and the list goes
    for number, (_, entry) in enumerate(bad):
        make_wav(entry["wav"], seed=77)
        entry["digest"] = f"{7 + number:032x}"
    assert extract_features(cache, splits, csv, 0.0) == splits
    assert not csv.exists()


# Datasets --------------------------------------------------------------------


@pytest.fixture
def entries(splits, cache, tmp_path):
    kept = extract_features(cache, splits, tmp_path / "skipped.csv", 0.0)
    return kept["train"]


def test_a_dataset_gives_ids_and_cached_frames_in_order(entries, cache):
    dataset = make_dataset(entries, {"": cache}, 6, "error", keys=["label"])
    items = list(dataset)
    assert [item["id"] for item in items] == list(entries)
    for item, entry in zip(items, entries.values()):
        assert item["label"] == entry["label"]
        assert item["feats"].shape == (6, 80)
        assert torch.equal(item["feats"], cache.read(entry["digest"]))


def test_a_long_utterance_is_refused_by_its_id_or_cut(entries, cache):
    key, entry = next(iter(entries.items()))
    says = f"{key}.*6 frames.*max_frames=5.*cut"
    with pytest.raises(RecipeError, match=says):
        make_dataset(entries, {"": cache}, 5, "error")
    cut = make_dataset(entries, {"": cache}, 5, "cut")[0]["feats"]
    assert torch.equal(cut, cache.read(entry["digest"])[:5])
