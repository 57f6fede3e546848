"""A tiny corpus that a test may spoil, and a run of the scripts on it."""

import hashlib
import itertools
import resource
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from recipe_runs import RECIPES, TINY, load_script, read_json

from speechbrain_wap.files import unquote_formula

HPARAMS = RECIPES / "IEMOCAP" / "wap_adapter" / "hparams"
SCRIPTS = {
    "adapter": ("train_adapter.py", ["adapter"]),
    "classifier": ("train_classifier.py", ["classifier"]),
    "cross_validate": ("cross_validate.py", ["adapter", "classifier"]),
    "compare": ("compare", ["adapter", "classifier"]),
}
SPLITS = ("test", "train")
LABELS = {"joy": "hap", "rage": "ang"}  # and what IEMOCAP calls them


def make_samples(seconds=0.2, rate=16000, number=0, channels=1):
    """A chord in a little noise, another one for every number."""
    times = np.arange(round(seconds * rate)) / rate
    tones = [300 + 90 * number, 700 + 130 * number]
    wave = sum(0.2 * np.sin(2 * np.pi * tone * times) for tone in tones)
    noise = np.random.default_rng(number).normal(size=len(times))
    wave = (wave + 1e-4 * noise).astype("float32")
    return np.stack([wave] * channels, axis=1) if channels > 1 else wave


def make_table(folder):
    """Writes the wavs of a whole corpus; returns its table.

    Three sessions, in each a woman and a man who say each label once.
    """
    rows = []
    for number, turn in enumerate(itertools.product("123", "fm", LABELS)):
        session, gender, emo = turn
        speaker = f"s{session}{gender}"
        wav = folder / f"{speaker}_{emo}.wav"
        soundfile.write(wav, make_samples(number=number), 16000)
        rows.append([wav.stem, str(wav), speaker, f"s{session}", emo])
    columns = ["id", "wav", "speaker", "session", "emo"]
    return pd.DataFrame(rows, columns=columns)


def list_files(folder):
    """Digests all files below a folder, by name."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


class TinyRun:
    """A run whose corpus, command line and files a test may spoil.

    Its folder gets the folder input, with the corpus' table as own.csv, and all
    that is written but the feature cache. finished(stage, *options) gives a run
    of a stage that was not spoilt.
    """

    def __init__(self, folder, table, cache, stage, finished=None):
        self.folder = folder
        self.input = folder / "input"
        self.input.mkdir()
        self.out = folder / "runs" / "one"
        self.table = table.copy()
        self.cache = cache
        self.stage = stage
        self.finished = finished
        self.options = []
        self.csv = self.input / "own.csv"
        self.corpus = None  # else the folder of a corpus
        self.hparams = [HPARAMS / f"{name}.yaml" for name in SCRIPTS[stage][1]]
        self.held_out = "s1"
        self.faulty = [table["id"][0]]  # what is to be skipped
        self.largest_file = None  # in bytes
        self.is_written = False  # whether a fault has written the table

    def spoil(self, row=0, suffix=".wav"):
        """Gives an utterance another file, which is still to be written."""
        path = self.input / f"spoilt{row}{suffix}"
        self.table.loc[row, "wav"] = str(path)
        return path

    def write_table(self):
        """Writes the table as it is, for a fault to go on with."""
        self.table.to_csv(self.csv, index=False, errors="surrogateescape")
        self.is_written = True

    def make_file(self, name):
        """Makes a file as a user has it, with what belongs to it.

        That is a table or a wav of it, an evaluation file of IEMOCAP, the YAML,
        a manifest, an adapter.json, or what an earlier run saved.
        """
        if name == "own.csv":
            self.write_table()
            return self.csv
        if name == "spoilt0.wav":
            soundfile.write(self.spoil(), make_samples(), 16000)
            self.options.append("--max_skipped=0.1")
            return self.input / name
        if name in ("b.csv", "b0.wav", "b1.wav"):
            lines = ["id,wav,speaker,session,emo"]
            for number, speaker in enumerate(("anna", "ben", "anna")):
                values = make_samples(number=50 + number)
                soundfile.write(self.input / f"b{number}.wav", values, 16000)
                lines.append(f"u{number},b{number}.wav,{speaker},x,")
            table = self.input / "b.csv"
            table.write_text("\n".join(lines) + "\n")
            self.options.append(f"--corpora={table}")
            return self.input / name
        if name == "Ses02F_impro01.txt":
            folder = self.make_iemocap() / "Session2"
            return folder / "dialog" / "EmoEvaluation" / name
        if name == "mine.yaml":
            (usual,) = self.hparams
            text = usual.read_text("utf-8")
            self.hparams = [self.input / "hparams" / name]
            # a copy: the checkout's path may have a space in it
            shutil.copytree(HPARAMS / "models", self.input / "hparams/models")
            self.hparams[0].write_text(text, "utf-8")
            return self.hparams[0]
        if name == "adapter.json":
            folder = self.input / "adapter"
            shutil.copytree(self.finished("adapter").out, folder)
            self.options.append(f"--adapter_folder={folder}")
            return folder / name
        earlier = self.finished("classifier").out
        if name in ("train.json", "test.json"):
            self.out.mkdir(parents=True)
            for split in ("train", "valid", "test"):
                shutil.copy(earlier / f"{split}.json", self.out)
            self.options.append("--skip_prep=True")
            return self.out / name
        shutil.copytree(earlier, self.out)
        (path,) = self.out.glob(f"save/{name}")
        return path

    def make_iemocap(self):
        """Writes the corpus in IEMOCAP's layout; returns its folder."""
        self.corpus = self.input / "IEMOCAP"
        for number, row in self.table.iterrows():
            session, gender = row["session"][1], row["speaker"][-1].upper()
            dialog = f"Ses0{session}F_impro01"
            turn = f"{dialog}_{gender}00{number}"
            place = self.corpus / f"Session{session}"
            wav = place / "sentences" / "wav" / dialog / f"{turn}.wav"
            text = place / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
            for path in (wav, text):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(row["wav"], wav)
            lines = text.read_text() if text.exists() else "% TURN_NAME\n\n"
            lines += f"[{number}.0 - {number}.2]\t{turn}\t"
            text.write_text(f"{lines}{LABELS[row['emo']]}\t[2.5, 2.5, 2.5]\n")
            self.table.loc[number, ["id", "session"]] = turn, session
        self.faulty = [self.table["id"][0]]
        self.held_out = "1"
        self.options.append("--classes={happy: [hap], angry: [ang]}")
        return self.corpus

    def arguments(self):
        """The command line."""
        corpus = f"--corpus_csv={self.csv}"
        if self.corpus is not None:
            corpus = f"--data_folder={self.corpus}"
        usual = [*TINY, corpus, f"--cache_folder={self.cache}"]
        usual += [f"--output_folder={self.out}", "--num_layers=1"]
        usual += ["--feature_workers=0", "--number_of_epochs=1"]
        has_adapter = any("--adapter_folder" in o for o in self.options)
        if self.stage != "classifier" and not has_adapter:
            usual.append("--num_attributes=4")
        return [*map(str, self.hparams), *usual, *self.options]

    def start(self):
        """Runs the script; checks that it touches what is its own only."""
        if not self.is_written:
            self.write_table()
        before = list_files(self.folder)
        script = load_script(SCRIPTS[self.stage][0])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        soft = self.largest_file or limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, limits[1]))
        try:
            script.main(self.arguments())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            after = list_files(self.folder)
            own = (f"{self.out}/", f"{self.cache}/")
            for name in before.keys() | after.keys():
                if not name.startswith(own):
                    assert before.get(name) == after.get(name), name

    def results(self):
        """Digests the results, which a refused run must not touch."""
        names = ("predictions.csv", "scores.json", "results.json")
        files = list_files(self.out)
        return {k: v for k, v in files.items() if k.endswith(names)}

    def predictions(self):
        """Reads predictions.csv; nothing may be made of its cells."""
        table = pd.read_csv(
            self.out / "predictions.csv",
            dtype=str,
            keep_default_na=False,
            encoding_errors="surrogateescape",
        )
        table["id"] = table["id"].map(unquote_formula)
        classes = list(table.columns[5:])
        return table.astype(dict.fromkeys(classes, float)), classes

    def skipped(self):
        """Reads why which utterances were left out."""
        reasons = {}
        for path in sorted(self.out.glob("skipped*.csv")):
            listing = pd.read_csv(path, dtype=str, keep_default_na=False)
            reasons.update(zip(listing["id"], listing["reason"]))
        return reasons

    def check_numbers(self):
        """Checks that all utterances were used, and nothing is NaN."""
        for row in read_json(self.out, "history.json"):
            for split in (row["train"], row["valid"]):
                assert all(np.isfinite(list((split or {}).values())))
        used = self.table[~self.table["id"].isin(self.skipped().keys())]
        is_tested = used["session"] == self.held_out
        is_trained = ~is_tested
        if "--protocol=predefined" in self.options:
            is_tested, is_trained = (used["split"] == s for s in SPLITS)
        if self.stage == "adapter":
            (checkpoint,) = (self.out / "save").glob("CKPT*")
            for part in ("student", "teacher", "local_attributes"):
                path = checkpoint / f"{part}.ckpt"
                for tensor in torch.load(path, weights_only=True).values():
                    if torch.is_tensor(tensor):
                        assert torch.isfinite(tensor).all(), part
            record = read_json(self.out, "adapter.json")
            names = used["speaker"] + "/" + used["id"]
            if "--corpus_csv=" in self.options:
                (record,) = record["corpora"]  # the corpus is a further table
            elif "--protocol=held_out" in self.options:
                is_trained &= used["session"] != "s2"
            assert set(names[is_trained]) <= set(record["utterances"])
            return
        manifest = read_json(self.out, "train.json")
        labelled = used["emo"] != ""
        assert set(used["id"][labelled & is_trained]) <= manifest.keys()
        table, classes = self.predictions()
        assert list(table["id"]) == list(used["id"][labelled & is_tested])
        assert np.isfinite(table[classes].to_numpy()).all()
        assert abs(table[classes].sum(axis=1) - 1).max() < 1e-5
        assert (table[classes].idxmax(axis=1) == table["prediction"]).all()
        assert set(table["label"]) <= set(classes)
        scores = read_json(self.out, "scores.json")
        assert scores["n"] == len(table) > 0
        hits = (table["label"] == table["prediction"]).mean()
        assert abs(scores["WA"] - hits) < 1e-6
