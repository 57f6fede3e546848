"""The feature cache: whole entries or none, and never another encoder's."""

import json
import logging
import shutil

import pytest
import torch
from encoder_cases import Blocks, flip_a_byte, list_files

from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features import FeatureCache, cache as tested

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


DIGEST = "ab" * 16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_entry_is_read_as_it_was_written(make_cache, precision):
    feats = torch.randn(7, 5)
    make_cache(precision=precision).write(DIGEST, feats, 0.1)
    read = make_cache(precision=precision).read(DIGEST)
    assert read.dtype == PRECISIONS[precision]
    assert torch.equal(read, feats.to(PRECISIONS[precision]))


def test_frames_that_are_not_contiguous_are_stored_all_the_same(make_cache):
    feats = torch.randn(5, 7).t()
    cache = make_cache(precision="float32")
    cache.write(DIGEST, feats, 0.1)
    assert torch.equal(cache.read(DIGEST), feats)
    assert cache.is_sound(DIGEST)


@pytest.mark.parametrize(
    "argument, mistake",
    [
        (
            {"precision": "int8"},
            "feature_precision=int8 is unknown: choose one of float16, "
            "bfloat16, float32.",
        ),
        *(
            (
                {"num_workers": value},
                f"feature_workers={value} must be a whole number of at least "
                "0, or null: one per core.",
            )
            for value in (-1, 1.5, True, "many")
        ),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_with_what_does(
    make_cache, argument, mistake
):
    with pytest.raises(RecipeError) as error:
        make_cache(**argument)
    assert str(error.value) == mistake


@pytest.mark.parametrize("precision", PRECISIONS)
def test_missing_lists_in_order_and_once_what_has_no_entry(
    make_cache, precision
):
    cache = make_cache(precision=precision)
    digests = [f"{i:032x}" for i in (7, 3, 5, 3, 9, 7)]
    cache.write(digests[2], torch.randn(4, 3), 0.1)
    assert cache.is_sound(digests[2])
    assert cache.missing(digests) == [digests[0], digests[1], digests[4]]


def test_any_flipped_bit_makes_an_entry_unsound(make_cache):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    path = cache.path(DIGEST)
    content = path.read_bytes()
    for i in range(len(content)):
        for bit in (0, 4, 7):
            changed = bytearray(content)
            changed[i] ^= 1 << bit
            path.write_bytes(changed)
            assert not cache.is_sound(DIGEST), (i, bit)
    path.write_bytes(content)
    assert cache.is_sound(DIGEST)


def test_any_truncation_makes_an_entry_unsound_and_missing(make_cache, caplog):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    path = cache.path(DIGEST)
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert cache.missing([DIGEST]) == [DIGEST], size


def test_damaged_entries_are_named_by_missing_and_not_by_is_sound(
    make_cache, caplog
):
    cache = make_cache()
    digests = [character * 32 for character in "abc"]
    for digest in digests[:2]:
        cache.write(digest, torch.randn(3, 4), 0.1)
    flip_a_byte(cache.path(digests[1]))
    assert [cache.is_sound(d) for d in digests] == [True, False, False]
    assert caplog.text == ""
    assert cache.missing(digests) == digests[1:]
    assert str(cache.path(digests[1])) in caplog.text
    for digest in (digests[0], digests[2]):  # sound, absent
        assert str(cache.path(digest)) not in caplog.text


def test_the_entry_of_another_utterance_or_cache_is_unsound(make_cache):
    cache, other = make_cache(Blocks()), make_cache(Blocks(2.0))
    for digest in (DIGEST, "cd" * 16):
        cache.write(digest, torch.randn(3, 4), 0.1)
    shutil.copyfile(cache.path(DIGEST), cache.path("cd" * 16))
    assert cache.missing([DIGEST, "cd" * 16]) == ["cd" * 16]
    other.path(DIGEST).parent.mkdir(parents=True)
    shutil.copyfile(cache.path(DIGEST), other.path(DIGEST))
    assert other.missing([DIGEST]) == [DIGEST]


@pytest.mark.parametrize(
    "content", [b"garbage " * 40, b"", json.dumps({"feats": [1]}).encode()]
)
def test_a_file_that_is_no_entry_is_unsound_and_cannot_be_read(
    make_cache, content, caplog
):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    cache.path(DIGEST).write_bytes(content)
    assert cache.missing([DIGEST]) == [DIGEST]
    assert str(cache.path(DIGEST)) in caplog.text
    with pytest.raises(RecipeError) as error:
        cache.read(DIGEST)
    assert str(cache.path(DIGEST)) in str(error.value)


def test_an_absent_entry_cannot_be_read_and_the_error_names_it(make_cache):
    with pytest.raises(RecipeError, match=DIGEST):
        make_cache().read(DIGEST)


def test_an_interrupted_write_leaves_the_old_entry_and_no_temporary_file(
    make_cache, monkeypatch
):
    cache = make_cache(precision="float32")
    cache.write(DIGEST, torch.zeros(2, 3), 0.1)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.write(DIGEST, torch.ones(2, 3), 0.1)
    assert torch.equal(cache.read(DIGEST), torch.zeros(2, 3))
    assert cache.is_sound(DIGEST)
    assert list_files(cache.folder) == [cache.path(DIGEST)]


def test_frames_beyond_float16_are_refused_with_the_cure(make_cache):
    feats = torch.full((2, 3), 1e5)
    with pytest.raises(RecipeError, match="1e\\+05.*precision: float32"):
        make_cache().write(DIGEST, feats, 0.1)
    assert make_cache().missing([DIGEST]) == [DIGEST]
    for precision in ("bfloat16", "float32"):
        make_cache(precision=precision).write(DIGEST, feats, 0.1)


def test_an_entry_that_cannot_be_written_is_one_sentence_that_names_it(
    make_cache,
):
    cache = make_cache()
    cache.folder.mkdir(parents=True)
    cache.path(DIGEST).parent.write_text("a file where a folder belongs")
    with pytest.raises(RecipeError, match=f"{DIGEST}.*cannot be written"):
        cache.write(DIGEST, torch.ones(2, 3), 0.1)


def test_a_full_disk_is_one_sentence_that_names_the_entry(make_cache):
    resource = pytest.importorskip("resource")
    cache = make_cache()
    cache.path(DIGEST).parent.mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(RecipeError, match=f"{DIGEST}.*cannot be written"):
            cache.write(DIGEST, torch.randn(1000, 4), 0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list_files(cache.folder) == []


def test_entries_hold_plain_tensors_and_no_pickle(make_cache):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4), 0.1)
    content = cache.path(DIGEST).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header["feats"]["dtype"] == "F16"
    assert header["feats"]["shape"] == [3, 4]
    assert len(content) == 8 + size + 3 * 4 * 2


def test_the_cache_says_what_its_key_stands_for(make_cache):
    cache = make_cache(SpeechEncoder("fbank"))
    cache.record_use()
    recorded = json.loads((cache.folder / "cache.json").read_text("utf-8"))
    assert recorded == {"name": "fbank", **cache.description}
    assert recorded["precision"] == "float16"
    assert recorded["encoder"]["family"] == "fbank"


def test_the_key_is_one_for_each_encoder_and_precision_wherever_it_lies():
    made = [
        FeatureCache(folder, Blocks(gain), precision)
        for folder in ("here", "there")
        for gain in (1.0, 2.0)
        for precision in PRECISIONS
    ]
    keys = [cache.key for cache in made]
    assert keys[:6] == keys[6:]
    assert len(set(keys)) == 6


def test_nothing_is_hashed_until_the_key_is_asked_for(make_cache):
    calls = []

    class Counted(Blocks):
        def identity(self):
            calls.append(self)
            return {"name": "counted"}

    cache = make_cache(Counted())
    assert calls == []
    assert cache.key == cache.folder.name
    assert cache.path(DIGEST).parent.parent == cache.folder
    assert cache.description["encoder"]["name"] == "counted"
    assert len(calls) == 1


@pytest.mark.parametrize(
    "version, is_same",
    [
        ("7.8.9", True),
        ("7.8.10+cu130", True),
        ("7.8.0.dev1", True),
        ("7.9.9", False),
        ("8.8.9", False),
    ],
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
