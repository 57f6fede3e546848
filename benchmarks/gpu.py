"""Proves and measures the recipes on a GPU: one command, at most 8 minutes.

> python benchmarks/gpu.py --json=gpu.json

Five sections, each a process of its own with a time limit: "numbers" (the same
as a CPU's), "precision" (bf16, fp16, torch.compile, kernels of attention),
"waiting" (where a step waits for the GPU), "speed" (ratios of two things that
are timed in turn) and "capacity" (largest batch, seconds of an epoch).
Everything is made on the spot; nothing is downloaded. What fails is a row of
the table, and the exit status is then not zero.

> python benchmarks/gpu.py --quick

runs all sections tiny on a CPU, which measures nothing, and names what only
CUDA can tell.
"""

import argparse
import io
import json
import logging
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from codebooks import Codebooks
from extraction import make_hubert
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.data_utils import batch_pad_right
from timing import RECIPES, alternate, divide, measure_seconds, sum_up
from torch.profiler import ProfilerActivity, profile
from workloads import QUICK, Training, count_step, find_peak, make_corpus

from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.evaluation.cross_validate import cross_validate
from speechbrain_wap.evaluation.report import markdown_table
from speechbrain_wap.packing import Packing
from speechbrain_wap.training.cross_validation import CrossValidation

REPOSITORY = RECIPES.parent
sys.path.insert(0, str(REPOSITORY / "demo"))
from make_corpus import make_demo_corpus  # noqa: E402

STAGES = {"adapter": "stage 1", "classifier": "stage 2"}
PAPER_BATCH = 96
IEMOCAP_UTTERANCES = 7900
# Stands for a corpus of ten times as many utterances, each once
COPIES = 10
SAME_NUMBERS = 1e-4
SAME_LOSS = 0.02
HUBERT_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
QUICK_HUBERT = {
    **HUBERT_LARGE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
}
# No dropout: devices draw other numbers
CROSS_VALIDATION = (
    "--encoder_source=fbank --d_model=64 --nhead=4 --d_ffn=128 --dropout=0 "
    "--max_frames=300 --mlp_residual=True --num_attributes=64 --batch_size=16 "
    "--lr=0.001 --classifier_lr=0.005 --adapter.number_of_epochs=2 "
    "--classifier.number_of_epochs=6 --probe_every=0 --noprogressbar"
)
QUICK_CROSS_VALIDATION = (
    "--folds=1 --d_model=16 --d_ffn=32 --classifier.number_of_epochs=1 "
    "--adapter.number_of_epochs=1"
)


class Section:
    """Makes what a section's checks train on, and writes their rows.

    Arguments
    ---------
    name : str
        One of SECTIONS.
    options : argparse.Namespace
        The command line.
    folder : pathlib.Path
        For temporary files, which sections share.
    """

    def __init__(self, name, options, folder):
        self.name, self.folder, self.quick = name, folder, options.quick
        self.device = torch.device(options.device)
        self.on_cuda = self.device.type == "cuda"
        self.repeats = 1 if self.quick else options.repeats
        self.ends = time.time() + SECTIONS[name][0]

    def corpus(self, count, copies=1):
        """Makes a corpus of IEMOCAP-like lengths, once for all sections."""
        count, size = (16, 16) if self.quick else (count, None)
        folder = self.folder / f"corpus-{count}-{copies}"
        if not (folder / "corpus.json").exists():
            folder.mkdir(exist_ok=True)
            make_corpus("paper", count, folder, size, copies)
        return folder

    def training(self, stage, count, *options, copies=1):
        """Makes a training of the paper's settings; a tiny one if quick."""
        options = [f"--device={self.device}", *options]
        options += QUICK[stage] if self.quick else []
        return Training(self.corpus(count, copies), stage, options)

    def encoder(self):
        """Makes an encoder of HuBERT-large's size with random weights."""
        folder = self.folder / "hubert"
        if not (folder / "preprocessor_config.json").exists():
            make_hubert(folder, **QUICK_HUBERT if self.quick else HUBERT_LARGE)
        return SpeechEncoder(str(folder))

    def compare(self, *runs):
        """Times two functions in turn, after a warm-up; seconds of each."""
        for run in runs:
            run()
        timed = [partial(measure_seconds, run) for run in runs]
        return alternate(*timed, self.repeats)

    def write(self, figure, value, bound="", reached="-", **more):
        """Writes and prints a row."""
        row = {"section": self.name, "figure": figure, "value": value}
        row.update(bound=bound, reached=reached, **more)
        with open(rows_file(self.folder, self.name), "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{figure}: {value} [{reached}]", flush=True)

    def add(self, figure, values, what, least=None, most=None, must=False):
        """Adds a figure.

        Arguments
        ---------
        figure : str
            Its name.
        values : list of float
            Of each repetition.
        what : str
            What it is.
        least, most : float, optional
            What its median should reach.
        must : bool
            Whether it is an error if not, even in a quick look.
        """
        median, lowest, highest = sum_up(values)
        value, bound, reached = f"{median:.3g}", "", "-"
        if len(values) > 1:
            value += f" ({lowest:.3g} to {highest:.3g})"
        if least is not None or most is not None:
            is_reached = median >= least if most is None else median <= most
            bound = f"at least {least}" if most is None else f"at most {most}"
            if must or not self.quick:
                reached = "yes" if is_reached else "FAILED" if must else "no"
        self.write(figure, value, bound, reached, what=what, values=values)

    def leave_to_cuda(self, figure):
        """Adds a row for what a CPU cannot tell."""
        self.write(figure, "only on CUDA", what="")

    def attempt(self, figure, check, *arguments):
        """Calls a function; an error becomes a row."""
        try:
            check(self, *arguments)
        except Exception as error:
            self.fail(figure, error)

    def fail(self, figure, error):
        """Adds a row for an error."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(place.filename).name}:{place.lineno}"
        lines = str(error).strip().splitlines() or [""]
        value = f"{type(error).__name__} at {place}: {lines[0][:200]}"
        text = "".join(traceback.format_exception(error))
        self.write(figure, value, reached="FAILED", what="", traceback=text)


def rows_file(folder, section):
    """Where a section's rows are, one a line."""
    return folder / f"{section}.jsonl"


# Numbers ----------------------------------------------------------------------


def relative_error(value, expected, least=0.0):
    """Norm of a difference against that of what is expected, or the least."""
    value, expected = value.double().cpu(), expected.double().cpu()
    return float((value - expected).norm() / expected.norm().clamp(min=least))


def compute_values(training, batch, codes=None):
    """Computes a step's values and gradients from the start of a training."""
    training.place_modules()
    values = training.compute_losses(batch, 0.5, codes)
    values["loss"].backward()
    gradients = [
        parameter.grad
        for module in training.modules.values()
        for parameter in module.parameters()
        if parameter.grad is not None
    ]
    if training.is_adapter:
        attributes = training.modules["local_attributes"]
        values["attributes after the update"] = attributes.codebook
    return {name: value.detach() for name, value in values.items()}, gradients


def compare_values(section, stage):
    """Outputs, losses, gradients and codebook of the device and a CPU."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    given = 16, "--batch_size=16", "--dropout=0"
    on_cpu = section.training(stage, *given, "--device=cpu")
    on_device = section.training(stage, *given)
    batch = on_cpu.load_batches()[0]
    expected, gradients = compute_values(on_cpu, batch)
    # where two attributes are equally near, rounding decides: the same codes
    codes = expected.pop("codes", None)
    given = None if codes is None else codes.to(section.device)
    values, own_gradients = compute_values(on_device, batch, given)
    limit = {"most": SAME_NUMBERS, "must": True}
    what = f"{section.device} against cpu, float32: relative error"
    if codes is not None:
        share = (values.pop("codes").cpu() == codes).float().mean()
        text = f"{section.device} and cpu: share of equal codes"
        figure = f"{STAGES[stage]}, nearest attributes"
        section.add(figure, [float(share)], text, least=0.999, must=True)
    for name, value in expected.items():
        error = relative_error(values[name], value)
        section.add(f"{STAGES[stage]}, {name}", [error], what, **limit)
    # what is next to zero is made of rounding
    least = 1e-3 * max(float(gradient.norm()) for gradient in gradients)
    errors = [
        relative_error(own, gradient, least)
        for own, gradient in zip(own_gradients, gradients)
    ]
    what += f", the largest of {len(errors)} parameters"
    section.add(f"{STAGES[stage]}, gradients", [max(errors)], what, **limit)


def compare_encoders(section):
    """Features of an encoder of HuBERT-large's size."""
    torch.backends.cudnn.allow_tf32 = False
    random = torch.Generator().manual_seed(0)
    wavs = torch.randn(2, 16000 if section.quick else 64000, generator=random)
    lens = torch.tensor([1.0, 0.7])
    encoder = section.encoder()
    expected = encoder(wavs, lens)
    encoder.load(section.device)
    feats = encoder(wavs.to(section.device), lens.to(section.device))
    section.add(
        "features of HuBERT-large's size",
        [relative_error(feats, expected)],
        f"{section.device} against cpu, float32: relative error",
        most=SAME_NUMBERS,
        must=True,
    )


def compare_cross_validations(section):
    """Unweighted accuracy of both stages in five folds."""
    corpus = section.folder / "demo"
    make_demo_corpus(corpus, utterances_per_speaker=4 if section.quick else 10)
    options = CROSS_VALIDATION.split()
    options += QUICK_CROSS_VALIDATION.split() if section.quick else []
    options += [f"--data_folder={corpus}"]
    options += [f"--cache_folder={section.folder}/demo_cache"]
    # the train scripts are found where it is started
    os.chdir(RECIPES / "IEMOCAP/wap_adapter")
    accuracies = []
    for number, device in enumerate(("cpu", str(section.device))):
        yamls = ["hparams/adapter.yaml", "hparams/classifier.yaml"]
        own = [f"--device={device}"]
        own += [f"--output_folder={section.folder}/demo_results{number}"]
        with redirect_stdout(io.StringIO()):
            results = cross_validate(CrossValidation(yamls + options + own))
        accuracies.append(100 * results["mean"]["UA"])
    section.add(
        "cross-validation, synthetic corpus",
        [abs(accuracies[1] - accuracies[0])],
        f"points of UA between cpu ({accuracies[0]:.1f} %) and "
        f"{section.device} ({accuracies[1]:.1f} %)",
        most=5.0,
        must=True,
    )


# Precision --------------------------------------------------------------------


def compare_losses(section, stage):
    """The loss after 50 steps in each precision, against float32's."""
    given = 16 * 50, "--batch_size=16"
    expected = train(section, stage, *given)
    for kind, option in {
        "bf16": "--precision=bf16",
        "fp16": "--precision=fp16",
        "compiled": "--compile",
    }.items():
        figure = f"{STAGES[stage]}, {kind}"
        if kind != "bf16" and not section.on_cuda:
            section.leave_to_cuda(figure)
            continue
        section.attempt(
            figure, compare_loss, figure, expected, stage, *given, option
        )


def train(section, *given):
    """Trains an epoch; the mean loss of its last ten steps."""
    losses = Training.run_steps(*section.training(*given).start_steps())
    return sum(losses[-10:]) / len(losses[-10:])


def compare_loss(section, figure, expected, *given):
    """A loss that is finite, and how far it is from what is expected."""
    loss = train(section, *given)
    what = f"share by which the last loss ({loss:.4f}) is off float32's"
    error = abs(loss / expected - 1)
    section.add(figure, [error], what, most=SAME_LOSS, must=True)


def name_attention(section, precision):
    """Which kernels attention takes."""
    option = f"--precision={precision}"
    brain, loader = section.training(
        "adapter", PAPER_BATCH, option
    ).start_steps()
    with record(section) as profiler:
        Training.run_steps(brain, loader)
    start = "aten::_scaled_dot_product_"
    kernels = Counter(
        event.name.removeprefix(start)
        for event in profiler.events()
        if event.name.startswith(start) and "backward" not in event.name
    )
    text = ", ".join(f"{count} {name}" for name, count in kernels.most_common())
    is_fused = kernels and not any("math" in name for name in kernels)
    section.write(
        f"attention, {precision}",
        text or "none was seen",
        "flash, efficient or cudnn",
        ("yes" if is_fused else "FAILED") if section.on_cuda else "-",
        what="kernels of a step of stage 1 and how often each",
    )


def record(section):
    """Makes torch's profiler for the device."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if section.on_cuda else []
    return profile(activities=activities)


# Waiting ----------------------------------------------------------------------


@contextmanager
def forbid_waiting(mode):
    """Lets a step that waits for the GPU warn, or fail."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode(mode)
        try:
            yield said
        finally:
            torch.cuda.set_sync_debug_mode("default")


def allow_waiting(function):
    """Makes a function that does the same and may wait for the GPU."""

    def waiting(*args, **kwargs):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return waiting


def find_waits(section, stage):
    """Where a step waits, and what it copies and starts."""
    name = STAGES[stage]
    training = section.training(stage, 4 * PAPER_BATCH, "--precision=bf16")
    brain, loader = training.start_steps()
    batches = list(loader)
    run = partial(Training.run_steps, brain, batches)
    run()
    seconds = measure_seconds(run)
    with record(section) as profiler:
        run()
    events = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]
    figures = "copies to the host", "copies to the device", "kernels", "busy"
    if not section.on_cuda:
        for figure in (*figures, "steps that do not wait", "places that wait"):
            section.leave_to_cuda(f"{name}, {figure}")
        return
    copies = Counter(event.name[:11] for event in events)
    counts = copies["Memcpy DtoH"], copies["Memcpy HtoD"], len(events)
    for figure, count, most in zip(figures, counts, (1, None, None)):
        text = "per step, by the profiler"
        count /= len(batches)
        section.add(f"{name}, {figure}", [count], text, most=most)
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e6
    text = "seconds of the kernels (while profiled) / of the steps"
    section.add(f"{name}, busy", [busy / seconds], text)
    with forbid_waiting("warn") as said:
        run()
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in said
        if "synchronizing" in str(warning.message)
    )
    text = ", ".join(f"{place} {n}x" for place, n in places.most_common())
    what = f"in {len(batches)} steps, the check of the loss among them"
    section.write(f"{name}, places that wait", text or "none", what=what)
    # the finite loss is looked at in each step, as is documented
    brain.check_loss_isfinite = allow_waiting(brain.check_loss_isfinite)
    with forbid_waiting("error"):
        run()
    text = "set_sync_debug_mode('error'), but for the check of the loss"
    section.write(
        f"{name}, steps that do not wait",
        str(len(batches)),
        "",
        "yes",
        what=text,
    )


# Speed ------------------------------------------------------------------------


def compare_steps(section, stage, precision):
    """Steps of a Brain against a bare loop; products against their peak."""
    option = f"--precision={precision}"
    training = section.training(stage, 8 * PAPER_BATCH, option)
    batches = training.load_batches()

    def run_brain():
        brain, loader = training.start_steps()
        loaded = list(loader)
        return measure_seconds(partial(Training.run_steps, brain, loaded))

    run_bare = partial(training.run_bare_epoch, batches)
    run_brain(), run_bare()
    bare, seconds = alternate(run_bare, run_brain, section.repeats)
    figure = f"{STAGES[stage]}, steps, {precision}"
    rate = len(batches) / min(seconds)
    what = f"bare loop / Brain, batches in memory; {rate:.1f} steps per second"
    section.add(figure, divide(bare, seconds), what, least=0.95)
    if (stage, precision) != ("adapter", "bf16"):
        return
    operations = sum(
        count_step(training.hparams, valid, mask)
        for _, _, valid, mask, _ in batches
    )
    sizes = [256] if section.quick else [4096, 8192]
    peak = find_peak(sizes, section.device, torch.bfloat16)
    section.add(
        "stage 1, products, bf16",
        [operations / s / peak for s in seconds],
        f"products per second / peak of {peak / 1e12:.3g} TFLOP/s",
        least=0.35,
    )


def compare_packing(section):
    """A padded batch that the device packs against one packed on the host."""
    training = section.training("adapter", PAPER_BATCH)
    dataset = training.dataset
    batch = [dataset[n]["feats"] for n in range(min(PAPER_BATCH, len(dataset)))]
    shape = sum(map(len, batch)), batch[0].shape[1]

    def pack_there():
        padded, lens = batch_pad_right(batch)
        packing = Packing(lens, padded.shape[1], section.device)
        return packing.pack(padded.to(section.device, non_blocking=True))

    def pack_here():
        packed = torch.empty(
            shape, dtype=batch[0].dtype, pin_memory=section.on_cuda
        )
        torch.cat(batch, out=packed)
        return packed.to(section.device, non_blocking=True)

    padded = batch_pad_right(batch)[0].nbytes / 1e6
    section.add(
        "a batch's way to the device",
        divide(*section.compare(pack_there, pack_here)),
        f"padded, {padded:.0f} MB, pageable / packed on the host, "
        f"{pack_here().nbytes / 1e6:.0f} MB, pinned",
    )


def time_extraction(section):
    """Utterances one at a time against batches of equal length."""
    encoder = section.encoder()
    encoder.load(section.device)
    count, seconds = (2, 1) if section.quick else (16, 4)
    random = torch.Generator().manual_seed(0)
    wavs = torch.randn(count, 16000 * seconds, generator=random)
    wavs = wavs.to(section.device)
    model = encoder.front_end.wrapper.model

    def encode_alone():
        lens = torch.ones(1, device=section.device)
        return torch.cat([encoder(wav[None], lens) for wav in wavs])

    @torch.no_grad()
    def encode_together():
        variance, mean = torch.var_mean(wavs, 1, correction=0, keepdim=True)
        normed = (wavs - mean) / (variance + 1e-7).sqrt()
        return model(normed).last_hidden_state

    error = relative_error(encode_together(), encode_alone())
    alone, together = section.compare(encode_alone, encode_together)
    for figure, costs in (("one at a time", alone), ("together", together)):
        text = f"real-time factor, {count} utterances of {seconds} s, float32"
        factors = [cost / (count * seconds) for cost in costs]
        section.add(f"HuBERT-large's size, {figure}", factors, text)
    section.add(
        "HuBERT-large's size, batches",
        divide(alone, together),
        f"one at a time / together, whose features differ by {error:.1e}",
    )


def compare_codebooks(section):
    """Local attributes against vector-quantize-pytorch's codebook."""
    shape = (2000, 32, 64) if section.quick else (30_000, 384, 1024)
    codebooks = Codebooks(shape, section.device)
    others = {"cdist": "cdist, codes only", "theirs": "vector-quantize-pytorch"}
    if codebooks.vq is None:
        del others["theirs"]
        what = "vector-quantize-pytorch is not installed"
        section.write("codebook / vq", "left out", what=what)
    for way, name in others.items():
        ways = getattr(codebooks, way), codebooks.mine
        what = f"{name} / assign and update"
        section.add(f"codebook / {way}", divide(*section.compare(*ways)), what)


def measure_peak(section, stage, precision):
    """Peak memory of the paper's batch."""
    figure = f"{STAGES[stage]}, memory, {precision}"
    if not section.on_cuda:
        section.leave_to_cuda(figure)
        return
    option = f"--precision={precision}"
    training = section.training(stage, 8 * PAPER_BATCH, option)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    Training.run_steps(*training.start_steps())
    gigabytes = torch.cuda.max_memory_allocated() / 1e9
    what = f"GB at most, 8 steps of {PAPER_BATCH} utterances"
    section.add(figure, [gigabytes], what)


# Capacity ---------------------------------------------------------------------


def time_epoch(section, stage, *options):
    """Seconds of an epoch of IEMOCAP's size."""
    size = IEMOCAP_UTTERANCES // COPIES, "--precision=bf16", *options
    training = section.training(stage, *size, copies=COPIES)
    seconds = training.run_epoch()
    count = len(training.corpus["entries"])
    what = f"seconds, {count} utterances from the cache, bf16"
    figure = " ".join([f"{STAGES[stage]}, epoch", *options])
    section.add(figure, [seconds], what)


def find_largest_batch(section):
    """The largest batch of stage 1 that trains."""
    figure = "stage 1, largest batch"
    if not section.on_cuda:
        section.leave_to_cuda(figure)
        return
    size = IEMOCAP_UTTERANCES // COPIES, "--precision=bf16"
    training = section.training("adapter", *size, copies=COPIES)
    brain, _ = training.start_steps()

    def step(count):
        """Trains on a batch; how much memory that takes."""
        items = [training.dataset[number] for number in range(count)]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        Training.run_steps(brain, [PaddedBatch(items)])
        return torch.cuda.max_memory_allocated()

    step(PAPER_BATCH)  # the optimiser's state, too
    one, two = step(PAPER_BATCH), step(2 * PAPER_BATCH)
    free, total = torch.cuda.mem_get_info()
    per_utterance = (two - one) / PAPER_BATCH
    predicted = (total - one) / per_utterance + PAPER_BATCH
    for share in (0.95, 0.85, 0.75, 0.6):
        count = min(int(share * predicted), len(training.dataset))
        try:
            gigabytes = step(count) / 1e9
        except torch.OutOfMemoryError:
            continue
        what = f"utterances, bf16: {gigabytes:.0f} of {total / 1e9:.0f} GB"
        section.add(figure, [count], what)
        return
    raise RuntimeError(f"not even {count} of {predicted:.0f} utterances fit")


# Sections: seconds at most, and checks ------------------------------------------

SECTIONS = {
    "numbers": (
        120,
        [
            *(partial(compare_values, stage=stage) for stage in STAGES),
            compare_encoders,
            compare_cross_validations,
        ],
    ),
    "precision": (
        100,
        [
            *(partial(name_attention, precision=p) for p in ("fp32", "bf16")),
            *(partial(compare_losses, stage=stage) for stage in STAGES),
        ],
    ),
    "waiting": (40, [partial(find_waits, stage=stage) for stage in STAGES]),
    "speed": (
        100,
        [
            *(
                partial(compare_steps, stage=stage, precision=precision)
                for precision in ("bf16", "fp32")
                for stage in STAGES
            ),
            compare_packing,
            time_extraction,
            compare_codebooks,
            *(
                partial(measure_peak, stage=stage, precision=precision)
                for precision in ("bf16", "fp32")
                for stage in STAGES
            ),
        ],
    ),
    "capacity": (
        100,
        [
            *(partial(time_epoch, stage=stage) for stage in STAGES),
            find_largest_batch,
        ],
    ),
}


def run_section(name, options, folder):
    """Runs all checks of a section, in a process of its own."""
    os.setsid()  # whatever it starts can be ended with it
    logging.disable(logging.WARNING)
    section = Section(name, options, folder)
    if section.on_cuda:
        card = torch.cuda.get_device_properties(section.device)
        text = f"{card.name}, {card.total_memory / 1e9:.0f} GB"
        (folder / "card.txt").write_text(text)
    for check in SECTIONS[name][1]:
        section.attempt(getattr(check, "func", check).__name__, check)


def watch_section(name, options, folder):
    """Runs a section for as long as it may; its rows."""
    print(f"\n[{name}]", flush=True)
    started, limit = time.time(), SECTIONS[name][0]
    # CUDA cannot be used after a fork; to import all anew takes seconds
    method = "fork" if options.device == "cpu" else "spawn"
    process = multiprocessing.get_context(method).Process(
        target=run_section, args=(name, options, folder)
    )
    process.start()
    process.join(limit)
    reason = f"ended with status {process.exitcode}"
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        reason = f"not done after {limit} s"
    path = folder / f"{name}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    if process.exitcode != 0:
        row = {"section": name, "figure": f"the section {name}", "bound": ""}
        rows.append({**row, "value": reason, "reached": "FAILED", "what": ""})
    print(f"[{name}: {time.time() - started:.0f} s]", flush=True)
    return rows


def format_table(rows):
    """Lays out all rows as a Markdown table."""
    keys = ("figure", "value", "bound", "reached", "what")
    header = ["figure", "value", "aim", "reached", "what it is"]
    return markdown_table(header, [[row[key] for key in keys] for row in rows])


def parse_options(arguments):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--sections", default=",".join(SECTIONS))
    add("--json", help="file to write results to")
    add("--repeats", type=int, default=5)
    add("--device", help="cuda, or a CPU with --quick")
    text = "tiny models and corpora: shows that all runs, measures nothing"
    add("--quick", action="store_true", help=text)
    options = parser.parse_args(arguments)
    options.device = options.device or ("cpu" if options.quick else "cuda")
    options.sections = options.sections.split(",")
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"--sections has no {', '.join(sorted(unknown))}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --quick runs on a CPU")
    if options.device == "cpu" and not options.quick:
        parser.error("a CPU is for --quick only")
    return options


def main(arguments):
    """Runs the sections that a command line names; 1 if anything failed."""
    options = parse_options(arguments)
    started, rows = time.time(), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in options.sections:
            rows += watch_section(name, options, folder)
        card = folder / "card.txt"
        card = card.read_text("utf-8") if card.exists() else "no GPU"
    print(f"\n{card}, torch {torch.__version__}\n\n{format_table(rows)}")
    if options.json:
        results = {
            "rows": rows,
            "options": vars(options),
            "card": card,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "minutes": (time.time() - started) / 60,
        }
        Path(options.json).write_text(json.dumps(results, indent=1), "utf-8")
    return int(any(row["reached"] == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
