"""What W2v2-PT and Spk-norm share: layers on each frame, mean, classifier."""

from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_wap.baselines.linear import average_frames
from speechbrain_wap.dropout import Dropout
from speechbrain_wap.errors import check_number, check_whole
from speechbrain_wap.frame_input import FrameInput


class FramewiseClassifier(FrameInput):
    """Dense layers on each frame, mean over time and a linear classifier.

    Arguments
    ---------
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given; they are averaged with
        learned weights.
    d_model : int
        Size of the dense layers.
    dropout : float
        Dropout probability after each layer's ReLU, 0 to 1.
    num_dense : int
        How many dense layers there are.

    Example
    -------
    >>> import torch
    >>> model = FramewiseClassifier(80, 1, d_model=8, dropout=0.1, num_dense=1)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self, input_size, num_encoder_layers, d_model, dropout, num_dense
    ):
        super().__init__(input_size, num_encoder_layers)
        check_whole("d_model", d_model, least=1)
        check_number("dropout", dropout, least=0.0, most=1.0)
        self.d_model, layers = d_model, []
        for size in (input_size, *[d_model] * (num_dense - 1)):
            layers += [nn.Linear(size, d_model), nn.ReLU(), Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        self.classifier = Linear(input_size=self.d_model, n_neurons=num_classes)

    def before_fit(self, batches):
        """Measures the training utterances' frames (D14)."""
        self.measure_input(batches)

    def pool(self, feats, lens=None, mask=None):
        """Computes the utterances' embeddings.

        Arguments
        ---------
        feats : torch.Tensor
            Frames, shape [B, T, D], or [B, T, L, D] of L layers.
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; None stands for 1.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True on the frames to leave out.

        Returns
        -------
        pooled : torch.Tensor
            Shape [B, d_model].
        """
        x, packing = self.pack(feats, lens)
        return average_frames(packing.unpack(self.layers(x)), lens, mask)

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits [B, C] of the classes; arguments as of pool."""
        return self.classifier(self.pool(feats, lens, mask))
