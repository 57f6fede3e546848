"""Corpus tables: what is read, checked, measured and written."""

import json
import os
from pathlib import Path

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


# Parts of files --------------------------------------------------------------


PARTS = HEADER.strip() + ",{}\na,all.wav,x,1,joy,{}\nb,all.wav,y,2,rage,{}\n"


@pytest.mark.parametrize(
    "columns, first, second, times",
    [
        ("start,end", "0,1.5", "1.5,2", [[0, 1.5], [1.5, 2]]),
        ("stop,start", "1.5, 0", "2,1.5", [[0, 1.5], [1.5, 2]]),
        ("start,duration", "0,1.5", "1.5,.5", [[0, 1.5], [1.5, 2]]),
        ("start,end,duration", "0,1,9", "1,2,9", [[0, 1], [1, 2]]),
        ("start,end", ",", "1.5,", [[None, None], [1.5, None]]),
        ("end", "1", "2e0", [[None, 1], [None, 2]]),
        # the same in milliseconds beside it
        ("start,end,start_ms", "0,1,0", "1,2,1000", [[0, 1], [1, 2]]),
        ("duration,text", "3,start", "4,end", None),
        ("onset,channel", ",", "unknown,", None),
        ("from,max", "studio1,3", "phone2,4", None),
        # a date, and lengths where nothing is cut
        ("time,num_frames", "2020-01-02,99", "12:30,99", None),
        ("start,duration,length", "0,1,8", "1,1,8", [[0, 1], [1, 2]]),
    ],
)
def test_start_and_end_are_read_and_duration_alone_means_nothing(
    write_csv, columns, first, second, times
):
    table = read_own_corpus(write_csv(PARTS.format(columns, first, second)))
    if times is None:
        assert not {"start", "end"} & {*table.columns}
        return
    found = table[["start", "end"]]
    expected = pd.DataFrame(times, columns=["start", "end"], dtype=float)
    pd.testing.assert_frame_equal(found, expected)
    assert "stop" not in table


@pytest.mark.parametrize(
    "columns, first, second, says",
    [
        (
            "start,end",
            "0,1",
            "1,x",
            "line 3: utterance b has end=x, which is no",
        ),
        ("start,stop", "0,1", "-1,2", "line 3: utterance b has start=-1"),
        ("start,end", "0,0:01", "0,1", "line 2: utterance a has end=0:01"),
        ("start,end", "0,nan", "0,inf", "line 2: .* end=nan"),
        ("start,end", "0,1", "2,1.5", "line 3: .* b ends at 1.5 s, but starts"),
        ("start,end", "0,1", "1,1", "line 3: utterance b ends at 1 s"),
        ("start,duration", "0,1", "1,0", "line 3: utterance b ends at 1 s"),
        ("end,start,stop", "1,0,1", "1,0,1", "columns end and stop: remove"),
        ("start,end,start", "1,2,1", "1,2,1", "has the column start twice"),
        ("onset,onset ", "1,2", "1,2", "has the column onset: if it says"),
        (
            "stop,duration",
            "1,1",
            "2,1",
            "has .* end and duration, but no start",
        ),
    ],
)
def test_times_that_cannot_be_are_named_with_utterance_and_line(
    write_csv, columns, first, second, says
):
    csv = write_csv(PARTS.format(columns, first, second))
    with pytest.raises(RecipeError, match=f"own.csv.*{says}"):
        read_own_corpus(csv)


OTHER_WORDS = """begin,end onset,offset offset,duration start_time,end_time
xmin,xmax Start,End start_ms,end_ms start_sample,end_sample StartTime,EndTime
Begin_Time,End_Time tmin,tmax start_s,end_s segment_start,segment_end
start(sec),end(sec) frame_offset,num_frames start_idx,end_idx t_start,t_end
beg,end sample_start,sample_end start-seconds,end-seconds start,end_time
time_start,time_stop utt_begin,utt_end from,to t0,t1 start,dur start,length
start,num_frames end,n_samples trim_start,trim_end start_pos,end_pos wav_start,x
first_sample,last_sample start,duration_s""".split()


@pytest.mark.parametrize("columns", OTHER_WORDS)
def test_other_words_for_start_and_end_are_refused_by_name(write_csv, columns):
    csv = write_csv(PARTS.format(columns, "0,1", "1,2"))
    names = [c for c in columns.split(",") if c not in ("start", "end")]
    with pytest.raises(RecipeError, match="give start and end") as error:
        read_own_corpus(csv)
    assert f"has the column {names[0]}:" in str(error.value)


@pytest.mark.parametrize("cell", ["0-1.5", "[0.0; 1.5]", "00:01 to 00:02.5"])
@pytest.mark.parametrize("name", ["segment", "Interval", "timestamps"])
def test_both_times_in_one_cell_are_refused_by_name(write_csv, name, cell):
    csv = write_csv(PARTS.format(name, cell, "1-2"))
    with pytest.raises(RecipeError, match=f"column {name}: .* start and end"):
        read_own_corpus(csv)


@pytest.mark.parametrize("name", ["channel", "Channel", "channel_idx"])
def test_a_channel_is_refused_by_name(write_csv, name):
    csv = write_csv(PARTS.format(f"{name},x", "0,1", "1,2"))
    with pytest.raises(RecipeError, match=f"column {name}, but all channels"):
        read_own_corpus(csv)


@pytest.fixture
def parts(tmp_path, make_wav):
    """A table of four parts of two files, of a second each."""
    wavs = [make_wav(tmp_path / f"{k}.wav", 1.0, seed=k) for k in range(2)]
    return pd.DataFrame(
        {
            "id": [*"abcd"],
            "wav": [str(wavs[0]), str(wavs[1])] * 2,
            "speaker": "x",
            "session": "1",
            "emo": ["joy", "joy", "rage", "rage"],
            "start": [0.0, 0.0, 0.5, None],
            "end": [0.5, 0.25, None, None],
        }
    )


def test_parts_are_measured_and_written_and_each_file_is_decoded_once(
    parts, tmp_path, decoded, caplog
):
    csv, index = tmp_path / "corpus.csv", tmp_path / "index.json"
    written = write_corpus_table(parts, csv, audio_index=index)
    assert sorted(decoded) == ["0.wav", "1.wav"]
    assert written["duration"].tolist() == [0.5, 0.25, 0.5, 1.0]
    assert written["digest"].nunique() == written["sound"].nunique() == 4
    assert written["file_sound"][0] == written["file_sound"][2]
    assert written["file_sound"][1] == written["sound"][3]
    assert pd.isna(written["file_sound"][3])
    # and again, from the index or from the table that was written
    again = write_corpus_table(parts, csv, audio_index=index)
    pd.testing.assert_frame_equal(again, written)
    assert len(decoded) == 2
    own = write_corpus_table(
        read_own_corpus(csv), tmp_path / "2.csv", audio_index=index
    )
    pd.testing.assert_frame_equal(own, written, check_dtype=False)
    assert len(decoded) == 2 and "under another label" not in caplog.text


def test_a_whole_files_entry_is_what_it_was_without_parts(parts, tmp_path):
    plain = parts[["id", "wav", "speaker", "session", "emo"]].iloc[:2]
    plain = write_corpus_table(plain, tmp_path / "plain.csv")
    assert "file_sound" not in plain and "start" not in plain
    written = write_corpus_table(parts, tmp_path / "corpus.csv")
    assert plain["digest"][1] == written["digest"][3]


def test_a_part_beyond_its_file_is_left_out_and_listed(parts, tmp_path):
    parts.loc[1, "end"] = 1.2
    parts.loc[2, "start"] = 1.0
    csv = tmp_path / "corpus.csv"
    with pytest.raises(RecipeError, match="2 of 4 .* first b: .*lasts 1.000 s"):
        write_corpus_table(parts, csv)
    assert write_corpus_table(parts, csv, 0.5)["id"].tolist() == ["a", "d"]
    listing = pd.read_csv(tmp_path / "skipped.csv")
    assert listing["id"].tolist() == ["b", "c"]
    assert "from 0 s to 1.2 s" in listing["reason"][0]


def test_times_of_a_prepare_function_are_checked_too(parts, tmp_path):
    csv = tmp_path / "corpus.csv"
    wrong = parts.set_index(pd.Index([3, 3, 4, 5])).assign(end=[0.5, 0, 1, 1])
    with pytest.raises(RecipeError, match="^utterance b ends at 0 s, but"):
        write_corpus_table(wrong, csv)
    words = parts.rename(columns={"start": "onset", "end": "offset"})
    with pytest.raises(
        RecipeError, match="^the corpus table has the column on"
    ):
        write_corpus_table(words, csv)
    # columns that another corpus left there
    whole = parts.drop(columns=["start", "end"]).assign(file_sound="ab")
    assert "file_sound" not in write_corpus_table(whole, csv)


def test_one_audio_under_several_labels_is_named(parts, tmp_path, caplog):
    csv = tmp_path / "corpus.csv"
    write_corpus_table(parts.drop(columns=["start", "end"]), csv)
    says = "4 utterances have the same audio as another one under another label"
    assert f"{says}, first a (joy) and c (rage)" in caplog.text
    caplog.clear()
    # the same part, or the same label, or none
    parts.loc[2, ["start", "end"]] = 0.0, 0.5
    write_corpus_table(parts, csv)
    assert "2 utterances have the same audio" in caplog.text
    caplog.clear()
    for label in ("joy", ""):
        write_corpus_table(parts.assign(emo=["joy", "x", label, "y"]), csv)
    assert "under another label" not in caplog.text


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
    inspect_segments = corpus_table.inspect_segments

    def inspect(path, segments):
        files.append(os.path.basename(path))
        return inspect_segments(path, segments)

    monkeypatch.setattr(corpus_table, "inspect_segments", inspect)
    return files


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
