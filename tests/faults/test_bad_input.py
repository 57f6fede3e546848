"""What a user may get wrong, and what the scripts make of it.

Each case ends in one of three ways: REFUSED with a sentence that names the
file, utterance or key and the cure; SKIPPED, the rest being used, and listed
with its reason; USED as it was meant.
"""

import gc
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile
from bench import Bench, make_samples, make_table
from fault_table import FILE, read_faults
from safetensors.torch import load_file

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.checkpoints import Checkpointer

REFUSED, SKIPPED, USED = "refused", "skipped", "used"
KIND = "bad input"


class Case(NamedTuple):
    """A fault and how a run with it has to end.

    fault(bench) spoils what it likes. All regular expressions of says are in
    the sentence, the reason of the listing, or the log. check(bench) follows
    the run.
    """

    outcome: str
    fault: Any
    says: tuple = ()
    stage: str = "classifier"
    check: Any = None


def refused(fault, *says, **kwargs):
    """A case that ends with a sentence."""
    return Case(REFUSED, fault, says, **kwargs)


def skipped(fault, *says, **kwargs):
    """A case whose utterance is left out and listed."""
    return Case(SKIPPED, fault, says, **kwargs)


def used(fault, *says, **kwargs):
    """A case that ends well, with all utterances."""
    return Case(USED, fault, says, **kwargs)


def options(*texts):
    """A fault on the command line."""

    def add(bench):
        bench.options += [f"--{text}" for text in texts]

    return add


def both(*faults):
    """Several faults, one after the other."""

    def make(bench):
        for fault in faults:
            fault(bench)

    return make


# Audio -----------------------------------------------------------------------


def audio(write, suffix=".wav"):
    """A fault in the file of the first utterance, which is tested on."""

    def spoil(bench):
        write(bench.spoil(0, suffix))
        bench.options.append("--max_skipped=0.1")

    return spoil


def samples(subtype="PCM_16", suffix=".wav", change=None, **kwargs):
    """The first utterance's sound in other samples."""

    def write(path):
        values = make_samples(**kwargs)
        if change:
            values = change(values)
        soundfile.write(path, values, kwargs.get("rate", 16000), subtype)

    return audio(write, suffix)


def with_value(value):
    """Puts a value into the middle of the samples."""

    def change(values):
        values[len(values) // 2] = value
        return values

    return change


def cut(share):
    """A wav whose end is missing."""

    def write(path):
        soundfile.write(path, make_samples(), 16000)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return audio(write)


def impossible_rate(path):
    """A wav whose header says 4 GHz."""
    soundfile.write(path, make_samples(), 16000)
    content = bytearray(path.read_bytes())
    content[24:28] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)


def same_sound(tolerance):
    """Checks that the features are those of the plain wav, nearly."""

    def check(bench):
        manifest = json.loads((bench.out / "test.json").read_text("utf-8"))
        digest = manifest[bench.table["id"][0]]["digest"]
        key = bench.plain_entry.parents[1]
        entry = key / digest[:2] / f"{digest}.safetensors"
        feats = load_file(entry)["feats"].float()
        plain = load_file(bench.plain_entry)["feats"].float()
        assert feats.shape == plain.shape
        difference = (feats - plain).norm() / (plain - plain.mean()).norm()
        assert difference < tolerance
        only_the_first_differs(bench)
        return "its features are those of the same sound as a plain wav"

    return check


def only_the_first_differs(bench):
    """Checks that the other predictions are as if nothing had happened."""
    table, classes = bench.predictions()
    mine = table.set_index("id").drop(
        index=bench.table["id"][0], errors="ignore"
    )
    other = bench.reference.set_index("id").loc[mine.index]
    assert np.allclose(mine[classes], other[classes], atol=1e-5)
    return "the other predictions are as they are without it"


def silence(bench):
    """All samples are zero, in all files."""
    for row in range(len(bench.table)):
        # of other lengths, so that they are not one and the same file
        soundfile.write(bench.spoil(row), np.zeros(3000 + row), 16000)


def hubert(*options):
    """Takes the small HuBERT, whose field of view is 400 samples."""

    def add(bench):
        bench.options += [f"--encoder_source={bench.make_hubert()}", *options]

    return add


def too_short(choose, allowed):
    """Files of 300 samples where choose(row) says so."""

    def spoil(bench):
        for row, entry in bench.table.iterrows():
            if choose(entry):
                values = make_samples(number=row)[:300]
                soundfile.write(bench.spoil(row), values, 16000)
        bench.options.append(f"--max_skipped={allowed}")

    return both(hubert(), spoil)


AUDIO = {
    "a wav is missing": skipped(audio(lambda path: None), "No such file"),
    "a wav of 0 bytes": skipped(
        audio(lambda path: path.write_bytes(b"")), "cannot be read as audio"
    ),
    "a wav that ends within its header": skipped(
        cut(0.003), "cannot be read as audio"
    ),
    "a wav of which half is missing": skipped(cut(0.5), "is cut: .* bytes"),
    "text in place of audio": skipped(
        audio(lambda path: path.write_text("no audio, " * 99)),
        "cannot be read as audio",
    ),
    "a folder in place of a wav": skipped(
        audio(lambda path: path.mkdir()), "spoilt0.wav cannot be opened"
    ),
    "a wav without samples": skipped(
        samples(change=lambda values: values[:0]), "holds no samples"
    ),
    "NaN among the samples of a float wav": skipped(
        samples("FLOAT", change=with_value(np.nan)), "NaN or infinite"
    ),
    "infinity among the samples of a float wav": skipped(
        samples("FLOAT", change=with_value(np.inf)), "NaN or infinite"
    ),
    "samples of 1e30 in a float wav": skipped(
        samples("FLOAT", change=with_value(1e30)),
        "spoilt0.wav.*finite",
    ),
    "a wav that says it has 4 GHz": skipped(
        audio(impossible_rate), "spoilt0.wav"
    ),
    "a wav shorter than the encoder's field of view": skipped(
        too_short(lambda entry: entry["id"] == "s1f_joy", 0.1),
        "300 samples at 16000 Hz are too short.*needs 400",
    ),
    "more unreadable files than max_skipped": refused(
        both(audio(lambda path: None), options("max_skipped=0.05")),
        "1 of 12 utterances cannot be used",
        "spoilt0.wav",
        "Mend or remove them, or allow more with max_skipped",
    ),
    "the whole held-out session too short for the encoder": refused(
        too_short(lambda entry: entry["session"] == "s1", 0.5),
        "no labelled utterance in its valid split",
    ),
    "all training sessions too short for the encoder": refused(
        too_short(lambda entry: entry["session"] != "s1", 0.9),
        "train",
    ),
    "all training sessions too short, adapter training": refused(
        too_short(lambda entry: entry["session"] != "s1", 1.0),
        "train",
        stage="adapter",
    ),
    "all of a class's training files too short for the encoder": refused(
        too_short(
            lambda entry: entry["session"] != "s1" and entry["emo"] == "joy",
            0.9,
        ),
        "class joy",
    ),
    "a single sample": skipped(
        samples(change=lambda values: values[:1]),
        "1 samples at 16000 Hz are too short",
    ),
    "a silent wav": used(
        samples(change=lambda values: 0 * values), check=only_the_first_differs
    ),
    "silence throughout": used(silence),
    "silence throughout, adapter training": used(silence, stage="adapter"),
    "a stereo wav": used(samples(channels=2), check=same_sound(0.01)),
    "a wav at 8 kHz": used(samples(rate=8000), check=same_sound(0.8)),
    "a wav at 22.05 kHz": used(samples(rate=22050), check=same_sound(0.2)),
    "a wav at 44.1 kHz": used(samples(rate=44100), check=same_sound(0.2)),
    "a wav at 48 kHz": used(samples(rate=48000), check=same_sound(0.2)),
    "a wav of 24 bits": used(samples("PCM_24"), check=same_sound(0.05)),
    "a wav of 8 bits": used(samples("PCM_U8"), check=same_sound(0.8)),
    "a float wav": used(samples("FLOAT"), check=same_sound(0.05)),
    "a FLAC file": used(samples(suffix=".flac"), check=same_sound(0.05)),
    "samples beyond 1 in a float wav": used(
        samples("FLOAT", change=lambda values: 100 * values)
    ),
    "an utterance of 3 minutes": refused(
        samples(seconds=180), "s1f_joy has .* frames", "max_frames"
    ),
    "an utterance of 3 minutes, --long_utterances=cut": used(
        both(samples(seconds=180), options("long_utterances=cut")),
        check=only_the_first_differs,
    ),
    "one utterance of 3 minutes in training, --long_utterances=cut": used(
        both(
            lambda bench: soundfile.write(
                bench.spoil(7), make_samples(180), 16000
            ),
            options("long_utterances=cut"),
        ),
        stage="adapter",
    ),
}

# The table of one's own corpus -----------------------------------------------


def cell(column, value, row=0):
    """Another value in the table; row may be a slice."""

    def spoil(bench):
        bench.table.loc[row, column] = value

    return spoil


def table_file(write):
    """Another file in the table's place."""

    def spoil(bench):
        bench.write_table()
        write(bench.csv)

    return spoil


def text(change, encoding="utf-8"):
    """The table's file with another text."""
    return table_file(
        lambda path: path.write_bytes(
            change(path.read_text("utf-8")).encode(encoding)
        )
    )


def rows(choose):
    """Some rows of the table only."""

    def spoil(bench):
        keep = [choose(entry) for _, entry in bench.table.iterrows()]
        bench.table = bench.table[keep].reset_index(drop=True)

    return spoil


def as_folder(path):
    """A folder in a file's place."""
    path.unlink()
    path.mkdir()


def two_emotion_columns(bench):
    """The second column emo says the contrary of the first."""
    other = bench.table["emo"].map({"joy": "rage", "rage": "joy"})
    bench.table = pd.concat([bench.table, other], axis=1)


def odd_names(column, *values):
    """Names that a program may take for something else."""

    def spoil(bench):
        old = list(dict.fromkeys(bench.table[column]))
        names = dict(zip(old, values))
        bench.table[column] = bench.table[column].map(names)
        bench.held_out = names.get("s1", "s1") if column == "session" else "s1"

    return spoil


EVIL = "../../evil"


def no_evil(bench):
    """Checks that nothing is called as the id is, in any folder."""
    assert not list(bench.folder.rglob("evil*"))
    assert not list(bench.folder.parent.glob("evil*"))
    return "no file is called after it"


TABLE = {
    "the corpus table does not exist": refused(
        table_file(Path.unlink), "own.csv does not exist"
    ),
    "the corpus table is empty": refused(
        text(lambda text: ""), "own.csv cannot be read", "No columns"
    ),
    "the corpus table has a header only": refused(
        rows(lambda entry: False), "own.csv|no utterance"
    ),
    "the corpus table lacks two columns": refused(
        lambda bench: bench.table.drop(
            columns=["speaker", "session"], inplace=True
        ),
        "own.csv lacks the columns speaker, session",
    ),
    "the corpus table has semicolons for commas": refused(
        text(lambda text: text.replace(",", ";")), "own.csv lacks the columns"
    ),
    "the corpus table is binary": refused(
        table_file(lambda path: path.write_bytes(bytes(range(256)) * 9)),
        "own.csv",
    ),
    "the corpus table is a folder": refused(
        table_file(as_folder), "own.csv cannot be read: .*directory"
    ),
    "the corpus table is in UTF-16": refused(
        text(str, "utf-16"), "own.csv cannot be read"
    ),
    "the corpus table is in Latin-1": refused(
        text(lambda text: text.replace("s1f,", "sör,"), "latin-1"),
        "own.csv cannot be read",
    ),
    "the corpus table begins with a byte order mark": used(
        text(str, "utf-8-sig")
    ),
    "the corpus table has a row with too many cells": refused(
        text(lambda text: text.replace("s2m,", "s2m,x,")),
        "own.csv cannot be read.*line 8",
    ),
    "the corpus table has a row with too few cells": refused(
        text(lambda text: text.replace("s2m,s2,joy", "s2m")),
        "own.csv, line 8",
    ),
    "the corpus table has a quotation mark that never ends": refused(
        text(lambda text: text.replace("s2m_joy,", '"s2m_joy,')), "own.csv"
    ),
    "the corpus table has the column emo twice": refused(
        two_emotion_columns, "own.csv", "emo"
    ),
    "an empty id": refused(cell("id", ""), "line 2: the column id is empty"),
    "an empty speaker": refused(
        cell("speaker", " ", 3), "line 5: the column speaker is empty"
    ),
    "an empty wav": refused(
        cell("wav", "", 3), "line 5: the column wav is empty"
    ),
    "the same id twice": refused(cell("id", "s2f_joy"), "id s2f_joy", "unique"),
    "the same id twice but for a space": refused(
        cell("id", " s2f_joy "), "id s2f_joy", "unique"
    ),
    "an id that leads out of the folder": used(cell("id", EVIL), check=no_evil),
    "an id that leads out of the folder, adapter training": used(
        cell("id", EVIL, 7), stage="adapter", check=no_evil
    ),
    "an id that is an absolute path": used(
        lambda bench: cell("id", f"{bench.folder}/evil")(bench),
        check=no_evil,
    ),
    "an id with a comma and quotation marks": used(cell("id", 'a,"b",c')),
    "an id with a line break": used(cell("id", "a\nb")),
    "ids that look like numbers and gaps": used(
        cell("id", ["1", "01", "1.0", "NA", "null", "nan"], slice(0, 5))
    ),
    "classes that look like gaps": used(odd_names("emo", "NA", "null")),
    "classes that look like numbers": used(odd_names("emo", "1", "01")),
    "sessions that look like paths": used(
        odd_names("session", "../s 1", "/s2", "s,3")
    ),
    "a class that is called label": refused(
        odd_names("emo", "label", "rage"), "class label"
    ),
    "a class that is called id": refused(
        odd_names("emo", "id", "rage"), "class id"
    ),
    "labels with spaces around them": used(
        both(
            cell("emo", [" joy", "rage ", "joy\t"], slice(0, 2)),
            Bench.write_table,
            cell("emo", ["joy", "rage", "joy"], slice(0, 2)),
        )
    ),
    "a label once in capitals": used(
        cell("emo", "JOY", 4), "labels are the classes .JOY, joy, rage."
    ),
    "a label that is in no class": used(
        both(
            cell("emo", "fear", 4),
            options("classes={joy: [joy], rage: [rage]}"),
            Bench.write_table,
            cell("emo", "", 4),
        ),
        "fear",
    ),
    "one speaker in two sessions": refused(
        cell("speaker", "s1f", 4), "speaker s1f", "one session only"
    ),
    "one speaker in two sessions, adapter training": refused(
        cell("speaker", "s1f", 4),
        "speaker s1f",
        "one session only",
        stage="adapter",
    ),
    "one speaker in two sessions, in two spellings": refused(
        cell("speaker", "S_01_F", 4),
        "speaker S_01_F in the train .* and speaker s1f in the .* spellings",
        "one session only",
    ),
    "one file in two sessions, of speakers of other names": used(
        lambda bench: bench.table.loc.__setitem__(
            (4, "wav"), bench.table["wav"][0]
        ),
        "Leak: 1 utterances of the held-out session",
    ),
    "one speaker in two sessions, cross-validation": refused(
        cell("speaker", "s1f", 4),
        "speaker s1f",
        "one session only",
        stage="cross_validate",
    ),
    "a single speaker": refused(
        cell("speaker", "anna", slice(None)), "speaker anna"
    ),
    "a single session": refused(
        cell("session", "s1", slice(None)), "at least 2 sessions", "has 1"
    ),
    "two sessions with --protocol=held_out": refused(
        both(
            rows(lambda entry: entry["session"] != "s3"),
            options("protocol=held_out"),
        ),
        "protocol=held_out needs at least 3 sessions",
    ),
    "a class that the training sessions lack": refused(
        rows(lambda entry: entry["session"] == "s1" or entry["emo"] != "joy"),
        "no utterance of the class joy in the training sessions of fold 1",
    ),
    "a class that the held-out session lacks": used(
        rows(lambda entry: entry["session"] != "s1" or entry["emo"] != "joy")
    ),
    "a single class": refused(
        rows(lambda entry: entry["emo"] == "joy"), "at least two classes"
    ),
    "no labels": refused(
        cell("emo", "", slice(None)), "at least two classes", "emo"
    ),
    "no labels, adapter training": used(
        cell("emo", "", slice(None)),
        "No probe of the emotions: .* no labels",
        stage="adapter",
    ),
    "no labels in the held-out session": refused(
        cell("emo", "", slice(0, 3)), "fold 1 has no labelled utterance"
    ),
    "a session of one utterance": used(
        rows(lambda entry: entry["session"] != "s1" or "f_joy" in entry["id"])
    ),
    "one training utterance per class": used(
        rows(lambda entry: entry["speaker"] in ("s1f", "s2f"))
    ),
    "one training utterance, adapter training": used(
        rows(lambda entry: entry["id"] in ("s1f_joy", "s2f_joy")),
        stage="adapter",
    ),
}

# Further corpora of stage 1 ---------------------------------------------------

ALONE = "corpus_csv="  # no corpus under test


def further(*entries, change=None, more=()):
    """A table b.csv beside the corpus, with (speaker, row) entries.

    An entry with a row has the audio of that row of the corpus. change spoils
    the table, its file or its audio.
    """

    def spoil(bench):
        found = entries or [("anna", None), ("ben", None)]
        table = []
        for number, (speaker, row) in enumerate(found):
            wav = bench.input / f"b{number}.wav"
            if row is None:
                values = make_samples(number=50 + number)
                soundfile.write(wav, values, 16000)
            else:
                shutil.copy(bench.table["wav"][row], wav)
            table.append([f"u{number}", wav.name, speaker, "x", ""])
        columns = ["id", "wav", "speaker", "session", "emo"]
        path = bench.input / "b.csv"
        pd.DataFrame(table, columns=columns).to_csv(path, index=False)
        if change:
            change(path)
        bench.options.append(f"--corpora={path}")
        bench.options += [f"--{text}" for text in more]

    return spoil


def corpora(value, *more):
    """The table b.csv with another value of the key."""
    return further(more=[f"corpora={value}", *more])


def heard(*names):
    """Checks which speakers of b.csv the adapter has heard."""

    def check(bench):
        record = json.loads((bench.out / "adapter.json").read_text("utf-8"))
        tables = {item["name"]: item for item in record.get("corpora", [])}
        mine = tables.get("b", {"speakers": []})
        assert mine["speakers"] == sorted(names)
        return "heard of it: " + (", ".join(names) or "nobody")

    return check


def edit(old, new):
    """Another text in the further table."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


CORPORA = {
    "a further table that does not exist": refused(
        corpora("nowhere.csv"), "nowhere.csv does not exist", stage="adapter"
    ),
    "a further table that lacks a column": refused(
        further(change=edit("speaker", "who")),
        "b.csv lacks the columns speaker",
        stage="adapter",
    ),
    "a further table with the same id twice": refused(
        further(change=edit("u1,", "u0,")),
        "b.csv: the id u0",
        "unique",
        stage="adapter",
    ),
    "a further table without a wav": refused(
        further(change=lambda path: (path.parent / "b1.wav").unlink()),
        "1 of 14 utterances cannot be used, first b/u1",
        "b1.wav",
        stage="adapter",
    ),
    "a further table with the ids of the corpus under test": used(
        further(change=edit("u1", "s1f_joy")),
        stage="adapter",
        check=heard("anna", "ben"),
    ),
    "a further table that is the corpus under test": used(
        lambda bench: bench.options.append(f"--corpora={bench.csv}"),
        "own.csv .called own. adds 0 utterances",
        stage="adapter",
        check=heard(),
    ),
    "a further table with a held-out speaker": used(
        further(("s1f", None), ("anna", None)),
        "1 of the held-out speakers s1f are left out",
        stage="adapter",
        check=heard("anna"),
    ),
    "a further table with a held-out speaker in another spelling": used(
        further(("S_01_F", None), ("anna", None)),
        "1 of the held-out speakers S_01_F are left out",
        stage="adapter",
        check=heard("anna"),
    ),
    "a further table with a held-out utterance's id": used(
        further(
            *[("01", None), ("anna", None), ("2", None)],
            change=edit("u0,", "s1f_joy,"),
        ),
        "1 of the held-out speakers 01 are left out",
        stage="adapter",
        check=heard("2", "anna"),
    ),
    "a further table with a held-out speaker under another name": used(
        further(("anna", 0), ("anna", None), ("ben", None)),
        "2 of the held-out speakers anna are left out",
        stage="adapter",
        check=heard("ben"),
    ),
    "a further table with a speaker of the validation session": used(
        further(("s2f", None), ("anna", None), more=["protocol=held_out"]),
        "1 of the held-out speakers s2f are left out",
        stage="adapter",
        check=heard("anna"),
    ),
    "a further table with an utterance of the training sessions": used(
        further(("anna", 7), ("ben", None)),
        "1 are in a table before it and train once",
        stage="adapter",
        check=heard("ben"),
    ),
    "--corpora=5": refused(
        options("corpora=[5]"), "corpora has the item 5", stage="adapter"
    ),
    "--corpora=b.csv,": refused(
        corpora("b.csv,"),
        "corpora has an item without a table",
        stage="adapter",
    ),
    "--corpora=b.csv,b.csv": refused(
        corpora("b.csv,b.csv"), "corpora has b.csv twice", stage="adapter"
    ),
    "--corpora={table: b.csv, wait: 2}": refused(
        corpora("{table: b.csv, wait: 2}"), "key wait", stage="adapter"
    ),
    "--corpora={table: b.csv, weight: -1}": refused(
        corpora("{table: b.csv, weight: -1}"),
        "corpora: weight=-1 of b.csv must be within",
        stage="adapter",
    ),
    "--corpora={table: b.csv, speakers: mine}": refused(
        corpora("{table: b.csv, speakers: mine}"),
        "speakers=mine of b.csv is unknown: choose shared or own",
        stage="adapter",
    ),
    "--corpora and no corpus under test, --fold=2": refused(
        corpora("b.csv", ALONE, "fold=2"),
        "fold=2 means nothing where the adapter trains on corpora alone",
        stage="adapter",
    ),
    "--corpora and no corpus under test, --protocol=held_out": refused(
        corpora("b.csv", ALONE, "protocol=held_out"),
        "protocol=held_out means nothing",
        stage="adapter",
    ),
    "--corpora and no corpus under test, --adapter_data=all": refused(
        corpora("b.csv", ALONE, "adapter_data=all"),
        "adapter_data=all means nothing",
        stage="adapter",
    ),
    "--corpora, cross-validation, no corpus under test": refused(
        corpora("b.csv", ALONE), "no corpus given", stage="cross_validate"
    ),
    "--corpora, comparison, --adapter_folder": refused(
        corpora("b.csv", "adapter_folder=nowhere"),
        "--corpora has no effect with --adapter_folder",
        stage="compare",
    ),
    "--corpora, cross-validation, --adapter_folder": refused(
        corpora("b.csv", "adapter_folder=nowhere"),
        "--corpora has no effect with --adapter_folder",
        stage="cross_validate",
    ),
}

# A corpus in IEMOCAP's layout ------------------------------------------------


def iemocap(change=None, session=2):
    """A fault in the release; change gets the bench and a session's folder."""

    def spoil(bench):
        folder = bench.make_iemocap() / f"Session{session}"
        if change:
            change(bench, folder)

    return spoil


def evaluation(content):
    """Another content of an evaluation file, of its text or as bytes."""

    def spoil(bench, folder):
        path = bench.evaluation()
        if callable(content):
            path.write_bytes(content(path.read_text("utf-8")))
        else:
            path.write_bytes(content)

    return iemocap(spoil)


def without_session(bench, folder):
    """Removes a session's folder."""
    shutil.rmtree(folder)
    rows(lambda entry: entry["session"] != folder.name[-1])(bench)


def without(part):
    """Removes a part of a session's folder."""

    def spoil(bench, folder):
        shutil.rmtree(folder / part)
        is_gone = bench.table["session"] == folder.name[-1]
        if part == "dialog":  # nothing is known of its turns
            bench.table = bench.table[~is_gone]
        bench.faulty = list(bench.table["id"][is_gone])
        bench.options.append("--max_skipped=0.5")

    return spoil


def without_a_wav(bench, folder):
    """Removes the first wav of the held-out session."""
    next((bench.corpus / "Session1").rglob("*F000.wav")).unlink()
    bench.options.append("--max_skipped=0.1")


def turn_twice(bench, folder):
    """Repeats the last line of an evaluation file."""
    text = bench.evaluation().read_text("utf-8")
    last = text.splitlines(keepends=True)[-1]
    bench.evaluation().write_text(text + last, "utf-8")


def corpus_folder(make):
    """Another folder of the corpus."""

    def spoil(bench):
        bench.corpus = make(bench)

    return spoil


def a_file(bench):
    """Names a file where a folder is meant."""
    path = bench.input / "file.txt"
    path.write_text("no folder")
    return path


IEMOCAP = {
    "a data folder that does not exist": refused(
        corpus_folder(lambda bench: bench.input / "nowhere"),
        "data_folder=.*nowhere does not exist",
    ),
    "a data folder that is a file": refused(
        corpus_folder(a_file),
        "data_folder=.*file.txt.*(no|not a) folder",
    ),
    "a data folder without sessions": refused(
        corpus_folder(lambda bench: bench.folder), "no folder Session1"
    ),
    "a session's folder is missing": used(iemocap(without_session), "differ"),
    "a session without the folder dialog": used(
        iemocap(without("dialog")), "Session2 is left out"
    ),
    "a session without the folder sentences": skipped(
        iemocap(without("sentences")),
        "Ses02F_impro01_.*wav",
    ),
    "a turn without its wav": skipped(
        iemocap(without_a_wav),
        "Ses01F_impro01_F000.wav",
    ),
    "no wav at all": refused(
        iemocap(
            lambda bench, folder: [
                shutil.rmtree(path)
                for path in bench.corpus.glob("Session*/sentences")
            ]
        ),
        "none of the wav files is there",
        "complete",
    ),
    "no evaluation file at all": refused(
        iemocap(
            lambda bench, folder: [
                path.unlink() for path in bench.corpus.rglob("*.txt")
            ]
        ),
        "no evaluation files",
    ),
    "an empty evaluation file": refused(
        evaluation(b""), "Ses02F_impro01.txt holds no turn", "restore"
    ),
    "a malformed line in an evaluation file": refused(
        evaluation(lambda text: text.replace(" - 4.2]", "").encode()),
        "Ses02F_impro01.txt, line 3 is no turn",
        "restore",
    ),
    "a binary evaluation file": refused(
        evaluation(bytes(range(256)) * 4), "Ses02F_impro01.txt", "restore"
    ),
    "an evaluation file in UTF-16": refused(
        evaluation(lambda text: text.encode("utf-16")),
        "Ses02F_impro01.txt",
        "restore",
    ),
    "an evaluation file in Latin-1": used(
        evaluation(lambda text: f"% Müller\n{text}".encode("latin-1"))
    ),
    "an evaluation file that begins with a byte order mark": used(
        evaluation(lambda text: text.split("\n\n")[1].encode("utf-8-sig")),
    ),
    "an evaluation file with a turn twice": refused(
        iemocap(turn_twice), "id Ses02F_impro01_M007", "unique"
    ),
}

# A corpus in RAVDESS's layout ------------------------------------------------


def ravdess(*changes):
    """A fault in the release; a change gets the bench and actor 12's folder."""

    def spoil(bench):
        folder = bench.make_ravdess() / "Actor_12"
        for change in changes:
            change(bench, folder)

    return spoil


def beside(*names):
    """Copies of an utterance of speech under other names."""

    def copy(bench, folder):
        for name in names:
            shutil.copy(next(folder.glob("*.wav")), folder / name)

    return copy


def only_songs(bench, folder):
    """Removes all speech."""
    beside("03-02-05-01-01-01-12.wav")(bench, folder)
    for path in bench.corpus.rglob("03-01-*"):
        path.unlink()


def without_actor(bench, folder):
    """Removes an actor, so that a pair has one only."""
    shutil.rmtree(folder)
    rows(lambda entry: entry["speaker"] != folder.name)(bench)


RAVDESS = {
    "RAVDESS without an actor": used(
        ravdess(without_actor), "In all 10 of 1440, of 5 of 24 actors"
    ),
    "songs, videos and hidden files among RAVDESS's speech": used(
        ravdess(
            beside("03-02-05-01-01-01-12.wav", "01-01-05-01-01-01-12.wav"),
            beside("01-01-05-01-01-01-12.mp4", "._03-01-05-01-01-01-12.wav"),
        )
    ),
    "songs in place of RAVDESS's speech": refused(
        ravdess(only_songs), "no file like Actor_01/03-01-01-01-01-01-01.wav"
    ),
    "an emotion that RAVDESS does not have": refused(
        ravdess(beside("03-01-09-01-01-01-12.wav")),
        "03-01-09-01-01-01-12.wav has no name that RAVDESS gives",
        "rename or remove it",
    ),
    "an actor whom RAVDESS does not have": refused(
        ravdess(beside("03-01-05-01-01-01-25.wav")),
        "03-01-05-01-01-01-25.wav has no name that RAVDESS gives",
    ),
    "an utterance of RAVDESS as wav and as FLAC": refused(
        ravdess(beside("03-01-05-01-01-01-12.flac")),
        "id 03-01-05-01-01-01-12 stands for more than one",
    ),
}

# Places ----------------------------------------------------------------------


def output_is_a_file(bench):
    """Names a file as the output folder."""
    bench.options.append(f"--output_folder={a_file(bench)}")


def cache_is_a_file(bench):
    """Names a file as the cache's folder."""
    bench.cache = a_file(bench)


def too_small_a_disk(size, *faults):
    """Lets no file grow beyond a size, as a full disk would."""

    def spoil(bench):
        both(*faults)(bench)
        bench.largest_file = size

    return spoil


def odd_places(bench):
    """Moves all folders to names with spaces and letters of other scripts."""
    folder = bench.folder / "Größe 語 # {1}, [2] 'x' = y"
    bench.out, bench.cache = folder / "aus gabe", folder / "cache é"
    bench.input = folder / "ein gabe"
    bench.input.mkdir(parents=True)
    bench.csv = bench.input / "mein körpus, neu.csv"
    for row, entry in bench.table.iterrows():
        shutil.copy(entry["wav"], bench.spoil(row, " ñ.wav"))


def odd_data_folder(bench):
    """Moves a corpus in IEMOCAP's layout to such a name."""
    folder = bench.make_iemocap()
    bench.corpus = folder.rename(bench.input / "IEMOCAP räkning # 語")


PLACES = {
    "an output folder that is a file": refused(output_is_a_file, "file.txt"),
    "an output folder below a file": refused(
        lambda bench: bench.options.append(
            f"--output_folder={a_file(bench)}/out"
        ),
        "file.txt",
    ),
    "an output folder where nothing can be written": refused(
        options("output_folder=/proc/nowhere/out"),
        "/proc/nowhere",
    ),
    "a cache folder where nothing can be written": refused(
        lambda bench: setattr(bench, "cache", "/proc/nowhere"),
        "/proc has 0 bytes left|/proc/nowhere/.* cannot be written",
    ),
    "a disk that is full at the start": refused(
        too_small_a_disk(3000),
        "cannot be written|disk|room",
    ),
    "a disk that is full while features are cached": refused(
        too_small_a_disk(
            100_000,
            samples(seconds=180, number=30),
            options("long_utterances=cut"),
        ),
        "safetensors cannot be written",
    ),
    "a disk that is full while a checkpoint is saved": refused(
        too_small_a_disk(30_000), "no checkpoint can be saved", "make room"
    ),
    "a cache folder that is a file": refused(cache_is_a_file, "file.txt"),
    "spaces and letters of other scripts in all paths": used(odd_places),
    "spaces and letters of other scripts in the data folder": used(
        odd_data_folder
    ),
}

# Keys of the YAML and options ------------------------------------------------


def yaml(change):
    """Another hyperparameter file; change gets the usual one's text."""

    def spoil(bench):
        (usual,) = [Path(a) for a in bench.arguments() if a.endswith(".yaml")]
        bench.hparams = [bench.input / "hparams" / "mine.yaml"]
        bench.hparams[0].parent.mkdir()
        text = usual.read_text("utf-8")
        text = text.replace("!include:", f"!include:{usual.parent}/")
        content = change(text)
        if isinstance(content, str):
            content = content.encode("utf-8")
        if content is not None:
            bench.hparams[0].write_bytes(content)

    return spoil


def yaml_folder(bench):
    """A folder in the YAML's place."""
    bench.hparams = [bench.input]


def yaml_of_other_stage(bench):
    """The other stage's YAML."""
    path = next(a for a in bench.arguments() if a.endswith(".yaml"))
    bench.hparams = [path.replace("classifier.yaml", "adapter.yaml")]


def value(option, says=None, **kwargs):
    """A value that a key cannot have; the sentence names the key."""
    key = option.partition("=")[0]
    return f"--{option}", refused(options(option), says or key, **kwargs)


VALUES = [
    value("lr=-1", r"\blr\b"),
    value("lr=fast", r"\blr\b"),
    value("lr=.nan", r"\blr\b"),
    value("classifier_lr=-1"),
    value("number_of_epochs=0", "number_of_epochs=0.*at least 1"),
    value("number_of_epochs=many", "=many.*whole number", stage="adapter"),
    value("batch_size=0", "batch_size=0.*at least 1"),
    value("fold=one", "fold=one.*whole number"),
    value("fold=4", "fold 4 does not exist.*1 .s1.", stage="adapter"),
    value("seed=-1", "seed=-1.*at least 0"),
    value("num_workers=-1", r"\bnum_workers\b"),
    value("ckpt_interval_minutes=often", stage="adapter"),
    value("corpus_weight=0", "=0 must be within 0.001", stage="adapter"),
    value("max_skipped=2", "max_skipped=2 must be within 0 and 1"),
    value("skip_prep=no", "skip_prep=no"),
    value("input_norm=no"),
    value("mlp_residual=no", stage="adapter"),
    value("normalize_before=off"),
    value("d_model=0"),
    value("d_model=wide", stage="adapter"),
    value("nhead=3", "d_model .16. must be divisible by nhead .3."),
    value("nhead=0"),
    value("d_ffn=-1"),
    value("num_layers=0", r"\bnum_layers\b"),
    value("mlp_layers=-1"),
    value("dropout=2", "dropout=2 must be within 0 and 1"),
    value("max_frames=0", "max_frames=0"),
    value("sap_heads=0"),
    value("variance=other", "one of weighted, printed"),
    value("augmentation=more", "choose one of balance, mask, all, none"),
    value("augment_mask_ratio=-0.1", "=-0.1 must be within 0 and 1"),
    value("augment_mask_span=0", "=0 must be.* at least 1"),
    value("classes=joy", "classes is 'joy', but must map"),
    value("classes={}", "at least two classes"),
    value("classes={a: [joy], b: [joy]}", "joy is in two classes, a and b"),
    value("label_fraction=0", "=0 must be above 0 and at most 1"),
    value("label_fraction=1.5", "=1.5 must be above 0 and at most 1"),
    value("label_fraction=.nan"),
    value("label_fraction=all", "=all must be above 0"),
    value(
        "label_fractions=0.1,2",
        "0.1,2 must be numbers above 0 and at most 1",
        stage="compare",
    ),
    value("label_fractions=some", stage="compare"),
    value("label_fraction=no", "=no must be above", stage="compare"),
    value("adapter_epochs=0,2", "above 0", stage="compare"),
    value("adapter_epochs=two", "whole numbers", stage="compare"),
    value("model_selection=first", "choose one of last, best"),
    value("mask_ratio=2", "=2 must be within 0 and 1", stage="adapter"),
    value("ema_decay=1.5", "ema_decay=1.5 must be within", stage="adapter"),
    value("ema_decay=slow", stage="adapter"),
    value("num_attributes=0", stage="adapter"),
    value("attribute_update=never", "one of count, constant", stage="adapter"),
    value("attribute_count_decay=2", stage="adapter"),
    value("attribute_rate=-1", stage="adapter"),
    value("revive_after=-1", stage="adapter"),
    value("similarity=dot", "one of cosine, distance", stage="adapter"),
    value("temperature=0", stage="adapter"),
    value("target_norm=batch", "one of layer, none", stage="adapter"),
    value("target_smoothing=-1", "=-1 must be", stage="adapter"),
    value("mask_span=0", "=0 must be.* at least 1", stage="adapter"),
    value("ema_decay_start=2", "=2 must be within 0 and 1", stage="adapter"),
    value("predictor_layers=-1", "=-1 must be.* at least 0", stage="adapter"),
    value("class_weights=even", "=even.*one of none, balanced"),
    value("pooled_norm=perhaps", "must be True or False"),
    value("projection_init=pca", "=pca.*one of random, orthogonal"),
    value("residual_init=-1", "=-1 must be.* at least 0"),
    value("rec_weight_start=.nan", stage="adapter"),
    value("rec_weight_shape=steep", "one of linear, cosine", stage="adapter"),
    value("adapter_data=some", "choose one of train, all", stage="adapter"),
    value("probe_every=-1", "at least 0, or null: never", stage="adapter"),
    value("probe_every=often", "=often.*whole number", stage="adapter"),
    value("probe_utterances=0", "=0.*at least 1", stage="adapter"),
    value("probe_utterances=0.5", "=0.5.*whole number", stage="adapter"),
    value("encoder_layer=last_but_one", "=last_but_one does not exist"),
    value("feature_precision=int8", "one of float16, bfloat16, float32"),
    value("precision=fp8"),
    value("precision=fp16"),
    value("device=toaster"),
    value("grad_accumulation_factor=0"),
    value("learning_rate=1", "unknown key --learning_rate"),
    value("folds=1,x", "must be whole numbers", stage="cross_validate"),
    value("folds=1,9", "fold 9 does not exist", stage="cross_validate"),
    value("seeds=one", "must be whole numbers", stage="cross_validate"),
    value("adapter_training=maybe", "True or False", stage="cross_validate"),
    value(
        "adapter.d_model=8",
        "d_model is 8 for the adapter, but 16",
        stage="cross_validate",
    ),
]

KEYS = {
    **dict(VALUES),
    "--precision=bf16 on a CPU": used(options("precision=bf16")),
    "a batch larger than the data": used(options("batch_size=1000")),
    "a batch larger than the data, adapter training": used(
        options("batch_size=1000"), stage="adapter"
    ),
    "--grad_accumulation_factor=99, more than an epoch has": used(
        options("grad_accumulation_factor=99"), stage="adapter"
    ),
    "--label_fraction of less than an utterance": used(
        options("label_fraction=0.01"), "2 of 8 labelled .* .joy 1, rage 1."
    ),
    "--label_fraction beside --label_fractions": refused(
        options("label_fraction=0.1", "label_fractions=0.1,1"),
        "either --label_fraction or --label_fractions",
        stage="compare",
    ),
    "--adapter_epochs beside --label_fractions": refused(
        options("adapter_epochs=1,2", "label_fractions=0.1,1"),
        "a curve has one axis",
        stage="compare",
    ),
    "--adapter_epochs beside --adapter.number_of_epochs": refused(
        options("adapter_epochs=1,2", "adapter.number_of_epochs=3"),
        "exclude each other: it sets that",
        stage="compare",
    ),
    "--adapter_epochs with --adapter_folder": refused(
        options("adapter_epochs=1,2", "adapter_folder=earlier"),
        "exclude each other: an earlier adapter has its length",
        stage="compare",
    ),
    "--adapters_folder with --adapter_folder": refused(
        options("adapters_folder=x", "adapter_folder=y"),
        "--adapters_folder has no effect with --adapter_folder",
        stage="cross_validate",
    ),
    "--adapters_folder, comparison": refused(
        options("adapters_folder=x"),
        "--adapters_folder cannot be set here: they lie in the output folder",
        stage="compare",
    ),
    "--adapters_folder with --adapter_training=False": refused(
        options("adapters_folder=x", "adapter_training=False"),
        "--adapters_folder is of no use",
        stage="cross_validate",
    ),
    "a batch of one": used(options("batch_size=1")),
    "a batch of one, adapter training": used(
        options("batch_size=1"), stage="adapter"
    ),
    "a learning rate at which the loss becomes NaN": refused(
        options("lr=1e30", "batch_size=2", "number_of_epochs=2"),
        "loss is (nan|inf) at optimiser step [2-9]",
        "try a lower lr",
    ),
    "a learning rate at which the adapter's loss becomes NaN": refused(
        options("lr=1e30", "batch_size=2", "number_of_epochs=2"),
        "loss is (nan|inf) at optimiser step [2-9]",
        "try a lower lr",
        stage="adapter",
    ),
    "a loss that becomes NaN after the very last step": refused(
        options("lr=1e30"),
        "nan|NaN|finite",
        "lower lr",
    ),
    "an adapter's validation loss that becomes NaN": refused(
        options("lr=1e30", "protocol=held_out"),
        "nan|NaN|finite",
        "lower lr",
        stage="adapter",
    ),
    "frames that overflow after the very last step": refused(
        options("lr=1e30"),
        "networks' frames are not finite at optimiser step 1",
        "try a lower lr",
        stage="adapter",
    ),
    "--probe_utterances=1, of which nothing can be learned": used(
        options("probe_utterances=1"),
        "No probe of the emotions: it needs two labels",
        stage="adapter",
    ),
    "the YAML does not exist": refused(
        yaml(lambda text: None), "mine.yaml cannot be read: No such file"
    ),
    "the YAML is a folder": refused(yaml_folder, "cannot be read"),
    "the YAML is empty": refused(yaml(lambda text: ""), "mine.yaml"),
    "the YAML is a list": refused(yaml(lambda text: "[1, 2]\n"), "mine.yaml"),
    "the YAML is no YAML": refused(
        yaml(lambda text: text + "\n}: [\n"),
        "mine.yaml.* line",
    ),
    "the YAML is binary": refused(
        yaml(lambda text: bytes(range(256))), "mine.yaml"
    ),
    "the YAML has a key twice": refused(
        yaml(lambda text: text + "\nseed: 1\n"),
        "mine.yaml.*seed",
    ),
    "the YAML lacks a key": refused(
        yaml(lambda text: text.replace("\nfold: 1\n", "\n")),
        "mine.yaml.*fold",
    ),
    "the YAML names a class that does not exist": refused(
        yaml(lambda text: text.replace("Augmentation", "Augment")),
        "mine.yaml: .*no such class as speechbrain_wap.augmentation.Augment",
    ),
    "the YAML includes a file that is not there": refused(
        yaml(lambda text: text.replace("wap_sap.yaml", "sap_wap.yaml")),
        "mine.yaml includes .*sap_wap.yaml as system.*No such file",
    ),
    "--system=transformer, which is not there": refused(
        options("system=transformer"),
        "includes models/transformer.yaml as system.*No such file",
    ),
    "the YAML is the other stage's": refused(
        yaml_of_other_stage, "adapter.yaml is not for this script"
    ),
}

# Files of earlier runs -------------------------------------------------------


def manifest(change, split="test"):
    """A manifest that was edited by hand, and --skip_prep."""

    def spoil(bench):
        bench.out.mkdir(parents=True)
        for name in ("train", "valid", "test"):
            shutil.copy(bench.reference_run / f"{name}.json", bench.out)
        bench.options.append("--skip_prep=True")
        path = bench.out / f"{split}.json"
        path.write_text(change(path.read_text("utf-8")), "utf-8")

    return spoil


def entry(split="test", remove=None, **changes):
    """Another value in the first entry of a manifest."""

    def change(text):
        entries = json.loads(text)
        first = next(iter(entries.values()))
        first.update(changes)
        first.pop(remove, None)
        return json.dumps(entries)

    return manifest(change, split)


def adapter_folder(*parts, options=(), change=None):
    """The folder of an adapter training of other dimensions, or spoilt."""

    def spoil(bench):
        folder = bench.input / "adapter"
        shutil.copytree(bench.make_adapter(*options), folder)
        if change:
            path = folder.joinpath(*parts)
            path.write_text(change(path.read_text("utf-8")), "utf-8")
        bench.options.append(f"--adapter_folder={folder}")

    return spoil


def earlier_run(change, name="save/settings.json"):
    """Goes on in the folder of an earlier run with a file edited by hand."""

    def spoil(bench):
        shutil.copytree(bench.reference_run, bench.out)
        (path,) = bench.out.glob(name)
        # Latin-1 has a letter for every byte
        content = change(path.read_bytes().decode("latin-1"))
        path.write_bytes(content.encode("latin-1"))

    return spoil


def cut_last_checkpoint(bench):
    """Cuts the newest checkpoint of the output folder in two."""
    last = Checkpointer(bench.out / "save").find_checkpoint()
    path = last.paramfiles["model"]
    path.write_bytes(path.read_bytes()[:1000])


FILES = {
    "--skip_prep=True without manifests": refused(
        options("skip_prep=True"), "train.json cannot be read", "--skip_prep"
    ),
    "a manifest that is no JSON": refused(
        manifest(lambda text: text[:-20]), "test.json cannot be read"
    ),
    "a manifest that is a list": refused(
        manifest(lambda text: "[1, 2]"), "test.json"
    ),
    "a manifest whose entry is a number": refused(
        manifest(lambda text: '{"a": 1}'),
        "test.json: utterance a",
    ),
    "an empty training manifest": refused(
        manifest(lambda text: "{}", "train"), "train.json is empty"
    ),
    "an empty test manifest": refused(
        manifest(lambda text: "{}"), "no labelled utterance in its test split"
    ),
    "a manifest's utterance without wav": refused(
        entry(remove="wav"), "test.json: utterance s1f_joy lacks wav"
    ),
    "a manifest's utterance whose wav is a number": refused(
        entry(wav=5, digest="0" * 32),
        "test.json: utterance s1f_joy",
    ),
    "a manifest's utterance whose digest leads elsewhere": refused(
        entry(digest="../../../evil"),
        "test.json: utterance s1f_joy",
    ),
    "a manifest's wav that is not the one it was": refused(
        both(
            lambda bench: soundfile.write(
                bench.spoil(0), make_samples(number=20), 16000
            ),
            lambda bench: entry(wav=bench.table["wav"][0])(bench),
        ),
        "s1f_joy|spoilt0.wav",
    ),
    "a manifest's utterance with a speaker of the other split": refused(
        entry(speaker="s2f"), "speaker s2f is in both"
    ),
    "a manifest's label that the training lacks": refused(
        entry(label="fear"), "class fear"
    ),
    "an adapter folder that does not exist": refused(
        options("adapter_folder=nowhere"), "adapter_folder=nowhere"
    ),
    "an adapter folder that is a classifier's": refused(
        lambda bench: bench.options.append(
            f"--adapter_folder={bench.reference_run}"
        ),
        "holds no adapter.json",
        "train_adapter.py",
    ),
    "an adapter of another d_model": refused(
        adapter_folder(options=["--d_model=8"]),
        "was trained with d_model=8, but the classifier's is 16",
    ),
    "an adapter of another fold": refused(
        both(adapter_folder(), options("fold=2")), "speaker s2f", "same fold"
    ),
    "an adapter of all sessions, as a further table": refused(
        lambda bench: bench.options.append(
            f"--adapter_folder={bench.make_universal()}"
        ),
        "speaker s1f .*in the table own of corpora .s1f_joy is the same audio",
    ),
    "an earlier adapter of another fold, cross-validation": refused(
        lambda bench: bench.options.append(
            f"--adapter_folder={bench.make_adapter()}"
        ),
        "fold 2: speaker s2f",
        "may be used with --folds=1",
        stage="cross_validate",
    ),
    "an earlier adapter that does not exist, cross-validation": refused(
        options("adapter_folder=nowhere"),
        "adapter_folder=nowhere",
        stage="cross_validate",
    ),
    "an adapter whose adapter.json is no JSON": refused(
        adapter_folder("adapter.json", change=lambda text: text[:-20]),
        "adapter.json",
    ),
    "an adapter whose adapter.json is another program's": refused(
        adapter_folder("adapter.json", change=lambda text: '{"a": 1}'),
        "adapter.json",
    ),
    "an output folder whose settings.json is no JSON": refused(
        earlier_run(lambda text: text[:-20]),
        "settings.json",
    ),
    "the only checkpoint was cut": refused(
        both(
            earlier_run(
                lambda content: content[:1000], "save/CKPT*/model.ckpt"
            ),
            options("number_of_epochs=2"),
        ),
        "model.ckpt is damaged.*delete .*save",
    ),
    "the last checkpoint was cut, the one before was not": used(
        both(
            lambda bench: shutil.copytree(
                bench.make_classifier("--number_of_epochs=2").out, bench.out
            ),
            cut_last_checkpoint,
            options("number_of_epochs=3"),
        ),
        "model.ckpt is damaged: the checkpoint before it is used",
    ),
    "an output folder of a run with an adapter, now without": refused(
        lambda bench: shutil.copytree(
            bench.make_classifier(
                f"--adapter_folder={bench.make_adapter()}"
            ).out,
            bench.out,
        ),
        "another value of the adapter .adapter_folder.",
    ),
    "an output folder of a run with another lr": refused(
        both(earlier_run(str), options("lr=0.5")), "lr=0.001 .now 0.5"
    ),
}

CASES = {
    **AUDIO,
    **TABLE,
    **CORPORA,
    **IEMOCAP,
    **RAVDESS,
    **PLACES,
    **KEYS,
    **FILES,
}
# The tests -------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The corpus before it is spoilt."""
    return make_table(tmp_path_factory.mktemp("wavs"))


@pytest.fixture(scope="module")
def make_run(table, tmp_path_factory):
    """Runs a script on the corpus as it is, once for the same options."""
    shared = tmp_path_factory.mktemp("features")
    runs = {}

    def make(stage, *options):
        if (stage, options) not in runs:
            folder = tmp_path_factory.mktemp("run")
            bench = Bench(folder, table, shared, stage)
            bench.options += options
            bench.run()
            bench.check_numbers()
            runs[stage, options] = bench
        return runs[stage, options]

    return make


@pytest.fixture(scope="module")
def plain_entry(make_run):
    """The cached features of the first utterance."""
    run = make_run("classifier")
    manifest = json.loads((run.out / "test.json").read_text("utf-8"))
    digest = manifest[run.table["id"][0]]["digest"]
    (entry,) = Path(run.cache).glob(f"*/*/{digest}.safetensors")
    return entry


@pytest.fixture(scope="module", autouse=True)
def few_objects(plain_entry):
    """Keeps the garbage collector off all that has been imported by now."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def make_hubert(make_checkpoint, tmp_path_factory):
    """Makes the small HuBERT once."""
    made = []

    def make():
        if not made:
            folder = tmp_path_factory.mktemp("hubert")
            made.append(make_checkpoint(folder, "hubert"))
        return made[0]

    return make


@pytest.fixture
def bench(
    request, table, make_run, make_hubert, plain_entry, tmp_path, monkeypatch
):
    """A run that is still to be spoilt."""
    reference = make_run("classifier")
    stage = request.getfixturevalue("case").stage
    bench = Bench(tmp_path, table, reference.cache, stage)
    bench.reference, _ = reference.predictions()
    bench.reference_run = reference.out
    bench.plain_entry = plain_entry
    bench.make_hubert = make_hubert
    bench.make_adapter = lambda *options: make_run("adapter", *options).out
    bench.make_universal = lambda: make_run(
        "adapter", "--corpus_csv=", f"--corpora={reference.csv}"
    ).out
    bench.make_classifier = lambda *options: make_run("classifier", *options)
    monkeypatch.chdir(bench.input)
    # a list of all installed packages, which takes half of a run's time
    name = "speechbrain.utils.logger.get_environment_description"
    monkeypatch.setattr(name, lambda: "")
    return bench


@pytest.fixture
def case(name):
    """The case of a name."""
    return CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_skipped_or_used(name, case, bench, record_fault):
    case.fault(bench)
    before = bench.results()
    if case.outcome == REFUSED:
        with pytest.raises(RecipeError) as error:
            bench.run()
        assert bench.results() == before
        said = happened = str(error.value)
        assert len(said.splitlines()) == 1
        kept = "all files that were there; no results were written"
    else:
        bench.run()
        bench.check_numbers()
        reasons = bench.skipped()
        if case.outcome == SKIPPED:
            assert list(reasons) == bench.faulty
            said = reasons[bench.faulty[0]]
            happened = f"skipped, listed: {said}"
            kept = f"the other {len(bench.table) - len(reasons)} utterances"
        else:
            assert not reasons
            said = (bench.out / "log.txt").read_text("utf-8")
            happened, kept = "used", f"all {len(bench.table)} utterances"
    for part in case.says:
        assert re.search(part, said), said
    if case.check:
        happened = f"{happened}; {case.check(bench)}"
    # what the log said of it is worth a word
    if case.outcome == USED and case.says:
        lines = said.splitlines()
        line = next(x for x in lines if re.search(case.says[0], x))
        happened = f"used; said: {line.split(' - ')[-1]}"
    record_fault(KIND, name, happened, kept)


def test_the_table_of_faults_lists_these_cases():
    if not FILE.is_file():
        pytest.skip("docs/faults.md has not been written yet")
    assert read_faults(FILE, KIND) == list(CASES)
