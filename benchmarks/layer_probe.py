r"""Which encoder layer tells the emotion? A linear probe of each.

> python benchmarks/layer_probe.py corpus.csv --encoder=/path/to/whisper-base \
    --sessions=KD0,MP0,WR0 --classes=anger,happiness,sadness,neutral

corpus.csv is a corpus table (docs/recipes.md). For each layer: the UA of the
linear probe on each session that is named, fitted on all others; no UA of a
session that is not named is computed.
"""

import argparse
import sys

import pandas as pd

from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.linear_probe import linear_probe
from speechbrain_wap.features import FeatureCache
from speechbrain_wap.reports.report import markdown_table, percent
from speechbrain_wap.training.experiment import run_command


class OneLayer:
    """A feature cache of several layers, seen as one of a single layer.

    Arguments
    ---------
    cache : speechbrain_wap.features.FeatureCache
        Its frames have the shape [T, L, D].
    layer : int
        Which of the L.
    """

    def __init__(self, cache, layer):
        self.cache, self.layer = cache, layer

    def read(self, digest):
        """Reads the frames of an utterance, shape [T, D]."""
        return self.cache.read(digest)[:, self.layer]


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
    options = parser.parse_args(arguments)
    classes, sessions = options.classes, options.sessions
    table = pd.read_csv(options.corpus_csv, dtype=str, keep_default_na=False)
    table = table[table["emo"].isin(classes)].rename(columns={"emo": "label"})
    table["duration"] = table["duration"].astype(float)
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
    rows = []
    for place, layer in enumerate(encoder.layers):
        one, pooled, scores = OneLayer(cache, place), {}, []
        for session in sessions:
            is_test = table["session"] == session
            splits = {
                "train": table[~is_test].to_dict("index"),
                "test": table[is_test].to_dict("index"),
            }
            probed = linear_probe(splits, one, classes, pooled=pooled)
            scores.append(probed["UA"])
        mean = sum(scores) / len(scores)
        rows.append([layer, *map(percent, scores), percent(mean)])
    print(markdown_table(["layer", *sessions, "mean"], rows))


def split(text):
    """Splits what an option lists."""
    return text.split(",")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
