"""The frozen speech encoder (Sec. II-A.1), by one key.

Whatever the batch, each utterance is encoded alone, in eval mode and float32:
SpeechBrain's wrappers normalise over the padded length and let attention see
the padding, so that features would depend on what else was in the batch.
"""

import hashlib
import inspect
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechbrain_wap.encoders.own_module import check_module, try_module
from speechbrain_wap.encoders.registry import make_front_end
from speechbrain_wap.errors import RecipeError, check_choice
from speechbrain_wap.files import expand_path
from speechbrain_wap.packing import valid_frames

# To be raised with every change of what is read or computed: features that
# another version cached are not taken over.
FEATURES_VERSION = 3
# Whose code changes with a release only, and ours with the version above
LIBRARIES = sys.stdlib_module_names | {
    *("torch", "torchaudio", "transformers", "huggingface_hub"),
    *("speechbrain", "speechbrain_wap"),
}


class SpeechEncoder(nn.Module):
    """Frozen encoder whose output belongs to the utterance alone (D1).

    Arguments
    ---------
    source : str
        Hub id or folder of a checkpoint of one of the families in
        :data:`speechbrain_wap.encoders.registry.FRONT_ENDS`, or without
        weights "fbank" (log-mel energies), "mfcc" or "spectrogram".
    layer : str, int or list of int
        "last", or an index: 0 is what enters the first Transformer layer, n
        what leaves the n-th. A list of indices, or "weighted" for all, gives
        several layers, which the WAP-Transformer averages with learnable
        weights.
    context : str
        What Whisper sees: "full" 30 s, as it was trained, or "clip", the
        utterance alone; the other families see the utterance alone anyway.
    revision : str, optional
        Commit, tag or branch of a hub id; "main" if not given. The attribute of
        this name has the commit that was found.

    Raises
    ------
    RecipeError
        If an argument is none of these; names it, and its value.

    Example
    -------
    >>> encoder = SpeechEncoder("fbank")
    >>> encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 51, 80])
    """

    def __init__(self, source, layer="last", context="full", revision=None):
        super().__init__()
        if source is None:
            raise RecipeError(
                "encoder_source is null: give a hub id, a folder or fbank."
            )
        check_choice("encoder_context", context, ("full", "clip"))
        self.source = source = expand_path(source, "encoder_source=")
        if revision is not None and not isinstance(revision, str):
            raise RecipeError(
                f"encoder_revision={revision} must be text: put it in quotes."
            )
        # the commit is recorded, but the weights are what counts: the identity
        # has their digest
        self.front_end, self.revision = make_front_end(
            source, context, revision
        )
        num_layers = self.front_end.num_layers
        if layer == "last":
            self.layers = [num_layers]
        elif layer == "weighted":
            self.layers = list(range(num_layers + 1))
        else:
            self.layers = list(layer) if isinstance(layer, list) else [layer]
        if not self.layers or not all(
            type(index) is int and 0 <= index <= num_layers
            for index in self.layers
        ):
            raise RecipeError(
                f"encoder_layer={layer} does not exist: {source} has 'last', "
                f"0 to {num_layers}, a list of these, and 'weighted'."
            )
        if len(set(self.layers)) < len(self.layers):
            raise RecipeError(f"encoder_layer={layer} names a layer twice.")
        self.sample_rate = self.front_end.sample_rate
        self.output_size = self.front_end.output_size
        self.frame_rate = self.front_end.frame_rate

    @property
    def name(self):
        """What people call the encoder; no part of its identity."""
        return os.path.basename(os.path.realpath(str(self.source)))

    def identity(self):
        """Returns what the features depend on, for the cache's key."""
        return {
            "layers": self.layers,
            "sample_rate": self.sample_rate,
            **self.front_end.identity(),
        }

    def train(self, mode=True):
        """Stays in eval mode: SpeechBrain calls train() on all modules."""
        del mode
        return super().train(False)

    def load(self, device):
        """Loads the weights, which the first call would do otherwise."""
        self.front_end.load(self.layers, device)

    @torch.no_grad()
    def forward(self, wavs, lens):
        """Encodes each utterance of a batch by itself.

        Arguments
        ---------
        wavs : torch.Tensor
            Shape [B, samples], at ``sample_rate``.
        lens : torch.Tensor
            Relative lengths, shape [B], each in 0 to 1.

        Returns
        -------
        feats : torch.Tensor
            Shape [B, T, output_size], or [B, T, L, output_size] where there
            are L > 1 layers; float32, zero beyond an utterance's end.

        Raises
        ------
        RecipeError
            If an utterance is too short to give a frame.
        """
        self.load(wavs.device)
        num_samples, _ = valid_frames(lens, wavs.shape[1])
        shortest = int(num_samples.min())
        if shortest < self.front_end.min_samples:
            raise RecipeError(
                f"{shortest} samples at {self.sample_rate} Hz are too short "
                f"for {self.source}, which needs "
                f"{self.front_end.min_samples}."
            )
        feats = []
        with _without_tf32():
            for wav, n in zip(wavs, num_samples.tolist()):
                # (L, T, D)
                states = self.front_end(wav[:n].float(), self.layers)
                several = len(self.layers) > 1
                feats.append(states.transpose(0, 1) if several else states[0])
        return pad_sequence(feats, batch_first=True)


@contextmanager
def _without_tf32():
    """Lets a GPU compute in float32 what is float32, as a CPU does.

    SpeechBrain allows TF32, whose numbers have three digits; features are made
    once, by whatever machine, and trained on ever after.
    """
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, is_allowed in zip(places, before):
            place.allow_tf32 = is_allowed


def get_encoder_dim(encoder):
    """Reads the dimension D of the frames off an encoder, for the YAML.

    Arguments
    ---------
    encoder : torch.nn.Module
        Any module that maps (wavs, lens) to [B, T, D]. Without an attribute
        ``output_size`` it is run on a second of sound.

    Returns
    -------
    encoder_dim : int

    Raises
    ------
    RecipeError
        If what it gives are no frames, see
        :mod:`speechbrain_wap.encoders.own_module`.

    Example
    -------
    >>> get_encoder_dim(SpeechEncoder("fbank"))
    80
    """
    if hasattr(encoder, "output_size"):
        return encoder.output_size
    return check_module(encoder)


def count_encoder_layers(encoder):
    """Counts the layers that an encoder gives, for the YAML; 1 of any other.

    Example
    -------
    >>> count_encoder_layers(SpeechEncoder("fbank"))
    1
    """
    return len(encoder.layers) if isinstance(encoder, SpeechEncoder) else 1


def get_frame_shape(encoder):
    """Reads the shape of a frame off an encoder: [D], or [L, D] of L layers.

    Example
    -------
    >>> get_frame_shape(SpeechEncoder("fbank"))
    [80]
    """
    layers = count_encoder_layers(encoder)
    return [layers] * (layers > 1) + [get_encoder_dim(encoder)]


def count_values_per_second(encoder):
    """Counts how many numbers stand for a second of speech, all layers.

    A module that is no :class:`SpeechEncoder` is run on two seconds of sound;
    None where it refuses them.

    Example
    -------
    >>> count_values_per_second(SpeechEncoder("fbank"))
    4000.0
    """
    if isinstance(encoder, SpeechEncoder):
        num_layers = len(encoder.layers)
        return encoder.frame_rate * num_layers * encoder.output_size
    try:
        return try_module(encoder, seconds=2).numel() / 2
    except (RuntimeError, ValueError):
        return None


def get_frame_rate(encoder):
    """Reads how many frames an encoder gives for a second of speech.

    A module that has no ``frame_rate`` is run on a tone, and the rate is a
    little too low rather than too high; None where it refuses.

    Example
    -------
    >>> get_frame_rate(SpeechEncoder("fbank"))
    50.0
    """
    if hasattr(encoder, "frame_rate"):
        return encoder.frame_rate
    try:
        few, many = (try_module(encoder, n).shape[1] for n in (1, 11))
    except (RecipeError, RuntimeError, ValueError, IndexError):
        return None
    return max(0, many - few - 1) / 10 or None


def _is_plain(value):
    """Tells whether a value is text, a number, or made of such."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


def get_identity(encoder):
    """Sums up in plain values what an encoder's features depend on.

    Arguments
    ---------
    encoder : torch.nn.Module
        A :class:`SpeechEncoder`, or any module with the same call; without a
        method ``identity``, its weights, its plain attributes and its source
        code are taken.

    Returns
    -------
    identity : dict
    """
    if hasattr(encoder, "identity"):
        identity = dict(encoder.identity())
    else:
        digest = hashlib.sha256()
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            flat = tensor.cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        identity = {
            "weights": digest.hexdigest(),
            "structure": repr(encoder),
            "attributes": {
                f"{path}.{name}": value
                for path, module in encoder.named_modules()
                for name, value in sorted(vars(module).items())
                if _is_plain(value)
                and name != "training"
                and not name.startswith("_")
            },
        }
    identity["version"] = FEATURES_VERSION
    if type(encoder) is not SpeechEncoder:
        # to be raised when run_module gives modules other arguments
        identity["call"] = 2
        identity["code"] = _digest_code(encoder)
    identity["class"] = type(encoder).__qualname__
    return identity


def _digest_code(encoder):
    """Digests the files of an own encoder's class and of those of its parts.

    Their code may change without notice; what is typed at a prompt has no file.
    """
    classes = {
        kind.__module__: kind
        for part in encoder.modules()
        for kind in type(part).__mro__
        if kind.__module__.partition(".")[0] not in LIBRARIES
    }
    classes[type(encoder).__module__] = type(encoder)
    digest = hashlib.sha256()
    for _, kind in sorted(classes.items()):
        with suppress(TypeError, OSError):
            digest.update(Path(inspect.getsourcefile(kind)).read_bytes())
    return digest.hexdigest()


def digest_encoder(encoder):
    """Digests what an encoder is, by its content, wherever it lies.

    Arguments
    ---------
    encoder : torch.nn.Module
        See :func:`get_identity`.

    Returns
    -------
    digest : str
        16 hexadecimal digits.

    Example
    -------
    >>> fbank = digest_encoder(SpeechEncoder("fbank"))
    >>> fbank == digest_encoder(SpeechEncoder("fbank", layer=0))
    True
    """
    text = json.dumps(get_identity(encoder), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
