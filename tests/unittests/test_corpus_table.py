"""Corpus tables: what is read, checked, measured and written."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from corpus_tables import HEADER

from speechbrain_wap.data import corpus_table
from speechbrain_wap.data.corpus_table import (
    read_corpus_table,
    read_own_corpus,
    record_skipped,
    write_corpus_table,
)
from speechbrain_wap.errors import RecipeError

# Own tables ------------------------------------------------------------------


def test_a_byte_order_mark_and_blanks_do_not_matter(write_csv, tmp_path):
    text = 'id , wav,speaker,session,emo,text\n a ,a.wav," Ä, 山 ",1, joy ,hm\n'
    row = read_own_corpus(write_csv(text, encoding="utf-8-sig")).iloc[0]
    wav = str(tmp_path / "a.wav")
    assert row.tolist() == ["a", wav, "Ä, 山", "1", "joy", "hm"]
    absolute = write_csv(f"{HEADER}b,{tmp_path}/x/b.wav,x,1,joy\n")
    assert read_own_corpus(absolute)["wav"][0] == f"{tmp_path}/x/b.wav"


def test_cells_and_the_table_itself_may_begin_at_home(
    write_csv, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    cells = ["~/a.wav", "$HOME/a.wav", "${HOME}/a.wav", "a.wav", "$5.wav"]
    lines = [f"{n},{cell},x,1,joy\n" for n, cell in enumerate(cells)]
    write_csv(HEADER + "".join(lines))
    table = read_own_corpus("~/own.csv")
    names = [str(tmp_path / name) for name in 4 * ["a.wav"] + ["$5.wav"]]
    assert table["wav"].tolist() == names
    csv = write_csv(f"{HEADER}a,a.wav,x,1,\nb,$NOWHERE.wav,x,1,\n")
    with pytest.raises(RecipeError, match="line 3: .NOWHERE.wav: .*not set"):
        read_own_corpus(csv)
    (tmp_path / "$NOWHERE.wav").touch()  # it is just called so
    wavs = read_own_corpus(csv)["wav"]
    assert wavs[1] == str(tmp_path / "$NOWHERE.wav")


@pytest.mark.parametrize("end", [",", "", ",joy,more"])
def test_a_line_of_another_length_does_not_shift_the_columns(write_csv, end):
    """Spreadsheets like to end every line with a comma."""
    csv = write_csv(f"{HEADER}a,a.wav,x,1{end}\nb,b.wav,y,2,rage\n")
    try:
        table = read_own_corpus(csv)
    except RecipeError:
        return  # refused is as good
    assert table["id"].tolist() == ["a", "b"]
    assert table["emo"].tolist() == ["", "rage"]


def test_cells_are_text_and_na_is_a_label_like_any_other(write_csv):
    rows = [["007", "1", "NA"], ["1e3", "NA", "N/A"], ["null", "None", ""]]
    lines = [f"{key},a.wav,{speaker},01,{emo}\n" for key, speaker, emo in rows]
    table = read_own_corpus(write_csv(HEADER + "".join(lines)))
    assert table[["id", "speaker", "emo"]].to_numpy().tolist() == rows


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            f"{HEADER}a,a.wav,x,1,joy\nb,b.wav,  ,1,joy\n",
            "line 3: the column speaker is",
        ),
        (
            f"{HEADER}a,a.wav,x,1,joy\nb,b.wav,x\n",
            "line 3: the column session is",
        ),
        ("id,path,speaker,session\na,b,c,d\n", "lacks the columns wav, emo:"),
        (f"{HEADER}ü,a.wav,x,1,joy\n".encode("latin-1"), "cannot"),
        ("", "cannot be read"),
        (None, "does not exist"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_the_place(
    tmp_path, text, reason
):
    csv = tmp_path / "own.csv"
    if text is not None:
        csv.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=f"own.csv.*{reason}"):
        read_own_corpus(csv)


# Writing the corpus table ----------------------------------------------------


@pytest.fixture
def table(make_corpus, tmp_path):
    """An own corpus of 8 utterances."""
    csv = make_corpus(tmp_path / "corpus", num_sessions=2, labels=("a", ""))
    return read_own_corpus(csv)


def test_the_written_table_holds_all_and_reads_as_it_was(table, tmp_path):
    csv = tmp_path / "new folder" / "corpus.csv"
    claimed = {"duration": "9", "digest": "x", "sound": "y"}  # measured anew
    written = write_corpus_table(table.assign(text="Ä, b", **claimed), csv)
    assert list(written.columns) == [
        *["id", "wav", "duration", "speaker", "session", "emo"],
        *["text", "digest", "sound"],
    ]
    assert written["id"].tolist() == table["id"].tolist()
    assert (written["duration"] == 0.1).all()
    assert written["digest"].nunique() == written["sound"].nunique() == 8
    pd.testing.assert_frame_equal(
        read_corpus_table(csv), written, check_dtype=False
    )
    assert not csv.with_name("skipped.csv").exists()
    times = written.assign(start=["0.1", *[""] * 7], end=["0.2", *[""] * 7])
    times.to_csv(csv, index=False)
    read = read_corpus_table(csv)[["start", "end"]]
    assert read.loc[0].tolist() == [0.1, 0.2]
    assert read.loc[1:].isna().all(axis=None)


def test_an_id_that_repeats_is_named(table, tmp_path):
    table.loc[5, "id"] = table.loc[1, "id"]
    with pytest.raises(RecipeError, match=f"the id {table.loc[1, 'id']} ") as e:
        write_corpus_table(table, tmp_path / "corpus.csv")
    assert f"({table.loc[1, 'wav']} and {table.loc[5, 'wav']})" in str(e.value)


def test_unreadable_audio_is_left_out_and_listed(table, tmp_path, caplog):
    Path(table.loc[2, "wav"]).write_text("no audio")
    os.remove(table.loc[5, "wav"])
    csv = tmp_path / "corpus.csv"
    with pytest.raises(RecipeError) as error:
        write_corpus_table(table, csv, max_skipped=0.24)
    for part in ("2 of 8", table.loc[2, "wav"], "skipped.csv", "max_skipped"):
        assert part in str(error.value)
    assert csv.with_name("skipped.csv").exists() and not csv.exists()
    written = write_corpus_table(table, csv, max_skipped=0.25)
    bad = table["id"][[2, 5]].tolist()
    assert written["id"].tolist() == table["id"].drop([2, 5]).tolist()
    assert read_corpus_table(csv)["id"].tolist() == written["id"].tolist()
    skipped = pd.read_csv(tmp_path / "skipped.csv")
    assert skipped["id"].tolist() == bad
    assert table.loc[2, "wav"] in skipped["reason"][0]
    assert "2 of 8" in caplog.text


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
    assert len(write_corpus_table(table, csv, 0.5, audio_index=index)) == 7
    make_wav(first["wav"][3])
    assert len(write_corpus_table(table, csv, 0.0, audio_index=index)) == 8
    assert not csv.with_name("skipped.csv").exists()


@pytest.mark.parametrize("content", ["{half", "[]"])
def test_a_damaged_index_costs_time_only(table, tmp_path, decoded, content):
    index = tmp_path / "index.json"
    index.write_text(content)
    written = write_corpus_table(table, tmp_path / "c.csv", audio_index=index)
    assert len(written) == len(decoded) == 8
    assert len(set(table["wav"]) & json.loads(index.read_text()).keys()) == 8


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


def test_only_names_of_files_may_hold_bytes_that_are_no_text(
    make_wav, tmp_path
):
    wav = make_wav(tmp_path / "a.wav")
    wav.rename(tmp_path / os.fsdecode(b"\xfc.wav"))
    csv = tmp_path / "own.csv"
    csv.write_bytes(HEADER.encode() + b"\xfc,\xfc.wav,x,1,joy\n")
    table = read_own_corpus(csv)
    assert os.fsencode(table["id"][0]) == b"\xfc"
    # as it is written by a run, and given to another one
    write_corpus_table(table, tmp_path / "corpus.csv")
    again = read_own_corpus(tmp_path / "corpus.csv")
    assert again["wav"][0] == table["wav"][0]
    for row in (b"\xfc,\xe9.wav,x,1,joy", b"\xfc,\xfc.wav,x,1,\xe9"):
        csv.write_bytes(HEADER.encode() + row + b"\n")
        with pytest.raises(RecipeError, match="no text in UTF-8"):
            read_own_corpus(csv)
