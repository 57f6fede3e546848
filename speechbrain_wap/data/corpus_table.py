"""Corpus tables: reading, checking and writing them.

A corpus table has one row per utterance, labelled or not: ``id, wav, duration,
speaker, session, emo``, then what a corpus adds. Where it has ``start`` and
``end``, in seconds, they cut the utterance out of its file.
"""

import os
import warnings
from pathlib import Path

import pandas as pd
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio_index import AUDIO_COLUMNS, check_audio
from speechbrain_wap.data.segments import read_segments
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import (
    expand_path,
    unquote_formula,
    write_table,
    write_text,
)

logger = get_logger(__name__)

COLUMNS = ["id", "wav", "duration", "speaker", "session", "emo"]
# The corpus's own session where each speaker is one (fold_by)
RECORDED_IN = "recorded_in"
# Beside a corpus table
SKIPPED_NAME = "skipped.csv"
SKIPPED_COLUMNS = ["id", "reason"]
PARTIAL_NAME = "partial.txt"
OWN_COLUMNS = ["id", "wav", "speaker", "session", "emo"]
# Of what soundfile reads and corpora come in, in small letters or capitals
AUDIO_SUFFIXES = (
    ".wav .flac .ogg .opus .mp3 .aif .aiff .aifc .au .caf .w64 .rf64 .sph"
).split()


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
        All columns as text, but duration, start and end, in seconds.
    """
    cure = "run without --skip_prep to prepare the corpus."
    table = read_text_table(corpus_csv, COLUMNS + ["digest"], cure)
    for name in ("duration", "start", "end"):
        if name in table:
            table[name] = pd.to_numeric(table[name])  # NaN where empty
    return table
