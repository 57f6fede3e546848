r"""What a system still tells of the speaker, before and after its projector.

> python benchmarks/speaker_probe.py results/with/seed1/fold1/classifier \
    results/without/seed1/fold1/classifier

For each run of train_classifier.py (of Spk-norm or W2v2-PT): the UA of a linear
probe that tells the training speakers, fitted on every second training
utterance of each and scored on the others, by the mean of the encoder's frames
("before"), and by what the system pools ("after"); chance, and the UA of the
emotions of the held-out session. Typed in the folder that the runs were started
in, from whose cache it reads.
"""

import argparse
import sys

import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler

from speechbrain_wap.baselines.framewise import FramewiseClassifier
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.linear_probe import score_probe
from speechbrain_wap.evaluation.trained_run import TrainedRun
from speechbrain_wap.reports.report import markdown_table, percent
from speechbrain_wap.training.experiment import run_command


@torch.no_grad()
def pool(run):
    """Pools the training utterances of a run.

    Arguments
    ---------
    run : speechbrain_wap.evaluation.trained_run.TrainedRun
        Of a system whose frames are processed one by one, then averaged.

    Returns
    -------
    pooled : dict
        "before" and "after", shape [N, F].
    speakers : list of str
        Of each utterance.
    """
    model = run.build_model()
    if not isinstance(model, FramewiseClassifier):
        raise RecipeError(
            f"{run.folder} trained the system {type(model).__name__}: give a "
            "run of Spk-norm or W2v2-PT."
        )
    entries = run.read_split("train")
    most = run.settings["max_frames"]
    pooled = {"before": [], "after": []}
    for entry in entries.values():
        frames = run.caches[""].read(entry["digest"])[:most].float()
        pooled["before"].append(frames.flatten(start_dim=1).mean(dim=0))
        pooled["after"].append(model.pool(frames[None], torch.ones(1))[0])
    return (
        {name: torch.stack(rows).numpy() for name, rows in pooled.items()},
        [entry["speaker"] for entry in entries.values()],
    )


def probe_speakers(vectors, speakers):
    """Fits on every second utterance of each speaker, and scores the rest.

    Arguments
    ---------
    vectors : numpy.ndarray
        Shape [N, F].
    speakers : list of str
        Of each.

    Returns
    -------
    ua : float
        A fraction.
    """
    speakers = pd.Series(speakers)
    is_fitted = speakers.groupby(speakers).cumcount() % 2 == 0
    parts = [is_fitted.to_numpy(), ~is_fitted.to_numpy()]
    scaler = StandardScaler().fit(vectors[parts[0]])
    return score_probe(
        [scaler.transform(vectors[part]) for part in parts],
        [speakers[part].tolist() for part in parts],
        sorted(set(speakers)),
    )["UA"]


def main(arguments):
    """Probes each run and prints a table.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", nargs="+")
    rows = []
    for folder in parser.parse_args(arguments).run_folder:
        run = TrainedRun(folder)
        pooled, speakers = pool(run)
        told = [probe_speakers(v, speakers) for v in pooled.values()]
        scores = [*told, 1 / len(set(speakers)), run.scores["UA"]]
        rows.append([folder, *map(percent, scores)])
    header = ["run", "speaker before", "after", "chance", "emotion UA"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
