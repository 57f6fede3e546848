r"""The command that lists and removes feature caches.

List what a cache folder holds, one row per encoder and layer:
> python -m speechbrain_wap.features.cache inspect results/feature_cache

Check every entry, too:
> python -m speechbrain_wap.features.cache inspect results/feature_cache --check

Remove damaged entries and left-over temporary files:
> python -m speechbrain_wap.features.cache prune results/feature_cache

Remove whole caches, by key or by how long they have not been used:
> python -m speechbrain_wap.features.cache prune results/feature_cache --keys=<a>,<b>
> python -m speechbrain_wap.features.cache prune results/feature_cache \
      --unused_days=30

With --dry_run, prune only says what it would remove. A cache that a run is
filling is refused; a run that trains from a cache that is removed ends with an
error.
"""

import argparse
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.report import markdown_table
from speechbrain_wap.features.cache import (
    format_bytes,
    is_sound_entry,
    read_duration,
)
from speechbrain_wap.files import Claims

# A temporary file that nobody has written to for so long is left over.
LEFT_OVER_SECONDS = 3600
# What a cache's folder is called while it is removed
REMOVED = ".removed-"


def list_caches(cache_folder):
    """Lists the caches of a folder.

    Arguments
    ---------
    cache_folder : str
        What the recipes call cache_folder.

    Returns
    -------
    folders : list of pathlib.Path
        Each is called by its key.

    Raises
    ------
    RecipeError
        If there is no such folder.
    """
    cache_folder = Path(cache_folder)
    if not cache_folder.is_dir():
        raise RecipeError(f"{cache_folder} is no folder: give a cache_folder.")
    return sorted(
        path
        for path in cache_folder.iterdir()
        if path.is_dir() and re.fullmatch("[0-9a-f]{16}", path.name)
    )


def get_size_and_time(path):
    """Looks at a file that another process may remove or rename.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    size : int
        In bytes; 0 if it is gone.
    time : float
        When it was written, in seconds since 1970; now if it is gone.
    """
    try:
        stat = path.stat()
    except OSError:
        return 0, time.time()
    return stat.st_size, stat.st_mtime


def find_damage(folder):
    """Lists the entries of a cache that no longer are what was written.

    Arguments
    ---------
    folder : pathlib.Path
        A cache.

    Returns
    -------
    damaged : list of pathlib.Path
    """
    entries = sorted(folder.glob("*/*.safetensors"))
    with ThreadPoolExecutor() as pool:
        sound = list(pool.map(is_sound_entry, entries))
    return [entry for entry, is_sound in zip(entries, sound) if not is_sound]


def describe_cache(folder):
    """Sums up a cache.

    Arguments
    ---------
    folder : pathlib.Path
        A cache.

    Returns
    -------
    summary : dict
        "key", "encoder", "layers", "precision", "utterances", "hours",
        "bytes" and "used" (seconds since 1970).
    """
    record = folder / "cache.json"
    try:
        description = json.loads(record.read_text("utf-8"))
        encoder = dict(description.get("encoder", {}))
    except (OSError, ValueError, TypeError, AttributeError):
        description, encoder = {}, {}
    name = description.get("name") or encoder.get("class", "?")
    if encoder.get("context") == "clip":
        name += " (clip)"
    layers = encoder.get("layers", "-")
    if isinstance(layers, list):
        layers = ",".join(map(str, layers))
    entries = list(folder.glob("*/*.safetensors"))
    with ThreadPoolExecutor() as pool:
        durations = list(pool.map(read_duration, entries))
    return {
        "key": folder.name,
        "encoder": name,
        "layers": str(layers),
        "precision": description.get("precision", "?"),
        "utterances": len(entries),
        "hours": sum(d for d in durations if d is not None) / 3600,
        "bytes": sum(get_size_and_time(entry)[0] for entry in entries),
        "used": get_size_and_time(record)[1],
    }


def inspect_caches(cache_folder, check=False):
    """Tells what a cache folder holds.

    Arguments
    ---------
    cache_folder : str
        What the recipes call cache_folder.
    check : bool
        Whether every entry is read and compared with its checksum.

    Returns
    -------
    text : str
        A table, and the damaged entries if asked for.
    """
    folders = list_caches(cache_folder)
    summaries = [describe_cache(folder) for folder in folders]
    rows = [
        [
            summary["key"],
            summary["encoder"],
            summary["layers"],
            summary["precision"],
            str(summary["utterances"]),
            f"{summary['hours']:.2f}",
            format_bytes(summary["bytes"]),
            time.strftime("%Y-%m-%d", time.localtime(summary["used"])),
        ]
        for summary in summaries
    ]
    header = ["key", "encoder", "layers", "precision"]
    header += ["utterances", "hours", "size", "last used"]
    lines = [markdown_table(header, rows)]
    total = sum(summary["bytes"] for summary in summaries)
    lines.append(f"{len(rows)} cache(s), {format_bytes(total)}")
    if check:
        damaged = [path for folder in folders for path in find_damage(folder)]
        lines += [f"damaged: {path}" for path in damaged]
        lines.append(f"{len(damaged)} damaged entries")
    return "\n".join(lines)


def prune_caches(cache_folder, keys=(), unused_days=None, dry_run=False):
    """Removes whole caches, or else what no run can use.

    Arguments
    ---------
    cache_folder : str
        What the recipes call cache_folder.
    keys : list of str
        Caches to remove.
    unused_days : float, optional
        Caches that no run has used for so many days are removed, too.
    dry_run : bool
        Whether to only say what would be removed.

    Returns
    -------
    text : str
        What was removed. Without keys and days, it is damaged entries and
        left-over temporary files.

    Raises
    ------
    RecipeError
        If a key is unknown, or a cache is being written.
    """
    folders = {folder.name: folder for folder in list_caches(cache_folder)}
    unknown = [key for key in keys if key not in folders]
    if unknown:
        raise RecipeError(
            f"{cache_folder} has no cache {unknown[0]}: it has "
            f"{', '.join(folders) or 'none'}."
        )
    if keys or unused_days is not None:
        return remove_caches(folders.values(), keys, unused_days, dry_run)

    now, lines = time.time(), []
    left_over = list(Path(cache_folder).glob(".audio_index.json.*.tmp"))
    for folder in folders.values():
        left_over += folder.rglob(".*.tmp")
    left_over = [
        path
        for path in left_over
        if now - get_size_and_time(path)[1] > LEFT_OVER_SECONDS
    ]
    for path in Path(cache_folder).glob(f"{REMOVED}*"):
        lines.append(show_removal(dry_run, path, "half removed before"))
        if not dry_run:
            with tell_refusals(path):
                shutil.rmtree(path)
    damaged = [p for folder in folders.values() for p in find_damage(folder)]
    for path in left_over + damaged:
        size, _ = get_size_and_time(path)
        if path in damaged and is_sound_entry(path):
            continue  # made again in the meantime
        lines.append(show_removal(dry_run, path, format_bytes(size)))
        if not dry_run:
            with tell_refusals(path):
                path.unlink(missing_ok=True)
    return "\n".join(lines or ["nothing to remove"])


def show_removal(dry_run, what, details):
    """Writes a line on what was, or would be, removed."""
    return f"{'would remove' if dry_run else 'removed'} {what}: {details}"


@contextmanager
def tell_refusals(path):
    """Turns the system's refusal to remove something into a sentence."""
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be removed: {error.strerror or error}."
        )


def remove_caches(folders, keys, unused_days, dry_run):
    """Removes whole caches, all of those chosen or none.

    Arguments
    ---------
    folders : list of pathlib.Path
        The caches there are.
    keys : list of str
        Those to remove.
    unused_days : float or None
        Those that no run has used for so many days, too.
    dry_run : bool
        Whether to only say what would be removed.

    Returns
    -------
    text : str
        What was removed.

    Raises
    ------
    RecipeError
        If another process is at one of them, or the system refuses.
    """
    now, lines = time.time(), []
    with ExitStack() as stack:
        chosen = []
        for folder in folders:
            summary = describe_cache(folder)
            idle = now - summary["used"]
            if folder.name not in keys and (
                unused_days is None or idle < unused_days * 86400
            ):
                continue
            if not dry_run:
                claim = Claims(folder / ".lock").claim()
                if not stack.enter_context(claim):
                    raise RecipeError(
                        f"{folder} is being written by another process: wait "
                        "for it, nothing has been removed."
                    )
            chosen.append(folder)
            details = (
                f"{summary['encoder']}, layers {summary['layers']}, "
                f"{summary['utterances']} utterances, "
                f"{format_bytes(summary['bytes'])}"
            )
            lines.append(show_removal(dry_run, folder.name, details))
        if not dry_run:
            for folder in chosen:
                with tell_refusals(folder):
                    # lest half of a cache is taken for one
                    removed = folder.with_name(f"{REMOVED}{folder.name}")
                    folder.rename(removed)
                    shutil.rmtree(removed)
    return "\n".join(lines or ["nothing to remove"])


def main(arguments):
    """Runs the command.

    Arguments
    ---------
    arguments : list of str
        As in ``sys.argv[1:]``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_wap.features.cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect, prune = (
        commands.add_parser(
            name,
            allow_abbrev=False,
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name in ("inspect", "prune")
    )
    inspect.add_argument("cache_folder")
    inspect.add_argument("--check", action="store_true")
    prune.add_argument("cache_folder")
    prune.add_argument("--keys", default="")
    prune.add_argument("--unused_days", type=float)
    prune.add_argument("--dry_run", action="store_true")
    options = vars(parser.parse_args(arguments))
    if options.pop("command") == "inspect":
        print(inspect_caches(**options))
    else:
        days = options["unused_days"]
        if days is not None and not days >= 0:
            raise RecipeError(f"--unused_days={days} must be at least 0.")
        options["keys"] = [key for key in options["keys"].split(",") if key]
        print(prune_caches(**options))
