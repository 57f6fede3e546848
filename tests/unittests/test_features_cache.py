"""The feature cache: whole entries or none, and never another encoder's."""

import json
import logging
import shutil

import pytest
import torch
from encoder_cases import Blocks, flip_a_byte
from safetensors.torch import load_file

from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features import FeatureCache, cache as tested
from speechbrain_wap.features.cache import is_unaltered
from speechbrain_wap.frame_input import measure_frames

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
DIGEST = "ab" * 16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_entry_is_read_as_it_was_written(make_cache, precision):
    feats = torch.randn(5, 7).t()  # not contiguous
    cache = make_cache(precision=precision)
    cache.write(DIGEST, feats, 0.1)
    read = make_cache(precision=precision).read(DIGEST)
    assert read.dtype == PRECISIONS[precision]
    assert torch.equal(read, feats.to(PRECISIONS[precision]))
    assert cache.has_entry(DIGEST)
    assert is_unaltered(cache.path(DIGEST))


def test_an_argument_that_makes_no_sense_is_refused(make_cache):
    for argument in ({"precision": "int8"}, {"num_workers": 1.5}):
        with pytest.raises(RecipeError, match="int8|feature_workers=1.5"):
            make_cache(**argument)


def test_missing_lists_in_order_and_once_what_is_absent_or_damaged(
    make_cache, caplog
):
    cache = make_cache()
    digests = [f"{i:032x}" for i in (7, 3, 5, 3, 9, 7)]
    for digest in digests[1:3]:
        cache.write(digest, torch.randn(4, 3), 0.1)
    damaged = cache.path(digests[1])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert cache.missing(digests) == [digests[i] for i in (0, 1, 4)]
    (record,) = caplog.records
    assert str(damaged) in record.getMessage()


def test_a_full_check_finds_any_flipped_bit(make_cache):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    path = cache.path(DIGEST)
    content = path.read_bytes()
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        path.write_bytes(changed)
        assert not is_unaltered(path), i
    path.write_bytes(content)
    assert is_unaltered(path)


def test_opening_finds_any_truncation_and_reads_no_frames(
    make_cache, caplog, monkeypatch
):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    monkeypatch.setattr(tested, "is_unaltered", None)
    monkeypatch.setattr(cache, "read", None)
    path = cache.path(DIGEST)
    flip_a_byte(path)
    assert cache.missing([DIGEST]) == []  # for inspect --check to find
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert cache.missing([DIGEST]) == [DIGEST], size


def test_the_entry_of_another_utterance_or_cache_is_unsound(make_cache):
    cache, other = make_cache(Blocks()), make_cache(Blocks(2.0))
    for digest in (DIGEST, "cd" * 16):
        cache.write(digest, torch.randn(3, 4), 0.1)
    shutil.copyfile(cache.path(DIGEST), cache.path("cd" * 16))
    assert cache.missing([DIGEST, "cd" * 16]) == ["cd" * 16]
    other.path(DIGEST).parent.mkdir(parents=True)
    shutil.copyfile(cache.path(DIGEST), other.path(DIGEST))
    assert other.missing([DIGEST]) == [DIGEST]


@pytest.mark.parametrize("content", [None, b"garbage " * 40, b""])
def test_what_is_no_entry_is_made_again_and_cannot_be_read(make_cache, content):
    cache = make_cache()
    if content is not None:
        cache.path(DIGEST).parent.mkdir(parents=True)
        cache.path(DIGEST).write_bytes(content)
    assert cache.missing([DIGEST]) == [DIGEST]
    with pytest.raises(RecipeError, match=f"{DIGEST}.*command again"):
        cache.read(DIGEST)


def test_frames_beyond_float16_are_refused_with_the_cure(make_cache):
    feats = torch.full((2, 3), 1e5)
    with pytest.raises(RecipeError, match="1e\\+05.*precision=float32"):
        make_cache().write(DIGEST, feats, 0.1)
    assert make_cache().missing([DIGEST]) == [DIGEST]
    for precision in ("bfloat16", "float32"):
        make_cache(precision=precision).write(DIGEST, feats, 0.1)


def test_entries_hold_plain_tensors_and_no_pickle(make_cache):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    feats = load_file(cache.path(DIGEST))["feats"]
    assert torch.equal(feats, cache.read(DIGEST))


def test_statistics_of_a_training_set_are_measured_once(
    make_cache, monkeypatch
):
    """And are what its frames give, whatever was measured before."""
    cache = make_cache()
    feats = {f"{i}" * 32: torch.randn(5 + i, 2, 4) for i in range(3)}
    for digest, each in feats.items():
        cache.write(digest, each, 0.1)
    one, two = ([(d, w) for d in feats] for w in (1.0, 0.5))

    def check():
        for weights in (one, one[:2], [*two[:1], *one[1:]]):
            for most in (99, 4):  # what is longer is cut
                found = make_cache().measure_frames(weights, most)
                expected = measure_frames(
                    (feats[d][:most].half(), w) for d, w in weights
                )
                for mine, theirs in zip(found, expected, strict=True):
                    assert torch.equal(mine, theirs)

    check()
    with monkeypatch.context() as patch:
        patch.setattr(tested, "measure_frames", None)
        check()
    for path in (cache.folder / "statistics").iterdir():
        flip_a_byte(path)
    check()


def test_the_cache_says_what_its_key_stands_for(make_cache):
    cache = make_cache(SpeechEncoder("fbank"))
    cache.record_use()
    recorded = json.loads((cache.folder / "cache.json").read_text("utf-8"))
    assert recorded == {"name": "fbank", **cache.description}


def test_the_key_is_one_for_each_encoder_and_precision_wherever_it_lies():
    here, there = (
        [
            FeatureCache(folder, Blocks(gain), precision).key
            for gain in (1.0, 2.0)
            for precision in PRECISIONS
        ]
        for folder in ("here", "there")
    )
    assert here == there
    assert len(set(here)) == 6


@pytest.mark.parametrize(
    "version, is_same",
    [("7.8.10+cu130", True), ("7.9.9", False), ("8.8.9", False)],
)
@pytest.mark.parametrize(
    "library", ["soxr", "speechbrain", "torch", "transformers"]
)
def test_the_key_differs_by_minor_releases_of_libraries_and_not_by_patches(
    monkeypatch, library, version, is_same
):
    keys = []
    for release in ("7.8.9", version):
        module = getattr(tested, library)
        monkeypatch.setattr(module, "__version__", release)
        keys.append(FeatureCache("here", Blocks()).key)
    assert (keys[0] == keys[1]) == is_same
