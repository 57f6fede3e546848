"""Reads the utterances of IEMOCAP, for leave-one-session-out folds.

IEMOCAP: https://sail.usc.edu/iemocap/ (a licence is needed). Layout:

    SessionK/dialog/EmoEvaluation/<dialog>.txt        turns and labels
    SessionK/sentences/wav/<dialog>/<turn>.wav        one file per turn

A dialog ``Ses01F_impro01`` is session 1, recorded while the woman wore the
motion-capture markers; its turn ``Ses01F_impro01_M003`` was spoken by the man.
Unlike ``iemocap_prepare.py``, it keeps the turns without one of the four
labels, on which the adapter trains, too.
"""

import re
from collections import Counter
from pathlib import Path

from iemocap_prepare import KNOWN_COUNTS, _read_session, logger


def read_iemocap(data_folder):
    """Lists all turns, and logs their counts beside those of the full release.

    Arguments
    ---------
    data_folder : str
        The folder with Session1 to Session5, or a part of them.

    Returns
    -------
    rows : list of dict
        Of each turn "id", "wav", "speaker", "session", "emo" ("" where the
        annotators did not agree) and "style" ("improvised" or "scripted").

    Raises
    ------
    ValueError
        If the folder is not the full release's.
    """
    sessions = sorted(
        path
        for path in Path(data_folder).glob("Session*")
        if re.fullmatch(r"Session\d+", path.name) and path.is_dir()
    )
    rows = [turn for session in sessions for turn in _read_session(session)]
    if not rows:
        raise ValueError(
            f"data_folder={data_folder} holds no evaluation files "
            "(SessionK/dialog/EmoEvaluation/*.txt): give the folder of the "
            "IEMOCAP full release."
        )
    found = Counter(row["emo"] for row in rows)
    counts = ", ".join(
        f"{emotion} {found[emotion]}/{sum(known)}"
        for emotion, known in KNOWN_COUNTS.items()
    )
    logger.info(f"IEMOCAP utterances, found/full release: {counts}.")
    return rows
