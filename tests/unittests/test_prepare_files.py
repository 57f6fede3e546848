"""The corpora's own layouts: every turn once, with the right speaker."""

import shutil

import pandas as pd
import pytest

from speechbrain_wap.data.corpus_table import read_corpus_table
from speechbrain_wap.data.folds import list_sessions
from speechbrain_wap.errors import RecipeError

# IEMOCAP ---------------------------------------------------------------------

# Turns of each dialog; the label is the corpus's own.
DIALOGS = {
    "Ses{:02d}F_impro01": [("F000", "neu"), ("M000", "ang"), ("M001", "xxx")],
    "Ses{:02d}M_impro05a": [("M027", "exc"), ("F003", "sad")],
    "Ses{:02d}F_script01_1": [("F000", "hap"), ("M000", "fru")],
    "Ses{:02d}M_script01_1b": [("F012", "oth"), ("M030", "neu")],
}
TURNS_PER_SESSION = 9


def write_evaluation(path, turns):
    """Writes an evaluation file as the release's."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for number, (turn, emo) in enumerate(turns):
        start = 6.2901 + 10 * number
        lines += [
            f"[{start:.4f} - {start + 1.5:.4f}]\t{turn}\t{emo}\t"
            "[2.5000, 2.5000, 2.5000]",
            "C-E2:\tNeutral;\t()",
            "C-F1:\tNeutral; Anger;\t(but [mildly] so)",
            "A-E3:\tval 3; act 2; dom  2;\t()",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def make_iemocap(tmp_path, make_wav):
    """Writes a tiny release, with all that lies about in the real one."""

    def make(*sessions):
        root = tmp_path / "IEMOCAP full release"
        for session in sessions:
            folder = root / f"Session{session}"
            evaluation = folder / "dialog" / "EmoEvaluation"
            wavs = folder / "sentences" / "wav"
            for name in ("Attribute", "Categorical", "Self-evaluation"):
                (evaluation / name).mkdir(parents=True)
                litter = evaluation / name / "Ses01F_impro01_e2_cat.txt"
                litter.write_text("Ses01F_impro01_F000 :Neutral; ()\n")
            (folder / "dialog" / "wav").mkdir()
            for name, turns in DIALOGS.items():
                dialog = name.format(session)
                named = [(f"{dialog}_{turn}", emo) for turn, emo in turns]
                write_evaluation(evaluation / f"{dialog}.txt", named)
                make_wav(folder / "dialog" / "wav" / f"{dialog}.wav")
                for turn, _ in named:
                    make_wav(wavs / dialog / f"{turn}.wav")
                    mac = wavs / dialog / f"._{turn}.wav"
                    mac.write_bytes(b"\x00\x05\x16\x07")
                (evaluation / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16")
                (evaluation / f"{dialog}.pk").write_bytes(b"\x80\x04\x95")
                (wavs / dialog / f"{dialog}.pk").write_bytes(b"\x80\x04")
        (root / "Documentation").mkdir()
        (root / "._Session1").write_bytes(b"\x00\x05\x16\x07")
        (root / "README.txt").write_text("The IEMOCAP database")
        return root

    return make


@pytest.fixture(scope="session")
def iemocap(import_script):
    return import_script("recipes/IEMOCAP/iemocap_prepare.py")


@pytest.fixture
def prepare(iemocap, tmp_path):
    def run(root, **options):
        return iemocap.prepare_iemocap(
            root, tmp_path / "out" / "corpus.csv", **options
        )

    return run


def test_every_turn_of_iemocap_is_one_row_labelled_or_not(
    make_iemocap, prepare, tmp_path
):
    table = prepare(make_iemocap(1, 2, 3, 4, 5))
    assert len(table) == 5 * TURNS_PER_SESSION
    assert table["id"].is_unique
    assert set(table["emo"]) == {*"neu ang xxx exc sad hap fru oth".split()}
    assert (table["duration"] == 0.1).all()
    assert list_sessions(table) == ["1", "2", "3", "4", "5"]
    assert (table.groupby("session").size() == TURNS_PER_SESSION).all()
    written = read_corpus_table(tmp_path / "out" / "corpus.csv")
    assert written["id"].tolist() == table["id"].tolist()
    assert written["style"].tolist() == table["style"].tolist()


def test_the_speaker_is_who_speaks_the_turn_and_not_who_wears_the_markers(
    make_iemocap, prepare
):
    root = make_iemocap(1, 2)
    table = prepare(root).set_index("id")
    columns = ["speaker", "session", "style", "emo"]
    for turn, expected in {
        "Ses01F_impro01_F000": ["Ses01F", "1", "improvised", "neu"],
        "Ses01F_impro01_M001": ["Ses01M", "1", "improvised", "xxx"],
        "Ses02M_impro05a_F003": ["Ses02F", "2", "improvised", "sad"],
        "Ses02F_script01_1_M000": ["Ses02M", "2", "scripted", "fru"],
        "Ses01M_script01_1b_F012": ["Ses01F", "1", "scripted", "oth"],
    }.items():
        row = table.loc[turn]
        assert row[columns].tolist() == expected
        wavs = root.resolve() / f"Session{expected[1]}" / "sentences" / "wav"
        assert row["wav"] == str(wavs / turn.rpartition("_")[0] / f"{turn}.wav")


def test_known_counts_of_iemocap_are_those_of_the_literature(iemocap):
    known = pd.DataFrame(iemocap.KNOWN_COUNTS)
    assert known.sum(axis=1).tolist() == [1085, 1023, 1151, 1031, 1241]
    assert known.to_numpy().sum() == 5531
    assert known["hap"].sum() + known["exc"].sum() == 1636
    assert known[["ang", "sad", "neu"]].sum().tolist() == [1103, 1084, 1708]
    counts = known.set_axis(list("12345")).stack()
    rows = counts.index.repeat(counts.to_numpy())
    table = rows.to_frame(index=False, name=["session", "emo"])
    assert "They agree" in iemocap._describe_counts(table)
    table.loc[0, "emo"] = "sad"  # the sum stays
    assert "In all 5531 of 5531. They differ" in iemocap._describe_counts(table)


def test_a_session_without_evaluation_is_left_out(make_iemocap, prepare):
    root = make_iemocap(1, 2)
    evaluation = root / "Session2" / "dialog" / "EmoEvaluation"
    for path in evaluation.glob("Ses*.txt"):
        path.unlink()
    assert set(prepare(root)["session"]) == {"1"}
    shutil.rmtree(root / "Session1" / "dialog")
    with pytest.raises(RecipeError, match="no evaluation files"):
        prepare(root)


@pytest.mark.parametrize(
    "content",
    [
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n",
        "[6.2 - 8.2]\tSes01F_impro01_F000\n",
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
    with pytest.raises(RecipeError) as error:
        prepare(root)
    assert str(path) in str(error.value)


# EmoDB -----------------------------------------------------------------------

SPEAKERS = ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"]
WOMEN = {"08", "09", "13", "14", "16"}
LETTERS = dict(
    zip(
        "WLEAFTN",
        "anger boredom disgust fear happiness sadness neutral".split(),
    )
)


@pytest.fixture(scope="session")
def emodb(import_script):
    return import_script("recipes/EmoDB/emodb_prepare.py")


@pytest.fixture
def make_emodb(tmp_path, make_wav):
    """Writes a tiny EmoDB: each speaker, each emotion."""

    def make(inside="wav"):
        root = tmp_path / "EmoDB"
        for speaker in SPEAKERS:
            for letter in LETTERS:
                name = f"{speaker}a01{letter}a.wav"
                make_wav(root / inside / name, sample_rate=22050)
        (root / inside / "._03a01Fa.wav").write_bytes(b"\x00\x05\x16\x07")
        (root / inside / "readme.wav.txt").write_text("no speech")
        make_wav(root / inside / "silence.wav")
        return root

    return make


@pytest.mark.parametrize("inside", ["wav", "."])
def test_emodb_names_are_read_in_wav_or_flat(
    make_emodb, emodb, tmp_path, inside
):
    root = make_emodb(inside)
    table = emodb.prepare_emodb(root, tmp_path / "corpus.csv")
    assert len(table) == 70
    assert (table["duration"] == 0.1).all()
    row = table.set_index("id").loc["13a01Ta"]
    assert row["speaker"] == "13"
    assert row["emo"] == "sadness"
    assert row["wav"] == str((root / inside / "13a01Ta.wav").resolve())
    letters = {row["id"][5]: row["emo"] for _, row in table.iterrows()}
    assert letters == LETTERS
    # each fold holds out one man and one woman
    pairs = table.groupby("session")["speaker"].unique()
    assert len(pairs) == 5
    assert all(len(set(p) & WOMEN) == len(set(p) - WOMEN) == 1 for p in pairs)
    assert sorted(speaker for pair in pairs for speaker in pair) == SPEAKERS


def test_the_real_emodb_has_535_utterances_and_the_known_counts(
    shared, emodb, tmp_path, caplog
):
    caplog.set_level("INFO")
    root = shared("corpora", "EmoDB")
    table = emodb.prepare_emodb(root, tmp_path / "corpus.csv")
    assert len(table) == 535
    assert "In all 535 of 535, complete" in caplog.text
    assert table["digest"].is_unique
    assert sorted(set(table["speaker"])) == SPEAKERS


# RAVDESS ---------------------------------------------------------------------

RAVDESS_EMOTIONS = (
    "neutral calm happy sad angry fearful disgust surprised".split()
)


@pytest.fixture(scope="session")
def ravdess(import_script):
    return import_script("recipes/RAVDESS/ravdess_prepare.py")


@pytest.fixture
def prepare_ravdess(ravdess, tmp_path):
    def run(root):
        return ravdess.prepare_ravdess(root, tmp_path / "corpus.csv")

    return run


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
            (folder / mac).write_bytes(b"\x00\x05\x16\x07")
            (folder / ".DS_Store").write_bytes(b"\x00")
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
    make_ravdess, prepare_ravdess, inside, suffix, sample_rate
):
    root = make_ravdess(1, 2, inside=inside, suffix=suffix)
    table = prepare_ravdess(root)
    assert len(table) == 2 * 15
    assert (table["duration"] == 0.1).all()
    row = table.set_index("id").loc["03-01-05-02-02-02-01"]
    place = root / inside / "Actor_01" / f"03-01-05-02-02-02-01{suffix}"
    assert row["wav"] == str(place.resolve())
    assert row["emo"] == "angry"
    found = {row["id"][6:8]: row["emo"] for _, row in table.iterrows()}
    assert [found[f"0{code}"] for code in range(1, 9)] == RAVDESS_EMOTIONS


def test_a_name_of_ravdess_says_who_speaks_and_how(ravdess, tmp_path):
    names = ("03-01-08-02-02-01-11.flac", "03-01-01-01-01-02-24.wav")
    rows = [ravdess._read_name(tmp_path / name) for name in names]
    keys = ("speaker", "session", "emo", "gender", "intensity", "statement")
    assert [[row[key] for key in (*keys, "repetition")] for row in rows] == [
        *[["Actor_11", "11_12", "surprised", "male", "strong", "dogs", "1"]],
        *[["Actor_24", "23_24", "neutral", "female", "normal", "kids", "2"]],
    ]


@pytest.mark.parametrize("actors", [range(7, 13), (9, 10, 11)])
def test_each_fold_of_ravdess_is_one_pair_of_actors_in_order(
    make_ravdess, prepare_ravdess, actors
):
    table = prepare_ravdess(make_ravdess(*actors))
    pairs = table.groupby("session")["speaker"].unique()
    sessions = list_sessions(table)
    assert len(sessions) == len({(actor + 1) // 2 for actor in actors})
    speakers = [s for name in sessions for s in sorted(pairs[name])]
    assert speakers == [f"Actor_{actor:02d}" for actor in actors]
    for name in sessions:
        men, women = (int(part) for part in name.split("_"))
        assert (men % 2, women) == (1, men + 1)


def test_actors_of_ravdess_may_lie_in_both_places(
    make_ravdess, prepare_ravdess
):
    """As in copies that hold the release's folder beside its content."""
    inside = "Audio_Speech_Actors_01-24"
    (make_ravdess(11, 12) / inside).mkdir()
    assert len(prepare_ravdess(make_ravdess(11, 12))) == 30
    # what is in both is taken once, also from a copy in another format
    root = make_ravdess(12, inside=inside, suffix=".flac")
    assert len(prepare_ravdess(root)) == 30
    shutil.rmtree(root / inside)
    table = prepare_ravdess(make_ravdess(12, 13, inside=inside))
    assert sorted(set(table["speaker"])) == ["Actor_11", "Actor_12", "Actor_13"]
    assert len(table) == 45
    assert table["wav"].str.contains(inside).sum() == 15


def test_the_real_ravdess_has_the_known_counts(shared, prepare_ravdess, caplog):
    caplog.set_level("INFO")
    table = prepare_ravdess(shared("corpora", "RAVDESS"))
    assert len(table) == 840 and len(list_sessions(table)) == 7
    said = "In all 840 of 1440, of 14 of 24 actors, each with all utterances"
    assert said in caplog.text
    counts = {**dict.fromkeys(RAVDESS_EMOTIONS, 112), "neutral": 56}
    assert table["emo"].value_counts().to_dict() == counts
    assert table["digest"].is_unique
    columns = ["gender", "intensity", "statement", "repetition"]
    assert (table[columns].nunique() == 2).all()


# What is no such corpus ------------------------------------------------------


@pytest.fixture
def prepares(prepare, emodb, prepare_ravdess, tmp_path):
    def prepare_emodb(root):
        return emodb.prepare_emodb(root, tmp_path / "corpus.csv")

    return {
        "IEMOCAP": prepare,
        "EmoDB": prepare_emodb,
        "RAVDESS": prepare_ravdess,
    }


@pytest.mark.parametrize("corpus", ["IEMOCAP", "EmoDB", "RAVDESS"])
def test_a_folder_without_the_corpus_is_refused(
    prepares, corpus, tmp_path, make_wav
):
    # songs of RAVDESS, its speech out of place, and no folder
    make_wav(tmp_path / "other" / "Actor_11" / "03-02-01-01-01-01-11.wav")
    make_wav(tmp_path / "other" / "03-01-01-01-01-01-11.wav")
    (tmp_path / "other" / "Session1").write_text("no folder")
    for folder in ("other", "missing"):
        with pytest.raises(RecipeError, match=f"data_folder=.*{folder}"):
            prepares[corpus](tmp_path / folder)


@pytest.mark.parametrize(
    "corpus, name",
    [
        ("EmoDB", "17a01Fa.wav"),
        *(
            ("RAVDESS", f"Actor_11/{name}.wav")
            for name in (
                "03-01-09-01-01-01-11",
                "03-01-01-02-01-01-11",
                "03-01-05-01-01-01-25",
                "03-01-05-01-01-11",
                "silence",
            )
        ),
    ],
)
def test_a_file_that_the_corpus_does_not_have_is_named(
    prepares, corpus, name, tmp_path, make_wav
):
    path = make_wav(tmp_path / corpus / name)
    with pytest.raises(RecipeError, match="remove") as error:
        prepares[corpus](tmp_path / corpus)
    assert str(path) in str(error.value)
