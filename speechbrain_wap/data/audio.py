"""Reading speech: any sample rate and channel count, checked and named."""

import hashlib
import io
import re

import soxr
import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError

logger = get_logger(__name__)


# Neither start nor end: all of a file
WHOLE = (None, None)
# How far, in seconds, a segment may end beyond its file: times are rounded
ROUNDING = 0.1


def _decode(read, source, name, **part):
    """Calls a function of audio_io, and says in a sentence why it fails."""
    try:
        return read(source, **part)
    except (RuntimeError, OSError) as error:
        reason = str(error.__cause__ or error).strip().rstrip(".")
        reason = re.sub("^Error opening .*?: ", "", reason)
        raise RecipeError(f"{name} cannot be read as audio: {reason}.")


def _check_samples(signal, name):
    """Refuses samples [..., n] that nothing can be computed from."""
    if signal.shape[-1] == 0:
        raise RecipeError(f"{name} holds no samples.")
    if not torch.isfinite(signal).all():
        raise RecipeError(f"{name} holds samples that are NaN or infinite.")


def _locate(path, segment, num_samples, sample_rate):
    """Finds a segment in a file: what errors call it, its first sample, and
    the one after its last."""
    if segment == WHOLE:
        return str(path), 0, num_samples
    start, end = segment
    first = round((start or 0.0) * sample_rate)
    last = num_samples if end is None else round(end * sample_rate)
    until = "its end" if end is None else f"{end:g} s"
    place = f"{start or 0.0:g} s to {until}"
    if first >= num_samples or last > num_samples + ROUNDING * sample_rate:
        raise RecipeError(
            f"{path} lasts {num_samples / sample_rate:.3f} s, but the "
            f"utterance is to be cut out of it from {place}: correct start "
            "and end, which are seconds, or leave them empty where the file "
            "is the utterance."
        )
    return f"{path}, from {place},", first, min(last, num_samples)


def read_audio(path, sample_rate, start=None, end=None):
    """Reads an utterance as the encoder wants it: mono, at the encoder's rate.

    soxr resamples: any pair of rates takes it milliseconds, whereas the kernel
    that torchaudio builds fills gigabytes where two rates have no large common
    divisor. The same file gives the same samples, whatever else is read; a
    segment those that a file of its own would give, and the rest of its file is
    not decoded. Quality VHQ computes in float64.

    Arguments
    ---------
    path : str
        An audio file of any sample rate and channel count.
    sample_rate : int
        Wanted rate in Hz.
    start, end : float, optional
        Where in the file the utterance is, in seconds.

    Returns
    -------
    signal : torch.Tensor
        Shape [samples], float32; the mean of the channels. Resampling rounds
        the number of samples to the nearest.

    Raises
    ------
    RecipeError
        If it cannot be decoded, holds no samples, holds NaN or infinity, or is
        not in the file.
    """
    name, part = str(path), {}
    if (start, end) != WHOLE:
        info = _decode(audio_io.info, str(path), name)
        name, first, last = _locate(
            path, (start, end), info.frames, info.sample_rate
        )
        part = {"frame_offset": first, "num_frames": last - first}
    signal, original_rate = _decode(
        audio_io.load, str(path), name, dtype=torch.float32, **part
    )
    _check_samples(signal, name)
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


def _hash(content):
    """Digests bytes, to 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def inspect_segments(path, segments):
    """Decodes a file once, and inspects parts of it.

    Arguments
    ---------
    path : str
        An audio file.
    segments : list of tuple
        Start and end of each, in seconds; None is that of the file.

    Returns
    -------
    found : list
        What :func:`inspect_audio` returns for each, or the RecipeError.

    Raises
    ------
    RecipeError
        If the file is missing or cut, or cannot be decoded.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise RecipeError(f"{path} cannot be opened: {error.strerror}.")
    signal, sample_rate = _decode(
        audio_io.load, io.BytesIO(content), str(path), dtype=torch.float32
    )
    _check_wav_length(content, path)
    whole = _hash(content)
    num_samples = signal.shape[-1]
    found = []
    for segment in segments:
        try:
            name, first, last = _locate(path, segment, num_samples, sample_rate)
            part = signal[:, first:last]
            _check_samples(part, name)
        except RecipeError as error:
            found.append(error)
            continue
        digest = whole
        if (first, last) != (0, num_samples):
            digest = _hash(f"{whole} {first}:{last}".encode())
        samples = part.mean(dim=0) + 0.0  # without -0.0
        heard = f"{sample_rate} Hz ".encode() + samples.numpy().tobytes()
        found.append(((last - first) / sample_rate, digest, _hash(heard)))
    return found


def inspect_audio(path, start=None, end=None):
    """Decodes an utterance for its duration and the digests that identify it.

    The digest names the utterance's features in the cache. The sound, a digest
    of the samples, is the same in any lossless format.

    Arguments
    ---------
    path : str
        An audio file.
    start, end : float, optional
        Where in the file the utterance is, in seconds.

    Returns
    -------
    duration : float
        In seconds.
    digest : str
        Of the file's bytes, and of what is taken of them where that is not all;
        32 hexadecimal digits.
    sound : str
        Of the sample rate and the samples, mono and before any resampling; as
        long.

    Raises
    ------
    RecipeError
        If the file is missing or cut, or see :func:`read_audio`.
    """
    (found,) = inspect_segments(path, [(start, end)])
    if isinstance(found, RecipeError):
        raise found
    return found
