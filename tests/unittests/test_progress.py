"""Bars: one switch for all, and a line a minute where nobody watches."""

import logging
from types import SimpleNamespace

import pytest
from speechbrain import core

from speechbrain_wap import progress
from speechbrain_wap.data.audio_index import check_audio
from speechbrain_wap.data.corpus_table import read_own_corpus
from speechbrain_wap.progress import Bar, replace_bars, switch_bars


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.setitem(progress._switch, "on", True)


@pytest.fixture
def terminal(monkeypatch):
    """Lets the console be one that somebody watches."""
    is_terminal = type("Console", (), {"isatty": lambda self: True})
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=is_terminal()))
    monkeypatch.setenv("COLUMNS", "99")
    monkeypatch.setenv("LINES", "30")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by ten seconds whenever it is looked at."""
    times = iter(range(0, 10**6, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def count(bar):
    """Goes through a bar as SpeechBrain does."""
    with bar as steps:
        for number in steps:
            steps.set_postfix(train_loss=number)


def test_without_a_terminal_there_is_a_line_a_minute(clock, caplog, capsys):
    caplog.set_level(logging.INFO)
    count(Bar(range(60), desc="Training", mininterval=0, miniters=1))
    lines = [r.getMessage() for r in caplog.records]
    # of more than sixty times that the bar would have been drawn
    assert 10 <= len(lines) <= 25, lines
    assert lines[0].startswith("Training: ")
    assert " of 60 batch (" in lines[0] and " left)" in lines[0]
    assert capsys.readouterr() == ("", "")


def test_what_takes_no_minute_says_nothing(caplog, capsys):
    caplog.set_level(logging.INFO)
    count(Bar(range(60)))
    assert not caplog.records and capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_it_is_a_bar_unless_it_is_switched_off(caplog, capsys):
    count(Bar(range(60), desc="Training"))
    assert "Training: 100%" in capsys.readouterr().err
    switch_bars(False)
    count(Bar(range(60), desc="Training"))
    assert capsys.readouterr() == ("", "") and not caplog.records


@pytest.mark.usefixtures("terminal")
def test_ranks_have_one_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "if_main_process", lambda: False)
    count(Bar(range(60)))
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("terminal")
def test_the_audio_is_checked_under_the_same_switch(own_csv, capsys):
    table = read_own_corpus(own_csv)
    for on in (True, False):
        switch_bars(on)
        check_audio(table)
        assert ("Checking audio" in capsys.readouterr().err) == on


def test_speechbrains_bars_are_these_while_it_trains():
    usual = core.tqdm
    with pytest.raises(KeyError), replace_bars(core):
        assert core.tqdm is Bar
        raise KeyError
    assert core.tqdm is usual
