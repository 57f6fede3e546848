"""Folds: the classes (D2), the held-out session (D9) and the manifests.

No speaker is ever in two splits (D8), unless a corpus's official splits, which
the protocol "predefined" takes, have it so.
"""

import hashlib
import json
import re
from itertools import combinations
from os.path import isfile
from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import inspect_audio
from speechbrain_wap.data.corpus_table import (
    AUDIO_COLUMNS,
    AUDIO_INDEX,
    RECORDED_IN,
    SEGMENT_COLUMNS,
    check_audio,
)
from speechbrain_wap.data.speakers import (
    KnownUtterances,
    check_speakers,
    find_shared_speakers,
    list_utterances,
    natural_key,
)
from speechbrain_wap.errors import (
    RecipeError,
    check_choice,
    check_number,
    check_whole,
)
from speechbrain_wap.files import ANY_BYTES, write_text

logger = get_logger(__name__)

SPLITS = ("train", "valid", "test")
PROTOCOLS = ("paper", "held_out", "predefined")
# What the column split may call them; "eval" is either of two
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "val"), "valid"),
    **dict.fromkeys(("dev", "devel", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# Columns of predictions.csv beside those of the classes
PREDICTION_COLUMNS = ("id", "session", "speaker", "label", "prediction")
PURPOSES = {"train": "train", "valid": "validate", "test": "be tested on"}
# What is often written where there is no label, letters alone
NO_LABELS = (
    "xxx na nan none null nil unknown unk undefined unlabelled unlabeled "
    "nolabel noagreement other others oth"
).split()
STYLES = ("improvised", "scripted")

# Classes ---------------------------------------------------------------------


def choose_classes(table, classes, explicit=True):
    """Chooses the classes and the labels of each (D2).

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    classes : dict, str or None
        Labels of each class; "all" or None makes every label of the table a
        class.
    explicit : bool
        Whether the user asked for these classes. If not, and they do not fit
        (the YAML's, for another corpus than the table's), each label of the
        table is a class.

    Returns
    -------
    classes : dict
        Labels (list) of each class, in order.

    Raises
    ------
    RecipeError
        If a class has no utterance, a label is in two classes, or there are
        fewer than two classes.
    """
    labels = sorted(set(table["emo"]) - {""}, key=natural_key)
    own = {label: [label] for label in labels}
    if classes in (None, "all"):
        chosen = own
    elif isinstance(classes, dict):
        # None: a class of the YAML that an override left out
        chosen = {
            str(name): [str(v) for v in (v if isinstance(v, list) else [v])]
            for name, v in classes.items()
            if v is not None
        }
    else:
        raise RecipeError(
            f"classes is {classes!r}, but must map each class to its labels, "
            "as in {angry: [ang], happy: [hap, exc]}, or be 'all'."
        )
    absent = [name for name in chosen if not set(chosen[name]) & set(labels)]
    if absent and not explicit:
        logger.warning(
            f"The YAML's classes ({', '.join(chosen)}) do not fit this corpus "
            f"table, which has no {absent[0]}: its own labels are the classes "
            f"({', '.join(own)}). Map them with --classes if that is not meant."
        )
        chosen, absent = own, []
    if chosen is own:
        _warn_of_no_labels(own)
    if absent:
        raise RecipeError(
            f"classes: no utterance of the class {absent[0]} (labels "
            f"{', '.join(chosen[absent[0]])}): the corpus has the labels "
            f"{', '.join(labels) or 'none'}."
        )
    for name in chosen:
        if name in PREDICTION_COLUMNS:
            raise RecipeError(
                f"the class {name} has the name of a column of "
                "predictions.csv: give it another with --classes="
                f'"{{my_{name}: [{name}], ...}}".'
            )
    seen = {}
    for name, members in chosen.items():
        for label in members:
            if seen.setdefault(label, name) != name:
                raise RecipeError(
                    f"the label {label} is in two classes, {seen[label]} and "
                    f"{name}: map it to one."
                )
    if len(chosen) < 2:
        raise RecipeError(
            "classification needs at least two classes, but the classes are "
            f"{', '.join(chosen) or 'none'}: check the column emo and the key "
            "classes."
        )
    return chosen


def _warn_of_no_labels(labels):
    """Warns of classes that may be words for no label at all."""
    doubtful = [
        label
        for label in labels
        if re.sub("[^a-z]", "", label.casefold()) in NO_LABELS
        or label.strip("?-_. ") == ""
    ]
    if doubtful:
        logger.warning(
            f"Of the classes, {', '.join(doubtful)} may stand for no label: if "
            "so, leave these cells of the column emo empty, or map the other "
            "labels with --classes; the speech then trains the adapter only."
        )


def label_utterances(table, classes, dialogue_style="all"):
    """Keeps the utterances that stage 2 uses, with their classes (D2).

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    classes : dict
        Labels of each class.
    dialogue_style : str
        "improvised", "scripted" or "all"; only for a corpus whose table has
        the column style with these values.

    Returns
    -------
    labelled : pandas.DataFrame
        The rows of the classes, with the column label (the class's name).

    Raises
    ------
    RecipeError
        If the style is unknown or leaves a class without utterance.
    """
    check_choice("dialogue_style", dialogue_style, (*STYLES, "all"))
    # an own table may mean something else by style
    styles = sorted(set(table.get("style", []))) or [""]
    if set(styles) <= set(STYLES) and dialogue_style != "all":
        table = table[table["style"] == dialogue_style]
        if len(table) == 0:
            raise RecipeError(
                f"dialogue_style={dialogue_style} leaves no utterance: choose "
                f"one of all, {', '.join(styles)}."
            )
    names = {v: name for name, members in classes.items() for v in members}
    labelled = table.assign(label=table["emo"].map(names))
    is_left_out = labelled["label"].isna() & (table["emo"] != "")
    if is_left_out.any():
        counts = table["emo"][is_left_out].value_counts().sort_index()
        listing = ", ".join(f"{label} ({n})" for label, n in counts.items())
        logger.info(f"Labels that are in no class are left out: {listing}.")
    labelled = labelled[labelled["label"].notna()]
    for name in classes:
        if not (labelled["label"] == name).any():
            raise RecipeError(
                f"no utterance of the class {name} among the dialogues that "
                f"dialogue_style={dialogue_style} keeps."
            )
    return labelled


def list_classes(splits, classes):
    """Lists the classes of a fold in the YAML's order.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id, with labels.
    classes : dict, str or None
        The YAML's classes.

    Returns
    -------
    names : list of str
    """
    found = {e["label"] for split in splits.values() for e in split.values()}
    ordered = list(classes) if isinstance(classes, dict) else []
    if found <= set(ordered):
        return [name for name in ordered if name in found]
    return sorted(found, key=natural_key)


def check_labels(labels, classes, fold="the fold"):
    """Makes sure that a fold can be trained on and tested.

    Arguments
    ---------
    labels : dict
        Labels of all utterances of "train", "valid" and "test".
    classes : list of str
        The classes.
    fold : str
        What errors call the fold.

    Raises
    ------
    RecipeError
        If a split is empty, a class has no training utterance, or a label is
        no class.
    """
    for name, split in labels.items():
        if not split:
            raise RecipeError(
                f"{fold} has no labelled utterance in its {name} split: "
                "choose another fold or other classes."
            )
        unknown = set(split) - set(classes)
        if unknown:
            raise RecipeError(
                f"the label {min(unknown)} in the {name} split of {fold} is "
                f"no class: the classes are {', '.join(classes)}."
            )
    for name in classes:
        if name not in set(labels["train"]):
            raise RecipeError(
                f"no utterance of the class {name} in the training sessions "
                f"of {fold}: choose other classes or another fold."
            )


# Sessions --------------------------------------------------------------------


def list_sessions(table):
    """Lists the sessions in the order of the folds.

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.

    Returns
    -------
    sessions : list of str
        Fold k holds out the k-th, counted from 1.
    """
    return sorted(set(table["session"]), key=natural_key)


class FoldPlan:
    """Which fold, and which sessions it trains on, validates on and tests (D9).

    Arguments
    ---------
    fold : int
        Counted from 1: fold k holds out the k-th session, labelled or not.
    protocol : str
        "paper": the held-out session is both validation and test set;
        "held_out": the session after it (cyclically) validates, and the
        held-out session only tests; "predefined": the table's column split
        says which utterances train, validate and test, in one fold.

    Raises
    ------
    RecipeError
        If the fold is no whole number, or the protocol does not exist.

    Example
    -------
    >>> table = pd.DataFrame({"id": list("abc"), "session": list("123")})
    >>> splits = FoldPlan(3, "held_out").split(table)
    >>> {name: list(split["id"]) for name, split in splits.items()}
    {'train': ['b'], 'valid': ['a'], 'test': ['c']}
    """

    def __init__(self, fold, protocol="paper"):
        check_whole("fold", fold, least=1)
        check_choice("protocol", protocol, PROTOCOLS)
        self.fold = fold
        self.protocol = protocol

    def split(self, table):
        """Splits a corpus table by sessions.

        Arguments
        ---------
        table : pandas.DataFrame
            A corpus table.

        Returns
        -------
        splits : dict
            Table of "train", "valid" and "test".

        Raises
        ------
        RecipeError
            If the fold does not exist, sessions are too few, or the column
            split does not say what protocol "predefined" needs.
        """
        if self.protocol == "predefined":
            return self._split_as_told(table)
        sessions = list_sessions(table)
        if self.fold > len(sessions):
            listing = ", ".join(f"{k} ({s})" for k, s in enumerate(sessions, 1))
            raise RecipeError(
                f"fold {self.fold} does not exist: the corpus has the folds "
                f"(held-out sessions) {listing}."
            )
        least = 2 if self.protocol == "paper" else 3
        if len(sessions) < least:
            raise RecipeError(
                f"protocol={self.protocol} needs at least {least} sessions, "
                f"but the corpus has {len(sessions)}."
            )
        valid, test = self.hold_out(sessions)
        return {
            "train": table[~table["session"].isin([valid, test])],
            "valid": table[table["session"] == valid],
            "test": table[table["session"] == test],
        }

    def hold_out(self, sessions):
        """Names the sessions that are validated and tested on.

        Arguments
        ---------
        sessions : list of str
            What :func:`list_sessions` gave.

        Returns
        -------
        valid, test : str
        """
        test = valid = sessions[self.fold - 1]
        if self.protocol == "held_out":
            valid = sessions[self.fold % len(sessions)]
        return valid, test

    def _split_as_told(self, table):
        """Splits a corpus table by its column split; an empty cell is none."""
        if RECORDED_IN in table:
            raise RecipeError(
                "protocol=predefined takes the splits of the column split, "
                "which fold_by=speaker cannot change: leave one of them out."
            )
        if self.fold > 1:
            raise RecipeError(
                f"fold {self.fold} does not exist: protocol=predefined has one "
                "fold, fold 1."
            )
        if "split" not in table:
            column = _find_split_column(table)
            cure = column and f": call {column} split, if it is that"
            raise RecipeError(
                "protocol=predefined needs a column split in the corpus table, "
                "which says train, valid or test of each utterance: it has "
                f"{', '.join(map(str, table.columns))}{cure or ''}."
            )
        told = table["split"].fillna("").astype(str).str.strip()
        told = told.str.casefold()
        names = told.map(SPLIT_NAMES)
        unknown = table[names.isna() & (told != "")]
        if len(unknown):
            key, written = unknown[["id", "split"]].iloc[0]
            raise RecipeError(
                f"utterance {key}: split={written} is none of train, valid (or "
                "dev) and test: write one of them, or leave the cell empty, "
                "and the utterance takes no part."
            )
        for name in SPLITS:
            if not (names == name).any():
                raise RecipeError(
                    f"protocol=predefined: the column split has no {name}: "
                    f"write {name} in the rows that are to {PURPOSES[name]}."
                )
        if names.isna().any():
            logger.info(
                f"{names.isna().sum()} utterances have no split and take no "
                "part."
            )
        return {name: table[names == name] for name in SPLITS}

    def warn_of_splits(self, table):
        """Warns of official splits that share speakers, or are passed over.

        Arguments
        ---------
        table : pandas.DataFrame
            A corpus table.
        """
        if self.protocol == "predefined":
            shared = describe_shared_speakers(self.split(table))
            if shared:
                logger.warning(
                    f"Not speaker-independent: {shared}. Scores are those of "
                    "known voices; the report says so."
                )
            return
        column = _find_split_column(table)
        if column is not None:
            call = "" if column == "split" else "call it split and "
            logger.warning(
                f"The corpus table has a column {column}, which protocol="
                f"{self.protocol} does not use: sessions are held out in turn. "
                f"For the splits of that column, {call}give "
                "--protocol=predefined."
            )
            return
        named = _find_splits(table["session"]).values()
        if named:
            logger.warning(
                f"Sessions are called {', '.join(sorted(named))}, but protocol="
                f"{self.protocol} takes them for sessions like any other, each "
                "held out in turn. If they are the corpus's official splits, "
                "name that column split (copy it, and keep a column session) "
                "and give --protocol=predefined."
            )

    def name_held_out(self, sessions):
        """Names what a fold is tested on, for results and reports.

        Arguments
        ---------
        sessions : iterable of str
            The sessions of the test utterances.

        Returns
        -------
        name : str
        """
        if self.protocol == "predefined":
            return "test"
        return "+".join(sorted(set(sessions)))

    def split_labelled(self, table, classes, dialogue_style):
        """Splits the utterances of the classes, and checks the splits.

        Arguments
        ---------
        table : pandas.DataFrame
            A corpus table.
        classes : dict
            Labels of each class.
        dialogue_style : str
            "improvised", "scripted" or "all".

        Returns
        -------
        splits : dict
            Table of "train", "valid" and "test".

        Raises
        ------
        RecipeError
            If a split is empty, a class has no utterance in the training
            sessions, or a speaker is in two splits, labelled or not.
        """
        labelled = label_utterances(table, classes, dialogue_style)
        whole = self.split(table)
        check_splits(whole, self.protocol)
        splits = {
            name: labelled[labelled["id"].isin(split["id"])]
            for name, split in whole.items()
        }
        labels = {name: list(split["label"]) for name, split in splits.items()}
        check_labels(labels, classes, f"fold {self.fold}")
        return splits


def check_folds(plans, table, classes, dialogue_style):
    """Checks folds as :meth:`FoldPlan.split_labelled` does one by one.

    A corpus may have a thousand sessions: what one pass shows to be fine is not
    split.

    Arguments
    ---------
    plans : list of FoldPlan
        The folds.
    table : pandas.DataFrame
        A corpus table.
    classes : dict
        Labels of each class.
    dialogue_style : str
        "improvised", "scripted" or "all".

    Raises
    ------
    RecipeError
        Of the first fold that cannot be trained on and tested.
    """
    labelled = label_utterances(table, classes, dialogue_style)
    sessions = list_sessions(table)
    counts = pd.crosstab(labelled["session"], labelled["label"])
    total, counts = counts.sum(), counts.T.to_dict("series")
    people, shared = {}, set()
    for one, session in zip(list_utterances(table), table["session"]):
        first = people.setdefault(one.person, session)
        if first != session:
            shared |= {first, session}

    def is_fine(plan):
        """Tells whether a fold has all that it needs; False where unsure."""
        is_told = plan.protocol == "predefined" or len(sessions) < 3
        if is_told or plan.fold > len(sessions):
            return False
        held_out = set(plan.hold_out(sessions))
        if held_out & shared or not held_out <= counts.keys():
            return False
        return (total - sum(counts[s] for s in held_out)).gt(0).all()

    for plan in plans:
        if not is_fine(plan):
            plan.split_labelled(table, classes, dialogue_style)


def _find_splits(names):
    """Finds what is called as a split is: an example by what it stands for."""
    found = {}
    for name in set(names):
        for word in re.findall(r"[^\W\d_]+", str(name).casefold()):
            word = word.removesuffix("set")
            if word in (*SPLIT_NAMES, "eval", "evaluation"):
                found[SPLIT_NAMES.get(word, word)] = str(name)
    return found


def _find_split_column(table):
    """Finds the column that says official splits, under any name, or None."""
    if set(_find_splits(table.get("split", []))) & set(SPLITS):
        return "split"
    for name in table.columns.difference(["id", "wav", "speaker", "session"]):
        # such as Split_Set: Train, Development, Test1, Test2
        cells = set(table[name].map(str)) - {""}
        if 2 <= len(cells) < 10 and all(_find_splits([c]) for c in cells):
            if "train" in _find_splits(cells):
                return name
    return None


def check_splits(splits, protocol="paper"):
    """Makes sure that no speaker, or no recording, is in two splits.

    Official splits (protocol "predefined") may share speakers: that is said,
    see :func:`describe_shared_speakers`. What is in both must not be the very
    same audio.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id, or table, of each split.
    protocol : str
        See :class:`FoldPlan`.

    Raises
    ------
    RecipeError
        If they share what they must not; names it.
    """
    if protocol != "predefined":
        check_speakers(splits)
        return
    for first, second in combinations(splits, 2):
        known = KnownUtterances(list_utterances(splits[first]))
        pairs = known.pair(list_utterances(splits[second]), "audio")
        if pairs:
            one, other = pairs[0]
            raise RecipeError(
                f"{len(pairs)} utterances of the {second} split are the same "
                f"audio as utterances of the {first} split, first {one.key} "
                f"and {other.key}: leave the split of one of each empty."
            )


def describe_shared_speakers(splits):
    """Says in words which speakers official splits share.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id, or table, of each split.

    Returns
    -------
    text : str
        A sentence; "" where they share none.

    Example
    -------
    >>> one, two = {"u1": {"speaker": "a"}}, {"u2": {"speaker": "a"}}
    >>> describe_shared_speakers({"train": one, "valid": {}, "test": two})
    'the official splits share speakers: 1 is in train and test (a)'
    """
    parts = []
    for (first, second), names in find_shared_speakers(splits).items():
        listing = ", ".join(one for one, _ in names[:5])
        more = ", ..." if len(names) > 5 else ""
        are = "is" if len(names) == 1 else "are"
        parts.append(
            f"{len(names)} {are} in {first} and {second} ({listing}{more})"
        )
    if not parts:
        return ""
    return f"the official splits share speakers: {', '.join(parts)}"


# Manifests -------------------------------------------------------------------


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
        See :class:`FoldPlan`: "predefined" allows speakers in two splits.

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
