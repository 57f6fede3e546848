"""What benchmarks/gpu.py runs its checks with: rows, time limits, a table."""

import json
import logging
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import torch
from timing import alternate, measure_seconds, sum_up

from speechbrain_wap.reports.report import markdown_table


class Section:
    """Checks that run in a process of their own, and write rows.

    A row is a dict with "section", "figure", "value" (text), "aim", "reached"
    ("yes", "no", "FAILED" or "-") and "what" the figure is.

    Arguments
    ---------
    name : str
        Its name.
    options : argparse.Namespace
        The command line: device, quick and repeats.
    folder : pathlib.Path
        For rows and temporary files, which sections share.
    """

    def __init__(self, name, options, folder):
        self.name, self.folder, self.quick = name, folder, options.quick
        self.device = torch.device(options.device)
        self.on_cuda = self.device.type == "cuda"
        self.repeats = 1 if self.quick else options.repeats
        self.rows_file = folder / f"{name}.jsonl"
        self.running_file = folder / f"{name}.running"

    # Rows --------------------------------------------------------------------

    def write(self, figure, value, aim="", reached="-", what="", **more):
        """Writes and prints a row."""
        row = {"section": self.name, "figure": figure, "value": value}
        row.update(aim=aim, reached=reached, what=what, **more)
        with open(self.rows_file, "a", encoding="utf-8") as file:
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
        value, aim, reached = f"{median:.3g}", "", "-"
        if len(values) > 1:
            value += f" ({lowest:.3g} to {highest:.3g})"
        if least is not None or most is not None:
            is_reached = median >= least if most is None else median <= most
            aim = f"at least {least}" if most is None else f"at most {most}"
            if must or not self.quick:
                reached = "yes" if is_reached else "FAILED" if must else "no"
        self.write(figure, value, aim, reached, what, values=values)

    def leave_to_cuda(self, *figures):
        """Adds rows for what a CPU cannot tell."""
        for figure in figures:
            self.write(figure, "only on CUDA")

    def read_rows(self):
        """Reads the rows that have been written."""
        if not self.rows_file.exists():
            return []
        lines = self.rows_file.read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    # Running -----------------------------------------------------------------

    def compare(self, *runs):
        """Times two functions in turn, after a warm-up; seconds of each."""
        for run in runs:
            run()
        timed = [partial(measure_seconds, run) for run in runs]
        return alternate(*timed, self.repeats)

    def attempt(self, check, *arguments):
        """Calls a check with this section; its error becomes a row."""
        name = ", ".join([check.__name__, *arguments])
        self.running_file.write_text(name, "utf-8")
        try:
            check(self, *arguments)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(place.filename).name}:{place.lineno}"
            text = str(error).strip().partition("\n")[0][:200]
            value = f"{type(error).__name__} at {place}: {text}"
            more = {"traceback": traceback.format_exc()}
            self.write(name, value, reached="FAILED", **more)

    def run(self, checks):
        """Calls all checks, each a function and its further arguments."""
        os.setsid()  # whatever they start can be ended together
        logging.disable(logging.WARNING)
        for check, *arguments in checks:
            self.attempt(check, *arguments)

    def run_within(self, limit, checks):
        """Runs all checks in a process that is ended after so many seconds."""
        print(f"\n[{self.name}]", flush=True)
        started = time.time()
        # CUDA cannot be used after a fork; to import all anew takes seconds
        method = "spawn" if self.on_cuda else "fork"
        process = multiprocessing.get_context(method).Process(
            target=self.run, args=(checks,)
        )
        process.start()
        try:
            process.join(limit)
            is_late = process.is_alive()
        finally:
            if process.is_alive():
                with suppress(ProcessLookupError):  # it has just started
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join()
        if process.exitcode != 0:
            reason = f"ended with status {process.exitcode}"
            reason = f"not done after {limit:.0f} s" if is_late else reason
            if self.running_file.exists():
                reason += f", in {self.running_file.read_text('utf-8')}"
            self.write(f"section {self.name}", reason, reached="FAILED")
        print(f"[{self.name}: {time.time() - started:.0f} s]", flush=True)


def each(check, *choices):
    """Lists a check with all combinations of its further arguments."""
    return [(check, *arguments) for arguments in product(*choices)]


def format_table(rows):
    """Lays out rows as a Markdown table."""
    keys = ["figure", "value", "aim", "reached", "what"]
    return markdown_table(keys, [[row[key] for key in keys] for row in rows])
