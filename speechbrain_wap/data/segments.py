"""Parts of audio files: where in its file an utterance lies."""

import math
import re

import pandas as pd

from speechbrain_wap.errors import RecipeError

# Of an utterance that is a part of a file: which, and the sound of all of it
SEGMENT_COLUMNS = ["start", "end", "file_sound"]
# What people call start and end, in any unit, without spaces and underscores
PLACES = (
    "segment|seg|utterance|utt|clip|turn|speech|audio|wav|file|video|chunk|"
    "sentence|word|trim|cut|crop|time|t|samples?|frames?|ms"
)
UNITS = (
    "(time|times|stamp|timestamp|at|point|pos|position)?(in)?(s|secs?|seconds?|"
    "ms|msec|ssmsec|millis|milliseconds|samples?|frames?|idx|index)?"
)
OTHER_TIMES = re.compile(
    f"({PLACES})?(start|begin|beg|beginning|onset|offset|end|ending|stop|xmin|"
    f"xmax|tmin|tmax|from|to){UNITS}|t[01]|(first|last)(sample|frame)"
)
# What people call a duration, which with a start but no end says where one is
OTHER_DURATIONS = re.compile(
    f"({PLACES}|n|num|number|numberof)?(dur|duration|durations|len|length|"
    f"samples|frames){UNITS}"
)
# What people call both in one cell, such as 0.5-2.5
INTERVALS = re.compile(
    f"({PLACES})?(segments?|intervals?|times?|timestamps?|spans?|ranges?|"
    "bound(arie)?s)"
)
CHANNEL = re.compile("(audio|wav)?(channel|chan)(id|idx|index|no|nr|number)?")


def read_segments(table, csv=None):
    """Reads where utterances begin and end in their files, if a table says so.

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    csv : str, optional
        Its file, for errors.

    Returns
    -------
    table : pandas.DataFrame
        With start and end in seconds, if it has one of them, or stop; where
        they are empty, NaN, they are those of the file. Without an end, start
        and duration tell it.

    Raises
    ------
    RecipeError
        If a time is no number of seconds, an utterance ends before it starts,
        or columns seem to say the same in other words.
    """
    _refuse_other_words(table, csv or "the corpus table")
    if "stop" in table:
        table = table.rename(columns={"stop": "end"})
    given = [name for name in ("start", "end") if name in table]
    if not given:
        return table
    if given == ["start"] and "duration" in table:
        given.append("duration")
    table = table.reset_index(drop=True)

    def name_row(row):
        """Says which utterance is wrong."""
        # + 2: the header, and lines count from 1
        place = f"{csv}, line {row + 2}: " if csv else ""
        return f"{place}utterance {table['id'][row]}"

    times = pd.DataFrame(math.nan, table.index, ["start", "end", "duration"])
    for name in given:
        cells = table[name].mask(table[name] == "")
        times[name] = pd.to_numeric(cells, errors="coerce").astype(float)
        is_time = times[name].between(0, math.inf, inclusive="left")
        wrong = table.index[cells.notna() & ~is_time]
        if len(wrong):
            raise RecipeError(
                f"{name_row(wrong[0])} has {name}={cells[wrong[0]]}, which is "
                "no number of seconds: correct it, or rename the column if it "
                "is not to cut utterances out of audio files."
            )
    times["end"] = times["end"].fillna(times["start"] + times["duration"])
    starts = times["start"].fillna(0.0)
    wrong = table.index[times["end"] <= starts]
    if len(wrong):
        raise RecipeError(
            f"{name_row(wrong[0])} ends at {times['end'][wrong[0]]:g} s, but "
            f"starts at {starts[wrong[0]]:g} s: correct start and end."
        )
    return table.assign(start=times["start"], end=times["end"])


def _refuse_other_words(table, name):
    """Refuses columns that seem to say where in a file an utterance is."""
    if "stop" in table and "end" in table:
        raise RecipeError(f"{name} has the columns end and stop: remove one.")
    table = table.rename(columns={"stop": "end"})
    known = {"start", "end"} & {*table.columns}
    for column, cells in table.items():
        cells = cells.astype(str)
        word = re.sub(r"[\W_]", "", str(column).casefold())
        if CHANNEL.fullmatch(word) and cells.any():
            raise RecipeError(
                f"{name} has the column {column}, but all channels of a file "
                "are averaged: write a file for each channel, or rename the "
                "column if it means something else."
            )
        is_number = cells.str.fullmatch(r"[-\d:.,]*\d\s*[a-z]{0,4}").any()
        is_time = is_number and len(known) < 2 and OTHER_TIMES.fullmatch(word)
        if len(known) == 1 and "duration" not in table and is_number:
            is_time = is_time or OTHER_DURATIONS.fullmatch(word)
        if not known and INTERVALS.fullmatch(word):
            pair = r"\W*\d[\d:.]*\s*([-,;]|to)\s*\d[\d:.]*\W*"
            is_time = is_time or cells.str.fullmatch(pair).any()
        if is_time and column not in known:
            raise RecipeError(
                f"{name} has the column {column}: if it says which part of "
                "the audio file an utterance is, give start and end (or start "
                "and duration) in seconds; if not, rename it."
            )
    if known == {"end"} and "duration" in table:
        raise RecipeError(
            f"{name} has the columns end and duration, but no start: give "
            "start, in seconds, and leave it empty where a file begins."
        )


def list_segments(table):
    """Lists start and end of each utterance, None where they are the file's."""
    bounds = table.reindex(columns=["start", "end"])
    return [
        tuple(None if pd.isna(bound) else bound for bound in row)
        for row in bounds.itertuples(index=False)
    ]
