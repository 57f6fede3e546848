"""Resident memory after each of ten folds in one process.

> OMP_NUM_THREADS=1 python benchmarks/memory.py FOLDER [--key=value ...]

Makes a corpus of 300 utterances of noise in FOLDER, and cross-validates on it
with two seeds; the memory should not grow with the number of folds.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_wap.training import run_folds
from speechbrain_wap.training.cross_validation import CrossValidation

RECIPE = Path(__file__).parents[1] / "recipes" / "IEMOCAP" / "wap_adapter"
OPTIONS = (
    "--encoder_source=fbank --d_model=128 --nhead=4 --d_ffn=256 --num_layers=2 "
    "--batch_size=32 --seeds=1,2 --adapter.number_of_epochs=1 "
    "--classifier.number_of_epochs=1 --noprogressbar"
)


def make_corpus(folder):
    """Writes 300 utterances of 1.5 to 6 s of noise; returns their table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, random = ["id,wav,speaker,session,emo"], np.random.default_rng(0)
    for number in range(300):
        noise = 0.1 * random.standard_normal(int(random.uniform(1.5, 6) * 16e3))
        soundfile.write(folder / f"{number}.wav", noise, 16000)
        speaker, emotion = number % 10, number // 10 % 4
        rows.append(f"{number},{number}.wav,{speaker},{speaker // 2},{emotion}")
    (folder / "corpus.csv").write_text("\n".join(rows))
    return folder / "corpus.csv"


def main(folder, *options):
    """Runs the ten folds and prints the memory after each."""
    folder, started = Path(folder).resolve(), time.time()
    table = make_corpus(folder / "corpus")
    os.chdir(RECIPE)
    sys.path.insert(0, str(RECIPE))
    plan = CrossValidation(
        ["hparams/adapter.yaml", "hparams/classifier.yaml", *OPTIONS.split()]
        + [f"--corpus_csv={table}", f"--cache_folder={folder / 'cache'}"]
        + [f"--output_folder={folder / 'results'}", *options]
    )
    run_fold = run_folds.run_fold

    def measure(*task):
        scores = run_fold(*task)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        gigabytes, seconds = pages * 4096 / 1e9, time.time() - started
        print(f"{gigabytes:.2f} GB, {seconds:.0f} s", flush=True)
        return scores

    run_folds.run_fold = measure
    run_folds.run_all(plan, lambda folds, runs: runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
