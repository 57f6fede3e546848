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
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
from codebooks import Codebooks
from extraction import HUBERT_LARGE, QUICK_HUBERT, make_hubert
from sections import Section, each, format_table
from speechbrain.dataio.batch import PaddedBatch
from timing import RECIPES, alternate, divide, measure_seconds
from torch.profiler import ProfilerActivity, profile
from workloads import (
    QUICK,
    Training,
    count_step,
    draw_lengths,
    find_peak,
    make_corpus,
)

from speechbrain_wap.data.batches import Collate, pad_frames
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.reports.cross_validation_report import cross_validate
from speechbrain_wap.training.cross_validation import CrossValidation

sys.path.insert(0, str(RECIPES.parent / "demo"))
from make_corpus import make_demo_corpus  # noqa: E402

STAGES = {"adapter": "stage 1", "classifier": "stage 2"}
PAPER_BATCH = 96
IEMOCAP_UTTERANCES = 7900
# Stands for a corpus of ten times as many utterances, each once
COPIES = 10
SAME_NUMBERS = 1e-4
SAME_LOSS = 0.02
BF16, FP32 = "--precision=bf16", "--precision=fp32"
# No dropout: devices draw other numbers
CROSS_VALIDATION = (
    "--encoder_source=fbank --d_model=64 --nhead=4 --d_ffn=128 --dropout=0 "
    "--max_frames=300 --mlp_residual=True --num_attributes=64 --batch_size=16 "
    "--lr=0.001 --classifier_lr=0.005 --adapter.number_of_epochs=2 "
    "--classifier.number_of_epochs=6 --probe_every=0 --feature_workers=2 "
    "--noprogressbar"
)
QUICK_CROSS_VALIDATION = (
    "--folds=1 --d_model=16 --d_ffn=32 --classifier.number_of_epochs=1 "
    "--adapter.number_of_epochs=1"
)


# What checks run on -----------------------------------------------------------


def make_training(section, stage, count, *options, copies=1):
    """Makes a training on utterances as long as IEMOCAP's.

    Arguments
    ---------
    section : sections.Section
        Says where, and whether a tiny one will do.
    stage : str
        One of STAGES.
    count : int
        Of the corpus's utterances, which is made once for all sections.
    *options : str
        Further arguments of the recipe's script.
    copies : int
        How many utterances share the features of each.

    Returns
    -------
    training : workloads.Training
    """
    size = None
    if section.quick:
        count, size, options = 16, 16, [*options, *QUICK[stage]]
    folder = section.folder / f"corpus-{count}-{copies}"
    if not (folder / "corpus.json").exists():
        folder.mkdir(exist_ok=True)
        make_corpus("paper", count, folder, size, copies)
    return Training(folder, stage, [f"--device={section.device}", *options])


def make_encoder(section):
    """Makes an encoder of HuBERT-large's size with random weights."""
    folder = section.folder / "hubert"
    if not (folder / "preprocessor_config.json").exists():
        make_hubert(folder, **QUICK_HUBERT if section.quick else HUBERT_LARGE)
    return SpeechEncoder(str(folder))


# Numbers ----------------------------------------------------------------------


def relative_error(value, expected, least=0.0):
    """Norm of a difference against that of what is expected, or the least."""
    value, expected = value.double().cpu(), expected.double().cpu()
    return float((value - expected).norm() / expected.norm().clamp(min=least))


def forbid_tf32():
    """Lets float32 be float32 from here on; SpeechBrain allows TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def compare_values(section, stage):
    """Outputs, losses, gradients and codebook of the device and a CPU."""
    forbid_tf32()
    given = 16, "--batch_size=16", "--dropout=0"
    on_cpu = make_training(section, stage, *given, "--device=cpu")
    on_device = make_training(section, stage, *given)
    batch = on_cpu.load_batches()[0]
    expected, gradients = on_cpu.compute_gradients(batch)
    # where two attributes are equally near, rounding decides: the same codes
    codes = expected.pop("codes", None)
    given = None if codes is None else codes.to(section.device)
    values, own_gradients = on_device.compute_gradients(batch, given)
    name, what = STAGES[stage], f"{section.device} against cpu, float32"
    if codes is not None:
        share = float((values["codes"].cpu() == codes).float().mean())
        text = f"{what}: share of equal codes"
        section.add(f"{name}, codes", [share], text, least=0.999, must=True)
    limit = {"most": SAME_NUMBERS, "must": True}
    for key, value in expected.items():
        error = relative_error(values[key], value)
        text = f"{what}: relative error"
        section.add(f"{name}, {key}", [error], text, **limit)
    # what is next to zero is made of rounding
    least = 1e-3 * max(float(gradient.norm()) for gradient in gradients)
    errors = [
        relative_error(*pair, least) for pair in zip(own_gradients, gradients)
    ]
    text = f"{what}: the largest relative error of {len(errors)} parameters"
    section.add(f"{name}, gradients", [max(errors)], text, **limit)


def compare_encoders(section):
    """Features of an encoder of HuBERT-large's size."""
    random = torch.Generator().manual_seed(0)
    wavs = torch.randn(2, 16000 if section.quick else 64000, generator=random)
    lens = torch.tensor([1.0, 0.7])
    encoder = make_encoder(section)
    expected = encoder(wavs, lens)
    encoder.load(section.device)
    feats = encoder(wavs.to(section.device), lens.to(section.device))
    section.add(
        "features of HuBERT-large",
        [relative_error(feats, expected)],
        f"{section.device} against cpu: relative error",
        most=SAME_NUMBERS,
        must=True,
    )


def compare_cross_validations(section):
    """Unweighted accuracy of both stages in five folds."""
    corpus = section.folder / "demo"
    make_demo_corpus(corpus, utterances_per_speaker=8 if section.quick else 12)
    options = CROSS_VALIDATION.split()
    options += QUICK_CROSS_VALIDATION.split() if section.quick else []
    torch.set_num_threads(1)  # its tensors are too small to share
    # the train scripts are found where it is started
    os.chdir(RECIPES / "IEMOCAP/wap_adapter")
    accuracies = []
    for number, device in enumerate(("cpu", str(section.device))):
        yamls = ["hparams/adapter.yaml", "hparams/classifier.yaml"]
        own = [f"--device={device}", f"--data_folder={corpus}"]
        own += [f"--output_folder={section.folder}/results{number}"]
        own += [f"--cache_folder={section.folder}/cache{number}"]
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


def compare_losses(section, option, stage):
    """The last losses of 50 steps in a precision, against float32's."""
    figure = f"{STAGES[stage]}, {option}"
    if option != BF16 and not section.on_cuda:
        section.leave_to_cuda(figure)
        return
    ends = []
    for options in ([], [option]):
        size = 50 * 16, "--batch_size=16"
        training = make_training(section, stage, *size, *options)
        losses = training.run_steps(*training.start_steps())
        ends.append(float(torch.stack(losses[-10:]).mean()))
    what = f"share by which the last losses ({ends[1]:.4f}) are off float32's"
    error = abs(ends[1] / ends[0] - 1)
    section.add(figure, [error], what, most=SAME_LOSS, must=True)


def name_attention(section, precision):
    """Which kernels attention takes."""
    training = make_training(section, "adapter", PAPER_BATCH, precision)
    steps = training.start_steps()
    with record(section) as profiler:
        training.run_steps(*steps)
    start = "aten::_scaled_dot_product_"
    kernels = Counter(
        event.name.removeprefix(start)
        for event in profiler.events()
        if event.name.startswith(start) and "backward" not in event.name
    )
    text = ", ".join(f"{count} {name}" for name, count in kernels.most_common())
    is_fused = kernels and not any("math" in k or "cudnn" in k for k in kernels)
    section.write(
        f"attention, {precision}",
        text or "none was seen",
        "flash or efficient",
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
def on_waiting(mode):
    """Sets what happens where a step waits: "default", "warn" or "error"."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def load_steps(section, stage):
    """Makes a Brain that has run its first steps, and batches in memory."""
    training = make_training(section, stage, 4 * PAPER_BATCH, BF16)
    brain, loader = training.start_steps()
    batches = list(loader)
    training.run_steps(brain, batches)
    return brain, batches


def count_work(section, stage):
    """Copies and kernels of a step, and how long the GPU is busy."""
    brain, batches = load_steps(section, stage)
    run = partial(Training.run_steps, brain, batches)
    seconds = measure_seconds(run)
    with record(section) as profiler:
        run()
    events = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.is_user_annotation
    ]
    names = Counter(event.name[:11] for event in events)
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e6
    steps, each = len(batches), "in a step, by the profiler"
    for figure, value, what, most in (
        ("copies to the host", names["Memcpy DtoH"] / steps, each, 1),
        ("copies to the device", names["Memcpy HtoD"] / steps, each, None),
        ("kernels and copies", len(events) / steps, each, None),
        ("busy", busy / seconds, "time in kernels / time of the steps", None),
    ):
        if section.on_cuda:
            figure = f"{STAGES[stage]}, {figure}"
            section.add(figure, [value], what, most=most)
    if not section.on_cuda:
        section.leave_to_cuda(f"{STAGES[stage]}, copies and kernels")


def find_waits(section, stage, mode):
    """Where a step waits, but for the look at the loss, as is documented."""
    figure = f"{STAGES[stage]}, sync debug mode {mode}"
    if not section.on_cuda:
        section.leave_to_cuda(figure)
        return
    brain, batches = load_steps(section, stage)
    brain.check_loss_isfinite = on_waiting("default")(brain.check_loss_isfinite)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with on_waiting(mode):
            Training.run_steps(brain, batches)
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in said
        if "called a synchronizing" in str(warning.message)
    )
    text = ", ".join(f"{place} {n}x" for place, n in places.most_common())
    reached = "no" if places else "yes"
    what = f"what waits in {len(batches)} steps, but for the check of the loss"
    section.write(figure, text or "nothing", "nothing", reached, what=what)


# Speed ------------------------------------------------------------------------


def compare_steps(section, stage, precision):
    """Steps of a Brain against a bare loop; products against their peak."""
    training = make_training(section, stage, 4 * PAPER_BATCH, precision)
    rounds = 1 if section.quick else 5
    batches = rounds * training.load_batches()
    loaded = rounds * list(training.start_steps()[1])

    def run_brain():
        brain, _ = training.start_steps()
        return measure_seconds(partial(training.run_steps, brain, loaded))

    def run_bare():
        return training.run_bare_epoch(batches)

    run_brain(), run_bare()
    bare, seconds = alternate(run_bare, run_brain, section.repeats)
    name = f"{STAGES[stage]}, {precision}"
    rate = len(batches) / min(seconds)
    what = f"bare loop / Brain, batches in memory; {rate:.1f} steps per second"
    section.add(f"{name}, steps", divide(bare, seconds), what, least=0.95)
    if section.on_cuda:
        torch.cuda.reset_peak_memory_stats()
        run_brain()
        gigabytes = torch.cuda.max_memory_allocated() / 1e9
        what = f"GB at most, batches of {PAPER_BATCH}"
        section.add(f"{name}, memory", [gigabytes], what)
    else:
        section.leave_to_cuda(f"{name}, memory")
    if (stage, precision) == ("adapter", BF16):
        operations = sum(
            count_step(training.hparams, valid, mask)
            for _, _, valid, mask, _ in batches
        )
        sizes = [256] if section.quick else [4096, 8192]
        peak = find_peak(sizes, section.device, torch.bfloat16)
        values = [operations / s / peak for s in seconds]
        what = f"per second / peak of {peak / 1e12:.3g} TFLOP/s"
        section.add(f"{name}, products", values, what, least=0.35)


def compare_packing(section):
    """A batch that is padded on the host against one that travels packed."""
    dataset = make_training(section, "adapter", PAPER_BATCH).dataset
    items = [dataset[n] for n in range(min(PAPER_BATCH, len(dataset)))]
    place = {"device": section.device, "non_blocking": True}

    def send_padded():
        return PaddedBatch(items).to(**place).feats.data

    def send_joined():
        batch = Collate()(items)
        batch = batch.pin_memory() if section.on_cuda else batch
        return pad_frames(batch.feats, section.device)[0]

    padded, joined = send_padded(), Collate()(items).feats.data
    section.add(
        "a batch's way to the device",
        divide(*section.compare(send_padded, send_joined)),
        f"padded, {padded.nbytes / 1e6:.0f} MB, pageable / without padding, "
        f"{joined.nbytes / 1e6:.0f} MB, pinned; collation included",
    )


def time_extraction(section):
    """Utterances one at a time against batches of equal length."""
    forbid_tf32()
    encoder = make_encoder(section)
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
    ways = {"theirs": "vector-quantize-pytorch", "cdist": "torch.cdist"}
    for way, name in ways.items():
        figure, what = f"codebook / {way}", f"{name} / assign and update"
        if way == "theirs" and codebooks.vq is None:
            section.write(figure, "left out", what=f"{name} is not installed")
            continue
        pair = getattr(codebooks, way), codebooks.mine
        section.add(figure, divide(*section.compare(*pair)), what)


# Capacity ---------------------------------------------------------------------


def time_epoch(section, stage):
    """Seconds of an epoch of IEMOCAP's size."""
    size = IEMOCAP_UTTERANCES // COPIES, BF16
    training = make_training(section, stage, *size, copies=COPIES)
    seconds = training.run_epoch()
    count = len(training.corpus["entries"])
    what = f"seconds, {count} utterances from the cache, bf16"
    section.add(f"{STAGES[stage]}, epoch", [seconds], what)


def find_largest_batch(section):
    """The largest batch of stage 1 that trains."""
    figure = "stage 1, largest batch"
    if not section.on_cuda:
        section.leave_to_cuda(figure)
        return
    size = IEMOCAP_UTTERANCES // COPIES, BF16
    training = make_training(section, "adapter", *size, copies=COPIES)
    brain, _ = training.start_steps()
    # the longest first: all batches are padded to its length
    lengths = np.array(draw_lengths("paper", size[0]))
    order = [int(lengths.argmax()), *range(len(training.dataset))]

    def step(count):
        """Trains on a batch; how much memory that takes."""
        items = [training.dataset[number] for number in order[:count]]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        Training.run_steps(brain, [brain.train_collate(items).pin_memory()])
        return torch.cuda.max_memory_allocated()

    step(PAPER_BATCH)  # the optimiser's state, too
    one, two = step(PAPER_BATCH), step(2 * PAPER_BATCH)
    _, total = torch.cuda.mem_get_info()
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


# Sections ---------------------------------------------------------------------

# Of all sections; with imports and clearing up, 8 minutes
MOST_SECONDS = 460
# Seconds at most, and checks
SECTIONS = {
    "numbers": (
        180,
        each(compare_values, STAGES)
        + each(compare_encoders)
        + each(compare_cross_validations),
    ),
    "precision": (
        150,
        each(name_attention, (BF16, FP32))
        + each(compare_losses, (BF16, "--precision=fp16", "--compile"), STAGES),
    ),
    "waiting": (
        50,
        each(count_work, STAGES) + each(find_waits, STAGES, ("warn", "error")),
    ),
    "speed": (
        110,
        each(compare_steps, STAGES, (BF16, FP32))
        + each(compare_packing)
        + each(compare_codebooks)
        + each(time_extraction),
    ),
    "capacity": (110, each(time_epoch, STAGES) + each(find_largest_batch)),
}


def parse_options(arguments):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--sections", default=",".join(SECTIONS))
    add("--json", help="file to write results to")
    add("--repeats", type=int, default=3)
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
    patience = 10 if options.quick else 1  # others may use the CPU
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in options.sections:
            section = Section(name, options, folder)
            limit, checks = SECTIONS[name]
            left = started + patience * MOST_SECONDS - time.time()
            limit = max(min(patience * limit, left), 0)
            section.run_within(limit, checks)
            rows += section.read_rows()
    # not earlier: it takes memory of the card
    is_cuda = options.device != "cpu"
    card = torch.cuda.get_device_name(options.device) if is_cuda else "no GPU"
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
