"""LPMN: local prototypical mapping network (Xi et al., Interspeech 2024 [3]).

Public are its abstract and what the WAP paper says of it: a codebook of
prototypes characterises the frames of a pretrained encoder, similarly to
VQ-VAE; an utterance's embedding selects the most emotion-related mappings by
the similarity of frames and prototypes, motivated by multiple instance
learning; quantisation loss and cross entropy optimise the prototypes jointly;
a selection of prototypes afterwards, 60 % of 1024 in LPMN-1024-s60, reduces
the bias of irrelevant factors. How it is computed is our reading (B25 to B28),
not theirs.
"""

import torch
from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_wap.errors import check_number, check_whole
from speechbrain_wap.frame_input import FrameInput
from speechbrain_wap.local_attributes import LocalAttributes

# Of each training utterance, at the codebook's start
START_FRAMES = 8


class LPMN(FrameInput):
    """Maps an utterance to its frames' similarities to K prototypes.

    A frame z_t is projected and normalised. The utterance's embedding has, for
    each prototype p_k, the similarity of the frame that is most like it (B25)::

        m_k = max_t cos(z_t, p_k)

    Arguments
    ---------
    input_size : int
        Dimension of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given; they are averaged with
        learned weights.
    num_prototypes : int
        K.
    d_model : int
        Dimension D of the prototypes.
    selection : float
        Share of the prototypes that are kept once the training is over, 0 to
        1 (B28).
    quantisation_weight : float
        Weight of the quantisation loss (B26).
    commitment : float
        VQ-VAE's beta: how much of it draws frames to their prototypes.

    Example
    -------
    >>> model = LPMN(input_size=80, num_prototypes=16, d_model=8)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size,
        num_encoder_layers=1,
        num_prototypes=1024,
        d_model=256,
        selection=1.0,
        quantisation_weight=1.0,
        commitment=0.25,
    ):
        super().__init__(input_size, num_encoder_layers)
        check_whole("num_prototypes", num_prototypes, least=1)
        check_whole("d_model", d_model, least=1)
        check_number("selection", selection, above=0.0, most=1.0)
        check_number("quantisation_weight", quantisation_weight, least=0.0)
        check_number("commitment", commitment, least=0.0)
        self.selection = selection
        self.quantisation_weight = quantisation_weight
        self.commitment = commitment
        self.projection = nn.Linear(input_size, d_model)
        # of one length: frames cannot shrink to please the quantisation loss
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.prototypes = LocalAttributes(
            num_prototypes, d_model, temperature=1.0
        )
        # learned by gradient here, not by Eq. 5
        codebook = torch.randn_like(self.prototypes.codebook)
        del self.prototypes.codebook
        self.prototypes.codebook = nn.Parameter(codebook)
        # of the mappings m_k of training utterances, at the start
        self.register_buffer("mean", torch.zeros(num_prototypes))
        self.register_buffer("std", torch.ones(num_prototypes))
        # a prototype that is left out maps all utterances to the usual value
        self.register_buffer("kept", torch.ones(num_prototypes).bool())
        self.register_buffer("usual", torch.zeros(num_prototypes))

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        self.classifier = Linear(
            input_size=len(self.mean), n_neurons=num_classes
        )

    def embed(self, feats, lens=None, mask=None):
        """Projects valid frames to [N, D], of one length; and their packing."""
        frames, packing = self.pack(feats, lens, mask)
        return self.norm(self.projection(frames)), packing

    def pool(self, feats, lens=None, mask=None):
        """Computes the utterances' mappings m, shape [B, K] (B25).

        Arguments
        ---------
        feats : torch.Tensor
            Frames, shape [B, T, input_size], or [B, T, L, input_size].
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True on frames that are replaced by the mean
            one.

        Returns
        -------
        mappings : torch.Tensor
            Standardised by the training utterances' statistics.
        """
        z, packing = self.embed(feats, lens, mask)
        if not torch.compiler.is_exporting():
            self.latest = z, packing  # for the quantisation loss
        # 0 to 2, so that padding, which is 0, is never more than a frame
        similarities = packing.unpack(1.0 + self.prototypes.logits(z))
        mappings = similarities.amax(dim=1) - 1.0  # (B, K)
        mappings = (mappings - self.mean) / self.std
        return torch.where(self.kept, mappings, self.usual)

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits [B, C] of the classes; arguments as of pool."""
        return self.classifier(self.pool(feats, lens, mask))

    def losses(self, logits, batch):
        """Computes the quantisation loss of the latest batch (B26).

        As VQ-VAE's: prototypes move to the frames whose nearest they are, and
        with the weight ``commitment`` frames to them; the mean over
        dimensions, frames and utterances.

        Arguments
        ---------
        logits : torch.Tensor
            Shape [B, C].
        batch : speechbrain.dataio.batch.PaddedBatch
            Unused.

        Returns
        -------
        losses : dict
        """
        z, packing = self.latest
        prototypes = self.prototypes.codebook[self.prototypes.assign(z)]
        to_frames = (prototypes - z.detach()).square().mean(dim=-1)  # (N,)
        to_prototypes = (z - prototypes.detach()).square().mean(dim=-1)
        errors = to_frames + self.commitment * to_prototypes
        both = torch.stack([errors, torch.ones_like(errors)], dim=-1)
        sums = packing.unpack(both).sum(dim=1)[: len(logits)]
        loss = (sums[:, 0] / sums[:, 1].clamp(min=1.0)).mean()
        return {"quantisation": self.quantisation_weight * loss}

    @torch.no_grad()
    def before_fit(self, batches):
        """Measures frames and mappings, and puts prototypes on frames (B27)."""
        self.measure_input(batches)
        starts = []
        for batch in batches:
            z, _ = self.embed(batch.feats.data)
            steps = torch.linspace(0, len(z) - 1, START_FRAMES).round().long()
            starts.append(z[steps.unique()])
        starts = torch.cat(starts)
        codebook, random = self.prototypes.codebook, torch.Generator()
        order = torch.randperm(len(starts), generator=random.manual_seed(0))
        order = order.repeat(-(-len(codebook) // len(order)))[: len(codebook)]
        codebook.copy_(starts[order.to(starts.device)])
        mappings = self._map_all(batches)
        self.mean.copy_(mappings.mean(dim=0))
        std = mappings.std(dim=0, unbiased=False)
        # a prototype that no frame is near to is only shifted
        self.std.copy_(std.where(std >= 1e-5, 1.0))

    @torch.no_grad()
    def after_fit(self, batches):
        """Selects the prototypes that move the logits furthest (B28).

        As multiple instance learning by embedded instance selection does, by
        the classifier's weights, w_k - mean_c w_k here; times the deviation of
        m_k over the training utterances.

        Arguments
        ---------
        batches : iterable
            One utterance in each; looked at once.
        """
        if self.selection == 1.0:
            return
        self.kept.fill_(True)
        mappings = self._map_all(batches)
        weights = self.classifier.w.weight  # (C, K)
        effects = (weights - weights.mean(dim=0)).norm(dim=0)
        effects = effects * mappings.std(dim=0, unbiased=False)
        count = max(1, round(self.selection * len(effects)))
        self.kept.fill_(False)
        self.kept[effects.topk(count).indices] = True
        self.usual.copy_(mappings.mean(dim=0))

    def _map_all(self, batches):
        """Computes the mappings of all utterances, shape [N, K]."""
        return torch.cat([self.pool(batch.feats.data) for batch in batches])
