"""Writing files so that they are there whole or not at all, and locks."""

import errno
import hashlib
import json
import os
import re
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError, report_path_errors

logger = get_logger(__name__)

# Names of files may hold bytes that are no text: they are kept as they are
ANY_BYTES = {"encoding": "utf-8", "errors": "surrogateescape"}
# What a spreadsheet computes, or had an apostrophe put before it
FORMULA = re.compile("'*[=+@-]")
# What a disk without locks answers
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# $NAME or ${NAME}, as a shell has them
VARIABLE = re.compile(r"\$(?:(?P<bare>[A-Za-z_]\w*)|\{(?P<braced>[^{}]+)\})")


def expand_path(path, name="", folder="."):
    """Puts the folders that ~, ~user, $NAME and ${NAME} stand for into a path.

    Every path that a user gives comes through here: the value of a key, an
    option or a table's cell. A relative one stays relative.

    Arguments
    ---------
    path : str
        As the user wrote it.
    name : str
        What errors call it: the key with an equals sign, or the cell.
    folder : str
        What it is relative to.

    Returns
    -------
    path : str
        As written where there is a file or folder of just that name, and ~ or $
        stands for nothing.

    Raises
    ------
    RecipeError
        If a variable is not set, or there is no such user.

    Example
    -------
    >>> getfixture("monkeypatch").setenv("CORPORA", "/data")
    >>> expand_path("${CORPORA}/a b.csv"), expand_path("facebook/hubert")
    ('/data/a b.csv', 'facebook/hubert')
    """
    written = path = str(path)
    known = os.environ
    names = [m["bare"] or m["braced"] for m in VARIABLE.finditer(path)]
    missing = [f"the variable ${n} is not set" for n in names if n not in known]
    path = VARIABLE.sub(
        lambda m: known.get(m["bare"] or m["braced"], m[0]), path
    )
    if path.startswith("~"):
        path = os.path.expanduser(path)
        if path.startswith("~"):
            missing.append(f"there is no user {path[1:].split('/')[0]}")
    if missing and os.path.exists(os.path.join(folder, written)):
        return written
    if missing:
        raise RecipeError(
            f"{name}{written}: {missing[0]}: write the path itself."
        )
    return path


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
    """Writes a text file atomically, in UTF-8."""
    with write_atomically(path) as temporary:
        Path(temporary).write_text(text, **ANY_BYTES)


def write_table(path, table):
    """Writes a table as CSV, atomically.

    What a spreadsheet would compute gets an apostrophe before it, which
    :func:`unquote_formula` removes; numbers do not, nor names by which tables
    are joined, unless a formula could be written so.

    Arguments
    ---------
    path : str
        The file to write.
    table : pandas.DataFrame
        The table.
    """
    table = table.rename(columns=quote_formula).copy()
    for name in table.select_dtypes(exclude="number"):
        is_key = name in ("id", "wav", "speaker", "session")
        harmless = r"[+@-][\w.-]*" if is_key else ""
        table[name] = [quote_formula(cell, harmless) for cell in table[name]]
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False, **ANY_BYTES)


def quote_formula(cell, harmless=""):
    """Puts an apostrophe before what a spreadsheet would compute.

    Example
    -------
    >>> quote_formula("=1+1"), quote_formula("-0.5"), quote_formula("joy")
    ("'=1+1", '-0.5', 'joy')
    """
    if not isinstance(cell, str) or not FORMULA.match(cell):
        return cell
    with suppress(ValueError):
        float(cell)
        return cell
    return cell if re.fullmatch(harmless, cell) else f"'{cell}"


def unquote_formula(cell):
    """Takes away the apostrophe before what would be a formula.

    Example
    -------
    >>> unquote_formula("'=1+1"), unquote_formula("'tis"), unquote_formula("-5")
    ('=1+1', "'tis", '-5')
    """
    return cell[1:] if cell[:1] == "'" and FORMULA.match(cell) else cell


def digest_file(path):
    """Computes 16 hexadecimal digits of a file's content; None without it."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest()[:16]


def format_bytes(size):
    """Writes a number of bytes as people read it.

    Example
    -------
    >>> format_bytes(41_500_000)
    '41.5 MB'
    """
    power = 0
    while size >= 1000 and power < 4:
        size, power = size / 1000, power + 1
    unit = ("bytes", "kB", "MB", "GB", "TB")[power]
    return f"{size:.1f} {unit}" if power else f"{size:.0f} {unit}"


def read_json(path, cure, keys=()):
    """Reads a JSON file that holds a mapping.

    Arguments
    ---------
    path : str
        The file.
    cure : str
        What to do where it is damaged.
    keys : tuple of str
        Keys that it must have.

    Returns
    -------
    content : dict

    Raises
    ------
    RecipeError
        If it is damaged.
    """
    try:
        content = json.loads(Path(path).read_text(**ANY_BYTES))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
        for key in keys:
            if key not in content:
                raise ValueError(f"it lacks {key}")
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}): {cure}")
    return content


@cache
def _warn_of_no_locks(folder, reason):
    """Says once that a disk has no locks."""
    logger.warning(
        f"files in {folder} cannot be locked ({reason}): processes at the same "
        "work may do some of it twice."
    )


@contextmanager
def try_lock(path, remove=False, wait=False):
    """Locks a file until the block or the process ends.

    Where the disk has no locks, it warns and goes on as if it had the lock.

    Arguments
    ---------
    path : str
        The lock file, made if need be; it stays empty.
    remove : bool
        Whether whoever has had the lock removes the file.
    wait : bool
        Whether to wait for another process that has the lock.

    Yields
    ------
    is_locked : bool
        False where another process has the lock.

    Raises
    ------
    RecipeError
        If the lock file cannot be made.

    Example
    -------
    >>> with try_lock(Path(getfixture("tmpdir")) / "lock") as is_locked:
    ...     is_locked
    True
    """
    path, is_locked = Path(path), True
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if wait:
                logger.info(f"{path} is locked by another process: waiting.")
                lock.acquire(poll_interval=0.2)
            is_locked = wait
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise RecipeError(f"{path} cannot be written: {error.strerror}.")
        _warn_of_no_locks(path.parent, error.strerror)
    try:
        yield is_locked
    finally:
        if is_locked and remove:
            # while it is locked: whoever waits for it then opens a new one
            with suppress(OSError):
                path.unlink()
        lock.release()


@contextmanager
def only_process(folder, wait=False):
    """Refuses to work in an output folder that another process works in.

    Arguments
    ---------
    folder : str
        The output folder; it gets a lock file. Of several ranks, the main one
        locks it.
    wait : bool
        Whether to wait for the other process in its place.

    Raises
    ------
    RecipeError
        If another process is at work there, or nothing can be written.
    """
    if not if_main_process():
        with report_path_errors():
            yield
        return
    with try_lock(Path(folder) / ".lock", wait=wait) as is_locked:
        if not is_locked:
            raise RecipeError(
                f"another process is at work in {folder}: wait for its end, "
                "or choose another output_folder."
            )
        with report_path_errors():
            yield
