"""Whisper's encoder: log-mel input, padded to 30 s by definition."""

import math

import torch
import transformers
from speechbrain.integrations.huggingface.whisper import Whisper
from torch.nn import functional as F

from speechbrain_wap.encoders.hugging_face import (
    HuggingFaceFrontEnd,
    WholeCheckpoint,
)


class WholeWhisper(WholeCheckpoint, Whisper):
    """SpeechBrain's wrapper of a checkpoint whose encoder lacks nothing."""

    def make_feature_extractor(self, config):
        """Makes what computes mel energies, 100 frames a second."""
        return transformers.WhisperFeatureExtractor(
            feature_size=config.num_mel_bins,
            chunk_length=config.max_source_positions // 50,
        )


class WhisperFrontEnd(HuggingFaceFrontEnd):
    """Whisper's encoder: log-mel input, padded to 30 s by definition.

    The frames of the padding are not returned. Speech beyond 30 s is encoded
    in windows of 30 s, one after the other, since the model knows no more.
    In the context "full" the model sees the clip and its padding, as it was
    trained; in "clip", the clip alone: other features, at a fraction of the
    cost.
    """

    wrapper_class = WholeWhisper
    wrapper_options = {"encoder_only": True}
    min_samples = 1

    def __init__(self, folder, config, context="full"):
        super().__init__(folder, config, context)
        # the second convolution halves the rate
        self.frame_length = 2 * self.get_preprocessing("hop_length", 160)
        self.frame_rate = self.sample_rate / self.frame_length
        self.max_frames = self.settings.max_source_positions

    def identity(self):
        """Returns what the features of every family depend on, and context."""
        return {**super().identity(), "context": self.context}

    def prepare(self, encoder, layers):
        """Drops the layers beyond the highest chosen one."""
        encoder.layers = encoder.layers[: max(layers)]

    def _make_mel(self, window):
        """Computes log-mel energies [1, n_mels, frames] of what fits at once.

        They are those of the samples [n] and, in full context, of the silence
        that fills the window.
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
        """Encodes one utterance window by window, to [len(layers), T, D]."""
        windows = signal.split(self.max_frames * self.frame_length)
        return torch.cat(
            [self._encode_window(window, layers) for window in windows], dim=1
        )

    def _encode_window(self, window, layers):
        """Encodes what fits at once, samples [n], to [len(layers), T, D]."""
        num_frames = math.ceil(len(window) / self.frame_length)
        encoder = self.wrapper.model.encoder
        hidden = F.gelu(encoder.conv1(self._make_mel(window)))
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        states = [hidden[0, :num_frames]]
        for index, layer in enumerate(encoder.layers, start=1):
            if index == len(encoder.layers):
                # the padding's frames are no longer of use but as context
                hidden = _run_layer(layer, hidden, num_frames)
            else:
                hidden = layer(hidden, None)
            states.append(hidden[0, :num_frames])
        if len(states) > self.num_layers:
            states[-1] = encoder.layer_norm(states[-1])
        return torch.stack([states[index] for index in layers])


def _run_layer(layer, hidden, num_frames):
    """Runs a WhisperEncoderLayer for the first frames, which attend to all.

    Maps [1, frames, D] to [1, num_frames, D].
    """
    context = layer.self_attn_layer_norm(hidden)
    attended = layer.self_attn(
        context[:, :num_frames], key_value_states=context
    )[0]
    hidden = hidden[:, :num_frames] + attended
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    return hidden + layer.fc2(inner)
