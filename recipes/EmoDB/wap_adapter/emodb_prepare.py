"""Makes the corpus table of EmoDB, the Berlin database of emotional speech.

EmoDB: http://emodb.bilderbar.info (free). A file ``SSTTTEV.wav`` is speaker
SS, text TTT, emotion E, version V. Five folds, one man and one woman each.
"""

import re

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.corpus_table import (
    find_audio,
    note_partial,
    open_data_folder,
    write_corpus_table,
)
from speechbrain_wap.errors import RecipeError

logger = get_logger(__name__)

FILE_NAME = re.compile(r"(?P<speaker>\d\d)[ab]\d\d(?P<emo>[WLEAFTN])[a-z]?")
EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
MEN = ["03", "10", "11", "12", "15"]
WOMEN = ["08", "09", "13", "14", "16"]
SESSIONS = {
    speaker: f"{man}-{woman}"
    for man, woman in zip(MEN, WOMEN)
    for speaker in (man, woman)
}
KNOWN_COUNTS = {
    "anger": 127,
    "boredom": 81,
    "disgust": 46,
    "fear": 69,
    "happiness": 71,
    "sadness": 62,
    "neutral": 79,
}


def prepare_emodb(data_folder, corpus_csv, max_skipped=0.01, audio_index=None):
    """Writes the corpus table and prints its counts beside the known ones.

    Arguments
    ---------
    data_folder : str
        The release's folder, with the audio in ``wav/`` or in itself; any
        format and sample rate.
    corpus_csv : str
        The table to write.
    max_skipped : float
        Share of the audio files that may be unreadable, 0 to 1.
    audio_index : str, optional
        Keeps what is known of unchanged audio files.

    Returns
    -------
    table : pandas.DataFrame

    Raises
    ------
    RecipeError
        If the folder is missing, holds no EmoDB file, or has an unknown
        speaker.
    """
    folder = open_data_folder(data_folder)
    paths = find_audio(folder / "wav") or find_audio(folder)
    rows = []
    for key, path in paths.items():
        match = FILE_NAME.fullmatch(key)
        if match is None:
            continue
        if match["speaker"] not in SESSIONS:
            raise RecipeError(
                f"{path} is of speaker {match['speaker']}, whom EmoDB does "
                "not have: remove it, or use --corpus_csv."
            )
        rows.append(
            {
                "id": key,
                "wav": str(path.resolve()),
                "speaker": match["speaker"],
                "session": SESSIONS[match["speaker"]],
                "gender": "male" if match["speaker"] in MEN else "female",
                "emo": EMOTIONS[match["emo"]],
            }
        )
    if not rows:
        raise RecipeError(
            f"data_folder={data_folder} holds no file like 03a01Fa.wav, "
            "neither itself nor in wav/: give the folder of EmoDB."
        )
    table = write_corpus_table(
        pd.DataFrame(rows), corpus_csv, max_skipped, audio_index
    )
    found = table["emo"].value_counts()
    counts = ", ".join(
        f"{name} {found.get(name, 0)}/{known}"
        for name, known in KNOWN_COUNTS.items()
    )
    total = f"{len(table)} of {sum(KNOWN_COUNTS.values())}"
    complete = found.to_dict() == KNOWN_COUNTS
    verdict = "complete" if complete else "they differ: a partial corpus"
    logger.info(
        f"EmoDB utterances, found/release: {counts}. In all {total}, {verdict}."
    )
    note_partial(corpus_csv, "" if complete else f"EmoDB utterances: {total}.")
    return table
