"""The one exception that a user of the recipes is meant to read."""

import errno
import sys
from contextlib import contextmanager

# Errors of the system that are about a place, not about the code
PLACES = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


class RecipeError(ValueError):
    """A mistake in a file, key or utterance that the user can mend.

    The message is one sentence (or two) that names the file, key or utterance
    and the cure. The scripts print it without a traceback.

    Example
    -------
    >>> str(RecipeError("fold 7 does not exist: choose one of 1 to 5."))
    'fold 7 does not exist: choose one of 1 to 5.'
    """


@contextmanager
def places_as_mistakes():
    """Makes a place that cannot be read or written the user's mistake.

    Example
    -------
    >>> with places_as_mistakes():
    ...     raise OSError(errno.ENOSPC, "No space left on device", "/a/b")
    Traceback (most recent call last):
    ...
    speechbrain_wap.errors.RecipeError: /a/b cannot be used: No space left on \
device. Make room or choose another folder, and run the same command again.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in PLACES:
            raise
        raise RecipeError(
            f"{error.filename or 'a file'} cannot be used: {error.strerror}. "
            "Make room or choose another folder, and run the same command "
            "again."
        )


@contextmanager
def say_mistakes():
    """Ends the program at a user's mistake, with a sentence on it.

    Example
    -------
    >>> with say_mistakes():
    ...     raise RecipeError("no corpus given.")
    Traceback (most recent call last):
    ...
    SystemExit: error: no corpus given.
    """
    try:
        with places_as_mistakes():
            yield
    except RecipeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on.")
