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
def say_mistakes():
    """Ends the program at a user's mistake, with a sentence on it.

    Also where a place cannot be written or read that no other error speaks
    of, and where the user interrupts.

    Example
    -------
    >>> with say_mistakes():
    ...     raise RecipeError("no corpus given.")
    Traceback (most recent call last):
    ...
    SystemExit: error: no corpus given.
    """
    try:
        yield
    except RecipeError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None or error.errno not in PLACES:
            raise
        sys.exit(
            f"error: {error.filename}: {error.strerror}. Mend that, or choose "
            "another folder, and run the same command again."
        )
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on.")
