"""What a user may get wrong, and what the scripts make of it.

Each case ends in one of three ways: REFUSED with a sentence that names the
file, utterance or key and the cure; SKIPPED, the rest being used, and listed
with its reason; USED as it was meant. `make test` runs those in SHORT, `make
faults` all.
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
from safetensors.torch import load_file
from tiny_run import TinyRun, make_samples, make_table

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.checkpoints import Checkpointer

REFUSED, SKIPPED, USED = "refused", "skipped", "used"


class Case(NamedTuple):
    """A fault and how a run with it has to end.

    fault(run) spoils what it likes. All regular expressions of says are in the
    sentence, the reason of the listing, or the log. check(run) follows the run.
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
    return lambda run: run.options.extend(f"--{text}" for text in texts)


def both(*faults):
    """Several faults, one after the other."""

    def spoil(run):
        for fault in faults:
            fault(run)

    return spoil


# Audio -----------------------------------------------------------------------


def audio(write, suffix=".wav"):
    """A fault in the file of the first utterance, which is tested on."""
    return both(
        lambda run: write(run.spoil(0, suffix)), options("max_skipped=0.1")
    )


def samples(subtype="PCM_16", suffix=".wav", change=None, **kwargs):
    """The first utterance's sound in other samples."""

    def write(path):
        values = make_samples(**kwargs)
        values = change(values) if change else values
        soundfile.write(path, values, kwargs.get("rate", 16000), subtype)

    return audio(write, suffix)


def first(count):
    """Only the first samples."""
    return samples(change=lambda values: values[:count])


def times(factor):
    """Louder samples in a float wav."""
    return samples("FLOAT", change=lambda values: factor * values)


def one_sample(value):
    """A value in the middle of the samples of a float wav."""

    def change(values):
        values[len(values) // 2] = value
        return values

    return samples("FLOAT", change=change)


def spoil_bytes(change):
    """A wav with other bytes."""

    def write(path):
        soundfile.write(path, make_samples(), 16000)
        path.write_bytes(change(path.read_bytes()))

    return audio(write)


def cut(share):
    """A wav whose end is missing."""
    return spoil_bytes(lambda content: content[: int(share * len(content))])


def same_sound(tolerance):
    """Checks that the features are nearly those of the plain wav."""

    def check(run):
        manifest = json.loads((run.out / "test.json").read_text("utf-8"))
        digest = manifest[run.table["id"][0]]["digest"]
        key = run.plain_entry.parents[1]
        entry = key / digest[:2] / f"{digest}.safetensors"
        feats = load_file(entry)["feats"].float()
        plain = load_file(run.plain_entry)["feats"].float()
        assert feats.shape == plain.shape
        difference = (feats - plain).norm() / (plain - plain.mean()).norm()
        assert difference < tolerance
        only_the_first_differs(run)
        return "its features are those of the same sound as a plain wav"

    return check


def only_the_first_differs(run):
    """Checks that the other predictions are as if nothing had happened."""
    table, classes = run.predictions()
    mine = table.set_index("id").drop(index=run.table["id"][0], errors="ignore")
    other = run.reference.set_index("id").loc[mine.index]
    assert np.allclose(mine[classes], other[classes], atol=1e-5)
    return "the other predictions are as they are without it"


def silence(run):
    """Zeros in all files, of other lengths, so that they are not one file."""
    for row in range(len(run.table)):
        soundfile.write(run.spoil(row), np.zeros(3000 + row), 16000)


def too_short(choose, allowed):
    """Files of 300 samples where choose(row) says so; HuBERT needs 400."""

    def spoil(run):
        for row, entry in run.table.iterrows():
            if choose(entry):
                values = make_samples(number=row)[:300]
                soundfile.write(run.spoil(row), values, 16000)
        run.options.append(f"--encoder_source={run.make_hubert()}")
        run.options.append(f"--max_skipped={allowed}")

    return spoil


def long_in_training(run):
    """A training utterance of 3 minutes."""
    soundfile.write(run.spoil(7), make_samples(180), 16000)


NO_AUDIO = "cannot be read as audio"
MISSING = audio(lambda path: None)
CUT_LONG = options("long_utterances=cut")

AUDIO = {
    "missing wav": skipped(MISSING, "No such file"),
    "wav of 0 bytes": skipped(audio(Path.touch), NO_AUDIO),
    "wav that ends within its header": skipped(cut(0.003), NO_AUDIO),
    "wav of which half is missing": skipped(cut(0.5), "is cut: .* bytes"),
    "text in place of audio": skipped(
        spoil_bytes(lambda _: b"no" * 99), NO_AUDIO
    ),
    "folder in place of a wav": skipped(
        audio(Path.mkdir), "0.wav cannot be op"
    ),
    "wav without samples": skipped(first(0), "holds no samples"),
    "a single sample": skipped(first(1), "1 samples at 16000 Hz are too short"),
    "NaN in a float wav": skipped(one_sample(np.nan), "NaN or infinite"),
    "infinity in a float wav": skipped(one_sample(np.inf), "NaN or infinite"),
    "1e30 in a float wav": skipped(one_sample(1e30), "spoilt0.wav.*finite"),
    "wav that says it has 4 GHz": skipped(
        spoil_bytes(lambda old: old[:24] + b"\0\x28\x6b\xee" + old[28:]),
        "spoilt0.wav",
    ),
    "wav shorter than the encoder's field of view": skipped(
        too_short(lambda entry: entry["id"] == "s1f_joy", 0.1),
        "300 samples at 16000 Hz are too short.*needs 400",
    ),
    "more unreadable files than max_skipped": refused(
        both(MISSING, options("max_skipped=0.05")),
        *("1 of 12 utterances cannot be used", "spoilt0.wav"),
        "Mend or remove them, or allow more with max_skipped",
    ),
    "all of the held-out session too short": refused(
        too_short(lambda entry: entry["session"] == "s1", 0.5),
        "no labelled utterance in its valid split",
    ),
    "all training sessions too short": refused(
        too_short(lambda entry: entry["session"] != "s1", 0.9), "train"
    ),
    "all training sessions too short, adapter": refused(
        too_short(lambda entry: entry["session"] != "s1", 1.0),
        "train",
        stage="adapter",
    ),
    "all of a class too short": refused(
        too_short(
            lambda row: row["session"] != "s1" and row["emo"] == "joy", 0.9
        ),
        "class joy",
    ),
    "silent wav": used(
        samples(change=np.zeros_like), check=only_the_first_differs
    ),
    "silence throughout": used(silence),
    "silence throughout, adapter": used(silence, stage="adapter"),
    "stereo wav": used(samples(channels=2), check=same_sound(0.01)),
    "wav at 8 kHz": used(samples(rate=8000), check=same_sound(0.8)),
    "wav at 22.05 kHz": used(samples(rate=22050), check=same_sound(0.2)),
    "wav at 44.1 kHz": used(samples(rate=44100), check=same_sound(0.2)),
    "wav at 48 kHz": used(samples(rate=48000), check=same_sound(0.2)),
    "wav of 24 bits": used(samples("PCM_24"), check=same_sound(0.05)),
    "wav of 8 bits": used(samples("PCM_U8"), check=same_sound(0.8)),
    "float wav": used(samples("FLOAT"), check=same_sound(0.05)),
    "FLAC file": used(samples(suffix=".flac"), check=same_sound(0.05)),
    "samples beyond 1 in a float wav": used(times(100)),
    "utterance of 3 minutes": refused(
        samples(seconds=180), "s1f_joy has .* frames", "max_frames"
    ),
    "utterance of 3 minutes, cut": used(
        both(samples(seconds=180), CUT_LONG), check=only_the_first_differs
    ),
    "training utterance of 3 minutes, cut": used(
        both(long_in_training, CUT_LONG), stage="adapter"
    ),
}

# The table of one's own corpus -----------------------------------------------


def cell(column, value, row=0):
    """Another value in the table; row may be a slice."""
    return lambda run: run.table.loc.__setitem__((row, column), value)


def column(name, value):
    """The same value in all rows."""
    return cell(name, value, slice(None))


def table_file(write):
    """Another file in the table's place."""
    return both(TinyRun.write_table, lambda run: write(run.csv))


def encoded(encoding, change=str):
    """The table's file in another encoding, maybe with another text."""
    return table_file(
        lambda path: path.write_bytes(
            change(path.read_text("utf-8")).encode(encoding)
        )
    )


def replace(old, new, encoding="utf-8"):
    """Another text in the table."""
    return encoded(encoding, lambda text: text.replace(old, new))


def rows(choose):
    """Some rows of the table only."""

    def spoil(run):
        keep = [choose(entry) for _, entry in run.table.iterrows()]
        run.table = run.table[keep].reset_index(drop=True)

    return spoil


def as_folder(path):
    """A folder in a file's place."""
    path.unlink()
    path.mkdir()


def two_emotion_columns(run):
    """The second column emo says the contrary of the first."""
    other = run.table["emo"].map({"joy": "rage", "rage": "joy"})
    run.table = pd.concat([run.table, other], axis=1)


def rename(column, *values):
    """Names that a program may take for something else."""

    def spoil(run):
        old = list(dict.fromkeys(run.table[column]))
        names = dict(zip(old, values))
        run.table[column] = run.table[column].map(names)
        run.held_out = names.get("s1", "s1") if column == "session" else "s1"

    return spoil


def written_then(before, after):
    """What the table's file says, and what it is to mean."""
    return both(before, TinyRun.write_table, after)


def keep_session_1(keep):
    """All rows of the other sessions, and some of the held-out one."""
    return rows(lambda row: row["session"] != "s1" or keep(row))


def no_evil(run):
    """Checks that nothing is called as the id is, in any folder."""
    assert not list(run.folder.rglob("evil*"))
    assert not list(run.folder.parent.glob("evil*"))
    return "no file is called after it"


EVIL = "../../evil"
ABSOLUTE = lambda run: cell("id", f"{run.folder}/evil")(run)  # noqa: E731
UNREADABLE = "own.csv cannot be read"
SAME_SPEAKER = cell("speaker", "s1f", 4)
LEAK = ("speaker s1f", "one session only")

TABLE = {
    "no table": refused(table_file(Path.unlink), "own.csv does not exist"),
    "empty table": refused(
        encoded("utf-8", lambda text: ""), UNREADABLE, "No columns"
    ),
    "table with a header only": refused(rows(lambda _: False), "no utterance"),
    "table without speaker and session": refused(
        lambda run: run.table.drop(
            columns=["speaker", "session"], inplace=True
        ),
        "own.csv lacks the columns speaker, session",
    ),
    "table with semicolons": refused(replace(",", ";"), "lacks the columns"),
    "binary table": refused(
        table_file(lambda path: path.write_bytes(bytes(range(256)) * 9)),
        UNREADABLE,
    ),
    "folder as table": refused(
        table_file(as_folder), f"{UNREADABLE}: .*direct"
    ),
    "table in UTF-16": refused(encoded("utf-16"), UNREADABLE),
    "table in Latin-1": refused(replace("s1f,", "sör,", "latin-1"), UNREADABLE),
    "table with a byte order mark": used(encoded("utf-8-sig")),
    "row with too many cells": refused(
        replace("s2m,", "s2m,x,"), f"{UNREADABLE}.*line 8"
    ),
    "row with too few cells": refused(
        replace("s2m,s2,joy", "s2m"), "own.csv, line 8"
    ),
    "quotation mark that never ends": refused(
        replace("s2m_joy,", '"s2m_joy,'), UNREADABLE
    ),
    "column emo twice": refused(two_emotion_columns, "own.csv", "emo"),
    "empty id": refused(cell("id", ""), "line 2: the column id is empty"),
    "empty speaker": refused(
        cell("speaker", " ", 3), "line 5: .* speaker is emp"
    ),
    "empty wav": refused(cell("wav", "", 3), "line 5: the column wav is empty"),
    "same id twice": refused(cell("id", "s2f_joy"), "id s2f_joy", "unique"),
    "same id but for spaces": refused(
        cell("id", " s2f_joy "), "s2f_joy", "unique"
    ),
    "id that leads out of the folder": used(cell("id", EVIL), check=no_evil),
    "id that leads out of the folder, adapter": used(
        cell("id", EVIL, 7), stage="adapter", check=no_evil
    ),
    "id that is an absolute path": used(ABSOLUTE, check=no_evil),
    "id with a comma and quotation marks": used(cell("id", 'a,"b",c')),
    "id with a line break": used(cell("id", "a\nb")),
    "ids like numbers and gaps": used(
        cell("id", ["1", "01", "1.0", "NA", "null", "nan"], slice(0, 5))
    ),
    "classes like gaps": used(rename("emo", "NA", "null")),
    "classes like numbers": used(rename("emo", "1", "01")),
    "sessions like paths": used(rename("session", "../s 1", "/s2", "s,3")),
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
    "speaker in two sessions, adapter": refused(
        SAME_SPEAKER, *LEAK, stage="adapter"
    ),
    "speaker in two sessions, cross-validation": refused(
        SAME_SPEAKER, *LEAK, stage="cross_validate"
    ),
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
    "single session": refused(
        column("session", "s1"), "at least 2 .*, .* has 1"
    ),
    "two sessions with --protocol=held_out": refused(
        both(
            rows(lambda row: row["session"] != "s3"),
            options("protocol=held_out"),
        ),
        "protocol=held_out needs at least 3 sessions",
    ),
    "class that the training sessions lack": refused(
        rows(lambda row: row["session"] == "s1" or row["emo"] != "joy"),
        "no utterance of the class joy in the training sessions of fold 1",
    ),
    "class that the held-out session lacks": used(
        keep_session_1(lambda row: row["emo"] != "joy")
    ),
    "single class": refused(
        rows(lambda row: row["emo"] == "joy"), "at least two classes"
    ),
    "no labels": refused(column("emo", ""), "at least two classes", "emo"),
    "no labels, adapter": used(
        column("emo", ""), "No probe of the .* no labels", stage="adapter"
    ),
    "no labels in the held-out session": refused(
        cell("emo", "", slice(0, 3)), "fold 1 has no labelled utterance"
    ),
    "session of one utterance": used(
        keep_session_1(lambda row: "f_joy" in row["id"])
    ),
    "one training utterance per class": used(
        rows(lambda row: row["speaker"] in ("s1f", "s2f"))
    ),
    "one training utterance, adapter": used(
        rows(lambda row: row["id"] in ("s1f_joy", "s2f_joy")), stage="adapter"
    ),
}

# Further corpora of stage 1 ---------------------------------------------------

ALONE = "corpus_csv="  # no corpus under test


def further(*entries, change=None, more=()):
    """A table b.csv beside the corpus, with (speaker, row) entries.

    An entry with a row has the audio of that row of the corpus. change spoils
    the table, its file or its audio.
    """

    def spoil(run):
        found = entries or [("anna", None), ("ben", None)]
        table = []
        for number, (speaker, row) in enumerate(found):
            wav = run.input / f"b{number}.wav"
            if row is None:
                values = make_samples(number=50 + number)
                soundfile.write(wav, values, 16000)
            else:
                shutil.copy(run.table["wav"][row], wav)
            table.append([f"u{number}", wav.name, speaker, "x", ""])
        columns = ["id", "wav", "speaker", "session", "emo"]
        path = run.input / "b.csv"
        pd.DataFrame(table, columns=columns).to_csv(path, index=False)
        if change:
            change(path)
        run.options += [f"--corpora={path}", *(f"--{text}" for text in more)]

    return spoil


def further_speakers(*names, change=None, more=()):
    """The table b.csv with a new utterance of each speaker."""
    return further(*((n, None) for n in names), change=change, more=more)


def corpora(value, *more):
    """The table b.csv with another value of the key."""
    return further(more=[f"corpora={value}", *more])


def edit(old, new):
    """Another text in the further table."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


def own_table(run):
    """The corpus under test as a further table."""
    run.options.append(f"--corpora={run.csv}")


def adapter_has_heard(fault, says, *names):
    """A case of stage 1 in which the adapter hears these speakers of b.csv."""

    def check(run):
        record = json.loads((run.out / "adapter.json").read_text("utf-8"))
        tables = {item["name"]: item for item in record.get("corpora", [])}
        mine = tables.get("b", {"speakers": []})
        assert mine["speakers"] == sorted(names)
        return "heard of it: " + (", ".join(names) or "nobody")

    return used(fault, says, stage="adapter", check=check)


def refused_corpora(fault, *says, stage="adapter"):
    """A case that is refused in stage 1, or elsewhere."""
    return refused(fault, *says, stage=stage)


NO_EFFECT = "--corpora has no effect with --adapter_folder"
EARLIER = "adapter_folder=nowhere"
HELD_OUT = "1 of the held-out speakers"

CORPORA = {
    "further table that does not exist": refused_corpora(
        corpora("nowhere.csv"), "nowhere.csv does not exist"
    ),
    "further table without a column": refused_corpora(
        further(change=edit("speaker", "who")),
        "b.csv lacks the columns speaker",
    ),
    "further table with an id twice": refused_corpora(
        further(change=edit("u1,", "u0,")), "b.csv: the id u0", "unique"
    ),
    "further table without a wav": refused_corpora(
        further(change=lambda path: (path.parent / "b1.wav").unlink()),
        "1 of 14 utterances cannot be used, first b/u1.*b1.wav",
    ),
    "further table with an id of the corpus": adapter_has_heard(
        further(change=edit("u1", "s1f_joy")), "", "anna", "ben"
    ),
    "further table that is the corpus": adapter_has_heard(
        own_table, "own.csv .called own. adds 0 utterances"
    ),
    "further table with a held-out speaker": adapter_has_heard(
        further_speakers("s1f", "anna"), f"{HELD_OUT} s1f are left out", "anna"
    ),
    "... in another spelling": adapter_has_heard(
        further_speakers("S_01_F", "anna"),
        f"{HELD_OUT} S_01_F are left",
        "anna",
    ),
    "... known by the id": adapter_has_heard(
        further_speakers("01", "anna", "2", change=edit("u0,", "s1f_joy,")),
        *(f"{HELD_OUT} 01 are left out", "2", "anna"),
    ),
    "... known by the audio": adapter_has_heard(
        further(("anna", 0), ("anna", None), ("ben", None)),
        *("2 of the held-out speakers anna are left out", "ben"),
    ),
    "... of the validation session": adapter_has_heard(
        further_speakers("s2f", "anna", more=["protocol=held_out"]),
        *(f"{HELD_OUT} s2f are left out", "anna"),
    ),
    "further table with a training utterance": adapter_has_heard(
        further(("anna", 7), ("ben", None)), "before it and train once", "ben"
    ),
    "--corpora=5": refused_corpora(options("corpora=[5]"), "has the item 5"),
    "--corpora=b.csv,": refused_corpora(corpora("b.csv,"), "without a table"),
    "--corpora=b.csv,b.csv": refused_corpora(
        corpora("b.csv,b.csv"), "corpora has b.csv twice"
    ),
    "--corpora={table: b.csv, wait: 2}": refused_corpora(
        corpora("{table: b.csv, wait: 2}"), "key wait"
    ),
    "--corpora={table: b.csv, weight: -1}": refused_corpora(
        corpora("{table: b.csv, weight: -1}"),
        "weight=-1 of b.csv must be within",
    ),
    "--corpora={table: b.csv, speakers: mine}": refused_corpora(
        corpora("{table: b.csv, speakers: mine}"), "choose shared or own"
    ),
    "--corpora alone, --fold=2": refused_corpora(
        corpora("b.csv", ALONE, "fold=2"), "fold=2 means nothing"
    ),
    "--corpora alone, --protocol=held_out": refused_corpora(
        corpora("b.csv", ALONE, "protocol=held_out"), "held_out means nothing"
    ),
    "--corpora alone, --adapter_data=all": refused_corpora(
        corpora("b.csv", ALONE, "adapter_data=all"), "=all means nothing"
    ),
    "--corpora alone, cross-validation": refused_corpora(
        corpora("b.csv", ALONE), "no corpus given", stage="cross_validate"
    ),
    "--corpora and --adapter_folder, comparison": refused_corpora(
        corpora("b.csv", EARLIER), NO_EFFECT, stage="compare"
    ),
    "--corpora and --adapter_folder, cross-validation": refused_corpora(
        corpora("b.csv", EARLIER), NO_EFFECT, stage="cross_validate"
    ),
}

# A corpus in IEMOCAP's layout ------------------------------------------------


def iemocap(change):
    """A fault in the release; change gets the run and session 2's folder."""
    return lambda run: change(run, run.make_iemocap() / "Session2")


def evaluation(change, encoding="utf-8"):
    """Another text of an evaluation file."""

    def spoil(run, folder):
        path = folder / "dialog" / "EmoEvaluation" / "Ses02F_impro01.txt"
        path.write_bytes(change(path.read_text("utf-8")).encode(encoding))

    return iemocap(spoil)


def delete(pattern):
    """Removes files and folders of the corpus."""

    def spoil(run, folder):
        for path in list(run.corpus.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def without_session(run, folder):
    """Removes a session's folder."""
    shutil.rmtree(folder)
    rows(lambda row: row["session"] != folder.name[-1])(run)


def without(part):
    """Removes a part of a session's folder."""

    def spoil(run, folder):
        shutil.rmtree(folder / part)
        is_gone = run.table["session"] == folder.name[-1]
        if part == "dialog":  # nothing is known of its turns
            run.table = run.table[~is_gone]
        run.faulty = list(run.table["id"][is_gone])
        run.options.append("--max_skipped=0.5")

    return iemocap(spoil)


def corpus_folder(make):
    """Another folder of the corpus."""
    return lambda run: setattr(run, "corpus", make(run))


def a_file(run):
    """Names a file where a folder is meant."""
    path = run.input / "file.txt"
    path.write_text("no folder")
    return path


IEMOCAP = {
    "no data folder": refused(
        corpus_folder(lambda run: run.input / "nowhere"),
        "data_folder=.*nowhere does not exist",
    ),
    "file as data folder": refused(
        corpus_folder(a_file), "data_folder=.*file.txt.*(no|not a) folder"
    ),
    "data folder without sessions": refused(
        corpus_folder(lambda run: run.folder), "no folder Session1"
    ),
    "no folder of a session": used(iemocap(without_session), "differ"),
    "no folder dialog": used(without("dialog"), "Session2 is left out"),
    "no folder sentences": skipped(
        without("sentences"), "Ses02F_impro01_.*wav"
    ),
    "turn without its wav": skipped(
        both(
            iemocap(delete("Session1/**/*F000.wav")), options("max_skipped=0.1")
        ),
        "Ses01F_impro01_F000.wav",
    ),
    "no wav at all": refused(
        iemocap(delete("*/sentences")), "none of the wav files is .* complete"
    ),
    "no evaluation file": refused(
        iemocap(delete("**/*.txt")), "no evaluation files"
    ),
    "empty evaluation file": refused(
        evaluation(lambda text: ""), "01.txt holds no turn.*restore"
    ),
    "malformed line in an evaluation file": refused(
        evaluation(lambda text: text.replace(" - 4.2]", "")),
        "Ses02F_impro01.txt, line 3 is no turn.*restore",
    ),
    "binary evaluation file": refused(
        evaluation(lambda text: bytes(range(256)).decode("latin-1"), "latin-1"),
        "Ses02F_impro01.txt.*restore",
    ),
    "evaluation file in UTF-16": refused(
        evaluation(str, "utf-16"), "Ses02F_impro01.txt.*restore"
    ),
    "evaluation file in Latin-1": used(
        evaluation(lambda text: f"% Müller\n{text}", "latin-1")
    ),
    "evaluation file with a byte order mark": used(
        evaluation(lambda text: text.split("\n\n")[1], "utf-8-sig")
    ),
    "evaluation file with a turn twice": refused(
        evaluation(lambda text: text + text.splitlines(keepends=True)[-1]),
        "id Ses02F_impro01_M007.*unique",
    ),
}

# Places ----------------------------------------------------------------------


def place(name, make):
    """Another place; make gets the run."""
    return lambda run: run.options.append(f"--{name}={make(run)}")


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


PLACES = {
    "output folder that is a file": refused(
        place("output_folder", a_file), "file.txt"
    ),
    "output folder below a file": refused(
        place("output_folder", lambda run: f"{a_file(run)}/out"), "file.txt"
    ),
    "output folder that cannot be written": refused(
        options("output_folder=/proc/nowhere/out"), "/proc/nowhere"
    ),
    "cache folder that is a file": refused(
        lambda run: setattr(run, "cache", a_file(run)), "file.txt"
    ),
    "cache folder that cannot be written": refused(
        lambda run: setattr(run, "cache", "/proc/nowhere"),
        "/proc has 0 bytes left|/proc/nowhere/.* cannot be written",
    ),
    "disk full at the start": refused(
        full_disk(3000), "cannot be written|disk"
    ),
    "disk full while features are cached": refused(
        both(full_disk(100_000), samples(seconds=180, number=30), CUT_LONG),
        "safetensors cannot be written",
    ),
    "disk full while a checkpoint is saved": refused(
        full_disk(30_000), "no checkpoint can be saved", "make room"
    ),
    "spaces and other scripts in all paths": used(odd_places),
    "spaces and other scripts in the data folder": used(odd_data_folder),
}

# Keys of the YAML and options ------------------------------------------------


def refuse_values(stage, text, *says):
    """Cases of values that a key cannot have; the sentence names the key."""
    name = "" if stage == "classifier" else f", {stage}"
    return {
        f"--{value}{name}": refused(
            options(*value.split(" --")),
            *(says or [rf"\b{value.partition('=')[0]}\b"]),
            stage=stage,
        )
        for value in map(str.strip, text.split("|"))
    }


NAN_LOSS = "loss is (nan|inf) at optimiser step [2-9].*try a lower lr"
NAN_STEPS = options("lr=1e30", "batch_size=2", "number_of_epochs=2")
LOWER_LR = "(nan|NaN|finite).*lower lr"

VALUES = {
    **refuse_values(
        "classifier",
        "lr=-1 | lr=fast | lr=.nan | classifier_lr=-1 | seed=-1 | fold=one |"
        "number_of_epochs=0 | batch_size=0 | num_workers=-1 | max_skipped=2 |"
        "grad_accumulation_factor=0 | precision=fp8 | precision=fp16 |"
        "device=toaster | skip_prep=no | input_norm=no | d_model=0 | nhead=0 |"
        "nhead=3 | normalize_before=off | d_ffn=-1 | num_layers=0 | dropout=2 |"
        "mlp_layers=-1 | max_frames=0 | max_frames=10 | sap_heads=0 |"
        "variance=other | augmentation=more | augment_mask_ratio=-0.1 |"
        "augment_mask_span=0 | classes=joy | classes={} | label_fraction=0 |"
        "classes={a: [joy], b: [joy]} | classes={a: [joy], b: [fear]} |"
        "label_fraction=1.5 | label_fraction=.nan | label_fraction=all |"
        "dialogue_style=sung | protocol=other | model_selection=first |"
        "class_weights=even | pooled_norm=perhaps | projection_init=pca |"
        "residual_init=-1 | encoder_layer=7 | encoder_layer=last_but_one |"
        "encoder_context=half | feature_precision=int8 | feature_workers=-1 |"
        f"learning_rate=1 | number_of_epoch=3 | {EARLIER}",
    ),
    **refuse_values("classifier", "encoder_source=no/such", "no/such"),
    **refuse_values("classifier", "system=no", "models/no.yaml as .*No such"),
    **refuse_values("classifier", "skip_prep=True", "train.json.*--skip_prep"),
    **refuse_values("classifier", "lr=1e30", LOWER_LR),
    **refuse_values(
        "adapter",
        "number_of_epochs=many | ckpt_interval_minutes=often | d_model=wide |"
        "corpus_weight=0 | mlp_residual=no | mask_ratio=2 | mask_span=0 |"
        "ema_decay=1.5 | ema_decay=slow | ema_decay_start=2 | temperature=0 |"
        "num_attributes=0 | attribute_update=never | attribute_count_decay=2 |"
        "attribute_rate=-1 | revive_after=-1 | similarity=dot |"
        "target_norm=batch | target_smoothing=-1 | predictor_layers=-1 |"
        "rec_weight_start=.nan | rec_weight_shape=steep | adapter_data=some |"
        "probe_every=-1 | probe_every=often | probe_utterances=0 |"
        "probe_utterances=0.5 | fold=4",
    ),
    **refuse_values(
        "adapter", "lr=1e30 | lr=1e30 --protocol=held_out", LOWER_LR
    ),
    **refuse_values(
        "compare",
        "label_fractions=0.1,2 | label_fractions=some | label_fraction=no |"
        "label_fraction=0.1 --label_fractions=0.1,1 | adapter_epochs=0,2 |"
        "adapter_epochs=two | adapter_epochs=1,2 --label_fractions=0.1,1 |"
        "adapter_epochs=1,2 --adapter.number_of_epochs=3 | adapters_folder=x |"
        f"adapter_epochs=1,2 --{EARLIER}",
    ),
    **refuse_values(
        "cross_validate",
        f"folds=1,x | seeds=one | adapter_training=maybe | {EARLIER} |"
        f"adapters_folder=x --{EARLIER} |"
        "adapters_folder=x --adapter_training=False",
    ),
    **refuse_values("cross_validate", "folds=1,9", "fold 9 does not exist"),
    **refuse_values(
        "cross_validate", "adapter.d_model=8", "d_model is 8 .* 16"
    ),
}

KEYS = {
    **VALUES,
    "loss that becomes NaN": refused(NAN_STEPS, NAN_LOSS),
    "loss that becomes NaN, adapter": refused(
        NAN_STEPS, NAN_LOSS, stage="adapter"
    ),
    "--precision=bf16 on a CPU": used(options("precision=bf16")),
    "--batch_size=1": used(options("batch_size=1")),
    "--batch_size=1, adapter": used(options("batch_size=1"), stage="adapter"),
    "--batch_size=1000": used(options("batch_size=1000")),
    "--batch_size=1000, adapter": used(
        options("batch_size=1000"), stage="adapter"
    ),
    "--grad_accumulation_factor=99": used(
        options("grad_accumulation_factor=99"), stage="adapter"
    ),
    "--label_fraction of less than an utterance": used(
        options("label_fraction=0.01"), "2 of 8 labelled .* .joy 1, rage 1."
    ),
    "--probe_utterances=1": used(
        options("probe_utterances=1"), "it needs two labels", stage="adapter"
    ),
}

# Files that a user writes, and those of earlier runs -------------------------


def yaml(change):
    """Another hyperparameter file; change gets the usual one's text."""

    def spoil(run):
        (usual,) = [Path(a) for a in run.arguments() if a.endswith(".yaml")]
        path = run.input / "hparams" / "mine.yaml"
        path.parent.mkdir()
        text = usual.read_text("utf-8")
        text = text.replace("!include:", f"!include:{usual.parent}/")
        path.write_text(change(text), "utf-8")
        run.hparams = [path]

    return spoil


def yaml_edit(old, new):
    """Another text in the hyperparameter file."""
    return yaml(lambda text: text.replace(old, new))


def yaml_path(choose):
    """Another path in the YAML's place."""
    return lambda run: setattr(run, "hparams", [choose(run)])


def yaml_of_other_stage(run):
    """Names the other stage's YAML."""
    path = next(a for a in run.arguments() if a.endswith(".yaml"))
    return path.replace("classifier.yaml", "adapter.yaml")


def manifest(change, split="test"):
    """A manifest that was edited by hand, and --skip_prep."""

    def spoil(run):
        run.out.mkdir(parents=True)
        for name in ("train", "valid", "test"):
            shutil.copy(run.reference_run / f"{name}.json", run.out)
        run.options.append("--skip_prep=True")
        path = run.out / f"{split}.json"
        path.write_text(change(path.read_text("utf-8")), "utf-8")

    return spoil


def entry(remove=None, **changes):
    """Another value in the first entry of the test manifest."""

    def change(text):
        entries = json.loads(text)
        first = next(iter(entries.values()))
        first.update(changes)
        first.pop(remove, None)
        return json.dumps(entries)

    return manifest(change)


def adapter_folder(choose):
    """Takes the adapter of a folder."""
    return place("adapter_folder", choose)


def spoilt_record(change):
    """An adapter whose adapter.json was edited by hand."""

    def choose(run):
        folder = run.input / "adapter"
        shutil.copytree(run.make_adapter(), folder)
        path = folder / "adapter.json"
        path.write_text(change(path.read_text("utf-8")), "utf-8")
        return folder

    return adapter_folder(choose)


def earlier_run(change, name="save/settings.json"):
    """Goes on in the folder of an earlier run with a file edited by hand."""

    def spoil(run):
        shutil.copytree(run.reference_run, run.out)
        (path,) = run.out.glob(name)
        # Latin-1 has a letter for every byte
        content = change(path.read_bytes().decode("latin-1"))
        path.write_bytes(content.encode("latin-1"))

    return spoil


def last_of_two_is_cut(run):
    """Cuts the newest of two checkpoints of an earlier run."""
    shutil.copytree(run.make_classifier("--number_of_epochs=2").out, run.out)
    last = Checkpointer(run.out / "save").find_checkpoint()
    path = last.paramfiles["model"]
    path.write_bytes(path.read_bytes()[:1000])
    run.options.append("--number_of_epochs=3")


def earlier_run_with_adapter(run):
    """Goes on without the adapter that an earlier run had."""
    earlier = run.make_classifier(f"--adapter_folder={run.make_adapter()}")
    shutil.copytree(earlier.out, run.out)


def other_wav(run):
    """A manifest that names another wav than it was made of."""
    soundfile.write(run.spoil(0), make_samples(number=20), 16000)
    entry(wav=run.table["wav"][0])(run)


FIRST_ENTRY = "test.json: utterance s1f_joy"
CUT_CHECKPOINT = earlier_run(lambda text: text[:1000], "save/CKPT*/model.ckpt")

FILES = {
    "no YAML": refused(
        yaml_path(lambda run: run.input / "mine.yaml"),
        "mine.yaml cannot be read: No such file",
    ),
    "folder as YAML": refused(
        yaml_path(lambda run: run.input), "cannot be read"
    ),
    "empty YAML": refused(yaml(lambda text: ""), "mine.yaml"),
    "YAML that is a list": refused(yaml(lambda text: "[1, 2]\n"), "mine.yaml"),
    "YAML that is none": refused(
        yaml(lambda text: text + "\n}: [\n"), "mine.yaml.* line"
    ),
    "binary YAML": refused(
        yaml(lambda text: bytes(range(256)).decode("latin-1")), "mine.yaml"
    ),
    "key twice": refused(
        yaml(lambda text: text + "\nseed: 1\n"), "mine.yaml.*seed"
    ),
    "YAML without a key": refused(
        yaml_edit("\nfold: 1\n", "\n"), "mine.yaml.*fold"
    ),
    "YAML with a class that does not exist": refused(
        yaml_edit("Augmentation", "Augment"),
        "mine.yaml: .*no such class as speechbrain_wap.augmentation.Augment",
    ),
    "YAML that includes a file that is not there": refused(
        yaml_edit("wap_sap.yaml", "sap_wap.yaml"),
        "mine.yaml includes .*sap_wap.yaml as system.*No such file",
    ),
    "YAML of the other stage": refused(
        yaml_path(yaml_of_other_stage), "adapter.yaml is not for this script"
    ),
    "manifest that is no JSON": refused(
        manifest(lambda text: text[:-20]), "test.json cannot be read"
    ),
    "manifest that is a list": refused(
        manifest(lambda _: "[1, 2]"), "test.json"
    ),
    "entry that is a number": refused(
        manifest(lambda _: '{"a": 1}'), "test.json: utterance a"
    ),
    "empty training manifest": refused(
        manifest(lambda _: "{}", "train"), "train.json is empty"
    ),
    "empty test manifest": refused(
        manifest(lambda _: "{}"), "no labelled utterance in its test split"
    ),
    "entry without wav": refused(entry("wav"), f"{FIRST_ENTRY} lacks wav"),
    "entry whose wav is a number": refused(
        entry(wav=5, digest="0" * 32), FIRST_ENTRY
    ),
    "entry whose digest leads elsewhere": refused(
        entry(digest="../../../evil"), FIRST_ENTRY
    ),
    "entry whose wav has changed": refused(other_wav, "s1f_joy|spoilt0.wav"),
    "entry with a speaker of another split": refused(
        entry(speaker="s2f"), "speaker s2f is in both"
    ),
    "entry with a label that training lacks": refused(
        entry(label="fear"), "class fear"
    ),
    "adapter folder of a classifier": refused(
        adapter_folder(lambda run: run.reference_run),
        "holds no adapter.json.*train_adapter.py",
    ),
    "adapter of another d_model": refused(
        adapter_folder(lambda run: run.make_adapter("--d_model=8")),
        "was trained with d_model=8, but the classifier's is 16",
    ),
    "adapter of another fold": refused(
        both(adapter_folder(lambda run: run.make_adapter()), options("fold=2")),
        "speaker s2f.*same fold",
    ),
    "adapter of another fold, cross-validation": refused(
        adapter_folder(lambda run: run.make_adapter()),
        "fold 2: speaker s2f.*may be used with --folds=1",
        stage="cross_validate",
    ),
    "adapter that has heard all as a further table": refused(
        adapter_folder(lambda run: run.make_universal()),
        "speaker s1f .*in the table own of corpora .s1f_joy is the same audio",
    ),
    "adapter.json that is no JSON": refused(
        spoilt_record(lambda text: text[:-20]), "adapter.json"
    ),
    "adapter.json of another program": refused(
        spoilt_record(lambda text: '{"a": 1}'), "adapter.json"
    ),
    "settings.json that is no JSON": refused(
        earlier_run(lambda text: text[:-20]), "settings.json"
    ),
    "the only checkpoint was cut": refused(
        both(CUT_CHECKPOINT, options("number_of_epochs=2")),
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
        both(earlier_run(str), options("lr=0.5")), "lr=0.001 .now 0.5"
    ),
}

CASES = {**AUDIO, **TABLE, **CORPORA, **IEMOCAP, **PLACES, **KEYS, **FILES}

SHORT = {
    *("missing wav", "wav of which half is missing", "silent wav"),
    *("more unreadable files than max_skipped", "wav at 22.05 kHz"),
    *("1e30 in a float wav", "utterance of 3 minutes, cut"),
    *("table in UTF-16", "row with too few cells", "id with a line break"),
    *("id that leads out of the folder", "label in no class"),
    *("speaker in two sessions", "speaker in two sessions, adapter"),
    *("speaker in two sessions, cross-validation", "no labels, adapter"),
    *("further table with a held-out speaker", "... known by the audio"),
    *("turn without its wav", "malformed line in an evaluation file"),
    "no data folder",
    *("disk full while a checkpoint is saved", "output folder below a file"),
    *("spaces and other scripts in all paths", "loss that becomes NaN"),
    *("--lr=fast", "--learning_rate=1", "--fold=4, adapter", "key twice"),
    *("--adapter_epochs=two, compare", "--folds=1,9, cross_validate"),
    *("--encoder_source=no/such", "--batch_size=1000"),
    *("YAML with a class that does not exist", "manifest that is no JSON"),
    *("entry with a speaker of another split", "adapter of another fold"),
    *("the last of two checkpoints was cut", "adapter.json that is no JSON"),
    "output folder of a run with another lr",
}

# The tests -------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The corpus before it is spoilt."""
    return make_table(tmp_path_factory.mktemp("wavs"))


@pytest.fixture(scope="module")
def run_once(table, tmp_path_factory):
    """Runs a script on the corpus as it is, once for the same options."""
    cache = tmp_path_factory.mktemp("features")
    runs = {}

    def make(stage, *options):
        if (stage, options) not in runs:
            folder = tmp_path_factory.mktemp("run")
            run = TinyRun(folder, table, cache, stage)
            run.options += options
            run.start()
            run.check_numbers()
            runs[stage, options] = run
        return runs[stage, options]

    make("classifier")
    gc.freeze()  # keeps the garbage collector off all that is imported by now
    yield make
    gc.unfreeze()


@pytest.fixture(scope="module")
def make_hubert(make_checkpoint, tmp_path_factory):
    """Makes the small HuBERT once."""
    folder = tmp_path_factory.mktemp("hubert")
    made = []

    def make():
        made[:] = made or [make_checkpoint(folder, "hubert")]
        return made[0]

    return make


@pytest.fixture
def run(name, table, run_once, make_hubert, tmp_path, monkeypatch):
    """A run that is still to be spoilt."""
    reference = run_once("classifier")
    run = TinyRun(tmp_path, table, reference.cache, CASES[name].stage)
    run.reference, _ = reference.predictions()
    run.reference_run = reference.out
    manifest = json.loads((reference.out / "test.json").read_text("utf-8"))
    digest = manifest[table["id"][0]]["digest"]
    (run.plain_entry,) = reference.cache.glob(f"*/*/{digest}.safetensors")
    run.make_hubert = make_hubert
    run.make_adapter = lambda *options: run_once("adapter", *options).out
    run.make_universal = lambda: run_once(
        "adapter", "--corpus_csv=", f"--corpora={reference.csv}"
    ).out
    run.make_classifier = lambda *options: run_once("classifier", *options)
    monkeypatch.chdir(run.input)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return run


def test_the_short_list_is_part_of_the_long_one():
    assert SHORT <= CASES.keys()


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
        if case.outcome == SKIPPED:
            assert list(reasons) == run.faulty
            said = reasons[run.faulty[0]]
            happened = f"skipped, listed: {said}"
            kept = f"the other {len(run.table) - len(reasons)} utterances"
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
