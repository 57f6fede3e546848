"""Reading speech: any sample rate and channel count, checked and named."""

import hashlib
import io
import os
import re

import soxr
import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import ANY_BYTES

logger = get_logger(__name__)


def _load_audio(source, name):
    """Decodes a file or its bytes to [channels, samples], and checks them."""
    try:
        signal, sample_rate = audio_io.load(source, dtype=torch.float32)
    except (RuntimeError, OSError) as error:
        reason = str(error.__cause__ or error).strip().rstrip(".")
        reason = re.sub("^Error opening .*?: ", "", reason)
        raise RecipeError(f"{name} cannot be read as audio: {reason}.")
    if signal.shape[-1] == 0:
        raise RecipeError(f"{name} holds no samples.")
    if not torch.isfinite(signal).all():
        raise RecipeError(f"{name} holds samples that are NaN or infinite.")
    return signal, sample_rate


def encode_name(path):
    """Gives the name by which a file is opened, whatever the locale.

    soundfile refuses text with bytes that are none, and an ASCII locale any
    letters but its own.

    Arguments
    ---------
    path : str
        As it is in a table.

    Returns
    -------
    name : bytes or str
    """
    return str(path).encode(**ANY_BYTES) if os.name == "posix" else str(path)


def read_audio(path, sample_rate):
    """Reads a file as the encoder wants it: mono, at the encoder's rate.

    soxr resamples: any pair of rates takes it milliseconds, whereas the kernel
    that torchaudio builds fills gigabytes where two rates have no large common
    divisor. The same file gives the same samples, whatever else is read.
    Quality VHQ computes in float64.

    Arguments
    ---------
    path : str
        An audio file of any sample rate and channel count.
    sample_rate : int
        Wanted rate in Hz.

    Returns
    -------
    signal : torch.Tensor
        Shape [samples], float32; the mean of the channels. Resampling rounds
        the number of samples to the nearest.

    Raises
    ------
    RecipeError
        If it cannot be decoded, holds no samples, or holds NaN or infinity.
    """
    signal, original_rate = _load_audio(encode_name(path), str(path))
    signal = signal.mean(dim=0)
    if original_rate != sample_rate:
        resampled = soxr.resample(
            signal.numpy(), original_rate, sample_rate, quality="VHQ"
        )
        signal = torch.from_numpy(resampled)
    return signal


def _check_wav_length(content, path):
    """Refuses a wav file that lacks over a tenth of what its header declares.

    Decoders do not check it. Less is a warning: EmoDB's 16b10Wb.wav is cut.
    """
    if content[:4] != b"RIFF":
        return
    declared = int.from_bytes(content[4:8], "little") + 8
    # streams do not know their size; some programs are out by a few bytes
    if declared >= 0xFFFFFF00 or declared <= len(content) + 64:
        return
    message = f"{path} is cut: it has {len(content)} of {declared} bytes"
    if len(content) < 0.9 * declared:
        raise RecipeError(f"{message}.")
    logger.warning(f"{message}; what is there is used.")


def inspect_audio(path):
    """Decodes a file for its duration and the digests that identify it.

    The digest of the file names the utterance's features in the cache. The
    sound, a digest of the samples, is the same in any lossless format.

    Arguments
    ---------
    path : str
        An audio file.

    Returns
    -------
    duration : float
        In seconds.
    digest : str
        Of the file's bytes, 32 hexadecimal digits.
    sound : str
        Of the sample rate and the samples, mono and before any resampling; as
        long.

    Raises
    ------
    RecipeError
        If the file is missing or cut, or see :func:`read_audio`.
    """
    try:
        with open(encode_name(path), "rb") as file:
            content = file.read()
    except OSError as error:
        raise RecipeError(f"{path} cannot be opened: {error.strerror}.")
    signal, sample_rate = _load_audio(io.BytesIO(content), str(path))
    _check_wav_length(content, path)
    samples = signal.mean(dim=0) + 0.0  # without -0.0
    heard = f"{sample_rate} Hz ".encode() + samples.numpy().tobytes()
    digest, sound = (
        hashlib.blake2b(data, digest_size=16).hexdigest()
        for data in (content, heard)
    )
    return signal.shape[-1] / sample_rate, digest, sound
