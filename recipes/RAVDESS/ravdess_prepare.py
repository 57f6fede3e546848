"""Makes the corpus table of RAVDESS, emotional speech of 24 actors.

RAVDESS: https://zenodo.org/records/1188976 (CC BY-NC-SA 4.0), of which the
audio of the speech is read, ``Audio_Speech_Actors_01-24.zip``. A file
``03-01-EE-II-SS-RR-AA.wav`` is emotion EE, intensity II, statement SS,
repetition RR, actor AA (odd: a man, even: a woman). Each fold holds out one
pair of actors, 01 and 02, 03 and 04, and so on.
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

# Songs (03-02) and videos (01, 02), which may lie among the speech
NO_SPEECH = re.compile(r"(03-02|0[12]-0[12])(-\d\d){5}")
FILE_NAME = re.compile(
    r"03-01-(?!01-02)(?P<emo>0[1-8])-(?P<intensity>0[12])-(?P<statement>0[12])"
    r"-(?P<repetition>0[12])-(?P<actor>0[1-9]|1\d|2[0-4])"
)
EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
INTENSITIES = {"01": "normal", "02": "strong"}
STATEMENTS = {
    "01": "kids",
    "02": "dogs",
}  # are talking, are sitting by the door
# Utterances of one actor; neutral has no strong intensity.
ACTOR_COUNTS = {**dict.fromkeys(EMOTIONS.values(), 8), "neutral": 4}
NUM_ACTORS = 24


def prepare_ravdess(
    data_folder, corpus_csv, max_skipped=0.01, audio_index=None
):
    """Writes the corpus table and prints its counts beside the known ones.

    Arguments
    ---------
    data_folder : str
        The folder with Actor_01 to Actor_24, or a part of them, in itself, in
        ``Audio_Speech_Actors_01-24/`` or in both; any format and sample rate.
        An utterance that is in both is taken once, from the former.
    corpus_csv : str
        The table to write, with the columns gender, intensity, statement and
        repetition.
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
        If the folder is missing, holds no speech of RAVDESS, or an audio file
        has another name than RAVDESS gives.
    """
    folder = open_data_folder(data_folder)
    paths = []
    for place in (folder, folder / "Audio_Speech_Actors_01-24"):
        known = {path.stem for path in paths}
        for actor in sorted(place.glob("Actor_*")):
            found = find_audio(actor).items()
            paths += [
                path
                for key, path in found
                if key not in known and not NO_SPEECH.fullmatch(key)
            ]
    rows = [
        _read_name(path) for path in sorted(paths, key=lambda p: p.parts[-2:])
    ]
    if not rows:
        raise RecipeError(
            f"data_folder={data_folder} holds no file like "
            "Actor_01/03-01-01-01-01-01-01.wav, neither itself nor in "
            "Audio_Speech_Actors_01-24/: give the folder of RAVDESS's speech."
        )
    table = write_corpus_table(
        pd.DataFrame(rows), corpus_csv, max_skipped, audio_index
    )
    logger.info(_describe_counts(table))
    known = sum(ACTOR_COUNTS.values()) * NUM_ACTORS
    missing = f"RAVDESS utterances: {len(table)} of {known}."
    note_partial(corpus_csv, missing if len(table) < known else "")
    return table


def _read_name(path):
    """Reads a row of the table off a file's name."""
    name = FILE_NAME.fullmatch(path.stem)
    if name is None:
        raise RecipeError(
            f"{path} has no name that RAVDESS gives to speech, such as "
            "03-01-05-02-01-01-24: rename or remove it, or use --corpus_csv."
        )
    actor = int(name["actor"])
    first = actor - (actor + 1) % 2  # of the pair: the man, who is odd
    return {
        "id": path.stem,
        "wav": str(path.resolve()),
        # not the number alone, which another corpus may have, too
        "speaker": f"Actor_{name['actor']}",
        "session": f"{first:02d}_{first + 1:02d}",
        "emo": EMOTIONS[name["emo"]],
        "gender": "male" if actor == first else "female",
        "intensity": INTENSITIES[name["intensity"]],
        "statement": STATEMENTS[name["statement"]],
        "repetition": str(int(name["repetition"])),
    }


def _describe_counts(table):
    """Compares the number of utterances with the release's."""
    counts = table.groupby(["speaker", "emo"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(ACTOR_COUNTS), fill_value=0)
    found, known = counts.sum(), pd.Series(ACTOR_COUNTS) * NUM_ACTORS
    listing = ", ".join(f"{e} {found[e]}/{known[e]}" for e in ACTOR_COUNTS)
    partial = counts.index[(counts < pd.Series(ACTOR_COUNTS)).any(axis=1)]
    if len(partial):
        verdict = f"utterances of {', '.join(partial)} are missing"
    else:
        verdict = "each with all utterances"
    return (
        f"RAVDESS utterances, found/release: {listing}. In all {len(table)} "
        f"of {known.sum()}, of {len(counts)} of {NUM_ACTORS} actors, {verdict}."
    )
