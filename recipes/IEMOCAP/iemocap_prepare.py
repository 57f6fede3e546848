"""Makes the corpus table of IEMOCAP from the full release.

IEMOCAP: https://sail.usc.edu/iemocap/ (a licence is needed). Layout:

    SessionK/dialog/EmoEvaluation/<dialog>.txt        turns and labels
    SessionK/sentences/wav/<dialog>/<turn>.wav        one file per turn

A dialog ``Ses01F_impro01`` is session 1, recorded while the woman wore the
motion-capture markers; its turn ``Ses01F_impro01_M003`` was spoken by the man.
"""

import os
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

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
TURN_LINE = re.compile(
    r"^\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+"
    r"(?P<id>Ses(?P<session>\d\d)[FM]_(?P<style>impro|script)\w*"
    r"_(?P<gender>[FM])\w+)\s+(?P<emo>\w+)"
)
STYLES = {"impro": "improvised", "script": "scripted"}
GENDERS = {"F": "female", "M": "male"}
# The annotators did not agree; what they heard has no name: no label, speech
NO_LABELS = ("xxx", "oth")

# Utterances of the full release by label and session 1 to 5.
KNOWN_COUNTS = {
    "ang": [229, 137, 240, 327, 170],
    "hap": [135, 117, 135, 65, 143],
    "exc": [143, 210, 151, 238, 299],
    "sad": [194, 197, 305, 143, 245],
    "neu": [384, 362, 320, 258, 384],
}


def prepare_iemocap(
    data_folder, corpus_csv, max_skipped=0.01, audio_index=None
):
    """Writes the corpus table and prints its counts beside the known ones.

    Arguments
    ---------
    data_folder : str
        The folder with Session1 to Session5, or a part of them.
    corpus_csv : str
        The table to write: one row per turn, labelled or not (xxx and oth
        are no labels), with the columns style ("improvised" or "scripted")
        and gender.
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
        If the folder is missing or is not the full release's.
    """
    folder = open_data_folder(data_folder)
    sessions = sorted(
        path
        for path in folder.iterdir()
        if re.fullmatch(r"Session\d+", path.name) and path.is_dir()
    )
    if not sessions:
        raise RecipeError(
            f"data_folder={data_folder} holds no folder Session1 to Session5: "
            "give the folder of the IEMOCAP full release."
        )
    rows = [turn for session in sessions for turn in _read_session(session)]
    if not rows:
        raise RecipeError(
            f"data_folder={data_folder} holds no evaluation files "
            "(SessionK/dialog/EmoEvaluation/*.txt): give the folder of the "
            "IEMOCAP full release."
        )
    table = pd.DataFrame(rows)
    present = table["wav"].map(os.path.isfile)
    if not present.any():
        raise RecipeError(
            f"none of the wav files is there, such as {table['wav'][0]}: "
            "complete SessionK/sentences/wav."
        )
    table = write_corpus_table(table, corpus_csv, max_skipped, audio_index)
    counts = _describe_counts(table)
    logger.info(counts)
    lacks = counts.splitlines()[-1] if "differ from" in counts else ""
    note_partial(corpus_csv, lacks)
    return table


def _read_session(folder):
    """Collects the turns of one session."""
    evaluation = folder / "dialog" / "EmoEvaluation"
    # not the sub-folders (single evaluators), not macOS's ._ files
    files = sorted(
        path
        for path in evaluation.glob("*.txt")
        if path.is_file() and not path.name.startswith(".")
    )
    if not files:
        logger.warning(
            f"{evaluation} holds no evaluation files (*.txt): {folder.name} "
            "is left out."
        )
    rows = []
    for path in files:
        turns, ids = [], set()
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            if line.startswith("["):
                turns.append(TURN_LINE.match(line))
                if turns[-1] is None:
                    raise RecipeError(
                        f"{path}, line {number} is no turn of the form "
                        "[start - end] turn emotion: restore the file from "
                        "the release."
                    )
                if turns[-1]["id"] in ids:
                    raise RecipeError(
                        f"{path}, line {number}: the id {turns[-1]['id']} is "
                        "there already, but ids must be unique: restore the "
                        "file from the release."
                    )
                ids.add(turns[-1]["id"])
        if not turns:
            raise RecipeError(
                f"{path} holds no turn: it is empty or malformed; restore it "
                "from the release."
            )
        dialog = folder / "sentences" / "wav" / path.stem
        wavs = find_audio(dialog)
        for match in turns:
            turn = match["id"]
            wav = wavs.get(turn, dialog / f"{turn}.wav")
            rows.append(
                {
                    "id": turn,
                    "wav": str(wav.resolve()),
                    "speaker": f"Ses{match['session']}{match['gender']}",
                    "session": str(int(match["session"])),
                    "gender": GENDERS[match["gender"]],
                    "emo": "" if match["emo"] in NO_LABELS else match["emo"],
                    "style": STYLES[match["style"]],
                }
            )
    return rows


def _describe_counts(table):
    """Compares the counts per session and label with the full release's."""
    found = pd.crosstab(table["session"], table["emo"])
    known = pd.DataFrame(KNOWN_COUNTS, index=["1", "2", "3", "4", "5"])
    found = found.reindex(index=known.index, columns=known.columns)
    found = found.fillna(0).astype(int)
    shown = found.astype(str) + " / " + known.astype(str)
    shown["sum"] = (
        found.sum(axis=1).astype(str) + " / " + known.sum(axis=1).astype(str)
    )
    total, expected = found.to_numpy().sum(), known.to_numpy().sum()
    verdict = (
        "They agree with the full release."
        if found.equals(known)
        else "They differ from the full release: this is a partial or another "
        "corpus."
    )
    return (
        f"IEMOCAP utterances per session and label, found / full release:\n"
        f"{shown.to_string()}\nIn all {total} of {expected}. {verdict}"
    )
