"""Makes the corpus table of nEMO, acted Polish emotional speech.

nEMO: https://github.com/amu-cai/nEMO (CC BY-NC-SA 4.0). ``data.tsv`` lists the
files of ``samples/``, such as ``WR0_surprised_64.wav``: speaker WR0, the
emotion, text 64. All of the 90 texts occur in all emotions, so that words tell
nothing. Nine folds, one speaker each.
"""

import csv

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.corpus_table import (
    find_audio,
    note_partial,
    open_data_folder,
    read_text_table,
    write_corpus_table,
)
from speechbrain_wap.errors import RecipeError

logger = get_logger(__name__)

COLUMNS = ["file_id", "emotion", "speaker_id", "gender"]
KNOWN_COUNTS = {
    "anger": 749,
    "fear": 736,
    "happiness": 749,
    "neutral": 809,
    "sadness": 769,
    "surprised": 669,
}
NUM_SPEAKERS = 9


def prepare_nemo(data_folder, corpus_csv, max_skipped=0.01, audio_index=None):
    """Writes the corpus table and prints its counts beside the known ones.

    Arguments
    ---------
    data_folder : str
        The folder with ``data.tsv`` and ``samples/``; any format and sample
        rate.
    corpus_csv : str
        The table to write, with the columns gender and text (its number).
    max_skipped : float
        Share of the audio files that may be missing or unreadable, 0 to 1.
    audio_index : str, optional
        Keeps what is known of unchanged audio files.

    Returns
    -------
    table : pandas.DataFrame

    Raises
    ------
    RecipeError
        If the folder, its list or its audio is missing, or a line of the list
        is none of nEMO.
    """
    folder = open_data_folder(data_folder)
    listing = folder / "data.tsv"
    paths = find_audio(folder / "samples")
    if not listing.is_file() or not paths:
        raise RecipeError(
            f"data_folder={data_folder} lacks data.tsv or the audio in "
            "samples/: give the folder of nEMO."
        )
    cure = "restore it from nEMO."
    # quotation marks in a text are no quotation of a cell
    rows = read_text_table(
        listing, COLUMNS, cure, sep="\t", quoting=csv.QUOTE_NONE
    )
    if len(rows) == 0:
        raise RecipeError(f"{listing} lists no file: {cure}")
    table = pd.DataFrame(
        [
            _read_row(row, f"{listing}, line {line}", paths, folder)
            for line, row in enumerate(rows.to_dict("records"), start=2)
        ]
    )
    unlisted = sorted(set(paths) - set(table["id"]))
    if unlisted:
        logger.warning(
            f"{len(unlisted)} files of {folder / 'samples'} are not in "
            f"data.tsv and are left out, first {paths[unlisted[0]].name}."
        )
    table = write_corpus_table(table, corpus_csv, max_skipped, audio_index)
    counts = _describe_counts(table)
    logger.info(counts)
    note_partial(corpus_csv, counts if "partial" in counts else "")
    return table


def _read_row(row, place, paths, folder):
    """Makes a row of the table of a line of data.tsv; place begins errors."""
    key = row["file_id"].rpartition(".")[0]
    speaker, emotion = row["speaker_id"], row["emotion"]
    text = key.removeprefix(f"{speaker}_{emotion}_")
    if emotion not in KNOWN_COUNTS or not speaker or not text.isdecimal():
        raise RecipeError(
            f"{place}: {row['file_id']!r} of speaker {speaker!r} and emotion "
            f"{emotion!r} is no file of nEMO, such as WR0_surprised_64.wav: "
            "restore the line, or use --corpus_csv."
        )
    # one that is missing is skipped, and listed
    path = paths.get(key, folder / "samples" / row["file_id"])
    return {
        "id": key,
        "wav": str(path.resolve()),
        "speaker": speaker,
        "session": speaker,
        "emo": emotion,
        "gender": row["gender"],
        "text": text,
    }


def _describe_counts(table):
    """Compares the number of utterances with the release's."""
    found = table["emo"].value_counts()
    listing = ", ".join(
        f"{name} {found.get(name, 0)}/{known}"
        for name, known in KNOWN_COUNTS.items()
    )
    complete = found.to_dict() == KNOWN_COUNTS
    verdict = "complete" if complete else "they differ: a partial corpus"
    return (
        f"nEMO utterances, found/release: {listing}. In all {len(table)} of "
        f"{sum(KNOWN_COUNTS.values())}, of {table['speaker'].nunique()} of "
        f"{NUM_SPEAKERS} speakers, {verdict}."
    )
