"""W2v2-PT: layers averaged with learned weights, dense layers, mean.

L. Pepino, P. Riera, L. Ferrer, "Emotion recognition from speech using wav2vec
2.0 embeddings", Interspeech 2021; code: github.com/habla-liaa/ser-with-w2v2.
"""

import torch

from speechbrain_wap.baselines.framewise import FramewiseClassifier
from speechbrain_wap.errors import check_choice
from speechbrain_wap.frame_input import FrameMoments


class W2v2PT(FramewiseClassifier):
    """The dense model of Pepino et al. on all layers of a frozen encoder.

    The layers' average with learned weights, h = sum_l a_l h_l with a softmax
    for a (B1), two dense layers with ReLU and dropout on each frame, the
    mean over time and a linear classifier. Frames are standardised first, each
    layer and dimension by itself: by the training utterances' statistics, or
    each speaker's by that speaker's own (B3).

    Arguments
    ---------
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given (the original: all).
    d_model : int
        Size of the dense layers.
    dropout : float
        Dropout probability after each, 0 to 1.
    normalization : str
        "corpus" or "speaker". The latter hears the held-out speakers'
        unlabelled speech, and is told who speaks.

    Example
    -------
    >>> model = W2v2PT(input_size=80, num_encoder_layers=5)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 5, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size,
        num_encoder_layers=1,
        d_model=128,
        dropout=0.2,
        normalization="corpus",
    ):
        check_choice("normalization", normalization, ("corpus", "speaker"))
        super().__init__(
            input_size, num_encoder_layers, d_model, dropout, num_dense=2
        )
        self.transductive = None
        if normalization == "speaker":
            self.transductive = "hears the held-out speakers' unlabelled speech"
        self.speaker_statistics = {}  # mean and deviation by speaker

    def get_extra_state(self):
        """Gives the speakers' statistics, as part of the checkpoint."""
        return self.speaker_statistics

    def set_extra_state(self, state):
        """Takes the speakers' statistics out of a checkpoint."""
        self.speaker_statistics = state

    def before_fit(self, batches):
        """Measures the training utterances' frames, or each speaker's."""
        if not self.transductive:
            return super().before_fit(batches)
        moments = {}
        for batch in batches:
            (speaker,) = batch.speaker_name
            moments.setdefault(speaker, FrameMoments()).add(batch.feats.data[0])
        self.speaker_statistics = {
            speaker: [statistics.cpu() for statistics in one.finish()]
            for speaker, one in moments.items()
        }

    def forward(self, feats, lens=None, mask=None, speakers=None):
        """Computes the logits of the classes.

        Arguments
        ---------
        feats, lens, mask : torch.Tensor
            As of :meth:`FramewiseClassifier.pool`.
        speakers : list of str, optional
            Who speaks; only with ``normalization="speaker"``.

        Returns
        -------
        logits : torch.Tensor
            Shape [B, C].
        """
        if self.transductive:
            statistics = [self.speaker_statistics[name] for name in speakers]
            mean, std = (
                torch.stack(parts)[:, None].to(feats.device)  # (B, 1, ..., D)
                for parts in zip(*statistics)
            )
            feats = (feats - mean) / std.where(std >= 1e-5, 1.0)
        return super().forward(feats, lens, mask)
