"""The feature cache: frames of the frozen encoder on disk, checked and named.

Layout of a cache folder, one sub-folder per encoder and one file per audio::

    <cache_folder>/<key>/cache.json               what the key stands for
    <cache_folder>/<key>/<xx>/<digest>.safetensors
    <cache_folder>/<key>/statistics/<digest>.safetensors
    <cache_folder>/<key>/.<host>-<pid>.lock       a process fills this cache
    <cache_folder>/<key>/<xx>/.<digest>.lock      a process makes this entry

The key is a digest of the encoder's config, weights, layers, context and
preprocessing, the sample rate, the storage precision, the version of the
code and the minor versions of the libraries that compute features. The
digest is that of the audio file's bytes, and of what is taken of them where it
is a part of the file (xx its first two digits). An entry
holds one tensor "feats", shape [T, D] or, for several layers, [T, L, D], and
in its metadata, under "entry", JSON with its name (key and digest), the
duration of the audio in seconds and the CRC-32 of all that.
Statistics are entries, too: mean and deviation of the frames of a training
set, by the digest of what it is. Entries are written beside their place and
renamed, so that a half-written one is never read; the same features make the
same file, byte for byte. Lock files are gone when the work is done.

``python -m speechbrain_wap features inspect <cache_folder>`` lists the caches
of a folder, ``... prune`` removes some.
"""

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import soxr
import speechbrain
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from speechbrain.utils.logger import get_logger

from speechbrain_wap.encoders.speech_encoder import get_identity
from speechbrain_wap.errors import RecipeError, check_choice, check_whole
from speechbrain_wap.features.extraction import extract
from speechbrain_wap.files import (
    expand_path,
    try_lock,
    write_atomically,
    write_text,
)
from speechbrain_wap.frame_input import measure_frames

logger = get_logger(__name__)

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# What reading an entry that is missing or damaged may raise
UNREADABLE = (OSError, SafetensorError, TypeError, ValueError, KeyError)


def _describe_entry(name, feats, duration):
    """Writes an entry's metadata; a change of any of them changes the text."""
    frames = feats.contiguous().view(torch.uint8).numpy()
    kind = repr((duration, str(feats.dtype), *feats.shape))
    checksum = zlib.crc32(kind.encode(), zlib.crc32(frames))
    return json.dumps({"name": name, "duration": duration, "crc32": checksum})


def read_duration(path):
    """Reads the duration of an entry's audio, in seconds.

    None if header or size say that the entry is missing, cut, or another's.
    """
    try:
        with safe_open(path, framework="pt") as entry:
            description = json.loads(entry.metadata()["entry"])
        if description["name"] != _get_name(path):
            return None
        return float(description["duration"])
    except UNREADABLE:
        return None


def _get_name(path):
    """Returns what an entry's metadata call it: its cache's key, its digest."""
    return f"{path.parent.parent.name}/{path.stem}"


def is_unaltered(path):
    """Reads an entry and compares it with its checksum; False without it."""
    try:
        with safe_open(path, framework="pt") as entry:
            text, feats = entry.metadata()["entry"], entry.get_tensor("feats")
        duration = float(json.loads(text)["duration"])
        return text == _describe_entry(_get_name(path), feats, duration)
    except UNREADABLE:
        return False


def round_frames(feats, precision):
    """Rounds frames to a storage precision; refuses what does not fit it."""
    rounded = feats.to(PRECISIONS[precision])
    if not torch.isfinite(rounded).all():
        largest = float(feats.abs().max())
        raise RecipeError(
            f"frames of up to {largest:.3g} do not fit {precision}: train with "
            "--feature_precision=float32."
        )
    return rounded


def _read_entry(folder, max_frames, digest):
    """Reads the first frames of an entry in a cache's folder."""
    return _read(_find_path(folder, digest))[:max_frames]


def _find_path(folder, digest):
    """Returns where an entry lies, whether it exists or not."""
    return folder / digest[:2] / f"{digest}.safetensors"


def _read(path, read=lambda entry: entry.get_tensor("feats")):
    """Reads the tensor of an entry, or something else of it."""
    try:
        with safe_open(path, framework="pt") as entry:
            return read(entry)
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"feature cache entry {path} cannot be read ({error}): run the "
            "command again to make it anew."
        )


class FeatureCache:
    """Frames of the frozen encoder on disk, by the audio's digest.

    Arguments
    ---------
    cache_folder : str
        Where caches lie; shared by folds, stages and encoders.
    encoder : torch.nn.Module
        Maps (wavs, lens) to frames [B, T, D].
    precision : str
        Storage precision: "float16", "bfloat16" or "float32".
    device : str
        Where the encoder runs.
    num_workers : int, optional
        Processes that encode (on a CPU) or read audio (for a GPU); one per
        core if not given, 0 for none but this one.

    Raises
    ------
    RecipeError
        If the precision is unknown, or num_workers is no such number.

    Example
    -------
    >>> from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
    >>> folder = getfixture("tmpdir")
    >>> cache = FeatureCache(folder, SpeechEncoder("fbank"))
    >>> cache.write("ab12", torch.ones(3, 80), duration=0.06)
    >>> cache.read("ab12").shape
    torch.Size([3, 80])
    """

    def __init__(
        self,
        cache_folder,
        encoder,
        precision="float16",
        device="cpu",
        num_workers=None,
    ):
        check_choice("feature_precision", precision, PRECISIONS)
        check_whole("feature_workers", num_workers, or_none="one per core")
        self.cache_folder = expand_path(cache_folder, "cache_folder=")
        self.encoder = encoder
        self.dtype = PRECISIONS[precision]
        self.device = device
        self.num_workers = num_workers
        self.sample_rate = getattr(encoder, "sample_rate", 16000)
        self.precision = precision

    @cached_property
    def description(self):
        """What the key stands for, a dict; hashes the encoder's weights."""
        return {
            "encoder": get_identity(self.encoder),
            "sample_rate": self.sample_rate,
            "precision": self.precision,
            "libraries": {
                library.__name__: ".".join(library.__version__.split(".")[:2])
                for library in (soxr, speechbrain, torch, transformers)
            },
        }

    @cached_property
    def key(self):
        """Name of the cache's folder: a digest of the description."""
        text = json.dumps(self.description, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def folder(self):
        """Where the entries lie, a path."""
        return Path(self.cache_folder) / self.key

    def path(self, digest):
        """Returns where an entry lies, whether it exists or not."""
        return _find_path(self.folder, digest)

    def lock(self, digest):
        """Tries to lock an entry that is to be made, see :func:`try_lock`."""
        path = self.path(digest).with_name(f".{digest}.lock")
        return try_lock(path, remove=True)

    def record_use(self):
        """Writes what the key stands for; its time says when it was used."""
        path = self.folder / "cache.json"
        name = getattr(self.encoder, "name", None)
        record = {"name": name, **self.description}
        if not path.exists():
            with suppress(RecipeError):  # it is but for people to read
                write_text(path, json.dumps(record, indent=2, default=str))
        with suppress(OSError):  # of somebody else, or read-only
            os.utime(path)

    def write(self, digest, feats, duration):
        """Writes an entry so that it is there whole or not at all.

        Refuses frames that do not fit the storage precision.
        """
        stored = round_frames(feats, self.precision).cpu().contiguous()
        self._save(self.path(digest), stored, float(duration))

    def _save(self, path, feats, duration):
        """Writes the file of an entry."""
        metadata = {"entry": _describe_entry(_get_name(path), feats, duration)}
        with write_atomically(path) as temporary:
            try:
                save_file({"feats": feats}, temporary, metadata)
            except SafetensorError as error:  # a full disk, too
                raise OSError(str(error))

    def read(self, digest):
        """Reads an entry.

        Arguments
        ---------
        digest : str
            The audio's digest.

        Returns
        -------
        feats : torch.Tensor
            Frames, shape [T, D] or [T, L, D], in the storage precision.

        Raises
        ------
        RecipeError
            If the entry is missing or cannot be read.
        """
        return _read(self.path(digest))

    def make_reader(self, max_frames):
        """Makes what reads entries in worker processes, without the encoder.

        Arguments
        ---------
        max_frames : int
            What is longer is cut.

        Returns
        -------
        reader : callable
            As :meth:`read`; can be pickled.
        """
        return partial(_read_entry, self.folder, max_frames)

    def count_frames(self, digest):
        """Reads the number of frames off an entry's header.

        Arguments
        ---------
        digest : str
            The audio's digest.

        Returns
        -------
        num_frames : int
        """
        return _read(
            self.path(digest),
            lambda entry: entry.get_slice("feats").get_shape()[0],
        )

    def measure_frames(self, utterances, max_frames):
        """Computes mean and deviation of a training set's frames (D14), once.

        Arguments
        ---------
        utterances : list of tuple
            The digest of each training utterance, and how often the training
            sees it.
        max_frames : int
            What is longer is cut, as for the training.

        Returns
        -------
        mean, std : torch.Tensor
            See :func:`speechbrain_wap.frame_input.measure_frames`.
        """
        named = json.dumps([utterances, max_frames])
        digest = hashlib.sha256(named.encode()).hexdigest()
        path = self.folder / "statistics" / f"{digest[:32]}.safetensors"
        if is_unaltered(path):
            return tuple(_read(path))
        read = self.make_reader(max_frames)
        statistics = measure_frames((read(d), w) for d, w in utterances)
        with suppress(RecipeError):  # a read-only cache
            self._save(path, torch.stack(statistics), 0.0)
        return statistics

    def has_entry(self, digest):
        """Tells whether an entry is there and whole, by its header and size.

        Arguments
        ---------
        digest : str
            The audio's digest.

        Returns
        -------
        has_entry : bool
        """
        return read_duration(self.path(digest)) is not None

    def missing(self, digests):
        """Returns those entries that have to be made; names damaged ones.

        Headers and sizes are looked at, not the frames: ``features inspect
        --check`` reads all.
        """
        digests = list(dict.fromkeys(digests))
        with ThreadPoolExecutor() as pool:
            there = pool.map(self.has_entry, digests)
            missing = [d for d, is_there in zip(digests, there) if not is_there]
        for path in map(self.path, missing):
            if path.is_file():
                logger.warning(f"Damaged cache entry {path} is made again.")
        return missing

    def extract(self, entries):
        """Makes all entries that are missing, shared among the ranks.

        An interrupted extraction continues where it stopped, since every
        finished entry stays. Where another process is at the same cache, each
        utterance is encoded by one of them.

        Arguments
        ---------
        entries : dict
            "wav" (the audio file) and "duration" (in seconds) by digest, and
            "start" and "end" where it is a part of it.

        Returns
        -------
        failures : dict
            Reason by digest, of what could not be encoded; the same on all
            ranks.

        Raises
        ------
        RecipeError
            If the cache cannot be written.
        """
        return extract(self, entries)
