r"""Recognises the emotions of audio files with an exported model.

> python -m speechbrain_wap recognize model/ speech.wav more/ "calls/*.mp3"

prints a row for each file; a folder stands for all audio in it. What cannot be
read is named with the reason, the others are done; the exit status is 0 if all
could be read, 1 if some could not, 2 if none could.

Long recordings, with times and silence:
> python -m speechbrain_wap recognize model/ call.wav --long --format=rttm

--long              segments of each recording instead of one emotion
--window=4 --hop=2  with --long, what is classified at a time, in seconds
--pause=0.5         with --long, the shortest silence, in seconds
--quiet=35          ... and how far below the loudest speech it is, in decibels
--format=table      or json, csv, or, with --long, rttm
--output=FILE       where to write it instead of the screen
--figure=FOLDER     with --long, a picture of each recording
--jobs=1            processes that share the files
--device=cpu        where the model runs
--serve             a page on this machine to try the model, see README.md
"""

import csv
import functools
import glob
import io
import json
import sys
from collections import Counter
from pathlib import Path

from speechbrain_wap.data.corpus_table import AUDIO_SUFFIXES
from speechbrain_wap.demo_page import serve
from speechbrain_wap.errors import (
    CommandParser,
    RecipeError,
    check_whole,
    escape_controls,
)
from speechbrain_wap.files import expand_path, quote_formula, write_text
from speechbrain_wap.inference import EmotionRecognizer
from speechbrain_wap.progress import Bar, are_bars_shown, switch_bars
from speechbrain_wap.reports.report import markdown_table
from speechbrain_wap.reports.timeline import draw_segments
from speechbrain_wap.training.jobs import run_jobs

FORMATS = ("table", "json", "csv", "rttm")


def list_files(names):
    """Lists the audio files that names stand for.

    Arguments
    ---------
    names : list of str
        Files, patterns such as "calls/*.mp3", and folders, which stand for all
        audio in them, however deep.

    Returns
    -------
    files : list of str
        Each once, in the order of the names; a name that stands for none is
        kept, to be reported.
    """
    files = []
    for name in names:
        path = Path(expand_path(name))
        if path.is_dir():
            found = sorted(
                str(file)
                for file in path.rglob("*")
                if file.suffix.lower() in AUDIO_SUFFIXES
                and not file.name.startswith(".")
            )
            files += found or [str(path)]
        elif path.exists():  # whatever characters it is called by
            files.append(str(path))
        else:
            found = sorted(glob.glob(str(path), recursive=True))
            files += found or [str(path)]
    return list(dict.fromkeys(files))


@functools.lru_cache(maxsize=1)
def _load(model, device):
    """Loads a model, once in each process."""
    switch_bars(True)  # nor those of an encoder are seen without a terminal
    return EmotionRecognizer.from_hparams(model, run_opts={"device": device})


def recognise(model, device, path, long=None):
    """Recognises one file.

    Arguments
    ---------
    model : str
        The model folder.
    device : str
        Where it runs.
    path : str
        The file.
    long : dict, optional
        Arguments of ``diarize_file``, if it is to find segments.

    Returns
    -------
    result : dict
        "file", and "segments", or "emotion", "score" and "probabilities"; or
        "error", why it could not be read.
    """
    recognizer = _load(model, device)
    try:
        if long is not None:
            segments = recognizer.diarize_file(path, **long)[path]
            return {"file": path, "segments": segments}
        probabilities, score, _, label = recognizer.classify_file(path)
    except RecipeError as error:
        return {"file": path, "error": str(error)}
    named = dict(zip(recognizer.classes, probabilities[0].tolist()))
    return {
        "file": path,
        "emotion": label[0],
        "score": float(score),
        "probabilities": named,
    }


# What is written --------------------------------------------------------------


def _list_rows(results):
    """Lists the header and rows of a table; of segments where there are any."""
    classes = []
    rows = []
    for result in results:
        for part in result.get("segments", [result]):
            times = [part[k] for k in ("start", "end") if k in part]
            probabilities = part.get("probabilities", {})
            classes = list(probabilities) or classes
            rows.append(
                [result["file"], *times, part["emotion"], probabilities]
            )
    is_long = any("segments" in result for result in results)
    header = ["file", *["start", "end"] * is_long, "emotion", *classes]
    rows = [
        [*row, *(f"{values[c]:.4f}" if values else "" for c in classes)]
        for *row, values in rows
    ]
    return header, rows


def _name_results(results):
    """Names each file by its stem, or by its path where that is not enough."""
    files = [Path(result["file"]) for result in results]
    stems = Counter(file.stem for file in files)
    return [
        file.stem if stems[file.stem] == 1 else "_".join(file.parts).strip("/_")
        for file in files
    ]


def _format_rttm(results):
    """Writes segments in the format of NIST's Rich Transcription."""

    def join(text):
        """Makes one word."""
        return escape_controls("_".join(text.split()))

    return "".join(
        f"SPEAKER {join(name)} 1 {part['start']:.3f} "
        f"{part['end'] - part['start']:.3f} <NA> <NA> "
        f"{join(part['emotion'])} <NA> <NA>\n"
        for name, result in zip(_name_results(results), results)
        for part in result["segments"]
        if "probabilities" in part
    )


def format_results(results, kind):
    """Writes what has been recognised.

    Arguments
    ---------
    results : list of dict
        What :func:`recognise` gave of each file that could be read.
    kind : str
        One of FORMATS.

    Returns
    -------
    text : str

    Example
    -------
    >>> one = {"file": "a.wav", "emotion": "sad", "probabilities": {"sad": 1}}
    >>> print(format_results([one], "csv"))
    file,emotion,sad
    a.wav,sad,1.0000
    <BLANKLINE>
    """
    if kind == "json":
        return json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    if kind == "rttm":
        return _format_rttm(results)
    header, rows = _list_rows(results)
    if kind == "table":
        return markdown_table(header, rows) + "\n"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        map(quote_formula, row) for row in [header, *rows]
    )
    return text.getvalue()


# The command ------------------------------------------------------------------


def parse_options(arguments):
    """Reads the command line."""
    parser = CommandParser("recognize")
    add = parser.add_argument
    add("model")
    add("files", nargs="*")
    add("--long", action="store_true")
    add("--window", type=float, default=4.0)
    add("--hop", type=float, default=2.0)
    add("--pause", type=float, default=0.5)
    add("--quiet", type=float, default=35.0)
    add("--format", choices=FORMATS, default="table")
    add("--output")
    add("--figure")
    add("--jobs", type=int, default=1)
    add("--device", default="cpu")
    add("--serve", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    if bool(options.files) == options.serve:
        parser.error("give files, folders or patterns, or else --serve")
    if options.format == "rttm" and not options.long:
        parser.error("--format=rttm is for --long")
    if options.figure and not options.long:
        parser.error("--figure is for --long")
    check_whole("--jobs", options.jobs, least=1)
    for key in ("model", "output", "figure"):
        if getattr(options, key):
            path = expand_path(getattr(options, key), f"--{key}=")
            setattr(options, key, path)
    if options.output and Path(options.output).is_dir():
        parser.error(f"--output={options.output} is a folder: name a file")
    return options


def main(arguments):
    """Recognises the files that a command line names."""
    options = parse_options(arguments)
    # a model that cannot be loaded is no fault of the files
    recognizer = _load(options.model, options.device)
    if options.serve:
        serve(recognizer, Path(options.model).resolve().name)
        return
    files = list_files(options.files)
    long = None
    if options.long:
        keys = ("window", "hop", "pause", "quiet")
        long = {key: getattr(options, key) for key in keys}
        recognizer.check_lengths(**long)
    tasks = [(options.model, options.device, file, long) for file in files]
    done = run_jobs(options.jobs, recognise, tasks)
    is_still = not are_bars_shown()
    with Bar(done, total=len(files), unit="file", disable=is_still) as bar:
        results = dict(bar)
    results = [results[number] for number in range(len(files))]
    failed = [result for result in results if "error" in result]
    done = [result for result in results if "error" not in result]
    for result in failed:
        print(f"error: {result['error']}", file=sys.stderr)
    text = format_results(done, options.format) if done else ""
    if options.output:
        write_text(options.output, text)
    else:
        sys.stdout.write(text)
    if options.figure:
        for name, result in zip(_name_results(done), done):
            path = Path(options.figure, f"{name}.png")
            draw_segments(result["segments"], Path(result["file"]).name, path)
    if failed:
        sys.exit(1 if done else 2)
