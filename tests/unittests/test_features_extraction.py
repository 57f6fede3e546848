"""Filling the cache: workers, ranks and runs make what is missing, once."""

import builtins
import gc
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal as signals
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoder_cases import Blocks, flip_a_byte

from speechbrain_wap.data.audio import inspect_audio
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features import extraction
from speechbrain_wap.features.cache import read_duration
from speechbrain_wap.features.extraction import count_workers
from speechbrain_wap.files import format_bytes


class Odd(Blocks):
    """Blocks that do something else with utterances of so many samples."""

    def __init__(self, num_samples, do):
        super().__init__()
        self.num_samples = num_samples
        self.do = do

    def forward(self, wavs, lens):
        if wavs.shape[1] == self.num_samples:
            return self.do(wavs)
        return super().forward(wavs, lens)


def do_raise(error):
    """An odd thing to do: to raise an error."""

    def do(wavs):
        raise error

    return do


DIGEST = "ab" * 16
SILENCE = 32000  # samples, with which the size of the features is estimated


def log_calls(encoder, log, seconds=0.0):
    """Has an encoder write down which process encodes how many samples."""

    def write(module, arguments):
        if arguments[0].shape[1] != SILENCE:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {arguments[0].shape[1]}\n")
            time.sleep(seconds)

    encoder.register_forward_pre_hook(write)
    return encoder


def read_log(log):
    """Reads process and number of samples of each encoding."""
    if not log.exists():
        return []
    lines = log.read_text("utf-8").splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def count_calls(encoder, interrupt_at=None):
    """Lists what an encoder is called with, and may interrupt it."""
    calls = []

    def count(module, arguments):
        if arguments[0].shape[1] == SILENCE:
            return
        calls.append(arguments[0])
        if len(calls) == interrupt_at:
            raise KeyboardInterrupt

    encoder.register_forward_pre_hook(count)
    return calls


@pytest.fixture(autouse=True)
def no_process_is_left():
    """Else the workers of a failed extraction are ended in another test."""
    yield
    left = multiprocessing.active_children()
    for process in left:
        process.terminate()
        process.join()
    if left:
        gc.collect()


def make_entries(paths):
    """Describes audio files as extraction wants it."""
    entries = {}
    for path in paths:
        duration, digest, _ = inspect_audio(path)
        entries[digest] = {"wav": str(path), "duration": duration}
    return entries


NUM_SAMPLES = [1600 + 320 * i for i in range(7)]


@pytest.fixture
def entries(tmp_path, make_wav):
    """Seven audio files, told apart by their numbers of samples."""
    return make_entries(
        make_wav(tmp_path / f"{n}.wav", seconds=n / 16000, seed=n)
        for n in NUM_SAMPLES
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_extraction_makes_damaged_entries_again_and_no_others(
    make_cache, entries, damage
):
    encoder = Blocks()
    cache = make_cache(encoder)
    assert cache.extract(entries) == {}
    # clones, since what is read stays mapped to the file
    expected = {digest: cache.read(digest).clone() for digest in entries}
    path = cache.path(list(entries)[2])
    if damage == "flip":
        flip_a_byte(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.unlink()

    calls = count_calls(encoder)
    assert cache.extract(entries) == {}
    assert len(calls) == 1
    for digest, feats in expected.items():
        assert torch.equal(cache.read(digest), feats)
    assert cache.missing(entries) == []


def test_an_interrupted_extraction_continues_where_it_stopped(
    make_cache, entries
):
    encoder = Blocks()
    count_calls(encoder, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        make_cache(encoder).extract(entries)
    encoder = Blocks()
    calls = count_calls(encoder)
    cache = make_cache(encoder)
    left = cache.missing(entries)
    assert left == list(entries)[2:]
    written = {d: cache.path(d).stat().st_mtime_ns for d in list(entries)[:2]}

    assert cache.extract(entries) == {}
    assert len(calls) == 5
    assert cache.missing(entries) == []
    for digest, mtime in written.items():
        assert cache.path(digest).stat().st_mtime_ns == mtime
    cache.extract(entries)
    assert len(calls) == 5


def test_features_are_of_the_audio_at_the_encoders_own_rate(
    make_cache, tmp_path, make_wav
):
    encoder = Blocks()
    encoder.sample_rate = 8000
    cache = make_cache(encoder, "float32")
    path = make_wav(tmp_path / "a.wav", seconds=0.4, sample_rate=16000)
    cache.extract({DIGEST: {"wav": str(path), "duration": 0.4}})
    assert cache.read(DIGEST).shape == (10, 320)


def test_temporary_files_are_neither_left_nor_read(make_cache, entries):
    cache = make_cache()
    digest = list(entries)[0]
    stray = cache.path(digest).with_name(f".{digest}.safetensors.123.tmp")
    cache.write(DIGEST, torch.ones(2, 3), 0.1)
    stray.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cache.path(DIGEST), stray)
    assert digest in cache.missing(entries)
    cache.extract(entries)
    assert cache.missing(entries) == []
    assert list(cache.folder.rglob("*.tmp")) == [stray]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_encoded_is_returned_with_its_reason(
    make_cache, entries, tmp_path, make_wav, num_workers
):
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    short = make_wav(tmp_path / "short.wav", seconds=0.01)
    bad = {
        "1" * 32: {"wav": str(text), "duration": 0.1},
        "2" * 32: {"wav": str(short), "duration": 0.01},
        "3" * 32: {"wav": str(tmp_path / "none.wav"), "duration": 0.1},
    }
    cache = make_cache(SpeechEncoder("fbank"), num_workers=num_workers)
    failures = cache.extract({**bad, **entries})
    assert failures.keys() == bad.keys()
    for digest, reason in failures.items():
        assert bad[digest]["wav"] in reason
    assert "too short" in failures["2" * 32]
    assert cache.missing({**bad, **entries}) == list(bad)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cache_that_cannot_be_written_is_no_fault_of_the_utterance(
    make_cache, entries, tmp_path, num_workers
):
    """Else a full disk would be a corpus with a few utterances less."""
    encoder = log_calls(Blocks(), tmp_path / "log")
    cache = make_cache(encoder, num_workers=num_workers)
    cache.folder.mkdir(parents=True)
    digest = list(entries)[1]
    cache.path(digest).parent.write_text("a file where a folder belongs")
    with pytest.raises(RecipeError) as error:
        cache.extract(entries)
    assert "\n" not in str(error.value)
    for part in (entries[digest]["wav"], f"{digest}.safetensors", "cannot be"):
        assert part in str(error.value)
    if num_workers == 0:
        assert len(read_log(tmp_path / "log")) == 2


def test_an_extraction_renews_when_the_cache_was_used(make_cache, entries):
    cache = make_cache()
    for complete in (False, True):
        cache.extract(entries)
        record = cache.folder / "cache.json"
        assert abs(record.stat().st_mtime - time.time()) < 60, complete
        os.utime(record, (0, 0))


def test_a_complete_cache_may_be_read_only(make_cache, entries, monkeypatch):
    cache = make_cache()
    cache.extract(entries)
    files = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*")}
    read_only = make_cache(num_workers=2)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    def open_to_read(file, mode="r", *args, **kwargs):
        assert not {*mode} & {*"wax+"}, file
        return original(file, mode, *args, **kwargs)

    original = builtins.open
    monkeypatch.setattr("os.utime", refuse)
    monkeypatch.setattr("os.mkdir", refuse)
    monkeypatch.setattr("os.replace", refuse)
    monkeypatch.setattr(builtins, "open", open_to_read)
    assert read_only.extract(entries) == {}
    assert len(read_only.read(next(iter(entries)))) == 5
    monkeypatch.undo()
    found = cache.folder.rglob("*")
    assert files == {path: path.stat().st_mtime_ns for path in found}


def test_what_is_cached_needs_no_encoder(make_cache, entries, monkeypatch):
    make_cache().extract(entries)
    monkeypatch.delattr(Blocks, "forward")
    assert make_cache().extract(entries) == {}
    assert make_cache().extract({}) == {}


def test_an_own_modules_load_is_its_own_affair(make_cache, entries):
    class Loading(Blocks):
        def load(self, path, strict):
            raise FileNotFoundError(path)

    assert make_cache(Loading()).extract(entries) == {}


# Processes -----------------------------------------------------------------


class Sums(Blocks):
    """Blocks plus sums whose last bits depend on the number of threads."""

    def forward(self, wavs, lens):
        long = wavs[0].repeat(60)
        return super().forward(wavs, lens) + long @ long.flip(0)


@pytest.fixture
def num_threads():
    """Restores the number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read_all(cache, entries):
    """Reads the entries' files."""
    return {digest: cache.path(digest).read_bytes() for digest in entries}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_features_do_not_depend_on_workers_threads_and_order(
    make_cache, entries, num_threads, num_workers, threads
):
    """Byte for byte, on one machine: each is encoded alone, by one thread."""
    cache = make_cache(Sums(), "float32")
    cache.extract(entries)
    expected = read_all(cache, entries)
    shutil.rmtree(cache.folder)

    torch.set_num_threads(threads)
    cache = make_cache(Sums(), "float32", num_workers)
    shuffled = dict(sorted(entries.items()))
    assert cache.extract(shuffled) == {}
    assert read_all(cache, entries) == expected


def test_an_entry_says_how_long_its_audio_is(make_cache, entries):
    encoder = Blocks()
    encoder.sample_rate = 8000  # the duration is not that of 16 kHz
    cache = make_cache(encoder, num_workers=2)
    cache.extract(entries)
    for digest, entry in entries.items():
        duration = read_duration(cache.path(digest))
        assert duration == pytest.approx(entry["duration"], abs=1e-3)
        cache.path(digest).write_bytes(b"no entry")
        assert read_duration(cache.path(digest)) is None


class ByLength(torch.nn.Module):
    """Frames that can be told on a device without data."""

    def forward(self, wavs, lens):
        return torch.full((1, wavs.shape[1] // 320, 4), wavs.shape[1])


@pytest.mark.parametrize(
    "device, num_workers, is_here",
    [("cpu", 0, True), ("cpu", 2, False), ("meta", 0, True), ("meta", 2, True)],
)
def test_workers_encode_on_a_cpu_and_only_read_for_another_device(
    make_cache, entries, tmp_path, device, num_workers, is_here
):
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    bad = {"1" * 32: {"wav": str(text), "duration": 0.1}}
    log = tmp_path / "log"
    encoder = log_calls(ByLength(), log)
    cache = make_cache(encoder, "float32", num_workers, device)
    failures = cache.extract({**entries, **bad})
    assert failures.keys() == bad.keys()
    assert str(text) in failures["1" * 32]
    calls = read_log(log)
    assert sorted(n for _, n in calls) == NUM_SAMPLES
    assert {pid == os.getpid() for pid, _ in calls} == {is_here}
    for digest, entry in entries.items():
        num_samples = round(16000 * entry["duration"])
        expected = torch.full((num_samples // 320, 4), float(num_samples))
        assert torch.equal(cache.read(digest), expected)


@pytest.mark.parametrize(
    "wanted, device, utterances, expected",
    [
        (None, "cpu", 1000, 6),
        (None, "cuda", 1000, 6),
        (3, "cpu", 1000, 3),
        (0, "cpu", 1000, 0),
        (1, "cpu", 1000, 1),
        (20, "cpu", 1000, 20),
        (4, "cpu", 7, 3),
        (4, "cpu", 1, 0),
    ],
)
def test_workers_are_as_many_as_wanted_or_one_per_core_but_few_for_little(
    monkeypatch, wanted, device, utterances, expected
):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {*range(6)})
    assert count_workers(wanted, device, utterances) == expected


@pytest.mark.parametrize(
    "cores, ranks, device, expected",
    [
        (64, 1, "cpu", 8),
        (64, 16, "cpu", 4),
        (2, 4, "cpu", 0),
        (1, 1, "cpu", 0),  # one worker is no faster than none ...
        (1, 1, "cuda", 1),  # ... unless it reads while a GPU encodes
        (4, 2, "cpu", 2),
    ],
)
def test_cores_are_shared_among_ranks(
    monkeypatch, cores, ranks, device, expected
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {*range(cores)})
    assert count_workers(None, device, 1000) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "do, reason",
    [
        (do_raise(RuntimeError("too odd")), "too odd"),
        (do_raise(ValueError("line 1\nline 2")), "line 1"),
        (do_raise(RuntimeError()), "RuntimeError()"),
        (do_raise(RecipeError("no speech")), "no speech"),
        (lambda wavs: wavs, "shape [1, 1920], not [1, T, D]"),
        (lambda wavs: wavs.expand(2, 3, -1), "shape [2, 3, 1920]"),
        (lambda wavs: wavs.reshape(1, 2, 3, -1), "shape [1, 2, 3, 320]"),
        (lambda wavs: torch.zeros(1, 0, 320), "shape [1, 0, 320]"),
        (lambda wavs: torch.full((1, 2, 3), torch.nan), "not finite"),
    ],
    ids=[
        *("runtime", "value", "silent", "recipe"),
        *("2 dimensions", "2 at once", "layers", "no frames", "nan"),
    ],
)
def test_an_utterance_that_the_encoder_fails_on_is_no_fault_of_the_others(
    make_cache, entries, do, reason, num_workers
):
    digest, entry = list(entries.items())[1]
    cache = make_cache(Odd(1920, do), num_workers=num_workers)
    failures = cache.extract(entries)
    assert failures.keys() == {digest}
    assert entry["wav"] in failures[digest]
    assert reason in failures[digest]
    assert "\n" not in failures[digest]
    assert cache.missing(entries) == [digest]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_frames_that_cannot_be_stored_stop_the_extraction(
    make_cache, entries, num_workers
):
    wav = list(entries.values())[1]["wav"]
    large = Odd(1920, lambda wavs: torch.full((1, 2, 3), 1e6))
    cache = make_cache(large, num_workers=num_workers)
    with pytest.raises(RecipeError) as error:
        cache.extract(entries)
    for part in (wav, "precision: float32"):
        assert part in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lock_file_that_cannot_be_made_is_one_sentence_that_names_it(
    make_cache, entries, num_workers
):
    cache = make_cache(num_workers=num_workers)
    (cache.folder / ".lock").mkdir(parents=True)
    with pytest.raises(RecipeError) as error:
        cache.extract(entries)
    assert f"{cache.folder / '.lock'} cannot be written" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. "
            "DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000000 bytes."
        ),
    ],
    ids=["gpu", "cpu"],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lack_of_memory_is_no_fault_of_the_utterance(
    make_cache, entries, error, num_workers
):
    cache = make_cache(Odd(1920, do_raise(error)), num_workers=num_workers)
    with pytest.raises((torch.OutOfMemoryError, RecipeError), match="memory"):
        cache.extract(entries)


def test_an_extraction_continues_after_a_worker_was_killed(
    make_cache, entries, tmp_path
):
    flag = tmp_path / "killed"

    def kill_once(wavs):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signals.SIGKILL)
        return wavs.unfold(1, 320, 320)

    encoder = Odd(NUM_SAMPLES[4], kill_once)
    with pytest.raises(RecipeError, match="memory.*feature_workers"):
        make_cache(encoder, num_workers=2).extract(entries)
    cache = make_cache(encoder)
    left = cache.missing(entries)
    assert list(entries)[4] in left
    assert len(left) < len(entries)

    calls = count_calls(encoder)
    assert cache.extract(entries) == {}
    assert len(calls) == len(left)
    assert cache.missing(entries) == []


def test_a_reader_that_was_killed_is_no_fault_of_what_is_encoded_meanwhile(
    make_cache, entries
):
    """Its end is heard of in the middle of another computation."""
    encoder, calls = ByLength(), []

    def kill_a_reader(module, arguments):
        if arguments[0].shape[1] == SILENCE:
            return
        calls.append(arguments[0])
        if len(calls) == len(entries):
            os.kill(multiprocessing.active_children()[0].pid, signals.SIGKILL)
            time.sleep(0.5)

    encoder.register_forward_pre_hook(kill_a_reader)
    cache = make_cache(encoder, "float32", num_workers=2, device="meta")
    with pytest.raises(RecipeError, match="memory.*feature_workers"):
        cache.extract(entries)


def random_states():
    return (
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in np.random.get_state()],
        random.getstate(),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("source", ["own", "fbank", "hubert"])
def test_an_extraction_draws_no_random_numbers(
    make_cache, entries, sources, num_workers, source
):
    """But for what loading the weights draws."""
    encoder = Blocks()
    if source != "own":
        encoder = SpeechEncoder(sources[source])
        encoder.load("cpu")
    before = random_states()
    make_cache(encoder, num_workers=num_workers).extract(entries)
    assert random_states() == before


def test_an_own_module_is_in_eval_mode_whatever_it_encodes(make_cache, entries):
    """Else dropout draws random numbers and batch norms learn silence."""
    encoder, modes = Blocks().train(), {}

    def watch(module, arguments):
        modes[arguments[0].shape[1]] = module.training

    encoder.register_forward_pre_hook(watch)
    make_cache(encoder).extract(entries)
    assert modes == dict.fromkeys([SILENCE, *NUM_SAMPLES], False)


def test_an_own_module_may_refuse_silence(make_cache, entries):
    cache = make_cache(Odd(SILENCE, do_raise(ValueError("no speech"))))
    assert cache.extract(entries) == {}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "do",
    [
        lambda wavs: wavs.unfold(1, 320, 320),
        lambda wavs: torch.full((1, 2, 3), torch.nan),
        do_raise(TypeError("a bug")),
    ],
    ids=["success", "refusal", "bug"],
)
def test_the_number_of_threads_is_restored(
    make_cache, entries, num_threads, do, num_workers
):
    torch.set_num_threads(2)
    inside = []

    def watch(wavs):
        inside.append(torch.get_num_threads())
        return do(wavs)

    cache = make_cache(Odd(1920, watch), num_workers=num_workers)
    try:
        cache.extract(entries)
    except (RecipeError, TypeError):
        pass
    assert torch.get_num_threads() == 2
    assert inside == ([] if num_workers else [1])


# Several processes at one cache --------------------------------------------

fork = multiprocessing.get_context("fork")


def wait_for(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "nothing happens"
        time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_processes_at_one_cache_encode_each_utterance_once(
    make_cache, entries, tmp_path, monkeypatch, start, num_workers
):
    monkeypatch.setattr(extraction, "POLL_SECONDS", 0.02)
    log, barrier = tmp_path / "log", fork.Barrier(2)

    def extract():
        encoder = log_calls(Blocks(), log, 0.05)
        cache = make_cache(encoder, num_workers=num_workers)
        barrier.wait()
        failures = cache.extract(entries)
        sys.exit(bool(failures or cache.missing(entries)))

    processes = [start(extract) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    calls = read_log(log)
    assert sorted(n for _, n in calls) == NUM_SAMPLES
    assert len({pid for pid, _ in calls}) >= 2
    assert make_cache().missing(entries) == []


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_what_another_process_is_at_is_waited_for(
    make_cache, entries, tmp_path, monkeypatch, start, end
):
    """And is made, where that process is ended."""
    monkeypatch.setattr(extraction, "POLL_SECONDS", 0.02)
    log, go_on = tmp_path / "log", tmp_path / "go_on"
    held = list(entries)[3]

    def hang(wavs):
        wait_for(go_on.exists, 60)
        return wavs.unfold(1, 320, 320)

    def extract(do, log):
        encoder = log_calls(Odd(NUM_SAMPLES[3], do), log)
        failures = make_cache(encoder).extract(entries)
        sys.exit(bool(failures))

    first = start(extract, hang, log)
    wait_for(lambda: len(read_log(log)) == 4)
    second = start(extract, lambda wavs: wavs.unfold(1, 320, 320), log)
    cache = make_cache(Odd(NUM_SAMPLES[3], hang))
    wait_for(lambda: cache.missing(entries) == [held])
    time.sleep(0.1)
    assert second.is_alive()
    assert len(read_log(log)) == len(entries)
    if end == "killed":
        first.kill()
    else:
        go_on.touch()
    second.join()
    assert second.exitcode == 0
    assert cache.missing(entries) == []
    encoded = sorted(n for _, n in read_log(log))
    again = [NUM_SAMPLES[3]] if end == "killed" else []
    assert encoded == sorted(NUM_SAMPLES + again)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_ranks_share_the_utterances_and_know_all_failures(
    make_cache, entries, tmp_path, start, monkeypatch, num_nodes
):
    """Nodes without common storage make what the others made again."""
    alone = make_cache(Sums(), "float32")
    alone.extract(entries)
    expected = read_all(alone, entries)
    shutil.rmtree(alone.folder)

    log = tmp_path / "log"
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    bad = {
        digest * 32: {"wav": str(text), "duration": 0.1} for digest in "0123"
    }

    def extract(rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank if num_nodes == 1 else 0))
        torch.distributed.init_process_group(
            "gloo", f"file://{tmp_path}/store", rank=rank, world_size=2
        )
        encoder = log_calls(Sums(), log)
        cache = make_cache(encoder, "float32", num_workers=2 * rank)
        if num_nodes == 2:
            cache.cache_folder = tmp_path / f"node{rank}"
        failures = cache.extract({**entries, **bad})
        sys.exit(failures.keys() != bad.keys())

    processes = [start(extract, rank) for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    pids = [process.pid for process in processes]
    calls = read_log(log)
    if num_nodes == 2:
        for rank in range(2):
            alone.folder = tmp_path / f"node{rank}" / alone.key
            assert read_all(alone, entries) == expected
        assert sorted(n for _, n in calls) == sorted(2 * NUM_SAMPLES)
        return
    assert read_all(alone, entries) == expected
    assert sorted(n for _, n in calls) == NUM_SAMPLES
    for rank in range(2):
        assert {n for pid, n in calls if (pid == pids[0]) == (rank == 0)} == {
            round(16000 * entry["duration"])
            for digest, entry in entries.items()
            if int(digest[:8], 16) % 2 == rank
        }


# What is said before -------------------------------------------------------


def announcement(caplog):
    """Reads what was said before an extraction."""
    pattern = (
        r"Extracting features of (?P<missing>\d+) of (?P<all>\d+) utterances "
        r"\((?P<names>.*?)\): (?P<hours>[\d.]+) h of speech, about "
        r"(?P<size>[\d.]+) (?P<unit>bytes|kB|MB|GB|TB) in (?P<rest>.*)\."
    )
    (found,) = re.finditer(pattern, caplog.text)
    return SimpleNamespace(**found.groupdict())


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize(
    "make_encoder",
    [
        lambda sources: Blocks(),
        lambda sources: SpeechEncoder("fbank"),
        lambda sources: SpeechEncoder(sources["hubert"], 1),
        lambda sources: SpeechEncoder(sources["hubert"], [0, 2]),
        lambda sources: SpeechEncoder(sources["hubert"], "weighted"),
    ],
    ids=["own", "fbank", "hubert", "two layers", "all layers"],
)
def test_the_size_that_is_said_is_what_is_written(
    make_cache, tmp_path, make_wav, sources, caplog, make_encoder, precision
):
    caplog.set_level(logging.INFO)
    paths = [make_wav(tmp_path / f"{i}.wav", i + 3, seed=i) for i in range(2)]
    entries = make_entries(paths)
    cache = make_cache(make_encoder(sources), precision)
    cache.extract(entries)
    said = announcement(caplog)
    units = {"bytes": 1, "kB": 1e3, "MB": 1e6}
    size = sum(cache.path(digest).stat().st_size for digest in entries)
    assert float(said.size) * units[said.unit] == pytest.approx(size, rel=0.2)
    assert str(cache.folder) in said.rest
    layers = getattr(cache.encoder, "layers", None)
    assert (f"layers {layers}" in said.rest) == (layers is not None)


def test_an_own_modules_parts_are_not_taken_for_layers(
    make_cache, entries, caplog
):
    caplog.set_level(logging.INFO)
    encoder = Blocks()
    encoder.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    make_cache(encoder).extract(entries)
    assert "encoder layers" not in caplog.text
    assert "Linear" not in caplog.text


def test_number_hours_and_first_names_of_what_is_missing_are_said(
    make_cache, entries, caplog
):
    caplog.set_level(logging.INFO)
    for hours, entry in enumerate(entries.values(), start=1):
        entry["duration"] = 3600.0 * hours
    first, second, *rest = entries
    cache = make_cache()
    cache.extract({first: entries[first]})
    assert announcement(caplog).names == "1600.wav"
    caplog.clear()
    cache.extract(entries)
    said = announcement(caplog)
    assert (said.missing, said.all) == ("6", "7")
    assert said.names == "1920.wav, 2240.wav, 2560.wav, ..."
    assert said.hours == "27.00"
    caplog.clear()
    cache.extract(entries)
    assert caplog.text == ""


@pytest.mark.parametrize("is_enough", [True, False])
def test_what_the_disk_cannot_hold_is_refused_before_it_is_encoded(
    make_cache, entries, monkeypatch, is_enough
):
    seconds = sum(entry["duration"] for entry in entries.values())
    size = seconds * 50 * 80 * 2
    places = []

    def disk_usage(path):
        places.append(path)
        return SimpleNamespace(free=size * (1.01 if is_enough else 0.99))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    encoder = SpeechEncoder("fbank")
    calls = count_calls(encoder)
    cache = make_cache(encoder)
    parent = Path(cache.cache_folder).parent
    if is_enough:
        assert cache.extract(entries) == {}
    else:
        with pytest.raises(RecipeError) as error:
            cache.extract(entries)
        for part in (format_bytes(size), str(parent), "encoder_layer"):
            assert part in str(error.value)
        assert calls == []
        assert not cache.folder.exists()
    # the folder itself need not be there yet
    assert places == [parent]


def test_caches_of_different_encoders_do_not_meet(make_cache, entries):
    one, other = make_cache(Blocks(1.0)), make_cache(Blocks(2.0))
    one.extract(entries)
    assert other.missing(entries) == list(entries)
    other.extract(entries)
    digest = list(entries)[0]
    assert torch.equal(other.read(digest), 2 * one.read(digest))
