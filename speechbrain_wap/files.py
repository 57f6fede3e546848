"""Writing files so that they are there whole or not at all."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from speechbrain_wap.errors import RecipeError


@contextmanager
def write_atomically(path):
    """Gives a temporary name beside a file and renames it in the end.

    Arguments
    ---------
    path : str
        The file to write; its folder is made if need be.

    Yields
    ------
    temporary : str
        Where to write.

    Raises
    ------
    RecipeError
        If the place cannot be written: read-only, or the disk is full.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "a" / "b.txt"
    >>> with write_atomically(path) as temporary:
    ...     _ = Path(temporary).write_text("whole")
    >>> path.read_text()
    'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield str(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be written: {error.strerror or error}."
        )
    finally:
        with suppress(OSError):  # read-only, or no folder at all
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text file atomically, in UTF-8.

    Arguments
    ---------
    path : str
        The file.
    text : str
        Its content.
    """
    with write_atomically(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
