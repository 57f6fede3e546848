"""Files are there whole or not at all, and work is claimed by one process."""

import errno
import multiprocessing
import os
import pickle
import signal as signals
from pathlib import Path

import pytest

from speechbrain_wap import files
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import (
    Claims,
    format_bytes,
    write_atomically,
    write_text,
)

fcntl = pytest.importorskip("fcntl")
fork = multiprocessing.get_context("fork")


# Writing -------------------------------------------------------------------


def list_names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_is_seen_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with write_atomically(path) as temporary:
        Path(temporary).write_text("whole", encoding="utf-8")
        assert not path.exists()
        assert Path(temporary).parent == path.parent  # else it is no rename
    assert path.read_text("utf-8") == "whole"
    assert list_names(tmp_path) == ["a", "b", "file.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RecipeError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(error), write_atomically(tmp_path / "file.txt") as name:
        Path(name).write_text("ha")
        raise error
    assert (tmp_path / "file.txt").read_text() == "old"
    assert list_names(tmp_path) == ["file.txt"]


def test_what_cannot_be_written_is_one_sentence_that_names_it(tmp_path):
    (tmp_path / "a").write_text("a file where a folder belongs")
    path = tmp_path / "a" / "file.txt"
    with pytest.raises(RecipeError) as error:
        write_text(path, "content")
    assert str(error.value).startswith(f"{path} cannot be written: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_an_error_while_writing_is_said_with_its_reason(
    tmp_path, error, reason
):
    with pytest.raises(RecipeError, match=f"file.txt cannot.*: {reason}"):
        with write_atomically(tmp_path / "file.txt"):
            raise error
    assert list_names(tmp_path) == []


def test_text_is_written_in_utf_8(tmp_path):
    write_text(tmp_path / "file.txt", "ärgerlich")
    assert (tmp_path / "file.txt").read_bytes() == "ärgerlich".encode()


# Claims --------------------------------------------------------------------

NUMBERS = [0, 1, 7, 16**15 - 1, 2**62]
ALL = None


class Holder:
    """Another process, which holds a claim until it is told otherwise."""

    def __init__(self, claims, number, is_mine=True):
        self.connection, there = fork.Pipe()
        self.process = fork.Process(
            target=self.hold, args=[claims, number], daemon=True
        )
        self.there = there
        self.process.start()
        there.close()
        assert self.connection.recv() == is_mine

    def hold(self, claims, number):
        self.connection.close()
        with claims.claim(number) as is_mine:
            self.there.send(is_mine)
            if self.there.recv() == "exit":
                os._exit(0)
        self.there.send("released")
        self.there.recv()

    def end(self, way):
        """Ends the claim: its context, its process, or with a kill."""
        if way == "kill":
            os.kill(self.process.pid, signals.SIGKILL)
        else:
            self.connection.send(way)
        if way == "release":
            assert self.connection.recv() == "released"
        else:
            self.process.join()


@pytest.fixture
def lock(tmp_path):
    """Where claims are; the folder is not there yet."""
    return tmp_path / "cache" / ".lock"


@pytest.fixture
def hold(lock):
    """Makes another process hold a claim, at most as long as the test."""
    holders = []

    def hold(number, claims=None, is_mine=True):
        holders.append(Holder(claims or Claims(lock), number, is_mine))
        return holders[-1]

    yield hold
    for holder in holders:
        holder.process.kill()
        holder.process.join()


def can_claim(claims, number):
    with claims.claim(number) as is_mine:
        return is_mine


@pytest.mark.parametrize("number", NUMBERS)
def test_what_one_process_has_no_other_can_claim(lock, hold, number):
    hold(number)
    claims = Claims(lock)
    assert not can_claim(claims, number)
    assert not can_claim(claims, number)
    for other in NUMBERS + [number + 1]:
        assert can_claim(claims, other) == (other != number)


@pytest.mark.parametrize("number", NUMBERS)
def test_all_can_be_claimed_only_where_nobody_has_any(lock, hold, number):
    claims = Claims(lock)
    assert can_claim(claims, ALL)
    holder = hold(number)
    assert not can_claim(claims, ALL)
    holder.end("exit")
    assert can_claim(claims, ALL)


def test_where_all_are_claimed_none_can_be(lock, hold):
    holder = hold(ALL)
    claims = Claims(lock)
    assert not any(can_claim(claims, number) for number in [ALL, *NUMBERS])
    holder.end("release")
    assert all(can_claim(claims, number) for number in [ALL, *NUMBERS])


@pytest.mark.parametrize("number", [7, ALL])
@pytest.mark.parametrize("way", ["release", "exit", "kill"])
def test_a_claim_ends_with_its_context_and_with_its_process(
    lock, hold, number, way
):
    holder = hold(number)
    claims = Claims(lock)
    assert not can_claim(claims, 7)
    holder.end(way)
    assert can_claim(claims, 7)


def test_a_claim_within_another_ends_alone(lock, hold):
    claims = Claims(lock)
    with claims.claim(7):
        with claims.claim(8):
            pass
        hold(8)
        hold(7, is_mine=False)


def test_an_error_releases_a_claim(lock, hold):
    claims = Claims(lock)
    with pytest.raises(KeyError), claims.claim(7):
        raise KeyError
    hold(7, is_mine=True)


def test_a_claim_in_vain_takes_nothing_from_whoever_has_it(lock, hold):
    hold(7)
    hold(7, is_mine=False).end("release")
    hold(7, is_mine=False)


def test_a_forked_process_has_not_its_parents_claims(lock, hold):
    claims = Claims(lock)
    with claims.claim(7) as is_mine:
        assert is_mine
        # the same object, whose file is open
        hold(7, claims, is_mine=False).end("exit")
        hold(8, claims).end("exit")
        # and the child's end has not released its parent's
        hold(7, is_mine=False)
    hold(7, claims)


def test_the_lock_file_is_made_in_its_folder_and_stays_empty(lock, hold):
    claims = Claims(lock)
    assert not lock.parent.exists()
    assert can_claim(claims, 2**62)
    hold(ALL).end("release")
    assert lock.read_bytes() == b""


def test_a_lock_file_that_cannot_be_made_is_named(lock):
    lock.mkdir(parents=True)
    with pytest.raises(RecipeError, match="/.lock cannot be written: Is a "):
        can_claim(Claims(lock), 7)


def test_claims_are_sent_to_another_process_without_their_file(lock, hold):
    claims = Claims(lock)
    can_claim(claims, 7)
    sent = pickle.loads(pickle.dumps(claims))
    assert sent.file is None
    assert claims.file is not None
    holder = hold(7, sent)
    assert not can_claim(claims, 7)
    holder.end("exit")
    assert can_claim(claims, 7)


def refuse_locks(monkeypatch, number):
    """Has the file system answer to locks with an error."""
    calls = []

    def lockf(*args):
        calls.append(args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    return calls


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_work_goes_on_with_one_warning(
    lock, monkeypatch, caplog, number
):
    calls = refuse_locks(monkeypatch, number)
    claims = Claims(lock)
    for piece in (7, 7, 8, ALL):
        assert can_claim(claims, piece)
    (record,) = caplog.records
    for part in (str(lock), os.strerror(number)):
        assert part in record.getMessage()
    assert len(calls) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_both_answers_that_mean_taken_are_understood(
    lock, monkeypatch, caplog, number
):
    calls = refuse_locks(monkeypatch, number)
    claims = Claims(lock)
    assert not can_claim(claims, 7)
    assert not can_claim(claims, 7)
    assert len(calls) == 2
    assert caplog.text == ""


def test_a_system_without_such_locks_goes_on_without_a_file(lock, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    claims = Claims(lock)
    assert can_claim(claims, 7)
    assert can_claim(claims, ALL)
    assert not lock.exists()


@pytest.mark.parametrize(
    "size, text",
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (41_500_000, "41.5 MB"),
        (2.34e9, "2.3 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_bytes_are_written_as_people_read_them(size, text):
    assert format_bytes(size) == text
