"""Files are there whole or not at all, and a lock is of one process."""

import errno
import json
import multiprocessing
import os
import re
import time
from pathlib import Path

import pandas as pd
import pytest

from speechbrain_wap import files
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import (
    expand_path,
    only_process,
    try_lock,
    unquote_formula,
    write_atomically,
    write_table,
    write_text,
)

fork = multiprocessing.get_context("fork")


def list_names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_is_seen_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with write_atomically(path) as temporary:
        Path(temporary).write_text("ärgerlich", encoding="utf-8")
        assert not path.exists()
        assert Path(temporary).parent == path.parent  # else it is no rename
    assert path.read_bytes() == "ärgerlich".encode()
    assert list_names(tmp_path) == ["a", "b", "file.txt"]


@pytest.mark.parametrize(
    "error, raised",
    [
        (KeyboardInterrupt(), (KeyboardInterrupt, "")),
        (OSError("disk full"), (RecipeError, "txt cannot.*: disk full")),
    ],
)
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error, raised):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(raised[0], match=raised[1]):
        with write_atomically(tmp_path / "file.txt") as name:
            Path(name).write_text("ha")
            raise error
    assert (tmp_path / "file.txt").read_text() == "old"
    assert list_names(tmp_path) == ["file.txt"]


# Locks ---------------------------------------------------------------------


def can_lock(path):
    with try_lock(path) as is_locked:
        return is_locked


@pytest.mark.parametrize("column, kept", [("label", []), ("id", ["-joy"])])
def test_a_spreadsheet_computes_nothing_but_numbers(tmp_path, column, kept):
    cells = ["=1+1", "-5", "+1e3", "-2+3", "@SUM(1)", "'=x", "'tis", "-joy"]
    path = tmp_path / "table.csv"
    write_table(path, pd.DataFrame({column: cells, "=n": -1.5}))
    read = pd.read_csv(path, dtype=str)
    assert list(read.columns) == [column, "'=n"]
    assert list(read["'=n"]) == ["-1.5"] * len(cells)
    plain = ["-5", "+1e3", "'tis", *kept]
    quoted = [c if c in plain else f"'{c}" for c in cells]
    assert list(read[column]) == quoted
    assert [unquote_formula(c) for c in quoted] == cells


def test_bytes_that_are_no_text_come_back_from_a_file(tmp_path):
    name = os.fsdecode(b"Z\xfcrich")
    write_text(tmp_path / "a.json", json.dumps({"a": name}, ensure_ascii=False))
    assert b"Z\xfcrich" in (tmp_path / "a.json").read_bytes()
    assert files.read_json(tmp_path / "a.json", "") == {"a": name}


@pytest.fixture
def hold(start):
    """Has another process hold a lock until it is told to end."""

    def target(path, there, remove, with_child):
        with try_lock(path, remove) as is_locked:
            if with_child:
                fork.Process(target=time.sleep, args=[5], daemon=True).start()
            there.send(is_locked)
            there.recv()
        there.send("released")
        there.recv()

    def hold(path, remove=False, with_child=False):
        here, there = fork.Pipe()
        process = start(target, path, there, remove, with_child)
        there.close()
        assert here.recv()
        return process, here

    return hold


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("end", ["release", "kill"])
def test_a_lock_is_of_one_process_until_its_block_or_it_ends(
    tmp_path, hold, end, remove
):
    path = tmp_path / "not there yet" / "lock"
    process, connection = hold(path, remove)
    assert not can_lock(path)
    assert can_lock(path.with_name("other"))
    if end == "kill":
        process.kill()
        process.join()
    else:
        connection.send("end")
        assert connection.recv() == "released"
        assert path.exists() != remove
    assert can_lock(path)


def test_a_killed_process_leaves_no_lock_to_its_child(tmp_path, hold):
    process, _ = hold(tmp_path / "lock", with_child=True)
    process.kill()
    process.join()
    assert can_lock(tmp_path / "lock")


def test_a_lock_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(RecipeError, match="/lock cannot be written: Is a "):
        can_lock(tmp_path / "lock")


def test_without_locks_work_goes_on_with_one_warning(
    tmp_path, monkeypatch, caplog
):
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    for name in ("a", "a", "b"):
        assert can_lock(tmp_path / name)
    (record,) = [r for r in caplog.records if r.name != "filelock"]
    assert str(tmp_path) in record.getMessage()


def test_one_process_works_in_an_output_folder(tmp_path, hold, monkeypatch):
    hold(tmp_path / ".lock")
    with pytest.raises(RecipeError, match=f"another process.*{tmp_path}"):
        with only_process(tmp_path):
            pass
    monkeypatch.setattr(files, "if_main_process", lambda: False)
    with only_process(tmp_path):  # of several ranks, the main one locks
        pass


# Paths that a user writes -----------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, also that of a variable, and an empty place to be in."""
    home = tmp_path / "home"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SER_DATA", "/data/own")
    monkeypatch.delenv("NOT_SET", raising=False)
    return home


@pytest.mark.parametrize(
    "written, path",
    [
        ("~", "{home}"),
        ("~/a b/c", "{home}/a b/c"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("$HOME/x", "{home}/x"),
        ("${SER_DATA}_2/x", "/data/own_2/x"),
        ("a/$SER_DATA", "a//data/own"),
        # these stand for nothing
        ("facebook/hubert-large-ll60k", "facebook/hubert-large-ll60k"),
        ("./~/x", "./~/x"),
        ("a~/b", "a~/b"),
        ("US$5/c$/$", "US$5/c$/$"),
        ("results/universal_{seed}", "results/universal_{seed}"),
    ],
)
def test_a_path_is_what_it_is_in_a_shell(written, path, home):
    assert expand_path(written) == path.replace("{home}", str(home))


@pytest.mark.parametrize(
    "written, reason",
    [
        ("$NOT_SET/x", "the variable $NOT_SET is not set"),
        ("~/${NOT_SET}", "the variable $NOT_SET is not set"),
        ("~nobody-here/x", "there is no user nobody-here"),
    ],
)
def test_what_stands_for_nothing_is_named_unless_it_is_there(
    written, reason, home
):
    with pytest.raises(RecipeError, match=f"^a_folder=.*{re.escape(reason)}"):
        expand_path(written, "a_folder=")
    Path("sub", written).mkdir(parents=True)
    assert expand_path(written, folder="sub") == written
