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
from speechbrain_wap.features import FeatureCache, command, extraction
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
    path.write_text("ha")
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


def test_each_cache_is_a_row_of_what_is_in_it_and_who_made_it(make_cache):
    made = make_cache()
    let_rest(made, 400)
    used = time.localtime(time.time() - 400 * DAY)
    text = inspect_caches(made.cache_folder)
    (row,) = read_table(text)
    size = sum(path.stat().st_size for path in list_entries(made))
    assert row == {
        "key": made.key,
        "encoder": "fbank",
        "layers": "0",
        "precision": "float16",
        "utterances": "2",
        "hours": "1.50",
        "size": f"{size / 1000:.1f} kB",
        "last used": time.strftime("%Y-%m-%d", used),
    }
    assert f"1 cache(s), {size / 1000:.1f} kB" in text


def test_caches_are_told_apart(folder, make_cache):
    make_cache([1.0], "float32")
    make_cache([2.0], source="hubert", layers=[3])
    make_cache([3.0], source="wavlm", layers=[0, 1, 2])
    make_cache([4.0], source="whisper", layers=[4], context="clip")
    make_cache([5.0], source="whisper", layers=[4], context="full")
    make_cache([6.0], **{"class": "Mine"})
    rows = sorted(read_table(inspect_caches(folder)), key=lambda r: r["hours"])
    columns = ("encoder", "layers", "precision", "hours")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("fbank", "0", "float32", "1.00"),
        ("hubert", "3", "float16", "2.00"),
        ("wavlm", "0,1,2", "float16", "3.00"),
        ("whisper (clip)", "4", "float16", "4.00"),
        ("whisper", "4", "float16", "5.00"),
        ("Mine", "-", "float16", "6.00"),
    ]


def test_a_folder_without_caches_is_listed_as_such(folder):
    (folder / "audio_index.json").write_text("{}")
    (folder / "of something else").mkdir()
    assert read_table(inspect_caches(folder)) == []
    assert "0 cache(s), 0 bytes" in inspect_caches(folder, check=True)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_folder_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=f"/{name} is no folder"):
        inspect_caches(tmp_path / name)


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe", b"null", b'{"encoder": null}']
)
def test_without_its_description_a_cache_is_listed_and_removed(
    make_cache, content
):
    make_cache(source="hubert")
    cache = make_cache()
    record = cache.folder / "cache.json"
    record.unlink() if content is None else record.write_bytes(content)
    table = read_table(inspect_caches(cache.cache_folder))
    rows = {row["key"]: row for row in table}
    assert len(rows) == 2
    assert rows[cache.key]["encoder"] == "?"
    assert rows[cache.key]["hours"] == "1.50"
    prune_caches(cache.cache_folder, [cache.key])
    assert not cache.folder.exists()


def test_damaged_entries_do_not_stop_the_list_and_are_named_when_asked_for(
    folder, make_cache
):
    flipped = list_entries(make_cache())[1]
    flip_a_byte(flipped)
    other = make_cache([1.0, 2.0, 4.0], source="hubert")
    cut = list_entries(other)[2]
    cut.write_bytes(cut.read_bytes()[:20])
    other.measure_frames([("00" * 16, 1.0)])
    (statistics,) = (other.folder / "statistics").iterdir()
    flip_a_byte(statistics)
    rows = read_table(inspect_caches(folder))
    assert sorted(row["utterances"] for row in rows) == ["2", "3"]
    assert "damaged" not in inspect_caches(folder)
    lines = inspect_caches(folder, check=True).splitlines()
    named = [line for line in lines if line.startswith("damaged: ")]
    assert sorted(named) == sorted(
        f"damaged: {path}" for path in (flipped, cut, statistics)
    )
    assert lines[-1] == "3 damaged entries"


def test_nothing_is_changed_by_a_look(make_cache):
    cache = make_cache()
    let_rest(cache, 3)
    times = {p: p.stat().st_mtime_ns for p in list_files(cache.folder)}
    inspect_caches(cache.cache_folder, check=True)
    prune_caches(cache.cache_folder, unused_days=2, dry_run=True)
    assert times == {p: p.stat().st_mtime_ns for p in list_files(cache.folder)}


# prune ---------------------------------------------------------------------


def test_without_a_choice_only_what_no_run_can_use_is_removed(make_cache):
    caches = [make_cache(), make_cache(source="hubert")]
    folder = Path(caches[0].cache_folder)
    useless, useful = [], []
    for cache in caches:
        let_rest(cache, 1000)
        first, second = list_entries(cache)
        flip_a_byte(second)
        name = f".{first.name}.123.tmp"
        useless += [second, make_temporary(first.with_name(name), 1.1 * HOUR)]
        useless.append(make_temporary(cache.folder / ".pc-1.lock", 2 * HOUR))
        other = make_temporary(cache.folder / "ff" / name, 0.9 * HOUR)
        useful += [first, other, cache.folder / "cache.json"]
    index = folder / "audio_index.json"
    index.write_text("{}")
    useful.append(index)
    useless.append(
        make_temporary(folder / ".audio_index.json.123.tmp", 2 * HOUR)
    )
    before = list_files(folder)

    dry = prune_caches(folder, dry_run=True).splitlines()
    assert list_files(folder) == before
    text = prune_caches(folder).splitlines()
    assert list_files(folder) == sorted(useful)
    assert sorted(text) == sorted(
        line.replace("would remove", "removed") for line in dry
    )
    for line in dry:
        assert line.startswith("would remove ")
    for path in useless:
        assert sum(str(path) in line for line in text) == 1
    assert prune_caches(folder) == "nothing to remove"


def test_temporary_files_of_other_programs_stay(make_cache, tmp_path):
    """Even where somebody gives a folder above the cache folder."""
    make_cache()
    foreign = make_temporary(tmp_path / "mail" / ".inbox.tmp", 10 * DAY)
    prune_caches(tmp_path)
    assert foreign.exists()


def test_an_entry_that_is_made_anew_meanwhile_stays(make_cache, monkeypatch):
    cache = make_cache()
    entry = list_entries(cache)[0]
    whole = entry.read_bytes()
    flip_a_byte(entry)
    original = command._find_damaged

    def find_damaged(folders):
        found = original(folders)
        entry.write_bytes(whole)  # by a run that came upon it, too
        return found

    monkeypatch.setattr(command, "_find_damaged", find_damaged)
    prune_caches(cache.cache_folder)
    assert entry.read_bytes() == whole


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
    [
        ([0, 3], None, [0, 3]),
        ([], 9.9, [1, 2, 3]),
        ([], 40, []),
        ([0], 25, [0, 3]),
    ],
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
    kept = [path for path in before if path.exists()]
    assert len(kept) == 3 * (4 - len(removed))
    assert len(read_table(inspect_caches(folder))) == 4 - len(removed)


@pytest.mark.parametrize("key", ["nokey", "..", ""])
def test_an_unknown_key_is_refused_with_those_there_are(folder, four, key):
    before = list_files(folder)
    with pytest.raises(RecipeError) as error:
        prune_caches(folder, [next(iter(four)), key])
    for part in (f"no cache {key}: it has", *four):
        assert part in str(error.value)
    assert list_files(folder) == before


def test_nothing_is_removed_while_one_of_many_is_being_filled(
    folder, four, make_wav, tmp_path, monkeypatch, start
):
    """Nor between two of its utterances, when none is locked."""
    reached = multiprocessing.get_context("fork").Event()

    class Pause(extraction.tqdm):
        def update(self):
            reached.set()
            time.sleep(60)

    monkeypatch.setattr(extraction, "tqdm", Pause)
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


@pytest.mark.parametrize("choice", ["cache", "entry"])
def test_what_may_not_be_removed_is_one_sentence(
    make_cache, monkeypatch, choice
):
    cache = make_cache()
    flip_a_byte(list_entries(cache)[0])

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    keys = [cache.key] if choice == "cache" else []
    with pytest.raises(RecipeError, match="Permission denied"):
        prune_caches(cache.cache_folder, keys)


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
    choice = f"--keys={keys[0]},{keys[1]}"
    main(["prune", str(folder), choice, "--dry_run"])
    assert capsys.readouterr().out.count("would remove") == 2
    assert all(path.exists() for path in four.values())
    main(["prune", str(folder), choice])
    assert [path.exists() for path in four.values()] == [False] * 2 + [True] * 2
    main(["prune", str(folder), "--unused_days=25"])
    assert four[keys[2]].exists()
    assert not four[keys[3]].exists()
    damaged = next(four[keys[2]].glob("*/*.safetensors"))
    flip_a_byte(damaged)
    capsys.readouterr()
    main(["inspect", str(folder)])
    assert "damaged" not in capsys.readouterr().out
    main(["inspect", str(folder), "--check"])
    assert f"damaged: {damaged}" in capsys.readouterr().out
    main(["prune", str(folder)])
    assert not damaged.exists()


@pytest.mark.parametrize(
    "option", ["--nonsense", "--unused_days=-1", "--unused_days=nan", "--dry"]
)
def test_options_that_make_no_sense_are_refused(folder, four, option):
    before = list_files(folder)
    with pytest.raises((SystemExit, RecipeError)):
        main(["prune", str(folder), option])
    assert {*before} <= {*list_files(folder)}


def test_a_mistake_at_the_front_door_is_one_sentence():
    with pytest.raises(SystemExit, match="^error: nowhere is no folder"):
        run_command(front_door, ["features", "inspect", "nowhere"])


@pytest.mark.parametrize("own", [[], ["inspect"], ["prune"]])
def test_help_lists_the_options_that_the_command_takes(capsys, own):
    front_door(["features", *own, "--help"])
    text = capsys.readouterr().out
    for name in ("inspect", "prune"):
        assert f"python -m speechbrain_wap features {name} " in text
    options = {"--check", "--keys", "--unused_days", "--dry_run"}
    assert {*re.findall(r"--\w+", text)} == options
