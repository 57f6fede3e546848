"""Several corpora in stage 1: what joins, who must not, and how often."""

import shutil

import pandas as pd
import pytest
import soundfile

from speechbrain_wap.data.further_corpora import parse_corpora, plan_epochs
from speechbrain_wap.data.manifests import describe_data
from speechbrain_wap.errors import RecipeError

# The key ---------------------------------------------------------------------


def test_the_key_may_be_null_text_or_a_list():
    assert parse_corpora(None) == []
    text = parse_corpora("x/a.csv, y/b.csv")
    assert text == parse_corpora(["x/a.csv", "y/b.csv"])
    assert text == parse_corpora([{"table": "x/a.csv"}, {"table": "y/b.csv"}])
    assert [item["name"] for item in text] == ["a", "b"]
    full = {"table": "b.csv", "name": "mine", "weight": 0.5, "speakers": "own"}
    assert parse_corpora([full]) == parse_corpora(full) == [full]


def test_tables_of_the_same_file_name_are_told_apart():
    items = ["x/b.csv", {"table": "a.csv", "name": "b"}, "b-2.csv", "y/b.csv"]
    names = [item["name"] for item in parse_corpora(items)]
    assert names[1] == "b" and len(set(names)) == 4


@pytest.mark.parametrize(
    "value, says",
    [
        (5, "corpora=5 must be null"),
        ("a.csv,,b.csv", "item without a table"),
        ([{"table": "a.csv", "wait": 2}], "key wait, which is unknown"),
        (
            [{"table": "a.csv", "weight": 0}],
            "corpora: a.csv: weight=0 must be a number",
        ),
        ([{"table": "a.csv", "speakers": "mine"}], "a.csv: speakers=mine is"),
        (["a.csv", "./a.csv"], "./a.csv twice.*weight: 2"),
        (
            [{"table": "a.csv", "name": "x"}, {"table": "b.csv", "name": "x"}],
            "name x twice",
        ),
    ],
)
def test_anything_else_is_refused_by_what_is_wrong(value, says):
    with pytest.raises(RecipeError, match=says):
        parse_corpora(value)


# What joins ------------------------------------------------------------------


@pytest.fixture
def prepare(prepare_adapter, left_out_csv):
    """Prepares stage 1; returns the splits and why what was left out."""

    def run(value, *args, **kwargs):
        splits = prepare_adapter(*args, corpora=value, **kwargs)
        if not left_out_csv.is_file():
            return splits, {}
        table = pd.read_csv(left_out_csv)
        return splits, dict(zip(table["id"], table["reason"]))

    return run


def further(splits):
    """Ids that do not come from the corpus under test."""
    return [key for key in splits["train"] if "/" in key]


def test_tables_join_the_training_sessions_only(prepare, write_table):
    a = write_table("a", ("u1", "anna"), ("u2", "ben"))
    b = write_table("b", ("u1", "cleo"))
    plain, _ = prepare(None, protocol="held_out")
    splits, left_out = prepare(f"{a},{b}", protocol="held_out")
    assert left_out == {}
    added = {key: splits["train"].pop(key) for key in further(splits)}
    assert splits == plain
    assert list(added) == ["a/u1", "a/u2", "b/u1"]
    assert added["a/u2"]["speaker"] == "ben"
    assert added["b/u1"]["table"] == "b"


@pytest.mark.parametrize("protocol", ["paper", "held_out"])
def test_no_held_out_speaker_comes_in_by_name(prepare, write_table, protocol):
    names = [f"s{i}{g}" for i in range(1, 6) for g in "fm"]
    rows = [(f"{name}-u", f"S_{name[1:]}") for name in names]  # spelt otherwise
    b = write_table("b", *rows, ("other", "s11f"))
    splits, left_out = prepare(b, 4, protocol)
    held_out = {"s4"} | ({"s5"} if protocol == "held_out" else set())
    kept = [f"b/{name}-u" for name in names if name[:2] not in held_out]
    assert further(splits) == [*kept, "b/other"]
    assert len(left_out) == 2 * len(held_out)
    assert left_out["b/s4f-u"] == "held-out speaker: s4f is held out"


def test_ids_of_the_held_out_session_say_who_speaks(
    prepare, write_table, caplog
):
    """Other audio: a copy at another rate; its speakers' names have changed."""
    rows = [("s1f0", "1"), ("u2", "01"), ("s1f1", "2"), ("s1f2", "t1m")]
    splits, left_out = prepare(write_table("b", *rows))
    assert further(splits) == ["b/s1f1", "b/s1f2"]
    assert "b/s1f0 is an utterance that is held out" in left_out["b/u2"]
    (said,) = [r.message for r in caplog.records if "have ids of" in r.message]
    assert "2 utterances" in said
    assert "b/s1f1 of speaker 2, who is s1f there" in said


@pytest.mark.parametrize("speakers", ["shared", "own"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_held_out_speaker_is_known_by_the_audio_in_any_format(
    prepare, write_table, own_csv, tmp_path, speakers, suffix
):
    copy = tmp_path / f"copy{suffix}"
    # unlabelled, and held out
    audio = soundfile.read(own_csv.parent / "wav" / "s1f3.wav", dtype="int16")
    soundfile.write(copy, *audio)
    b = write_table("b", ("u1", "anna", copy), ("u2", "anna"), ("u3", "ben"))
    value = {"table": b, "speakers": speakers}
    splits, left_out = prepare(value)
    assert further(splits) == ["b/u3"]
    assert "b/u1 is the audio of s1f3" in left_out["b/u2"]
    # in another fold, where nothing of it is held out, it trains once
    splits, left_out = prepare(value, fold=2)
    assert further(splits) == ["b/u2", "b/u3"]
    assert left_out == {"b/u1": "same audio as s1f3"}


def test_who_is_found_by_audio_is_known_by_name_in_the_other_tables(
    prepare, write_table, own_csv
):
    audio = own_csv.parent / "wav" / "s1f0.wav"
    a = write_table("a", ("u1", "anna"), ("u2", "dora"))
    b = write_table("b", ("u1", "anna", audio), ("u2", "ben"))
    # says what anna of b says, under yet another name
    copy = a.replace("a.csv", "u1.wav")
    c = write_table("c", ("u1", "cleo", copy), ("u2", "cleo"), ("u3", "eva"))
    splits, left_out = prepare([a, b, c])
    assert further(splits) == ["a/u2", "b/u2", "c/u3"]
    assert set(left_out) == {"a/u1", "b/u1", "c/u1", "c/u2"}
    assert "c/u1 is the audio of a/u1, which is held out" in left_out["c/u2"]
    # anna of a is another one if its names are its own
    value = [{"table": a, "speakers": "own"}, b, c]
    splits, _ = prepare(value)
    assert further(splits) == ["a/u1", "a/u2", "b/u2", "c/u2", "c/u3"]
    assert splits["train"]["a/u1"]["speaker"] == "a/anna"


def test_the_corpus_in_another_format_is_known_though_its_names_are_its_own(
    prepare, write_table
):
    # other audio, but the held-out session's speaker and id
    b = write_table("b", ("s1f0", "s1f"), ("v", "s1f"), ("s2f0", "s2f"))
    splits, left_out = prepare({"table": b, "speakers": "own"})
    assert further(splits) == ["b/s2f0"]
    assert set(left_out) == {"b/s1f0", "b/v"}
    assert "b/s1f0 is an utterance that is held out" in left_out["b/v"]


def test_an_utterance_of_two_tables_trains_once(prepare, write_table, own_csv):
    audio = own_csv.parent / "wav" / "s3f0.wav"
    a = write_table("a", ("u1", "anna", audio), ("u2", "anna"))
    copy = a.replace("a.csv", "u2.wav")
    b = write_table("b", ("v1", "ben", copy), ("v2", "ben"), ("v3", "ben"))
    twice = b.replace("b.csv", "v3.wav")
    c = write_table("c", ("w1", "cleo", twice), ("w2", "x"), ("w3", "x"))
    shutil.copyfile(c.replace("c.csv", "w2.wav"), c.replace("c.csv", "w3.wav"))
    splits, left_out = prepare([a, b, c])
    assert left_out == {
        "a/u1": "same audio as s3f0",
        "b/v1": "same audio as a/u2",
        "c/w1": "same audio as b/v3",
    }
    # within a table, as within the corpus under test, nothing is looked for
    assert further(splits) == ["a/u2", "b/v2", "b/v3", "c/w2", "c/w3"]


def test_labels_of_held_out_speakers_are_not_written_down(
    prepare, write_table, own_csv
):
    # x says what the held-out speaker s1f does; y is somebody else
    b = write_table(
        *("b", ("u1", "s1f"), ("u2", "x"), ("u3", "y"), ("u4", "s2f")),
        ("u5", "x", own_csv.parent / "wav" / "s1f0.wav"),
    )
    pd.read_csv(b).assign(emo="hot").to_csv(b, index=False)
    splits, left_out = prepare(b, adapter_data="all")
    assert len(splits["train"]) == 44
    labels = {k: splits["train"][k]["emo"] for k in further(splits)}
    assert labels == {"b/u1": "", "b/u2": "", "b/u3": "hot", "b/u4": "hot"}
    assert left_out == {"b/u5": "same audio as s1f0"}


def test_without_a_corpus_under_test_nothing_is_held_out(
    prepare, write_table, own_csv, manifests
):
    b = write_table("b", ("u1", "s1f"))
    splits, left_out = prepare([str(own_csv), b], corpus_csv=None)
    assert len(splits["train"]) == 41 and left_out == {}
    assert splits["valid"] == splits["test"] == {}
    assert all("/" in key for key in splits["train"])


def test_ids_that_meet_are_refused(prepare, write_table, own_csv):
    table = pd.read_csv(own_csv, keep_default_na=False)
    table.loc[8, "id"] = "b/u1"
    table.to_csv(own_csv, index=False)
    with pytest.raises(RecipeError, match="id b/u1.*another name"):
        prepare(write_table("b", ("u0", "anna"), ("u1", "anna")))


def test_what_cannot_be_read_is_a_share_of_all_tables(
    prepare, write_table, own_csv, tmp_path
):
    b = write_table("b", *[(f"u{i}", "anna") for i in range(9)])
    (own_csv.parent / "wav" / "s3f0.wav").write_text("no audio")
    (tmp_path / "further b" / "u1.wav").unlink()
    with pytest.raises(RecipeError, match="2 of 49 utterances") as error:
        prepare(b, max_skipped=1.9 / 49)
    assert "s3f0" in str(error.value)
    splits, _ = prepare(b, max_skipped=2.1 / 49)
    assert len(splits["train"]) == 31 + 8
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped["id"].tolist() == ["s3f0", "b/u1"]
    assert "further b" in skipped["reason"][1]


def test_the_digest_of_the_data_is_of_the_tables_too(prepare, write_table):
    b = write_table("b", ("u1", "anna"), ("u2", "ben"))
    digests = {describe_data(prepare(value)[0]) for value in (None, b)}
    own = describe_data(prepare({"table": b, "speakers": "own"})[0])
    assert own in digests and len(digests) == 2  # it makes no difference here
    table = pd.read_csv(b, keep_default_na=False)
    table.loc[0, "speaker"] = "dora"
    table.to_csv(b, index=False)
    assert describe_data(prepare(b)[0]) not in digests


# How often -------------------------------------------------------------------


def test_each_corpus_has_its_weight(prepare, write_table):
    rows = [(f"u{i}", "anna") for i in range(7)]
    a, b = write_table("a", *rows), write_table("b", *rows)
    corpora = parse_corpora(
        [{"table": a, "weight": 2}, {"table": b, "weight": 0.5}]
    )
    plan = plan_epochs(prepare([a, b])[0]["train"], corpora, 0.25, seed=1)
    names = list(plan.entries)
    for epoch in range(1, 5):
        origins = [names[i].rpartition("/")[0] for i in plan.choose(epoch)]
        # 32 of the corpus under test; round(3.5) is 4
        assert [origins.count(name) for name in ("", "a", "b")] == [8, 14, 4]
    assert plan.weights["a/u1"] == 2.0 and plan.weights["s3f0"] == 0.25
