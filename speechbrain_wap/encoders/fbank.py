"""Log-mel energies: the front end without weights."""

from speechbrain.lobes.features import Fbank
from torch import nn


class FbankFrontEnd(nn.Module):
    """Log-mel energies: no weights, for demos and for comparison.

    80 mel bands, windows of 25 ms, 50 frames per second like the pretrained
    encoders. The scale is fixed, not the utterance's own: loudness and tilt
    carry emotion.
    """

    num_layers = 0
    min_samples = 400
    frame_rate = 50.0

    sample_rate = 16000
    output_size = 80

    def __init__(self):
        super().__init__()
        self.fbank = Fbank(n_mels=80, win_length=25, hop_length=20)

    def identity(self):
        """Returns what the energies depend on."""
        return {"family": "fbank", "n_mels": self.output_size}

    def load(self, layers, device):
        """Moves the filters to a device; there are no weights to read."""
        self.to(device)

    def forward(self, signal, layers):
        """Computes log-mel energies, about -2 to 2: [len(layers), T, D]."""
        decibels = self.fbank(signal[None])
        return ((decibels + 15.0) / 20.0).expand(len(layers), -1, -1)
