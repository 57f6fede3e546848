"""What W2v2-PT and Spk-norm share: layers on each frame, mean, classifier."""

import torch
from speechbrain.nnet.linear import Linear

from speechbrain_wap.baselines.linear import average_frames
from speechbrain_wap.errors import check_whole
from speechbrain_wap.frame_input import FrameInput
from speechbrain_wap.packing import lay_out


class FramewiseClassifier(FrameInput):
    """Layers on each frame, the mean over time and a linear classifier.

    Arguments
    ---------
    layers : torch.nn.Module
        Maps frames [N, input_size] to [N, output_size], each by itself.
    output_size : int
        Their dimension.
    input_size : int
        Dimension D of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given; they are averaged with
        learned weights.

    Example
    -------
    >>> model = FramewiseClassifier(torch.nn.Linear(80, 8), 8, input_size=80)
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(self, layers, output_size, input_size, num_encoder_layers=1):
        super().__init__(input_size, num_encoder_layers)
        check_whole("d_model", output_size, least=1)
        self.layers, self.output_size = layers, output_size

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        self.classifier = Linear(
            input_size=self.output_size, n_neurons=num_classes
        )

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
            Shape [B, output_size].
        """
        if lens is None:
            lens = torch.ones(feats.shape[0])
        packing = lay_out(lens, feats.shape[1], feats.device)
        x = self.average_layers(self.standardise(packing.pack(feats)))
        return average_frames(packing.unpack(self.layers(x)), lens, mask)

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits [B, C] of the classes; arguments as of pool."""
        return self.classifier(self.pool(feats, lens, mask))
