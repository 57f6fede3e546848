"""What a user may get wrong, and what the scripts make of it.

Each case ends in one of three ways: REFUSED with a sentence that names the
file, utterance or key and the cure; SKIPPED, the rest being used, and listed
with its reason; USED as it was meant. A name that ends with another script's
(", adapter") is of that, the other ones are of train_classifier. `make test`
runs those in SHORT, `make faults` all.
"""

import functools
import gc
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from recipe_runs import read_json
from safetensors.torch import load_file, save_file
from tiny_run import SCRIPTS, TinyRun, make_samples, make_table

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.checkpoints import Checkpointer

REFUSED, SKIPPED, USED = "refused", "skipped", "used"


class Case:
    """A fault and how a run with it has to end.

    fault(run) spoils what it likes. All regular expressions of says are in the
    sentence, the reason of the listing, or the log. check(run) follows the run.
    """

    def __init__(self, outcome, fault, *says, check=None):
        self.outcome = outcome
        self.fault = fault
        self.says = says
        self.check = check


refused = functools.partial(Case, REFUSED)  # it ends with a sentence
skipped = functools.partial(Case, SKIPPED)  # an utterance is left out, listed
used = functools.partial(Case, USED)  # it ends well, with all utterances


def options(*texts):
    """A fault on the command line."""
    return lambda run: run.options.extend(f"--{text}" for text in texts)


def both(*faults):
    """Several faults, one after the other."""
    return lambda run: [fault(run) for fault in faults]


# Files that TinyRun.make_file makes; a text has a letter for every byte. ------


def edit(name, change):
    """A file with another text."""

    def spoil(run):
        path = run.make_file(name)
        text = change(path.read_bytes().decode("latin-1"))
        path.write_bytes(text.encode("latin-1"))

    return spoil


def write(name, text):
    """A file with a text of its own."""
    return edit(name, lambda _: text)


def swap(name, old, new):
    """A file with other words."""
    return edit(name, lambda text: text.replace(old, new))


def append(name, text):
    """A file with more at its end."""
    return edit(name, lambda old: old + text)


def cut(name, end):
    """A file whose end is missing."""
    return edit(name, lambda text: text[:end])


def encode(name, encoding):
    """A file in another encoding."""
    return edit(name, lambda text: text.encode(encoding).decode("latin-1"))


def gone(name):
    """A file that is missing."""
    return lambda run: run.make_file(name).unlink()


def folder(name):
    """A folder in a file's place."""

    def spoil(run):
        path = run.make_file(name)
        path.unlink()
        path.mkdir()

    return spoil


# Audio of the first utterance, which is tested on ----------------------------


def sound(change=None, subtype="PCM_16", suffix=".wav", **kwargs):
    """Other samples in another format."""

    def spoil(run):
        values = make_samples(**kwargs)
        values = change(values) if change else values
        path = run.spoil(0, suffix)
        soundfile.write(path, values, kwargs.get("rate", 16000), subtype)
        run.options.append("--max_skipped=0.1")

    return spoil


def one_sample(value):
    """A value in the middle of the samples of a float wav."""

    def change(values):
        values[len(values) // 2] = value
        return values

    return sound(change, "FLOAT")


def same_sound(tolerance):
    """Checks that the features are nearly those of the plain wav."""

    def check(run):
        mine, plain = (
            read_json(one.out, "test.json")[run.table["id"][0]]["digest"]
            for one in (run, run.finished("classifier"))
        )
        (entry,) = run.cache.glob(f"*/*/{mine}.safetensors")
        other = entry.parents[1] / plain[:2] / f"{plain}.safetensors"
        feats, usual = (load_file(e)["feats"].float() for e in (entry, other))
        assert feats.shape == usual.shape
        difference = (feats - usual).norm() / (usual - usual.mean()).norm()
        assert difference < tolerance
        only_the_first_differs(run)
        return "its features are those of the same sound as a plain wav"

    return check


def only_the_first_differs(run):
    """Checks that the other predictions are as if nothing had happened."""
    tables = []
    for one in (run, run.finished("classifier")):
        table, classes = one.predictions()
        table = table.set_index("id")[classes]
        tables.append(table.drop(index=run.table["id"][0]))
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-5)
    return "the other predictions are as they are without it"


def half(suffix, subtype="PCM_16"):
    """Another format, of which the second half is missing."""

    def spoil(run):
        sound(subtype=subtype, suffix=suffix, seconds=1)(run)
        path = run.input / f"spoilt0{suffix}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def unknown(suffix):
    """A file that other programs play."""

    def spoil(run):
        run.spoil(0, suffix).write_bytes(b"\0\0\0\x20ftypisom" + 99 * b"mp4")
        run.options.append("--max_skipped=0.1")

    return spoil


def silence(run):
    """Zeros in all files, of other lengths, so that they are not one file."""
    for row in range(len(run.table)):
        soundfile.write(run.spoil(row), np.zeros(3000 + row), 16000)


def too_short(query, max_skipped):
    """Files of 300 samples in some rows; HuBERT needs 400."""

    def spoil(run):
        for row in run.table.query(query).index:
            values = make_samples(number=row)[:300]
            soundfile.write(run.spoil(row), values, 16000)
        run.options.append(f"--encoder_source={run.make_hubert()}")
        run.options.append(f"--max_skipped={max_skipped}")

    return spoil


def long_in_training(run):
    """A training utterance of 3 minutes."""
    soundfile.write(run.spoil(7), make_samples(180), 16000)


WAV, NO_AUDIO = "spoilt0.wav", "cannot be read as audio"
BINARY = bytes(range(256)).decode("latin-1")
CUT_LONG = options("long_utterances=cut")
LONG = sound(seconds=180)
NEEDS_400 = "300 samples at 16000 Hz are too short.*needs 400"

AUDIO = {
    "missing wav": skipped(gone(WAV), "No such file"),
    "wav of 0 bytes": skipped(write(WAV, ""), NO_AUDIO),
    "wav that ends within its header": skipped(cut(WAV, 20), NO_AUDIO),
    "wav of which half is missing": skipped(cut(WAV, 3000), "is cut: .* bytes"),
    "RF64 of which half is missing": skipped(half(".rf64"), "is cut: .* bytes"),
    "W64 of which half is missing": skipped(half(".w64"), "is cut: .* bytes"),
    "AIFF of which half is missing": skipped(half(".aiff"), "is cut: .* bytes"),
    "AU of which half is missing": skipped(half(".au"), "is cut: .* bytes"),
    "MP3 of which half is missing": skipped(
        half(".mp3", "MPEG_LAYER_III"), "is cut: .* samples"
    ),
    "FLAC of which half is missing": skipped(
        half(".flac"), "is cut or damaged: restore it"
    ),
    "mp4": skipped(unknown(".mp4"), "convert it with 'ffmpeg -i .*0.mp4 .*wav"),
    "m4a called wav": skipped(unknown(".wav"), "'ffmpeg -i .*0.wav .*0.flac'"),
    "text in place of audio": skipped(write(WAV, "no" * 99), NO_AUDIO),
    "folder in place of a wav": skipped(folder(WAV), "0.wav cannot be op"),
    "wav without samples": skipped(sound(lambda x: x[:0]), "holds no samples"),
    "a single sample": skipped(sound(lambda x: x[:1]), "1 samples .*too short"),
    "NaN in a float wav": skipped(one_sample(np.nan), "NaN or infinite"),
    "infinity in a float wav": skipped(one_sample(np.inf), "NaN or infinite"),
    "1e30 in a float wav": skipped(one_sample(1e30), "spoilt0.wav.*finite"),
    "wav that says it has 4 GHz": skipped(
        edit(WAV, lambda text: text[:24] + "\0\x28\x6b\xee" + text[28:]), WAV
    ),
    "wav shorter than the encoder's field of view": skipped(
        too_short("id == 's1f_joy'", 0.1), NEEDS_400
    ),
    "more unreadable files than max_skipped": refused(
        both(gone(WAV), options("max_skipped=0.05")),
        *("1 of 12 utterances cannot be used", WAV),
        "Mend or remove them, or allow more with max_skipped",
    ),
    "all of the held-out session too short": refused(
        too_short("session == 's1'", 0.5), "no labelled .* in its valid split"
    ),
    "no training speech": refused(too_short("session > 's1'", 0.9), "train"),
    "no training speech, adapter": refused(
        too_short("session > 's1'", 1), "train"
    ),
    "all of a class too short": refused(
        too_short("session != 's1' and emo == 'joy'", 0.9), "class joy"
    ),
    "silent wav": used(sound(np.zeros_like), check=only_the_first_differs),
    "silence throughout": used(silence),
    "silence throughout, adapter": used(silence),
    "stereo wav": used(sound(channels=2), check=same_sound(0.01)),
    "wav at 8 kHz": used(sound(rate=8000), check=same_sound(0.8)),
    "wav at 22.05 kHz": used(sound(rate=22050), check=same_sound(0.2)),
    "wav at 44.1 kHz": used(sound(rate=44100), check=same_sound(0.2)),
    "wav at 48 kHz": used(sound(rate=48000), check=same_sound(0.2)),
    "wav of 24 bits": used(sound(subtype="PCM_24"), check=same_sound(0.05)),
    "wav of 8 bits": used(sound(subtype="PCM_U8"), check=same_sound(0.8)),
    "float wav": used(sound(subtype="FLOAT"), check=same_sound(0.05)),
    "FLAC file": used(sound(suffix=".flac"), check=same_sound(0.05)),
    "samples beyond 1 in a float wav": used(sound(lambda x: 100 * x, "FLOAT")),
    "utterance of 3 minutes": refused(LONG, "s1f_joy has .* fr", "max_frames"),
    "3 minutes, cut": used(both(LONG, CUT_LONG), check=only_the_first_differs),
    "training utterance of 3 minutes is cut, adapter": used(
        both(long_in_training, CUT_LONG)
    ),
}

# The table of one's own corpus -----------------------------------------------


def cell(column, value, row=0):
    """Another value in the table; row may be a slice."""
    return lambda run: run.table.loc.__setitem__((row, column), value)


def column(name, value):
    """The same value in all rows."""
    return cell(name, value, slice(None))


def rows(query):
    """Some rows of the table only."""

    def spoil(run):
        run.table = run.table.query(query).reset_index(drop=True)

    return spoil


def two_emotion_columns(run):
    """The second column emo says the contrary of the first."""
    other = run.table["emo"].map({"joy": "rage", "rage": "joy"})
    run.table = pd.concat([run.table, other], axis=1)


def rename(column, *values):
    """Names that a program may take for something else."""

    def spoil(run):
        names = dict(zip(run.table[column].unique(), values))
        run.table[column] = run.table[column].map(names)
        run.held_out = names.get("s1", "s1") if column == "session" else "s1"

    return spoil


def bytes_as_names(run):
    """Files, and ids after them, whose names are Latin-1, not UTF-8."""
    folder = run.input / os.fsdecode(b"Z\xfcrich")
    folder.mkdir()
    for row, wav in enumerate(run.table["wav"]):
        path = folder / os.fsdecode(b"%d \xe9.wav" % row)
        shutil.copy(wav, path)
        run.table.loc[row, ["id", "wav"]] = path.stem, str(path)


def written_then(before, after):
    """What the table's file says, and what it is to mean."""
    return both(before, TinyRun.write_table, after)


def no_formula(path):
    """Checks that a spreadsheet computes nothing but numbers."""
    table = pd.read_csv(path, dtype=str, header=None, keep_default_na=False)
    for text in table.to_numpy().ravel():
        assert not re.match("=|[-+@].*[^-+.\\w]|-2[+]", text), text
    return "formulas are text"


def no_evil(run):
    """Checks that nothing is called as the id is, in any folder."""
    assert not list(run.folder.rglob("evil*"))
    assert not list(run.folder.parent.glob("evil*"))
    return "no file is called after it"


def official_splits(*first, protocol="predefined"):
    """A column split: test, valid and, of a speaker of the test, train."""
    told = [
        *first,
        *["test", "test", "test", "train", "dev", "dev"][len(first) :],
    ]

    def spoil(run):
        run.table["split"] = told + ["train"] * (len(run.table) - len(told))
        run.options.append(f"--protocol={protocol}")

    return spoil


CSV, UNREADABLE = "own.csv", "own.csv cannot be read"
EVIL = "../../evil"
SAME_SPEAKER = cell("speaker", "s1f", 4)
LEAK = ("speaker s1f", "one session only")
TOO_FEW = "at least two classes"

TABLE = {
    "no table": refused(gone(CSV), "own.csv does not exist"),
    "empty table": refused(write(CSV, ""), UNREADABLE, "No columns"),
    "table with a header only": refused(rows("emo == ''"), "no utterance"),
    "table without speaker and session": refused(
        swap(CSV, "speaker,session", "who,where"),
        "own.csv lacks the columns speaker, session",
    ),
    "table with semicolons": refused(swap(CSV, ",", ";"), "lacks the columns"),
    "binary table": refused(write(CSV, 9 * BINARY), UNREADABLE),
    "folder as table": refused(folder(CSV), f"{UNREADABLE}: .*direct"),
    "table in UTF-16": refused(encode(CSV, "utf-16"), UNREADABLE),
    "table in Latin-1": refused(swap(CSV, "s1f,", "sör,"), UNREADABLE),
    "table with a byte order mark": used(encode(CSV, "utf-8-sig")),
    "too many cells": refused(swap(CSV, "s2m,", "s2m,x,"), "read.*line 8"),
    "too few cells": refused(swap(CSV, "s2m,s2,joy", "s2m"), "own.csv, line 8"),
    "open quotation": refused(swap(CSV, "s2m_joy,", '"s2m_joy,'), UNREADABLE),
    "column emo twice": refused(two_emotion_columns, CSV, "emo"),
    "empty id": refused(cell("id", ""), "line 2: the column id is empty"),
    "empty speaker": refused(cell("speaker", " ", 3), "line 5: .* speaker is "),
    "empty wav": refused(cell("wav", "", 3), "line 5: the column wav is empty"),
    "same id twice": refused(cell("id", "s2f_joy"), "id s2f_joy", "unique"),
    "same id but for spaces": refused(cell("id", " s2f_joy "), "_joy.* unique"),
    "id that leads out of the folder": used(cell("id", EVIL), check=no_evil),
    "id that leads out, adapter": used(cell("id", EVIL, 7), check=no_evil),
    "id that is an absolute path": used(
        lambda run: cell("id", f"{run.folder}/evil")(run), check=no_evil
    ),
    "id with a comma and quotation marks": used(cell("id", 'a,"b",c')),
    "id with a line break": used(cell("id", "a\nb")),
    "ids like numbers and gaps": used(
        cell("id", ["1", "01", "1.0", "NA", "null", "nan"], slice(0, 5))
    ),
    "classes like gaps": used(rename("emo", "NA", "null")),
    "class that may be no label": used(
        cell("emo", "No agreement", 4), "No agreement may stand for no label"
    ),
    "classes like numbers": used(rename("emo", "1", "01")),
    "sessions like paths": used(rename("session", "../s 1", "/s2", "s,3")),
    "classes as markup": used(rename("emo", "$_$", "<b>|*`_\\")),
    "classes as formulas": used(
        rename("emo", "=1+1", "-2+3"),
        check=lambda run: no_formula(run.out / "predictions.csv"),
    ),
    "ids like formulas": used(
        cell("id", ["=A1", "-5", "-3g5yACw"], slice(0, 2)),
        check=lambda run: no_formula(run.out / "corpus.csv"),
    ),
    "classes in other scripts": used(
        rename("emo", "\U0001f600", "\u05d0\u202e")
    ),
    "classes with a line break and NUL": used(rename("emo", "a\nb", "c\0d")),
    "speakers with NUL": used(cell("speaker", "s1f\0\n", slice(0, 1))),
    "wav with NUL": skipped(
        both(cell("wav", "a\0.wav"), options("max_skipped=0.1")),
        "embedded null",
    ),
    "names of files that are no text": used(bytes_as_names),
    "class label": refused(rename("emo", "label", "rage"), "class label"),
    "class id": refused(rename("emo", "id", "rage"), "class id"),
    "labels with spaces": used(
        written_then(
            cell("emo", [" joy", "rage ", "joy\t"], slice(0, 2)),
            cell("emo", ["joy", "rage", "joy"], slice(0, 2)),
        )
    ),
    "label once in capitals": used(cell("emo", "JOY", 4), ".JOY, joy, rage."),
    "label in no class": used(
        both(
            options("classes={joy: [joy], rage: [rage]}"),
            written_then(cell("emo", "fear", 4), cell("emo", "", 4)),
        ),
        "fear",
    ),
    "speaker in two sessions": refused(SAME_SPEAKER, *LEAK),
    "speaker in two sessions, adapter": refused(SAME_SPEAKER, *LEAK),
    "speaker in two sessions, cross_validate": refused(SAME_SPEAKER, *LEAK),
    "speaker in two sessions, in two spellings": refused(
        cell("speaker", "S_01_F", 4),
        "speaker S_01_F in the train .* and speaker s1f in the .* spellings",
        "one session only",
    ),
    "file in two sessions, of two speakers": used(
        lambda run: cell("wav", run.table["wav"][0], 4)(run),
        "Leak: 1 utterances of the held-out session",
    ),
    "single speaker": refused(column("speaker", "anna"), "speaker anna"),
    "single session": refused(column("session", "s1"), "at least 2 .*, .* 1"),
    "two sessions with --protocol=held_out": refused(
        both(rows("session != 's3'"), options("protocol=held_out")),
        "protocol=held_out needs at least 3 sessions",
    ),
    "class that the training sessions lack": refused(
        rows("session == 's1' or emo != 'joy'"),
        "no utterance of the class joy in the training sessions of fold 1",
    ),
    "no joy in held-out session": used(rows("session > 's1' or emo != 'joy'")),
    "single class": refused(rows("emo == 'joy'"), TOO_FEW),
    "official splits that share a speaker": used(
        official_splits(), "Not speaker-indep.*1 is in train and test .s1m"
    ),
    "official splits that share a speaker, adapter": used(
        official_splits(), "Not speaker-indep.*1 is in train and test .s1m"
    ),
    "official splits, adapter_data=all, adapter": used(
        both(official_splits(), options("adapter_data=all")), "held-out"
    ),
    "official splits, the best epoch of a tenth of the labels": used(
        both(
            official_splits(),
            options("model_selection=best", "label_fraction=0.1"),
            options("augmentation=all"),
        )
    ),
    "official splits that are passed over": used(
        official_splits(protocol="paper"), "give --protocol=predefined"
    ),
    "official splits in another column": refused(
        both(
            column("Split_Set", ["Test1", "Dev"] + 10 * ["Train"]),
            options("protocol=predefined"),
        ),
        "needs a column split.* call Split_Set split, if it is that",
    ),
    "official split that may be either": refused(
        official_splits("eval"), "s1f_joy: split=eval is none of"
    ),
    "official splits without valid": refused(
        both(official_splits(), cell("split", "train", slice(4, 5))),
        "split has no valid",
    ),
    "official splits with the same audio": refused(
        both(
            lambda run: cell("wav", run.table["wav"][0], 7)(run),
            official_splits(),
        ),
        "of the test split are the same audio .*s1f_joy and s2m_rage",
    ),
    "official splits, fold 2, cross_validate": refused(
        both(official_splits(), options("folds=2")), "fold 2 .* has one fold"
    ),
    "no official splits": refused(
        options("protocol=predefined"), "needs a column split.* it has id, wav"
    ),
    "sessions called like splits": used(
        both(rename("session", "dev", "test", "train")),
        "called dev, test, train",
    ),
    "no labels": refused(column("emo", ""), TOO_FEW, "emo"),
    "no labels, adapter": used(column("emo", ""), "No probe of .* no labels"),
    "no labels in the held-out session": refused(
        cell("emo", "", slice(0, 3)), "fold 1 has no labelled utterance"
    ),
    "session of one utterance": used(rows("session > 's1' or id == 's1f_joy'")),
    "one training utterance per class": used(rows("speaker in ['s1f', 's2f']")),
    "one utterance, adapter": used(rows("id in ['s1f_joy', 's2f_joy']")),
}

# Utterances that are parts of files ------------------------------------------


def in_one_file(start="start", end="end", unit=1, change=None):
    """All utterances in one file, and columns that say where each is."""

    def spoil(run):
        samples = [soundfile.read(wav)[0] for wav in run.table["wav"]]
        ends = np.cumsum([len(values) for values in samples]) / 16000
        run.table[start] = [0, *ends[:-1] * unit]
        run.table[end] = ends * unit
        path = run.input / "all.flac"
        soundfile.write(path, np.concatenate(samples), 16000)
        run.table["wav"] = str(path)
        if change:
            change(run)
            run.options.append("--max_skipped=0.1")

    return spoil


def as_files_of_their_own(run):
    """Checks that the predictions are those of a file for each utterance."""
    tables = [one.predictions()[0] for one in (run, run.finished("classifier"))]
    pd.testing.assert_frame_equal(*tables)
    return "the predictions are those of a file for each utterance"


PARTS = {
    "start and end within one file": used(
        in_one_file(), check=as_files_of_their_own
    ),
    "start and stop within one file, adapter": used(in_one_file(end="stop")),
    "begin and end within one file": refused(
        in_one_file("begin"), "own.csv has the column begin.*give start and end"
    ),
    "onset and offset in ms within one file": refused(
        in_one_file("onset", "offset", 1000), "own.csv has the column onset"
    ),
    "start and num_frames within one file": refused(
        in_one_file(end="num_frames"), "own.csv has the column num_frames"
    ),
    "start and end in one cell": refused(
        column("segment", "0.0-0.2"), "own.csv has the column segment"
    ),
    "utterance that ends before it starts": refused(
        in_one_file(change=cell("end", 0.1, 3)), "line 5: .* ends at 0.1 s, but"
    ),
    "start that is no number": refused(
        in_one_file("begin", change=column("start", "0:01")),
        "line 2: utterance s1f_joy has start=0:01",
    ),
    "utterance beyond its file": skipped(
        in_one_file(change=cell("end", 9.0)),
        "all.flac lasts 2.400 s, but .* from 0 s to 9 s",
    ),
    "channel of a file": refused(column("channel", "1"), "column channel, but"),
    "one audio under two labels": used(
        lambda run: cell("wav", run.table["wav"][8], 9)(run),
        "2 utterances have the same audio .* another label, first s3f_joy",
    ),
}

# Further corpora of stage 1 --------------------------------------------------


def audio_of(row, name):
    """A wav of b.csv that is that of a row of the corpus."""
    return lambda run: shutil.copy(run.table["wav"][row], run.make_file(name))


def own_table(run):
    """The corpus under test as a further table."""
    run.options.append(f"--corpora={run.csv}")


def heard(*names):
    """Checks which speakers of b.csv the adapter has heard."""

    def check(run):
        tables = read_json(run.out, "adapter.json").get("corpora", [])
        mine = {item["name"]: item["speakers"] for item in tables}.get("b", [])
        assert mine == sorted(names)
        return "heard of it: " + (", ".join(names) or "nobody")

    return check


LEFT_OUT = "1 of the held-out speakers {} are left out"
B, BOTH = "b.csv", heard("anna", "ben")

CORPORA = {
    "further table without a column, adapter": refused(
        swap(B, "speaker", "who"), "b.csv lacks the columns speaker"
    ),
    "further table with an id twice, adapter": refused(
        swap(B, "u1,", "u0,"), "b.csv: the id u0", "unique"
    ),
    "further table without a wav, adapter": refused(
        gone("b1.wav"), "1 of 15 utterances cannot be used, first b/u1.*b1.wav"
    ),
    "further table with an id of the corpus, adapter": used(
        swap(B, "u1", "s2f_joy"), check=BOTH
    ),
    "further table that is the corpus, adapter": used(
        own_table, "own.csv .called own. adds 0 utterances", check=heard()
    ),
    "further table with a held-out speaker, adapter": used(
        swap(B, "ben", "s1f"), LEFT_OUT.format("s1f"), check=heard("anna")
    ),
    "... in another spelling, adapter": used(
        swap(B, "ben", "S_01_F"), LEFT_OUT.format("S_01_F"), check=heard("anna")
    ),
    "... known by the id, adapter": used(
        swap(B, "u1,b1.wav,ben", "s1f_joy,b1.wav,01"),
        *[LEFT_OUT.format("01")],
        check=heard("anna"),
    ),
    "... known by the audio, adapter": used(
        audio_of(0, "b0.wav"),
        "2 of the held-out speakers anna are left out",
        check=heard("ben"),
    ),
    "... of the validation session, adapter": used(
        both(swap(B, "ben", "s2f"), options("protocol=held_out")),
        LEFT_OUT.format("s2f"),
        check=heard("anna"),
    ),
    "further table with a training utterance, adapter": used(
        audio_of(7, "b1.wav"), "before it and train once", check=heard("anna")
    ),
}

# A corpus in IEMOCAP's layout ------------------------------------------------


def delete(pattern):
    """Removes files and folders of the corpus."""

    def spoil(run):
        for path in list(run.make_iemocap().glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def without_session_2(part):
    """Removes a session's folder, or a part of it."""

    def spoil(run):
        delete(f"Session2/{part}")(run)
        is_gone = run.table["session"] == "2"
        if part == "sentences":  # only the turns are known
            run.faulty = list(run.table["id"][is_gone])
            run.options.append("--max_skipped=0.5")
        else:
            run.table = run.table[~is_gone]

    return spoil


TURNS = "Ses02F_impro01.txt"


def no_label(written):
    """A turn of IEMOCAP whose label is none, and all labels as classes."""

    def spoil(run):
        swap(TURNS, "hap", written)(run)
        run.options.append("--classes=all")
        is_spoilt = (run.table["session"] == "2") & (run.table["emo"] == "joy")
        run.table.loc[is_spoilt, "emo"] = ""

    return spoil


def only_real_classes(run):
    """Checks that nothing is a class but what is a label."""
    classes = read_json(run.out, "scores.json")["classes"]
    assert classes == ["ang", "hap"]
    return f"the classes are {', '.join(classes)}"


def other_format(pattern, suffix, keep=False):
    """Audio of the corpus in another format, or in both."""

    def spoil(run):
        for path in run.make_iemocap().glob(f"*/sentences/wav/*/{pattern}"):
            samples, rate = soundfile.read(path)
            kind = suffix[1:].upper()
            soundfile.write(
                path.with_suffix(suffix), samples, rate, format=kind
            )
            if not keep:
                path.unlink()

    return spoil


IEMOCAP = {
    "all audio in FLAC": used(other_format("*", ".flac")),
    "all audio called .WAV": used(other_format("*", ".WAV")),
    "a turn in two formats": refused(
        other_format("*F000.wav", ".flac", keep=True),
        "Ses01F_impro01_F000.wav is the same utterance as .*F000.flac",
    ),
    "turns without agreement": used(no_label("xxx"), check=only_real_classes),
    "turns of another emotion": used(no_label("oth"), check=only_real_classes),
    "no folder of a session": used(without_session_2(""), "differ"),
    "no folder dialog": used(without_session_2("dialog"), "2 is left out"),
    "no folder sentences": skipped(
        without_session_2("sentences"), "Ses02F_impro01_.*wav"
    ),
    "turn without its wav": skipped(
        both(delete("Session1/**/*F000.wav"), options("max_skipped=0.1")),
        "Ses01F_impro01_F000.wav",
    ),
    "no wav at all": refused(delete("*/sentences"), "none of the wav files"),
    "no evaluation file": refused(delete("**/*.txt"), "no evaluation files"),
    "empty evaluation file": refused(write(TURNS, ""), "01.txt holds no turn"),
    "malformed line in an evaluation file": refused(
        swap(TURNS, " - 4.2]", ""), f"{TURNS}, line 3 is no turn.*restore"
    ),
    "binary evaluation file": refused(
        write(TURNS, BINARY), f"{TURNS}.*restore"
    ),
    "evaluation in UTF-16": refused(encode(TURNS, "utf-16"), "01.txt.*restore"),
    "evaluation file in Latin-1": used(swap(TURNS, "% TURN", "% Müller TURN")),
    "evaluation file with a byte order mark": used(encode(TURNS, "utf-8-sig")),
    "evaluation file with a turn twice": refused(
        edit(TURNS, lambda text: text + text.splitlines(keepends=True)[-1]),
        "id Ses02F_impro01_M007.*unique",
    ),
}

# Encoders --------------------------------------------------------------------


def checkpoint(change):
    """A copy of the small HuBERT that is spoilt."""

    def spoil(run):
        folder = run.input / "encoder"
        shutil.copytree(run.make_hubert(), folder)
        change(folder)
        run.options.append(f"--encoder_source={folder}")

    return spoil


def within_another(folder):
    """Weights as a model within another has them."""
    path = folder / "model.safetensors"
    weights = {f"module.model.{k}": w for k, w in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def half(folder):
    """Weights of which the end is missing."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wired(text):
    """Another encoder in the YAML."""
    usual = r"\nencoder: !new.*\n(    .*\n)+"
    return edit(YAML, lambda old: re.sub(usual, f"\nencoder: {text}\n", old))


def speechbrains_wrapper(run):
    """The small HuBERT behind SpeechBrain's own wrapper."""
    name = "!new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2"
    folder = f"\n    source: {run.make_hubert()}\n    save_path: {run.cache}"
    wired(f"{name}{folder}\n    freeze: True")(run)


YAML, POINTER = "mine.yaml", "version https://git-lfs.github.com/spec/v1"
LOBES = "!new:speechbrain.lobes"

ENCODERS = {
    "checkpoint without preprocessor_config.json": refused(
        checkpoint(lambda f: (f / "preprocessor_config.json").unlink()),
        "copy that file .* such as facebook/hubert-base-ls960",
    ),
    "checkpoint of a model within another": used(checkpoint(within_another)),
    "checkpoint of which half is missing": refused(
        checkpoint(half), "model.safetensors is not whole .*download it again"
    ),
    "checkpoint that is a pointer of Git LFS": refused(
        checkpoint(lambda f: (f / "model.safetensors").write_text(POINTER)),
        "pointer of Git LFS.*git lfs pull",
    ),
    "checkpoint for TensorFlow": refused(
        checkpoint(
            lambda f: (f / "model.safetensors").rename(f / "tf_model.h5")
        ),
        "holds no weights: of tf_model.h5, convert it",
    ),
    "checkpoint without model_type": refused(
        checkpoint(lambda f: (f / "config.json").write_text("{}")),
        "config.json names no model_type: write",
    ),
    "SpeechBrain's Fbank as encoder": used(wired(f"{LOBES}.features.Fbank")),
    "SpeechBrain's Fbank as encoder, adapter": used(
        wired(f"{LOBES}.features.Fbank")
    ),
    "SpeechBrain's Wav2Vec2 as encoder": used(speechbrains_wrapper),
    "encoder that gives no frames": refused(
        wired("!new:torch.nn.Flatten"), "encoder .Flatten. gives .1, 16000."
    ),
    "ECAPA-TDNN as encoder": refused(
        wired(f"{LOBES}.models.ECAPA_TDNN.ECAPA_TDNN\n    input_size: 80"),
        "encoder .ECAPA_TDNN. fails on 1 s of sound",
    ),
}

# Places ----------------------------------------------------------------------


def full_disk(size):
    """Lets no file grow beyond a size, as a full disk would."""
    return lambda run: setattr(run, "largest_file", size)


def odd_places(run):
    """Moves all folders to names with spaces and letters of other scripts."""
    folder = run.folder / "Größe 語 # {1}, [2] 'x' = y"
    run.out, run.cache = folder / "aus gabe", folder / "cache é"
    run.input = folder / "ein gabe"
    run.input.mkdir(parents=True)
    run.csv = run.input / "mein körpus, neu.csv"
    for row, entry in run.table.iterrows():
        shutil.copy(entry["wav"], run.spoil(row, " ñ.wav"))


def odd_data_folder(run):
    """Moves a corpus in IEMOCAP's layout to such a name."""
    run.corpus = run.make_iemocap().rename(run.input / "IEMOCAP räkning # 語")


def from_home(run):
    """Writes all paths from the home folder on, wherever it is."""
    home = os.path.expanduser("~")
    run.table["wav"] = [f"~/{os.path.relpath(w, home)}" for w in run.table.wav]
    paths = {"corpus_csv": run.csv, "output_folder": run.out}
    for key, path in {**paths, "cache_folder": run.cache}.items():
        run.options.append(f"--{key}=~/{os.path.relpath(path, home)}")


PLACES = {
    "all paths from ~ on": used(from_home),
    "all paths from ~ on, adapter": used(from_home),
    "all paths from ~ on, cross_validate": refused(
        both(from_home, options("folds=9")), "fold 9 does not exist"
    ),
    "table with a variable that is not set": refused(
        cell("wav", "$NOWHERE/a.wav", 2), "own.csv, line 4: .*NOWHERE is not"
    ),
    "disk full at once": refused(full_disk(3000), "cannot be written|disk"),
    "disk full while features are cached": refused(
        both(
            full_disk(100_000),
            sound(seconds=180, number=30),
            options("max_frames=9100"),
        ),
        "safetensors cannot be written",
    ),
    "disk full while a checkpoint is saved": refused(
        full_disk(30_000), "no checkpoint can be saved", "make room"
    ),
    "spaces and other scripts in all paths": used(odd_places),
    "spaces and other scripts in the data folder": used(odd_data_folder),
}

# Keys of the YAML and options ------------------------------------------------

# The sentence names the key.
VALUES = {
    "classifier": """
        lr=-1 | lr=fast | lr=.nan | classifier_lr=-1 | seed=-1 | fold=one |
        number_of_epochs=0 | batch_size=0 | num_workers=-1 | max_skipped=2 |
        grad_accumulation_factor=0 | precision=fp8 | precision=fp16 |
        device=toaster | skip_prep=no | input_norm=no | d_model=0 | nhead=0 |
        nhead=3 | normalize_before=off | d_ffn=-1 | num_layers=0 | dropout=2 |
        mlp_layers=-1 | max_frames=0 | max_frames=10 | sap_heads=0 |
        variance=other | augmentation=more | augment_mask_ratio=-0.1 |
        augment_mask_span=0 | classes=joy | classes={} | label_fraction=0 |
        classes={a: [joy], b: [joy]} |
        label_fraction=1.5 | label_fraction=.nan | label_fraction=all |
        dialogue_style=sung | protocol=other | model_selection=first |
        class_weights=even | pooled_norm=perhaps | projection_init=pca |
        residual_init=-1 | encoder_layer=7 | encoder_layer=last_but_one |
        encoder_context=half | feature_precision=int8 | feature_workers=-1 |
        learning_rate=1 | number_of_epoch=3 | adapter_folder=nowhere""",
    "adapter": """
        number_of_epochs=many | ckpt_interval_minutes=often | d_model=wide |
        corpus_weight=0 | mlp_residual=no | mask_ratio=2 | mask_span=0 |
        ema_decay=1.5 | ema_decay=slow | ema_decay_start=2 | temperature=0 |
        num_attributes=0 | attribute_update=never | attribute_count_decay=2 |
        attribute_rate=-1 | revive_after=-1 | similarity=dot |
        target_norm=batch | target_smoothing=-1 | predictor_layers=-1 |
        rec_weight_start=.nan | rec_weight_shape=steep | adapter_data=some |
        probe_every=-1 | probe_every=often | probe_utterances=0 |
        probe_utterances=0.5 | fold=4""",
    "compare": """
        label_fractions=0.1,2 | label_fractions=some | label_fraction=no |
        label_fraction=0.1 --label_fractions=0.1,1 | adapter_epochs=0,2 |
        adapter_epochs=two | adapter_epochs=1,2 --label_fractions=0.1,1 |
        adapter_epochs=1,2 --adapter.number_of_epochs=3 | adapters_folder=x |
        adapter_epochs=1,2 --adapter_folder=nowhere""",
    "cross_validate": """
        folds=1,x | seeds=one | adapter_training=maybe |
        adapter_folder=nowhere | adapters_folder=x --adapter_folder=nowhere |
        adapters_folder=x --adapter_training=False""",
}

# The sentence has these words, or the options are used and the log has them.
OPTIONS = r"""
--corpus_csv= --data_folder=nowhere | data_folder=nowhere does not exist
--corpus_csv= --data_folder=own.csv | data_folder=own.csv.*(no|not a) folder
--corpus_csv= --data_folder=.. | no folder Session1
--output_folder=own.csv | own.csv
--output_folder=own.csv/out | own.csv
--output_folder=/proc/nowhere/out | /proc/nowhere
--cache_folder=own.csv | own.csv
--output_folder=$NOWHERE/x | variable .NOWHERE is not set
--cache_folder=~nobody-here/x | no user nobody-here
--corpora=${NOWHERE}/b.csv, adapter | variable .NOWHERE is not set
--encoder_source=$NOWHERE/hubert | variable .NOWHERE is not set
--adapters_folder=$NOWHERE, cross_validate | variable .NOWHERE is not set
--output_folder=$NOWHERE/x, compare | variable .NOWHERE is not set
--cache_folder=/proc/no | /proc has 0 bytes left|/proc/no/.* cannot be written
--classes={a: [joy], b: [fear]} | class b .labels fear.: the corpus has
--encoder_source=no/such | no/such
--encoder_source=no/such --encoder_revision=v1 | no/such .*revision=v1
--encoder_revision=v1 | encoder_revision=v1 is for hub ids, but .* fbank
--system=no | models/no.yaml as .*No such
--skip_prep=True | train.json.*--skip_prep
--lr=1e30 | (nan|NaN|finite).*lower lr
--lr=1e30, adapter | (nan|NaN|finite).*lower lr
--lr=1e30 --protocol=held_out, adapter | (nan|NaN|finite).*lower lr
--folds=1,9, cross_validate | fold 9 does not exist
--adapter.d_model=8, cross_validate | d_model is 8 .* 16
--corpora=no.csv, adapter | no.csv does not exist
--corpora=[5], adapter | has the item 5
--corpora=own.csv,, adapter | without a table
--corpora=own.csv,own.csv, adapter | corpora has own.csv twice
--corpora={table: own.csv, wait: 2}, adapter | key wait
--corpora={table: own.csv, weight: -1}, adapter | own.csv: weight=-1 must be
--corpora={table: own.csv, speakers: x}, adapter | choose one of shared, own
--corpora=own.csv --corpus_csv= --fold=2, adapter | fold=2 means nothing
--corpora=own.csv --corpus_csv= --protocol=held_out, adapter | out means nothing
--corpora=own.csv --corpus_csv= --adapter_data=all, adapter | all means nothing
--corpora=own.csv --corpus_csv=, cross_validate | no corpus given
--corpora=own.csv --adapter_folder=no, cross_validate | --corpora has no effect
--corpora=own.csv --adapter_folder=no, compare | --corpora has no effect
--precision=bf16 | used
--batch_size=1 | used
--batch_size=1, adapter | used
--batch_size=1000 | used
--batch_size=1000, adapter | used
--grad_accumulation_factor=99, adapter | used
--label_fraction=0.01 | used 2 of 8 labelled .* .joy 1, rage 1.
--probe_utterances=1, adapter | used it needs two labels
"""


def split_name(name):
    """Splits a case's name into what is done and the script."""
    what, _, stage = name.rpartition(", ")
    return (what, stage) if stage in SCRIPTS else (name, "classifier")


def typed(name, says):
    """A case whose name begins with its options."""
    texts = split_name(name)[0].removeprefix("--").split(" --")
    if not says.startswith(USED):
        return refused(options(*texts), says)
    return used(options(*texts), says.removeprefix(USED).strip())


NAN_LOSS = "loss is (nan|inf) at optimiser step [2-9].*try a lower lr"
NAN_STEPS = options("lr=1e30", "batch_size=2", "number_of_epochs=2")

KEYS = {
    **{
        name: typed(name, rf"\b{re.match(r'--([^=]+)', name)[1]}\b")
        for stage, values in VALUES.items()
        for value in values.split("|")
        for name in [f"--{value.strip()}, {stage}"]
    },
    **{
        name: typed(name, says)
        for line in OPTIONS.strip().splitlines()
        for name, _, says in [line.partition(" | ")]
    },
    "loss that becomes NaN": refused(NAN_STEPS, NAN_LOSS),
    "loss that becomes NaN, adapter": refused(NAN_STEPS, NAN_LOSS),
}

# Files that a user writes, and those of earlier runs -------------------------


def yaml_path(change):
    """Another path in the YAML's place."""
    return lambda run: setattr(run, "hparams", [change(run.hparams[0])])


def entry(remove=None, **changes):
    """Another value in the first entry of the test manifest."""

    def change(text):
        entries = json.loads(text)
        first = next(iter(entries.values()))
        first.update(changes)
        first.pop(remove, None)
        return json.dumps(entries)

    return edit("test.json", change)


def adapter_folder(*wanted):
    """Takes the adapter of another run."""

    def spoil(run):
        run.options.append(f"--adapter_folder={run.finished(*wanted).out}")

    return spoil


def universal_adapter(run):
    """Takes an adapter that has the corpus as a further table."""
    further = f"--corpora={run.finished('classifier').csv}"
    adapter_folder("adapter", "--corpus_csv=", further)(run)


def last_of_two_is_cut(run):
    """Cuts the newest of two checkpoints of an earlier run."""
    earlier = run.finished("classifier", "--number_of_epochs=2")
    shutil.copytree(earlier.out, run.out)
    last = Checkpointer(run.out / "save").find_checkpoint()
    path = last.paramfiles["model"]
    path.write_bytes(path.read_bytes()[:1000])
    run.options.append("--number_of_epochs=3")


def earlier_run_with_adapter(run):
    """Goes on without the adapter that an earlier run had."""
    adapter = f"--adapter_folder={run.finished('adapter').out}"
    shutil.copytree(run.finished("classifier", adapter).out, run.out)


def other_wav(run):
    """A manifest that names another wav than it was made of."""
    soundfile.write(run.spoil(0), make_samples(number=20), 16000)
    entry(wav=run.table["wav"][0])(run)


RECORD, SETTINGS = "adapter.json", "settings.json"
TRAIN, TEST = "train.json", "test.json"
ENTRY = "test.json: utterance s1f_joy"

SCHEDULE = """lr_schedule: !new:speechbrain_wap.schedules.Schedule
    start: 1.0
    end: 0.0
    shape: cosine
"""
NEW_BOB = """lr_schedule: !new:speechbrain.nnet.schedulers.NewBobScheduler
    initial_value: 1.0
"""

FILES = {
    "no YAML": refused(gone(YAML), "mine.yaml cannot be read: No such file"),
    "folder as YAML": refused(folder(YAML), "cannot be read"),
    "empty YAML": refused(write(YAML, ""), YAML),
    "YAML that is a list": refused(write(YAML, "[1, 2]\n"), YAML),
    "YAML that is none": refused(append(YAML, "\n}: [\n"), "mine.yaml.* line"),
    "binary YAML": refused(write(YAML, BINARY), YAML),
    "key twice": refused(append(YAML, "\nseed: 1\n"), "mine.yaml.*seed"),
    "YAML without a key": refused(swap(YAML, "\nfold: 1\n", "\n"), "l.*fold"),
    "YAML with a class that does not exist": refused(
        swap(YAML, "Augmentation", "Augment"),
        "mine.yaml: .*no such class as speechbrain_wap.augmentation.Augment",
    ),
    "YAML that includes a file that is not there": refused(
        swap(YAML, "wap_sap.yaml", "sap_wap.yaml"),
        "mine.yaml includes .*sap_wap.yaml as system.*No such file",
    ),
    "YAML without features": refused(
        swap(YAML, "feature_cache: !new", "feature_cache: null\nspare: !new"),
        "mine.yaml: feature_cache is null",
    ),
    "YAML without a plan of folds": refused(
        swap(YAML, "fold_plan: !new", "fold_plan: null\nspare: !new"),
        "mine.yaml: fold_plan is null",
    ),
    "schedule of another kind": refused(
        swap(YAML, SCHEDULE, NEW_BOB),
        "lr_schedule .NewBobScheduler.*speechbrain_wap.schedules.Schedule",
    ),
    "schedule of another kind, adapter": refused(
        swap(YAML, SCHEDULE, NEW_BOB), "lr_schedule .NewBobScheduler"
    ),
    "parts that do not fit together, adapter": refused(
        options("local_attributes={dim: 12}"),
        "adapter.yaml: local_attributes .LocalAttributes. fails in a step",
    ),
    "cost of log-probabilities": refused(
        swap(YAML, "functional.cross_entropy", "functional.nll_loss"),
        "compute_cost .nll_loss. fails .* it is negative",
    ),
    "option that no loader takes": refused(
        swap(YAML, "\ndataloader_options:", "\ndataloader_options:\n    x: 1"),
        "dataloader_options fails .* argument 'x'",
    ),
    "key that nothing reads": used(append(YAML, "\nlearning_rate: 5\n")),
    "YAML of the other stage": refused(
        yaml_path(lambda path: path.with_name("adapter.yaml")),
        "adapter.yaml is not for this script",
    ),
    "manifest that is no JSON": refused(cut(TEST, -20), "cannot be read"),
    "manifest that is a list": refused(write(TEST, "[1, 2]"), TEST),
    "entry that is a number": refused(write(TEST, '{"a": 1}'), "utterance a"),
    "empty training manifest": refused(write(TRAIN, "{}"), f"{TRAIN} is empty"),
    "empty test manifest": refused(write(TEST, "{}"), "in its test split"),
    "entry without wav": refused(entry("wav"), f"{ENTRY} lacks wav"),
    "entry with a number as wav": refused(entry(wav=5, digest="0" * 32), ENTRY),
    "entry whose digest leads elsewhere": refused(entry(digest=EVIL), ENTRY),
    "entry whose wav has changed": refused(other_wav, "s1f_joy|spoilt0.wav"),
    "entry with a speaker of another split": refused(
        entry(speaker="s2f"), "speaker s2f is in both"
    ),
    "entry with another label": refused(entry(label="fear"), "class fear"),
    "adapter folder of a classifier": refused(
        adapter_folder("classifier"), "holds no adapter.json.*train_adapter.py"
    ),
    "adapter of another d_model": refused(
        adapter_folder("adapter", "--d_model=8"),
        "was trained with d_model=8, but the classifier's is 16",
    ),
    "adapter of another fold": refused(
        both(adapter_folder("adapter"), options("fold=2")),
        "speaker s2f.*same fold",
    ),
    "adapter of another fold, cross_validate": refused(
        adapter_folder("adapter"),
        "fold 2: speaker s2f.*may be used with --folds=1",
    ),
    "adapter that has heard all as a further table": refused(
        universal_adapter,
        "speaker s1f .*in the table own of corpora .s1f_joy is the same audio",
    ),
    "adapter.json that is no JSON": refused(cut(RECORD, -20), RECORD),
    "adapter.json of another program": refused(write(RECORD, "{}"), RECORD),
    "settings.json that is no JSON": refused(cut(SETTINGS, -20), SETTINGS),
    "the only checkpoint was cut": refused(
        both(cut("CKPT*/model.ckpt", 1000), options("number_of_epochs=2")),
        "model.ckpt is damaged.*delete .*save",
    ),
    "the last of two checkpoints was cut": used(
        last_of_two_is_cut,
        "model.ckpt is damaged: the checkpoint before it is used",
    ),
    "output folder of a run with an adapter": refused(
        earlier_run_with_adapter,
        "another value of the adapter .adapter_folder.",
    ),
    "output folder of a run with another lr": refused(
        both(edit(SETTINGS, str), options("lr=0.5")), "lr=0.001 .now 0.5"
    ),
}

CASES = {**AUDIO, **TABLE, **PARTS, **CORPORA, **IEMOCAP, **ENCODERS}
CASES |= {**PLACES, **KEYS, **FILES}

SHORT = {
    *("missing wav", "wav of which half is missing", "silent wav"),
    *("more unreadable files than max_skipped", "wav at 22.05 kHz"),
    *("1e30 in a float wav", "3 minutes, cut"),
    *("table in UTF-16", "too few cells", "id with a line break"),
    *("classes as formulas", "names of files that are no text"),
    *("classes with a line break and NUL", "wav with NUL"),
    *("id that leads out of the folder", "label in no class"),
    "official splits that share a speaker, adapter",
    *("official split that may be either", "sessions called like splits"),
    *("speaker in two sessions", "speaker in two sessions, adapter"),
    *("speaker in two sessions, cross_validate", "no labels, adapter"),
    "start and end within one file",
    "further table with a held-out speaker, adapter",
    "... known by the audio, adapter",
    *(
        "turn without its wav",
        "turns without agreement",
        "malformed line in an evaluation file",
    ),
    *("--corpus_csv= --data_folder=nowhere", "all paths from ~ on"),
    *("disk full while a checkpoint is saved", "--output_folder=own.csv/out"),
    *("spaces and other scripts in all paths", "loss that becomes NaN"),
    *("--lr=fast, classifier", "--learning_rate=1, classifier", "key twice"),
    *("--fold=4, adapter", "--adapter_epochs=two, compare"),
    *("--folds=1,9, cross_validate", "--batch_size=1000"),
    *("--encoder_source=no/such", "encoder that gives no frames"),
    *("YAML with a class that does not exist", "manifest that is no JSON"),
    *("entry with a speaker of another split", "adapter of another fold"),
    *("the last of two checkpoints was cut", "adapter.json that is no JSON"),
    "output folder of a run with another lr",
}
assert SHORT <= CASES.keys()

# The tests -------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The corpus before it is spoilt."""
    return make_table(tmp_path_factory.mktemp("wavs"))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    """Runs a script on the corpus as it is, once for the same options."""
    cache = tmp_path_factory.mktemp("features")
    runs = {}

    def find(stage, *options):
        if (stage, options) not in runs:
            folder = tmp_path_factory.mktemp("run")
            run = TinyRun(folder, table, cache, stage)
            run.options += options
            run.start()
            run.check_numbers()
            runs[stage, options] = run
        return runs[stage, options]

    find("classifier")
    gc.freeze()  # keeps the garbage collector off all that is imported by now
    yield find
    gc.unfreeze()


@pytest.fixture(scope="module")
def hubert(make_checkpoint, tmp_path_factory):
    """Makes the small HuBERT once, for whom needs it."""
    path = tmp_path_factory.mktemp("hubert")

    def find():
        is_made = (path / "config.json").is_file()
        return path if is_made else make_checkpoint(path, "hubert")

    return find


@pytest.fixture
def run(name, table, finished, hubert, tmp_path, monkeypatch):
    """A run that is still to be spoilt."""
    cache = finished("classifier").cache
    run = TinyRun(tmp_path, table, cache, split_name(name)[1], finished)
    run.make_hubert = hubert
    monkeypatch.chdir(run.input)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return run


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SHORT else pytest.mark.long)
        for name in CASES
    ],
)
def test_bad_input_is_refused_skipped_or_used(name, run, record_fault):
    case = CASES[name]
    case.fault(run)
    before = run.results()
    if case.outcome == REFUSED:
        with pytest.raises(RecipeError) as error:
            run.start()
        assert run.results() == before
        said = happened = str(error.value)
        assert len(said.splitlines()) == 1
        kept = "all files that were there; no results were written"
    else:
        run.start()
        run.check_numbers()
        reasons = run.skipped()
        kept = f"the other {len(run.table) - len(reasons)} utterances"
        if case.outcome == SKIPPED:
            assert list(reasons) == run.faulty
            said = reasons[run.faulty[0]]
            happened = f"skipped, listed: {said}"
        else:
            assert not reasons
            said = (run.out / "log.txt").read_text("utf-8")
            happened, kept = "used", f"all {len(run.table)} utterances"
    for part in case.says:
        assert re.search(part, said), said
    if case.check:
        happened = f"{happened}; {case.check(run)}"
    if case.outcome == USED and any(case.says):
        lines = said.splitlines()
        line = next(x for x in lines if re.search(case.says[0], x))
        happened = f"used; said: {line.split(' - ')[-1]}"
    record_fault("bad input", name, happened, kept)
