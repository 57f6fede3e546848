"""HuBERT, wav2vec 2.0, WavLM, data2vec: convolutions on the waveform."""

import math

import torch
import transformers
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

from speechbrain_wap.encoders.hugging_face import (
    HuggingFaceFrontEnd,
    WholeCheckpoint,
)


class WholeWav2Vec2(WholeCheckpoint, Wav2Vec2):
    """SpeechBrain's wrapper of a checkpoint that lacks nothing."""

    def make_feature_extractor(self, config):
        """Makes what normalises the waveform."""
        return transformers.Wav2Vec2FeatureExtractor(do_normalize=True)


class WaveformFrontEnd(HuggingFaceFrontEnd):
    """HuBERT, wav2vec 2.0, WavLM, data2vec: convolutions on the waveform."""

    wrapper_class = WholeWav2Vec2

    def __init__(self, folder, config, context="full"):
        super().__init__(folder, config, context)
        strides = self.settings.conv_stride
        self.frame_rate = self.sample_rate / math.prod(strides)
        self.min_samples = 1
        for kernel, stride in zip(
            reversed(self.settings.conv_kernel), reversed(strides)
        ):
            self.min_samples = (self.min_samples - 1) * stride + kernel

    def tells_preprocessing(self):
        """With layer norm, waveforms are normalised; else they may be."""
        return getattr(self.settings, "feat_extract_norm", "") == "layer"

    def run_model(self, signal):
        """Runs the model on one utterance [samples], to [T, D]."""
        if self.wrapper.normalize_wav:
            # as the checkpoint's feature extractor does; the wrapper's
            # layer_norm adds a hundred times as much to the variance, which
            # changes quiet speech
            variance = signal.var(unbiased=False)
            signal = (signal - signal.mean()) / torch.sqrt(variance + 1e-7)
        return self.wrapper.model(signal[None]).last_hidden_state[0]
