"""GLRF: local and global frames, and a loss on the surest segments.

C. Ding, J. Li, D. Zong, B. Li, T. Zhang, Q. Zhou, "Stable speech emotion
recognition with head-k-pooling loss", Interspeech 2023. No text or code of it
was to be had: that it joins local features of convolutions with global
relations of frames, and that its loss gives labels to some of an utterance's
segments, is all that we took from it, unchecked. The rest is our reading.
"""

import torch
from speechbrain.nnet.linear import Linear
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.errors import check_number, check_whole
from speechbrain_wap.frame_input import FrameInput
from speechbrain_wap.packing import send, valid_frames
from speechbrain_wap.wap_transformer import TransformerLayer, check_attention


class GLRF(FrameInput):
    """Global and local representations under the head-k-pooling loss.

    Frames are standardised and projected. Two convolutions over time give
    their local representation, a Transformer layer their global one, and a
    linear layer joins both (B8). The means of segments of ``segment_frames``
    frames are classified; an utterance's logit of a class is the mean over the
    k segments that are surest of it, see :func:`pool_head` (B9).

    Arguments
    ---------
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given; they are averaged with
        learned weights.
    d_model : int
        Dimension of the representations.
    nhead : int
        Number of attention heads; divides ``d_model``.
    kernel_size : int
        Frames that a convolution sees.
    dropout : float
        Dropout probability of the Transformer layer, 0 to 1.
    segment_frames : int
        Frames of a segment; an utterance's last one may be shorter.
    head_share : float
        k as a share of the utterance's segments, 0 to 1; one at least.

    Example
    -------
    >>> model = GLRF(input_size=80)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 60, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size,
        num_encoder_layers=1,
        d_model=128,
        nhead=4,
        kernel_size=5,
        dropout=0.1,
        segment_frames=25,
        head_share=0.5,
    ):
        super().__init__(input_size, num_encoder_layers)
        check_attention(d_model, nhead, dropout)
        check_whole("kernel_size", kernel_size, least=1)
        check_whole("segment_frames", segment_frames, least=1)
        check_number("head_share", head_share, least=0.0, most=1.0)
        self.segment_frames, self.head_share = segment_frames, head_share
        self.projection = nn.Linear(input_size, d_model)
        self.local_layers = nn.ModuleList(
            nn.Conv1d(d_model, d_model, kernel_size, padding="same")
            for _ in range(2)
        )
        self.global_layer = TransformerLayer(
            d_model, nhead, 2 * d_model, dropout
        )
        self.fusion = nn.Linear(2 * d_model, d_model)

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        self.classifier = Linear(
            input_size=self.fusion.out_features, n_neurons=num_classes
        )

    def before_fit(self, batches):
        """Measures the training utterances' frames (D14)."""
        self.measure_input(batches)

    def pool(self, feats, lens=None, mask=None):
        """Computes the segments' embeddings.

        Arguments
        ---------
        feats : torch.Tensor
            Frames, shape [B, T, D], or [B, T, L, D] of L layers.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True where an average frame stands in.

        Returns
        -------
        segments : torch.Tensor
            Shape [B, S, d_model].
        num_segments : torch.Tensor
            How many segments each utterance has, shape [B], 1 at least.
        """
        if lens is None:
            lens = torch.ones(feats.shape[0])
        num_steps = feats.shape[1]
        x, packing = self.pack(feats, lens, mask)
        x = self.projection(x)
        num_frames, valid = valid_frames(lens, num_steps)
        valid = send(valid, feats.device)[:, :, None]  # (B, T, 1)
        local = packing.unpack(x)  # (B, T, d_model)
        for layer in self.local_layers:
            local = layer(local.transpose(1, 2)).relu().transpose(1, 2)
            local = local.masked_fill(~valid, 0.0)
        context = packing.unpack(self.global_layer(x, packing))
        frames = self.fusion(torch.cat([local, context], dim=2)).relu()
        frames = frames.masked_fill(~valid, 0.0)

        size = self.segment_frames
        num_segments = -(-num_frames // size)
        padding = (0, 0, 0, -num_steps % size)
        frames, valid = (
            F.pad(part, padding).unflatten(1, (-1, size)).sum(dim=2)
            for part in (frames, valid.to(frames.dtype))
        )
        num_segments = send(num_segments.clamp(min=1), feats.device)
        return frames / valid.clamp(min=1), num_segments

    def forward(self, feats, lens=None, mask=None):
        """Computes the classes' pooled log-probabilities.

        Arguments
        ---------
        feats, lens, mask : torch.Tensor
            See :meth:`pool`.

        Returns
        -------
        logits : torch.Tensor
            Shape [B, C].
        """
        segments, num_segments = self.pool(feats, lens, mask)
        scores = self.classifier(segments).float().log_softmax(dim=-1)
        return pool_head(scores, num_segments, self.head_share)


def pool_head(scores, num_segments, share):
    """Averages each class's k highest segments (head-k-pooling, B9).

    The cross entropy of the result is the loss: only segments that are among
    the k surest of some class bear a label, hence have a gradient.

    Arguments
    ---------
    scores : torch.Tensor
        Log-probabilities of the segments, shape [B, S, C].
    num_segments : torch.Tensor
        How many of the segments are the utterance's, shape [B], 1 at least.
    share : float
        k is this share of them, rounded up, 1 at least.

    Returns
    -------
    pooled : torch.Tensor
        Shape [B, C].

    Example
    -------
    >>> scores = torch.tensor([[[-1.0], [-3.0], [-2.0], [-9.0]]])
    >>> pool_head(scores, torch.tensor([3]), share=0.5)
    tensor([[-1.5000]])
    """
    ranks = torch.arange(scores.shape[1], device=scores.device)[:, None]
    num_segments = num_segments[:, None, None]
    k = (share * num_segments).ceil().clamp(min=1)  # (B, 1, 1)
    scores = scores.masked_fill(ranks >= num_segments, -torch.inf)
    head = scores.sort(dim=1, descending=True).values
    return head.masked_fill(ranks >= k, 0.0).sum(dim=1) / k[:, 0]
