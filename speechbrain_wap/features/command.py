r"""Feature caches: inspect lists them, prune removes what no run needs.

List what a cache folder holds, one row per encoder and layer:
> python -m speechbrain_wap features inspect results/feature_cache

Check every entry, too:
> python -m speechbrain_wap features inspect results/feature_cache --check

Remove damaged entries and left-over temporary files:
> python -m speechbrain_wap features prune results/feature_cache

Remove whole caches, by key or by how long they have not been used:
> python -m speechbrain_wap features prune results/feature_cache --keys=<a>,<b>
> python -m speechbrain_wap features prune results/feature_cache \
      --unused_days=30

With --dry_run, prune only says what it would remove. A cache that a run is
filling is refused; a run that trains from a cache that is removed ends with an
error.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from speechbrain_wap.errors import RecipeError, check_number
from speechbrain_wap.features.cache import is_unaltered, read_duration
from speechbrain_wap.files import expand_path, format_bytes, try_lock

# A temporary file that nobody has written to for so long is left over.
LEFT_OVER_SECONDS = 3600
# What a cache's folder is called while it is removed
REMOVED = ".removed-"
# Of the table that inspect prints
HEADER = (
    *("key", "encoder", "layers", "precision"),
    *("utterances", "hours", "size", "last used"),
)


def _list_caches(cache_folder):
    """Lists the folders of the caches, each of which is called by its key."""
    cache_folder = Path(cache_folder)
    if not cache_folder.is_dir():
        raise RecipeError(f"{cache_folder} is no folder: give a cache_folder.")
    return sorted(
        path
        for path in cache_folder.iterdir()
        if path.is_dir() and re.fullmatch("[0-9a-f]{16}", path.name)
    )


def _get_size_and_time(path):
    """Returns bytes and seconds since 1970; of a file that is gone 0, now."""
    try:
        stat = path.stat()
    except OSError:
        return 0, time.time()
    return stat.st_size, stat.st_mtime


def _find_damaged(folders):
    """Reads all entries and lists those that are not what was written."""
    paths = [p for f in folders for p in sorted(f.glob("*/*.safetensors"))]
    with ThreadPoolExecutor() as pool:
        unaltered = pool.map(is_unaltered, paths)
        return [path for path, is_good in zip(paths, unaltered) if not is_good]


def _describe_cache(folder):
    """Sums up a cache, with "bytes" and "used" (seconds since 1970)."""
    record = folder / "cache.json"
    try:
        description = json.loads(record.read_text("utf-8"))
        encoder = dict(description.get("encoder", {}))
    except (OSError, ValueError, TypeError, AttributeError):
        description, encoder = {}, {}
    name = description.get("name") or encoder.get("class", "?")
    if encoder.get("context") == "clip":
        name = f"{name} (clip)"
    layers = encoder.get("layers", "-")
    if isinstance(layers, list):
        layers = ",".join(map(str, layers))
    entries = list(folder.glob("[0-9a-f][0-9a-f]/*.safetensors"))
    with ThreadPoolExecutor() as pool:
        durations = list(pool.map(read_duration, entries))
    return {
        "key": folder.name,
        "encoder": name,
        "layers": layers,
        "precision": description.get("precision", "?"),
        "utterances": len(entries),
        "hours": sum(d for d in durations if d is not None) / 3600,
        "bytes": sum(_get_size_and_time(entry)[0] for entry in entries),
        "used": _get_size_and_time(record)[1],
    }


def inspect_caches(cache_folder, check=False):
    """Tells what a cache folder holds; checks the content if asked to."""
    folders = _list_caches(cache_folder)
    rows, total = [HEADER], 0
    for summary in map(_describe_cache, folders):
        used = time.localtime(summary["used"])
        total += summary["bytes"]
        summary["hours"] = f"{summary['hours']:.2f}"
        summary["size"] = format_bytes(summary["bytes"])
        summary["last used"] = time.strftime("%Y-%m-%d", used)
        rows.append([str(summary[name]) for name in HEADER])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f"{len(folders)} cache(s), {format_bytes(total)}")
    if check:
        damaged = _find_damaged(folders)
        lines += [f"damaged: {path}" for path in damaged]
        lines.append(f"damaged entries: {len(damaged)}")
    return "\n".join(lines)


def prune_caches(cache_folder, keys=(), unused_days=None, dry_run=False):
    """Removes caches by key or days unused; else what is damaged or left over.

    Nothing is removed where another process fills one of the caches.
    """
    folders = {folder.name: folder for folder in _list_caches(cache_folder)}
    unknown = [key for key in keys if key not in folders]
    if unknown:
        raise RecipeError(
            f"{cache_folder} has no cache {unknown[0]}: it has "
            f"{', '.join(folders) or 'none'}."
        )
    folders = folders.values()
    if keys or unused_days is not None:
        chosen = _choose_caches(folders, keys, unused_days)
        for folder, *_ in chosen:
            if not dry_run and any(map(_is_locked, folder.rglob(".*.lock"))):
                raise RecipeError(
                    f"{folder} is being written by another process: wait for "
                    "it, nothing has been removed."
                )
    else:
        chosen = _find_useless(Path(cache_folder), folders)
    lines = [_remove(*each, dry_run) for each in chosen]
    return "\n".join(lines or ["nothing to remove"])


def _is_locked(path):
    """Tells whether a process has a lock, whose file stays as old as it is."""
    times = path.stat()
    with try_lock(path) as is_free:
        with suppress(OSError):  # some versions of filelock write into it
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return not is_free


def _choose_caches(folders, keys, unused_days):
    """Lists path, name and details of the caches named or not in use."""
    chosen = []
    for folder in folders:
        summary = _describe_cache(folder)
        days = (time.time() - summary["used"]) / 86400
        is_unused = unused_days is not None and days >= unused_days
        if folder.name in keys or is_unused:
            details = (
                f"{summary['encoder']}, layers {summary['layers']}, "
                f"{summary['utterances']} utterances, "
                f"{format_bytes(summary['bytes'])}"
            )
            chosen.append((folder, folder.name, details))
    return chosen


def _find_useless(cache_folder, folders):
    """Yields path, name and details of what no run can use."""
    for path in cache_folder.glob(f"{REMOVED}*"):
        yield path, path, "half removed before"
    left_over = list(cache_folder.glob(".audio_index.json.*.tmp"))
    for folder in folders:
        left_over += [*folder.rglob(".*.tmp"), *folder.rglob(".*.lock")]
    for path in sorted(left_over):
        size, written = _get_size_and_time(path)
        is_old = time.time() - written > LEFT_OVER_SECONDS
        if is_old and not (path.suffix == ".lock" and _is_locked(path)):
            yield path, path, format_bytes(size)
    for path in _find_damaged(folders):
        size, _ = _get_size_and_time(path)
        if not is_unaltered(path):  # not made again in the meantime
            yield path, path, format_bytes(size)


def _remove(path, name, details, dry_run):
    """Removes a file or a folder, unless it is a dry run; returns a line."""
    if dry_run:
        return f"would remove {name}: {details}"
    try:
        if path.is_dir():
            # renamed first, so that half of a cache is not used as one
            key = path.name.removeprefix(REMOVED)
            shutil.rmtree(path.rename(path.with_name(f"{REMOVED}{key}")))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be removed: {error.strerror or error}."
        )
    return f"removed {name}: {details}"


def main(arguments):
    """Runs the command.

    Arguments
    ---------
    arguments : list of str
        As in ``sys.argv[1:]``, after ``features``.

    Raises
    ------
    RecipeError
        If a folder, key or number makes no sense, a cache that is to be removed
        is being filled, or the system refuses.
    """
    parser = argparse.ArgumentParser("python -m speechbrain_wap features")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect, prune = (
        commands.add_parser(name, allow_abbrev=False)
        for name in ("inspect", "prune")
    )
    inspect.add_argument("cache_folder")
    inspect.add_argument("--check", action="store_true")
    prune.add_argument("cache_folder")
    prune.add_argument("--keys", default="")
    prune.add_argument("--unused_days", type=float)
    prune.add_argument("--dry_run", action="store_true")
    options = vars(parser.parse_args(arguments))
    options["cache_folder"] = expand_path(options["cache_folder"])
    if options.pop("command") == "inspect":
        text = inspect_caches(**options)
        print(text)
        if "\ndamaged: " in text:
            sys.exit(1)
        return
    if options["unused_days"] is not None:
        check_number("--unused_days", options["unused_days"], least=0)
    options["keys"] = [key for key in options["keys"].split(",") if key]
    print(prune_caches(**options))
