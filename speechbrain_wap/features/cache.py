"""The feature cache: frames of the frozen encoder on disk, checked and named.

Layout of a cache folder, one sub-folder per encoder and one file per audio::

    <cache_folder>/<key>/cache.json               what the key stands for
    <cache_folder>/<key>/<xx>/<digest>.safetensors
    <cache_folder>/<key>/.lock                    who is at which entry

The key is a digest of the encoder's config, weights, layers, context and
preprocessing, the sample rate, the storage precision, the version of the
code and the minor versions of the libraries that compute features. The
digest is that of the audio file's bytes (xx its first two digits). An entry
holds one tensor "feats", shape [T, D] or, for several layers, [T, L, D], and
in its metadata, under "entry", JSON with its name (key and digest), the
duration of the audio in seconds and the CRC-32 of frames and duration.
Entries are written beside their place and renamed, so that a half-written one
is never read; the same features make the same file, byte for byte.

``python -m speechbrain_wap features inspect <cache_folder>`` lists the caches
of a folder, ``... prune`` removes some.
"""

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
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
from speechbrain_wap.files import Claims, write_atomically, write_text

logger = get_logger(__name__)

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# What reading an entry that is missing or damaged may raise
UNREADABLE = (OSError, SafetensorError, TypeError, ValueError, KeyError)


def describe_entry(name, feats, duration):
    """Writes an entry's metadata.

    Arguments
    ---------
    name : str
        The cache's key and the audio's digest.
    feats : torch.Tensor
        The frames as they are stored.
    duration : float
        Of the audio, in seconds.

    Returns
    -------
    text : str
        JSON; a change of any of them makes another text.

    Example
    -------
    >>> describe_entry("ab/12", torch.zeros(1, 2), 0.02)
    '{"name": "ab/12", "duration": 0.02, "crc32": 2931569239}'
    """
    frames = feats.contiguous().view(torch.uint8).numpy()
    checksum = zlib.crc32(repr(duration).encode(), zlib.crc32(frames))
    return json.dumps({"name": name, "duration": duration, "crc32": checksum})


def read_duration(path):
    """Reads the duration of an entry's audio off its header.

    Arguments
    ---------
    path : pathlib.Path
        The entry's file.

    Returns
    -------
    duration : float or None
        In seconds; None if the entry is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as entry:
            return float(json.loads(entry.metadata()["entry"])["duration"])
    except UNREADABLE:
        return None


def is_sound_entry(path):
    """Tells whether a cache entry is there, whole and unaltered.

    Arguments
    ---------
    path : pathlib.Path
        The entry's file.

    Returns
    -------
    sound : bool
    """
    name = f"{path.parent.parent.name}/{path.stem}"
    try:
        with safe_open(path, framework="pt") as entry:
            text, feats = entry.metadata()["entry"], entry.get_tensor("feats")
            duration = float(json.loads(text)["duration"])
            return text == describe_entry(name, feats, duration)
    except UNREADABLE:
        return False


def find_unsound(paths):
    """Lists those of some entries that are missing, damaged or altered.

    Arguments
    ---------
    paths : iterable of pathlib.Path
        The entries' files.

    Returns
    -------
    unsound : list of pathlib.Path
        In the order given.
    """
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        sound = list(pool.map(is_sound_entry, paths))
    return [path for path, is_sound in zip(paths, sound) if not is_sound]


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
        self.cache_folder = cache_folder
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

    @cached_property
    def claims(self):
        """Who is at which entry."""
        return Claims(self.folder / ".lock")

    def path(self, digest):
        """Returns where an entry lies, whether it exists or not.

        Arguments
        ---------
        digest : str
            The audio's digest.

        Returns
        -------
        path : pathlib.Path
        """
        return self.folder / digest[:2] / f"{digest}.safetensors"

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

        Arguments
        ---------
        digest : str
            The audio's digest.
        feats : torch.Tensor
            Frames, shape [T, D] or [T, L, D].
        duration : float
            Of the audio, in seconds.

        Raises
        ------
        RecipeError
            If the frames do not fit the storage precision.
        """
        stored = feats.to(self.dtype).cpu().contiguous()
        if not torch.isfinite(stored).all():
            largest = float(feats.abs().max())
            raise RecipeError(
                f"frames of up to {largest:.3g} cannot be stored as "
                f"{self.precision}: set feature_precision: float32."
            )
        name = f"{self.key}/{digest}"
        metadata = {"entry": describe_entry(name, stored, float(duration))}
        with write_atomically(self.path(digest)) as temporary:
            try:
                save_file({"feats": stored}, temporary, metadata)
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
        try:
            with safe_open(self.path(digest), framework="pt") as entry:
                return entry.get_tensor("feats")
        except (OSError, SafetensorError) as error:
            raise RecipeError(
                f"feature cache entry {self.path(digest)} cannot be read "
                f"({error}): run the command again to make it anew."
            )

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
        with safe_open(self.path(digest), framework="pt") as entry:
            return entry.get_slice("feats").get_shape()[0]

    def is_sound(self, digest):
        """Tells whether an entry is there, whole and unaltered.

        Arguments
        ---------
        digest : str
            The audio's digest.

        Returns
        -------
        sound : bool
        """
        return is_sound_entry(self.path(digest))

    def missing(self, digests):
        """Checks entries and returns those that have to be made.

        Damaged ones are named.

        Arguments
        ---------
        digests : list of str
            Digests of audio files.

        Returns
        -------
        missing : list of str
            In the order given, each once.
        """
        unsound = find_unsound(map(self.path, dict.fromkeys(digests)))
        for path in unsound:
            if path.is_file():
                logger.warning(f"Damaged cache entry {path} is made again.")
        return [path.stem for path in unsound]

    def extract(self, entries):
        """Makes all entries that are missing, shared among the ranks.

        An interrupted extraction continues where it stopped, since every
        finished entry stays. Where another process is at the same cache, each
        utterance is encoded by one of them.

        Arguments
        ---------
        entries : dict
            "wav" (the audio file) and "duration" (in seconds) by digest.

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
