"""A trained model at work: on another corpus, and on long recordings.

> python benchmarks/recognition.py MODEL CORPUS.CSV [CORPUS.CSV ...]

MODEL is an exported model folder; a corpus.csv is in the output folder of a
cross-validation. Classes are the same where their first three letters are
(anger, angry). Prints scores and confusion of each table's utterances, one by
one; then, for recordings of --minutes=5,20,60 that are made of all of them with
pauses of 0.5 to 3 s of faint noise: how many frames of 10 ms are told right,
real-time factor and peak memory of a process. --utterances=N takes N of each
table only.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from sklearn.metrics import confusion_matrix

from speechbrain_wap.data.audio import read_audio
from speechbrain_wap.evaluation.metrics import emotion_scores
from speechbrain_wap.inference import SILENCE, EmotionRecognizer
from speechbrain_wap.reports.report import markdown_table

RATE = 16000
FRAMES_PER_SECOND = 100
NOISE = 1e-4  # of pauses, against full scale


def read_table(path, classes, count):
    """Lists the labelled utterances of a table as (wav, class)."""
    names = {name[:3].casefold(): name for name in classes}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if {"start", "end", "stop"} & {*table}:
        sys.exit(f"{path} has parts of files: give a table of whole ones.")
    if count:
        table = table.sample(min(count, len(table)), random_state=0)
    labels = [names.get(emo[:3].casefold()) for emo in table["emo"]]
    return [(w, label) for w, label in zip(table["wav"], labels) if label]


def classify_table(model, path, count):
    """Recognises a table's utterances, and prints how well."""
    recognizer = EmotionRecognizer.from_hparams(model)
    classes = recognizer.classes
    utterances = read_table(path, classes, count)
    labels = [label for _, label in utterances]
    found = [recognizer.classify_file(wav)[3][0] for wav, _ in utterances]
    scores = emotion_scores(labels, found, classes)
    text = ", ".join(f"{k} {100 * value:.1f} %" for k, value in scores.items())
    print(f"\n{path}: {len(labels)} utterances, {text}\n")
    counts = confusion_matrix(labels, found, labels=classes).tolist()
    rows = [[name, *row] for name, row in zip(classes, counts)]
    print(markdown_table(["true / told", *classes], rows), flush=True)


def make_recording(utterances, minutes, path):
    """Writes a recording; returns what is said in each frame."""
    random, truth, seconds = np.random.default_rng(0), [], 0.0
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        while seconds < 60 * minutes:
            wav, label = utterances[random.integers(len(utterances))]
            pause = round(random.uniform(0.5, 3.0) * RATE)
            speech = read_audio(wav, RATE).numpy()
            parts = [NOISE * random.standard_normal(pause), speech]
            for name, part in zip((SILENCE, label), parts):
                file.write(part)
                start, seconds = seconds, seconds + len(part) / RATE
                truth.append((start, seconds, name))
    return truth


def list_frames(segments, duration):
    """Lists what is said of each frame."""
    frames = np.full(round(duration * FRAMES_PER_SECOND), SILENCE, dtype="U32")
    for start, end, name in segments:
        place = (round(edge * FRAMES_PER_SECOND) for edge in (start, end))
        frames[slice(*place)] = name
    return frames


def diarize(model, path, options, queue):
    """Recognises a recording in a process of its own."""
    torch.set_num_threads(1)
    recognizer = EmotionRecognizer.from_hparams(model)
    recognizer.classify_file(path, 0, 1)  # loads the encoder
    started = time.perf_counter()
    (segments,) = recognizer.diarize_file(path, **options).values()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = [(s["start"], s["end"], s["emotion"]) for s in segments]
    queue.put((found, seconds, peak))


def measure_recording(model, utterances, minutes, folder, options):
    """Gives a row: minutes, accuracies, real-time factor, memory."""
    path = folder / f"{minutes}.wav"
    truth = make_recording(utterances, minutes, path)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(
        target=diarize, args=(model, str(path), options, queue)
    )
    process.start()
    found, seconds, peak = queue.get()
    process.join()
    path.unlink()
    duration = truth[-1][1]
    said = list_frames(found, duration)
    true = list_frames(truth, duration)
    spoken = true != SILENCE
    shares = [
        (said == true).mean(),
        ((said != SILENCE) == spoken).mean(),
        (said == true)[spoken].mean(),
    ]
    rest = [f"{seconds / duration:.3f}", f"{peak / 1e9:.2f} GB"]
    return [minutes, *(f"{100 * share:.1f} %" for share in shares), *rest]


def main():
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--minutes", default="5,20,60")
    parser.add_argument("--utterances", type=int)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args()
    for table in given.tables:
        classify_table(given.model, table, given.utterances)
    classes = EmotionRecognizer.from_hparams(given.model).classes
    utterances = [
        utterance
        for table in given.tables
        for utterance in read_table(table, classes, given.utterances)
    ]
    header = ["minutes", "frames", "speech or silence", "emotion where spoken"]
    header += ["real-time factor", "peak memory"]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure_recording(
                given.model, utterances, float(m), Path(folder), given.options
            )
            for m in given.minutes.split(",")
            if m
        ]
    print("\n" + markdown_table(header, rows))


if __name__ == "__main__":
    main()
