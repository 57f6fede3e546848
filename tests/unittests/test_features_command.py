"""The command that lists and removes caches: nothing of use is ever lost."""

import json
import multiprocessing
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from encoder_cases import flip_a_byte, list_files

from speechbrain_wap.__main__ import main as front_door
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features import FeatureCache, extraction
from speechbrain_wap.features.command import inspect_caches, main, prune_caches
from speechbrain_wap.training.experiment import run_command

DAY = 86400
HOUR = 3600


@pytest.fixture
def folder(tmp_path):
    """An empty cache folder."""
    folder = tmp_path / "feature_cache"
    folder.mkdir()
    return folder


@pytest.fixture
def make_cache(folder):
    """Fills a cache with entries of random frames, given durations in hours.

    The description is what the key stands for; fbank's if not given.
    """

    def make(hours=(1.0, 0.5), precision="float16", **description):
        cache = FeatureCache(folder, SpeechEncoder("fbank"), precision)
        if description:
            cache.description = {"precision": precision, "encoder": description}
        for number, duration in enumerate(hours):
            digest = f"{number:02x}" * 16
            cache.write(digest, torch.randn(5, 80), duration * HOUR)
        cache.record_use()
        if description:
            record = json.loads((cache.folder / "cache.json").read_text())
            record["name"] = description.get("source")
            (cache.folder / "cache.json").write_text(json.dumps(record))
        return cache

    return make


def list_entries(cache):
    return sorted(cache.folder.glob("??/*.safetensors"))


def make_temporary(path, age):
    """Leaves a temporary file of so many seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # empty, as lock files are
    os.utime(path, (time.time() - age,) * 2)
    return path


def let_rest(cache, days):
    """Has a cache look as if it were not used for so many days."""
    os.utime(cache.folder / "cache.json", (time.time() - days * DAY,) * 2)


def read_table(text):
    """Reads the cells of each row, by column."""
    lines = text[: re.search(r"^\d+ cache\(s\)", text, re.M).start()]
    header, *rows = [re.split(r" {2,}", line) for line in lines.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


# inspect -------------------------------------------------------------------


def test_each_cache_is_a_row_of_what_is_in_it_and_who_made_it(
    folder, make_cache
):
    (folder / "of something else").mkdir()
    made = [
        make_cache([0.5, 0.5], "float32"),
        make_cache([2.0], source="hubert", layers=[0, 1, 2]),
        make_cache([4.0], source="whisper", layers=[4], context="clip"),
        make_cache([6.0], **{"class": "Mine"}),
    ]
    for number, cache in enumerate(made):
        let_rest(cache, 100 * number)
    before = {p: p.stat().st_mtime_ns for p in list_files(folder)}
    text = inspect_caches(folder, check=True)
    rows = sorted(read_table(text), key=lambda row: row["hours"])
    sizes = [sum(p.stat().st_size for p in list_entries(c)) for c in made]
    days = [time.localtime(time.time() - n * 100 * DAY) for n in range(4)]
    expected = [
        ("fbank", "0", "float32", "2", "1.00"),
        ("hubert", "0,1,2", "float16", "1", "2.00"),
        ("whisper (clip)", "4", "float16", "1", "4.00"),
        ("Mine", "-", "float16", "1", "6.00"),
    ]
    assert [tuple(row.values()) for row in rows] == [
        (
            *(cache.key, *cells, f"{size / 1000:.1f} kB"),
            time.strftime("%Y-%m-%d", day),
        )
        for cache, cells, size, day in zip(made, expected, sizes, days)
    ]
    assert f"4 cache(s), {sum(sizes) / 1000:.1f} kB" in text
    prune_caches(folder, unused_days=2, dry_run=True)
    # a look changes nothing
    assert before == {p: p.stat().st_mtime_ns for p in list_files(folder)}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null", None])
def test_without_its_description_a_cache_is_listed_and_removed(
    folder, make_cache, content
):
    make_cache(source="hubert")
    cache = make_cache()
    record = cache.folder / "cache.json"
    record.unlink() if content is None else record.write_bytes(content)
    rows = {row["key"]: row for row in read_table(inspect_caches(folder))}
    assert len(rows) == 2
    assert rows[cache.key]["encoder"] == "?"
    assert rows[cache.key]["hours"] == "1.50"
    prune_caches(folder, [cache.key])
    assert not cache.folder.exists()


def test_damaged_entries_do_not_stop_the_list_and_are_named_when_asked_for(
    folder, make_cache
):
    flipped = list_entries(make_cache())[1]
    flip_a_byte(flipped)
    other = make_cache([1.0, 2.0, 4.0], source="hubert")
    cut = list_entries(other)[2]
    cut.write_bytes(cut.read_bytes()[:20])
    other.measure_frames([("00" * 16, 1.0)], 9)
    (statistics,) = (other.folder / "statistics").iterdir()
    flip_a_byte(statistics)
    assert "damaged" not in inspect_caches(folder)
    text = inspect_caches(folder, check=True)
    assert sorted(r["utterances"] for r in read_table(text)) == ["2", "3"]
    for path in (flipped, cut, statistics):
        assert f"damaged: {path}\n" in text
    assert text.endswith("damaged entries: 3")


# prune ---------------------------------------------------------------------


def test_without_a_choice_only_what_no_run_can_use_is_removed(
    folder, make_cache, tmp_path
):
    useless, useful = [], []
    for cache in (make_cache(), make_cache(source="hubert")):
        let_rest(cache, 1000)
        first, second = list_entries(cache)
        flip_a_byte(second)
        name = f".{first.name}.123.tmp"
        useless += [second, make_temporary(first.with_name(name), 1.1 * HOUR)]
        useless.append(make_temporary(cache.folder / ".pc-1.lock", 2 * HOUR))
        other = make_temporary(cache.folder / "ff" / name, 0.9 * HOUR)
        useful += [first, other, cache.folder / "cache.json"]
    useful.append(make_temporary(folder / "audio_index.json", 2 * HOUR))
    name = ".audio_index.json.123.tmp"
    useless.append(make_temporary(folder / name, 2 * HOUR))

    dry = prune_caches(folder, dry_run=True)
    assert list_files(folder) == sorted(useless + useful)
    assert prune_caches(folder) == dry.replace("would remove", "removed")
    assert list_files(folder) == sorted(useful)
    lines = dry.splitlines()
    for path in useless:
        assert sum(str(path) in line for line in lines) == 1
    assert prune_caches(folder) == "nothing to remove"
    # of other programs, even where somebody gives a folder above
    foreign = make_temporary(tmp_path / "mail" / ".inbox.tmp", 10 * DAY)
    prune_caches(tmp_path)
    assert foreign.exists()


@pytest.fixture
def four(make_cache):
    """Caches that rested for 0, 10, 20 and 30 days, by their keys."""
    caches = {}
    for days in (0, 10, 20, 30):
        cache = make_cache(source=f"encoder{days}", layers=[1, 2])
        let_rest(cache, days)
        caches[cache.key] = cache.folder
    return caches


@pytest.mark.parametrize(
    "chosen, unused_days, removed",
    [([0, 3], None, [0, 3]), ([], 40, []), ([0], 25, [0, 3])],
)
def test_caches_are_removed_by_key_and_by_rest_and_no_others(
    folder, four, chosen, unused_days, removed
):
    keys = list(four)
    before = list_files(folder)
    options = {"keys": [keys[i] for i in chosen], "unused_days": unused_days}
    dry = prune_caches(folder, **options, dry_run=True)
    assert list_files(folder) == before
    text = prune_caches(folder, **options)
    assert text == dry.replace("would remove", "removed")
    for index, (key, path) in enumerate(four.items()):
        assert path.exists() == (index not in removed)
        line = f"removed {key}: encoder{10 * index}, layers 1,2, 2 utterances"
        assert (line in text) == (index in removed)
    assert (text == "nothing to remove") == (not removed)
    assert len(list_files(folder)) == 3 * (4 - len(removed))


@pytest.mark.parametrize("key", ["nokey", ".."])
def test_an_unknown_key_is_refused_with_those_there_are(folder, four, key):
    before = list_files(folder)
    says = f"no cache {key}: it has.*{'.*'.join(sorted(four))}"
    with pytest.raises(RecipeError, match=says):
        prune_caches(folder, [next(iter(four)), key])
    assert list_files(folder) == before


def test_nothing_is_removed_while_one_of_many_is_being_filled(
    folder, four, make_wav, tmp_path, monkeypatch, start
):
    """Nor between two of its utterances, when none is locked."""
    reached = multiprocessing.get_context("fork").Event()

    class Pause(extraction.Bar):
        def update(self):
            reached.set()
            time.sleep(60)

    monkeypatch.setattr(extraction, "Bar", Pause)
    cache = FeatureCache(folder, SpeechEncoder("fbank"), num_workers=0)
    wav = str(make_wav(tmp_path / "a.wav"))
    entries = {d * 32: {"wav": wav, "duration": 0.1} for d in "ab"}
    process = start(cache.extract, entries)
    assert reached.wait(20)
    before = list_files(folder)
    for options in ({"keys": [*four, cache.key]}, {"unused_days": 0}):
        with pytest.raises(RecipeError, match=f"{cache.key} is being written"):
            prune_caches(folder, **options)
        assert list_files(folder) == before
    process.kill()
    process.join()
    prune_caches(folder, [*four, cache.key])
    assert list_files(folder) == []


def test_half_a_removal_leaves_no_cache_and_is_ended_by_the_next(
    make_cache, monkeypatch
):
    cache = make_cache()

    def interrupt(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune_caches(cache.cache_folder, [cache.key])
    assert read_table(inspect_caches(cache.cache_folder)) == []
    again = make_cache()
    prune_caches(cache.cache_folder)
    assert list(Path(cache.cache_folder).iterdir()) == [again.folder]
    assert len(list_entries(again)) == 2


# The command ---------------------------------------------------------------


def test_the_command_passes_its_options_on(folder, four, capsys):
    keys = list(four)
    main(["prune", str(folder), f"--keys={keys[0]},{keys[1]}", "--dry_run"])
    assert capsys.readouterr().out.count("would remove") == 2
    assert all(path.exists() for path in four.values())
    damaged = next(four[keys[2]].glob("*/*.safetensors"))
    flip_a_byte(damaged)
    with pytest.raises(SystemExit, match="1"):
        main(["inspect", str(folder), "--check"])
    assert f"damaged: {damaged}" in capsys.readouterr().out
    main(["prune", str(folder), f"--keys={keys[0]}", "--unused_days=25"])
    exist = [path.exists() for path in four.values()]
    assert exist == [False, True, True, False]
    main(["prune", str(folder)])
    assert not damaged.exists()


@pytest.mark.parametrize("option", ["--unused_days=-1", "--unused_days=nan"])
def test_options_that_make_no_sense_are_refused(folder, four, option):
    with pytest.raises(RecipeError, match="--unused_days"):
        main(["prune", str(folder), option])
    assert all(path.exists() for path in four.values())


def test_a_mistake_at_the_front_door_is_one_sentence():
    with pytest.raises(SystemExit, match="^error: nowhere is no folder"):
        run_command(front_door, ["features", "inspect", "nowhere"])


def test_the_folder_may_begin_at_home(folder, four, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    main(["inspect", f"~/{folder.name}"])
    at_home = capsys.readouterr().out
    main(["inspect", str(folder)])
    assert capsys.readouterr().out == at_home
    with pytest.raises(RecipeError, match="variable .NOWHERE is not set"):
        main(["prune", "$NOWHERE/cache"])
