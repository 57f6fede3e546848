r"""Which encoder layer tells the emotion? A linear probe of each.

> python benchmarks/layer_probe.py corpus.csv --encoder=/path/to/whisper-base \
    --sessions=KD0,MP0,WR0 --classes=anger,happiness,sadness,neutral

corpus.csv is what a run (`compare`, say) has written beside its results. For
each layer: the UA of the linear probe on each session that is named, fitted on
all others; no UA of a session that is not named is computed. --output=FILE
writes the scores as CSV.
"""

import argparse
import sys

import pandas as pd

from speechbrain_wap.data.corpus_table import read_corpus_table
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.linear_probe import (
    frame_statistics,
    linear_probe,
)
from speechbrain_wap.features import FeatureCache
from speechbrain_wap.reports.report import markdown_table, percent
from speechbrain_wap.training.experiment import run_command


def main(arguments):
    """Probes each layer and prints a table.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus_csv")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--context", default="clip")
    parser.add_argument("--sessions", required=True, type=split)
    parser.add_argument("--classes", required=True, type=split)
    parser.add_argument("--cache_folder", default="results/cache")
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    classes, sessions = options.classes, options.sessions
    table = read_corpus_table(options.corpus_csv)
    table = table[table["emo"].isin(classes)].rename(columns={"emo": "label"})
    unknown = {*sessions} - {*table["session"]}
    if unknown:
        raise RecipeError(
            f"{options.corpus_csv} has no session {min(unknown)} with one of "
            "the classes."
        )
    encoder = SpeechEncoder(options.encoder, "weighted", options.context)
    cache = FeatureCache(options.cache_folder, encoder)
    utterances = {row["digest"]: row for row in table.to_dict("records")}
    failures = cache.extract(utterances)
    table = table[~table["digest"].isin(failures)].set_index("id")
    pooled = {layer: {} for layer in encoder.layers}
    for digest in table["digest"]:
        feats = cache.read(digest)  # [T, L, D]; of one layer [T, D]
        feats = feats.reshape(len(feats), len(encoder.layers), -1)
        for place, layer in enumerate(encoder.layers):
            pooled[layer][digest] = frame_statistics(feats[:, place])
    rows = []
    for layer, statistics in pooled.items():
        scores = []
        for session in sessions:
            is_test = table["session"] == session
            splits = {
                "train": table[~is_test].to_dict("index"),
                "test": table[is_test].to_dict("index"),
            }
            found = linear_probe(splits, cache.read, classes, pooled=statistics)
            scores.append(found["UA"])
        rows.append([layer, *scores, sum(scores) / len(scores)])
    header = ["layer", *sessions, "mean"]
    shown = [[layer, *map(percent, scores)] for layer, *scores in rows]
    print(markdown_table(header, shown))
    if options.output:
        scored = pd.DataFrame(rows, columns=header).round(6)
        scored.to_csv(options.output, index=False)


def split(text):
    """Splits what an option lists."""
    return text.split(",")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
