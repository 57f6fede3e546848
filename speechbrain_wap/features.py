"""The feature cache: the frozen encoder runs once per utterance.

Layout of a cache folder, one sub-folder per encoder and one file per audio::

    <cache_folder>/<key>/cache.json               what the key stands for
    <cache_folder>/<key>/<xx>/<digest>.safetensors

The key is a digest of the encoder's config, weights, layer and code, the
sample rate, the storage precision and the versions of the libraries that
compute features. The digest is that of the audio file's bytes (xx its first
two digits). An entry holds one tensor "feats", shape [T, D], and in its
metadata the CRC-32 of the tensor's bytes. Entries are written beside their
place and renamed, so that a half-written one is never read.
"""

import hashlib
import json
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
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
from tqdm import tqdm

from speechbrain_wap.audio import read_audio
from speechbrain_wap.encoders import get_identity
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_atomically

logger = get_logger(__name__)

PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def _checksum(feats):
    """CRC-32 of a tensor's bytes."""
    return str(zlib.crc32(feats.contiguous().view(torch.uint8).numpy()))


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

    Example
    -------
    >>> from speechbrain_wap.encoders import SpeechEncoder
    >>> folder = getfixture("tmpdir")
    >>> cache = FeatureCache(folder, SpeechEncoder("fbank"))
    >>> cache.write("ab12", torch.ones(3, 80))
    >>> cache.read("ab12").shape
    torch.Size([3, 80])
    """

    def __init__(
        self, cache_folder, encoder, precision="float16", device="cpu"
    ):
        if precision not in PRECISIONS:
            raise RecipeError(
                f"feature_precision={precision} is unknown: choose one of "
                f"{', '.join(PRECISIONS)}."
            )
        self.encoder = encoder
        self.dtype = PRECISIONS[precision]
        self.device = device
        self.sample_rate = getattr(encoder, "sample_rate", 16000)
        self.description = {
            "encoder": get_identity(encoder),
            "sample_rate": self.sample_rate,
            "precision": precision,
            "libraries": {
                "speechbrain": speechbrain.__version__,
                "torch": torch.__version__,
                "torchaudio": torchaudio.__version__,
                "transformers": transformers.__version__,
            },
        }
        text = json.dumps(self.description, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = Path(cache_folder) / self.key

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

    def write(self, digest, feats):
        """Writes an entry so that it is there whole or not at all.

        Arguments
        ---------
        digest : str
            The audio's digest.
        feats : torch.Tensor
            Frames, shape [T, D].

        Raises
        ------
        RecipeError
            If the frames do not fit the storage precision.
        """
        if not torch.isfinite(feats).all():
            raise RecipeError("the encoder gave frames that are not finite.")
        stored = feats.to(self.dtype).cpu().contiguous()
        if not torch.isfinite(stored).all():
            largest = float(feats.abs().max())
            raise RecipeError(
                f"frames of up to {largest:.3g} cannot be stored as "
                f"{self.description['precision']}: set "
                "feature_precision: float32."
            )
        metadata = {"checksum": _checksum(stored)}
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
            Frames, shape [T, D], in the storage precision.

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
        path = self.path(digest)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as entry:
                checksum = (entry.metadata() or {}).get("checksum")
                sound = checksum == _checksum(entry.get_tensor("feats"))
        except (OSError, SafetensorError):
            sound = False
        if not sound:
            logger.warning(f"Damaged cache entry {path} is made again.")
        return sound

    def missing(self, digests):
        """Checks entries and returns those that have to be made.

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
        return [d for d, is_sound in zip(digests, sound) if not is_sound]

    def encode(self, path):
        """Computes the frames of one audio file, by itself.

        Arguments
        ---------
        path : str
            An audio file.

        Returns
        -------
        feats : torch.Tensor
            Shape [T, D], float32, on the CPU.
        """
        signal = read_audio(path, self.sample_rate).to(self.device)
        with torch.no_grad():
            feats = self.encoder(
                signal[None], torch.ones(1, device=self.device)
            )
        return feats[0].float().cpu()

    def extract(self, wavs):
        """Makes all entries that are missing, shared among the ranks.

        An interrupted extraction continues where it stopped, since every
        finished entry stays.

        Arguments
        ---------
        wavs : dict
            Audio file of each digest.

        Returns
        -------
        failures : dict
            Reason by digest, of what could not be encoded; the same on all
            ranks.
        """
        missing = self.missing(wavs)
        rank, world_size = 0, 1
        if is_distributed_initialized():
            rank = get_rank()
            world_size = torch.distributed.get_world_size()
        if missing and if_main_process():
            with write_atomically(self.folder / "cache.json") as temporary:
                with open(temporary, "w", encoding="utf-8") as file:
                    json.dump(self.description, file, indent=2, default=str)
        # Shared by the digest, not by the place in `missing`, which another
        # rank may see at another time.
        share = [d for d in missing if int(d[:8], 16) % world_size == rank]
        failures = self._extract(share, wavs)
        ddp_barrier()
        if world_size > 1:
            # Where nodes share no storage, the others' entries are not here.
            if is_local_rank_zero():
                rest = [d for d in self.missing(wavs) if d not in failures]
                failures.update(self._extract(rest, wavs))
            gathered = [None] * world_size
            torch.distributed.all_gather_object(gathered, failures)
            failures = {d: r for part in gathered for d, r in part.items()}
        return failures

    def _extract(self, digests, wavs):
        """Encodes and writes entries; returns the reasons of failures."""
        failures = {}
        if not digests:
            return failures
        self.encoder.to(self.device).eval()
        started, num_frames = time.time(), 0
        progress = tqdm(
            digests,
            desc="Extracting features",
            unit="utt",
            dynamic_ncols=True,
            disable=not if_main_process(),
        )
        for digest in progress:
            try:
                feats = self.encode(wavs[digest])
            except RecipeError as error:
                failures[digest] = str(error)
                continue
            # not the utterance's fault: a full disk must not thin the corpus
            try:
                self.write(digest, feats)
            except RecipeError as error:
                raise RecipeError(f"{wavs[digest]}: {error}")
            num_frames += len(feats)
            speed = num_frames / (time.time() - started)
            progress.set_postfix(frames_per_s=f"{speed:.0f}", refresh=False)
        return failures
