"""Speakers: how one is recognised in another table or under another spelling.

By the name, in any spelling: spreadsheets make ``3`` or ``3.0`` of ``03``,
people write ``Actor_01`` and ``actor 1``. By the audio, in any lossless format.
By an utterance's id, as in a copy at another sample rate. No speaker of a
held-out session may train under any of these. :meth:`KnownUtterances.find`
recognises them; what follows is decided by its callers: for a fold, for further
corpora and for an earlier adapter.
"""

import math
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
def normalise_name(name):
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
    >>> normalise_name("Actor_01") == normalise_name(
    ...     "actor 1"
    ... ) == normalise_name("ACTOR1")
    True
    >>> normalise_name("03") == normalise_name("3.0")
    True
    >>> normalise_name("1_11") == normalise_name("11_1")
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
    """Tells whether two names are spellings of one, or a number and its name.

    >>> _may_be_same("Actor_01", "1"), _may_be_same("F01", "M01")
    (True, False)
    """
    one, two = normalise_name(name), normalise_name(other)
    numbers = re.findall(r"\d+", one)
    is_number = "_".join(numbers) in (one, two)
    return one == two or (is_number and numbers == re.findall(r"\d+", two))


# Utterances ------------------------------------------------------------------


class Utterance(NamedTuple):
    """What identifies an utterance and its speaker; None where not known.

    Example
    -------
    >>> one = Utterance("u1", "Actor_01", table="b")
    >>> one.key, one.person
    ('b/u1', ('', 'actor1'))
    >>> one.person == Utterance("u2", "actor 1").person
    True
    """

    id: str | None = None  # in its own table, as the speaker
    speaker: str | None = None
    digest: str | None = None  # of the audio, see inspect_audio
    sound: str | None = None  # of the samples
    table: str = ""  # the further table; "" is the corpus under test
    has_own_names: bool = False  # whether a name is another person elsewhere
    # where it is a part of a file: the sound of all of it, and seconds there
    file_sound: str | None = None
    start: float = 0.0
    end: float = math.inf

    @property
    def key(self):
        """The id among those of all tables."""
        return f"{self.table}/{self.id}" if self.table else self.id

    @property
    def person(self):
        """Equal for all utterances of one speaker, as far as names tell."""
        place = self.table if self.has_own_names else ""
        return place, normalise_name(self.speaker)


def list_utterances(entries):
    """Reads utterances with their speakers from a manifest or a table.

    Arguments
    ---------
    entries : dict or pandas.DataFrame
        Manifest entries by id, or rows of a table. Those of a further table
        have "speaker_names"; their ids begin with "table", as do their speakers
        where the names are the table's own.

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
        part = ()
        if isinstance(entry.get("file_sound"), str) and entry["file_sound"]:
            start = float(entry.get("start") or 0.0)
            start = 0.0 if math.isnan(start) else start
            part = entry["file_sound"], start, start + float(entry["duration"])
        utterances.append(
            Utterance(key, speaker, *audio, table, has_own_names, *part)
        )
    return utterances


# The leak rule ---------------------------------------------------------------


# Parts of a file that share less, in seconds, meet at a border that is rounded
OVERLAP = 0.05


class Match(NamedTuple):
    """The known utterances that one matches, by what they have in common.

    The same audio under any name, parts of one file that have more than half of
    the shorter one in common among it; the id ``a1`` of ``Actor_03`` and of
    ``3``; ``anna`` in two tables that share names. Not the same speaker:
    ``anna`` of a table with names of its own; the id ``a1`` of ``Actor_03`` and
    ``ben``; turns that overlap.
    """

    # of the same speaker
    audio: Utterance | None  # the same audio, whatever the speaker's name
    id: Utterance | None  # the same id, and a name that may be theirs: a copy
    name: Utterance | None  # the same name, where the tables share names
    # of another speaker
    namesake: Utterance | None  # the same name, where names are a table's own
    other_id: Utterance | None  # the same id, but another name
    # of either
    overlap: Utterance | None  # a part of the audio in common, or all


def _list_seconds(utterance):
    """Lists what a part of a file is looked for by; nothing for a whole one.

    The file, and each of its seconds in which the utterance has a share.
    """
    if utterance.file_sound is None:
        return []
    seconds = range(int(utterance.start), math.ceil(utterance.end))
    places = [(utterance.file_sound, second) for second in seconds]
    return [utterance.file_sound, *places]


class KnownUtterances:
    """Utterances whose speakers are to be recognised.

    Arguments
    ---------
    utterances : list of Utterance
        Each with what is known of it.

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
        self._by_second = {}  # of a file, those that are parts of it
        for utterance in utterances:
            self.add_audio(utterance)
            if utterance.id is not None:
                self._by_id.setdefault(utterance.id, []).append(utterance)
            if utterance.speaker is not None:
                place, name = utterance.person
                self._by_name.setdefault(name, {})[place] = utterance

    def add_audio(self, utterance):
        """Adds an utterance by its audio alone: other tables' ids mean less."""
        for audio in (utterance.digest, utterance.sound):
            if audio is not None:
                self._by_audio[audio] = utterance
        for place in _list_seconds(utterance):
            self._by_second.setdefault(place, []).append(utterance)

    def _find_part(self, utterance):
        """Finds who has most of a part of a file, and who has some of it."""
        others = {
            other: min(other.end, utterance.end)
            - max(other.start, utterance.start)
            for place in _list_seconds(utterance)[1:]
            for other in self._by_second.get(place, ())
        }
        other = max(others, key=others.get, default=None)
        if other is None or others[other] < OVERLAP:
            return None, None
        shorter = min(one.end - one.start for one in (other, utterance))
        return other if others[other] > shorter / 2 else None, other

    def find(self, utterance):
        """Finds the known utterances that an utterance matches.

        Arguments
        ---------
        utterance : Utterance
            With id and speaker.

        Returns
        -------
        match : Match
        """
        audio = self._by_audio.get(utterance.sound)
        audio = audio or self._by_audio.get(utterance.digest)
        if utterance.file_sound is None:
            parts = self._by_second.get(utterance.sound, [None])
            most = some = parts[0]
        else:
            most, some = self._find_part(utterance)
            audio = audio or self._by_audio.get(utterance.file_sound)
        audio = audio or most
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
            overlap=audio or some,
        )

    def pair(self, utterances, kind):
        """Pairs each utterance with a known one that it matches.

        Arguments
        ---------
        utterances : list of Utterance
            With id and speaker.
        kind : str
            An attribute of :class:`Match`.

        Returns
        -------
        pairs : list of tuple
            An utterance and a known one; what matches none is left out.
        """
        pairs = [(one, getattr(self.find(one), kind)) for one in utterances]
        return [(one, known) for one, known in pairs if known]


def find_shared_speakers(splits):
    """Finds the speakers who are in two splits, under two spellings as well.

    Validation and test set may be one and the same (protocol "paper"); they
    are then not compared with each other.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id, or table, of each split.

    Returns
    -------
    shared : dict
        By pair of splits, the names that the speakers have in them, sorted; of
        pairs that share none, nothing.

    Example
    -------
    >>> a, b = {"u1": {"speaker": "a_1"}}, {"u2": {"speaker": "A1"}}
    >>> find_shared_speakers({"train": a, "test": b})
    {('train', 'test'): [('a_1', 'A1')]}
    """
    listed = {name: list_utterances(split) for name, split in splits.items()}
    shared = {}
    for first, second in combinations(listed, 2):
        ids = [{one.key for one in listed[name]} for name in (first, second)]
        if ids[0] == ids[1] and "train" not in (first, second):
            continue
        names = {}
        for other, one in KnownUtterances(listed[first]).pair(
            listed[second], "name"
        ):
            names.setdefault(one.person[1], (one.speaker, other.speaker))
        if names:
            order = sorted(names, key=natural_key)
            shared[first, second] = [names[name] for name in order]
    return shared


def check_speakers(splits):
    """Makes sure that no speaker is in two splits.

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
    for (first, second), names in find_shared_speakers(splits).items():
        one, other = names[0]
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
    """Explains which utterances are a held-out speaker's.

    Whoever matches a held-out speaker (see :class:`Match`) is held out, and so
    is whoever has the name, or an utterance's audio, of one so found. Of other
    speakers, an utterance that overlaps a held-out one is.

    Arguments
    ---------
    utterances : list of Utterance
        Of further tables.
    held_out : list of Utterance
        All utterances of the held-out sessions.

    Returns
    -------
    reasons : list of str
        One for each utterance; empty where it is not held out.

    Example
    -------
    >>> others = [("1", "x", "12"), ("2", "x", "34"), ("3", "y", "56")]
    >>> explain_held_out(
    ...     [Utterance(i, s, sound=a, table="b") for i, s, a in others],
    ...     [Utterance("u1", "anna", sound="12")],
    ... )[1:]
    ['b/1 is the audio of u1, which is held out', '']
    """
    known, reasons = KnownUtterances(held_out), {}
    overlaps = {
        one.key: f"{one.key} overlaps {other.key}, which is held out"
        for one, other in known.pair(utterances, "overlap")
    }
    for one, other in known.pair(utterances, "name"):
        reasons.setdefault(one.person, f"{other.speaker} is held out")
    for one, _ in known.pair(utterances, "id"):
        reason = f"{one.key} is an utterance that is held out"
        reasons.setdefault(one.person, reason)
    found_more = True
    while found_more:
        found_more = False
        for one in utterances:
            audio = known.find(one).audio
            if audio and one.person not in reasons:
                reason = f"{one.key} is the audio of {audio.key}"
                reasons[one.person] = f"{reason}, which is held out"
            elif one.person in reasons and not audio:
                known.add_audio(one)
            else:
                continue
            found_more = True
    return [
        reasons.get(one.person) or overlaps.get(one.key, "")
        for one in utterances
    ]


# What an adapter has heard ---------------------------------------------------


def record_speech(utterances):
    """Lists what an adapter has heard of one corpus, for its record.

    Arguments
    ---------
    utterances : list of Utterance
        All of one table.

    Returns
    -------
    heard : dict
        "speakers": their names in their own table; "utterances": digest of
        each utterance, and speaker and id, which a copy at another sample rate
        has as well; "sounds": digests of the samples; "parts", if there are
        any: of files, the sound, start and end.
    """
    sounds = {one.sound for one in utterances}
    parts = [
        [one.file_sound, one.start, one.end]
        for one in utterances
        if one.file_sound
    ]
    return {
        **({"parts": sorted(parts)} if parts else {}),
        "sounds": sorted(sounds - {None}),  # hand-made manifests may lack it
        "speakers": sorted({one.speaker for one in utterances}),
        "utterances": sorted(
            name
            for one in utterances
            for name in (one.digest, f"{one.speaker}/{one.id}")
        ),
    }


def read_speech(heard):
    """Reads what :func:`record_speech` listed.

    Arguments
    ---------
    heard : dict
        The record, for the adapter's corpus under test, or a further table of
        it, with "name" and "speaker_names".

    Returns
    -------
    utterances : list of Utterance
        Each with a part of what identifies one. The names of the adapter's
        corpus under test are its own: it may be another corpus than here.

    Example
    -------
    >>> one = Utterance("u1", "anna", "12")
    >>> known = KnownUtterances(read_speech(record_speech([one])))
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
    for sound, start, end in heard.get("parts", ()):
        parts.append(part(file_sound=sound, start=start, end=end))
    for text in heard["utterances"]:
        parts.append(part(digest=text))
        for slash in re.finditer("/", text):  # both may have one themselves
            speaker, key = text[: slash.start()], text[slash.end() :]
            if speaker in speakers:
                parts.append(part(id=key, speaker=speaker))
    return parts
