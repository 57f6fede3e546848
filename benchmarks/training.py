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
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from codebooks import Codebooks
from extraction import compare_epochs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.io import wavfile
from timing import (
    Stopwatch,
    alternate,
    divide,
    measure_seconds,
    run_child,
    show_ratio,
    sum_up,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from train_adapter import AdapterBrain
from workloads import (
    QUICK,
    SETTINGS,
    Training,
    build_recipe,
    count_forward,
    count_step,
    draw_lengths,
    encode_emodb,
    make_corpus,
)

from speechbrain_wap.evaluation.report import markdown_table
from speechbrain_wap.masking import sample_utterance_masks
from speechbrain_wap.packing import LIKE_LENGTH_GPU, Packing

# Run as processes of their own
CODEBOOKS = Path(__file__).with_name("codebooks.py")
WORKLOADS = Path(__file__).with_name("workloads.py")
PAPER_BATCH = 96
EMODB_UTTERANCES = 427
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
        self.options = options
        self.folder = folder
        self.repeats = options.repeats
        self.figures = []
        self.notes = []
        # made once, by whichever section is first
        self.corpus = cache(self._make_corpus)

    def _make_corpus(self, setting, count=None, input_size=None):
        """Makes a corpus of a setting's own size or another."""
        options = self.options
        folder = self.folder / f"{setting}-{count}-{input_size}"
        folder.mkdir()
        if options.quick:
            count, input_size = count or 24, 16
        elif count is None and setting == "paper":
            count = PAPER_BATCH * options.paper_batches
        elif count is None and options.data_folder and options.encoder_source:
            encoder = [f"--encoder_source={options.encoder_source}"]
            encoder.append(f"--encoder_layer={options.encoder_layer}")
            return encode_emodb(options.data_folder, encoder, folder)
        count = count or EMODB_UTTERANCES
        return make_corpus(setting, count, folder, input_size)

    def training(self, setting, stage="adapter", options=(), corpus=None):
        """Makes a training; a tiny one for a quick look."""
        quick = QUICK[stage] if self.options.quick else []
        corpus = corpus or self.corpus(setting)
        return Training(corpus, stage, [*quick, *options])

    def add(self, figure, values, floor, aim, timed, at_least=True, **more):
        """Keeps and prints a figure.

        Arguments
        ---------
        figure : str
            Its name.
        values : list of float
            Of each repetition.
        floor : float or None
            What must be reached.
        aim : float or None
            What is hoped for.
        timed : str
            What was divided by what.
        at_least : bool
            Whether more is better.
        **more : dict
            Plain values, for the JSON file only.
        """
        median, lowest, highest = sum_up(values)
        self.figures.append(
            {
                "figure": figure,
                "median": median,
                "lowest": lowest,
                "highest": highest,
                "values": values,
                "floor": floor,
                "aim": aim,
                "at_least": at_least,
                "timed": timed,
                **more,
            }
        )
        print(f"{figure}: {show_figure(self.figures[-1])}", flush=True)

    def note(self, text):
        """Keeps and prints a remark."""
        self.notes.append(text)
        print(text, flush=True)


# Sections ---------------------------------------------------------------------


def compare_loops(bench, stage, floor, aim):
    """Times an epoch through the Brain against a bare loop."""
    for setting in bench.options.settings:
        training = bench.training(setting, stage)
        batches = training.load_batches()
        training.run_bare_epoch(batches)
        bare = training.flatten_weights()
        training.run_epoch()
        difference = training.flatten_weights() - bare
        training.saving.seconds = 0.0
        bare_seconds, seconds = alternate(
            partial(training.run_bare_epoch, batches),
            training.run_epoch,
            bench.repeats,
        )
        saving = training.saving.seconds / sum(seconds)
        number = {"adapter": 1, "classifier": 2}[stage]
        bench.add(
            f"stage-{number} epoch, {setting}",
            divide(bare_seconds, seconds),
            floor,
            aim,
            f"bare loop / Brain, {len(batches)} batches; {saving:.1%} of the "
            "latter is its checkpoint",
            difference=float(difference.norm() / bare.norm()),
        )


def time_stage1_loop(bench):
    """Stage 1 through AdapterBrain against a bare loop."""
    compare_loops(bench, "adapter", 0.90, 0.98)


def time_stage2_loop(bench):
    """Stage 2 through EmotionBrain against a bare loop."""
    compare_loops(bench, "classifier", 0.85, 0.95)


def time_steps(training):
    """Runs an epoch; the seconds within its steps."""
    watch = Stopwatch()

    def start(brain, loader):
        brain.fit_batch = watch.wrap(brain.fit_batch)

    training.run_epoch(start)
    return watch.seconds


def find_peak(sizes):
    """Measures products of square matrices; the most operations a second."""
    rates = []
    for size in sizes:
        one, other = torch.rand(2, size, size)
        product = torch.empty(size, size)
        multiply = partial(torch.mm, one, other, out=product)
        multiply()
        seconds = min(measure_seconds(multiply) for _ in range(3))
        rates.append(2 * size**3 / seconds)
    return max(rates)


def check_count(bench):
    """Compares the formula with what torch counts; their ratio."""
    corpus = bench.corpus("emodb", 8, 16)
    training = Training(corpus, "adapter", QUICK["adapter"])
    # of one length, so that attention computes no padding
    feats = torch.rand(4, 50, 16)
    mask = torch.rand(4, 50) < 0.4
    valid = torch.ones_like(mask)
    batches = [(feats, torch.ones(4), valid, mask, None)]
    training.max_grad_norm = 5.0
    # the fused kernels are not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        training.run_bare_epoch(batches)
    formula = count_step(training.hparams, [50] * 4, int(mask.sum()))
    return count.get_total_flops() / formula


def time_arithmetic(bench):
    """Matrix products of a stage-1 step per second, against their peak."""
    counted = check_count(bench)
    if abs(counted - 1.0) > 0.01:
        raise RuntimeError(f"torch counts {counted:.3f} times the operations")
    sizes = [256] if bench.options.quick else [512, 1024, 2048, 4096]
    for setting in bench.options.settings:
        training = bench.training(setting)
        operations = sum(
            count_step(training.hparams, lens, num_masked)
            for lens, num_masked in [
                (valid.sum(dim=1).tolist(), int(mask.sum()))
                for _, _, valid, mask, _ in training.load_batches()
            ]
        )
        time_steps(training)
        seconds, peaks = alternate(
            partial(time_steps, training),
            partial(find_peak, sizes),
            bench.repeats,
        )
        bench.add(
            f"arithmetic, {setting}",
            [operations / s / peak for s, peak in zip(seconds, peaks)],
            0.45,
            0.70,
            "products of AdapterBrain's steps per second / peak of "
            f"{max(peaks) / 1e9:.0f} GFLOP/s",
            operations=operations,
            counted_by_torch=counted,
        )


def time_cached(bench):
    """Stage 1 from the cache against SpeechBrain's wrapper in the loop."""
    options = bench.options
    if not (options.data_folder and options.encoder_source):
        bench.note(
            "cached: left out, it needs EmoDB and a Whisper checkpoint "
            "(--data_folder, --encoder_source, --encoder_layer)."
        )
        return
    folder = bench.folder / "cached"
    folder.mkdir()
    ratios, *_ = compare_epochs(
        options.data_folder,
        options.encoder_source,
        int(options.encoder_layer),
        bench.repeats,
        folder,
    )
    bench.add(
        "encoder in the loop",
        ratios,
        20.0,
        100.0,
        "stage-1 epoch on EmoDB: SpeechBrain's wrapper in it / cached",
    )


def time_codebook(bench):
    """Codes and update of the local attributes, against other ways."""
    shape = QUICK_CODEBOOK if bench.options.quick else CODEBOOK
    codebooks = Codebooks(shape)
    mine, cdist = codebooks.assign(), codebooks.cdist()
    agreement = float((mine == cdist).float().mean())
    if agreement < 0.999:
        raise RuntimeError(f"only {agreement:.3%} of the codes are cdist's")
    # name, the other way, ours, what is timed
    pairs = [
        (
            "cdist",
            "cdist",
            "mine",
            "torch.cdist and argmin, no update / assign and update",
        ),
        (
            "cdist, assign only",
            "cdist",
            "assign",
            "torch.cdist and argmin / assign",
        ),
    ]
    if codebooks.vq is None:
        bench.note("codebook: vector-quantize-pytorch is not installed.")
    else:
        text = "vector-quantize-pytorch's EMA codebook / assign and update"
        pairs.insert(0, ("vq", "theirs", "mine", text))
    for name, *ways, text in pairs:
        runs = [
            partial(measure_seconds, getattr(codebooks, way)) for way in ways
        ]
        runs[0](), runs[1]()
        values = divide(*alternate(*runs, bench.repeats))
        bench.add(
            f"codebook / {name}", values, 1.0, 2.0, text, agreement=agreement
        )

    def measure_growth(way):
        # a page at least, to divide by
        return max(run_child(CODEBOOKS, way, *shape), 4096)

    for name, other, own, text in pairs:
        if own == "mine":
            theirs, mine = alternate(
                partial(measure_growth, other),
                partial(measure_growth, own),
                bench.repeats,
            )
            bench.add(
                f"codebook's memory / {name}",
                divide(theirs, mine),
                1.0,
                2.0,
                f"growth of peak: {text}",
            )
    distances = 4 * shape[0] * shape[2]
    bench.add(
        "codebook's memory / N x K",
        [growth / distances for growth in mine],
        None,
        1.0,
        f"growth of peak, assign and update / {distances / 1e6:.0f} MB",
        at_least=False,
    )


def share_padding(hparams, lengths):
    """Computes the shares of arithmetic that go into padding.

    Arguments
    ---------
    hparams : dict
        Of the recipe.
    lengths : list of int
        Frames of the batch's utterances.

    Returns
    -------
    padded : float
        Of a model that computes the whole padded batch.
    packed : float
        Of WAPTransformer, with the groups that it makes for a GPU; on a CPU,
        it makes one for each length and computes no padding at all.
    """
    longest, count = max(lengths), len(lengths)
    useful = count_forward(hparams, sum(lengths), sum(n * n for n in lengths))
    padded = count_forward(hparams, count * longest, count * longest**2)
    lens = torch.tensor(lengths) / longest
    groups = Packing(lens, longest, "cpu", LIKE_LENGTH_GPU).groups
    area = sum(b * n * n for b, n in (group.shape for group in groups))
    packed = count_forward(hparams, sum(lengths), area)
    return 1 - useful / padded, 1 - useful / packed


def measure_padding(bench):
    """Padding that is computed, with lengths like IEMOCAP's."""
    options = ["--data_folder=none", "--encoder_source=fbank"]
    options.append("--encoder_dim=1024")
    hparams, _ = build_recipe("paper", "adapter", bench.folder, options)
    shares = []
    for seed in range(bench.repeats):
        lengths = draw_lengths("paper", 50 * PAPER_BATCH, seed)
        starts = range(0, len(lengths), PAPER_BATCH)
        batches = [lengths[start : start + PAPER_BATCH] for start in starts]
        shares.append(
            np.mean([share_padding(hparams, b) for b in batches], axis=0)
        )
    padded, packed = np.array(shares).T.tolist()
    text = "of arithmetic, batches of 96, each repetition other lengths: "
    bench.add(
        "padding",
        packed,
        0.10,
        0.03,
        f"{text}WAPTransformer as on a GPU",
        at_least=False,
    )
    bench.add(
        "padding, padded model",
        padded,
        None,
        None,
        f"{text}all frames of the padded batch",
        at_least=False,
    )


def measure_waiting(bench):
    """Time in the data loader, of an epoch's."""
    for setting in bench.options.settings:
        training = bench.training(setting)

        def share(training=training):
            watch = Stopwatch()

            def start(brain, loader):
                # a subclass, since SpeechBrain asks for a DataLoader
                kind = type(loader)

                def iterate(self):
                    batches = watch.wrap(kind.__iter__)(self)
                    ended = object()
                    fetch = watch.wrap(lambda: next(batches, ended))
                    while (batch := fetch()) is not ended:
                        yield batch

                loader.__class__ = type("T", (kind,), {"__iter__": iterate})

            seconds = training.run_epoch(start)
            return watch.seconds / seconds

        share()
        bench.add(
            f"waiting for data, {setting}",
            [share() for _ in range(bench.repeats)],
            0.10,
            0.02,
            "time in the loader's __next__ / epoch of AdapterBrain",
            at_least=False,
        )


def measure_memory(bench):
    """Peak memory of an epoch, with ten times the corpus."""
    count = 16 if bench.options.quick else EMODB_UTTERANCES
    quick = QUICK["adapter"] if bench.options.quick else []

    def run(count):
        corpus = bench.corpus("emodb", count)
        return run_child(WORKLOADS, corpus, *quick)

    small, large = alternate(
        partial(run, count), partial(run, 10 * count), bench.repeats
    )
    megabytes = np.median([small, large], axis=1) / 1e6
    bench.add(
        "memory, corpus x 10",
        [one[0] / other[0] for one, other in zip(large, small)],
        1.20,
        1.02,
        f"peak of a process: {megabytes[1, 0]:.0f} / {megabytes[0, 0]:.0f} MB, "
        f"of which {megabytes[0, 1]:.0f} MB before the epoch",
        at_least=False,
    )


def time_bf16(bench):
    """Steps in bf16 against float32."""
    for setting in bench.options.settings:
        trainings = [
            bench.training(setting, options=[f"--precision={precision}"])
            for precision in ("fp32", "bf16")
        ]
        for training in trainings:
            time_steps(training)
        values = divide(
            *alternate(
                *[partial(time_steps, t) for t in trainings], bench.repeats
            )
        )
        bench.add(
            f"bf16, {setting}",
            values,
            1.0,
            1.5,
            "float32 / bf16, steps of AdapterBrain",
        )


def time_linear(bench):
    """An epoch's time against the number of frames."""
    first = 8 if bench.options.quick else 64
    factors = (1, 2, 4) if bench.options.quick else (1, 4, 16, 32)
    small = ["--d_model=64", "--nhead=4", "--d_ffn=256", "--num_attributes=64"]
    trainings = [
        bench.training(
            "emodb", options=small, corpus=bench.corpus("emodb", first * factor)
        )
        for factor in factors
    ]
    frames = np.array([sum(training.frames) for training in trainings])
    trainings[0].run_epoch()
    residuals, per_frame = [], []
    for _ in range(bench.repeats):
        seconds = np.array([training.run_epoch() for training in trainings])
        # t = a + b n, by least squares of the relative residuals
        terms = np.stack([np.ones(len(frames)), frames], axis=1)
        fit, *_ = np.linalg.lstsq(
            terms / seconds[:, None], np.ones(len(frames)), rcond=None
        )
        residuals.append(float(abs(terms @ fit / seconds - 1).max()))
        rates = seconds / frames
        per_frame.append((rates / rates[0]).tolist())
    bench.add(
        f"cost per frame, 1x to {factors[-1]}x",
        residuals,
        0.15,
        0.05,
        "largest deviation from a + b n, epochs of a small stage 1",
        at_least=False,
        frames=frames.tolist(),
        per_frame=per_frame,
    )


def replace_everywhere(stack, function, replacement):
    """Replaces a function in all modules of the project that hold it."""
    for name, module in list(sys.modules.items()):
        if not name.startswith(("speechbrain_wap", "train_")):
            continue
        for key, value in list(vars(module).items()):
            if value is function:
                stack.enter_context(mock.patch.object(module, key, replacement))


def measure_bookkeeping(bench):
    """EMA update, masking and statistics, of a step's time."""
    script = sys.modules[AdapterBrain.__module__]
    spread = getattr(script, "teacher_spread", None)
    for setting in bench.options.settings:
        training = bench.training(setting)

        def share(training=training):
            step, watch = Stopwatch(), Stopwatch()
            teacher = training.modules["teacher"]
            statistics = training.hparams["statistics"]
            with ExitStack() as stack:
                for function in filter(None, (sample_utterance_masks, spread)):
                    timed = watch.wrap(function)
                    replace_everywhere(stack, function, timed)
                for owner, name in ((teacher, "update"), (statistics, "add")):
                    timed = watch.wrap(getattr(owner, name))
                    patch = mock.patch.object(owner, name, timed)
                    stack.enter_context(patch)

                def start(brain, loader):
                    brain.fit_batch = step.wrap(brain.fit_batch)

                training.run_epoch(start)
            return watch.seconds / step.seconds

        share()
        bench.add(
            f"bookkeeping, {setting}",
            [share() for _ in range(bench.repeats)],
            0.05,
            0.01,
            "EMA update, masking, spread and statistics / steps",
            at_least=False,
        )


def make_noise(folder, count):
    """Writes a corpus of noise as an own table; its CSV file."""
    random = np.random.default_rng(0)
    labels = ("anger", "happiness", "sadness", "neutral")
    with open(folder / "noise.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "wav", "speaker", "session", "emo"])
        for number, length in enumerate(draw_lengths("emodb", count)):
            samples = random.normal(0, 3000, 320 * length).astype(np.int16)
            wavfile.write(folder / f"{number}.wav", 16000, samples)
            session = f"s{number % 5}"
            label = labels[number // 5 % 4]
            rows.writerow([number, f"{number}.wav", session, session, label])
    return folder / "noise.csv"


def time_cross_validation(bench):
    """Both stages in five folds, against another checkout."""
    options = bench.options
    if not options.baseline:
        bench.note("cross_validation: left out, no --baseline is given.")
        return
    if options.data_folder and options.encoder_source:
        data = "EmoDB"
        corpus = [
            f"--data_folder={options.data_folder}",
            f"--encoder_source={options.encoder_source}",
            f"--encoder_layer={options.encoder_layer}",
        ]
    else:
        data = "noise of EmoDB's size"
        folder = bench.folder / "noise"
        folder.mkdir()
        table = make_noise(folder, 40 if options.quick else 535)
        corpus = [f"--corpus_csv={table}", "--encoder_source=fbank"]

    def run(checkout, name, more):
        outputs = bench.folder / f"cv-{name}"
        shutil.rmtree(outputs, ignore_errors=True)
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
            *shlex.split(options.cross_validation_options),
            *shlex.split(more),
        ]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=Path(checkout, "recipes/EmoDB/wap_adapter").resolve(),
            env={**os.environ, "PYTHONPATH": str(Path(checkout).resolve())},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
        return time.perf_counter() - started

    here = Path(__file__).parents[1]
    runs = [
        partial(run, options.baseline, "baseline", options.baseline_options),
        partial(run, here, "own", options.own_options),
    ]
    # features are cached from here on
    short = "--number_of_epochs=1"
    run(options.baseline, "baseline", f"{options.baseline_options} {short}")
    run(here, "own", f"{options.own_options} {short}")
    bench.add(
        "cross_validate.py",
        divide(*alternate(*runs, bench.repeats)),
        2.0,
        4.0,
        f"baseline / this, both stages, features cached, on {data}",
    )


SECTIONS = {
    "stage1_loop": time_stage1_loop,
    "stage2_loop": time_stage2_loop,
    "arithmetic": time_arithmetic,
    "cached": time_cached,
    "codebook": time_codebook,
    "padding": measure_padding,
    "waiting": measure_waiting,
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
    rows = []
    for figure in figures:
        sign = "" if figure["at_least"] else "at most "
        bounds = [
            "-" if figure[name] is None else f"{sign}{figure[name]:.2f}"
            for name in ("floor", "aim")
        ]
        rows.append(
            [
                figure["figure"],
                show_figure(figure),
                *bounds,
                judge(figure),
                figure["timed"],
            ]
        )
    header = ["figure", "ratio: median (lowest to highest)", "floor", "aim"]
    return markdown_table([*header, "reaches", "what was timed"], rows)


def draw_figure(figures, path):
    """Draws how far each figure is from its floor and its aim.

    Arguments
    ---------
    figures : list of dict
        What Bench.add kept.
    path : str
        The file to write.
    """
    figures = [f for f in figures if f["floor"] is not None][::-1]
    figure = Figure(figsize=(8, 1 + 0.3 * max(len(figures), 1)))
    FigureCanvasAgg(figure)
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
    axes.set_yticks(
        range(len(figures)),
        [f"{e['figure']}: {show_figure(e)}" for e in figures],
        fontsize=7,
    )
    axes.set_xscale("log")
    axes.axvline(1, color="k", lw=1)
    axes.set_xlabel("better than the floor by this factor; |: the aim")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def parse_options(arguments):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_folder", help="EmoDB")
    parser.add_argument("--encoder_source", help="checkpoint, for EmoDB")
    parser.add_argument("--encoder_layer", default="last")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--paper_batches", type=int, default=2)
    parser.add_argument("--settings", default="emodb,paper")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--json", help="file to write results to")
    parser.add_argument("--figure", help="file to draw results to")
    parser.add_argument("--baseline", help="checkout for cross_validation")
    parser.add_argument(
        "--cross_validation_options",
        default="",
        help="further arguments of both checkouts' cross_validate.py",
    )
    parser.add_argument(
        "--baseline_options",
        default="",
        help="further arguments of the baseline's cross_validate.py",
    )
    parser.add_argument(
        "--own_options",
        default="",
        help="further arguments of this checkout's cross_validate.py",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models and corpora: shows that all runs, measures nothing",
    )
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
    """Runs the sections and shows their figures.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
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
