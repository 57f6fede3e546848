"""Reading speech: any sample rate and channel count, checked and named."""

import hashlib
import math
import os
import re
import shlex
from functools import partial
from pathlib import Path

import soundfile
import soxr
import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import ANY_BYTES

logger = get_logger(__name__)


# Neither start nor end: all of a file
WHOLE = (None, None)
# How far, in seconds, a segment may end beyond its file: times are rounded
ROUNDING = 0.1


def _decode(read, path, name, **part):
    """Calls a function of audio_io, and says in a sentence why it fails."""
    try:
        return read(encode_name(path), **part)
    except (RuntimeError, OSError) as error:
        reason = str(error.__cause__ or error).strip().rstrip(".")
        reason = reason.removeprefix(f"Error opening {encode_name(path)!r}: ")
    if re.search("lost sync|malformed|fseek", reason):
        reason += "; it is cut or damaged: restore it from its source"
    elif not os.path.exists(path):
        reason = "it does not exist"
    elif os.path.isdir(path):
        reason = "it is a folder"
    elif os.path.isfile(path) and os.path.getsize(path) == 0:
        reason = "it is empty"
    elif re.search(
        "not recognised|not supported|unsupported|unimplemented|too big", reason
    ):
        if "too big" in reason:  # of an array without end
            reason = "its header does not say how long it is"
        other = Path(path).with_suffix(".wav")
        other = other.with_suffix(".flac") if other == Path(path) else other
        line = shlex.join(["ffmpeg", "-i", str(path), str(other)])
        reason += (
            f"; if other programs play it, convert it with '{line}' and give "
            "the new file"
        )
    raise RecipeError(f"{name} cannot be read as audio: {reason}.")


def _check_samples(signal, name):
    """Refuses samples [..., n] that nothing can be computed from."""
    if signal.shape[-1] == 0:
        raise RecipeError(f"{name} holds no samples.")
    if not torch.isfinite(signal).all():
        raise RecipeError(f"{name} holds samples that are NaN or infinite.")


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
    last = max(first, min(last, num_samples))
    return f"{path}, from {place},", first, last


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
        info = _decode(audio_io.info, path, name)
        name, first, last = _locate(
            path, (start, end), info.frames, info.sample_rate
        )
        part = {"frame_offset": first, "num_frames": last - first}
    load = partial(audio_io.load, dtype=torch.float32)
    try:
        signal, original_rate = _decode(load, path, name, **part)
    except RecipeError as error:
        if not part or "seekable" not in str(error):
            raise
        signal, original_rate = _decode(load, path, name)
        signal = signal[:, first:last]
    _check_samples(signal, name)
    signal = signal.mean(dim=0)
    if original_rate != sample_rate:
        resampled = soxr.resample(
            signal.numpy(), original_rate, sample_rate, quality="VHQ"
        )
        signal = torch.from_numpy(resampled)
    return signal


def _read_declared_size(content):
    """Reads how many bytes a container says that it has, 0 if it does not.

    libsndfile reads what is there of these, without a word.
    """

    def number(place, order, size=4):
        """Reads a number of some bytes."""
        return int.from_bytes(content[place : place + size], order)

    kind, declared, limit = content[:4], 0, 0x7F000000
    if kind in (b"RIFF", b"RIFX", b"FORM"):  # WAV; AIFF, AIFC, 8SVX
        order = "little" if kind == b"RIFF" else "big"
        declared, chunk = number(4, order) + 8, 12
        while content[chunk : chunk + 1] > b" ":  # else its name is none
            end = chunk + 8 + number(chunk + 4, order)
            is_sound = content[chunk : chunk + 4] in (b"data", b"SSND", b"BODY")
            if is_sound and end < limit:  # some write one of the two wrongly
                declared = max(declared, end) if declared < limit else end
            chunk = end + end % 2
    elif kind in (b".snd", b"dns."):
        order = "big" if kind == b".snd" else "little"
        declared = number(4, order) + number(8, order)
    elif kind in (b"RF64", b"BW64") and content[12:16] == b"ds64":
        declared, limit = number(20, "little", 8) + 8, 2**62
    elif kind == b"riff":  # W64
        declared, limit = number(16, "little", 8), 2**62
    elif kind == b"NIST":
        fields = dict(re.findall(rb"(\w+) -i (\d+)\s", content[:1024]))
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        declared = 1024 + math.prod(int(fields.get(n, 0)) for n in names)
    # streams do not know their size, and write as much as there can be
    return declared if declared < limit else 0


def _check_length(path, content, num_samples):
    """Refuses a file that lacks over a tenth of what its header declares.

    Decoders do not check it. Less is a warning: EmoDB's 16b10Wb.wav is cut.
    """
    info = _decode(audio_io.info, path, str(path))
    # some programs are out by a few bytes, or by a frame of an MP3 file
    counts = [("bytes", len(content), _read_declared_size(content), 64)]
    # else that of an MP3 file is a guess
    if info.format != "MP3" or re.search(b"Xing|Info|VBRI", content):
        counts.append(("samples", num_samples, info.frames, 4096))
    for unit, found, declared, slack in counts:
        if declared <= found + slack:
            continue
        message = f"{path} is cut: it has {found} of {declared} {unit}"
        if found < 0.9 * declared:
            raise RecipeError(f"{message}.")
        logger.warning(f"{message}; what is there is used.")
    last_page = content[content.rfind(b"OggS") :]
    if content[:4] == b"OggS" and last_page[5:6] < b"\4":  # the flag of the end
        logger.warning(
            f"{path} may be cut: it has no last page; what is there is used."
        )


def digest_bytes(content):
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
        with open(encode_name(path), "rb") as file:
            content = file.read()
    except OSError as error:
        raise RecipeError(f"{path} cannot be opened: {error.strerror}.")
    # not from the bytes, of which libsndfile does not open every MP3 file
    signal, sample_rate = _decode(
        audio_io.load, path, str(path), dtype=torch.float32
    )
    num_samples = signal.shape[-1]
    _check_length(path, content, num_samples)
    whole = digest_bytes(content)
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
            digest = digest_bytes(f"{whole} {first}:{last}".encode())
        samples = part.mean(dim=0) + 0.0  # without -0.0
        heard = f"{sample_rate} Hz ".encode() + samples.numpy().tobytes()
        found.append(
            ((last - first) / sample_rate, digest, digest_bytes(heard))
        )
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


def measure_duration(path):
    """Reads the duration of a file off its header, in seconds.

    Arguments
    ---------
    path : str
        An audio file.

    Returns
    -------
    duration : float

    Raises
    ------
    RecipeError
        If it cannot be read as audio.
    """
    info = _decode(audio_io.info, path, str(path))
    return info.frames / info.sample_rate


def read_blocks(path, step, seconds=10.0):
    """Reads a file piece by piece, mono, at its own sample rate.

    Arguments
    ---------
    path : str
        An audio file of any length.
    step : float
        Of how many seconds a piece is a multiple.
    seconds : float
        About how long a piece is.

    Yields
    ------
    block : numpy.ndarray
        Samples, shape [n].
    sample_rate : int
        In Hz.

    Raises
    ------
    RecipeError
        See :func:`read_audio`.
    """
    _decode(audio_io.info, path, str(path))
    with soundfile.SoundFile(encode_name(path)) as file:
        size = max(1, round(step * file.samplerate)) * round(seconds / step)
        try:
            for block in file.blocks(size, dtype="float32", always_2d=True):
                yield block.mean(axis=1), file.samplerate
        except RuntimeError as error:
            raise RecipeError(f"{path} cannot be read to its end: {error}.")
