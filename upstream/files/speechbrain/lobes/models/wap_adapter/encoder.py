"""The frozen speech encoder, one utterance at a time (Sec. II-A.1)."""

import torch

from speechbrain.utils.data_utils import batch_pad_right


class FrozenEncoder(torch.nn.Module):
    """Encodes each utterance by itself, so that its frames are its own.

    In a padded batch, encoders normalise waveforms over the padding, or attend
    to it. The encoder is made when it is first needed: where all frames are
    cached, its weights are never loaded. It stays in eval mode.

    Arguments
    ---------
    make_encoder : callable
        Makes a module that maps waveforms [1, samples] to frames [1, T, D], or
        to those of all its layers [L, 1, T, D].
    layer : int, optional
        Number of the layer to take, where all are given.
    frame_rate : float, optional
        Frames per second. Frames beyond the utterance's end are cut: Whisper's
        are those of 30 s, 50 a second.
    sample_rate : int
        Samples per second.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> encoder = FrozenEncoder(Fbank)
    >>> feats, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> feats.shape, (101 * lens).round().tolist()
    (torch.Size([2, 101, 40]), [101.0, 51.0])
    """

    def __init__(
        self, make_encoder, layer=None, frame_rate=None, sample_rate=16000
    ):
        super().__init__()
        self.make_encoder = make_encoder
        self.layer = layer
        self.frame_rate = frame_rate
        self.sample_rate = sample_rate
        self.encoder = None

    @torch.no_grad()
    def encode(self, wav):
        """Encodes one utterance.

        Arguments
        ---------
        wav : torch.Tensor
            Shape [samples].

        Returns
        -------
        frames : torch.Tensor
            Shape [T, D], float32.
        """
        if self.encoder is None:
            # checkpoints may be stored in half precision
            self.encoder = self.make_encoder().float()
        self.encoder.to(wav.device).eval()  # a Brain may have woken dropout
        frames = self.encoder(wav[None])
        frames = frames[0] if self.layer is None else frames[self.layer, 0]
        if self.frame_rate is not None:
            seconds = len(wav) / self.sample_rate
            frames = frames[: max(1, round(seconds * self.frame_rate))]
        return frames

    def forward(self, wavs, wav_lens):
        """Encodes a batch, utterance by utterance.

        Arguments
        ---------
        wavs : torch.Tensor
            Shape [B, samples].
        wav_lens : torch.Tensor
            Relative lengths, shape [B].

        Returns
        -------
        feats : torch.Tensor
            Shape [B, T, D].
        lens : torch.Tensor
            Relative lengths, shape [B].
        """
        lengths = (wav_lens * wavs.shape[1]).round().long()
        feats, lens = batch_pad_right(
            [self.encode(wav[:n]) for wav, n in zip(wavs, lengths)]
        )
        return feats, lens.to(feats.device)
