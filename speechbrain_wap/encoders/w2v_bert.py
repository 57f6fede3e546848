"""w2v-BERT 2.0: a conformer on pairs of log-mel frames."""

import transformers
from speechbrain.integrations.huggingface.w2v_bert import W2VBert

from speechbrain_wap.encoders.hugging_face import (
    HuggingFaceFrontEnd,
    WholeCheckpoint,
)


class WholeW2VBert(WholeCheckpoint, W2VBert):
    """SpeechBrain's wrapper of a checkpoint that lacks nothing."""

    def make_feature_extractor(self, config):
        """Makes what computes mel energies, as many as fit the model."""
        num_mels = config.feature_projection_input_dim // 2
        return transformers.SeamlessM4TFeatureExtractor(
            feature_size=num_mels, num_mel_bins=num_mels
        )


class W2VBertFrontEnd(HuggingFaceFrontEnd):
    """w2v-BERT 2.0: a conformer on pairs of log-mel frames.

    Its mel bands are normalised over the utterance by definition.
    """

    wrapper_class = WholeW2VBert
    # two windows of 25 ms, 10 ms apart; transformers fixes the samples
    min_samples = 560

    def __init__(self, folder, config, context="full"):
        super().__init__(folder, config, context)
        self.frame_rate = self.sample_rate / 320

    def run_model(self, signal):
        """Runs the model on one utterance [samples], to [T, D]."""
        inputs = self.wrapper.feature_extractor(
            signal.cpu().numpy(),
            sampling_rate=self.sample_rate,
            return_tensors="pt",
        ).to(signal.device)
        output = self.wrapper.model(**inputs).last_hidden_state[0]
        # an odd number of mel frames is padded to an even one, and masked
        return output[: int(inputs["attention_mask"].sum())]
