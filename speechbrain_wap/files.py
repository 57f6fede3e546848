"""Writing files so that they are there whole or not at all."""

import errno
import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError, report_places

try:
    import fcntl
except ImportError:  # Windows: work may be done twice, but is never harmed
    fcntl = None

logger = get_logger(__name__)


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


def digest_file(path):
    """Computes a digest of a file's content, by which it is known again.

    Arguments
    ---------
    path : str
        The file.

    Returns
    -------
    digest : str or None
        None where it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest()[:16]


def format_bytes(size):
    """Writes a number of bytes as people read it.

    Arguments
    ---------
    size : float
        In bytes.

    Returns
    -------
    text : str

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
        content = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
        for key in keys:
            if key not in content:
                raise ValueError(f"it lacks {key}")
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}): {cure}")
    return content


class Claims:
    """Claims on pieces of work among processes, in one lock file.

    A claim is a lock on one byte of the file, which the system releases when
    its process ends, however it ends. A process must not open the file twice.

    Arguments
    ---------
    path : str
        The lock file, made if need be; it stays empty.

    Example
    -------
    >>> claims = Claims(Path(getfixture("tmpdir")) / "lock")
    >>> with claims.claim(7) as is_mine:
    ...     is_mine
    True
    """

    def __init__(self, path):
        self.path = Path(path)
        self.file = None
        self.is_supported = fcntl is not None

    def __getstate__(self):
        """Leaves the open file behind when sent to another process."""
        return {**self.__dict__, "file": None}

    @contextmanager
    def claim(self, number=None):
        """Tries to claim a piece of work, without waiting.

        Arguments
        ---------
        number : int, optional
            Which one, 0 to 2^62; all of them if not given.

        Yields
        ------
        is_mine : bool
            False where another process has it.

        Raises
        ------
        RecipeError
            If the lock file cannot be made.
        """
        span = (0, 0) if number is None else (1, number)
        is_mine = self._lock(*span)
        try:
            yield is_mine
        finally:
            if is_mine and self.is_supported:
                fcntl.lockf(self.file, fcntl.LOCK_UN, *span)

    def _lock(self, length, start):
        """Locks bytes; tells whether they were free."""
        if not self.is_supported:
            return True
        if self.file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path, "ab")
            except OSError as error:
                raise RecipeError(
                    f"{self.path} cannot be written: {error.strerror}."
                )
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            logger.warning(
                f"{self.path} cannot be locked ({error.strerror}): processes "
                "at the same work may do some of it twice."
            )
            self.is_supported = False
        return True


@contextmanager
def only_process(folder):
    """Refuses to work in an output folder that another process works in.

    Arguments
    ---------
    folder : str
        The output folder; it gets a lock file, which the system frees when
        its process ends, however it ends. Of several ranks, the main one asks.

    Raises
    ------
    RecipeError
        If another process is at work there, or nothing can be written.
    """
    if not if_main_process():
        with report_places():
            yield
        return
    with Claims(Path(folder) / ".lock").claim() as is_mine:
        if not is_mine:
            raise RecipeError(
                f"another process is at work in {folder}: wait for its end, "
                "or choose another output_folder."
            )
        with report_places():
            yield
