"""A tiny corpus that a test may spoil, and a run of the scripts on it."""

import hashlib
import itertools
import json
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from recipe_runs import RECIPES, TINY, load_script

SCRIPTS = {
    "adapter": ("train_adapter.py", ["adapter"]),
    "classifier": ("train_classifier.py", ["classifier"]),
    "cross_validate": ("cross_validate.py", ["adapter", "classifier"]),
    "compare": ("compare", ["adapter", "classifier"]),
}
LABELS = ("joy", "rage")


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
    turns = itertools.product("123", "fm", LABELS)
    rows = []
    for number, (session, gender, emo) in enumerate(turns):
        speaker = f"s{session}{gender}"
        key = f"{speaker}_{emo}"
        wav = folder / f"{key}.wav"
        soundfile.write(wav, make_samples(number=number), 16000)
        rows.append([key, str(wav), speaker, f"s{session}", emo])
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

    Arguments
    ---------
    folder : pathlib.Path
        Gets the folder input, and all that is written.
    table : pandas.DataFrame
        The corpus; a copy is written to input/own.csv.
    cache : str
        Folder of the feature cache.
    stage : str
        Which script is run.
    """

    def __init__(self, folder, table, cache, stage="classifier"):
        self.input = folder / "input"
        self.input.mkdir()
        self.folder = folder
        self.out = folder / "runs" / "one"
        self.table = table.copy()
        self.stage = stage
        self.options = []
        self.csv = self.input / "own.csv"
        self.corpus = None  # else the folder of a corpus
        self.cache = cache
        self.hparams = None  # else the YAML files
        self.held_out = "s1"
        self.faulty = [table["id"][0]]  # what is to be skipped
        self.largest_file = None  # in bytes
        self.written = False  # whether the fault has written the table

    def spoil(self, row=0, suffix=".wav"):
        """Gives an utterance another file, which is still to be written."""
        path = self.input / f"spoilt{row}{suffix}"
        self.table.loc[row, "wav"] = str(path)
        return path

    def write_table(self, **kwargs):
        """Writes the table as it is, for a fault to go on with."""
        self.table.to_csv(self.csv, index=False, **kwargs)
        self.written = True

    def make_iemocap(self):
        """Writes the corpus in IEMOCAP's layout; returns its folder."""
        self.corpus = self.input / "IEMOCAP"
        emotions = dict(zip(LABELS, ("hap", "ang")))
        for number, row in self.table.iterrows():
            session, gender = row["session"][1], row["speaker"][-1].upper()
            dialog = f"Ses0{session}F_impro01"
            turn = f"{dialog}_{gender}00{number}"
            place = self.corpus / f"Session{session}"
            wav = place / "sentences" / "wav" / dialog / f"{turn}.wav"
            text = place / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
            for path in (wav, text):
                path.parent.mkdir(parents=True, exist_ok=True)
            wav.write_bytes(Path(row["wav"]).read_bytes())
            if not text.exists():
                text.write_text("% [START_TIME - END_TIME] TURN_NAME\n\n")
            with text.open("a") as file:
                file.write(
                    f"[{number}.0 - {number}.2]\t{turn}\t"
                    f"{emotions[row['emo']]}\t[2.5, 2.5, 2.5]\n"
                )
            self.table.loc[number, "id"] = turn
            self.table.loc[number, "session"] = session
        self.faulty = [self.table["id"][0]]
        self.held_out = "1"
        self.options.append("--classes={happy: [hap], angry: [ang]}")
        return self.corpus

    def arguments(self):
        """The command line."""
        _, stages = SCRIPTS[self.stage]
        recipe = RECIPES / "IEMOCAP" / "wap_adapter" / "hparams"
        files = self.hparams or [recipe / f"{name}.yaml" for name in stages]
        corpus = f"--corpus_csv={self.csv}"
        if self.corpus is not None:
            corpus = f"--data_folder={self.corpus}"
        usual = [*TINY, corpus, f"--cache_folder={self.cache}"]
        usual += [f"--output_folder={self.out}", "--num_layers=1"]
        usual += ["--feature_workers=0", "--number_of_epochs=1"]
        has_adapter = any("--adapter_folder" in o for o in self.options)
        if self.stage != "classifier" and not has_adapter:
            usual.append("--num_attributes=4")
        return [*map(str, files), *usual, *self.options]

    def start(self):
        """Runs the script; checks that it touches what is its own only."""
        if not self.written:
            self.write_table()
        before = list_files(self.folder)
        script = load_script(SCRIPTS[self.stage][0])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.largest_file:
            soft = (self.largest_file, limits[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
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
            self.out / "predictions.csv", dtype=str, keep_default_na=False
        )
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
        history = json.loads((self.out / "history.json").read_text("utf-8"))
        for row in history:
            for split in (row["train"], row["valid"]):
                assert all(np.isfinite(list((split or {}).values())))
        used = self.table[~self.table["id"].isin(self.skipped().keys())]
        is_tested = used["session"] == self.held_out
        if self.stage == "adapter":
            self._check_weights()
            record = json.loads((self.out / "adapter.json").read_text("utf-8"))
            names = used["speaker"] + "/" + used["id"]
            if "--corpus_csv=" in self.options:
                (record,) = record["corpora"]  # the corpus is a further table
            elif "--protocol=held_out" in self.options:
                is_tested |= used["session"] == "s2"
            assert set(names[~is_tested]) <= set(record["utterances"])
            return
        manifest = json.loads((self.out / "train.json").read_text("utf-8"))
        labelled = used["emo"] != ""
        assert set(used["id"][labelled & ~is_tested]) <= manifest.keys()
        table, classes = self.predictions()
        assert list(table["id"]) == list(used["id"][labelled & is_tested])
        assert np.isfinite(table[classes].to_numpy()).all()
        assert abs(table[classes].sum(axis=1) - 1).max() < 1e-5
        assert (table[classes].idxmax(axis=1) == table["prediction"]).all()
        assert set(table["label"]) <= set(classes)
        scores = json.loads((self.out / "scores.json").read_text("utf-8"))
        assert scores["n"] == len(table) > 0
        hits = (table["label"] == table["prediction"]).mean()
        assert abs(scores["WA"] - hits) < 1e-6

    def _check_weights(self):
        (checkpoint,) = (self.out / "save").glob("CKPT*")
        for part in ("student", "teacher", "local_attributes"):
            path = checkpoint / f"{part}.ckpt"
            for tensor in torch.load(path, weights_only=True).values():
                if torch.is_tensor(tensor):
                    assert torch.isfinite(tensor).all(), part
