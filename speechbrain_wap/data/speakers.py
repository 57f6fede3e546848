"""Who is who: one person's name may be spelled in several ways.

Spreadsheets make ``3`` or ``3.0`` of ``03``, people write ``Actor_01`` and
``actor 1``. No speaker of a held-out session may train under any of them.
"""

import re
import unicodedata

from speechbrain_wap.data.corpus_table import natural_key
from speechbrain_wap.errors import RecipeError


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


def find_numbers(name):
    """Lists the numbers in a name.

    Arguments
    ---------
    name : str
        A speaker's name.

    Returns
    -------
    numbers : tuple of str

    Example
    -------
    >>> find_numbers("Actor_01") == find_numbers("1")
    True
    """
    return tuple(re.findall(r"\d+", fold_name(name)))


def may_be_same(name, other):
    """Tells whether names that mean one recording may mean one speaker.

    Arguments
    ---------
    name : str
        A speaker's name in one table.
    other : str
        One in another, which has an utterance of the same id.

    Returns
    -------
    is_alike : bool
        True for spellings of one name, and for a number and a name that has
        that number.

    Example
    -------
    >>> may_be_same("Actor_01", "1"), may_be_same("F01", "M01")
    (True, False)
    """
    folded = {fold_name(name), fold_name(other)}
    numbers = find_numbers(name)
    if len(folded) == 1 or numbers != find_numbers(other):
        return len(folded) == 1
    return "_".join(numbers) in folded


def check_speakers(splits):
    """Makes sure that no speaker is in two splits.

    Validation and test set may be one and the same (protocol "paper"); they
    are then not compared with each other.

    Arguments
    ---------
    splits : dict
        Manifest (entries by utterance id) of each split.

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
    names = list(splits)
    speakers = {
        name: {
            fold_name(speaker): speaker
            for speaker in sorted({e["speaker"] for e in manifest.values()})
        }
        for name, manifest in splits.items()
    }
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            same = splits[first].keys() == splits[second].keys()
            if same and "train" not in (first, second):
                continue
            shared = speakers[first].keys() & speakers[second].keys()
            if not shared:
                continue
            folded = min(shared, key=natural_key)
            one, other = speakers[first][folded], speakers[second][folded]
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
