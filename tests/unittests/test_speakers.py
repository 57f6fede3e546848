"""Who is who: laws of names, and of what makes a speaker known again."""

import pytest

from speechbrain_wap.data.speakers import (
    KnownUtterances,
    Utterance,
    check_speakers,
    explain_held_out,
    list_utterances,
    natural_key,
    normalise_name,
    read_speech,
    record_speech,
)
from speechbrain_wap.errors import RecipeError

# Names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other",
    [
        ("Mary Ann", "mary-ann"),
        ("3", "03"),
        ("3", "3.0"),
        ("a_1", "A 01"),
        ("s1f", "s-01.F "),
        ("s1f", "\uff53\uff11\uff46"),
        ("s1f", "s1\u200bf"),
    ],
)
def test_spellings_of_a_name_are_one(one, other):
    assert normalise_name(one) == normalise_name(other)


@pytest.mark.parametrize(
    "one, other",
    [("1_11", "11_1"), ("3", "30"), ("anna", "anne"), ("+", "-"), ("", "0")],
)
def test_names_that_are_but_alike_are_two_people(one, other):
    assert normalise_name(one) != normalise_name(other)


def test_the_order_of_names_is_not_left_to_chance():
    """A set's order differs from process to process."""
    for names in (["1", "01"], ["a01b", "a1b"], ["٣", "3"]):
        one, other = map(natural_key, names)
        assert one < other or other < one


# Splits of a fold ------------------------------------------------------------


def speak(*speakers):
    return {f"{s}-{i}": {"speaker": s} for i, s in enumerate(speakers)}


@pytest.mark.parametrize(
    "splits, names",
    [
        (("ab", "c", "db"), "b .*train.*test"),
        (("ab", "ca", "d"), "a .*train.*valid"),
        (("a", "bc", "cd"), "c .*valid.*test"),
        (("ab", "ab", "cd"), "a .*train.*valid"),
        (("ab", "c", "ab"), "a .*train.*test"),
        ((["a_1"], "b", ["A 01"]), "a_1 in the train .*A 01 in the test"),
        (("a", "b", "b"), None),  # validation and test set may be one
        (("a", "", ""), None),
    ],
)
def test_a_speaker_in_two_splits_is_named_with_both(splits, names):
    spoken = dict(zip(("train", "valid", "test"), (speak(*s) for s in splits)))
    if names is None:
        check_speakers(spoken)
        return
    with pytest.raises(RecipeError, match=f"speaker {names}"):
        check_speakers(spoken)


# Known utterances ------------------------------------------------------------


HEARD = Utterance("u1", "Actor_01", digest="d1", sound="a1")
SIGNS = ("audio", "id", "name", "namesake", "other_id")


@pytest.mark.parametrize(
    "one, signs",
    [
        (Utterance("u2", "anna", sound="a1"), {"audio"}),
        (Utterance("u2", "anna", digest="d1"), {"audio"}),
        (Utterance("u2", "anna", "d2", "a2"), set()),
        (Utterance("u2", "actor 1"), {"name"}),
        (
            Utterance("u2", "actor 1", table="b", has_own_names=True),
            {"namesake"},
        ),
        (Utterance("u2", "1"), set()),
        (Utterance("u1", "1"), {"id"}),
        (Utterance("u1", "actor 1"), {"id", "name"}),
        (Utterance("u1", "11"), {"other_id"}),
        (Utterance("u1", "anna", sound="a1"), {"audio", "other_id"}),
    ],
)
def test_a_speaker_is_known_again_by_what_utterances_have_in_common(one, signs):
    found = KnownUtterances([HEARD]).find(one)
    assert {sign for sign in SIGNS if getattr(found, sign)} == signs
    assert all(getattr(found, sign) is HEARD for sign in signs)


PART = Utterance("u1", "anna", "d1", "a1", "", False, "f", 10.0, 14.0)


@pytest.mark.parametrize(
    "start, end, signs",
    [
        (10.0, 14.0, {"audio", "overlap"}),
        (10.5, 11.0, {"audio", "overlap"}),
        (0.0, 60.0, {"audio", "overlap"}),
        (12.5, 15.0, {"audio", "overlap"}),
        (13.7, 17.0, {"overlap"}),
        (8.0, 10.3, {"overlap"}),
        (14.0, 18.0, set()),
        (13.99, 18.0, set()),
        (4.0, 9.0, set()),
    ],
)
def test_parts_of_a_file_are_the_same_audio_where_they_overlap(
    start, end, signs
):
    """Most of the shorter one: the same utterance; less: turns that overlap."""
    other = Utterance("u2", "ben", "d2", "a2", "b", True, "f", start, end)
    for one, known in [(PART, other), (other, PART)]:
        found = KnownUtterances([known]).find(one)
        matches = {s for s in (*SIGNS, "overlap") if getattr(found, s)}
        assert matches == signs
    elsewhere = other._replace(file_sound="g")
    assert not any(KnownUtterances([PART]).find(elsewhere))


def test_a_part_and_its_whole_file_are_the_same_audio():
    whole = Utterance("u2", "ben", "d2", "f")
    assert KnownUtterances([PART]).find(whole).audio is PART
    assert KnownUtterances([whole]).find(PART).audio is whole
    # a part that has been cut out of it
    assert KnownUtterances([PART]).find(whole._replace(sound="a1")).audio


def test_who_talks_over_a_held_out_utterance_is_not_its_speaker():
    times = [(12.0, 14.0), (13.5, 15.0), (20.0, 22.0)]
    further = [
        Utterance(str(k), s, f"e{k}", f"s{k}", "b", True, "f", *time)
        for k, (s, time) in enumerate(zip("xyy", times))
    ]
    reasons = explain_held_out(further, [PART])
    assert [*map(bool, reasons)] == [True, True, False]
    assert reasons[1] == "b/1 overlaps u1, which is held out"


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
    rows = [("u1", "x", "1"), ("u2", "x", "2"), ("u3", "y", "2")]
    rows += [("u4", "z", "4")]
    further = [Utterance(i, s, sound=a, table="b") for i, s, a in rows]
    for utterances in (further, further[::-1]):
        reasons = explain_held_out(
            utterances, [Utterance("u1", "anna", sound="1")]
        )
        found = {one.speaker for one, why in zip(utterances, reasons) if why}
        assert found == {"x", "y"}


def test_an_id_of_a_third_table_is_not_that_of_who_is_found():
    """Numbers as ids are common; only the corpus under test's are compared."""
    held_out = [Utterance("m", "anna", sound="1")]
    b = Utterance("1", "x", sound="1", table="b", has_own_names=True)
    c = b._replace(sound="2", table="c")
    assert [*map(bool, explain_held_out([b, c], held_out))] == [True, False]


# What an adapter has heard ---------------------------------------------------


@pytest.mark.parametrize("names", ["shared", "own", None])
def test_a_record_knows_again_what_was_heard(names):
    table = {} if names is None else {"name": "b", "speaker_names": names}
    one = Utterance("a/1", "x/y", "d1", "a1")
    known = KnownUtterances(read_speech({**record_speech([one]), **table}))
    assert known.find(one).audio and known.find(one).id
    assert "parts" not in record_speech([one])
    heard = {**record_speech([PART]), **table}
    known_parts = KnownUtterances(read_speech(heard))
    part = PART._replace(digest="d2", sound="a2", start=11.0, id="2")
    assert known_parts.find(part).audio
    assert not known_parts.find(part._replace(start=14.0, end=15.0)).audio
    other = one._replace(id="2", digest="d2", sound="a2")
    assert bool(known.find(other).name) == (names == "shared")
    assert bool(known.find(other).namesake) == (names != "shared")
    # either side of any slash is a name only if a speaker was called so
    assert not known.find(other._replace(speaker="x")).namesake
