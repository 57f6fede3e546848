"""The one exception that a user of the recipes is meant to read."""

import sys
from contextlib import contextmanager


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
