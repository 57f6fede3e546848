"""The audio of a corpus table: what is known of it, and what can be read."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import WHOLE, encode_name, inspect_segments
from speechbrain_wap.data.segments import list_segments
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_text
from speechbrain_wap.progress import Bar

logger = get_logger(__name__)

# In the cache folder: what is known of audio files, see check_audio
AUDIO_INDEX = "audio_index.json"
# Digests of an utterance's audio and of its samples, see inspect_audio
AUDIO_COLUMNS = ["digest", "sound"]


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
    segments = list_segments(table)
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
