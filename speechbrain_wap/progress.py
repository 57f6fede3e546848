"""Progress bars: all obey one switch, and are still where nobody watches."""

import io
import logging
import sys
import time
from contextlib import contextmanager

from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Between two lines where there is no terminal
SECONDS = 60.0
# What --noprogressbar says
_switch = {"on": True}


def switch_bars(on):
    """Decides whether there are any bars from now on.

    Arguments
    ---------
    on : bool
        False of ``--noprogressbar``.
    """
    _switch["on"] = on
    if not are_bars_shown():  # nor those of what loads an encoder
        import transformers
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def are_bars_shown():
    """Tells whether bars move: they are wanted, and somebody may watch.

    Returns
    -------
    are_shown : bool
    """
    return _switch["on"] and if_main_process() and sys.stderr.isatty()


class Bar(tqdm):
    """A bar on a terminal; elsewhere, such as in a file, a line a minute.

    Arguments
    ---------
    *args, **kwargs
        As of tqdm. The main process has a bar only, and with
        ``--noprogressbar`` none has.

    Example
    -------
    >>> list(Bar(range(3), desc="Counting", unit="number"))
    [0, 1, 2]
    """

    def __init__(self, *args, **kwargs):
        self.is_shown = are_bars_shown()
        self.last_line = time.monotonic()
        if not _switch["on"] or not if_main_process():
            kwargs["disable"] = True
        if not self.is_shown:
            kwargs["file"] = io.StringIO()
            kwargs.setdefault("unit", "batch")
        super().__init__(*args, **{"dynamic_ncols": True, **kwargs})

    def display(self, msg=None, pos=None):
        """Draws the bar, or logs a line where one is due."""
        if self.is_shown:
            return super().display(msg, pos)
        now = time.monotonic()
        if now - self.last_line >= SECONDS:
            self.last_line = now
            line = self.format_meter(
                **{
                    **self.format_dict,
                    "bar_format": "{desc}: {n_fmt} of {total_fmt} {unit} "
                    "({elapsed} so far, about {remaining} left)",
                }
            )
            # before a log is set up, only warnings are seen
            level = logging.INFO if logger.hasHandlers() else logging.WARNING
            logger.log(level, line)
        return True


@contextmanager
def replace_bars(module):
    """Lets another library's module show these bars.

    Arguments
    ---------
    module : module
        Has tqdm's class under the name tqdm.
    """
    before = module.tqdm
    module.tqdm = Bar
    try:
        yield
    finally:
        module.tqdm = before
