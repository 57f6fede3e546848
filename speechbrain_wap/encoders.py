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

import torch
from safetensors import SafetensorError
from speechbrain.lobes.features import Fbank
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechbrain_wap import audio
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.lengths import valid_frames

# Files of a checkpoint that decide what the encoder computes.
CHECKPOINT_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin"]


def resolve_source(source):
    """Finds the folder of a checkpoint, from the hub if need be.

    Arguments
    ---------
    source : str
        A folder, or a Hugging Face hub id such as
        "facebook/hubert-large-ll60k".

    Returns
    -------
    folder : str
        A local folder with config.json and weights.

    Raises
    ------
    RecipeError
        If it is neither a folder nor to be had from the hub or its cache.
    """
    if os.path.isdir(source):
        if not os.path.isfile(os.path.join(source, "config.json")):
            raise RecipeError(
                f"encoder_source={source} holds no config.json: give the "
                "folder of a Hugging Face checkpoint."
            )
        return str(source)
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = CHECKPOINT_FILES
    try:
        try:
            files = HfApi().list_repo_files(source)
            if any(name.endswith(".safetensors") for name in files):
                patterns = CHECKPOINT_FILES[:2]
        except HFValidationError:
            raise
        except Exception as unreachable:
            # Offline: the hub's local cache may hold it all the same.
            try:
                return snapshot_download(source, local_files_only=True)
            except Exception:
                raise unreachable
        return snapshot_download(source, allow_patterns=patterns)
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise RecipeError(
            f"encoder_source={source} is no folder, and neither the hub nor "
            f"its local cache gives it ({reason}): check the name and the "
            "network, or download it and give the folder."
        )


def read_json(folder, name):
    """Reads a JSON file of a checkpoint.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    name : str
        The file.

    Returns
    -------
    content : dict

    Raises
    ------
    RecipeError
        If it is damaged.
    """
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise RecipeError(
            f"encoder_source={folder}: {name} is damaged ({error}): download "
            "it again."
        )


def weights_digest(folder):
    """Hashes the files of a checkpoint that hold weights.

    Arguments
    ---------
    folder : str
        A checkpoint's folder.

    Returns
    -------
    digest : str
        Hexadecimal; the same weights have the same digest anywhere.
    """
    names = sorted(os.listdir(folder))
    weights = [n for n in names if n.endswith(".safetensors")] or [
        n for n in names if n.endswith(".bin")
    ]
    if not weights:
        raise RecipeError(
            f"encoder_source={folder} holds no weights: a .safetensors or "
            ".bin file belongs beside config.json."
        )
    digest = hashlib.sha256()
    for name in weights:
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


class FbankFrontEnd(nn.Module):
    """Log-mel energies: no weights, for demos and for comparison.

    80 mel bands, windows of 25 ms, 50 frames per second like the pretrained
    encoders. The scale is fixed, not the utterance's own: loudness and tilt
    carry emotion.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    n_mels : int
        Number of mel bands.
    """

    num_layers = 0
    min_samples = 400

    def __init__(self, sample_rate=16000, n_mels=80):
        super().__init__()
        self.sample_rate = sample_rate
        self.output_size = n_mels
        self.fbank = Fbank(
            sample_rate=sample_rate, n_mels=n_mels, win_length=25, hop_length=20
        )

    def identity(self):
        """Returns what the features depend on, for the cache's key.

        Returns
        -------
        identity : dict
        """
        return {"family": "fbank", "n_mels": self.output_size}

    def load(self, device):
        """Moves the filters to a device; there are no weights to read.

        Arguments
        ---------
        device : str
            As in torch.
        """
        self.to(device)

    def forward(self, signal, layers):
        """Computes log-mel energies, about -2 to 2.

        Arguments
        ---------
        signal : torch.Tensor
            One utterance, shape [samples].
        layers : list of int
            There is layer 0 only.

        Returns
        -------
        feats : torch.Tensor
            Shape [len(layers), T, n_mels].
        """
        decibels = self.fbank(signal[None])
        return ((decibels + 15.0) / 20.0).expand(len(layers), -1, -1)


class HuggingFaceFrontEnd(nn.Module):
    """A transformer checkpoint behind SpeechBrain's wrapper.

    Reads the config only; weights are loaded when the first utterance is
    encoded, which never happens where the cache is complete.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    config : dict
        Content of its config.json.
    """

    def __init__(self, folder, config):
        super().__init__()
        self.folder = folder
        self.config = config
        self.wrapper = None

    def identity(self):
        """Returns what the features depend on, for the cache's key.

        Returns
        -------
        identity : dict
        """
        preprocessor = {}
        # transformers 5 reads the second one, too, and prefers it
        for name in ("preprocessor_config.json", "processor_config.json"):
            if os.path.isfile(os.path.join(self.folder, name)):
                preprocessor[name] = read_json(self.folder, name)
        return {
            "family": self.config["model_type"],
            "config": self.config,
            "preprocessor": preprocessor,
            "weights": weights_digest(self.folder),
        }

    def load(self, device):
        """Loads the weights in float32, frozen, in eval mode, once.

        Arguments
        ---------
        device : str
            As in torch.
        """
        if self.wrapper is None:
            try:
                self.wrapper = self.make_wrapper()
            except (OSError, ValueError, SafetensorError) as error:
                reason = str(error).strip().splitlines()[0].rstrip(".")
                raise RecipeError(
                    f"encoder_source={self.folder} cannot be loaded "
                    f"({reason}): download it again."
                )
        # A half-precision checkpoint loads in half precision, and SpeechBrain
        # leaves a frozen Whisper in train mode.
        self.wrapper.requires_grad_(False).float().eval().to(device)


class WaveformFrontEnd(HuggingFaceFrontEnd):
    """HuBERT and wav2vec 2.0: convolutions on the waveform.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    config : dict
        Content of its config.json.
    """

    def __init__(self, folder, config):
        super().__init__(folder, config)
        if config.get("add_adapter"):
            raise RecipeError(
                f"encoder_source={folder} has an adapter on top "
                "(add_adapter: true), which is not served: wire it with "
                "encoder: !new: in the YAML."
            )
        self.sample_rate = 16000
        self.output_size = config["hidden_size"]
        self.num_layers = config["num_hidden_layers"]
        # the fewest samples that the convolutions turn into one frame
        self.min_samples = 1
        for kernel, stride in zip(
            reversed(config["conv_kernel"]), reversed(config["conv_stride"])
        ):
            self.min_samples = (self.min_samples - 1) * stride + kernel

    def make_wrapper(self):
        """Builds SpeechBrain's wrapper with the checkpoint's weights.

        Returns
        -------
        wrapper : speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
        """
        from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

        return Wav2Vec2(
            self.folder, self.folder, freeze=True, dtype=torch.float32
        )

    def forward(self, signal, layers):
        """Encodes one utterance without padding.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples], at 16 kHz.
        layers : list of int
            Each 0 (the input of the first layer) to num_layers.

        Returns
        -------
        feats : torch.Tensor
            Shape [len(layers), T, D], 50 frames per second.
        """
        if self.wrapper.normalize_wav:
            # as the checkpoint's feature extractor does; the wrapper's
            # layer_norm adds a hundred times as much to the variance, which
            # changes quiet speech
            variance = signal.var(unbiased=False)
            signal = (signal - signal.mean()) / torch.sqrt(variance + 1e-7)
        output = self.wrapper.model(signal[None], output_hidden_states=True)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return torch.cat([states[layer] for layer in layers])


class WhisperFrontEnd(HuggingFaceFrontEnd):
    """Whisper's encoder: log-mel input, padded to 30 s by definition.

    The frames of the padding are not returned. Speech beyond 30 s is encoded
    in windows of 30 s, one after the other, since the model knows no more.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    config : dict
        Content of its config.json.
    """

    min_samples = 1

    def __init__(self, folder, config):
        super().__init__(folder, config)
        self.sample_rate = 16000
        self.output_size = config["d_model"]
        self.num_layers = config["encoder_layers"]

    def make_wrapper(self):
        """Builds SpeechBrain's wrapper with the encoder's weights.

        Returns
        -------
        wrapper : speechbrain.integrations.huggingface.whisper.Whisper
        """
        from speechbrain.integrations.huggingface.whisper import Whisper

        return Whisper(
            self.folder,
            self.folder,
            encoder_only=True,
            freeze=True,
            output_all_hiddens=True,
        )

    def forward(self, signal, layers):
        """Encodes one utterance.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples], at 16 kHz.
        layers : list of int
            Each 0 (the input of the first layer) to num_layers.

        Returns
        -------
        feats : torch.Tensor
            Shape [len(layers), T, D], 50 frames per second.
        """
        hop = 2 * self.wrapper._hop_length  # the convolutions halve the rate
        frames = []
        for window in signal.split(self.wrapper._n_samples):
            mel = self.wrapper._get_mel(window[None])
            states = self.wrapper.forward_encoder(mel)  # (L + 1, 1, T, D)
            frames.append(states[layers, 0, : -(-len(window) // hop)])
        return torch.cat(frames, dim=1)


FRONT_ENDS = {
    "hubert": WaveformFrontEnd,
    "wav2vec2": WaveformFrontEnd,
    "whisper": WhisperFrontEnd,
}


def make_front_end(source):
    """Chooses the front end by the checkpoint's own config.

    Arguments
    ---------
    source : str
        Hub id, folder, or "fbank".

    Returns
    -------
    front_end : torch.nn.Module

    Raises
    ------
    RecipeError
        If the checkpoint is of a family that is not served.
    """
    if source == "fbank":
        return FbankFrontEnd()
    folder = resolve_source(source)
    config = read_json(folder, "config.json")
    family = config.get("model_type")
    if family not in FRONT_ENDS:
        served = ", ".join(sorted(FRONT_ENDS))
        raise RecipeError(
            f"encoder_source={source} is of the family {family!r}, but only "
            f"{served} and fbank are served: wire another module with "
            "encoder: !new: in the YAML."
        )
    return FRONT_ENDS[family](folder, config)


class SpeechEncoder(nn.Module):
    """Frozen encoder whose output belongs to the utterance alone (D1).

    Arguments
    ---------
    source : str
        Hub id or folder of a HuBERT, wav2vec 2.0 or Whisper checkpoint, or
        "fbank" for log-mel energies without weights.
    layer : str, int or list of int
        "last", or an index: 0 is what enters the first Transformer layer, n
        what leaves the n-th. A list of indices, or "weighted" for all, gives
        several layers, which the WAP-Transformer averages with learnable
        weights.

    Example
    -------
    >>> encoder = SpeechEncoder("fbank")
    >>> encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 51, 80])
    """

    def __init__(self, source, layer="last"):
        super().__init__()
        self.source = source
        self.front_end = make_front_end(str(source))
        num_layers = self.front_end.num_layers
        if layer == "last":
            self.layers = [num_layers]
        elif layer == "weighted":
            self.layers = list(range(num_layers + 1))
        else:
            self.layers = list(layer) if isinstance(layer, list) else [layer]
        known = range(num_layers + 1)
        if not self.layers or any(
            type(index) is not int or index not in known
            for index in self.layers
        ):
            raise RecipeError(
                f"encoder_layer={layer} does not exist: {source} has 'last', "
                f"0 to {num_layers}, a list of these, and 'weighted'."
            )
        self.sample_rate = self.front_end.sample_rate
        self.output_size = self.front_end.output_size

    def identity(self):
        """Returns what the features depend on, for the cache's key.

        Returns
        -------
        identity : dict
        """
        return {
            "source": os.path.basename(os.path.normpath(str(self.source))),
            "layers": self.layers,
            "sample_rate": self.sample_rate,
            **self.front_end.identity(),
        }

    def train(self, mode=True):
        """Stays in eval mode: SpeechBrain calls train() on all modules.

        Arguments
        ---------
        mode : bool
            Taken for torch's interface.

        Returns
        -------
        self : SpeechEncoder
        """
        del mode
        return super().train(False)

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
        self.front_end.load(wavs.device)
        num_samples, _ = valid_frames(lens, wavs.shape[1])
        shortest = int(num_samples.min())
        if shortest < self.front_end.min_samples:
            raise RecipeError(
                f"{shortest} samples at {self.sample_rate} Hz are too short "
                f"for {self.source}, which needs "
                f"{self.front_end.min_samples}."
            )
        feats = []
        for wav, n in zip(wavs, num_samples.tolist()):
            states = self.front_end(wav[:n].float(), self.layers)  # (L, T, D)
            several = len(self.layers) > 1
            feats.append(states.transpose(0, 1) if several else states[0])
        return pad_sequence(feats, batch_first=True)


def get_encoder_dim(encoder):
    """Reads the dimension of the frames off an encoder, for the YAML.

    Arguments
    ---------
    encoder : torch.nn.Module
        Any module that maps (wavs, lens) to [B, T, D]. Without an attribute
        ``output_size`` it is run on one second of silence.

    Returns
    -------
    encoder_dim : int
        D

    Example
    -------
    >>> get_encoder_dim(SpeechEncoder("fbank"))
    80
    """
    if hasattr(encoder, "output_size"):
        return encoder.output_size
    rate = getattr(encoder, "sample_rate", 16000)
    with torch.no_grad():
        return encoder(torch.zeros(1, rate), torch.ones(1)).shape[-1]


def count_encoder_layers(encoder):
    """Counts the layers that an encoder gives, for the YAML.

    Arguments
    ---------
    encoder : torch.nn.Module
        A :class:`SpeechEncoder`, or a module that gives one layer.

    Returns
    -------
    num_layers : int

    Example
    -------
    >>> count_encoder_layers(SpeechEncoder("fbank"))
    1
    """
    return len(encoder.layers) if isinstance(encoder, SpeechEncoder) else 1


def _is_plain(value):
    """Tells whether a value is text, a number, or made of such."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


def get_identity(encoder):
    """Sums up what an encoder's features depend on.

    Arguments
    ---------
    encoder : torch.nn.Module
        A :class:`SpeechEncoder`, or any module with the same call; without a
        method ``identity``, its weights, its plain attributes and its source
        code are taken.

    Returns
    -------
    identity : dict
        Plain values only.
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
    # Another version of the code may compute something else.
    code = hashlib.sha256()
    computing = {type(encoder).__module__, __name__, audio.__name__}
    for module in sorted(computing):
        path = inspect.getsourcefile(sys.modules[module])
        if path is not None:
            with open(path, "rb") as file:
                code.update(file.read())
    identity["class"] = type(encoder).__qualname__
    identity["code"] = code.hexdigest()
    return identity
