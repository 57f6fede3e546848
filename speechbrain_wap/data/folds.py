"""Folds: which sessions train, validate and test (D9).

No speaker is ever in two splits (D8), unless a corpus's official splits, which
the protocol "predefined" takes, have it so.
"""

import re
from itertools import combinations

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.classes import check_labels, label_utterances
from speechbrain_wap.data.corpus_table import RECORDED_IN
from speechbrain_wap.data.speakers import (
    KnownUtterances,
    check_speakers,
    find_shared_speakers,
    list_utterances,
    natural_key,
)
from speechbrain_wap.errors import RecipeError, check_choice, check_whole

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
PURPOSES = {"train": "train", "valid": "validate", "test": "be tested on"}


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
        # a corpus may have a column of that name itself
        if RECORDED_IN in table and table["session"].equals(table["speaker"]):
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
