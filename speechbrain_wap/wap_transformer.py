"""The WAP-Transformer, the adapter's backbone (Sec. II-A.2, III-B)."""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_wap.dropout import Dropout
from speechbrain_wap.errors import (
    RecipeError,
    check_choice,
    check_flag,
    check_number,
    check_whole,
)
from speechbrain_wap.frame_input import FrameInput
from speechbrain_wap.packing import lay_out
from speechbrain_wap.precision import at_least_float32


class WAPTransformer(FrameInput):
    """Weighted average pooling Transformer (Sec. II-A.2, III-B, Fig. 1b).

    Projects the frozen encoder's frames to ``d_model``, adds a learnable
    position embedding, runs ``num_layers`` Transformer layers, averages the
    layers' outputs with learnable softmax weights, Z = sum_l w_l X^l, and
    aggregates with an MLP. Padding never changes a valid frame's output.

    Frames are standardised first by fixed statistics, per dimension, which are
    those of the training data once ``set_input_statistics`` has been called
    (mean 0 and deviation 1, hence no change, before). They belong to the
    weights: encoders have dimensions whose mean dwarfs all that varies.

    The mask embedding replaces projected frames before the position embedding
    is added, as in BEiT, which the paper follows: a masked frame then still
    knows where it is.

    Arguments
    ---------
    input_size : int
        Dimension of the encoder's frames (HuBERT-large: 1024).
    d_model : int
        Dimension D of the adapter.
    num_layers : int
        Number L of Transformer layers.
    nhead : int
        Number of attention heads; divides ``d_model``.
    d_ffn : int
        Inner dimension of the feed-forward blocks.
    dropout : float
        Dropout probability, 0 to 1.
    max_frames : int
        Length of the position embedding, hence of the longest utterance (D12).
    mlp_layers : int
        Number of linear layers of the aggregation MLP (the paper: 3).
    mlp_residual : bool
        Whether the MLP's input is added to its output, a path that keeps what
        the layers found. The paper shows none; on little data it helps.
    normalize_before : bool
        Whether layers normalise their input (pre-norm) or their output.
    projection_init : str
        How the projection starts (D17): "random", or "orthogonal", which
        rotates the encoder's frames, into a random subspace where ``d_model``
        is smaller, and keeps their distances.
    residual_init : float
        By what the last weights of each residual branch (attention,
        feed-forward block, MLP with ``mlp_residual``) are multiplied at the
        start (D17). Near 0, the network starts by passing on its projected
        input.
    num_encoder_layers : int
        Number of layers of the encoder that are given (D1). With more than
        one, frames are [B, T, num_encoder_layers, input_size] and are averaged
        with learnable softmax weights first.

    Example
    -------
    >>> net = WAPTransformer(input_size=80, d_model=32, nhead=4, d_ffn=64)
    >>> net(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 50, 32])
    """

    def __init__(
        self,
        input_size,
        d_model=384,
        num_layers=3,
        nhead=6,
        d_ffn=1536,
        dropout=0.1,
        max_frames=1500,
        mlp_layers=3,
        mlp_residual=False,
        normalize_before=True,
        projection_init="random",
        residual_init=1.0,
        num_encoder_layers=1,
    ):
        super().__init__(input_size, num_encoder_layers)
        for name, value in {
            "num_layers": num_layers,
            "d_ffn": d_ffn,
            "max_frames": max_frames,
        }.items():
            check_whole(name, value, least=1)
        check_attention(d_model, nhead, dropout)
        check_whole("mlp_layers", mlp_layers)
        check_number("residual_init", residual_init, least=0.0)
        check_flag("mlp_residual", mlp_residual)
        check_flag("normalize_before", normalize_before)
        check_choice(
            "projection_init", projection_init, ("random", "orthogonal")
        )
        self.d_model = d_model
        self.max_frames = max_frames
        self.mlp_residual = mlp_residual

        self.projection = nn.Linear(input_size, d_model)
        self.position_embedding = nn.Parameter(torch.empty(max_frames, d_model))
        self.mask_embedding = nn.Parameter(torch.empty(d_model))  # e_[M]
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        nn.init.trunc_normal_(self.mask_embedding, std=0.02)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(d_model, nhead, d_ffn, dropout, normalize_before)
            for _ in range(num_layers)
        )
        # w_l before their softmax; they start as the plain average
        self.layer_weights = nn.Parameter(torch.zeros(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model, mlp_layers)
        if projection_init == "orthogonal":
            nn.init.orthogonal_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        ends = [layer.self_attn.out_proj for layer in self.layers]
        ends += [layer.linear2 for layer in self.layers]
        ends += list(self.mlp)[-1:] if mlp_residual else []
        with torch.no_grad():
            for end in ends:
                end.weight.mul_(residual_init)
                end.bias.mul_(residual_init)

    def forward(self, feats, lens=None, mask=None, only_masked=False):
        """Enriches frames (Sec. II-A.2).

        Arguments
        ---------
        feats : torch.Tensor
            The encoder's frames, shape [B, T, input_size], or [B, T,
            num_encoder_layers, input_size], in any floating point type.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; best kept on the CPU.
            None stands for 1; of an utterance of length 0, all is padding.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True where the mask embedding e_[M] stands
            in for the frame (Sec. II-B.1); best kept on the CPU.
        only_masked : bool
            Whether only the masked frames' output is wanted, as by the losses
            of adapter training: what no masked frame needs is left out. Has no
            effect on what torch.export makes.

        Returns
        -------
        z : torch.Tensor
            Shape [B, T, d_model]; zero where there is padding, and, with
            ``only_masked``, where nothing is masked.

        Raises
        ------
        RecipeError
            If the batch is longer than ``max_frames``.
        """
        num_steps = feats.shape[1]
        if num_steps > self.max_frames:
            raise RecipeError(
                f"{num_steps} frames are more than max_frames = "
                f"{self.max_frames}: raise it, or set "
                "--long_utterances=cut."
            )
        if lens is None:
            lens = torch.ones(feats.shape[0])
        packing = lay_out(lens, num_steps, feats.device, may_fill=True)
        x = self.standardise(packing.pack(feats))
        x = self.average_layers(x)  # (N, input_size)
        x = self.projection(x)  # (N, D)
        wanted = None  # all frames
        if mask is not None:
            masked, numbers = packing.find(mask)
            x = torch.where(masked[..., None], self.mask_embedding, x)  # X'
            wanted = numbers if only_masked else None
        # X = X_emb + E_pos
        x = self.dropout(x + self.position_embedding[packing.steps])

        weights = at_least_float32(self.layer_weights).softmax(dim=0)
        z = 0.0
        for layer, weight in zip(self.layers, weights):
            # after the last attention, each frame goes its own way: only those
            # that are wanted are computed
            is_last = layer is self.layers[-1]
            x = layer(x, packing, wanted if is_last else None)  # X^l
            z = z + weight * (x if is_last else _take(x, wanted))  # sum w_l X^l
        z = self.norm(z)
        aggregated = self.mlp(z)
        z = z + aggregated if self.mlp_residual else aggregated
        return packing.unpack(z, wanted)  # (B, T, D)


def check_attention(d_model, nhead, dropout):
    """Refuses what :class:`TransformerLayer` cannot be made with.

    Arguments
    ---------
    d_model : int
        Its dimension.
    nhead : int
        Number of attention heads; divides ``d_model``.
    dropout : float
        Dropout probability, 0 to 1.

    Raises
    ------
    RecipeError
        Which names the value.
    """
    check_whole("d_model", d_model, least=1)
    check_whole("nhead", nhead, least=1)
    check_number("dropout", dropout, least=0.0, most=1.0)
    if d_model % nhead != 0:
        raise RecipeError(
            f"d_model ({d_model}) must be divisible by nhead ({nhead})."
        )


class TransformerLayer(nn.TransformerEncoderLayer):
    """A Transformer layer for packed frames, with torch's parameters.

    torch's own layer computes padding, too; SpeechBrain's asks for the weights
    of attention, which rules out the fused kernels. There is no dropout within
    attention: on CPUs torch has no fused kernel with it, and the whole map of
    weights would be stored. For its arguments see :class:`WAPTransformer`.

    Example
    -------
    >>> layer = TransformerLayer(8, nhead=2, d_ffn=16)
    >>> from speechbrain_wap.packing import Packing
    >>> packing = Packing([4, 2], 4, "cpu")
    >>> layer(torch.rand(6, 8), packing).shape
    torch.Size([6, 8])
    """

    def __init__(
        self, d_model, nhead, d_ffn, dropout=0.1, normalize_before=True
    ):
        super().__init__(
            d_model,
            nhead,
            dim_feedforward=d_ffn,
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=normalize_before,
        )
        self.dropout = Dropout(dropout)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.self_attn.in_proj_bias.register_hook(_zero_keys_gradient)

    def forward(self, x, packing, wanted=None):
        """Lets the packed frames [N, D] of each utterance look at each other.

        With ``wanted``, returns the output of the frames of these numbers only.
        """
        normed = self.norm1(x) if self.norm_first else x
        x = _take(x + self._attend(normed, packing), wanted)
        if self.norm_first:
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x)
        return self.norm2(x + self._feed_forward(x))

    def _attend(self, x, packing):
        """Multi-head self-attention of packed frames [N, D]."""
        attention = self.self_attn
        projected = F.linear(
            x, attention.in_proj_weight, attention.in_proj_bias
        )  # (N, 3 * D)
        attended = packing.attend(projected, attention.num_heads)
        return self.dropout1(attention.out_proj(attended))

    def _feed_forward(self, x):
        """Two linear layers with GELU between them."""
        hidden = self.dropout(F.gelu(self.linear1(x)))  # (N, d_ffn)
        return self.dropout2(self.linear2(hidden))


class MLP(nn.Sequential):
    """Linear layers of one size with GELU between them; 0 change nothing."""

    def __init__(self, d_model, num_layers):
        check_whole("num_layers", num_layers)
        layers = []
        for _ in range(num_layers):
            layers += [nn.Linear(d_model, d_model), nn.GELU()]
        super().__init__(*layers[:-1])


def _take(x, numbers):
    """Takes the frames with these numbers; all of them if None."""
    return x if numbers is None else x.index_select(0, numbers)


def _zero_keys_gradient(gradient):
    """Leaves the keys' bias where it starts, at zero.

    The softmax does not see it: its gradient is nothing but rounding, which
    Adam would blow up to whole steps.
    """
    gradient = gradient.clone()
    gradient.view(3, -1)[1] = 0.0
    return gradient
