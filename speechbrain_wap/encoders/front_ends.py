"""What each family of encoders makes of one utterance (Sec. II-A.1).

A front end is given an utterance without padding and returns the states of
the chosen layers: layer 0 is what enters the first Transformer layer, n what
leaves the n-th, and the last is the model's output. Layers beyond the highest
chosen one are not run (but for the first, which always is, save in Whisper).
Which other layers are chosen changes nothing, but for the last bits in Whisper,
whose highest chosen layer is not computed for the padding.
"""

import math
import os
from functools import partial

import torch
import transformers
from speechbrain.integrations.huggingface.w2v_bert import W2VBert
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain.lobes.features import Fbank
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.encoders.checkpoints import resolve_source, weights_digest
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import read_json

# The cure of a damaged checkpoint
DOWNLOAD = "download the checkpoint (encoder_source) again."


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
    frame_rate = 50.0

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

    def load(self, layers, device):
        """Moves the filters to a device; there are no weights to read.

        Arguments
        ---------
        layers : list of int
            There is layer 0 only.
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


class _WholeCheckpoint:
    """Makes a wrapper refuse a checkpoint that lacks weights.

    Transformers would draw them at random: other features at every start.
    """

    # what no encoder computes with
    needless = ("decoder.", "masked_spec_embed")

    def _from_pretrained(self, source, save_path, cache_dir, **kwargs):
        kwargs.pop("device", None)
        self.model, loaded = self.auto_class.from_pretrained(
            source, config=self.config, output_loading_info=True, **kwargs
        )
        missing = sorted(
            name
            for name in loaded["missing_keys"]
            if not name.startswith(self.needless)
        )
        if missing:
            raise ValueError(
                f"{len(missing)} weights are missing, first {missing[0]}"
            )


class _Wav2Vec2(_WholeCheckpoint, Wav2Vec2):
    """SpeechBrain's wrapper."""


class _W2VBert(_WholeCheckpoint, W2VBert):
    """SpeechBrain's wrapper."""


class _Whisper(_WholeCheckpoint, Whisper):
    """SpeechBrain's wrapper."""


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
        self.preprocessor = {}
        # transformers 5 reads the second one, too, and prefers it
        for name in ("preprocessor_config.json", "processor_config.json"):
            if os.path.isfile(os.path.join(folder, name)):
                self.preprocessor[name] = read_json(
                    os.path.join(folder, name), DOWNLOAD
                )
        try:
            # with the defaults that config.json may leave out
            self.settings = transformers.AutoConfig.from_pretrained(folder)
        except Exception as error:  # of several libraries
            raise self.refuse(error)
        self.sample_rate = self.get_preprocessing("sampling_rate", 16000)
        self.output_size = self.settings.hidden_size
        self.num_layers = self.settings.num_hidden_layers
        self.wrapper = None

    def get_preprocessing(self, key, default):
        """Looks up how the checkpoint's feature extractor is set.

        Arguments
        ---------
        key : str
            A key of preprocessor_config.json.
        default : object
            What holds where it is not there.

        Returns
        -------
        value : object
        """
        value = default
        for content in self.preprocessor.values():
            content = content.get("feature_extractor", content)
            value = content.get(key, value)
        if type(value) is not type(default):
            raise self.refuse(f"{key} is {value!r}")
        return value

    def refuse(self, error):
        """Makes the error for a checkpoint that cannot be loaded.

        Arguments
        ---------
        error : Exception or str
            Why not.

        Returns
        -------
        error : RecipeError
        """
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        return RecipeError(
            f"encoder_source={self.folder} cannot be loaded "
            f"({reason.rstrip('.')}): download it again."
        )

    def identity(self):
        """Returns what the features depend on, for the cache's key.

        Returns
        -------
        identity : dict
        """
        return {
            "family": self.config["model_type"],
            "config": self.config,
            "preprocessor": self.preprocessor,
            "weights": weights_digest(self.folder),
        }

    def load(self, layers, device):
        """Loads the weights in float32, frozen, in eval mode, once.

        Arguments
        ---------
        layers : list of int
            The layers that are asked for.
        device : str
            As in torch.
        """
        if self.wrapper is None:
            try:
                wrapper = self.make_wrapper()
            except Exception as error:  # of several libraries
                raise self.refuse(error)
            self.prepare(wrapper, layers)
            # A half-precision checkpoint loads in half precision, and
            # SpeechBrain leaves a frozen Whisper in train mode.
            self.wrapper = wrapper.requires_grad_(False).float().eval()
        self.wrapper.to(device)


def _keep_input(states, index, layer, args, kwargs):
    """Hook that keeps what enters a layer."""
    states[index] = args[0] if args else kwargs["hidden_states"]


def _keep_output(states, index, layer, args, output):
    """Hook that keeps what leaves a layer."""
    states[index] = output[0] if isinstance(output, tuple) else output


class WaveformFrontEnd(HuggingFaceFrontEnd):
    """HuBERT, wav2vec 2.0, WavLM, data2vec: convolutions on the waveform.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    config : dict
        Content of its config.json.
    """

    def __init__(self, folder, config):
        super().__init__(folder, config)
        if getattr(self.settings, "add_adapter", False):
            raise RecipeError(
                f"encoder_source={folder} has an adapter on top "
                "(add_adapter: true), which is not served: wire it with "
                "encoder: !new: in the YAML."
            )
        self.states = {}
        self.measure_frames()

    def measure_frames(self):
        """Finds the frame rate and the fewest samples that give a frame."""
        strides = self.settings.conv_stride
        self.frame_rate = self.sample_rate / math.prod(strides)
        self.min_samples = 1
        for kernel, stride in zip(
            reversed(self.settings.conv_kernel), reversed(strides)
        ):
            self.min_samples = (self.min_samples - 1) * stride + kernel

    def make_wrapper(self):
        """Builds SpeechBrain's wrapper with the checkpoint's weights.

        Returns
        -------
        wrapper : speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
        """
        return _Wav2Vec2(
            self.folder, self.folder, freeze=True, dtype=torch.float32
        )

    def prepare(self, wrapper, layers):
        """Keeps what passes the chosen layers, and drops those beyond.

        Hidden states as Hugging Face returns them are not used: the last of
        them is normalised where the others are not.

        Arguments
        ---------
        wrapper : torch.nn.Module
            The wrapper.
        layers : list of int
            The layers that are asked for.
        """
        encoder = wrapper.model.encoder
        for index in layers:
            if index == 0:
                hook = partial(_keep_input, self.states, 0)
                layer = encoder.layers[0]
                layer.register_forward_pre_hook(hook, with_kwargs=True)
            elif index < self.num_layers:
                hook = partial(_keep_output, self.states, index)
                encoder.layers[index - 1].register_forward_hook(hook)
        encoder.layers = encoder.layers[: max(*layers, 1)]

    def run_model(self, signal):
        """Runs the model on one utterance.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples].

        Returns
        -------
        output : torch.Tensor
            What leaves the model, shape [T, D].
        """
        if self.wrapper.normalize_wav:
            # as the checkpoint's feature extractor does; the wrapper's
            # layer_norm adds a hundred times as much to the variance, which
            # changes quiet speech
            variance = signal.var(unbiased=False)
            signal = (signal - signal.mean()) / torch.sqrt(variance + 1e-7)
        return self.wrapper.model(signal[None]).last_hidden_state[0]

    def forward(self, signal, layers):
        """Encodes one utterance without padding.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples], at ``sample_rate``.
        layers : list of int
            Those that were loaded.

        Returns
        -------
        feats : torch.Tensor
            Shape [len(layers), T, D].
        """
        output = self.run_model(signal)
        states = {
            i: state[0, : len(output)] for i, state in self.states.items()
        }
        states[self.num_layers] = output
        self.states.clear()
        return torch.stack([states[index] for index in layers])


class W2VBertFrontEnd(WaveformFrontEnd):
    """w2v-BERT 2.0: a conformer on pairs of log-mel frames.

    Its mel bands are normalised over the utterance by definition.

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    config : dict
        Content of its config.json.
    """

    def measure_frames(self):
        """Finds the frame rate and the fewest samples that give a frame."""
        # two windows of 25 ms, 10 ms apart; transformers fixes the samples
        self.frame_rate = self.sample_rate / 320
        self.min_samples = 560

    def make_wrapper(self):
        """Builds SpeechBrain's wrapper with the checkpoint's weights.

        Returns
        -------
        wrapper : speechbrain.integrations.huggingface.w2v_bert.W2VBert
        """
        return _W2VBert(
            self.folder, self.folder, freeze=True, dtype=torch.float32
        )

    def run_model(self, signal):
        """Runs the model on one utterance.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples].

        Returns
        -------
        output : torch.Tensor
            What leaves the model, shape [T, D].
        """
        inputs = self.wrapper.feature_extractor(
            signal.cpu().numpy(),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
        ).to(signal.device)
        output = self.wrapper.model(**inputs).last_hidden_state[0]
        # an odd number of mel frames is padded to an even one, and masked
        return output[: int(inputs["attention_mask"].sum())]


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
    context : str
        "full" encodes the clip and its padding, as the model was trained;
        "clip" the clip alone: other features, at a fraction of the cost.
    """

    min_samples = 1

    def __init__(self, folder, config, context="full"):
        super().__init__(folder, config)
        self.context = context
        # the second convolution halves the rate
        self.frame_length = 2 * self.get_preprocessing("hop_length", 160)
        self.frame_rate = self.sample_rate / self.frame_length
        self.max_frames = self.settings.max_source_positions

    def identity(self):
        """Returns what the features depend on, for the cache's key.

        Returns
        -------
        identity : dict
        """
        return {**super().identity(), "context": self.context}

    def make_wrapper(self):
        """Builds SpeechBrain's wrapper with the encoder's weights.

        Returns
        -------
        wrapper : speechbrain.integrations.huggingface.whisper.Whisper
        """
        return _Whisper(
            self.folder, self.folder, encoder_only=True, freeze=True
        )

    def prepare(self, wrapper, layers):
        """Drops the layers beyond the highest chosen one.

        Arguments
        ---------
        wrapper : torch.nn.Module
            The wrapper.
        layers : list of int
            The layers that are asked for.
        """
        encoder = wrapper.model.encoder
        encoder.layers = encoder.layers[: max(layers)]

    def make_mel(self, window):
        """Computes log-mel energies of a clip and of its silent padding.

        Arguments
        ---------
        window : torch.Tensor
            Shape [samples].

        Returns
        -------
        mel : torch.Tensor
            Shape [1, n_mels, frames].
        """
        num_frames = math.ceil(len(window) / self.frame_length)
        if self.context == "full":
            num_frames = self.max_frames
        # All frames of silence are alike: as many samples as make one are
        # enough, and its energies are repeated.
        padding = 2 * self.wrapper._n_fft + -len(window) % self.frame_length
        longest = self.max_frames * self.frame_length
        padding = min(padding, longest - len(window))
        mel = self.wrapper.log_mel_spectrogram(
            F.pad(window, (0, padding))[None]
        )
        missing = max(0, 2 * num_frames - mel.shape[-1])
        mel = F.pad(mel, (0, missing), mode="replicate")
        return mel[..., : 2 * num_frames]

    def forward(self, signal, layers):
        """Encodes one utterance.

        Arguments
        ---------
        signal : torch.Tensor
            Shape [samples], at ``sample_rate``.
        layers : list of int
            Those that were loaded.

        Returns
        -------
        feats : torch.Tensor
            Shape [len(layers), T, D], 50 frames per second.
        """
        windows = signal.split(self.max_frames * self.frame_length)
        return torch.cat(
            [self.encode_window(window, layers) for window in windows], dim=1
        )

    def encode_window(self, window, layers):
        """Encodes what fits the model's input at once.

        Arguments
        ---------
        window : torch.Tensor
            Shape [samples].
        layers : list of int
            Those that were loaded.

        Returns
        -------
        feats : torch.Tensor
            Shape [len(layers), T, D].
        """
        num_frames = math.ceil(len(window) / self.frame_length)
        encoder = self.wrapper.model.encoder
        hidden = F.gelu(encoder.conv1(self.make_mel(window)))
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        states = [hidden[0, :num_frames]]
        for index, layer in enumerate(encoder.layers, start=1):
            if index == len(encoder.layers):
                # the padding's frames are no longer of use but as context
                hidden = run_whisper_layer(layer, hidden, num_frames)
            else:
                hidden = layer(hidden, None)
            states.append(hidden[0, :num_frames])
        if len(states) > self.num_layers:
            states[-1] = encoder.layer_norm(states[-1])
        return torch.stack([states[index] for index in layers])


def run_whisper_layer(layer, hidden, num_frames):
    """Runs an encoder layer for the first frames only, which attend to all.

    Arguments
    ---------
    layer : transformers.models.whisper.modeling_whisper.WhisperEncoderLayer
        In eval mode.
    hidden : torch.Tensor
        What enters it, shape [1, frames, D].
    num_frames : int
        How many frames are wanted.

    Returns
    -------
    hidden : torch.Tensor
        Shape [1, num_frames, D].
    """
    context = layer.self_attn_layer_norm(hidden)
    attended = layer.self_attn(
        context[:, :num_frames], key_value_states=context
    )[0]
    hidden = hidden[:, :num_frames] + attended
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    return hidden + layer.fc2(inner)


# By model_type of the checkpoint's config
FRONT_ENDS = {
    "data2vec-audio": WaveformFrontEnd,
    "hubert": WaveformFrontEnd,
    "wav2vec2": WaveformFrontEnd,
    "wav2vec2-bert": W2VBertFrontEnd,
    "wavlm": WaveformFrontEnd,
    "whisper": WhisperFrontEnd,
}


def make_front_end(source, context="full"):
    """Chooses the front end by the checkpoint's own config.

    Arguments
    ---------
    source : str
        Hub id, folder, or "fbank".
    context : str
        "full" or "clip"; matters for Whisper only, since the other families
        encode the clip alone anyway.

    Returns
    -------
    front_end : torch.nn.Module

    Raises
    ------
    RecipeError
        If the checkpoint is of a family that is not served, or the context
        is unknown.
    """
    if context not in ("full", "clip"):
        raise RecipeError(
            f"encoder_context={context} is unknown: choose full or clip."
        )
    if source == "fbank":
        return FbankFrontEnd()
    folder = resolve_source(source)
    config = read_json(os.path.join(folder, "config.json"), DOWNLOAD)
    family = config.get("model_type")
    if family not in FRONT_ENDS:
        served = ", ".join(sorted(FRONT_ENDS))
        raise RecipeError(
            f"encoder_source={source} is of the family {family!r}, but only "
            f"{served} and fbank are served: wire another module with "
            "encoder: !new: in the YAML."
        )
    if family == "whisper":
        return WhisperFrontEnd(folder, config, context)
    return FRONT_ENDS[family](folder, config)
