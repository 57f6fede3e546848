"""Filling the cache: workers, ranks and runs make what is missing, once."""

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
from encoder_cases import Blocks

from speechbrain_wap.data.audio import inspect_audio
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features import extraction
from speechbrain_wap.features.cache import read_duration
from speechbrain_wap.features.extraction import (
    count_workers,
    cut_long_utterances,
)
from speechbrain_wap.files import format_bytes


class Odd(Blocks):
    """Blocks that do something else with utterances of so many samples."""

    def __init__(self, num_samples, do):
        super().__init__()
        self.num_samples = num_samples
        self.do = do

    def forward(self, wavs, lens):
        if wavs.shape[1] != self.num_samples:
            return super().forward(wavs, lens)
        if isinstance(self.do, Exception):
            raise self.do
        return self.do(wavs)


SILENCE = 32000  # samples, with which the size of the features is estimated


def log_calls(encoder, log, interrupt_at=None):
    """Has an encoder write down which process encodes how many samples."""

    def write(module, arguments):
        if arguments[0].shape[1] != SILENCE:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {arguments[0].shape[1]}\n")
            if len(read_log(log)) == interrupt_at:
                raise KeyboardInterrupt

    encoder.register_forward_pre_hook(write)
    return encoder


def read_log(log):
    """Reads process and number of samples of each encoding."""
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


DIGEST = "ab" * 16


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


def test_an_interrupted_extraction_continues_where_it_stopped(
    make_cache, entries, tmp_path
):
    """And makes a damaged entry again, with the same bytes."""
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        make_cache(log_calls(Blocks(), log, 3)).extract(entries)
    # neither locks nor temporary files
    assert list(make_cache().folder.rglob(".*")) == []
    cache = make_cache(log_calls(Blocks(), log))
    first, second, *rest = entries
    assert cache.missing(entries) == rest
    written = cache.path(first).stat().st_mtime_ns
    expected = cache.path(second).read_bytes()
    cache.path(second).write_bytes(expected[:-5])
    for _ in range(2):
        assert cache.extract(entries) == {}
        assert len(read_log(log)) == 3 + 6
    assert cache.missing(entries) == []
    assert cache.path(first).stat().st_mtime_ns == written
    assert cache.path(second).read_bytes() == expected


def test_features_are_of_the_audio_at_the_encoders_own_rate(
    make_cache, tmp_path, make_wav
):
    encoder = Blocks()
    encoder.sample_rate = 8000
    cache = make_cache(encoder, "float32")
    path = make_wav(tmp_path / "a.wav", seconds=0.4, sample_rate=16000)
    cache.extract({DIGEST: {"wav": str(path), "duration": 0.4}})
    assert cache.read(DIGEST).shape == (10, 320)
    assert read_duration(cache.path(DIGEST)) == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fault", ["written", "precision=float32"])
def test_what_cannot_be_stored_is_no_fault_of_the_utterance(
    make_cache, entries, num_workers, fault
):
    """Else a full disk would be a corpus with a few utterances less."""
    encoder, digest = Blocks(), list(entries)[1]
    if fault != "written":
        encoder = Odd(1920, lambda wavs: torch.full((1, 2, 3), 1e6))
    cache = make_cache(encoder, num_workers=num_workers)
    if fault == "written":
        cache.folder.mkdir(parents=True)
        cache.path(digest).parent.write_text("a file where a folder belongs")
    with pytest.raises(RecipeError, match=f"{entries[digest]['wav']}.*{fault}"):
        cache.extract(entries)


def test_a_complete_cache_may_be_read_only_and_needs_no_encoder(
    make_cache, entries, monkeypatch
):
    cache = make_cache()
    cache.extract(entries)
    record = cache.folder / "cache.json"
    os.utime(record, (0, 0))

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.delattr(Blocks, "forward")
        for name in ("utime", "mkdir", "replace", "unlink"):
            patch.setattr(f"os.{name}", refuse)
        again = make_cache(num_workers=2)
        assert again.extract(entries) == {}
        assert len(again.read(next(iter(entries)))) == 5
    assert make_cache().extract(entries) == {}
    assert abs(record.stat().st_mtime - time.time()) < 60  # the last use


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
@pytest.mark.parametrize("num_workers, threads", [(0, 2), (1, 1), (3, 2)])
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
    assert torch.get_num_threads() == threads


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
    log, none = tmp_path / "log", str(tmp_path / "none.wav")
    bad = {DIGEST: {"wav": none, "duration": 0.1}}
    encoder = log_calls(ByLength(), log)
    cache = make_cache(encoder, "float32", num_workers, device)
    failures = cache.extract({**bad, **entries})
    assert none in failures[DIGEST]
    assert cache.missing({**bad, **entries}) == [*failures] == [DIGEST]
    calls = read_log(log)
    assert sorted(n for _, n in calls) == NUM_SAMPLES
    assert {pid == os.getpid() for pid, _ in calls} == {is_here}
    for digest, entry in entries.items():
        num_samples = round(16000 * entry["duration"])
        expected = torch.full((num_samples // 320, 4), float(num_samples))
        assert torch.equal(cache.read(digest), expected)


@pytest.mark.parametrize(
    "cores, ranks, wanted, device, utterances, expected",
    [
        (6, 1, None, "cpu", 1000, 6),
        (6, 1, 20, "cpu", 1000, 20),
        (6, 1, 4, "cpu", 7, 3),
        (64, 1, None, "cpu", 1000, 8),
        (64, 16, None, "cpu", 1000, 4),
        (1, 1, None, "cpu", 1000, 0),  # no faster than none ...
        (1, 1, None, "cuda", 1000, 1),  # ... unless a GPU encodes meanwhile
    ],
)
def test_workers_are_as_many_as_wanted_or_one_per_core_but_few_for_little(
    monkeypatch, cores, ranks, wanted, device, utterances, expected
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {*range(cores)})
    assert count_workers(wanted, device, utterances) == expected


@pytest.mark.parametrize(
    "do, reason, num_workers",
    [
        (ValueError("line 1\nline 2"), "line 1", 2),
        (RuntimeError(), "RuntimeError()", 0),
        (lambda wavs: wavs, "shape [1, 1920], not [1, T, D]", 0),
        (lambda wavs: torch.full((1, 2, 3), torch.nan), "not finite", 2),
    ],
)
def test_an_utterance_that_the_encoder_fails_on_is_no_fault_of_the_others(
    make_cache, entries, do, reason, num_workers
):
    digest, entry = list(entries.items())[1]
    cache = make_cache(Odd(1920, do), num_workers=num_workers)
    failures = cache.extract(entries)
    assert cache.missing(entries) == [*failures] == [digest]
    assert entry["wav"] in failures[digest]
    assert reason in failures[digest]
    assert "\n" not in failures[digest]


@pytest.mark.parametrize(
    "error, num_workers",
    [
        (torch.OutOfMemoryError("out of memory"), 0),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 2),
    ],
)
def test_a_lack_of_memory_is_no_fault_of_the_utterance(
    make_cache, entries, error, num_workers
):
    cache = make_cache(Odd(1920, error), num_workers=num_workers)
    with pytest.raises(RecipeError, match="memory ran out"):
        cache.extract(entries)


def test_an_extraction_continues_after_a_worker_was_killed(
    make_cache, entries, tmp_path
):
    flag, log = tmp_path / "killed", tmp_path / "log"

    def kill_once(wavs):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signals.SIGKILL)
        return wavs.unfold(1, 320, 320)

    encoder = Odd(NUM_SAMPLES[4], kill_once)
    with pytest.raises(RecipeError, match="memory.*feature_workers"):
        make_cache(encoder, num_workers=2).extract(entries)
    cache = make_cache(log_calls(encoder, log))
    left = cache.missing(entries)
    assert list(entries)[4] in left
    assert len(left) < len(entries)
    assert cache.extract(entries) == {}
    assert len(read_log(log)) == len(left)


def random_states():
    return (
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in np.random.get_state()],
        random.getstate(),
    )


@pytest.mark.parametrize("source, num_workers", [("fbank", 0), ("hubert", 2)])
def test_an_extraction_draws_no_random_numbers(
    make_cache, entries, sources, num_workers, source
):
    """But for what loading the weights draws."""
    encoder = SpeechEncoder(sources[source])
    encoder.load("cpu")
    before = random_states()
    make_cache(encoder, num_workers=num_workers).extract(entries)
    assert random_states() == before


def test_an_own_module_is_in_eval_mode_and_may_refuse_silence(
    make_cache, entries
):
    """Else dropout draws random numbers and batch norms learn silence."""
    encoder, modes = Odd(SILENCE, ValueError("no speech")).train(), {}

    def watch(module, arguments):
        modes[arguments[0].shape[1]] = module.training

    encoder.register_forward_pre_hook(watch)
    assert make_cache(encoder).extract(entries) == {}
    assert modes == dict.fromkeys([SILENCE, *NUM_SAMPLES], False)


def test_a_bug_is_no_failure_and_the_number_of_threads_is_restored(
    make_cache, entries, num_threads
):
    torch.set_num_threads(2)
    with pytest.raises(TypeError, match="a bug"):
        make_cache(Odd(1920, TypeError("a bug"))).extract(entries)
    assert torch.get_num_threads() == 2


# Several processes at one cache --------------------------------------------

fork = multiprocessing.get_context("fork")


def wait_for(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "nothing happens"
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_what_another_process_encodes_is_waited_for(
    make_cache, entries, tmp_path, monkeypatch, start, end
):
    """And is made, where that process is ended."""
    monkeypatch.setattr(extraction, "POLL_SECONDS", 0.02)
    log, go_on = tmp_path / "log", tmp_path / "go_on"
    held = NUM_SAMPLES[3]

    def hang(wavs):
        wait_for(go_on.exists, 60)
        return wavs.unfold(1, 320, 320)

    def extract(encoder):
        sys.exit(bool(make_cache(log_calls(encoder, log)).extract(entries)))

    first = start(extract, Odd(held, hang))
    wait_for(lambda: len(read_log(log)) == 4)
    second = start(extract, Odd(held, lambda wavs: wavs.unfold(1, 320, 320)))
    cache = make_cache(Odd(held, hang))
    wait_for(lambda: cache.missing(entries) == [list(entries)[3]])
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
    assert encoded == sorted(NUM_SAMPLES + [held] * (end == "killed"))


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_ranks_share_the_utterances_and_know_all_failures(
    make_cache, entries, tmp_path, start, monkeypatch, num_nodes
):
    """Nodes without common storage make what the others made again."""
    alone = make_cache(Sums(), "float32")
    alone.extract(entries)
    expected = read_all(alone, entries)
    log, text = tmp_path / "log", tmp_path / "text.wav"
    text.write_text("no audio")
    bad = {d * 32: {"wav": str(text), "duration": 0.1} for d in "0123"}

    def extract(rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank if num_nodes == 1 else 0))
        torch.distributed.init_process_group(
            "gloo", f"file://{tmp_path}/store", rank=rank, world_size=2
        )
        encoder = log_calls(Sums(), log)
        cache = make_cache(encoder, "float32", num_workers=2 * rank)
        cache.cache_folder = tmp_path / f"node{rank % num_nodes}"
        failures = cache.extract({**entries, **bad})
        sys.exit(failures.keys() != bad.keys())

    processes = [start(extract, rank) for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for node in range(num_nodes):
        alone.folder = tmp_path / f"node{node}" / alone.key
        assert read_all(alone, entries) == expected
    calls = read_log(log)
    assert sorted(n for _, n in calls) == sorted(num_nodes * NUM_SAMPLES)
    if num_nodes == 1:
        own = {n for pid, n in calls if pid == processes[0].pid}
        assert own == {
            round(16000 * entry["duration"])
            for digest, entry in entries.items()
            if int(digest[:8], 16) % 2 == 0
        }


# What is said before -------------------------------------------------------


@pytest.mark.parametrize(
    "source, layer, precision",
    [("fbank", "last", "float32"), ("hubert", [0, 2], "float16")],
)
def test_the_size_that_is_said_is_what_is_written(
    make_cache, tmp_path, make_wav, sources, caplog, source, layer, precision
):
    caplog.set_level(logging.INFO)
    entries = make_entries(
        make_wav(tmp_path / f"{i}.wav", i + 3, seed=i) for i in range(2)
    )
    encoder = SpeechEncoder(sources[source], layer)
    cache = make_cache(encoder, precision)
    cache.extract(entries)
    (said,) = re.finditer(
        r"features of 2 of 2 utterances \(0.wav, 1.wav\): 0.00 h of "
        r"speech, about ([\d.]+) (kB|MB) in (.*)\.",
        caplog.text,
    )
    size = sum(path.stat().st_size for path in cache.folder.glob("??/*"))
    units = {"kB": 1e3, "MB": 1e6}
    assert float(said[1]) * units[said[2]] == pytest.approx(size, rel=0.2)
    assert said[3] == f"{cache.folder}, encoder layers {encoder.layers}"
    caplog.clear()
    cache.extract(entries)
    assert caplog.text == ""  # nothing is missing


def test_what_the_disk_cannot_hold_is_refused_before_it_is_encoded(
    make_cache, entries, monkeypatch
):
    size = sum(entry["duration"] for entry in entries.values()) * 50 * 80 * 2
    free = SimpleNamespace(free=0.99 * size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    cache = make_cache(SpeechEncoder("fbank"))
    parent = Path(cache.cache_folder).parent
    says = f"{format_bytes(size)}.*{parent}.*encoder_layer"
    with pytest.raises(RecipeError, match=says):
        cache.extract(entries)
    assert not cache.folder.exists()
    free.free = 1.01 * size
    assert cache.extract(entries) == {}


# What will be cut ------------------------------------------------------------


def make_split(*paths, **times):
    """Describes audio files as a manifest does."""
    split = {}
    for path in paths:
        duration, digest, sound = inspect_audio(path, **times)
        entry = {"wav": str(path), "duration": duration, "digest": digest}
        split[path.stem] = {**entry, "sound": sound, **times}
    return split


@pytest.mark.parametrize(
    "times", [{}, {"start": 0.5}, {"start": 0.5, "end": 6}]
)
@pytest.mark.parametrize("own", [False, True])
def test_no_more_than_a_second_of_what_is_cut_off_is_encoded(
    make_cache, make_wav, tmp_path, times, own
):
    encoder = Blocks() if own else SpeechEncoder("fbank")
    cache = make_cache(log_calls(encoder, tmp_path / "log"), "float32")
    wav = make_wav(tmp_path / "long.wav", 7.0)
    short = make_wav(tmp_path / "short.wav", 2.0, seed=1)
    splits = {"train": make_split(wav, **times), "test": make_split(short)}
    cut = cut_long_utterances(splits, [cache], 60)
    assert cut["test"] == splits["test"]
    whole, part = (each["train"]["long"] for each in (splits, cut))
    assert part["duration"] == pytest.approx(2.2, abs=0.05)
    assert part["end"] - part.get("start", 0) == part["duration"]
    assert part["sound"] == whole["sound"] and part["digest"] != whole["digest"]
    # for the same length, the same entry, which is not that of the whole
    assert cut_long_utterances(splits, [cache], 60) == cut
    other = cut_long_utterances(splits, [cache], 61)["train"]["long"]
    assert len({e["digest"] for e in (whole, part, other)}) == 3
    assert cut_long_utterances(cut, [cache], 60) == cut

    (tmp_path / "log").unlink(missing_ok=True)  # of silence
    assert cache.extract({part["digest"]: part}) == {}
    ((_, num_samples),) = read_log(tmp_path / "log")
    assert num_samples == round(part["duration"] * 16000)
    cache.extract({whole["digest"]: whole})
    feats, expected = (cache.read(e["digest"]) for e in (part, whole))
    assert 60 < len(feats) < len(expected)
    assert torch.equal(feats[:60], expected[:60])  # this encoder looks nowhere


def test_the_slowest_encoder_says_what_is_cut_and_an_unknown_one_forbids_it(
    make_cache, make_wav, tmp_path
):
    fast, slow, unknown = (make_cache(Blocks()) for _ in range(3))
    fast.encoder.frame_rate, slow.encoder.frame_rate = 100.0, 25.0
    unknown.encoder = Odd(16000, lambda wavs: ())
    splits = {"train": make_split(make_wav(tmp_path / "a.wav", 5.0))}
    entry = cut_long_utterances(splits, [fast, slow], 50)["train"]["a"]
    assert entry["duration"] == 3.0
    assert cut_long_utterances(splits, [fast, unknown], 50) == splits
