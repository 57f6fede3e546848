"""Corpus tables: reading and checking them, and their audio, and writing them.

A corpus table has one row per utterance, labelled or not: ``id, wav, duration,
speaker, session, emo``, then what a corpus adds.
"""

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import encode_name, inspect_audio
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import unquote_formula, write_table, write_text
from speechbrain_wap.progress import Bar

logger = get_logger(__name__)

COLUMNS = ["id", "wav", "duration", "speaker", "session", "emo"]
# Digests of the audio file and of its samples, see inspect_audio
AUDIO_COLUMNS = ["digest", "sound"]
# Beside a corpus table
SKIPPED_NAME = "skipped.csv"
SKIPPED_COLUMNS = ["id", "reason"]
OWN_COLUMNS = ["id", "wav", "speaker", "session", "emo"]
# In the cache folder: what is known of audio files, see check_audio
AUDIO_INDEX = "audio_index.json"


def _read_csv(path, required, cure):
    """Reads a table as text, without guessing at "NA" or numbers."""
    options = {
        "dtype": str,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
        "encoding_errors": "surrogateescape",
        "index_col": False,  # a comma at a line's end is no column
        "skipinitialspace": True,
    }
    try:
        first = pd.read_csv(path, nrows=1, header=None, **options)
        header = [str(name).strip() for name in first.iloc[0]]
        twice = [name for name in required if header.count(name) > 1]
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
        raise RecipeError(f"corpus table {path} does not exist.")
    except UnicodeError:
        raise RecipeError(
            f"corpus table {path} cannot be read: it is no text in UTF-8; "
            "save it as CSV (UTF-8)."
        )
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"corpus table {path} cannot be read: {reason}.")
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
        empty; relative wav paths are relative to the file.

    Returns
    -------
    table : pandas.DataFrame
        All columns as text, wav paths absolute.

    Raises
    ------
    RecipeError
        If the file or a column is missing, or a cell is empty.
    """
    cure = f"a corpus table has {', '.join(OWN_COLUMNS)}."
    table = _read_csv(csv, OWN_COLUMNS, cure)
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
    table["wav"] = [str(folder / wav) for wav in table["wav"]]
    return table


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
    folder = Path(data_folder)
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise RecipeError(f"data_folder={data_folder} {reason}.")
    return folder


def check_audio(table, audio_index=None):
    """Decodes audio files that are new or have changed.

    Arguments
    ---------
    table : pandas.DataFrame
        With the columns id and wav.
    audio_index : str, optional
        A JSON file that keeps size, time of change, duration, digest and sound
        of the files.

    Returns
    -------
    table : pandas.DataFrame
        The rows that can be read, with duration (in seconds), digest and sound
        of their files, see :func:`speechbrain_wap.data.audio.inspect_audio`.
    reasons : dict
        Why the others cannot, by id.
    """
    known = _read_index(audio_index)

    def inspect(wav):
        """Returns a file's entry for the index, or why it has none."""
        try:
            stat = os.stat(encode_name(wav))
            state = [stat.st_size, stat.st_mtime_ns]
            if known.get(wav, [])[:2] == state:
                return known[wav]
            return state + list(inspect_audio(wav))
        except RecipeError as error:
            return str(error)
        except (OSError, ValueError) as error:  # such as of a name with NUL
            return f"{wav}: {getattr(error, 'strerror', None) or error}."

    bar = {"desc": "Checking audio", "unit": "file"}
    with ThreadPoolExecutor() as pool:
        found = pool.map(inspect, table["wav"])
        found = list(Bar(found, total=len(table), **bar))
    is_read = [isinstance(entry, list) for entry in found]
    reasons = {k: f for k, f, ok in zip(table["id"], found, is_read) if not ok}
    table = table.loc[is_read].reset_index(drop=True)
    found = [entry for entry in found if isinstance(entry, list)]
    fresh = dict(zip(table["wav"], found))
    if audio_index is not None and not fresh.items() <= known.items():
        try:
            write_text(audio_index, json.dumps({**known, **fresh}))
        except RecipeError as error:  # it only saves time
            logger.warning(f"{error} The next run decodes all files again.")
    columns = ["duration", *AUDIO_COLUMNS]
    values = pd.DataFrame([entry[2:] for entry in found], columns=columns)
    return table.assign(**values), reasons


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
        sound of each audio file.

    Raises
    ------
    RecipeError
        If the table is empty, ids repeat, or too many files are unreadable.
    """
    if len(table) == 0:
        raise RecipeError(f"no utterance found for {corpus_csv}.")
    check_ids(table)
    ids = table["id"].tolist()
    table, reasons = check_audio(table, audio_index)
    record_skipped(
        Path(corpus_csv).with_name(SKIPPED_NAME), reasons, ids, max_skipped
    )
    extra = [c for c in table.columns if c not in COLUMNS + AUDIO_COLUMNS]
    table = table[COLUMNS + extra + AUDIO_COLUMNS]
    write_table(corpus_csv, table)
    return table


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
        table = _read_csv(skipped_csv, SKIPPED_COLUMNS, "")
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
    table = _read_csv(corpus_csv, COLUMNS + ["digest"], cure)
    table["duration"] = table["duration"].astype(float)
    return table
