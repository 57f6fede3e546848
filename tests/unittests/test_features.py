"""The feature cache: whole entries or none, and never another encoder's."""

import importlib.util
import json
import logging
import shutil
import sys

import pytest
import torch

from speechbrain_wap.audio import inspect_audio
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features import FeatureCache

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
DIGEST = "ab" * 16


class Blocks(torch.nn.Module):
    """Frames of 320 samples, weighted."""

    def __init__(self, gain=1.0, scale=1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((320,), gain))
        self.scale = scale

    def forward(self, wavs, lens):
        return self.scale * wavs.unfold(1, 320, 320) * self.weight


def count_calls(encoder, interrupt_at=None):
    """Lists what an encoder is called with, and may interrupt it."""
    calls = []

    def count(module, arguments):
        calls.append(arguments[0])
        if len(calls) == interrupt_at:
            raise KeyboardInterrupt

    encoder.register_forward_pre_hook(count)
    return calls


@pytest.fixture
def make_cache(tmp_path):
    def make(encoder=None, precision="float16", folder=tmp_path / "cache"):
        return FeatureCache(folder, encoder or Blocks(), precision)

    return make


@pytest.fixture
def wavs(tmp_path, make_wav):
    """Five audio files by digest."""
    paths = [make_wav(tmp_path / f"{i}.wav", seed=i) for i in range(5)]
    return {inspect_audio(path)[1]: str(path) for path in paths}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_entry_is_read_as_it_was_written(make_cache, precision):
    feats = torch.randn(7, 5)
    make_cache(precision=precision).write(DIGEST, feats)
    read = make_cache(precision=precision).read(DIGEST)
    assert read.dtype == PRECISIONS[precision]
    assert torch.equal(read, feats.to(PRECISIONS[precision]))


def test_frames_that_are_not_contiguous_are_stored_all_the_same(make_cache):
    feats = torch.randn(5, 7).t()
    cache = make_cache(precision="float32")
    cache.write(DIGEST, feats)
    assert torch.equal(cache.read(DIGEST), feats)
    assert cache.is_sound(DIGEST)


def test_an_unknown_precision_is_refused_with_the_known_ones(make_cache):
    with pytest.raises(RecipeError, match="int8.*float16, bfloat16, float32"):
        make_cache(precision="int8")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_missing_lists_in_order_and_once_what_has_no_entry(
    make_cache, precision
):
    cache = make_cache(precision=precision)
    digests = [f"{i:032x}" for i in (7, 3, 5, 3, 9, 7)]
    cache.write(digests[2], torch.randn(4, 3))
    assert cache.is_sound(digests[2])
    assert cache.missing(digests) == [digests[0], digests[1], digests[4]]


def test_any_flipped_bit_makes_an_entry_unsound(make_cache, caplog):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4))
    path = cache.path(DIGEST)
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
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
    cache.write(DIGEST, torch.randn(3, 4))
    path = cache.path(DIGEST)
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert cache.missing([DIGEST]) == [DIGEST], size


@pytest.mark.parametrize(
    "content", [b"garbage " * 40, b"", json.dumps({"feats": [1]}).encode()]
)
def test_a_file_that_is_no_entry_is_unsound_and_cannot_be_read(
    make_cache, content, caplog
):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4))
    cache.path(DIGEST).write_bytes(content)
    assert cache.missing([DIGEST]) == [DIGEST]
    assert str(cache.path(DIGEST)) in caplog.text
    with pytest.raises(RecipeError) as error:
        cache.read(DIGEST)
    assert str(cache.path(DIGEST)) in str(error.value)


def test_an_absent_entry_cannot_be_read_and_the_error_names_it(make_cache):
    with pytest.raises(RecipeError, match=DIGEST):
        make_cache().read(DIGEST)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_extraction_makes_damaged_entries_again_and_no_others(
    make_cache, wavs, damage
):
    encoder = Blocks()
    cache = make_cache(encoder)
    assert cache.extract(wavs) == {}
    # clones, since what is read stays mapped to the file
    expected = {digest: cache.read(digest).clone() for digest in wavs}
    path = cache.path(list(wavs)[2])
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content if damage == "flip" else content[:-5])
    if damage == "delete":
        path.unlink()

    calls = count_calls(encoder)
    assert cache.extract(wavs) == {}
    assert len(calls) == 1
    for digest, feats in expected.items():
        assert torch.equal(cache.read(digest), feats)
    assert cache.missing(wavs) == []


def test_an_interrupted_extraction_continues_where_it_stopped(make_cache, wavs):
    encoder = Blocks()
    count_calls(encoder, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        make_cache(encoder).extract(wavs)
    encoder = Blocks()
    calls = count_calls(encoder)
    cache = make_cache(encoder)
    left = cache.missing(wavs)
    assert left == list(wavs)[2:]
    written = {d: cache.path(d).stat().st_mtime_ns for d in list(wavs)[:2]}

    assert cache.extract(wavs) == {}
    assert len(calls) == 3
    assert cache.missing(wavs) == []
    for digest, time in written.items():
        assert cache.path(digest).stat().st_mtime_ns == time
    cache.extract(wavs)
    assert len(calls) == 3


def test_features_are_of_the_audio_at_the_encoders_own_rate(
    make_cache, tmp_path, make_wav
):
    encoder = Blocks()
    encoder.sample_rate = 8000
    cache = make_cache(encoder, "float32")
    path = make_wav(tmp_path / "a.wav", seconds=0.4, sample_rate=16000)
    cache.extract({DIGEST: str(path)})
    assert cache.read(DIGEST).shape == (10, 320)


def test_temporary_files_are_neither_left_nor_read(make_cache, wavs):
    cache = make_cache()
    digest = list(wavs)[0]
    stray = cache.path(digest).with_name(f".{digest}.safetensors.123.tmp")
    cache.write(DIGEST, torch.ones(2, 3))
    stray.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cache.path(DIGEST), stray)
    assert digest in cache.missing(wavs)
    cache.extract(wavs)
    assert cache.missing(wavs) == []
    assert list(cache.folder.rglob("*.tmp")) == [stray]


def test_an_interrupted_write_leaves_the_old_entry_and_no_temporary_file(
    make_cache, monkeypatch
):
    cache = make_cache(precision="float32")
    cache.write(DIGEST, torch.zeros(2, 3))

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.write(DIGEST, torch.ones(2, 3))
    assert torch.equal(cache.read(DIGEST), torch.zeros(2, 3))
    assert cache.is_sound(DIGEST)
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert files == [cache.path(DIGEST)]


def test_frames_beyond_float16_are_refused_with_the_cure(make_cache):
    feats = torch.full((2, 3), 1e5)
    with pytest.raises(RecipeError, match="1e\\+05.*precision: float32"):
        make_cache().write(DIGEST, feats)
    assert make_cache().missing([DIGEST]) == [DIGEST]
    for precision in ("bfloat16", "float32"):
        make_cache(precision=precision).write(DIGEST, feats)


def test_what_cannot_be_encoded_is_returned_with_its_reason(
    make_cache, wavs, tmp_path, make_wav
):
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    short = make_wav(tmp_path / "short.wav", seconds=0.01)
    bad = {"1" * 32: str(text), "2" * 32: str(short)}
    cache = make_cache(SpeechEncoder("fbank"))
    failures = cache.extract({**bad, **wavs})
    assert failures.keys() == bad.keys()
    assert str(text) in failures["1" * 32]
    assert "too short" in failures["2" * 32]
    assert cache.missing({**bad, **wavs}) == list(bad)


def test_an_entry_that_cannot_be_written_is_one_sentence_that_names_it(
    make_cache,
):
    cache = make_cache()
    cache.folder.mkdir(parents=True)
    cache.path(DIGEST).parent.write_text("a file where a folder belongs")
    with pytest.raises(RecipeError, match=f"{DIGEST}.*cannot be written"):
        cache.write(DIGEST, torch.ones(2, 3))


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_utterance(
    make_cache, wavs
):
    encoder = Blocks()
    calls = count_calls(encoder)
    cache = make_cache(encoder)
    cache.folder.mkdir(parents=True)
    digest = list(wavs)[1]
    cache.path(digest).parent.write_text("a file where a folder belongs")
    # else a full disk would be a corpus with a few utterances less
    with pytest.raises(RecipeError, match="cannot be written"):
        cache.extract(wavs)
    assert len(calls) <= 2


def test_a_full_disk_is_one_sentence_that_names_the_entry(make_cache):
    resource = pytest.importorskip("resource")
    cache = make_cache()
    cache.path(DIGEST).parent.mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(RecipeError, match=f"{DIGEST}.*cannot be written"):
            cache.write(DIGEST, torch.randn(1000, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p for p in cache.folder.rglob("*") if p.is_file()] == []


def test_entries_hold_plain_tensors_and_no_pickle(make_cache):
    cache = make_cache()
    cache.write(DIGEST, torch.randn(3, 4))
    content = cache.path(DIGEST).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header["feats"]["dtype"] == "F16"
    assert header["feats"]["shape"] == [3, 4]
    assert len(content) == 8 + size + 3 * 4 * 2


def test_the_cache_says_what_its_key_stands_for(make_cache, wavs):
    cache = make_cache(SpeechEncoder("fbank"))
    cache.extract(wavs)
    recorded = json.loads((cache.folder / "cache.json").read_text("utf-8"))
    assert recorded == cache.description
    assert recorded["precision"] == "float16"
    assert recorded["encoder"]["family"] == "fbank"


# The key -------------------------------------------------------------------


@pytest.fixture(scope="module")
def hubert(make_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "hubert"
    return make_checkpoint(folder, "hubert")


def key(encoder, precision="float16", folder="cache"):
    return FeatureCache(folder, encoder, precision).key


def test_the_key_is_the_same_wherever_the_checkpoint_lies(hubert, tmp_path):
    copy = shutil.copytree(hubert, tmp_path / "elsewhere" / "hubert")
    assert key(SpeechEncoder(str(copy))) == key(SpeechEncoder(hubert))
    assert key(SpeechEncoder(f"{copy}/")) == key(SpeechEncoder(hubert))
    assert key(SpeechEncoder(hubert), folder="x") == key(SpeechEncoder(hubert))


def test_the_key_differs_by_layer_and_precision(hubert):
    keys = [
        key(SpeechEncoder(hubert, layer), precision)
        for layer in (0, 1, 2)
        for precision in PRECISIONS
    ]
    assert len(set(keys)) == len(keys)
    assert key(SpeechEncoder(hubert, "last")) == key(SpeechEncoder(hubert, 2))


def edit(name, **values):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return change


def flip_a_bit_of_the_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        flip_a_bit_of_the_weights,
        edit("config.json", hidden_act="relu"),
        edit("config.json", num_conv_pos_embedding_groups=4),
        edit("preprocessor_config.json", do_normalize=False),
    ],
)
def test_the_key_differs_by_everything_in_the_checkpoint(
    hubert, tmp_path, change
):
    copy = shutil.copytree(hubert, tmp_path / "hubert")
    change(copy)
    assert key(SpeechEncoder(str(copy))) != key(SpeechEncoder(hubert))


def test_the_key_differs_by_the_preprocessor_in_a_processor_config(
    hubert, tmp_path, signal
):
    """Transformers 5 reads it from there, and rather than elsewhere."""
    folder = shutil.copytree(hubert, tmp_path / "hubert")
    text = (folder / "preprocessor_config.json").read_text()
    extractor = json.loads(text)
    keys, feats = [], []
    for do_normalize in (True, False):
        extractor["do_normalize"] = do_normalize
        text = json.dumps({"feature_extractor": extractor})
        (folder / "processor_config.json").write_text(text)
        encoder = SpeechEncoder(str(folder))
        keys.append(key(encoder))
        feats.append(encoder(signal(0.2)[None], torch.ones(1)))
    if torch.equal(*feats):
        pytest.skip("this version of transformers does not read that file")
    assert keys[0] != keys[1]


def test_the_key_of_an_own_module_is_the_same_for_an_equal_one():
    assert key(Blocks()) == key(Blocks())
    assert key(Blocks().eval()) == key(Blocks())


def with_attribute(value):
    encoder = Blocks()
    encoder.option = value
    return encoder


class Front(torch.nn.Module):
    def __init__(self, window):
        super().__init__()
        self.window = window


def with_part(window):
    encoder = Blocks()
    encoder.front = Front(window)
    return encoder


class Other(Blocks):
    """Another class of the same weights and attributes."""


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(Blocks(1.0), Blocks(2.0), id="weights"),
        pytest.param(Blocks(), Blocks().half(), id="precision of weights"),
        pytest.param(Blocks(scale=1), Blocks(scale=2), id="number"),
        pytest.param(with_attribute("a"), with_attribute("b"), id="text"),
        pytest.param(with_attribute(None), with_attribute(1), id="none"),
        pytest.param(with_attribute([1]), with_attribute([2]), id="list"),
        pytest.param(
            with_attribute({"a": 1}), with_attribute({"a": 2}), id="mapping"
        ),
        pytest.param(with_part(20), with_part(40), id="part's number"),
        pytest.param(Blocks(), Other(), id="class"),
    ],
)
def test_the_key_differs_by_what_an_own_module_is_made_of(one, other):
    assert key(one) != key(other)


def test_the_key_differs_by_an_own_modules_code(tmp_path, monkeypatch):
    keys = []
    for factor in (1, 2):
        path = tmp_path / f"version{factor}" / "my_encoder.py"
        path.parent.mkdir()
        path.write_text(
            "import torch\n"
            "class Mine(torch.nn.Module):\n"
            "    def forward(self, wavs, lens):\n"
            f"        return {factor} * wavs.unfold(1, 320, 320)\n"
        )
        spec = importlib.util.spec_from_file_location("my_encoder", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "my_encoder", module)
        spec.loader.exec_module(module)
        keys.append(key(module.Mine()))
    assert keys[0] != keys[1]


def test_an_own_module_with_bfloat16_weights_has_a_key(make_cache, wavs):
    encoder = Blocks().bfloat16()
    assert key(encoder) == key(Blocks().bfloat16())
    assert key(encoder) != key(Blocks(2.0).bfloat16())


def test_caches_of_different_encoders_do_not_meet(make_cache, wavs):
    one, other = make_cache(Blocks(1.0)), make_cache(Blocks(2.0))
    one.extract(wavs)
    assert other.missing(wavs) == list(wavs)
    other.extract(wavs)
    digest = list(wavs)[0]
    assert torch.equal(other.read(digest), 2 * one.read(digest))
