"""Manifests: the utterances of a fold's splits, as files that a run reads."""

import hashlib
import json
import re
from os.path import isfile
from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import inspect_audio
from speechbrain_wap.data.audio_index import (
    AUDIO_COLUMNS,
    AUDIO_INDEX,
    check_audio,
)
from speechbrain_wap.data.folds import SPLITS, check_splits
from speechbrain_wap.data.segments import SEGMENT_COLUMNS
from speechbrain_wap.data.speakers import KnownUtterances, list_utterances
from speechbrain_wap.errors import RecipeError, check_number
from speechbrain_wap.files import ANY_BYTES, write_text

logger = get_logger(__name__)


def write_manifest(table, path, optional=()):
    """Writes one split as SpeechBrain's JSON manifest.

    Arguments
    ---------
    table : pandas.DataFrame
        Rows of a corpus table, with label where classes matter.
    path : str
        The file to write.
    optional : tuple of str
        Further columns, which only some of the rows have.
    """
    columns = ["wav", "duration", "speaker", "session", "emo", *AUDIO_COLUMNS]
    columns += ["label"] if "label" in table.columns else []
    optional = [*optional, *(c for c in SEGMENT_COLUMNS if c in table.columns)]
    entries = {
        row["id"]: {
            **{column: row[column] for column in columns},
            **{c: row[c] for c in optional if not pd.isna(row[c])},
        }
        for row in table.to_dict("records")
    }
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False))


def read_manifests(
    manifests,
    fields=("wav", "speaker"),
    cache_folder=None,
    protocol="paper",
):
    """Reads the manifests of a fold and checks that no speaker leaks.

    Arguments
    ---------
    manifests : dict
        JSON file of "train", "valid" and "test".
    fields : tuple of str
        What each utterance must have, as text.
    cache_folder : str, optional
        Holds the index of known audio files; where it is given, they must be
        those that the manifests were made of.
    protocol : str
        See :class:`speechbrain_wap.data.folds.FoldPlan`: "predefined" allows
        speakers in two splits.

    Returns
    -------
    splits : dict
        Entries by utterance id of each split.

    Raises
    ------
    RecipeError
        If a file, a field or all training data are missing, or a speaker is in
        two splits.
    """
    splits = {}
    for name in SPLITS:
        path = manifests[name]
        try:
            splits[name] = json.loads(Path(path).read_text(**ANY_BYTES))
            if not isinstance(splits[name], dict):
                raise ValueError("it must map ids to utterances")
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"manifest {path} cannot be read ({error}): run without "
                "--skip_prep to make it."
            )
        for key, entry in splits[name].items():
            _check_entry(entry, fields, f"manifest {path}: utterance {key}")
    if not splits["train"]:
        raise RecipeError(f"manifest {manifests['train']} is empty.")
    check_splits(splits, protocol)
    _warn_of_shared_audio(splits)
    if cache_folder is not None:
        _refuse_other_audio(splits, Path(cache_folder, AUDIO_INDEX))
    return splits


def _check_entry(entry, fields, name):
    """Checks a manifest's entry, and adds the audio's digest if need be."""
    if not isinstance(entry, dict):
        raise RecipeError(f"{name} must be a mapping: run without --skip_prep.")
    missing = set(fields) - entry.keys()
    if missing:
        raise RecipeError(f"{name} lacks {', '.join(sorted(missing))}.")
    for field in fields:
        if not isinstance(entry[field], str):
            raise RecipeError(f"{name}: {field} must be text.")
    part = [entry.get("start"), entry.get("end")]
    for field, bound in zip(("start", "end"), part):
        if bound is not None:
            check_number(f"{name}: {field}", bound, least=0)
    if not {"digest", "duration"} <= entry.keys():
        found = inspect_audio(entry["wav"], *part)
        entry["duration"], entry["digest"], entry["sound"] = found
        if part != [None, None]:
            entry["file_sound"] = inspect_audio(entry["wav"])[2]
    # it names a file
    if not re.fullmatch("[0-9a-f]{32}", str(entry["digest"])):
        raise RecipeError(
            f"{name}: digest={entry['digest']} must be 32 hexadecimal digits: "
            "leave it out, or run without --skip_prep."
        )


def _refuse_other_audio(splits, audio_index):
    """Refuses manifests of audio files that have changed since."""
    entries = {k: e for split in splits.values() for k, e in split.items()}
    # features may be cached where the audio is not
    there = [
        {"id": key, **{c: entry.get(c) for c in ("wav", "start", "end")}}
        for key, entry in entries.items()
        if isfile(entry["wav"])
    ]
    table = pd.DataFrame(there, columns=["id", "wav", "start", "end"])
    found, _ = check_audio(table, audio_index)
    for key, wav, digest in zip(found["id"], found["wav"], found["digest"]):
        if digest != entries[key]["digest"]:
            raise RecipeError(
                f"utterance {key}: {wav} is not the file that it was when the "
                "manifests were made: run without --skip_prep."
            )


def _warn_of_shared_audio(splits):
    """Warns where held-out audio also trains, under another speaker's name."""
    known = KnownUtterances(list_utterances(splits["train"]))
    held_out = list_utterances({**splits["valid"], **splits["test"]})
    pairs = known.pair(held_out, "overlap")
    if pairs:
        one, other = pairs[0]
        logger.warning(
            f"Leak: {len(pairs)} utterances of the held-out session are, or "
            f"overlap, audio of training utterances, first {one.key} of "
            f"speaker {one.speaker} and {other.key} of speaker "
            f"{other.speaker}: scores are too good; remove one of each from "
            "the corpus."
        )


def describe_data(splits, labels=None):
    """Computes a digest of a run's data, for the resume guard.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of each split.
    labels : list of str, optional
        The classes in their order.

    Returns
    -------
    digest : str
        Independent of where the corpus lies.
    """
    content = {
        name: sorted(
            # a table's speakers=own shows in which speakers are left out
            [key, one.speaker, split[key].get("label"), one.digest]
            for key, one in zip(split, list_utterances(split))
        )
        for name, split in splits.items()
    }
    text = json.dumps([content, labels])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
