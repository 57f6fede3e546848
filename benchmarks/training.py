"""What training costs, against what its arithmetic costs.

Every figure is a ratio or a share of two things that are timed in this one
run, in turn, after a warm-up. There are two settings: "paper", the IEMOCAP
recipe on features of 1024 dimensions and a few batches of utterances as long
as IEMOCAP's, and "emodb", the EmoDB recipe on a corpus like EmoDB's copy that
is cropped to 2 s.

> python benchmarks/training.py --json=training.json --figure=training.png

Features are random numbers unless --data_folder and --encoder_source give
EmoDB and a checkpoint. --baseline=FOLDER, another checkout of this project,
adds five-fold cross-validation against it.
"""

import argparse
import csv
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from codebooks import Codebooks
from extraction import compare_epochs
from matplotlib.figure import Figure
from scipy.io import wavfile
from speechbrain.dataio.batch import PaddedData
from timing import (
    Stopwatch,
    alternate,
    divide,
    measure_seconds,
    run_child,
    show_ratio,
    sum_up,
)
from torch.nn.attention import SDPBackend
from torch.utils.data.dataloader import _BaseDataLoaderIter as Batches
from torch.utils.flop_counter import FlopCounterMode
from workloads import (
    CLASSES,
    QUICK,
    SETTINGS,
    Training,
    build_experiment,
    count_forward,
    count_step,
    draw_lengths,
    encode_emodb,
    find_peak,
    make_corpus,
)

from speechbrain_wap.packing import LIKE_LENGTH_GPU, Packing
from speechbrain_wap.reports.report import markdown_table

# Run as processes of their own
CODEBOOKS = Path(__file__).with_name("codebooks.py")
WORKLOADS = Path(__file__).with_name("workloads.py")
PAPER_BATCH = 96
EMODB_UTTERANCES = 427
# Utterances as long as IEMOCAP's
TEN_HOURS = 8000
# Floor and aim of a figure whose name begins so, where more is better
AT_LEAST = {
    "stage-1 epoch": (0.90, 0.98),
    "stage-2 epoch": (0.85, 0.95),
    "arithmetic": (0.45, 0.70),
    "steps, ten hours": (0.90, 0.95),
    "encoder in the loop": (20.0, 100.0),
    "codebook / ": (1.0, 2.0),
    "codebook's memory / vq": (1.0, 2.0),
    "codebook's memory / cdist": (1.0, 2.0),
    "bf16": (1.0, 1.5),
    "cross_validate.py": (2.0, 4.0),
}
# Likewise, where less is better
AT_MOST = {
    "codebook's memory / N x K": (None, 1.0),
    "padding, padded model": (None, None),
    "padding": (0.10, 0.03),
    "waiting for data": (0.10, 0.02),
    "memory, corpus x 10": (1.20, 1.02),
    "cost per frame": (0.15, 0.05),
    "bookkeeping": (0.05, 0.01),
    "opening, ten hours": (0.10, 0.02),
}
# Shapes of codebook: frames N, dimensions D, attributes K
CODEBOOK = (30_000, 384, 1024)
QUICK_CODEBOOK = (2000, 32, 64)


class Bench:
    """Makes what sections train on, and keeps their figures.

    Arguments
    ---------
    options : argparse.Namespace
        The command line.
    folder : pathlib.Path
        For temporary files.
    """

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.repeats = options.repeats
        self.figures, self.notes = [], []
        # the command line's EmoDB and encoder, if it names both
        self.emodb = None
        if options.data_folder and options.encoder_source:
            self.emodb = [
                f"--{key}={getattr(options, key)}"
                for key in ("data_folder", "encoder_source", "encoder_layer")
            ]
        # made once, by whichever section is first
        self.corpus = cache(self._make_corpus)

    def _make_corpus(self, setting, count=None, input_size=None):
        """Makes a corpus of a setting's own size or another."""
        folder = self.folder / f"{setting}-{count}-{input_size}"
        folder.mkdir()
        if self.options.quick:
            count, input_size = count or 24, 16
        elif count is None and setting == "paper":
            count = PAPER_BATCH * self.options.paper_batches
        elif count is None and self.emodb:
            return encode_emodb(self.emodb, folder)
        count = count or EMODB_UTTERANCES
        return make_corpus(setting, count, folder, input_size)

    def training(self, setting, stage="adapter", options=(), corpus=None):
        """Makes a training; a tiny one for a quick look."""
        quick = QUICK[stage] if self.options.quick else []
        corpus = corpus or self.corpus(setting)
        return Training(corpus, stage, [*quick, *options])

    def trainings(self, stage="adapter"):
        """Makes the training of each setting."""
        for setting in self.options.settings:
            yield setting, self.training(setting, stage)

    def compare(self, *runs):
        """Calls two functions that return a cost in turn, after a warm-up."""
        for run in runs:
            run()
        return alternate(*runs, self.repeats)

    def repeat(self, run):
        """Calls a function after a warm-up; what it returned each time."""
        run()
        return [run() for _ in range(self.repeats)]

    def add(self, figure, values, timed, **more):
        """Keeps and prints a figure.

        Arguments
        ---------
        figure : str
            Its name.
        values : list of float
            Of each repetition.
        timed : str
            What was divided by what.
        **more : dict
            Plain values, for the JSON file only.
        """
        bounds = {**AT_LEAST, **AT_MOST}
        name = next(name for name in bounds if figure.startswith(name))
        entry = {
            "figure": figure,
            **dict(zip(("median", "lowest", "highest"), sum_up(values))),
            "values": values,
            **dict(zip(("floor", "aim"), bounds[name])),
            "at_least": name in AT_LEAST,
            "timed": timed,
            **more,
        }
        self.figures.append(entry)
        print(f"{figure}: {show_figure(entry)}", flush=True)

    def note(self, text):
        """Keeps and prints a remark."""
        self.notes.append(text)
        print(text, flush=True)


# Sections ---------------------------------------------------------------------


def compare_loops(bench, stage):
    """Times an epoch through the stage's Brain against a bare loop."""
    number = list(QUICK).index(stage) + 1
    for setting, training in bench.trainings(stage):
        batches = training.load_batches()
        training.run_bare_epoch(batches)
        bare = training.flatten_weights()
        training.run_epoch()
        difference = training.flatten_weights() - bare
        # an epoch of few batches saves more often than a real one
        saving = Stopwatch()

        def start(brain, saving=saving):
            saving.wrap_method(brain.checkpointer, "save_and_keep_only")

        bare_seconds, seconds = alternate(
            partial(training.run_bare_epoch, batches),
            partial(training.run_epoch, start),
            bench.repeats,
        )
        share = saving.seconds / sum(seconds)
        bench.add(
            f"stage-{number} epoch, {setting}",
            divide(bare_seconds, seconds),
            f"bare loop / Brain, {len(batches)} batches; {share:.1%} of the "
            "latter is its checkpoint",
            difference=float(difference.norm() / bare.norm()),
        )


def check_count(bench):
    """Compares the formula with what torch counts; their ratio."""
    training = Training(bench.corpus("emodb", 8, 16), options=QUICK["adapter"])
    # of one length, so that attention computes no padding
    feats = PaddedData(torch.rand(4 * 50, 16), torch.full([4], 50))
    mask = torch.rand(4, 50) < 0.4
    valid = torch.ones_like(mask)
    batch = feats, torch.ones(4), valid, mask, None
    # the fused kernels are not counted
    with (
        mock.patch("speechbrain_wap.packing.KERNELS", [SDPBackend.MATH]),
        FlopCounterMode(display=False) as count,
    ):
        training.run_bare_epoch([batch])
    return count.get_total_flops() / count_step(training.hparams, valid, mask)


def time_arithmetic(bench):
    """Matrix products of a stage-1 step per second, against their peak."""
    counted = check_count(bench)
    if abs(counted - 1.0) > 0.01:
        raise RuntimeError(f"torch counts {counted:.3f} times the operations")
    sizes = [256] if bench.options.quick else [512, 1024, 2048, 4096]
    for setting, training in bench.trainings():
        operations = sum(
            count_step(training.hparams, valid, mask)
            for _, _, valid, mask, _ in training.load_batches()
        )
        training.time_steps()
        runs = training.time_steps, partial(find_peak, sizes)
        seconds, peaks = alternate(*runs, bench.repeats)
        bench.add(
            f"arithmetic, {setting}",
            [operations / s / peak for s, peak in zip(seconds, peaks)],
            "products of AdapterBrain's steps per second / peak of "
            f"{max(peaks) / 1e9:.0f} GFLOP/s",
            operations=operations,
            counted_by_torch=counted,
        )


def time_cached(bench):
    """Stage 1 from the cache against SpeechBrain's wrapper in the loop."""
    if not bench.emodb:
        bench.note(
            "cached: left out, it needs EmoDB and a Whisper checkpoint "
            "(--data_folder, --encoder_source, --encoder_layer)."
        )
        return
    folder = bench.folder / "cached"
    folder.mkdir()
    ratios, _ = compare_epochs(bench.emodb, bench.repeats, folder)
    text = "stage-1 epoch on EmoDB: SpeechBrain's wrapper in it / cached"
    bench.add("encoder in the loop", ratios, text)


def time_codebook(bench):
    """Codes and update of the local attributes, against other ways."""
    shape = QUICK_CODEBOOK if bench.options.quick else CODEBOOK
    codebooks = Codebooks(shape)
    same = codebooks.assign() == codebooks.cdist()
    agreement = int(same.sum()) / len(same)
    if agreement < 0.999:
        raise RuntimeError(f"only {agreement:.3%} of the codes are cdist's")
    vq = "vector-quantize-pytorch's EMA codebook / assign and update"
    cdist = "torch.cdist and argmin, no update / assign and update"
    # name, the other way, ours, what is timed
    pairs = [("vq", "theirs", "mine", vq), ("cdist", "cdist", "mine", cdist)]
    if codebooks.vq is None:
        bench.note("codebook: vector-quantize-pytorch is not installed.")
        pairs = pairs[1:]
    alone = "cdist", "assign", "torch.cdist and argmin / assign"

    def measure(way):
        return measure_seconds(getattr(codebooks, way))

    def measure_growth(way):
        # a page at least, to divide by
        return max(run_child(CODEBOOKS, way, *shape), 4096)

    for name, other, own, text in [*pairs, ("cdist, assign only", *alone)]:
        ways = partial(measure, other), partial(measure, own)
        values = divide(*bench.compare(*ways))
        bench.add(f"codebook / {name}", values, text, agreement=agreement)
    for name, other, own, text in pairs:
        ways = partial(measure_growth, other), partial(measure_growth, own)
        theirs, mine = alternate(*ways, bench.repeats)
        text = f"growth of peak: {text}"
        bench.add(f"codebook's memory / {name}", divide(theirs, mine), text)
    distances = 4 * shape[0] * shape[2]
    bench.add(
        "codebook's memory / N x K",
        [growth / distances for growth in mine],
        f"growth of peak, assign and update / {distances / 1e6:.0f} MB",
    )


def share_padding(hparams, lengths):
    """Computes the shares of a batch's arithmetic that go into padding.

    Returns
    -------
    packed : float
        Of WAPTransformer, with the groups that it makes for a GPU; on a CPU,
        it makes one for each length and computes no padding at all.
    padded : float
        Of a model that computes the whole padded batch.
    """
    longest, count = max(lengths), len(lengths)
    useful = count_forward(hparams, sum(lengths), sum(n * n for n in lengths))
    padded = count_forward(hparams, count * longest, count * longest**2)
    groups = Packing(lengths, longest, "cpu", LIKE_LENGTH_GPU).groups
    area = sum(b * n * n for b, n in (group.shape for group in groups))
    packed = count_forward(hparams, sum(lengths), area)
    return 1 - useful / packed, 1 - useful / padded


def measure_padding(bench):
    """Padding that is computed, with lengths like IEMOCAP's."""
    options = ["--data_folder=none", "--encoder_source=fbank"]
    options.append("--encoder_dim=1024")
    experiment = build_experiment("paper", "adapter", bench.folder, options)
    shares = []
    for seed in range(bench.repeats):
        lengths = np.array(draw_lengths("paper", 50 * PAPER_BATCH, seed))
        batches = lengths.reshape(50, PAPER_BATCH).tolist()
        each = [share_padding(experiment.hparams, batch) for batch in batches]
        shares.append(np.mean(each, axis=0))
    packed, padded = np.array(shares).T.tolist()
    text = "of arithmetic, batches of 96, each repetition other lengths: "
    bench.add("padding", packed, f"{text}WAPTransformer as on a GPU")
    text += "all frames of the padded batch"
    bench.add("padding, padded model", padded, text)


def measure_waiting(bench):
    """Time in the data loader, of an epoch's."""
    for setting, training in bench.trainings():

        def share(training=training):
            watch = Stopwatch()
            fetch = watch.wrap(Batches.__next__)
            with mock.patch.object(Batches, "__next__", fetch):
                seconds = training.run_epoch()
            return watch.seconds / seconds

        text = "time in the loader's __next__ / epoch of AdapterBrain"
        bench.add(f"waiting for data, {setting}", bench.repeat(share), text)


def time_ten_hours(bench):
    """Time in the steps of an epoch of ten hours; opening their cache.

    The paper's network at 128 dimensions, the cheapest for its data, on frames
    of 512. Each epoch is long enough to be measured once.
    """
    count = None if bench.options.quick else TEN_HOURS
    corpus = bench.corpus("paper", count, 512)
    width = ["--d_model=128", "--nhead=4", "--d_ffn=512"]
    training = bench.training("paper", options=width, corpus=corpus)

    def open_cache():
        """Builds the cache anew and looks every utterance up."""
        (cache,) = training.build().caches.values()
        digests = [e["digest"] for e in training.corpus["entries"].values()]
        if not all(map(cache.has_entry, digests)):
            raise RuntimeError("an utterance is not in the cache")

    opening = measure_seconds(open_cache)
    within = Stopwatch()
    seconds = training.run_epoch(lambda b: within.wrap_method(b, "fit_batch"))
    text = "time within steps / epoch of AdapterBrain, read from the cache"
    bench.add("steps, ten hours", [within.seconds / seconds], text)
    text = f"opening the cache and finding all, {opening:.1f} s / the epoch"
    bench.add("opening, ten hours", [opening / seconds], text)


def measure_memory(bench):
    """Peak memory of an epoch, with ten times the corpus."""
    count = 16 if bench.options.quick else EMODB_UTTERANCES
    quick = QUICK["adapter"] if bench.options.quick else []

    def run(count):
        return run_child(WORKLOADS, bench.corpus("emodb", count), *quick)

    small, large = alternate(
        partial(run, count), partial(run, 10 * count), bench.repeats
    )
    megabytes = np.median([small, large], axis=1) / 1e6
    bench.add(
        "memory, corpus x 10",
        [one[0] / other[0] for one, other in zip(large, small)],
        f"peak of a process: {megabytes[1, 0]:.0f} / {megabytes[0, 0]:.0f} MB, "
        f"of which {megabytes[0, 1]:.0f} MB before the epoch",
    )


def time_bf16(bench):
    """Steps in bf16 against float32."""
    for setting in bench.options.settings:
        steps = [
            bench.training(setting, options=[f"--precision={name}"]).time_steps
            for name in ("fp32", "bf16")
        ]
        values = divide(*bench.compare(*steps))
        text = "float32 / bf16, steps of AdapterBrain"
        bench.add(f"bf16, {setting}", values, text)


def time_linear(bench):
    """An epoch's time against the number of frames."""
    first = 8 if bench.options.quick else 64
    factors = (1, 2, 4) if bench.options.quick else (1, 4, 16, 32)
    small = ["--d_model=64", "--nhead=4", "--d_ffn=256", "--num_attributes=64"]
    trainings, frames = [], []
    for count in (first * factor for factor in factors):
        corpus = bench.corpus("emodb", count)
        trainings.append(bench.training("emodb", options=small, corpus=corpus))
        frames.append(sum(draw_lengths("emodb", count)))
    trainings[0].run_epoch()
    residuals, per_frame = [], []
    for _ in range(bench.repeats):
        seconds = np.array([training.run_epoch() for training in trainings])
        # t = a + b n, by least squares of the relative residuals
        terms = np.stack([np.ones(len(frames)), frames], axis=1)
        terms /= seconds[:, None]
        fit, *_ = np.linalg.lstsq(terms, np.ones(len(frames)), rcond=None)
        residuals.append(float(abs(terms @ fit - 1).max()))
        rates = seconds / frames
        per_frame.append((rates / rates[0]).tolist())
    bench.add(
        f"cost per frame, 1x to {factors[-1]}x",
        residuals,
        "largest deviation from a + b n, epochs of a small stage 1",
        frames=frames,
        per_frame=per_frame,
    )


def measure_bookkeeping(bench):
    """EMA update, masking and statistics, of a step's time."""
    for setting, training in bench.trainings():

        def share(training=training):
            step, watch = Stopwatch(), Stopwatch()

            def start(brain):
                step.wrap_method(brain, "fit_batch")
                watch.wrap_method(brain.hparams, "masks")
                watch.wrap_method(brain.modules.teacher, "update")
                watch.wrap_method(brain.statistics, "add")

            script = sys.modules["train_adapter"]
            spread = watch.wrap(script.frame_spread)
            with mock.patch.object(script, "frame_spread", spread):
                training.run_epoch(start)
            return watch.seconds / step.seconds

        text = "EMA update, masking, spread and statistics / steps"
        bench.add(f"bookkeeping, {setting}", bench.repeat(share), text)


def make_noise(folder, count):
    """Writes a corpus of noise as an own table; its CSV file."""
    random = np.random.default_rng(0)
    with open(folder / "noise.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "wav", "speaker", "session", "emo"])
        for number, length in enumerate(draw_lengths("emodb", count)):
            samples = random.normal(0, 3000, 320 * length).astype(np.int16)
            wavfile.write(folder / f"{number}.wav", 16000, samples)
            session = f"s{number % 5}"
            label = CLASSES[number // 5 % 4]
            rows.writerow([number, f"{number}.wav", session, session, label])
    return folder / "noise.csv"


def time_cross_validation(bench):
    """Both stages in five folds, against another checkout."""
    options = bench.options
    if not options.baseline:
        bench.note("cross_validation: left out, no --baseline is given.")
        return
    data, corpus = "EmoDB", bench.emodb
    if not corpus:
        data = "noise of EmoDB's size"
        folder = bench.folder / "noise"
        folder.mkdir()
        table = make_noise(folder, 40 if options.quick else 535)
        corpus = [f"--corpus_csv={table}", "--encoder_source=fbank"]

    def run(checkout, name, *more):
        outputs = bench.folder / f"cv-{name}"
        shutil.rmtree(outputs, ignore_errors=True)
        own = getattr(options, f"{name}_options")
        command = [
            sys.executable,
            "cross_validate.py",
            "hparams/adapter.yaml",
            "hparams/classifier.yaml",
            *corpus,
            f"--output_folder={outputs}",
            f"--cache_folder={bench.folder}/cv-{name}-cache",
            "--device=cpu",
            "--noprogressbar",
            *shlex.split(f"{options.cross_validation_options} {own}"),
            *more,
        ]
        checkout = Path(checkout).resolve()
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=checkout / "recipes/EmoDB/wap_adapter",
            env={**os.environ, "PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
        return time.perf_counter() - started

    own = partial(run, Path(__file__).parents[1], "own")
    runs = partial(run, options.baseline, "baseline"), own
    for warm_up in runs:  # features are cached from here on
        warm_up("--number_of_epochs=1")
    values = divide(*alternate(*runs, bench.repeats))
    text = f"baseline / this, both stages, features cached, on {data}"
    bench.add("cross_validate.py", values, text)


SECTIONS = {
    "stage1_loop": partial(compare_loops, stage="adapter"),
    "stage2_loop": partial(compare_loops, stage="classifier"),
    "arithmetic": time_arithmetic,
    "cached": time_cached,
    "codebook": time_codebook,
    "padding": measure_padding,
    "waiting": measure_waiting,
    "ten_hours": time_ten_hours,
    "memory": measure_memory,
    "bf16": time_bf16,
    "linear": time_linear,
    "bookkeeping": measure_bookkeeping,
    "cross_validation": time_cross_validation,
}


# Table and figure -------------------------------------------------------------


def show_figure(figure):
    """Writes median and spread; shares with a digit more."""
    ratio = [figure[key] for key in ("median", "lowest", "highest")]
    if figure["median"] < 0.2:
        return "{:.3f} ({:.3f} to {:.3f})".format(*ratio)
    return show_ratio(ratio)


def judge(figure):
    """Says whether a figure reaches its floor and its aim."""
    for name in ("aim", "floor"):
        bound, median = figure[name], figure["median"]
        if bound is None:
            continue
        if median >= bound if figure["at_least"] else median <= bound:
            return name
    return "-" if figure["floor"] is None else "misses its floor"


def format_table(figures):
    """Lays out all figures as a Markdown table."""
    header = ["figure", "ratio: median (lowest to highest)", "floor", "aim"]
    rows = []
    for figure in figures:
        sign = "" if figure["at_least"] else "at most "
        floor, aim = (
            "-" if figure[name] is None else f"{sign}{figure[name]:.2f}"
            for name in ("floor", "aim")
        )
        row = [figure["figure"], show_figure(figure), floor, aim]
        rows.append([*row, judge(figure), figure["timed"]])
    return markdown_table([*header, "reaches", "what was timed"], rows)


def draw_figure(figures, path):
    """Draws how far each figure is from its floor and its aim."""
    figures = [f for f in figures if f["floor"] is not None][::-1]
    figure = Figure(figsize=(8, 1 + 0.3 * max(len(figures), 1)))
    axes = figure.subplots()

    def relate(entry, key):
        """To the floor, so that more is better for all."""
        ratio = max(entry[key], 1e-6) / entry["floor"]
        return ratio if entry["at_least"] else 1 / ratio

    colours = {"aim": "tab:green", "floor": "tab:blue"}
    for place, entry in enumerate(figures):
        width = min(relate(entry, "median"), 100.0)
        colour = colours.get(judge(entry), "tab:red")
        # from the floor; the axis is logarithmic
        axes.barh(place, width - 1, left=1, color=colour, height=0.6)
        axes.plot(relate(entry, "aim"), place, "k|", markersize=12)
        spread = [relate(entry, key) for key in ("lowest", "highest")]
        axes.plot(np.clip(spread, None, 100), [place] * 2, color="0.3", lw=1)
    labels = [f"{entry['figure']}: {show_figure(entry)}" for entry in figures]
    axes.set_yticks(range(len(figures)), labels, fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="k", lw=1)
    axes.set_xlabel("better than the floor by this factor; |: the aim")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def parse_options(arguments):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data_folder", help="EmoDB")
    add("--encoder_source", help="checkpoint, for EmoDB")
    add("--encoder_layer", default="last")
    add("--repeats", type=int, default=3)
    add("--paper_batches", type=int, default=2)
    add("--settings", default="emodb,paper")
    add("--sections", default=",".join(SECTIONS))
    add("--json", help="file to write results to")
    add("--figure", help="file to draw results to")
    add("--baseline", help="checkout for cross_validation")
    for name, whose in {
        "cross_validation": "both checkouts'",
        "baseline": "the baseline's",
        "own": "this checkout's",
    }.items():
        text = f"further arguments of {whose} cross_validate.py"
        add(f"--{name}_options", default="", help=text)
    text = "tiny models and corpora: shows that all runs, measures nothing"
    add("--quick", action="store_true", help=text)
    options = parser.parse_args(arguments)
    for name, known in (("sections", SECTIONS), ("settings", SETTINGS)):
        chosen = getattr(options, name).split(",")
        setattr(options, name, chosen)
        unknown = set(chosen) - set(known)
        if unknown:
            parser.error(f"--{name} has no {', '.join(sorted(unknown))}")
    if "cached" in options.sections and options.encoder_source:
        if not options.encoder_layer.isdigit():
            parser.error("cached needs the number of an --encoder_layer")
    if options.repeats < 1 or options.paper_batches < 1:
        parser.error("--repeats and --paper_batches must be at least 1")
    return options


def main(arguments):
    """Runs the sections that a command line names; shows their figures."""
    logging.disable(logging.WARNING)
    options = parse_options(arguments)
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for name in options.sections:
            before = time.time()
            SECTIONS[name](bench)
            print(f"[{name}: {time.time() - before:.0f} s]", flush=True)
    print(f"\n{format_table(bench.figures)}\n")
    print("\n".join(bench.notes))
    if options.json:
        results = {
            "figures": bench.figures,
            "notes": bench.notes,
            "options": vars(options),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "minutes": (time.time() - started) / 60,
        }
        Path(options.json).write_text(json.dumps(results, indent=1), "utf-8")
    if options.figure:
        draw_figure(bench.figures, options.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
