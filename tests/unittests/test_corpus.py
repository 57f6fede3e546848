"""Corpus tables, classes and folds: which utterance goes where."""

import json
import logging
import os

import pandas as pd
import pytest

from speechbrain_wap.data import corpus_table as corpus
from speechbrain_wap.data.corpus_table import (
    choose_classes,
    label_utterances,
    list_sessions,
    read_corpus_table,
    read_own_corpus,
    split_sessions,
    split_table,
    write_corpus_table,
    write_manifest,
)
from speechbrain_wap.data.speakers import check_speakers, fold_name
from speechbrain_wap.errors import RecipeError

HEADER = "id,wav,speaker,session,emo\n"


@pytest.fixture
def write_csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "own.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def make_table(emo, **columns):
    """A corpus table with the given labels."""
    table = pd.DataFrame({"emo": list(emo)})
    table["id"] = [f"u{i}" for i in range(len(table))]
    return table.assign(**columns)


# Own tables ------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_table(write_csv, tmp_path):
    csv = write_csv(
        f"{HEADER}a,wav/a.wav,x,1,joy\nb,{os.sep}abs{os.sep}b.wav,x,1,joy\n"
    )
    table = read_own_corpus(csv)
    assert table["wav"].tolist() == [
        str(tmp_path / "wav" / "a.wav"),
        f"{os.sep}abs{os.sep}b.wav",
    ]


def test_the_table_may_be_named_relative_to_the_working_folder(
    write_csv, tmp_path, monkeypatch
):
    write_csv(f"{HEADER}a,a.wav,x,1,joy\n")
    monkeypatch.chdir(tmp_path)
    table = read_own_corpus("own.csv")
    assert table["wav"].tolist() == [str(tmp_path / "a.wav")]


def test_a_byte_order_mark_and_blanks_do_not_matter(write_csv):
    text = "id , wav,speaker,session,emo\n a ,a.wav, x ,1, joy \n"
    table = read_own_corpus(write_csv(text, encoding="utf-8-sig"))
    row = table.iloc[0]
    assert row["id"] == "a"
    assert row["speaker"] == "x"
    assert row["emo"] == "joy"


def test_cells_are_text_and_na_is_a_label_like_any_other(write_csv):
    rows = [
        "007,a.wav,1,01,NA",
        "1e3,b.wav,NA,01,nan",
        "null,c.wav,1.0,01,1",
        "True,d.wav,None,01,N/A",
        "x,e.wav,y,01,",
    ]
    table = read_own_corpus(write_csv(HEADER + "\n".join(rows)))
    assert table["id"].tolist() == ["007", "1e3", "null", "True", "x"]
    assert table["speaker"].tolist() == ["1", "NA", "1.0", "None", "y"]
    assert table["emo"].tolist() == ["NA", "nan", "1", "N/A", ""]
    assert set(choose_classes(table, "all")) == {"NA", "nan", "1", "N/A"}


def test_ids_and_names_may_hold_blanks_commas_and_any_script(write_csv):
    csv = write_csv(
        f'{HEADER}"Frau Müller, 1",ton ä.wav,Müller,Tag 1,Ärger\n'
        "録音 1,録 1.wav,山田 さん,二日目,怒り\n"
    )
    table = read_own_corpus(csv)
    assert table["id"].tolist() == ["Frau Müller, 1", "録音 1"]
    assert table["session"].tolist() == ["Tag 1", "二日目"]
    assert table["emo"].tolist() == ["Ärger", "怒り"]


def test_further_columns_are_kept(write_csv):
    csv = write_csv("text,id,wav,speaker,session,emo\nhallo,a,a.wav,x,1,joy\n")
    assert read_own_corpus(csv)["text"].tolist() == ["hallo"]


@pytest.mark.parametrize(
    "row, column",
    [
        (",b.wav,x,1,joy", "id"),
        ("b,,x,1,joy", "wav"),
        ("b,b.wav,  ,1,joy", "speaker"),
        ("b,b.wav,x,,joy", "session"),
        ("b,b.wav,x", "session"),
    ],
)
def test_an_empty_cell_is_named_by_line_and_column(write_csv, row, column):
    csv = write_csv(f"{HEADER}a,a.wav,x,1,joy\n{row}\n")
    with pytest.raises(RecipeError, match=f"line 3: the column {column} is"):
        read_own_corpus(csv)


def test_a_line_without_its_last_comma_has_no_label(write_csv):
    csv = write_csv(f"{HEADER}a,a.wav,x,1\nb,b.wav,x,1,joy\n")
    assert read_own_corpus(csv)["emo"].tolist() == ["", "joy"]


def test_lines_longer_than_the_header_do_not_shift_the_columns(write_csv):
    """Spreadsheets like to end every line with a comma."""
    csv = write_csv(f"{HEADER}a,a.wav,x,1,joy,\nb,b.wav,y,2,rage,\n")
    try:
        table = read_own_corpus(csv)
    except RecipeError:
        return  # refused is as good
    assert table["id"].tolist() == ["a", "b"]
    assert table["emo"].tolist() == ["joy", "rage"]


@pytest.mark.parametrize(
    "header, missing",
    [
        ("id,wav,speaker,emo", "session"),
        ("id,path,speaker,session,label", "wav, emo"),
        ("id;wav;speaker;session;emo", "id, wav, speaker, session, emo"),
    ],
)
def test_missing_columns_are_named(write_csv, header, missing):
    csv = write_csv(f"{header}\na,b,c,d,e\n")
    with pytest.raises(RecipeError, match=f"lacks the columns {missing}:"):
        read_own_corpus(csv)


def test_a_table_that_cannot_be_read_is_named(tmp_path, write_csv):
    tables = {
        "does not exist": tmp_path / "no.csv",
        "cannot be read": tmp_path,
        "cannot": write_csv(f"{HEADER}ü,a.wav,x,1,joy\n", "latin-1"),
    }
    for reason, csv in tables.items():
        with pytest.raises(RecipeError, match=reason) as error:
            read_own_corpus(csv)
        assert str(csv) in str(error.value)
    with pytest.raises(RecipeError, match="own.csv cannot be read"):
        read_own_corpus(write_csv(""))


# Writing the corpus table ----------------------------------------------------


@pytest.fixture
def table(make_corpus, tmp_path):
    """An own corpus of 8 utterances."""
    csv = make_corpus(tmp_path / "corpus", num_sessions=2, labels=("a", ""))
    return read_own_corpus(csv)


@pytest.fixture
def decoded(monkeypatch):
    """Lists the files that are decoded."""
    files = []
    inspect_audio = corpus.inspect_audio

    def inspect(path):
        files.append(os.path.basename(path))
        return inspect_audio(path)

    monkeypatch.setattr(corpus, "inspect_audio", inspect)
    return files


def test_the_written_table_holds_all_and_reads_as_it_was(table, tmp_path):
    csv = tmp_path / "new folder" / "corpus.csv"
    written = write_corpus_table(table.assign(text="Ä, b"), csv)
    assert list(written.columns) == [
        *["id", "wav", "duration", "speaker", "session", "emo"],
        *["text", "digest", "sound"],
    ]
    assert written["id"].tolist() == table["id"].tolist()
    assert (written["duration"] == 0.1).all()
    assert written["digest"].nunique() == 8
    pd.testing.assert_frame_equal(
        read_corpus_table(csv), written, check_dtype=False
    )
    assert not csv.with_name("skipped.csv").exists()


def test_durations_and_digests_are_measured_whatever_the_user_wrote(
    table, tmp_path
):
    claimed = table.assign(duration="9", digest="x", sound="y")
    written = write_corpus_table(claimed, tmp_path / "corpus.csv")
    assert (written["duration"] == 0.1).all()
    assert written["digest"].nunique() == 8
    assert written["sound"].nunique() == 8
    assert list(written.columns).count("digest") == 1


def test_an_id_that_repeats_is_named(table, tmp_path):
    table.loc[5, "id"] = table.loc[1, "id"]
    with pytest.raises(RecipeError, match=f"the id {table.loc[1, 'id']} ") as e:
        write_corpus_table(table, tmp_path / "corpus.csv")
    assert f"({table.loc[1, 'wav']} and {table.loc[5, 'wav']})" in str(e.value)


def test_an_empty_table_is_refused(table, tmp_path):
    with pytest.raises(RecipeError, match="no utterance"):
        write_corpus_table(table[:0], tmp_path / "corpus.csv")


def spoil(table, *rows):
    for row in rows:
        with open(table.loc[row, "wav"], "w", encoding="utf-8") as file:
            file.write("no audio")


def test_unreadable_audio_is_left_out_and_listed(table, tmp_path, caplog):
    spoil(table, 2)
    os.remove(table.loc[5, "wav"])
    csv = tmp_path / "corpus.csv"
    written = write_corpus_table(table, csv, max_skipped=0.25)
    bad = table["id"][[2, 5]].tolist()
    assert written["id"].tolist() == table["id"].drop([2, 5]).tolist()
    assert read_corpus_table(csv)["id"].tolist() == written["id"].tolist()
    skipped = pd.read_csv(tmp_path / "skipped.csv")
    assert skipped["id"].tolist() == bad
    for row, reason in zip((2, 5), skipped["reason"]):
        assert table.loc[row, "wav"] in reason
    assert "2 of 8" in caplog.text


def test_too_much_unreadable_audio_stops_with_the_list(table, tmp_path):
    spoil(table, 2, 5)
    with pytest.raises(RecipeError) as error:
        write_corpus_table(table, tmp_path / "corpus.csv", max_skipped=0.24)
    for part in ("2 of 8", table.loc[2, "wav"], "skipped.csv", "max_skipped"):
        assert part in str(error.value)
    assert len(pd.read_csv(tmp_path / "skipped.csv")) == 2
    assert not (tmp_path / "corpus.csv").exists()


def test_the_list_of_skipped_files_goes_when_they_are_mended(
    table, tmp_path, make_wav
):
    spoil(table, 2)
    write_corpus_table(table, tmp_path / "corpus.csv", max_skipped=0.5)
    make_wav(table.loc[2, "wav"])
    written = write_corpus_table(table, tmp_path / "corpus.csv", 0.5)
    assert len(written) == 8
    assert not (tmp_path / "skipped.csv").exists()


def test_known_files_are_not_decoded_again_but_changed_ones_are(
    table, tmp_path, make_wav, decoded
):
    index = tmp_path / "index.json"
    csv = tmp_path / "corpus.csv"
    first = write_corpus_table(table, csv, audio_index=index)
    assert len(decoded) == 8
    decoded.clear()
    second = write_corpus_table(table, csv, audio_index=index)
    assert decoded == []
    pd.testing.assert_frame_equal(first, second)

    make_wav(table.loc[3, "wav"], seed=99)
    third = write_corpus_table(table, csv, audio_index=index)
    assert decoded == [os.path.basename(table.loc[3, "wav"])]
    changed = third["digest"] != first["digest"]
    assert changed.tolist() == [row == 3 for row in range(8)]

    os.remove(table.loc[3, "wav"])
    fourth = write_corpus_table(table, csv, 0.5, audio_index=index)
    assert len(fourth) == 7


def test_unreadable_files_are_tried_again_each_time(
    table, tmp_path, decoded, make_wav
):
    index = tmp_path / "index.json"
    spoil(table, 2)
    write_corpus_table(table, tmp_path / "corpus.csv", 0.5, index)
    decoded.clear()
    write_corpus_table(table, tmp_path / "corpus.csv", 0.5, index)
    assert decoded == [os.path.basename(table.loc[2, "wav"])]


@pytest.mark.parametrize("content", ["{half", "", "[]", '{"x": 1}'])
def test_a_damaged_index_costs_time_only(table, tmp_path, decoded, content):
    index = tmp_path / "index.json"
    index.write_text(content)
    written = write_corpus_table(table, tmp_path / "c.csv", audio_index=index)
    assert len(written) == len(decoded) == 8
    assert len(set(table["wav"]) & json.loads(index.read_text()).keys()) == 8


def test_an_index_that_cannot_be_written_costs_time_only(
    table, tmp_path, caplog
):
    """A cache that others filled may be read-only."""
    (tmp_path / "file").write_text("")
    index = tmp_path / "file" / "index.json"
    written = write_corpus_table(table, tmp_path / "c.csv", audio_index=index)
    assert len(written) == 8
    assert "index.json cannot be written" in caplog.text


def test_all_ranks_join_in_the_decision_and_one_writes(tmp_path):
    csv = tmp_path / "skipped.csv"
    with pytest.raises(RecipeError, match="1 of 3 .* a: silent"):
        corpus.record_skipped(
            csv, {"a": "silent"}, ["a", "b", "c"], 0.1, write=False
        )
    corpus.record_skipped(
        csv, {"a": "silent"}, ["a", "b", "c"], 0.5, write=False
    )
    assert not csv.exists()
    corpus.record_skipped(csv, {"a": "silent"}, ["a", "b", "c"], 0.5)
    corpus.record_skipped(csv, {}, ["a", "b", "c"], 0.5, write=False)
    assert csv.exists()


def test_two_corpora_share_an_index(table, tmp_path, decoded):
    index = tmp_path / "index.json"
    for part in (table[:4], table[4:], table):
        write_corpus_table(part, tmp_path / "corpus.csv", audio_index=index)
    assert len(decoded) == 8


def test_a_table_without_digests_is_refused_by_the_column(tmp_path):
    csv = tmp_path / "corpus.csv"
    csv.write_text("id,wav,duration,speaker,session,emo\n")
    with pytest.raises(RecipeError, match="digest"):
        read_corpus_table(csv)


def test_a_manifest_keeps_ids_of_any_script_and_labels(tmp_path):
    table = make_table(["joy"], wav="a.wav", duration=0.5, speaker="Ä")
    table = table.assign(session="1", digest="00", sound="01", id="録音 1")
    write_manifest(table, tmp_path / "train.json")
    text = (tmp_path / "train.json").read_text("utf-8")
    assert "録音 1" in text
    entry = json.loads(text)["録音 1"]
    assert entry == {
        **{"wav": "a.wav", "duration": 0.5, "speaker": "Ä"},
        **{"session": "1", "emo": "joy", "digest": "00", "sound": "01"},
    }
    write_manifest(table.assign(label="happy"), tmp_path / "train.json")
    entry = json.loads((tmp_path / "train.json").read_text("utf-8"))["録音 1"]
    assert entry["label"] == "happy"


# Classes ---------------------------------------------------------------------

IEMOCAP = {
    "angry": ["ang"],
    "happy": ["hap", "exc"],
    "sad": ["sad"],
    "neutral": ["neu"],
}


def test_a_mapping_gives_the_classes_in_its_order():
    table = make_table(["neu", "ang", "exc", "sad", "fru", ""])
    classes = choose_classes(table, IEMOCAP)
    assert list(classes.items()) == list(IEMOCAP.items())


def test_a_label_alone_stands_for_a_list():
    table = make_table(["1", "2"])
    assert choose_classes(table, {"a": 1, "b": "2"}) == {"a": ["1"], "b": ["2"]}


@pytest.mark.parametrize("classes", ["all", None])
def test_all_makes_each_label_a_class_in_natural_order(classes):
    table = make_table(["10", "", "b", "9", "a", "10"])
    chosen = choose_classes(table, classes)
    assert list(chosen.items()) == [(x, [x]) for x in ("9", "10", "a", "b")]


def test_a_class_that_an_override_left_out_is_dropped():
    table = make_table(["ang", "sad", "neu"])
    classes = {**IEMOCAP, "happy": None}
    assert list(choose_classes(table, classes)) == ["angry", "sad", "neutral"]


def test_classes_that_were_asked_for_but_do_not_fit_are_an_error():
    table = make_table(["joy", "rage", "joy", ""])
    with pytest.raises(RecipeError) as error:
        choose_classes(table, IEMOCAP, explicit=True)
    for part in ("class angry", "(labels ang)", "joy, rage"):
        assert part in str(error.value)


def test_classes_of_another_corpus_give_way_to_the_tables_labels(caplog):
    table = make_table(["joy", "rage", "joy", ""])
    chosen = choose_classes(table, IEMOCAP, explicit=False)
    assert chosen == {"joy": ["joy"], "rage": ["rage"]}
    for part in ("angry, happy, sad, neutral", "joy, rage", "--classes"):
        assert part in caplog.text


def test_classes_that_fit_are_kept_though_nobody_asked_for_them(caplog):
    caplog.set_level(logging.WARNING)
    table = make_table(["neu", "ang", "hap", "sad", "joy"])
    assert choose_classes(table, IEMOCAP, explicit=False) == IEMOCAP
    assert caplog.text == ""


def test_a_label_in_two_classes_is_named_with_both():
    table = make_table(["ang", "exc", "sad"])
    classes = {"high": ["ang", "exc"], "low": ["sad", "exc"]}
    with pytest.raises(RecipeError, match="label exc .* high and low"):
        choose_classes(table, classes)


@pytest.mark.parametrize(
    "labels, classes",
    [
        (["joy", ""], "all"),
        (["", ""], "all"),
        (["joy", "rage"], {"joy": ["joy"]}),
        (["joy"], {"joy": ["joy"], "rage": None}),
        (["joy", "rage"], {}),
    ],
)
def test_fewer_than_two_classes_are_refused(labels, classes):
    with pytest.raises(RecipeError, match="at least two classes"):
        choose_classes(make_table(labels), classes)


@pytest.mark.parametrize("classes", ["ang", ["ang", "sad"], 4])
def test_what_is_no_mapping_is_refused_with_an_example(classes):
    with pytest.raises(RecipeError, match="must map each class"):
        choose_classes(make_table(["ang", "sad"]), classes)


def test_utterances_of_the_classes_get_the_classs_name():
    table = make_table(["ang", "fru", "exc", "", "hap", "neu", "sad"])
    labelled = label_utterances(table, IEMOCAP)
    assert labelled["label"].tolist() == [
        *["angry", "happy", "happy", "neutral", "sad"]
    ]
    assert labelled["emo"].tolist() == ["ang", "exc", "hap", "neu", "sad"]
    assert "label" not in table


def test_the_style_keeps_its_dialogues_only():
    classes = {"a": ["a"], "b": ["b"]}
    table = make_table("aabb", style=["improvised", "scripted"] * 2)
    kept = {
        style: label_utterances(table, classes, style)["id"].tolist()
        for style in ("all", "improvised", "scripted")
    }
    assert kept == {
        "all": ["u0", "u1", "u2", "u3"],
        "improvised": ["u0", "u2"],
        "scripted": ["u1", "u3"],
    }


def test_a_corpus_without_styles_takes_any_style_for_all():
    labelled = label_utterances(
        make_table("ab"), {"a": ["a"], "b": ["b"]}, "improvised"
    )
    assert len(labelled) == 2


def test_a_style_that_leaves_nothing_or_empties_a_class_is_refused():
    classes = {"a": ["a"], "b": ["b"]}
    table = make_table("aab", style=["improvised", "scripted", "scripted"])
    with pytest.raises(RecipeError, match="sung.*improvised, scripted"):
        label_utterances(table, classes, "sung")
    with pytest.raises(RecipeError, match="class b .*improvised"):
        label_utterances(table, classes, "improvised")


# Folds -----------------------------------------------------------------------


def test_sessions_are_ordered_as_people_count():
    table = make_table("abcdef")
    table["session"] = ["10", "9", "10", "1", "2", "9"]
    assert list_sessions(table) == ["1", "2", "9", "10"]
    table["session"] = ["Tag 10", "a", "Tag 9", "Tag 10", "B", "3"]
    assert list_sessions(table) == ["3", "B", "Tag 9", "Tag 10", "a"]


def test_the_order_of_sessions_is_not_left_to_chance():
    """A set's order differs from process to process."""
    for names in (["1", "01", "001"], ["a01b", "a1b"], ["٣", "3"]):
        orders = {
            tuple(sorted(order, key=corpus.natural_key))
            for order in (names, names[::-1])
        }
        assert len(orders) == 1, names


def test_a_session_may_be_called_anything():
    table = make_table("abc", session=["①", "²", "x"])
    assert sorted(list_sessions(table)) == sorted(["①", "²", "x"])


@pytest.mark.parametrize("protocol", ["paper", "held_out"])
@pytest.mark.parametrize("number", [3, 5])
def test_each_session_is_held_out_once_and_never_trained_on(protocol, number):
    sessions = [f"s{i}" for i in range(number)]
    held_out, validated = [], []
    for fold in range(1, number + 1):
        splits = split_sessions(sessions, fold, protocol)
        (test,), (valid,) = splits["test"], splits["valid"]
        assert test not in splits["train"]
        assert valid not in splits["train"]
        assert {*splits["train"], test, valid} == set(sessions)
        assert (valid == test) == (protocol == "paper")
        held_out.append(test)
        validated.append(valid)
    assert held_out == sessions
    assert sorted(validated) == sessions


@pytest.mark.parametrize("fold", [0, 6, -1, "1"])
def test_a_fold_that_does_not_exist_is_refused_with_those_that_do(fold):
    with pytest.raises(
        RecipeError, match=f"fold {fold} .*1 \\(a\\), 2 \\(b\\)"
    ):
        split_sessions(list("abcde"), fold)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(RecipeError, match="protocol=random.*paper or held_out"):
        split_sessions(["a", "b", "c"], 1, "random")


@pytest.mark.parametrize("protocol, least", [("paper", 2), ("held_out", 3)])
def test_too_few_sessions_are_refused(protocol, least):
    split_sessions(list("abc")[:least], 1, protocol)
    with pytest.raises(RecipeError, match=f"at least {least} sessions"):
        split_sessions(list("abc")[: least - 1], 1, protocol)


def test_a_table_is_split_without_losing_a_row():
    table = make_table("abcdefgh", session=list("11223344"))
    splits = split_table(table, 2, "held_out")
    rows = {name: split["id"].tolist() for name, split in splits.items()}
    assert rows == {
        "train": ["u0", "u1", "u6", "u7"],
        "valid": ["u4", "u5"],
        "test": ["u2", "u3"],
    }


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


@pytest.mark.parametrize(
    "one, other",
    [
        ("Mary Ann", "mary-ann"),
        ("AB", "a_b"),
        ("3", "03"),
        ("3", "3.0"),
        ("a_1", "A 01"),
    ],
)
def test_two_spellings_of_a_speaker_are_named_with_both_splits(one, other):
    splits = {"train": speak("b", one), "valid": {}, "test": speak(other)}
    with pytest.raises(RecipeError, match=f"{one} in the train .*{other} in"):
        check_speakers(splits)


@pytest.mark.parametrize(
    "one, other",
    [("1_11", "11_1"), ("3", "30"), ("anna", "anne"), ("+", "-"), ("", "0")],
)
def test_names_that_are_but_alike_are_two_people(one, other):
    assert fold_name(one) != fold_name(other)


@pytest.mark.parametrize("other", ["valid", "test"])
def test_the_training_set_is_never_validation_or_test_set(other):
    a, b = speak("a", "b"), speak("c")
    splits = {"train": a, "valid": b, "test": b, other: a}
    with pytest.raises(RecipeError, match=f"train and the {other}"):
        check_speakers(splits)
