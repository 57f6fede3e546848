"""Who is who: laws of names, and of what makes a speaker known again."""

import pytest

from speechbrain_wap.data.speakers import (
    KnownUtterances,
    Utterance,
    check_speakers,
    explain_held_out,
    fold_name,
    list_heard,
    list_utterances,
    natural_key,
    read_heard,
)
from speechbrain_wap.errors import RecipeError

# Names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other",
    [
        ("Mary Ann", "mary-ann"),
        ("AB", "a_b"),
        ("3", "03"),
        ("3", "3.0"),
        ("a_1", "A 01"),
        *(
            ("s1f", spelling)
            for spelling in (
                *("S1F", "s1F ", "s 1 f", "s_01_f", "s-1.f"),
                *("\uff53\uff11\uff46", "s1\u200bf"),
            )
        ),
    ],
)
def test_spellings_of_a_name_are_one(one, other):
    assert fold_name(one) == fold_name(other)


@pytest.mark.parametrize(
    "one, other",
    [("1_11", "11_1"), ("3", "30"), ("anna", "anne"), ("+", "-"), ("", "0")],
)
def test_names_that_are_but_alike_are_two_people(one, other):
    assert fold_name(one) != fold_name(other)


def test_the_order_of_names_is_not_left_to_chance():
    """A set's order differs from process to process."""
    for names in (["1", "01", "001"], ["a01b", "a1b"], ["٣", "3"]):
        orders = {
            tuple(sorted(order, key=natural_key))
            for order in (names, names[::-1])
        }
        assert len(orders) == 1, names


# Splits of a fold ------------------------------------------------------------


def speak(*speakers):
    return {f"{s}-{i}": {"speaker": s} for i, s in enumerate(speakers)}


def test_speakers_of_one_split_each_are_let_pass():
    a, b, c = speak("a1", "a2"), speak("b"), speak("c")
    check_speakers({"train": a, "valid": b, "test": c})
    check_speakers({"train": a, "valid": b, "test": b})
    check_speakers({"train": a, "valid": {}, "test": {}})


@pytest.mark.parametrize(
    "splits, names",
    [
        (("ab", "c", "db"), ("b", "train", "test")),
        (("ab", "ca", "d"), ("a", "train", "valid")),
        (("a", "bc", "cd"), ("c", "valid", "test")),
    ],
)
def test_a_speaker_in_two_splits_is_named_with_both(splits, names):
    manifests = dict(
        zip(("train", "valid", "test"), (speak(*s) for s in splits))
    )
    with pytest.raises(RecipeError) as error:
        check_speakers(manifests)
    speaker, first, second = names
    expected = f"speaker {speaker} is in both the {first} and the {second} "
    assert expected in str(error.value)


def test_two_spellings_of_a_speaker_are_named_with_both_splits():
    splits = {"train": speak("b", "a_1"), "valid": {}, "test": speak("A 01")}
    with pytest.raises(
        RecipeError, match="a_1 in the train .*A 01 in the test"
    ):
        check_speakers(splits)


@pytest.mark.parametrize("other", ["valid", "test"])
def test_the_training_set_is_never_validation_or_test_set(other):
    a, b = speak("a", "b"), speak("c")
    splits = {"train": a, "valid": b, "test": b, other: a}
    with pytest.raises(RecipeError, match=f"train and the {other}"):
        check_speakers(splits)


# Known utterances ------------------------------------------------------------


HEARD = Utterance("u1", "Actor_01", digest="d1", sound="a1")
SIGNS = ("audio", "id", "name", "namesake", "other_id")


@pytest.mark.parametrize(
    "one, signs",
    [
        (Utterance("u2", "anna", sound="a1"), {"audio"}),
        (Utterance("u2", "anna", digest="d1"), {"audio"}),
        (Utterance("u2", "anna", "d2", "a2"), set()),
        (Utterance("u2", "anna"), set()),
        (Utterance("u2", "actor 1"), {"name"}),
        (Utterance("u2", "actor 1", table="b"), {"name"}),
        (
            Utterance("u2", "actor 1", table="b", has_own_names=True),
            {"namesake"},
        ),
        (Utterance("u2", "1"), set()),
        (Utterance("u1", "1"), {"id"}),
        (Utterance("u1", "1", table="b", has_own_names=True), {"id"}),
        (Utterance("u1", "actor 1"), {"id", "name"}),
        (Utterance("u1", "11"), {"other_id"}),
        (Utterance("u1", "anna", sound="a1"), {"audio", "other_id"}),
    ],
)
def test_a_speaker_is_known_again_by_what_utterances_have_in_common(one, signs):
    found = KnownUtterances([HEARD]).find(one)
    assert {sign for sign in SIGNS if getattr(found, sign)} == signs
    assert all(getattr(found, sign) is HEARD for sign in signs)


def test_own_names_are_those_of_one_table():
    b, c = (Utterance("u1", "anna", None, None, t, True) for t in "bc")
    known = KnownUtterances([b])
    assert known.find(b._replace(id="u2", speaker="ANNA")).name is b
    assert known.find(c._replace(id="u2")).name is None


def test_an_utterance_of_a_further_table_has_the_names_of_its_own_table():
    entry = {"speaker": "anna", "digest": "d", "sound": "a", "table": "b"}
    shared = {"b/u1": {**entry, "speaker_names": "shared"}}
    own = {"b/u1": {**entry, "speaker": "b/anna", "speaker_names": "own"}}
    (one,), (other,) = list_utterances(shared), list_utterances(own)
    assert one == Utterance("u1", "anna", "d", "a", "b")
    assert other == one._replace(has_own_names=True)
    assert one.key == other.key == "b/u1"
    # a corpus may have a column of that name
    (mine,) = list_utterances({"b/u1": entry})
    assert (mine.id, mine.key, mine.table) == ("b/u1", "b/u1", "")


def test_who_is_found_late_is_held_out_from_the_start():
    """Through the audio of others, in whatever order the tables come."""
    rows = [
        ("u1", "x", "1"),
        ("u2", "x", "2"),
        ("u3", "y", "2"),
        ("u4", "z", "4"),
    ]
    further = [Utterance(i, s, sound=a, table="b") for i, s, a in rows]
    held_out = [Utterance("u1", "anna", sound="1")]
    for utterances in (further, further[::-1]):
        reasons = explain_held_out(utterances, held_out)
        assert {
            one.speaker for one, why in zip(utterances, reasons) if why
        } == {"x", "y"}


def test_an_id_of_a_third_table_is_not_that_of_who_is_found():
    """Numbers as ids are common; only the corpus under test's are compared."""
    held_out = [Utterance("m", "anna", sound="1")]
    b = Utterance("1", "x", sound="1", table="b", has_own_names=True)
    c = Utterance("1", "x", sound="2", table="c", has_own_names=True)
    assert [bool(r) for r in explain_held_out([b, c], held_out)] == [
        True,
        False,
    ]


# What an adapter has heard ---------------------------------------------------


@pytest.mark.parametrize("names", ["shared", "own", None])
def test_a_record_knows_again_what_was_heard(names):
    table = {} if names is None else {"name": "b", "speaker_names": names}
    one = Utterance("a/1", "x/y", "d1", "a1")
    known = KnownUtterances(read_heard({**list_heard([one]), **table}))
    assert known.find(one).audio and known.find(one).id
    other = one._replace(id="2", digest="d2", sound="a2")
    assert bool(known.find(other).name) == (names == "shared")
    assert bool(known.find(other).namesake) == (names != "shared")
    # either side of any slash is a name only if a speaker was called so
    assert not known.find(other._replace(speaker="x")).namesake


def test_a_record_without_sounds_is_an_earlier_versions():
    one = Utterance("u1", "anna", "d1", "a1")
    heard = list_heard([one])
    del heard["sounds"]
    known = KnownUtterances(read_heard(heard))
    assert known.find(one._replace(id="u2")).audio
    assert not known.find(one._replace(digest="d2")).audio
