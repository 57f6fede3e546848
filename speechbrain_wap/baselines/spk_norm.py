"""Spk-norm: an adversary takes the speaker out of the representation.

I. Gat, H. Aronowitz, W. Zhu, E. Morais, R. Hoory, "Speaker normalization for
self-supervised speech emotion recognition", ICASSP 2022 (arXiv 2202.01252).
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.baselines.framewise import FramewiseClassifier
from speechbrain_wap.errors import RecipeError, check_number, check_whole


class SpkNorm(FramewiseClassifier):
    """The "speaker normalization projector" of Gat et al.

    A projector w, a non-linear layer on the frozen encoder's frames (B5), and
    the mean over time give the representation. A linear classifier tells its
    emotion; another one, w_id, its speaker, and the projector goes the opposite
    way (Eq. 3, with learning rate eta)::

        w_id <- w_id - eta grad l_id,    w <- w + eta lambda grad l_id

    Both steps and that of the emotion are taken at once (B6). The adversary
    starts at zero and its weights decay: without, it and the projector run in
    circles, and the speaker stays easy to tell.

    Arguments
    ---------
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given.
    d_model : int
        Dimension of the representation.
    dropout : float
        Dropout probability after the projector, 0 to 1.
    adversary_weight : float
        lambda; 0 trains a speaker classifier that changes nothing else.
    adversary_decay : float
        Weight of the square of the speaker classifier's weights in its loss.
    max_speakers : int
        Room for the training speakers.

    Example
    -------
    >>> model = SpkNorm(input_size=80)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size,
        num_encoder_layers=1,
        d_model=256,
        dropout=0.1,
        adversary_weight=10.0,
        adversary_decay=1.0,
        max_speakers=128,
    ):
        check_number("adversary_weight", adversary_weight, least=0.0)
        check_number("adversary_decay", adversary_decay, least=0.0)
        check_whole("max_speakers", max_speakers, least=1)
        super().__init__(
            input_size, num_encoder_layers, d_model, dropout, num_dense=1
        )
        self.adversary_weight = adversary_weight
        self.adversary_decay = adversary_decay
        self.adversary = nn.Linear(d_model, max_speakers)
        nn.init.zeros_(self.adversary.weight)
        nn.init.zeros_(self.adversary.bias)
        self.register_buffer("is_speaker", torch.ones(max_speakers).bool())

    def before_fit(self, batches):
        """Measures the training utterances' frames, and counts speakers."""
        super().before_fit(batches)
        most = max(int(batch.speaker_index) for batch in batches)
        if most >= len(self.is_speaker):
            raise RecipeError(
                f"{most + 1} speakers train, more than max_speakers="
                f"{len(self.is_speaker)}: raise it."
            )
        self.is_speaker[most + 1 :] = False

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits [B, C] of the classes; arguments as of pool."""
        self.pooled = self.pool(feats, lens, mask)
        return self.classifier(self.pooled)

    def losses(self, logits, batch):
        """Computes l_id, the speakers' cross entropy (Eq. 3).

        Arguments
        ---------
        logits : torch.Tensor
            What forward has given, shape [B, C], or its first rows.
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``speaker``, indices [B], -1 where it is unknown.

        Returns
        -------
        losses : dict
            "speaker_loss", a scalar.
        """
        pooled = reverse_gradient(
            self.pooled[: len(logits)], self.adversary_weight
        )
        scores = self.adversary(pooled).float()
        scores = scores.masked_fill(~self.is_speaker, -torch.inf)
        loss = F.cross_entropy(
            scores, batch.speaker, ignore_index=-1, reduction="sum"
        )
        decay = self.adversary_decay * self.adversary.weight.square().sum()
        return {"speaker_loss": loss / len(scores) + decay}


def reverse_gradient(x, weight):
    """Passes a tensor on, whose gradient comes back times -weight.

    Arguments
    ---------
    x : torch.Tensor
        Any shape.
    weight : float
        Strength of the reversal.

    Returns
    -------
    x : torch.Tensor
        The same values.

    Example
    -------
    >>> x = torch.ones(1, requires_grad=True)
    >>> reverse_gradient(3 * x, weight=0.5).backward()
    >>> x.grad
    tensor([-1.5000])
    """
    return x.detach() - weight * (x - x.detach())
