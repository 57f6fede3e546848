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
    assert not (tmp_path / "skipped.csv").exists()


def make_too_short(make_wav, entry, digest):
    make_wav(entry["wav"], seconds=0.01)
    entry["digest"] = digest


def test_what_cannot_be_encoded_is_dropped_and_listed(
    splits, cache, tmp_path, make_wav
):
    bad = [next(iter(splits[name])) for name in ("train", "test")]
    for number, (key, name) in enumerate(zip(bad, ("train", "test"))):
        make_too_short(make_wav, splits[name][key], f"{number:032x}")
    csv = tmp_path / "skipped.csv"
    kept = extract_features(cache, splits, csv, 0.5)
    for name in SPLITS:
        assert kept[name].keys() == splits[name].keys() - set(bad)
    listing = pd.read_csv(csv)
    assert listing["id"].tolist() == bad
    assert listing["reason"].str.contains("too short").all()


def test_too_many_failures_stop_with_the_first_one_named(
    splits, cache, tmp_path, make_wav
):
    key, entry = next(iter(splits["train"].items()))
    make_too_short(make_wav, entry, "0" * 32)
    with pytest.raises(RecipeError, match=f"1 of 20 .*{key}.*max_skipped"):
        extract_features(cache, splits, tmp_path / "skipped.csv", 0.04)


def test_the_list_of_failures_goes_when_they_are_mended(
    splits, cache, tmp_path, make_wav
):
    key, entry = next(iter(splits["train"].items()))
    make_too_short(make_wav, entry, "0" * 32)
    csv = tmp_path / "skipped.csv"
    extract_features(cache, splits, csv, 0.5)
    make_wav(entry["wav"], seed=77)
    entry["digest"] = "1" * 32
    kept = extract_features(cache, splits, csv, 0.5)
    assert key in kept["train"]
    assert not csv.exists()


def test_the_same_audio_under_two_ids_is_encoded_once_and_kept_twice(
    splits, cache, tmp_path
):
    (one, entry), *_ = splits["train"].items()
    splits["train"]["again"] = dict(entry)
    kept = extract_features(cache, splits, tmp_path / "skipped.csv", 0.0)
    assert {one, "again"} <= kept["train"].keys()
    dataset = make_dataset(kept["train"], {"": cache}, 500, "error")
    by_id = {item["id"]: item["feats"] for item in dataset}
    assert torch.equal(by_id[one], by_id["again"])


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


def test_a_long_utterance_is_refused_by_its_id_with_both_cures(entries, cache):
    with pytest.raises(RecipeError) as error:
        make_dataset(entries, {"": cache}, 5, "error")
    for part in (next(iter(entries)), "6 frames", "max_frames=5", "cut"):
        assert part in str(error.value)


def test_a_long_utterance_is_cut_to_its_beginning_by_key(entries, cache):
    (entry, *_) = entries.values()
    cut = make_dataset(entries, {"": cache}, 5, "cut")[0]["feats"]
    assert torch.equal(cut, cache.read(entry["digest"])[:5])
