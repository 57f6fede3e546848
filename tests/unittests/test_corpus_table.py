"""Corpus tables: what is read, checked, measured and written."""

import json
import os

import pandas as pd
import pytest

from speechbrain_wap.data import corpus_table
from speechbrain_wap.data.corpus_table import (
    read_corpus_table,
    read_own_corpus,
    record_skipped,
    write_corpus_table,
)
from speechbrain_wap.errors import RecipeError

HEADER = "id,wav,speaker,session,emo\n"


@pytest.fixture
def write_csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "own.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


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
    inspect_audio = corpus_table.inspect_audio

    def inspect(path):
        files.append(os.path.basename(path))
        return inspect_audio(path)

    monkeypatch.setattr(corpus_table, "inspect_audio", inspect)
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


def test_all_ranks_join_in_the_decision_and_one_writes(tmp_path, monkeypatch):
    csv, reasons, ids = tmp_path / "skipped.csv", {"a": "silent"}, list("abc")

    def be_main_process(is_main):
        monkeypatch.setattr(corpus_table, "if_main_process", lambda: is_main)

    be_main_process(False)
    with pytest.raises(RecipeError, match="1 of 3 .* a: silent"):
        record_skipped(csv, reasons, ids, 0.1)
    record_skipped(csv, reasons, ids, 0.5)
    assert not csv.exists()
    be_main_process(True)
    record_skipped(csv, reasons, ids, 0.5)
    be_main_process(False)
    record_skipped(csv, {}, ids, 0.5)
    assert csv.exists()
