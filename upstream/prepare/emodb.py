"""Reads the utterances of EmoDB, the Berlin database of emotional speech.

EmoDB: http://emodb.bilderbar.info (free). A file ``SSTTTEV.wav`` is speaker
SS, text TTT, emotion E, version V. Five folds, one man and one woman each.
"""

from collections import Counter
from pathlib import Path

from emodb_prepare import EMOTIONS, FILE_NAME, KNOWN_COUNTS, SESSIONS, logger


def read_emodb(data_folder):
    """Lists all utterances, and logs their counts beside the release's.

    Arguments
    ---------
    data_folder : str
        The release's folder, with the audio in ``wav/``.

    Returns
    -------
    rows : list of dict
        Of each utterance "id", "wav", "speaker", "session" and "emo".

    Raises
    ------
    ValueError
        If the folder holds no EmoDB file.
    """
    rows = []
    for path in sorted(Path(data_folder, "wav").glob("*.wav")):
        match = FILE_NAME.fullmatch(path.stem)
        if match is not None:
            rows.append(
                {
                    "id": path.stem,
                    "wav": str(path),
                    "speaker": match["speaker"],
                    "session": SESSIONS[match["speaker"]],
                    "emo": EMOTIONS[match["emo"]],
                }
            )
    if not rows:
        raise ValueError(
            f"data_folder={data_folder} holds no file like wav/03a01Fa.wav: "
            "give the folder of EmoDB."
        )
    found = Counter(row["emo"] for row in rows)
    counts = ", ".join(
        f"{emotion} {found[emotion]}/{known}"
        for emotion, known in KNOWN_COUNTS.items()
    )
    logger.info(f"EmoDB utterances, found/release: {counts}.")
    return rows
