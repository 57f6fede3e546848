"""Corpus tables: reading and checking them, and their audio, and writing them.

A corpus table has one row per utterance, labelled or not: ``id, wav, duration,
speaker, session, emo``, then what a corpus adds. Where it has ``start`` and
``end``, in seconds, they cut the utterance out of its file.
"""

import json
import math
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import WHOLE, encode_name, inspect_segments
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import (
    expand_path,
    unquote_formula,
    write_table,
    write_text,
)
from speechbrain_wap.progress import Bar

logger = get_logger(__name__)

COLUMNS = ["id", "wav", "duration", "speaker", "session", "emo"]
# The corpus's own session where each speaker is one (fold_by)
RECORDED_IN = "recorded_in"
# Digests of an utterance's audio and of its samples, see inspect_audio
AUDIO_COLUMNS = ["digest", "sound"]
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
# Beside a corpus table
SKIPPED_NAME = "skipped.csv"
SKIPPED_COLUMNS = ["id", "reason"]
PARTIAL_NAME = "partial.txt"
OWN_COLUMNS = ["id", "wav", "speaker", "session", "emo"]
# Of what soundfile reads and corpora come in, in small letters or capitals
AUDIO_SUFFIXES = (
    ".wav .flac .ogg .opus .mp3 .aif .aiff .aifc .au .caf .w64 .rf64 .sph"
).split()
# In the cache folder: what is known of audio files, see check_audio
AUDIO_INDEX = "audio_index.json"


def read_text_table(path, required, cure, **options):
    """Reads a table as text, without guessing at "NA" or numbers.

    Arguments
    ---------
    path : str
        The file, comma-separated unless the options say otherwise.
    required : list of str
        Columns that it must have.
    cure : str
        What to do where one is missing; ends the error.
    **options : dict
        Of ``pandas.read_csv``, such as ``sep``.

    Returns
    -------
    table : pandas.DataFrame
        Cells without spaces around them.

    Raises
    ------
    RecipeError
        If the file is missing, no text in UTF-8 or no such table.

    Example
    -------
    >>> path = Path(getfixture("tmpdir"), "a.tsv")
    >>> _ = path.write_text("id\\temo\\n 01\\tNA\\n")
    >>> read_text_table(path, ["id"], "", sep="\\t").iloc[0].tolist()
    ['01', 'NA']
    """
    options = {
        "dtype": str,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
        "encoding_errors": "surrogateescape",
        "index_col": False,  # a comma at a line's end is no column
        "skipinitialspace": True,
        **options,
    }
    try:
        first = pd.read_csv(path, nrows=1, header=None, **options)
        header = [str(name).strip() for name in first.iloc[0]]
        names = [*required, "start", "end", "stop"]
        twice = [name for name in names if header.count(name) > 1]
        if twice:
            raise RecipeError(
                f"{path} has the column {twice[0]} twice: remove one."
            )
        missing = [name for name in required if name not in header]
        if missing:
            Path(path).read_text("utf-8")  # a UnicodeError where it is none
            raise RecipeError(
                f"{path} lacks the columns {', '.join(missing)}: {cure}"
            )
        with warnings.catch_warnings():
            # a row with more cells than the header, which pandas would cut
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, **options)
        table.columns = [unquote_formula(str(c).strip()) for c in table.columns]
        _refuse_other_encodings(table, path)
    except RecipeError:
        raise
    except FileNotFoundError:
        raise RecipeError(f"the table {path} does not exist.")
    except UnicodeError:
        raise RecipeError(
            f"the table {path} cannot be read: it is no text in UTF-8; "
            "save it as CSV (UTF-8)."
        )
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"the table {path} cannot be read: {reason}.")
    return table.apply(lambda column: column.str.strip().map(unquote_formula))


def _refuse_other_encodings(table, path):
    """Refuses bytes that are no UTF-8, but in the names of files."""
    names = ["id", "wav", "reason"]
    table.drop(columns=names, errors="ignore").to_csv().encode()
    if "wav" not in table:
        return
    for key, wav in zip(table["id"], table["wav"]):
        try:
            f"{key}{wav}".encode()
        except UnicodeError:  # an id may be its file's name
            if wav.isprintable() or not (Path(path).parent / wav).exists():
                raise


def read_own_corpus(csv):
    """Reads the table of a user's own corpus.

    Arguments
    ---------
    csv : str
        A CSV file with the columns id, wav, speaker, session, emo; emo may be
        empty; relative wav paths are relative to the file, ~ and $NAME
        stand for what they do in a shell.

    Returns
    -------
    table : pandas.DataFrame
        All columns as text, wav paths absolute; but see
        :func:`read_segments`.

    Raises
    ------
    RecipeError
        If the file or a column is missing, a cell is empty, or see
        :func:`read_segments`.
    """
    csv = expand_path(csv, "corpus_csv=")
    cure = f"a corpus table has {', '.join(OWN_COLUMNS)}."
    table = read_text_table(csv, OWN_COLUMNS, cure)
    if len(table) == 0:
        raise RecipeError(f"{csv} has no utterance: add rows below its header.")
    for column in ["id", "wav", "speaker", "session"]:
        empty = table.index[table[column] == ""]
        if len(empty):
            # + 2: the header, and lines count from 1
            raise RecipeError(
                f"{csv}, line {empty[0] + 2}: the column {column} is empty."
            )
    folder = Path(csv).resolve().parent
    table["wav"] = [
        str(folder / expand_path(wav, f"{csv}, line {line}: ", folder))
        for line, wav in enumerate(table["wav"], start=2)
    ]
    return read_segments(table, csv)


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


def note_partial(corpus_csv, note):
    """Notes beside a corpus table what the corpus lacks, for the report.

    Arguments
    ---------
    corpus_csv : str
        The table.
    note : str
        A sentence; "" where the corpus is whole.
    """
    path = Path(corpus_csv).with_name(PARTIAL_NAME)
    if note:
        write_text(path, note)
    else:
        path.unlink(missing_ok=True)


def open_data_folder(data_folder):
    """Checks that a corpus's folder is there.

    Arguments
    ---------
    data_folder : str
        As the user gave it.

    Returns
    -------
    folder : pathlib.Path

    Raises
    ------
    RecipeError
        If there is no such folder.
    """
    folder = Path(expand_path(data_folder, "data_folder="))
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise RecipeError(f"data_folder={data_folder} {reason}.")
    return folder


def find_audio(folder):
    """Lists the audio files of a folder, in any format that can be read.

    This is how every recipe looks for its audio. What begins with a dot, as the
    ``._`` files that a Mac leaves, is none.

    Arguments
    ---------
    folder : str
        The folder; one that does not exist holds nothing.

    Returns
    -------
    paths : dict
        Path of each file by its name without suffix, sorted.

    Raises
    ------
    RecipeError
        If an utterance is there in two formats.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> for name in ("b.WAV", "a.flac", "._a.wav", "a.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in find_audio(folder).values()]
    ['a.flac', 'b.WAV']
    """
    paths = {}
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for path in (Path(folder, name) for name in names if name[0] != "."):
        if path.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        other = paths.setdefault(path.stem, path)
        if other != path:
            raise RecipeError(
                f"{path} is the same utterance as {other.name} beside it, in "
                "another format: remove one of them."
            )
    return paths


def _list_segments(table):
    """Lists start and end of each utterance, None where they are the file's."""
    bounds = table.reindex(columns=["start", "end"])
    return [
        tuple(None if pd.isna(bound) else bound for bound in row)
        for row in bounds.itertuples(index=False)
    ]


def check_audio(table, audio_index=None):
    """Decodes audio files that are new or have changed, each once.

    Arguments
    ---------
    table : pandas.DataFrame
        With the columns id and wav, and start and end where they are parts.
    audio_index : str, optional
        A JSON file that keeps size, time of change, duration, digest and sound
        of the files and the parts.

    Returns
    -------
    table : pandas.DataFrame
        The rows that can be read, with duration (in seconds), digest and sound,
        see :func:`speechbrain_wap.data.audio.inspect_audio`; where there are
        parts of files, also file_sound, that of the file.
    reasons : dict
        Why the others cannot, by id.
    """
    known = _read_index(audio_index)
    table = table.drop(columns="file_sound", errors="ignore")
    segments = _list_segments(table)
    wanted = {}
    for wav, segment in zip(table["wav"], segments):
        wanted.setdefault(wav, {WHOLE: wav})
        if segment != WHOLE:
            # no path has a zero byte
            wanted[wav][segment] = f"{wav}\0{segment}"

    def inspect(wav):
        """Returns entries for the index by segment, or why there is none."""
        names = wanted[wav]
        try:
            stat = os.stat(encode_name(wav))
            state = [stat.st_size, stat.st_mtime_ns]
            there = {s: known.get(name, []) for s, name in names.items()}
            if all(entry[:2] == state for entry in there.values()):
                return there
            found = inspect_segments(wav, list(names))
            return {
                segment: str(values)
                if isinstance(values, RecipeError)
                else state + list(values)
                for segment, values in zip(names, found)
            }
        except RecipeError as error:
            return dict.fromkeys(names, str(error))
        except (OSError, ValueError) as error:  # such as of a name with NUL
            reason = getattr(error, "strerror", None) or error
            return dict.fromkeys(names, f"{wav}: {reason}.")

    bar = {"desc": "Checking audio", "unit": "file"}
    with ThreadPoolExecutor() as pool:
        found = Bar(pool.map(inspect, wanted), total=len(wanted), **bar)
        found = dict(zip(wanted, found))
    fresh = {
        wanted[wav][segment]: entry
        for wav, entries in found.items()
        for segment, entry in entries.items()
        if isinstance(entry, list)
    }
    if audio_index is not None and not fresh.items() <= known.items():
        try:
            write_text(audio_index, json.dumps({**known, **fresh}))
        except RecipeError as error:  # it only saves time
            logger.warning(f"{error} The next run decodes all files again.")
    rows = list(zip(table["id"], table["wav"], segments))
    is_read = [isinstance(found[wav][part], list) for _, wav, part in rows]
    reasons = {
        key: found[wav][part]
        for (key, wav, part), ok in zip(rows, is_read)
        if not ok
    }
    table = table.loc[is_read].reset_index(drop=True)
    rows = [row for row, ok in zip(rows, is_read) if ok]
    columns = ["duration", *AUDIO_COLUMNS]
    values = [found[wav][part][2:] for _, wav, part in rows]
    table = table.assign(**pd.DataFrame(values, columns=columns))
    if any(part != WHOLE for _, _, part in rows):
        # that of a file of which nothing but the part can be used is not known
        table["file_sound"] = [
            None if part == WHOLE else fresh.get(wav, [None])[-1]
            for _, wav, part in rows
        ]
    return table, reasons


def _read_index(audio_index):
    """Reads the index of audio files, empty where it is damaged."""
    if audio_index is None or not Path(audio_index).is_file():
        return {}
    try:
        known = dict(json.loads(Path(audio_index).read_text("utf-8")))
        for wav, (_, _, duration, *digests) in known.items():
            float(duration), Path(wav), [int(d, 16) for d in digests]
    except (OSError, TypeError, ValueError):
        logger.warning(f"{audio_index} is damaged and is made again.")
        return {}
    # an earlier version kept no sound
    return {wav: entry for wav, entry in known.items() if len(entry) == 5}


def check_ids(table, place=""):
    """Makes sure that a table's ids are unique; place begins the error."""
    repeated = table["id"][table["id"].duplicated()]
    if len(repeated):
        key = repeated.iloc[0]
        one, other = table["wav"][table["id"] == key].iloc[:2]
        raise RecipeError(
            f"{place}the id {key} stands for more than one utterance ({one} "
            f"and {other}): ids must be unique."
        )


def write_corpus_table(table, corpus_csv, max_skipped=0.01, audio_index=None):
    """Checks every audio file and writes the corpus table.

    What cannot be read is left out and listed with its reason in
    ``skipped.csv`` beside the table.

    Arguments
    ---------
    table : pandas.DataFrame
        At least the columns id, wav, speaker, session, emo.
    corpus_csv : str
        The file to write.
    max_skipped : float
        Share of the files that may be unreadable, 0 to 1.
    audio_index : str, optional
        See :func:`check_audio`.

    Returns
    -------
    table : pandas.DataFrame
        What was written: COLUMNS first, then other columns, then digest and
        sound of each utterance.

    Raises
    ------
    RecipeError
        If the table is empty, ids repeat, too many files are unreadable, or see
        :func:`read_segments`.
    """
    if len(table) == 0:
        raise RecipeError(f"no utterance found for {corpus_csv}.")
    check_ids(table)
    table = read_segments(table)
    ids = table["id"].tolist()
    table, reasons = check_audio(table, audio_index)
    record_skipped(
        Path(corpus_csv).with_name(SKIPPED_NAME), reasons, ids, max_skipped
    )
    _warn_of_labels(table)
    extra = [c for c in table.columns if c not in COLUMNS + AUDIO_COLUMNS]
    table = table[COLUMNS + extra + AUDIO_COLUMNS]
    write_table(corpus_csv, table)
    return table


def _warn_of_labels(table):
    """Warns where one audio is several utterances with different labels."""
    labelled = table[table["emo"] != ""]
    count = labelled.groupby("sound")["emo"].transform("nunique")
    several = labelled[count > 1]
    if len(several) == 0:
        return
    one = several.iloc[0]
    is_other = several["sound"] == one["sound"]
    other = several[is_other & (several["emo"] != one["emo"])].iloc[0]
    logger.warning(
        f"{len(several)} utterances have the same audio as another one under "
        f"another label, first {one['id']} ({one['emo']}) and {other['id']} "
        f"({other['emo']}) of {one['wav']}: if they are parts of it, give "
        "start and end in seconds; if not, keep one of them."
    )


def record_skipped(skipped_csv, reasons, ids, max_skipped, append=False):
    """Lists unusable utterances, and stops where there are too many.

    All ranks decide alike, and the main one writes.

    Arguments
    ---------
    skipped_csv : str
        The file to write; it is removed where there is nothing to list.
    reasons : dict
        Reason by utterance id.
    ids : list of str
        All utterances that were tried.
    max_skipped : float
        Share of them that may fail, 0 to 1.
    append : bool
        Whether the file's lines on other utterances stay.

    Raises
    ------
    RecipeError
        If more failed.
    """
    if if_main_process():
        before, tried = read_skipped(skipped_csv) if append else {}, set(ids)
        listed = {k: reason for k, reason in before.items() if k not in tried}
        listed.update(reasons)
        listing = pd.DataFrame(listed.items(), columns=SKIPPED_COLUMNS)
        write_listing(listing, skipped_csv)
    if not reasons:
        return
    first = next(iter(reasons))
    summary = (
        f"{len(reasons)} of {len(ids)} utterances cannot be used, first "
        f"{first}: {reasons[first]} All are listed in {skipped_csv}"
    )
    if len(reasons) > max_skipped * len(ids):
        raise RecipeError(
            f"{summary}. Mend or remove them, or allow more with "
            f"max_skipped (now {max_skipped})."
        )
    logger.warning(f"{summary}; they are left out.")


def write_listing(table, path):
    """Writes a table, or removes its file where there is nothing to list."""
    if len(table) == 0:
        Path(path).unlink(missing_ok=True)
        return
    write_table(path, table)


def read_skipped(skipped_csv):
    """Reads :func:`record_skipped`'s file: reasons by id, none if damaged."""
    if not Path(skipped_csv).is_file():
        return {}
    try:
        table = read_text_table(skipped_csv, SKIPPED_COLUMNS, "")
    except RecipeError:
        logger.warning(f"{skipped_csv} is damaged and is made again.")
        return {}
    return dict(zip(table["id"], table["reason"]))


def read_corpus_table(corpus_csv):
    """Reads the table that :func:`write_corpus_table` wrote.

    Arguments
    ---------
    corpus_csv : str
        The file.

    Returns
    -------
    table : pandas.DataFrame
        All columns as text, but the duration, in seconds.
    """
    cure = "run without --skip_prep to prepare the corpus."
    table = read_text_table(corpus_csv, COLUMNS + ["digest"], cure)
    table["duration"] = table["duration"].astype(float)
    return table
