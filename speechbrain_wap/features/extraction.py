"""Filling a feature cache: by workers, ranks and other runs at the same time.

On a CPU, workers encode; for a GPU, they read the audio and this process
encodes. Whoever makes an entry locks it, so that processes that fill the same
cache share the work. Each utterance is encoded alone, with one thread: whoever
makes an entry makes the same one, on the same kind of machine.
"""

import os
import shutil
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
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

from speechbrain_wap.data.audio import digest_bytes, read_audio
from speechbrain_wap.encoders.own_module import run_module
from speechbrain_wap.encoders.speech_encoder import (
    SpeechEncoder,
    count_encoder_layers,
    count_values_per_second,
    get_frame_rate,
)
from speechbrain_wap.errors import RecipeError, first_line
from speechbrain_wap.files import format_bytes, try_lock
from speechbrain_wap.progress import Bar

logger = get_logger(__name__)

# More would rather fill the memory than be faster.
MAX_WORKERS = 8
# How long to wait before looking again at what another process encodes.
POLL_SECONDS = 0.5
# Errors that stop the extraction, whichever utterance they come upon
FATAL_MESSAGES = ("DataLoader worker", "can't allocate memory")
# How workers start: those that fork share the encoder's weights. Python's
# default is another within joblib's processes, which torch cannot start.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# Of speech that will be cut, as much more is encoded than is used
MARGIN_SECONDS = 1.0
# What became of an utterance
DONE, BUSY, FAILED, FATAL = "done", "busy", "failed", "fatal"


def cut_long_utterances(splits, caches, max_frames):
    """Cuts the audio of which no more than the beginning will be used (D12).

    So that a recording of an hour is not encoded for its first seconds. An
    encoder that looks at the whole utterance gives other frames for its
    beginning than for all of it.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of each split.
    caches : list of FeatureCache
        The features that will be read.
    max_frames : int
        So many frames of an utterance at most.

    Returns
    -------
    splits : dict
        Entries of utterances that give at most a second more are as they were;
        the others have an end, and a digest of their own. All are as they were
        where the frame rate of an encoder is not known.
    """
    used = find_used_seconds([cache.encoder for cache in caches], max_frames)
    if used is None:
        return splits
    seconds = used + MARGIN_SECONDS

    def cut(entry):
        """Cuts one utterance."""
        if entry["duration"] <= seconds:
            return entry
        name = f"{entry['digest']}, first {seconds} s"
        return {
            **entry,
            "end": (entry.get("start") or 0.0) + seconds,
            "duration": seconds,
            "digest": digest_bytes(name.encode()),
        }

    return {
        name: {key: cut(entry) for key, entry in split.items()}
        for name, split in splits.items()
    }


def find_used_seconds(encoders, max_frames):
    """Finds how many seconds of an utterance that is cut give the frames.

    Arguments
    ---------
    encoders : list of torch.nn.Module
        Those of its features.
    max_frames : int
        So many frames of it are used at most.

    Returns
    -------
    seconds : float or None
        None where the frame rate of an encoder is not known.
    """
    rates = [get_frame_rate(encoder) for encoder in encoders]
    return None if None in rates else max_frames / min(rates)


def extract(cache, entries):
    """Fills a cache, as its method :meth:`FeatureCache.extract` says."""
    missing = cache.missing(entries)
    cache.encoder.eval()
    rank, world_size = 0, 1
    if is_distributed_initialized():
        rank = get_rank()
        world_size = torch.distributed.get_world_size()
    if missing:
        _announce(cache, missing, entries)
    if if_main_process():
        cache.record_use()
    # Shared by the digest, not by the place in `missing`, which another rank
    # may see at another time.
    share = [d for d in missing if int(d[:8], 16) % world_size == rank]
    failures = _make_entries(cache, share, entries)
    ddp_barrier()
    if world_size > 1:
        # Where nodes share no storage, the others' entries are not here.
        if is_local_rank_zero():
            rest = [d for d in cache.missing(entries) if d not in failures]
            failures.update(_make_entries(cache, rest, entries))
        gathered = [None] * world_size
        torch.distributed.all_gather_object(gathered, failures)
        failures = {d: r for part in gathered for d, r in part.items()}
    return failures


def _announce(cache, missing, entries):
    """Says what will be made, and refuses what the disk cannot hold."""
    seconds = sum(entries[digest]["duration"] for digest in missing)
    rate = count_values_per_second(cache.encoder)
    size = seconds * (rate or 0.0) * cache.dtype.itemsize
    shown = f"about {format_bytes(size)}" if rate else "of unknown size"
    names = [Path(entries[digest]["wav"]).name for digest in missing[:3]]
    more = ", ..." if len(missing) > len(names) else ""
    layers = ""
    if isinstance(cache.encoder, SpeechEncoder):
        layers = f", encoder layers {cache.encoder.layers}"
    if if_main_process():
        logger.info(
            f"Extracting features of {len(missing)} of {len(entries)} "
            f"utterances ({', '.join(names)}{more}): {seconds / 3600:.2f} "
            f"h of speech, {shown} in {cache.folder}{layers}."
        )
    # refused by all ranks: one alone would leave the others waiting
    existing = next(p for p in cache.folder.absolute().parents if p.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise RecipeError(
            f"the features need about {format_bytes(size)}, but {existing} "
            f"has {format_bytes(free)} left: choose fewer layers "
            "(encoder_layer) or another cache_folder."
        )


def count_workers(num_workers, device, num_utterances):
    """Decides how many processes extract features beside this one.

    None means one per core of this rank, 8 at most.
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


@contextmanager
def _one_thread():
    """Computes with one thread: more may change a feature's last bits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):  # numpy's
            yield
    finally:
        torch.set_num_threads(num_threads)


def _make_entries(cache, digests, entries):
    """Encodes and writes entries; returns the reasons of failures."""
    failures = {}
    if not digests:
        return failures
    cache.encoder.to(cache.device)
    if isinstance(cache.encoder, SpeechEncoder):
        cache.encoder.load(cache.device)  # before the workers fork
    num_workers = count_workers(cache.num_workers, cache.device, len(digests))
    utterances = _Utterances(cache, {d: entries[d] for d in digests})
    # by which `features prune` sees that the cache is being filled
    lock = cache.folder / f".{socket.gethostname()}-{os.getpid()}.lock"
    progress = Bar(total=len(digests), desc="Extracting features", unit="utt")
    try:
        with _one_thread(), progress, try_lock(lock, remove=True):
            for digest, status, reason in utterances.run(num_workers):
                if status == FATAL:
                    raise RecipeError(reason)
                if status == FAILED:
                    failures[digest] = reason
                progress.update()
    except RuntimeError as error:
        if not any(text in str(error) for text in FATAL_MESSAGES):
            raise
        raise RecipeError(
            "memory ran out while features were extracted, or a process at it "
            "was ended from outside: run the same command again, with a lower "
            "feature_workers."
        )
    return failures


class _Utterances(Dataset):
    """Utterances to encode, each its audio by digest, for workers."""

    def __init__(self, cache, entries):
        self.cache = cache
        self.entries = entries
        self.digests = list(entries)

    def __len__(self):
        return len(self.digests)

    def __getitem__(self, index):
        """Returns digest, signal (where it is to be encoded), and outcome."""
        digest = self.digests[index]
        if torch.device(self.cache.device).type == "cpu":
            return digest, None, self.make_entry(digest)
        try:
            signal = self.read(digest)
            return digest, signal, (DONE, "")
        except RecipeError as error:
            return digest, None, (FAILED, str(error))

    def read(self, digest):
        """Reads the samples of an utterance."""
        entry = self.entries[digest]
        part = entry.get("start"), entry.get("end")
        return read_audio(entry["wav"], self.cache.sample_rate, *part)

    def make_entry(self, digest, signal=None):
        """Encodes an utterance, unless another process does so or has done.

        Takes the signal where it has been read; returns status and reason.
        """
        cache, wav = self.cache, self.entries[digest]["wav"]
        try:
            with cache.lock(digest) as is_locked:
                if not is_locked:
                    return BUSY, ""
                if cache.has_entry(digest):
                    return DONE, ""
                try:
                    if signal is None:
                        signal = self.read(digest)
                    feats = encode_utterance(
                        cache.encoder, signal, cache.device
                    )
                except RecipeError as error:
                    named = "" if wav in str(error) else f"{wav}: "
                    return FAILED, f"{named}{error}"
                cache.write(digest, feats, len(signal) / cache.sample_rate)
        except RecipeError as error:
            # a full disk must not thin the corpus
            return FATAL, f"{wav}: {error}"
        except torch.OutOfMemoryError as error:
            return FATAL, (
                f"{wav}: memory ran out ({first_line(error)}): set "
                "--long_utterances=cut and a lower max_frames, or "
                "--device=cpu."
            )
        return DONE, ""

    def run(self, num_workers):
        """Yields digest, status and reason of each; last, what others had."""
        loader = DataLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            in_order=False,
            # else an epoch would draw other numbers where features were made
            generator=torch.Generator(),
            multiprocessing_context=START_METHOD if num_workers else None,
        )
        busy = []
        for digest, signal, (status, reason) in loader:
            if signal is not None:
                status, reason = self.make_entry(digest, signal)
            if status == BUSY:
                busy.append(digest)
            else:
                yield digest, status, reason
        if busy:
            logger.info(
                f"Another process encodes {len(busy)} of these utterances: "
                "waiting for it."
            )
        while busy:
            time.sleep(POLL_SECONDS)
            for digest in list(busy):
                status, reason = self.make_entry(digest)
                if status != BUSY:
                    busy.remove(digest)
                    yield digest, status, reason


def encode_utterance(encoder, signal, device):
    """Computes the frames of one utterance, as the cache is to hold them.

    Arguments
    ---------
    encoder : torch.nn.Module
        Maps (wavs, lens) to frames.
    signal : torch.Tensor
        Samples, shape [n].
    device : str
        Where the encoder is.

    Returns
    -------
    feats : torch.Tensor
        Shape [T, D], or [T, L, D] of L layers; float32, on the CPU.

    Raises
    ------
    RecipeError
        If the encoder fails, or gives something else.
    """
    wavs = signal[None].to(device)
    try:
        with torch.no_grad():
            feats = run_module(encoder, wavs)
    except (RecipeError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError) as error:
        if any(text in str(error) for text in FATAL_MESSAGES):
            raise
        raise RecipeError(f"the encoder fails: {first_line(error)}")
    several = count_encoder_layers(encoder) > 1
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
