"""Parts of audio files: their times, in whatever words, and their audio."""

import pandas as pd
import pytest
from corpus_tables import HEADER

from speechbrain_wap.data.corpus_table import (
    read_own_corpus,
    write_corpus_table,
)
from speechbrain_wap.errors import RecipeError

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
