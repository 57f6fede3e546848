"""Encoders that a user wires: what they may return, and what is checked.

Any torch.nn.Module may be the YAML's ``encoder`` that maps samples [B, samples]
and relative lengths [B] (or samples alone) to frames [B, T, D], of which more
come of longer speech: a tensor, an output of Hugging Face's with
``last_hidden_state``, or a tuple of frames and their lengths. An optional
second argument (default None) is passed only if its name ends with "lens". The
module is given one utterance at a time, without padding, so that it need not
look at the lengths. Its ``sample_rate`` is 16000 unless it has such an
attribute.
"""

import inspect
from collections.abc import Mapping
from itertools import chain

import torch

from speechbrain_wap.errors import RecipeError, first_line

CURE = "put a module around it that returns one tensor of frames [B, T, D]"


def run_module(encoder, wavs):
    """Runs any encoder on whole utterances.

    Arguments
    ---------
    encoder : torch.nn.Module
        See the top of this file.
    wavs : torch.Tensor
        Shape [B, samples], none of them padded.

    Returns
    -------
    frames : torch.Tensor
        As the encoder made them.

    Raises
    ------
    RecipeError
        If it returns something that frames cannot be found in.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> run_module(Fbank(), torch.rand(1, 16000)).shape
    torch.Size([1, 101, 40])
    """
    arguments = [wavs, torch.ones(len(wavs), device=wavs.device)]
    try:
        known = inspect.signature(encoder.forward)
        second = [*known.bind(*arguments).arguments][1]
        # it may be left out, and may be a mask, or lengths in samples
        if known.parameters[second].default is None and second[-4:] != "lens":
            arguments.pop()
    except TypeError:
        arguments.pop()  # SpeechBrain's Fbank, for one
    except (ValueError, IndexError):  # none that could be looked at, or *args
        pass
    return _find_frames(encoder(*arguments))


def _find_frames(output):
    """Finds the frames in what an encoder returns."""
    if isinstance(output, Mapping):
        output = output.get("last_hidden_state", output)
    output = getattr(output, "last_hidden_state", output)
    lengths = None
    if isinstance(output, (tuple, list)) and len(output):
        first, *rest = output
        tensors = [part for part in rest if torch.is_tensor(part)]
        if torch.is_tensor(first) and all(t.dim() < 3 for t in tensors):
            output, lengths = first, next(iter(tensors), None)
    if not torch.is_tensor(output):
        raise RecipeError(f"returns {_describe(output)}: {CURE}.")
    if lengths is not None and output.dim() == 3 and lengths.dim() == 1:
        is_share = lengths.is_floating_point()
        whole, slack = (1, 0) if is_share else (output.shape[1], 1)
        if abs(float(lengths[0]) - whole) > 0.02 * whole + slack:
            raise RecipeError(
                f"says that {float(lengths[0]):g} of its {output.shape[1]} "
                "frames count: lengths are given relative, from 0 to 1, not in "
                "samples; put a module around it that multiplies them."
            )
    return output


def _describe(output):
    """Describes what is no tensor, for an error."""
    if torch.is_tensor(output):
        return str(list(output.shape))
    if isinstance(output, Mapping):
        return f"a mapping with the keys {', '.join(map(str, output))}"
    if isinstance(output, (tuple, list)):
        parts = ", ".join(map(_describe, output[:3]))
        more = ", ..." if len(output) > 3 else ""
        return f"a {type(output).__name__} of {len(output)} ({parts}{more})"
    return f"a {type(output).__name__}"


def try_module(encoder, seconds):
    """Runs an encoder on a tone in noise, where it lies; leaves it as it was.

    Arguments
    ---------
    encoder : torch.nn.Module
        See the top of this file.
    seconds : int
        How much of it, at the encoder's sample rate.

    Returns
    -------
    frames : torch.Tensor
        See :func:`run_module`.
    """
    num_samples = int(seconds * getattr(encoder, "sample_rate", 16000))
    noise = torch.rand(num_samples, generator=torch.Generator().manual_seed(0))
    tone = torch.sin(0.1 * torch.arange(num_samples))
    parts = chain(encoder.parameters(), encoder.buffers())
    device = next(parts, tone).device
    sound = (0.1 * tone + 0.02 * (noise - 0.5)).to(device)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            return run_module(encoder, sound[None])
    finally:
        encoder.train(was_training)


def check_module(encoder):
    """Makes sure that an encoder of a user's keeps the contract.

    Arguments
    ---------
    encoder : torch.nn.Module
        See the top of this file.

    Returns
    -------
    dim : int
        Of its frames.

    Raises
    ------
    RecipeError
        If it fails on a second of sound, or on two, or what it gives are no
        frames that follow the utterance; says what is wrong.
    """
    name = f"encoder ({type(encoder).__name__})"
    if not isinstance(encoder, torch.nn.Module):
        raise RecipeError(f"{name} is no torch.nn.Module: wire one with !new:.")
    shapes = []
    for seconds in (1, 2):
        try:
            frames = try_module(encoder, seconds)
            _check_frames(frames)
        except torch.OutOfMemoryError:
            raise
        except RecipeError as error:
            raise RecipeError(f"{name} {error}")
        except Exception as error:  # of any module
            raise RecipeError(
                f"{name} fails on {seconds} s of sound at "
                f"{getattr(encoder, 'sample_rate', 16000)} Hz "
                f"({type(error).__name__}: {first_line(error)}): it must map "
                "wavs [B, samples] and lens [B], or wavs alone, to frames."
            )
        shapes.append(list(frames.shape))
    (_, short, dim), (_, long, other_dim) = shapes
    if dim != other_dim:
        cure = "transpose it" if short == long else CURE
        raise RecipeError(
            f"{name} gives {shapes[0]} for one second and {shapes[1]} for two, "
            f"where the last dimension must not depend on the length: {cure}."
        )
    if short >= long:
        raise RecipeError(
            f"{name} gives {short} frames for one second and {long} for two: "
            "it sums the utterance up, or pads it to one length (as "
            "SpeechBrain's Whisper does, which encoder_source has); frames "
            "must follow the speech."
        )
    if getattr(encoder, "output_size", dim) != dim:
        raise RecipeError(
            f"{name} has output_size={encoder.output_size}, but gives frames "
            f"of {dim} dimensions: make them agree."
        )
    return dim


def _check_frames(frames):
    """Refuses what are no frames of one utterance; the encoder's name lacks."""
    shape = list(frames.shape)
    if frames.dim() == 2 and len(frames) > 1:
        raise RecipeError(
            f"gives {shape} for one utterance, without a dimension for the "
            "batch: return [B, T, D]."
        )
    if frames.dim() == 2:
        raise RecipeError(
            f"gives {shape} for one utterance, one vector in all: take it "
            "before it sums the frames up, as [B, T, D]."
        )
    if frames.dim() != 3 or len(frames) != 1 or not frames.numel():
        raise RecipeError(f"gives {shape} for one utterance: {CURE}.")
    if not frames.is_floating_point():
        cure = "frames must be real numbers, such as float32"
        raise RecipeError(f"gives {frames.dtype}: {cure}.")
    if not torch.isfinite(frames).all():
        raise RecipeError("gives frames that are NaN or infinite for a tone.")
