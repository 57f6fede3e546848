"""Who is who: how a speaker is known again under another name or elsewhere.

By the name, in any spelling: spreadsheets make ``3`` or ``3.0`` of ``03``,
people write ``Actor_01`` and ``actor 1``. By the audio, in any lossless format.
By an utterance's id, as in a copy at another sample rate. No speaker of a
held-out session may train under any of these; :meth:`KnownUtterances.find` is
the one place that tells, and what is done about it is decided where it is
asked: for a fold, for further corpora and for an earlier adapter.
"""

import re
import unicodedata
from functools import cache, partial
from itertools import combinations
from typing import NamedTuple

import pandas as pd

from speechbrain_wap.errors import RecipeError

# Names -----------------------------------------------------------------------


def natural_key(name):
    """Sorts names with numbers as people do: 2 before 10.

    Arguments
    ---------
    name : str
        A session's or speaker's name.

    Returns
    -------
    key : list
        For ``sorted``.

    Example
    -------
    >>> sorted(["s10", "s2"], key=natural_key)
    ['s2', 's10']
    """
    parts = re.split(r"(\d+)", str(name))
    numbers = [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]
    return numbers, str(name)  # "1" and "01" have an order, too


@cache
def fold_name(name):
    """Reduces a name to what its spellings have in common.

    Arguments
    ---------
    name : str
        A speaker's name.

    Returns
    -------
    folded : str
        Without regard to case, widths of characters, invisible ones, spaces,
        dots, hyphens and underscores, leading zeros, and the ``.0`` of a number
        that was once read as one. Digits that were apart stay apart.

    Example
    -------
    >>> fold_name("Actor_01") == fold_name("actor 1") == fold_name("ACTOR1")
    True
    >>> fold_name("03") == fold_name("3.0")
    True
    >>> fold_name("1_11") == fold_name("11_1")
    False
    """
    text = unicodedata.normalize("NFKC", str(name)).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = re.sub(r"^\s*(\d+)\.0+\s*$", r"\1", text)
    parts = re.findall(r"\d+|[^\W\d_]+|[^\w\s.-]", text)
    folded = ""
    for part in parts:
        if part.isdecimal():
            part = str(int(part))
            folded += "_" * folded[-1:].isdecimal()
        folded += part
    return folded or str(name)


def _may_be_same(name, other):
    """Tells whether names of who says utterances of one id may be one's.

    That is so for spellings of one name, and for a number and a name that has
    that number.

    >>> _may_be_same("Actor_01", "1"), _may_be_same("F01", "M01")
    (True, False)
    """
    folded = [fold_name(name), fold_name(other)]
    numbers, others = (re.findall(r"\d+", text) for text in folded)
    if folded[0] == folded[1] or numbers != others:
        return folded[0] == folded[1]
    return "_".join(numbers) in folded


# Utterances ------------------------------------------------------------------


class Utterance(NamedTuple):
    """What an utterance is known by; None where that is not known.

    Attributes
    ----------
    id : str or None
        As its own table calls it.
    speaker : str or None
        As its own table calls them.
    digest : str or None
        Of the audio file, see :func:`speechbrain_wap.data.audio.inspect_audio`.
    sound : str or None
        Of the samples, likewise.
    table : str
        The further table that it is from; "" is the corpus under test.
    has_own_names : bool
        Whether the table's names of speakers say nothing of other tables'.

    Example
    -------
    >>> one = Utterance("u1", "Actor_01", table="b")
    >>> one.key, one.person
    ('b/u1', ('', 'actor1'))
    >>> one.person == Utterance("u2", "actor 1").person
    True
    """

    id: str | None = None
    speaker: str | None = None
    digest: str | None = None
    sound: str | None = None
    table: str = ""
    has_own_names: bool = False

    @property
    def key(self):
        """The id among those of all tables."""
        return f"{self.table}/{self.id}" if self.table else self.id

    @property
    def person(self):
        """What is equal for all that is known, by name, to be one speaker's."""
        place = self.table if self.has_own_names else ""
        return place, fold_name(self.speaker)


def list_utterances(entries):
    """Lists who says what.

    Arguments
    ---------
    entries : dict or pandas.DataFrame
        Manifest entries by id, or rows of a table. In a further table
        ("speaker_names" says it is one), "table" stands before the id, and
        before the speaker where the names are its own.

    Returns
    -------
    utterances : list of Utterance

    Example
    -------
    >>> entry = {"speaker": "b/11", "table": "b", "speaker_names": "own"}
    >>> list_utterances({"b/u1": entry})[0][:2]
    ('u1', '11')
    """
    if isinstance(entries, pd.DataFrame):
        entries = entries.set_index("id").to_dict("index")
    utterances = []
    for key, entry in entries.items():
        speaker, table, has_own_names = entry["speaker"], "", False
        if entry.get("speaker_names") in ("shared", "own"):
            table = entry["table"]
            has_own_names = entry["speaker_names"] == "own"
            key = key.removeprefix(f"{table}/")
            if has_own_names:
                speaker = speaker.removeprefix(f"{table}/")
        audio = entry.get("digest"), entry.get("sound")
        utterances.append(Utterance(key, speaker, *audio, table, has_own_names))
    return utterances


# The leak rule ---------------------------------------------------------------


class Match(NamedTuple):
    """What an utterance has in common with known ones: one of each kind.

    The first three are of the same speaker, the others are taken for another's.

    Attributes
    ----------
    audio : Utterance or None
        Of the very same audio, whatever the speaker's name.
    id : Utterance or None
        Of the same id, and a speaker who may be called so: a copy.
    name : Utterance or None
        Of a speaker who is called so, where the tables share names.
    namesake : Utterance or None
        Of one who is called so, where a table's names are its own.
    other_id : Utterance or None
        Of the same id, and a speaker of another name.
    """

    audio: Utterance | None
    id: Utterance | None
    name: Utterance | None
    namesake: Utterance | None
    other_id: Utterance | None


class KnownUtterances:
    """Utterances whose speakers are to be known again.

    Arguments
    ---------
    utterances : list of Utterance
        Of each, what is known.

    Example
    -------
    >>> known = KnownUtterances([Utterance("u1", "F_01", sound="12")])
    >>> known.find(Utterance("u2", "f1")).name.speaker
    'F_01'
    >>> known.find(Utterance("u2", "anna", sound="12")).audio.speaker
    'F_01'
    """

    def __init__(self, utterances):
        self._by_audio, self._by_id, self._by_name = {}, {}, {}
        for utterance in utterances:
            self.add_audio(utterance)
            if utterance.id is not None:
                self._by_id.setdefault(utterance.id, []).append(utterance)
            if utterance.speaker is not None:
                place, name = utterance.person
                self._by_name.setdefault(name, {})[place] = utterance

    def add_audio(self, utterance):
        """Makes one known by its audio alone, as further tables' ids mean less.

        Arguments
        ---------
        utterance : Utterance
        """
        for audio in (utterance.digest, utterance.sound):
            if audio is not None:
                self._by_audio[audio] = utterance

    def find(self, utterance):
        """Finds what an utterance has in common with the known ones.

        Arguments
        ---------
        utterance : Utterance
            Its id and its speaker are known.

        Returns
        -------
        match : Match
        """
        audio = self._by_audio.get(utterance.sound)
        audio = audio or self._by_audio.get(utterance.digest)
        place, name = utterance.person
        called = self._by_name.get(name, {})
        ids = {
            _may_be_same(other.speaker, utterance.speaker): other
            for other in self._by_id.get(utterance.id, ())
        }
        return Match(
            audio=audio,
            id=ids.get(True),
            name=called.get(place),
            namesake=next((called[p] for p in called if p != place), None),
            other_id=ids.get(False),
        )

    def pair(self, utterances, kind):
        """Pairs utterances with what they have one thing in common with.

        Arguments
        ---------
        utterances : list of Utterance
            Of which :meth:`find` takes one.
        kind : str
            An attribute of :class:`Match`.

        Returns
        -------
        pairs : list of tuple
            An utterance and a known one; others are left out.
        """
        pairs = [(one, getattr(self.find(one), kind)) for one in utterances]
        return [(one, known) for one, known in pairs if known]


def check_speakers(splits):
    """Makes sure that no speaker is in two splits.

    Validation and test set may be one and the same (protocol "paper"); they
    are then not compared with each other.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id, or table, of each split.

    Raises
    ------
    RecipeError
        If a speaker is in two splits, under two spellings as well; names the
        speaker and both.

    Example
    -------
    >>> a, b = {"u1": {"speaker": "a"}}, {"u2": {"speaker": "b"}}
    >>> check_speakers({"train": a, "valid": b, "test": b})
    """
    said = {name: list_utterances(split) for name, split in splits.items()}
    for first, second in combinations(said, 2):
        ids = [{one.key for one in said[name]} for name in (first, second)]
        if ids[0] == ids[1] and "train" not in (first, second):
            continue
        pairs = KnownUtterances(said[first]).pair(said[second], "name")
        if not pairs:
            continue
        pair = min(pairs, key=lambda pair: natural_key(pair[0].person[1]))
        other, one = (utterance.speaker for utterance in pair)
        if one == other:
            raise RecipeError(
                f"speaker {one} is in both the {first} and the {second} "
                "split: a speaker must be in one session only."
            )
        raise RecipeError(
            f"speaker {one} in the {first} split and speaker {other} in "
            f"the {second} split are spellings of one name: a speaker "
            "must be in one session only. Rename one of them if they are "
            "two people."
        )


def explain_held_out(utterances, held_out):
    """Says which utterances are a held-out speaker's, and how that is known.

    A held-out speaker is known as :class:`Match` says; and who is called as, or
    says the same as, one so found is held out, too.

    Arguments
    ---------
    utterances : list of Utterance
        Of further tables.
    held_out : list of Utterance
        All utterances of the held-out sessions.

    Returns
    -------
    reasons : list of str
        One for each utterance; empty where the speaker is not held out.

    Example
    -------
    >>> others = [("1", "x", "12"), ("2", "x", "34"), ("3", "y", "56")]
    >>> explain_held_out(
    ...     [Utterance(i, s, sound=a, table="b") for i, s, a in others],
    ...     [Utterance("u1", "anna", sound="12")],
    ... )[1:]
    ['b/1 is the audio of u1, which is held out', '']
    """
    known, why = KnownUtterances(held_out), {}
    for one, other in known.pair(utterances, "name"):
        why.setdefault(one.person, f"{other.speaker} is held out")
    for one, _ in known.pair(utterances, "id"):
        reason = f"{one.key} is an utterance that is held out"
        why.setdefault(one.person, reason)
    goes_on = True
    while goes_on:  # until nobody else is found
        goes_on = False
        for one in utterances:
            audio = known.find(one).audio
            if audio and one.person not in why:
                reason = f"{one.key} is the audio of {audio.key}"
                why[one.person] = f"{reason}, which is held out"
            elif one.person in why and not audio:
                known.add_audio(one)
            else:
                continue
            goes_on = True
    return [why.get(one.person, "") for one in utterances]


# What an adapter has heard ---------------------------------------------------


def list_heard(utterances):
    """Lists what an adapter has heard of one corpus, for its record.

    Arguments
    ---------
    utterances : list of Utterance
        All of one table.

    Returns
    -------
    heard : dict
        "speakers": their names in their own table; "utterances": digest of
        each audio file, and speaker and id, which another copy of a corpus, at
        another sample rate say, has as well; "sounds": see
        :func:`speechbrain_wap.data.audio.inspect_audio`.
    """
    sounds = {one.sound for one in utterances}
    return {
        "sounds": sorted(sounds - {None}),  # hand-made manifests may lack it
        "speakers": sorted({one.speaker for one in utterances}),
        "utterances": sorted(
            name
            for one in utterances
            for name in (one.digest, f"{one.speaker}/{one.id}")
        ),
    }


def read_heard(heard):
    """Reads what :func:`list_heard` listed.

    Arguments
    ---------
    heard : dict
        The record, for the adapter's corpus under test, or a further table of
        it, with "name" and "speaker_names".

    Returns
    -------
    utterances : list of Utterance
        Each has a part of what an utterance is known by. Names of the adapter's
        corpus under test are its own: it may be another one than here.

    Example
    -------
    >>> one = Utterance("u1", "anna", "12")
    >>> known = KnownUtterances(read_heard(list_heard([one])))
    >>> match = known.find(one)
    >>> bool(match.audio), bool(match.id), bool(match.name)
    (True, True, False)
    """
    part = partial(
        Utterance,
        table=heard.get("name", "its corpus under test"),
        has_own_names=heard.get("speaker_names") != "shared",
    )
    speakers = set(heard["speakers"])
    parts = [part(speaker=speaker) for speaker in speakers]
    # an earlier version listed no sounds
    parts += [part(sound=sound) for sound in heard.get("sounds", ())]
    for text in heard["utterances"]:
        parts.append(part(digest=text))
        for slash in re.finditer("/", text):  # both may have one themselves
            speaker, key = text[: slash.start()], text[slash.end() :]
            if speaker in speakers:
                parts.append(part(id=key, speaker=speaker))
    return parts
