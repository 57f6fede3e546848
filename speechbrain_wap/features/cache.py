"""The feature cache: the frozen encoder runs once per utterance.

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

``python -m speechbrain_wap.features.cache inspect <cache_folder>`` lists the caches
of a folder, ``... prune`` removes some.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import speechbrain
import torch
import torchaudio
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from speechbrain.utils.distributed import (
    ddp_barrier,
    get_rank,
    if_main_process,
    is_distributed_initialized,
    is_local_rank_zero,
)
from speechbrain.utils.logger import get_logger
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from speechbrain_wap.data.audio import read_audio
from speechbrain_wap.encoders.speech_encoder import (
    SpeechEncoder,
    count_encoder_layers,
    count_values_per_second,
    get_identity,
)
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import Claims, write_atomically, write_text

logger = get_logger(__name__)

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


# More would rather fill the memory than be faster.
MAX_WORKERS = 8
# How long to wait before looking again at what another process is at.
POLL_SECONDS = 0.5
# Errors that stop the extraction, whichever utterance they come upon
NOT_THE_UTTERANCE = ("DataLoader worker", "can't allocate memory")
# Claimed in the lock file beside the entries: that this process is at work
AT_WORK = 1 << 61
# What became of an utterance
DONE, BUSY, FAILED, FATAL = "done", "busy", "failed", "fatal"


@contextmanager
def one_thread():
    """Computes with one thread: more may change a feature's last bits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):  # numpy's
            yield
    finally:
        torch.set_num_threads(num_threads)


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


def count_workers(num_workers, device, num_utterances):
    """Decides how many processes extract features beside this one.

    Arguments
    ---------
    num_workers : int or None
        What the user wants; None is one per core of this rank, 8 at most.
    device : str
        Where the encoder runs.
    num_utterances : int
        How many utterances there are to encode.

    Returns
    -------
    num_workers : int
        0 where this process had better do it alone.
    """
    if num_workers is None:
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        else:
            cores = os.cpu_count() or 1
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        num_workers = min(cores // ranks, MAX_WORKERS)
        if num_workers == 1 and torch.device(device).type == "cpu":
            num_workers = 0
    return min(num_workers, num_utterances // 2)


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
    except (OSError, SafetensorError, TypeError, ValueError, KeyError):
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
    duration = read_duration(path)
    if duration is None:
        return False
    name = f"{path.parent.parent.name}/{path.stem}"
    try:
        with safe_open(path, framework="pt") as entry:
            text = describe_entry(name, entry.get_tensor("feats"), duration)
            return entry.metadata()["entry"] == text
    except (OSError, SafetensorError):
        return False


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
        if precision not in PRECISIONS:
            raise RecipeError(
                f"feature_precision={precision} is unknown: choose one of "
                f"{', '.join(PRECISIONS)}."
            )
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
                for library in (speechbrain, torch, torchaudio, transformers)
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
                f"{self.precision}: set "
                "feature_precision: float32."
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
        digests = list(dict.fromkeys(digests))
        with ThreadPoolExecutor() as pool:
            sound = list(pool.map(self.is_sound, digests))
        missing = [d for d, is_sound in zip(digests, sound) if not is_sound]
        for digest in missing:
            if self.path(digest).is_file():
                logger.warning(
                    f"Damaged cache entry {self.path(digest)} is made again."
                )
        return missing

    def encode(self, signal):
        """Computes the frames of one utterance, by itself.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples], at ``sample_rate``.

        Returns
        -------
        feats : torch.Tensor
            Shape [T, D] or [T, L, D], float32, on the CPU.

        Raises
        ------
        RecipeError
            If the encoder cannot encode it, gives no frames, or NaN.
        """
        wavs = signal[None].to(self.device)
        try:
            with torch.no_grad():
                feats = self.encoder(wavs, torch.ones(1, device=self.device))
        except (RecipeError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError) as error:
            if any(text in str(error) for text in NOT_THE_UTTERANCE):
                raise
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise RecipeError(f"the encoder fails: {reason}")
        several = count_encoder_layers(self.encoder) > 1
        if feats.dim() != 3 + several or len(feats) != 1 or not feats.numel():
            raise RecipeError(
                f"the encoder gave a tensor of shape {list(feats.shape)}, not "
                "[1, T, D]."
            )
        feats = feats[0].float().cpu()
        if not torch.isfinite(feats).all():
            raise RecipeError(
                "the encoder gave frames that are not finite: its samples may "
                f"be too large (up to {float(signal.abs().max()):.3g})."
            )
        return feats

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
        missing = self.missing(entries)
        self.encoder.eval()
        rank, world_size = 0, 1
        if is_distributed_initialized():
            rank = get_rank()
            world_size = torch.distributed.get_world_size()
        if missing:
            self._announce(missing, entries)
        if if_main_process():
            self._record_use()
        # Shared by the digest, not by the place in `missing`, which another
        # rank may see at another time.
        share = [d for d in missing if int(d[:8], 16) % world_size == rank]
        failures = self._extract(share, entries)
        ddp_barrier()
        if world_size > 1:
            # Where nodes share no storage, the others' entries are not here.
            if is_local_rank_zero():
                rest = [d for d in self.missing(entries) if d not in failures]
                failures.update(self._extract(rest, entries))
            gathered = [None] * world_size
            torch.distributed.all_gather_object(gathered, failures)
            failures = {d: r for part in gathered for d, r in part.items()}
        return failures

    def _announce(self, missing, entries):
        """Says what will be made, and refuses what the disk cannot hold."""
        seconds = sum(entries[digest]["duration"] for digest in missing)
        rate = count_values_per_second(self.encoder)
        size = seconds * (rate or 0.0) * self.dtype.itemsize
        shown = f"about {format_bytes(size)}" if rate else "of unknown size"
        names = [Path(entries[digest]["wav"]).name for digest in missing[:3]]
        more = ", ..." if len(missing) > len(names) else ""
        layers = ""
        if isinstance(self.encoder, SpeechEncoder):
            layers = f", encoder layers {self.encoder.layers}"
        if if_main_process():
            logger.info(
                f"Extracting features of {len(missing)} of {len(entries)} "
                f"utterances ({', '.join(names)}{more}): {seconds / 3600:.2f} "
                f"h of speech, {shown} in {self.folder}{layers}."
            )
        # refused by all ranks: one alone would leave the others waiting
        existing = next(p for p in self.folder.absolute().parents if p.exists())
        free = shutil.disk_usage(existing).free
        if size > free:
            raise RecipeError(
                f"the features need about {format_bytes(size)}, but "
                f"{existing} has {format_bytes(free)} left: choose fewer "
                "layers (encoder_layer) or another cache_folder."
            )

    def _record_use(self):
        """Writes what the key stands for; its time says when it was used."""
        path = self.folder / "cache.json"
        name = getattr(self.encoder, "name", None)
        record = {"name": name, **self.description}
        if not path.exists():
            with suppress(RecipeError):  # it is but for people to read
                write_text(path, json.dumps(record, indent=2, default=str))
        with suppress(OSError):  # of somebody else, or read-only
            os.utime(path)

    def _make_entry(self, digest, wav, signal=None):
        """Encodes an utterance, unless another process is at it or was.

        Arguments
        ---------
        digest : str
            The audio's digest.
        wav : str
            Its file.
        signal : torch.Tensor, optional
            What is in it, where it has been read.

        Returns
        -------
        status : str
        reason : str
        """
        try:
            with self.claims.claim(int(digest[:15], 16)) as is_mine:
                if not is_mine:
                    return BUSY, ""
                if self.is_sound(digest):
                    return DONE, ""
                try:
                    if signal is None:
                        signal = read_audio(wav, self.sample_rate)
                    feats = self.encode(signal)
                except RecipeError as error:
                    named = "" if wav in str(error) else f"{wav}: "
                    return FAILED, f"{named}{error}"
                self.write(digest, feats, len(signal) / self.sample_rate)
        except RecipeError as error:
            # a full disk must not thin the corpus
            return FATAL, f"{wav}: {error}"
        return DONE, ""

    def _run(self, jobs, num_workers):
        """Yields what became of each job; last, what others were at."""
        loader = DataLoader(
            jobs,
            batch_size=None,
            num_workers=num_workers,
            in_order=False,
            # else an epoch would draw other numbers where features were made
            generator=torch.Generator(),
            # workers that fork share the encoder's weights
            multiprocessing_context="fork"
            if num_workers and sys.platform == "linux"
            else None,
        )
        busy = []
        for index, signal, (status, reason) in loader:
            if signal is not None:
                status, reason = self._make_entry(*jobs.names[index], signal)
            if status == BUSY:
                busy.append(index)
            else:
                yield index, status, reason
        if busy:
            logger.info(
                f"Another process was at {len(busy)} of these utterances: "
                "waiting for what it has not finished."
            )
        while busy:
            time.sleep(POLL_SECONDS)
            for index in list(busy):
                status, reason = self._make_entry(*jobs.names[index])
                if status != BUSY:
                    busy.remove(index)
                    yield index, status, reason

    def _extract(self, digests, entries):
        """Encodes and writes entries; returns the reasons of failures."""
        failures = {}
        if not digests:
            return failures
        self.encoder.to(self.device)
        if isinstance(self.encoder, SpeechEncoder):
            self.encoder.load(self.device)  # before the workers fork
        num_workers = count_workers(self.num_workers, self.device, len(digests))
        jobs = _Jobs(self, [(d, entries[d]["wav"]) for d in digests])
        progress = tqdm(
            total=len(digests),
            desc="Extracting features",
            unit="utt",
            dynamic_ncols=True,
            disable=not if_main_process(),
        )
        seconds, started = 0.0, time.time()
        try:
            at_work = self.claims.claim(AT_WORK + os.getpid())
            with one_thread(), progress, at_work:
                for index, status, reason in self._run(jobs, num_workers):
                    digest = digests[index]
                    if status == FATAL:
                        raise RecipeError(reason)
                    if status == FAILED:
                        failures[digest] = reason
                    seconds += entries[digest]["duration"]
                    factor = (time.time() - started) / max(seconds, 1e-3)
                    progress.set_postfix_str(f"RTF {factor:.3f}", False)
                    progress.update()
        except RuntimeError as error:
            if not any(text in str(error) for text in NOT_THE_UTTERANCE):
                raise
            raise RecipeError(
                "memory ran out while features were extracted, or a process "
                "at it was ended from outside: run the same command again, "
                "with a lower feature_workers."
            )
        return failures


class _Jobs(Dataset):
    """Utterances for the workers, which encode on a CPU and read for a GPU.

    Arguments
    ---------
    cache : FeatureCache
        The cache to fill.
    names : list of tuple
        Digest and file of each utterance.
    """

    def __init__(self, cache, names):
        self.cache = cache
        self.names = names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """Returns index, signal (where it is to be encoded), and outcome."""
        digest, wav = self.names[index]
        if torch.device(self.cache.device).type == "cpu":
            return index, None, self.cache._make_entry(digest, wav)
        try:
            signal = read_audio(wav, self.cache.sample_rate)
            return index, signal, (DONE, "")
        except RecipeError as error:
            return index, None, (FAILED, str(error))


if __name__ == "__main__":
    from speechbrain_wap.errors import say_mistakes
    from speechbrain_wap.features.command import main

    with say_mistakes():
        main(sys.argv[1:])
