"""MFCCs and the spectrogram: the two further streams of Co-att [25].

Windows of 40 ms (Hamming), every 10 ms, after pre-emphasis, as its public code
has them for the spectrogram (B22). Two frames stand side by side in one of this
package's, of which there are 50 in a second as of every encoder: one
``max_frames`` is for all.
"""

import torch
from torchaudio.functional import preemphasis
from torchaudio.transforms import MFCC, AmplitudeToDB, Spectrogram

from speechbrain_wap.encoders.fbank import WeightFreeFrontEnd

WINDOW = {
    "n_fft": 800,
    "win_length": 640,
    "hop_length": 160,
    "window_fn": torch.hamming_window,
}


class PairedFrontEnd(WeightFreeFrontEnd):
    """Frames of 10 ms in pairs, of what a transform makes of the signal."""

    min_samples = 640

    def compute(self, signal):
        """Computes the pairs of frames; a last one without other is doubled."""
        spectrum = self.transform(preemphasis(signal[None]))[0]
        frames = spectrum[: self.output_size // 2].T / 20.0  # of 20 dB
        frames = torch.cat([frames, frames[-1:][: len(frames) % 2]])
        return frames.unflatten(0, (-1, 2)).flatten(1)


class MFCCFrontEnd(PairedFrontEnd):
    """40 cepstral coefficients of 80 mel bands, in decibels."""

    family = "mfcc"
    output_size = 2 * 40

    def __init__(self):
        super().__init__()
        mels = {**WINDOW, "n_mels": 80}
        self.transform = MFCC(self.sample_rate, 40, melkwargs=mels)


class SpectrogramFrontEnd(PairedFrontEnd):
    """The power of the lowest 200 bands of 20 Hz, in decibels.

    Not of what is 80 dB below the loudest, as of log-mel energies.
    """

    family = "spectrogram"
    output_size = 2 * 200

    def __init__(self):
        super().__init__()
        decibels = AmplitudeToDB("power", top_db=80.0)
        self.transform = torch.nn.Sequential(Spectrogram(**WINDOW), decibels)
