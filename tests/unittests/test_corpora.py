"""Several corpora in stage 1: what joins, who must not, and how often."""

import json
import shutil

import pandas as pd
import pytest
import soundfile

from speechbrain_wap.data.datasets import (
    SPLITS,
    describe_data,
    prepare_adapter_data,
    prepare_classifier_data,
    prepare_table,
    read_manifests,
)
from speechbrain_wap.data.further_corpora import parse_corpora, plan_epochs
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.run_folders import (
    MODEL_KEYS,
    check_adapter,
    describe_adapter,
    write_adapter_record,
)

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
    items = ["x/corpus.csv", "y/corpus.csv", "corpus-2.csv", "z/corpus.csv"]
    names = [item["name"] for item in parse_corpora(items)]
    assert names == ["corpus", "corpus-2", "corpus-2-2", "corpus-3"]
    # a name that was given is kept, wherever it stands
    items = ["x/b.csv", {"table": "a.csv", "name": "b"}]
    assert [i["name"] for i in parse_corpora(items)] == ["b-2", "b"]


@pytest.mark.parametrize(
    "value, says",
    [
        (5, "corpora=5 must be null"),
        (True, "corpora=True must be null"),
        ("", "item without a table"),
        ("a.csv,,b.csv", "item without a table"),
        ([3], "the item 3"),
        ([{"weight": 2}], "item without a table"),
        ([{"table": "a.csv", "wait": 2}], "key wait, which is unknown"),
        ([{"table": "a.csv", "weight": 0}], "weight=0 of a.csv must be within"),
        ([{"table": "a.csv", "weight": "big"}], "weight=big of a.csv"),
        ([{"table": "a.csv", "weight": True}], "weight=True of a.csv"),
        ([{"table": "a.csv", "speakers": "mine"}], "speakers=mine of a.csv"),
        ([{"table": "a.csv", "name": ""}], "the name of a.csv is empty"),
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
def own_csv(make_corpus, tmp_path):
    """5 sessions, 2 speakers each, with 4 utterances each."""
    return make_corpus(tmp_path / "corpus")


@pytest.fixture
def corpus(own_csv, tmp_path):
    """Arguments of prepare_table."""
    return {
        "prepare_corpus": None,
        "data_folder": "",
        "corpus_csv": str(own_csv),
        "corpus_table": str(tmp_path / "out" / "corpus.csv"),
        "max_skipped": 0.0,
        "cache_folder": str(tmp_path / "cache"),
    }


@pytest.fixture
def manifests(tmp_path):
    return {name: str(tmp_path / "out" / f"{name}.json") for name in SPLITS}


@pytest.fixture
def write_table(make_wav, tmp_path):
    """Writes a further table of (id, speaker[, audio]) rows.

    The audio is another file for each row, unless one is named.
    """
    made = []

    def write(name, *rows):
        folder = tmp_path / f"further {name}"
        table = []
        for key, speaker, *audio in rows:
            wav = folder / f"{key}.wav"
            if audio:
                folder.mkdir(exist_ok=True)
                shutil.copyfile(audio[0], wav)
            else:
                made.append(make_wav(wav, seed=1000 + len(made)))
            table.append([key, wav.name, speaker, "one", ""])
        columns = ["id", "wav", "speaker", "session", "emo"]
        path = folder / f"{name}.csv"
        pd.DataFrame(table, columns=columns).to_csv(path, index=False)
        return str(path)

    return write


@pytest.fixture
def prepare(corpus, manifests, tmp_path):
    """Prepares stage 1; returns the splits and what was left out."""

    def run(value, fold=1, protocol="paper", adapter_data="train", **changed):
        left_out_csv = tmp_path / "out" / "left_out.csv"
        prepare_adapter_data(
            {**corpus, **changed},
            fold,
            protocol,
            adapter_data,
            manifests,
            parse_corpora(value),
            left_out_csv,
        )
        reasons = {}
        if left_out_csv.is_file():
            table = pd.read_csv(left_out_csv)
            reasons = dict(zip(table["id"], table["reason"]))
        return read_manifests(manifests), reasons

    return run


def further(splits):
    """Ids that do not come from the corpus under test."""
    return [key for key in splits["train"] if "/" in key]


def test_without_further_tables_nothing_changes(prepare, corpus, manifests):
    prepare(None)
    before = {n: open(m, "rb").read() for n, m in manifests.items()}
    prepare_adapter_data(corpus, 1, "paper", "train", manifests)
    assert before == {n: open(m, "rb").read() for n, m in manifests.items()}
    assert b'"table"' not in before["train"]


def test_tables_join_the_training_sessions_only(prepare, write_table):
    a = write_table("a", ("u1", "anna"), ("u2", "ben"))
    b = write_table("b", ("u1", "cleo"))
    plain, _ = prepare(None, protocol="held_out")
    splits, left_out = prepare(f"{a},{b}", protocol="held_out")
    assert left_out == {}
    assert further(splits) == ["a/u1", "a/u2", "b/u1"]
    assert splits["valid"] == plain["valid"]
    assert splits["test"] == plain["test"]
    mine = {k: e for k, e in splits["train"].items() if "/" not in k}
    assert mine == plain["train"]
    assert splits["train"]["a/u2"]["speaker"] == "ben"
    assert splits["train"]["b/u1"]["table"] == "b"


def test_a_prepared_table_is_taken_as_it_is(
    prepare, corpus, write_table, tmp_path
):
    table = write_table("x", ("u1", "anna"), ("u2", "ben"))
    prepared = str(tmp_path / "prepared" / "corpus.csv")
    prepare_table(**{**corpus, "corpus_csv": table, "corpus_table": prepared})
    splits, _ = prepare(prepared)
    assert further(splits) == ["corpus/u1", "corpus/u2"]


@pytest.mark.parametrize("protocol", ["paper", "held_out"])
@pytest.mark.parametrize("fold", [1, 4])
def test_no_held_out_speaker_comes_in_by_name(
    prepare, write_table, protocol, fold
):
    names = [f"s{i}{g}" for i in range(1, 6) for g in "fm"]
    rows = [(f"{name}-{i}", name) for name in names for i in (0, 1)]
    b = write_table("b", *rows)
    splits, left_out = prepare(b, fold, protocol)
    held_out = {fold} | ({fold + 1} if protocol == "held_out" else set())
    expected = [f"b/{key}" for key, s in rows if int(s[1]) not in held_out]
    assert further(splits) == expected
    assert len(left_out) == 4 * len(held_out)
    assert "s4f is held out" in left_out.get("b/s4f-1", "s4f is held out")


SPELLINGS = ["S1F", "s1F ", "s 1 f", "s_01_f", "s-1.f", "ｓ１ｆ", "s1\u200bf"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_held_out_speaker_is_known_in_any_spelling(
    prepare, write_table, name
):
    a = write_table("a", ("u1", name), ("u2", "s11f"), ("u3", "s1x"))
    splits, left_out = prepare(a)
    assert further(splits) == ["a/u2", "a/u3"]
    assert left_out == {"a/u1": "held-out speaker: s1f is held out"}


@pytest.mark.parametrize("speakers", ["shared", "own"])
def test_a_held_out_speaker_is_known_by_the_audio_in_another_format(
    prepare, write_table, own_csv, tmp_path, speakers
):
    copy = tmp_path / "copy.flac"
    audio = soundfile.read(own_csv.parent / "wav" / "s1f0.wav", dtype="int16")
    soundfile.write(copy, *audio)
    b = write_table("b", ("u1", "anna"), ("u2", "anna", copy), ("u3", "ben"))
    splits, left_out = prepare({"table": b, "speakers": speakers})
    assert further(splits) == ["b/u3"]
    assert "b/u2 is the audio of s1f0" in left_out["b/u1"]


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


def test_a_held_out_speaker_is_known_by_the_audio(
    prepare, write_table, own_csv
):
    wavs = own_csv.parent / "wav"
    b = write_table(
        "b",
        ("u1", "anna", wavs / "s1f3.wav"),  # unlabelled, and held out
        ("u2", "anna"),
        ("u3", "ben"),
    )
    for value in (b, {"table": b, "speakers": "own"}):
        splits, left_out = prepare(value)
        assert further(splits) == ["b/u3"]
        assert "b/u1 is the audio of s1f3" in left_out["b/u2"]
        # held out in no other fold: the utterance trains once
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
    # anna of a is another one if its names are its own
    value = [{"table": a, "speakers": "own"}, b, c]
    splits, _ = prepare(value)
    assert further(splits) == ["a/u1", "a/u2", "b/u2", "c/u2", "c/u3"]
    assert splits["train"]["a/u1"]["speaker"] == "a/anna"


def test_own_names_are_no_names_of_the_corpus_under_test(prepare, write_table):
    b = write_table("b", ("u1", "s1f"), ("u2", "s2f"))
    splits, left_out = prepare({"table": b, "speakers": "own"})
    assert further(splits) == ["b/u1", "b/u2"]
    assert left_out == {}


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


def test_all_data_are_transductive_with_further_tables_too(
    prepare, write_table, own_csv
):
    b = write_table(
        "b", ("u1", "s1f"), ("u2", "x", own_csv.parent / "wav" / "s1f0.wav")
    )
    splits, left_out = prepare(b, adapter_data="all")
    assert len(splits["train"]) == 41
    assert further(splits) == ["b/u1"]
    assert left_out == {"b/u2": "same audio as s1f0"}


def test_labels_of_held_out_speakers_are_not_written_down(
    prepare, write_table, own_csv
):
    # x says what the held-out speaker s1f does; y is somebody else
    b = write_table(
        *("b", ("u1", "s1f"), ("u2", "x"), ("u3", "y"), ("u4", "s2f")),
        ("u5", "x", own_csv.parent / "wav" / "s1f0.wav"),
    )
    pd.read_csv(b).assign(emo="hot").to_csv(b, index=False)
    splits, _ = prepare(b, adapter_data="all")
    labels = {k: splits["train"][k]["emo"] for k in further(splits)}
    assert labels == {"b/u1": "", "b/u2": "", "b/u3": "hot", "b/u4": "hot"}


def test_a_table_of_which_nothing_is_left_is_said(prepare, own_csv, caplog):
    splits, left_out = prepare({"table": str(own_csv), "name": "b"})
    assert further(splits) == []
    assert len(left_out) == 40
    (said,) = [r for r in caplog.records if "adds 0 utterances" in r.message]
    assert said.levelname == "WARNING"
    assert "8 of the held-out speakers s1f, s1m are left out" in said.message
    assert "32 are in a table before it" in said.message


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


def test_errors_name_the_table(prepare, write_table, tmp_path):
    with pytest.raises(RecipeError, match="nowhere.csv does not exist"):
        prepare("nowhere.csv")
    twice = write_table("b", ("u1", "anna"), ("u1", "anna"))
    with pytest.raises(RecipeError, match="b.csv: the id u1"):
        prepare(twice)


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


def test_a_corpus_under_test_may_lack_more_where_there_are_others(
    prepare, write_table, own_csv
):
    b = write_table("b", *[(f"u{i}", "anna") for i in range(9)])
    for name in ("s3f0", "s3f1"):
        (own_csv.parent / "wav" / f"{name}.wav").unlink()
    splits, _ = prepare(b, max_skipped=2.1 / 49)  # less than 2 / 40
    assert len(splits["train"]) == 30 + 9


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
    train = prepare([a, b])[0]["train"]
    plan = plan_epochs(train, corpora, 0.25, seed=1)
    names = list(plan.entries)
    for epoch in range(1, 5):
        chosen = [names[i].split("/") for i in plan.choose(epoch)]
        origins = [parts[0] if parts[1:] else "" for parts in chosen]
        # 32 of the corpus under test; round(3.5) is 4
        counts = [origins.count(name) for name in ("", "a", "b")]
        assert counts == [8, 14, 4]
    assert len(plan) == 26
    assert plan.weights["a/u1"] == 2.0 and plan.weights["s3f0"] == 0.25


def test_a_weight_of_one_plans_nothing(prepare, write_table):
    b = write_table("b", ("u1", "anna"))
    train = prepare(b)[0]["train"]
    plan = plan_epochs(train, parse_corpora(b), 1.0, seed=1)
    assert plan.entries == train
    assert plan.choose(1) == list(range(len(train)))


def test_each_corpus_has_one_utterance_at_least(prepare, write_table):
    b = write_table("b", ("u1", "anna"), ("u2", "anna"))
    train = prepare(b)[0]["train"]
    corpora = parse_corpora({"table": b, "weight": 0.001})
    assert len(plan_epochs(train, corpora, 1.0, seed=1)) == 33


def test_manifests_of_other_tables_are_refused(prepare, write_table):
    train = prepare(write_table("b", ("u1", "anna")))[0]["train"]
    with pytest.raises(RecipeError, match="table b.*--skip_prep"):
        plan_epochs(train, [], 1.0, seed=1)


def test_a_cross_validation_notices_another_table(
    import_script, repository, write_table, own_csv, tmp_path
):
    script = import_script("recipes/IEMOCAP/wap_adapter/cross_validate.py")
    hparams = repository / "recipes" / "IEMOCAP" / "wap_adapter" / "hparams"
    b = write_table("b", ("u1", "anna"), ("u2", "ben"))
    arguments = [
        *(str(hparams / f"{stage}.yaml") for stage in script.STAGES),
        *("--encoder_source=fbank", "--d_model=8", "--nhead=2"),
        *(f"--corpus_csv={own_csv}", "--folds=1", "--classes=all"),
        f"--cache_folder={tmp_path / 'cache'}",
        f"--output_folder={tmp_path / 'out'}",
    ]

    def prepare(*options):
        return script.prepare(script.parse_command([*arguments, *options]))

    prepare(f"--corpora={b}")
    prepare(f"--corpora={b}")
    with pytest.raises(RecipeError, match="adapter.corpora=.*weight"):
        prepare(f"--corpora={{table: {b}, weight: 2}}")
    table = pd.read_csv(b, keep_default_na=False)
    table.iloc[:1].to_csv(b, index=False)
    with pytest.raises(RecipeError, match="another value of the corpus"):
        prepare(f"--corpora={b}")
    # what is not trained has no settings that could have changed
    arguments[-1] += "2"
    prepare("--adapter_training=False")
    prepare("--adapter_training=False", "--adapter.lr=0.5")


# The adapter in stage 2 ------------------------------------------------------

SETTINGS = {key: f"some {key}" for key in MODEL_KEYS}
SETTINGS.update(number_of_epochs=3, mask_ratio=0.4)
CLASSES = {"happy": ["joy"], "angry": ["rage"]}


@pytest.fixture
def make_adapter(prepare, tmp_path):
    """Records an adapter that was trained on further tables alone."""

    def make(value, adapter_data="train", **kwargs):
        kwargs.setdefault("corpus_csv", None)
        train = prepare(value, adapter_data=adapter_data, **kwargs)[0]["train"]
        folder = tmp_path / "adapter"
        write_adapter_record(folder, SETTINGS, train, adapter_data)
        return folder

    return make


@pytest.fixture
def check(corpus, manifests):
    """Checks an adapter for a fold of the corpus under test."""

    def run(adapter, fold=1, protocol="paper", whole=True):
        prepare_classifier_data(
            corpus, fold, protocol, CLASSES, True, "all", manifests
        )
        table = corpus["corpus_table"] if whole else None
        splits = read_manifests(manifests)
        return check_adapter(adapter, SETTINGS, splits, table)

    return run


def test_an_adapter_of_other_corpora_is_for_any_fold(
    make_adapter, write_table, check
):
    adapter = make_adapter([write_table("b", ("u1", "anna"))])
    assert len({check(adapter, fold) for fold in range(1, 6)}) == 1
    record = json.loads((adapter / "adapter.json").read_text())
    assert record["speakers"] == record["utterances"] == []
    (table,) = record["corpora"]
    assert table["name"] == "b" and table["speakers"] == ["anna"]
    said = describe_adapter(adapter)
    assert said == "3 epochs on 1 utterances of 1 speakers of b"


def test_a_held_out_speaker_in_any_table_is_refused(
    make_adapter, write_table, check, own_csv
):
    """By the name, unless names are the table's own."""
    b = write_table("b", ("u1", "s2f"))
    adapter = make_adapter([b])
    check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2f.*table b.*own"):
        check(adapter, 2)
    with pytest.raises(RecipeError, match="valid split"):
        check(adapter, 1, "held_out")
    before = check(adapter, 1)
    adapter = make_adapter([{"table": b, "speakers": "own"}])
    check(adapter, 2)
    # what it has learned is the same
    assert check(adapter, 1) == before


@pytest.mark.parametrize("name", ["S2F", "s_02_f"])
def test_an_adapter_that_heard_a_held_out_speaker_by_another_spelling(
    make_adapter, write_table, check, name
):
    adapter = make_adapter([write_table("b", ("u1", name))])
    check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2f.*table b.*own"):
        check(adapter, 2)
    # what is called as a held-out utterance is one
    rows = [("s2f0", "2")]
    adapter = make_adapter(
        {"table": write_table("c", *rows), "speakers": "own"}
    )
    check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2f.*table c"):
        check(adapter, 2)


def test_an_adapter_that_heard_a_held_out_speaker_in_another_format(
    make_adapter, write_table, check, own_csv, tmp_path
):
    copy = tmp_path / "copy.flac"
    audio = soundfile.read(own_csv.parent / "wav" / "s2f0.wav", dtype="int16")
    soundfile.write(copy, *audio)
    b = write_table("b", ("u1", "anna", copy))
    adapter = make_adapter({"table": b, "speakers": "own"})
    check(adapter, 1)
    with pytest.raises(RecipeError, match="s2f .*s2f0 is the same audio"):
        check(adapter, 2)


@pytest.mark.parametrize("speakers", ["own", "shared"])
def test_a_held_out_speakers_audio_is_refused_whatever_the_name(
    make_adapter, write_table, check, own_csv, speakers
):
    audio = own_csv.parent / "wav" / "s2f0.wav"
    b = write_table("b", ("u1", "anna", audio))
    adapter = make_adapter([{"table": b, "speakers": speakers}])
    check(adapter, 1)
    with pytest.raises(RecipeError, match="s2f .*table b.*s2f0 is the same"):
        check(adapter, 2)


def test_a_held_out_speaker_is_known_by_audio_that_is_in_no_class(
    make_adapter, write_table, check, own_csv
):
    audio = own_csv.parent / "wav" / "s2f3.wav"  # without label
    adapter = make_adapter([write_table("b", ("u1", "anna", audio))])
    with pytest.raises(RecipeError, match="s2f3 is the same audio"):
        check(adapter, 2)
    check(adapter, 2, whole=False)  # its manifests do not list it


def test_a_copy_of_the_corpus_is_known_though_its_names_are_its_own(
    make_adapter, write_table, check, own_csv
):
    """At another sample rate, say: equal names and ids, other audio."""
    table = pd.read_csv(own_csv, keep_default_na=False)
    rows = zip(table["id"], table["speaker"])
    copy = write_table("copy", *(row for row in rows if row[1] != "s1f"))
    adapter = make_adapter({"table": copy, "speakers": "own"})
    with pytest.raises(RecipeError, match="speaker s1m .*table copy"):
        check(adapter, 1)


def test_the_adapter_of_the_same_fold_is_taken_with_its_further_tables(
    make_adapter, write_table, check, own_csv
):
    audio = own_csv.parent / "wav" / "s1f0.wav"
    rows = [("u1", "s1f"), ("u2", "s2f"), ("u3", "x", audio), ("u4", "x")]
    b = write_table("b", *rows)
    adapter = make_adapter(b, corpus_csv=str(own_csv))
    check(adapter, 1)
    with pytest.raises(RecipeError, match="speaker s2. is in"):
        check(adapter, 2)


def test_a_transductive_adapter_is_taken_whatever_the_table(
    make_adapter, write_table, check, caplog
):
    adapter = make_adapter([write_table("b", ("u1", "s2f"))], "all")
    check(adapter, 2)
    assert "transductive" in caplog.text and "s2f" in caplog.text


def test_a_record_that_lacks_something_is_named(
    make_adapter, write_table, check
):
    adapter = make_adapter([write_table("b", ("u1", "anna"))])
    path = adapter / "adapter.json"
    record = json.loads(path.read_text())
    del record["corpora"][0]["utterances"]
    path.write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="adapter.json is damaged.*utteran"):
        check(adapter)
