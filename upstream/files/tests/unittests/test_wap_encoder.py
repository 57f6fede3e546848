"""The frozen encoder, and recognition, treat each utterance by itself."""

import torch

from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.emotion import EmotionRecognizer
from speechbrain.lobes.models.wap_adapter.encoder import FrozenEncoder
from speechbrain.lobes.models.wap_adapter.pooling import (
    StatisticalAttentivePooling,
)


class Layers(torch.nn.Module):
    """Two layers of frames [2, B, T, 4], which depend on all of the waveform.

    As Whisper, it gives more frames than there is speech.
    """

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.weight = torch.nn.Parameter(torch.ones(4, dtype=torch.half))

    def forward(self, wav):
        frames = (wav - wav.mean()).unfold(1, 4, 4) * self.weight
        frames = torch.nn.functional.pad(frames, (0, 0, 0, 3))
        return torch.stack([frames, self.dropout(2 * frames)])


def make_encoder(layer=-1):
    """Makes an encoder of 4 samples a frame, 4 frames a second."""
    return FrozenEncoder(Layers, layer, frame_rate=4, sample_rate=16)


def make_batch():
    """Makes two waveforms, of 8 and 4 frames."""
    wavs = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    wavs[1, 16:] = 1e3  # padding
    return wavs, torch.tensor([1.0, 0.5])


def test_frames_are_those_of_the_utterance_alone():
    encoder = make_encoder()
    wavs, wav_lens = make_batch()
    feats, lens = encoder.train()(wavs, wav_lens)
    assert feats.shape == (2, 8, 4) and lens.tolist() == [1.0, 0.5]
    assert not feats.requires_grad and feats.dtype == torch.float32
    for wav, frames, n in ((wavs[0], feats[0], 8), (wavs[1, :16], feats[1], 4)):
        expected = 2 * (wav - wav.mean()).view(-1, 4)
        assert torch.equal(frames[:n], expected)
        assert torch.equal(2 * make_encoder(0).encode(wav), expected)
    assert not feats[1, 4:].any()


def test_an_encoder_is_made_when_it_is_needed():
    made = []
    encoder = FrozenEncoder(lambda: made.append(1) or Layers(), layer=0)
    assert not made
    for _ in range(2):
        encoder.encode(torch.rand(8))
    assert made == [1]


def test_a_recogniser_says_the_same_in_any_batch():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pooling = StatisticalAttentivePooling(4, num_heads=2)
            self.classifier = torch.nn.Linear(16, 3)

        def forward(self, feats, lens):
            return self.classifier(self.pooling(feats, lens))

    label_encoder = CategoricalEncoder()
    label_encoder.update_from_iterable(["angry", "happy", "sad"])
    recognizer = EmotionRecognizer(
        {"model": Model()},
        {"encoder": make_encoder(), "label_encoder": label_encoder},
    )
    wavs, wav_lens = make_batch()
    probabilities, score, index, label = recognizer(wavs, wav_lens)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    assert torch.equal(score, probabilities.max(dim=1)[0])
    assert label == [["angry", "happy", "sad"][i] for i in index.tolist()]
    alone = recognizer.classify_batch(wavs[1:, :16])[0]
    torch.testing.assert_close(alone, probabilities[1:])
