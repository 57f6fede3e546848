r"""Recognises the emotions of audio files with an exported model.

> python -m speechbrain_wap recognize model/ speech.wav more/ "calls/*.mp3"

prints a row for each file; a folder stands for all audio in it. What cannot be
read is named with the reason, the others are done; the exit status is 0 if all
could be read, 1 if some could not, 2 if none could.

Long recordings, with times and silence:
> python -m speechbrain_wap recognize model/ call.wav --long --format=rttm

--long              segments of each recording instead of one emotion
--window=4 --hop=2  with --long, what is classified at a time, in seconds
--format=table      or json, csv, or, with --long, rttm
--output=FILE       where to write it instead of the screen
--figure=FOLDER     with --long, a picture of each recording
--jobs=1            processes that share the files
--device=cpu        where the model runs
--serve             a page on this machine to try the model, see README.md
"""

import argparse
import csv
import functools
import glob
import io
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from speechbrain_wap.data.corpus_table import AUDIO_SUFFIXES
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.report import markdown_table, save_figure
from speechbrain_wap.files import write_text
from speechbrain_wap.inference import SILENCE, EmotionRecognizer
from speechbrain_wap.training.jobs import run_jobs

FORMATS = ("table", "json", "csv", "rttm")


def list_files(names):
    """Lists the audio files that names stand for.

    Arguments
    ---------
    names : list of str
        Files, patterns such as "calls/*.mp3", and folders, which stand for all
        audio in them.

    Returns
    -------
    files : list of str
        Each once, in the order of the names; a name that there is no file of is
        kept, to be reported.
    """
    files = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(
                str(file)
                for file in path.rglob("*")
                if file.suffix.lower() in AUDIO_SUFFIXES
                and not file.name.startswith(".")
            )
            if not found:
                raise RecipeError(f"{name} holds no audio file.")
            files += found
        elif path.exists():  # whatever characters it is called by
            files.append(str(path))
        else:
            found = sorted(glob.glob(str(path), recursive=True))
            files += found or [str(path)]
    return list(dict.fromkeys(files))


@functools.lru_cache(maxsize=1)
def _load(model, device):
    """Loads a model, once in each process."""
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


def _format_rttm(results):
    """Writes segments in the format of NIST's Rich Transcription."""
    return "".join(
        f"SPEAKER {Path(result['file']).stem.replace(' ', '_')} 1 "
        f"{part['start']:.3f} {part['end'] - part['start']:.3f} <NA> <NA> "
        f"{part['emotion'].replace(' ', '_')} <NA> <NA>\n"
        for result in results
        for part in result["segments"]
        if part["emotion"] != SILENCE
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
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def draw_segments(result, path):
    """Draws a recording's probabilities over time.

    Arguments
    ---------
    result : dict
        Of :func:`recognise`, with segments.
    path : str
        The picture to write.
    """
    figure = Figure(figsize=(9, 2.6))
    axes = figure.subplots()
    segments = result["segments"]
    classes = next(
        (list(s["probabilities"]) for s in segments if "probabilities" in s), []
    )
    for number, name in enumerate(classes):
        bottom = [
            sum(list(s["probabilities"].values())[:number])
            for s in segments
            if "probabilities" in s
        ]
        spoken = [s for s in segments if "probabilities" in s]
        axes.bar(
            [s["start"] for s in spoken],
            [s["probabilities"][name] for s in spoken],
            [s["end"] - s["start"] for s in spoken],
            bottom,
            align="edge",
            label=name,
        )
    axes.set_xlim(0, max((s["end"] for s in segments), default=1.0))
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds")
    axes.set_title(Path(result["file"]).name, fontsize=10, parse_math=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    save_figure(figure, path)


# The command ------------------------------------------------------------------


def parse_options(arguments):
    """Reads the command line."""

    class Parser(argparse.ArgumentParser):
        """Says what is wrong in a sentence."""

        def error(self, message):
            raise RecipeError(
                f"recognize: {message}; --help says what it takes."
            )

    parser = Parser(add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("model")
    add("files", nargs="*")
    add("--long", action="store_true")
    add("--window", type=float, default=4.0)
    add("--hop", type=float, default=2.0)
    add("--format", choices=FORMATS, default="table")
    add("--output")
    add("--figure")
    add("--jobs", type=int, default=1)
    add("--device", default="cpu")
    add("--serve", action="store_true")
    options = parser.parse_args(arguments)
    if not options.files and not options.serve:
        parser.error("give a file, a folder or a pattern")
    if options.format == "rttm" and not options.long:
        parser.error("--format=rttm is for --long")
    if options.figure and not options.long:
        parser.error("--figure is for --long")
    if options.jobs < 1:
        parser.error(f"--jobs={options.jobs} must be at least 1")
    return options


def main(arguments):
    """Recognises the files that a command line names."""
    options = parse_options(arguments)
    # a model that cannot be loaded is no fault of the files
    _load(options.model, options.device)
    if options.serve:
        from speechbrain_wap.demo_page import serve

        serve(options.model, options.device)
        return
    files = list_files(options.files)
    long = None
    if options.long:
        long = {"window": options.window, "hop": options.hop}
    tasks = [(options.model, options.device, file, long) for file in files]
    results = dict(run_jobs(options.jobs, recognise, tasks))
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
    for result in done if options.figure else ():
        name = f"{Path(result['file']).stem}.png"
        draw_segments(result, Path(options.figure) / name)
    if failed:
        sys.exit(1 if done else 2)
