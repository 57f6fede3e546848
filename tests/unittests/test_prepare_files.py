"""The corpora's own layouts: every turn once, with the right speaker."""

import os
import shutil

import pandas as pd
import pytest
import soundfile

from speechbrain_wap.data.corpus_table import read_corpus_table
from speechbrain_wap.data.folds import list_sessions
from speechbrain_wap.errors import RecipeError

CORPORA = ["IEMOCAP", "EmoDB", "RAVDESS", "nEMO"]

# IEMOCAP ---------------------------------------------------------------------

# Turns of each dialog; the label is the corpus's own.
DIALOGS = {
    "Ses{:02d}F_impro01": [("F000", "neu"), ("M000", "ang"), ("M001", "xxx")],
    "Ses{:02d}M_impro05a": [("M027", "exc"), ("F003", "sad")],
    "Ses{:02d}F_script01_1": [("F000", "hap"), ("M000", "fru")],
    "Ses{:02d}M_script01_1b": [("F012", "oth"), ("M030", "neu")],
}
LITTER = b"\x00\x05\x16\x07"  # as in the files that a Mac leaves


@pytest.fixture
def prepare(import_script, tmp_path):
    def run(corpus, root, **options):
        name = corpus.lower()
        script = import_script(f"recipes/{corpus}/{name}_prepare.py")
        prepare_corpus = getattr(script, f"prepare_{name}")
        csv = tmp_path / "out" / "corpus.csv"
        return prepare_corpus(root, csv, **options)

    return run


@pytest.fixture
def make_iemocap(tmp_path, make_wav):
    """Writes a tiny release, with all that lies about in the real one."""

    def make(*sessions):
        root = tmp_path / "IEMOCAP full release"
        for session in sessions:
            folder = root / f"Session{session}"
            evaluation = folder / "dialog" / "EmoEvaluation"
            wavs = folder / "sentences" / "wav"
            (evaluation / "Categorical").mkdir(parents=True)
            litter = evaluation / "Categorical" / "Ses01F_impro01_e2_cat.txt"
            litter.write_text("Ses01F_impro01_F000 :Neutral; ()\n")
            for name, turns in DIALOGS.items():
                dialog = name.format(session)
                lines = [
                    "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"
                ]
                for turn, emo in turns:
                    lines += [
                        f"[6.2901 - 7.7901]\t{dialog}_{turn}\t{emo}\t[2.5]",
                        "C-F1:\tNeutral; Anger;\t(but [mildly] so)",
                        "A-E3:\tval 3; act 2; dom  2;\t()\n",
                    ]
                    wav = make_wav(wavs / dialog / f"{dialog}_{turn}.wav")
                    wav.with_name(f"._{wav.name}").write_bytes(LITTER)
                (evaluation / f"{dialog}.txt").write_text("\n".join(lines))
                (evaluation / f"._{dialog}.txt").write_bytes(LITTER)
                (evaluation / f"{dialog}.pk").write_bytes(LITTER)
                make_wav(folder / "dialog" / "wav" / f"{dialog}.wav")
        (root / "._Session1").write_bytes(LITTER)
        return root

    return make


def test_every_turn_of_iemocap_is_one_row_labelled_or_not(
    make_iemocap, prepare, tmp_path
):
    table = prepare("IEMOCAP", make_iemocap(1, 2, 3, 4, 5))
    assert table["id"].is_unique
    assert set(table["emo"]) == {"", *"neu ang exc sad hap fru".split()}
    assert list_sessions(table) == ["1", "2", "3", "4", "5"]
    assert (table.groupby("session").size() == 9).all()
    written = read_corpus_table(tmp_path / "out" / "corpus.csv")
    assert written["style"].tolist() == table["style"].tolist()


def test_utterances_of_iemocap_that_lack_are_counted_as_such(
    make_iemocap, prepare, import_script, monkeypatch, caplog
):
    script = import_script("recipes/IEMOCAP/iemocap_prepare.py")
    root = make_iemocap(1, 2, 3, 4, 5)
    table = prepare("IEMOCAP", root)
    counts = pd.crosstab(table["session"], table["emo"])
    known = counts.drop(columns="").to_dict("list")
    monkeypatch.setattr(script, "KNOWN_COUNTS", known)
    caplog.set_level("INFO")
    prepare("IEMOCAP", root)
    assert "agree with the full release" in caplog.text
    caplog.clear()
    wav = table["wav"][table["emo"] == "neu"].iloc[0]
    os.remove(wav)
    assert len(prepare("IEMOCAP", root, max_skipped=0.1)) == len(table) - 1
    assert "differ from the full release" in caplog.text


def test_the_speaker_is_who_speaks_the_turn_and_not_who_wears_the_markers(
    make_iemocap, prepare
):
    root = make_iemocap(1, 2)
    table = prepare("IEMOCAP", root).set_index("id")
    columns = ["speaker", "session", "style", "emo"]
    for turn, expected in {
        "Ses01F_impro01_F000": ["Ses01F", "1", "improvised", "neu"],
        "Ses01F_impro01_M001": ["Ses01M", "1", "improvised", ""],
        "Ses02M_impro05a_F003": ["Ses02F", "2", "improvised", "sad"],
        "Ses02F_script01_1_M000": ["Ses02M", "2", "scripted", "fru"],
        "Ses01M_script01_1b_F012": ["Ses01F", "1", "scripted", ""],
    }.items():
        row = table.loc[turn]
        assert row[columns].tolist() == expected
        wavs = root.resolve() / f"Session{expected[1]}" / "sentences" / "wav"
        assert row["wav"] == str(wavs / turn.rpartition("_")[0] / f"{turn}.wav")


def test_known_counts_of_iemocap_are_those_of_the_literature(import_script):
    script = import_script("recipes/IEMOCAP/iemocap_prepare.py")
    known = pd.DataFrame(script.KNOWN_COUNTS)
    assert known.sum(axis=1).tolist() == [1085, 1023, 1151, 1031, 1241]
    assert known["hap"].sum() + known["exc"].sum() == 1636
    assert known[["ang", "sad", "neu"]].sum().tolist() == [1103, 1084, 1708]


def test_a_session_without_evaluation_is_left_out(make_iemocap, prepare):
    root = make_iemocap(1, 2)
    evaluation = root / "Session2" / "dialog" / "EmoEvaluation"
    for path in evaluation.glob("Ses*.txt"):
        path.unlink()
    assert set(prepare("IEMOCAP", root)["session"]) == {"1"}
    shutil.rmtree(root / "Session1" / "dialog")
    with pytest.raises(RecipeError, match="no evaluation files"):
        prepare("IEMOCAP", root)


@pytest.mark.parametrize(
    "content",
    [
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n",
        "[6.2 - 8.2]\tSes01F_other01_F000\tneu\t[2.5, 2.5, 2.5]\n",
        "[6.2 - 8.2]\tSes01F_impro01_F000\tneu\n[9.1 - ",
    ],
)
def test_an_empty_or_malformed_evaluation_file_is_named(
    make_iemocap, prepare, content
):
    root = make_iemocap(1)
    folder = root / "Session1" / "dialog" / "EmoEvaluation"
    path = folder / "Ses01F_script01_1.txt"
    path.write_text(content)
    with pytest.raises(RecipeError, match=str(path)):
        prepare("IEMOCAP", root)


# EmoDB -----------------------------------------------------------------------

SPEAKERS = ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"]
WOMEN = {"08", "09", "13", "14", "16"}
LETTERS = dict(
    zip(
        "WLEAFTN",
        "anger boredom disgust fear happiness sadness neutral".split(),
    )
)


@pytest.fixture
def make_emodb(tmp_path, make_wav):
    """Writes a tiny EmoDB: each speaker, each emotion."""

    def make(inside="wav"):
        root = tmp_path / "EmoDB"
        for speaker in SPEAKERS:
            for letter in LETTERS:
                name = f"{speaker}a01{letter}a.wav"
                make_wav(root / inside / name, sample_rate=22050)
        (root / inside / "._03a01Fa.wav").write_bytes(LITTER)
        (root / inside / "readme.wav.txt").write_text("no speech")
        make_wav(root / inside / "silence.wav")
        return root

    return make


@pytest.mark.parametrize("inside", ["wav", "."])
def test_emodb_names_are_read_in_wav_or_flat(make_emodb, prepare, inside):
    root = make_emodb(inside)
    (root / "wav").mkdir(exist_ok=True)  # as a release's, or empty
    table = prepare("EmoDB", root)
    assert len(table) == 70
    row = table.set_index("id").loc["13a01Ta"]
    assert (row["speaker"], row["emo"]) == ("13", "sadness")
    assert row["wav"] == str((root / inside / "13a01Ta.wav").resolve())
    assert {k[5]: emo for k, emo in zip(table["id"], table["emo"])} == LETTERS
    # each fold holds out one man and one woman
    pairs = table.groupby("session")["speaker"].unique()
    assert len(pairs) == 5
    assert all(len(set(p) & WOMEN) == len(set(p) - WOMEN) == 1 for p in pairs)
    assert sorted(speaker for pair in pairs for speaker in pair) == SPEAKERS


def test_the_real_emodb_has_535_utterances_and_the_known_counts(
    shared, prepare, caplog
):
    caplog.set_level("INFO")
    table = prepare("EmoDB", shared("corpora", "EmoDB"))
    assert "In all 535 of 535, complete" in caplog.text
    assert table["digest"].is_unique
    assert sorted(set(table["speaker"])) == SPEAKERS


# RAVDESS ---------------------------------------------------------------------

RAVDESS_EMOTIONS = (
    "neutral calm happy sad angry fearful disgust surprised".split()
)


@pytest.fixture
def make_ravdess(tmp_path, make_wav):
    """Writes the last repetition of some actors, with what lies about."""

    def make(*actors, inside=".", suffix=".wav", sample_rate=16000):
        root = tmp_path / "RAVDESS"
        for actor in actors:
            folder = root / inside / f"Actor_{actor:02d}"
            for emotion in range(1, 9):
                for intensity in (1, 2)[: 1 + (emotion > 1)]:
                    name = f"03-01-{emotion:02d}-{intensity:02d}-02-02"
                    path = folder / f"{name}-{actor:02d}{suffix}"
                    make_wav(path, sample_rate=sample_rate, seed=actor)
            make_wav(folder / f"03-02-06-02-02-02-{actor:02d}.wav")
            make_wav(folder / f"02-01-06-02-02-02-{actor:02d}.wav")
            (folder / f"01-01-06-02-02-02-{actor:02d}.mp4").write_text("film")
            mac = f"._03-01-06-02-02-02-{actor:02d}.wav"
            (folder / mac).write_bytes(LITTER)
        return root

    return make


@pytest.mark.parametrize(
    "inside, suffix, sample_rate",
    [
        (".", ".wav", 48000),
        ("Audio_Speech_Actors_01-24", ".wav", 48000),
        (".", ".flac", 16000),
    ],
)
def test_the_speech_of_ravdess_is_read_whatever_the_copy(
    make_ravdess, prepare, inside, suffix, sample_rate
):
    root = make_ravdess(1, 2, inside=inside, suffix=suffix)
    table = prepare("RAVDESS", root)
    assert len(table) == 2 * 15
    assert (table["duration"] == 0.1).all()
    row = table.set_index("id").loc["03-01-05-02-02-02-01"]
    place = root / inside / "Actor_01" / f"03-01-05-02-02-02-01{suffix}"
    assert row["wav"] == str(place.resolve())
    assert row["emo"] == "angry"
    columns = ["speaker", "session", "gender", "intensity", "statement"]
    expected = ["Actor_01", "01_02", "male", "strong", "dogs"]
    assert row[columns].tolist() == expected
    found = {row["id"][6:8]: row["emo"] for _, row in table.iterrows()}
    assert [found[f"0{code}"] for code in range(1, 9)] == RAVDESS_EMOTIONS
    # a fold is a pair of actors
    table = prepare("RAVDESS", make_ravdess(9, 10, 11))
    assert list_sessions(table) == ["01_02", "09_10", "11_12"]


def test_actors_of_ravdess_may_lie_in_both_places(make_ravdess, prepare):
    """As in copies that hold the release's folder beside its content."""
    inside = "Audio_Speech_Actors_01-24"
    make_ravdess(11, 12)
    # what is in both is taken once, also from a copy in another format
    make_ravdess(12, inside=inside, suffix=".flac")
    table = prepare("RAVDESS", make_ravdess(13, inside=inside))
    assert sorted(set(table["speaker"])) == ["Actor_11", "Actor_12", "Actor_13"]
    assert len(table) == 45


def test_the_real_ravdess_has_the_known_counts(shared, prepare, caplog):
    caplog.set_level("INFO")
    table = prepare("RAVDESS", shared("corpora", "RAVDESS"))
    assert len(table) == 840 and len(list_sessions(table)) == 7
    said = "In all 840 of 1440, of 14 of 24 actors, each with all utterances"
    assert said in caplog.text
    assert table["digest"].is_unique
    columns = ["gender", "intensity", "statement", "repetition"]
    assert (table[columns].nunique() == 2).all()


# nEMO ------------------------------------------------------------------------

NEMO_EMOTIONS = "anger fear happiness neutral sadness surprised".split()


@pytest.fixture
def make_nemo(tmp_path, make_wav):
    """Writes a tiny nEMO: two speakers, each emotion, blanks before names."""

    def make(speakers=("WR0", "EB0"), more=()):
        root = tmp_path / "nEMO"
        header = "file_id emotion raw_text normalized_text speaker_id gender"
        lines = ["\t".join([*header.split(), "age"])]
        for speaker in speakers:
            for emotion in NEMO_EMOTIONS:
                name = f"{speaker}_{emotion}_7.wav"
                make_wav(root / "samples" / name, sample_rate=24000)
                cells = [name, emotion, '"Zażółć, rzekł.', "zażółć"]
                cells += [f"        {speaker}", "male", "23"]
                lines.append("\t".join(cells))
        (root / "samples" / "._WR0_anger_7.wav").write_bytes(LITTER)
        text = "\n".join([*lines, *more]) + "\n"
        (root / "data.tsv").write_text(text, "utf-8")
        return root

    return make


def test_nemo_is_read_off_its_list_a_fold_for_each_speaker(make_nemo, prepare):
    root = make_nemo()
    table = prepare("nEMO", root)
    assert len(table) == 12
    row = table.set_index("id").loc["EB0_sadness_7"]
    columns = ["speaker", "session", "emo", "gender", "text"]
    assert row[columns].tolist() == ["EB0", "EB0", "sadness", "male", "7"]
    place = root / "samples" / "EB0_sadness_7.wav"
    assert row["wav"] == str(place.resolve())
    assert list_sessions(table) == ["EB0", "WR0"]


@pytest.mark.parametrize(
    "name, emotion, speaker",
    [
        ("WR0_joy_7.wav", "joy", "WR0"),
        ("WR0_anger_7.wav", "fear", "WR0"),
        ("WR0_anger_7.wav", "anger", "EB0"),
        ("WR0_anger_7.wav", "anger", " "),
        ("WR0_anger_.wav", "anger", "WR0"),
    ],
)
def test_a_line_that_is_none_of_nemo_is_named(
    make_nemo, prepare, name, emotion, speaker
):
    line = f"{name}\t{emotion}\ta\ta\t{speaker}\tmale\t1"
    root = make_nemo(more=[line])
    with pytest.raises(RecipeError, match=r"data.tsv, line 14: .*no file of"):
        prepare("nEMO", root)


def test_what_the_list_and_the_folder_of_nemo_lack_is_said(
    make_nemo, prepare, caplog, tmp_path, make_wav
):
    root = make_nemo()
    make_wav(root / "samples" / "XY0_anger_1.wav")
    prepare("nEMO", root)
    assert "1 files of" in caplog.text and "XY0_anger_1.wav" in caplog.text
    (root / "samples" / "WR0_fear_7.wav").unlink()
    with pytest.raises(RecipeError, match="1 of 12 .*WR0_fear_7"):
        prepare("nEMO", root)
    (root / "data.tsv").write_text("file_id\temotion\n")
    with pytest.raises(RecipeError, match="lacks the columns speaker_id"):
        prepare("nEMO", root)


# Formats ---------------------------------------------------------------------


def convert(root, name, suffix):
    """Gives audio files that match a pattern another suffix."""
    for path in root.rglob(name):
        if path.name[0] == ".":
            continue
        samples, rate = soundfile.read(path)
        path.unlink()
        kind = suffix.lower()[1:].replace("aif", "aiff")
        soundfile.write(path.with_suffix(suffix), samples, rate, format=kind)


@pytest.fixture
def make_any(make_iemocap, make_emodb, make_ravdess, make_nemo):
    makers = {
        "nEMO": make_nemo,
        "IEMOCAP": lambda: make_iemocap(1),
        "EmoDB": make_emodb,
        "RAVDESS": lambda: make_ravdess(1, 2),
    }
    return lambda corpus: makers[corpus]()


@pytest.mark.parametrize("suffix", [".WAV", ".flac", ".FLAC", ".ogg", ".aif"])
@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus_may_come_in_any_format(make_any, prepare, corpus, suffix):
    root = make_any(corpus)
    usual = prepare(corpus, root)
    convert(root, "*[0-9a-z].wav", suffix)
    table = prepare(corpus, root)
    assert table["id"].tolist() == usual["id"].tolist()
    assert table["wav"].str.endswith(suffix).all()
    assert (table["emo"] == usual["emo"]).all()


@pytest.mark.parametrize("corpus", CORPORA)
def test_an_utterance_in_two_formats_is_named(make_any, prepare, corpus):
    root = make_any(corpus)
    path = prepare(corpus, root)["wav"][3]
    shutil.copy(path, path[:-4] + ".WAV")
    with pytest.raises(RecipeError, match="wav is the same utterance as .*WAV"):
        prepare(corpus, root)


# What is no such corpus ------------------------------------------------------


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_folder_without_the_corpus_is_refused(
    prepare, corpus, tmp_path, make_wav
):
    # songs of RAVDESS, its speech out of place, and no folder
    make_wav(tmp_path / "other" / "Actor_11" / "03-02-01-01-01-01-11.wav")
    make_wav(tmp_path / "other" / "03-01-01-01-01-01-11.wav")
    (tmp_path / "other" / "Session1").write_text("no folder")
    for folder in ("other", "missing"):
        with pytest.raises(RecipeError, match=f"data_folder=.*{folder}"):
            prepare(corpus, tmp_path / folder)


@pytest.mark.parametrize(
    "corpus, name",
    [
        ("EmoDB", "17a01Fa.wav"),
        ("RAVDESS", "Actor_11/03-01-09-01-01-01-11.wav"),
        ("RAVDESS", "Actor_11/03-01-01-02-01-01-11.wav"),
        ("RAVDESS", "Actor_11/03-01-05-01-01-11.wav"),
    ],
)
def test_a_file_that_the_corpus_does_not_have_is_named(
    prepare, corpus, name, tmp_path, make_wav
):
    path = make_wav(tmp_path / corpus / name)
    with pytest.raises(RecipeError, match=f"{path}.*remove"):
        prepare(corpus, tmp_path / corpus)
