"""Log-mel energies, and what all front ends without weights have."""

from speechbrain.lobes.features import Fbank
from torch import nn


class WeightFreeFrontEnd(nn.Module):
    """Frames by a formula: for demos, comparison and further streams.

    50 frames per second like the pretrained encoders. The scale is fixed, with
    20 dB as its unit, and not the utterance's own: loudness and tilt carry
    emotion. A front end has the attributes ``family`` and ``output_size``, and
    ``compute(signal)``, which maps samples [n] to frames [T, D].
    """

    num_layers = 0
    min_samples = 400
    frame_rate = 50.0
    sample_rate = 16000

    def identity(self):
        """Returns what the frames depend on."""
        return {"family": self.family, "output_size": self.output_size}

    def load(self, layers, device):
        """Moves the filters to a device; there are no weights to read."""
        self.to(device)

    def forward(self, signal, layers):
        """Computes the frames, the same for each layer: [len(layers), T, D]."""
        return self.compute(signal).expand(len(layers), -1, -1)


class FbankFrontEnd(WeightFreeFrontEnd):
    """Log-mel energies: 80 mel bands, windows of 25 ms."""

    family = "fbank"
    output_size = 80

    def __init__(self):
        super().__init__()
        self.fbank = Fbank(n_mels=80, win_length=25, hop_length=20)

    def identity(self):
        """Returns what the energies depend on."""
        return {"family": self.family, "n_mels": self.output_size}

    def compute(self, signal):
        """Computes log-mel energies, about -2 to 2."""
        return (self.fbank(signal[None])[0] + 15.0) / 20.0
