"""The one exception that a user is meant to read, and checks that raise it."""

import argparse
import errno
import logging
import math
import re
import sys
from contextlib import contextmanager

# Errors of the system that are about a place, not about the code
PLACES = {errno.EACCES, errno.EPERM, errno.EROFS}  # no access
PLACES |= {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}  # no room
PLACES |= {errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG}  # no such place
PLACES |= {errno.EISDIR, errno.ENOTDIR}


class RecipeError(ValueError):
    """A mistake in a file, key or utterance that the user can mend.

    The message is one sentence (or two) that names the file, key or utterance
    and the cure. The scripts print it without a traceback.
    """


class DivergedError(RecipeError):
    """Training has given numbers that are not finite."""


class CommandParser(argparse.ArgumentParser):
    """Reads a command's options, and says in a sentence what is wrong.

    Arguments
    ---------
    command : str
        Its name.

    Example
    -------
    >>> CommandParser("export").parse_args(["--what"])
    Traceback (most recent call last):
    ...
    speechbrain_wap.errors.RecipeError: export: unrecognized arguments: \
--what; --help says what it takes.
    """

    def __init__(self, command):
        super().__init__(command, add_help=False, allow_abbrev=False)

    def error(self, message):
        """Raises what argparse would print."""
        raise RecipeError(f"{self.prog}: {message}; --help says what it takes.")


def first_line(error):
    """Shortens another library's error to one line.

    Arguments
    ---------
    error : Exception or str
        The error, or its text.

    Returns
    -------
    line : str
        Never empty.

    Example
    -------
    >>> first_line(ValueError("too few\\nsamples")), first_line(ValueError())
    ('too few', 'ValueError()')
    """
    return (str(error).strip() or repr(error)).splitlines()[0]


def escape_controls(text):
    r"""Shows what would move a console's or a table's other text as letters.

    Control characters, line breaks, marks that change the direction of reading,
    bytes that are no text.

    Arguments
    ---------
    text : str
        Such as a label, or the name of a file.

    Returns
    -------
    text : str
        One line.

    Example
    -------
    >>> print(escape_controls("joy\x1b[31m\n\u202e"))
    joy\x1b[31m\n\u202e
    """
    return re.sub(
        "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
        "\ud800-\udfff]",
        lambda match: ascii(match[0])[1:-1],
        text,
    )


def check_number(name, value, least=None, most=None, above=None):
    """Refuses what is no finite number within its bounds.

    Arguments
    ---------
    name : str
        What the user calls the value: an argument, or a YAML key.
    value : object
        An int or a float will do, a bool will not.
    least, most : float, optional
        The least and the most that it may be.
    above : float, optional
        What it must be above, in the place of ``least``.

    Raises
    ------
    RecipeError
        If it is another; names it and the bounds.

    Example
    -------
    >>> check_number("alpha", 2, least=0, most=1)
    Traceback (most recent call last):
    ...
    speechbrain_wap.errors.RecipeError: alpha=2 must be a number from 0 to 1.
    """
    if isinstance(value, (int, float)) and type(value) is not bool:
        is_low = least is not None and not value >= least
        is_low = is_low or (above is not None and not value > above)
        is_high = most is not None and not value <= most
        if not is_low and not is_high:
            if math.isfinite(value):
                return
            raise RecipeError(f"{name}={value} must be finite.")
    if above is not None:
        bounds = f"a number above {above:g}"
        bounds += "" if most is None else f" and at most {most:g}"
    elif least is not None and most is not None:
        bounds = f"a number from {least:g} to {most:g}"
    elif least is not None:
        bounds = f"a number of at least {least:g}"
    elif most is not None:
        bounds = f"a number of at most {most:g}"
    else:
        bounds = "a number"
    raise RecipeError(f"{name}={value} must be {bounds}.")


def check_whole(name, value, least=0, most=2**31 - 1, or_none=None):
    """Refuses what is no whole number within its bounds.

    Arguments
    ---------
    name : str
        What the user calls the value: an argument, or a YAML key.
    value : object
        An int will do; a bool or a float will not.
    least, most : int
        The least and the most that it may be.
    or_none : str, optional
        What None means, such as "never"; without it, None is refused.

    Raises
    ------
    RecipeError
        If it is another; names it and the bounds.

    Example
    -------
    >>> check_whole("revive_after", None, least=1, or_none="never")
    >>> check_whole("revive_after", -1, least=1, or_none="never")
    Traceback (most recent call last):
    ...
    speechbrain_wap.errors.RecipeError: revive_after=-1 must be a whole number \
of at least 1, or null: never.
    """
    if value is None and or_none is not None:
        return
    if type(value) is int and value > most:
        raise RecipeError(f"{name}={value} must be below {most + 1}.")
    if type(value) is not int or value < least:
        null = "" if or_none is None else f", or null: {or_none}"
        raise RecipeError(
            f"{name}={value} must be a whole number of at least {least}{null}."
        )


def check_choice(name, value, choices):
    """Refuses what is none of the choices.

    Arguments
    ---------
    name : str
        What the user calls the value: an argument, or a YAML key.
    value : object
        What the user chose.
    choices : iterable
        What there is, in the order in which the error lists it.

    Raises
    ------
    RecipeError
        If it is another; names it and the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise RecipeError(f"{name}={value} is unknown: choose one of {known}.")


def check_flag(name, value):
    """Refuses what is neither True nor False.

    Arguments
    ---------
    name : str
        What the user calls the value: an argument, or a YAML key.
    value : object
        A bool will do; 0, 1 and "no" will not.

    Raises
    ------
    RecipeError
        If it is another; names it.
    """
    if type(value) is not bool:
        raise RecipeError(f"{name}={value} must be True or False.")


class _Message(logging.LogRecord):
    """What is logged, without what no file or console can take."""

    def getMessage(self):
        """Writes bytes of a file's name that are no text as they are read."""
        text = super().getMessage()
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def unwritable(error):
    r"""Makes the error for a name with bytes or letters that nothing takes.

    Arguments
    ---------
    error : UnicodeEncodeError
        What was raised.

    Returns
    -------
    error : RecipeError

    Example
    -------
    >>> try:
    ...     "\udcfcber".encode()
    ... except UnicodeEncodeError as error:
    ...     print(str(unwritable(error))[:48])
    the name '\udcfcber' cannot be written in utf-8:
    """
    return RecipeError(
        f"the name {error.object[:300]!a} cannot be written in "
        f"{error.encoding}: rename it, or set PYTHONUTF8=1 in the environment "
        "if it is proper UTF-8."
    )


def print_any_text():
    """Lets consoles and logs take any character, a poor one another for it."""
    logging.setLogRecordFactory(_Message)
    if hasattr(sys.stdout, "reconfigure"):  # a test's may lack it
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def report_path_errors():
    """Turns the system's error about a place into a :class:`RecipeError`."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise unwritable(error)
    except OSError as error:
        if error.errno not in PLACES:
            raise
        raise RecipeError(
            f"{error.filename or 'a file'} cannot be used: {error.strerror}. "
            "Make room or choose another folder, and run the same command "
            "again."
        )


@contextmanager
def report_errors():
    """Ends the program at a user's mistake, with a sentence on it.

    Example
    -------
    >>> with report_errors():
    ...     raise OSError(errno.ENOSPC, "No space left on device", "/a/b")
    Traceback (most recent call last):
    ...
    SystemExit: error: /a/b cannot be used: No space left on device. Make room \
or choose another folder, and run the same command again.
    """
    try:
        with report_path_errors():
            yield
    except RecipeError as error:
        sys.exit(f"error: {escape_controls(str(error))}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on.")
