"""Co-att: co-attention of multi-level acoustic information (Zou et al. [25]).

"Speech emotion recognition with co-attention based multi-level acoustic
information", ICASSP 2022; read with its public code, CA-MSER, of which nothing
is copied. Speech is cut into segments of 3 s. MFCCs go through a BiLSTM and the
spectrogram through AlexNet's convolutions; both embeddings together weigh the
encoder's frames, and all three are classified (Sec. 2). Where we differ: the
encoder is frozen, AlexNet's convolutions are trained from scratch (its ImageNet
weights are not to be had here), and B20 to B24.
"""

from collections.abc import Mapping

import torch
from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_wap.errors import RecipeError, check_number, check_whole
from speechbrain_wap.frame_input import FrameInput, measure_frames
from speechbrain_wap.packing import send, valid_frames

STREAMS = ("speech", "mfcc", "spectrogram")
# What the convolutions' output is averaged to, frequencies and times
GRID = 6
# By how many frames streams of one rate may differ
MOST_APART = 3


class CoAttention(nn.Module):
    """Weighs the encoder's frames by what MFCCs and spectrogram tell (Sec. 2).

    Its streams are "speech", the encoder's frames, "mfcc" and "spectrogram",
    whose frames are pairs of 10 ms. Each segment is embedded by itself; an
    utterance's logits are the mean of its segments' (B20).

    Arguments
    ---------
    input_size : dict
        Dimension of the frames of each stream.
    num_encoder_layers : int
        How many layers of the encoder are given; they are averaged with
        learned weights.
    segment_frames : int
        Frames of a segment (150: 3 s).
    embedding_size : int
        Dimension of each stream's embedding.
    lstm_size : int
        Cells of each direction of the BiLSTM, which has two layers.
    cnn_channels : list of int
        Channels of the five convolutions.
    dropout : float
        Dropout probability before each linear layer, 0 to 1.

    Raises
    ------
    RecipeError
        If a stream is missing.

    Example
    -------
    >>> sizes = {"speech": 16, "mfcc": 80, "spectrogram": 400}
    >>> model = CoAttention(sizes, lstm_size=8, cnn_channels=[4] * 5)
    >>> model.set_classes(4)
    >>> feats = {name: torch.rand(2, 40, size) for name, size in sizes.items()}
    >>> model(feats).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size,
        num_encoder_layers=1,
        segment_frames=150,
        embedding_size=128,
        lstm_size=256,
        cnn_channels=(64, 192, 384, 256, 256),
        dropout=0.1,
    ):
        super().__init__()
        is_complete = isinstance(input_size, Mapping)
        if not is_complete or set(input_size) != set(STREAMS):
            raise RecipeError(
                f"CoAttention takes the streams {', '.join(STREAMS)}: name "
                "mfcc and spectrogram as streams in the system's YAML."
            )
        # shorter, and nothing of the spectrogram is left to pool
        check_whole("segment_frames", segment_frames, least=32)
        check_whole("embedding_size", embedding_size, least=1)
        check_whole("lstm_size", lstm_size, least=1)
        check_number("dropout", dropout, least=0.0, most=1.0)
        self.segment_frames = segment_frames
        self.embedding_size = embedding_size
        layers = {"speech": num_encoder_layers}
        self.streams = nn.ModuleDict(
            {
                name: FrameInput(size, layers.get(name, 1))
                for name, size in input_size.items()
            }
        )
        self.lstm = nn.LSTM(
            input_size["mfcc"],
            lstm_size,
            num_layers=2,
            dropout=0.5,
            bidirectional=True,
            batch_first=True,
        )
        self.convolutions = make_convolutions(cnn_channels)

        def embed(size, output_size=embedding_size):
            """Makes a linear layer with dropout before it and ReLU behind."""
            linear = nn.Linear(size, output_size)
            return nn.Sequential(nn.Dropout(dropout), linear, nn.ReLU())

        self.embed_mfcc = embed(segment_frames * 2 * lstm_size)
        self.embed_spectrogram = embed(GRID * GRID * cnn_channels[-1])
        self.weigh = embed(2 * embedding_size, segment_frames)
        self.embed_speech = embed(input_size["speech"])
        self.fuse = nn.Sequential(
            embed(3 * embedding_size), embed(embedding_size)
        )

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        self.classifier = Linear(
            input_size=self.embedding_size, n_neurons=num_classes
        )

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits [B, C] of the classes; arguments as of pool."""
        return self.classifier(self.pool(feats, lens, mask))

    def pool(self, feats, lens=None, mask=None):
        """Averages the embeddings of each utterance's segments (B20).

        Arguments
        ---------
        feats : dict
            Frames of each stream, shape [B, T, D]; of several layers of the
            encoder, [B, T, L, D].
        lens : dict, optional
            Relative lengths of each stream, shape [B]; None stands for 1.
        mask : dict, optional
            Of each stream, shape [B, T], boolean, True on frames that are
            replaced by the mean one; or None.

        Returns
        -------
        embeddings : torch.Tensor
            Shape [B, embedding_size].

        Raises
        ------
        RecipeError
            If the streams are of different frame rates.
        """
        lens, mask = lens or {}, mask or {}
        frames, counts = {}, {}
        for name, stream in self.streams.items():
            x, own_lens = feats[name], lens.get(name)
            packed, packing = stream.pack(x, own_lens, mask.get(name))
            frames[name] = packing.unpack(packed)
            if own_lens is None:
                own_lens = torch.ones(len(x))
            counts[name], _ = valid_frames(own_lens.cpu(), x.shape[1])
        num_frames = counts["speech"]
        for name, count in counts.items():
            if int((count - num_frames).abs().max()) > MOST_APART:
                raise RecipeError(
                    f"CoAttention: {name} has {int(count.max())} frames where "
                    f"the encoder has {int(num_frames.max())}: take an encoder "
                    "of 50 frames per second."
                )
        num_segments = -(-num_frames // self.segment_frames)
        most = int(num_segments.max())
        is_used = torch.arange(most) < num_segments[:, None]  # (B, most)
        owners, device = is_used.nonzero()[:, 0], packed.device
        places = send(is_used.flatten().nonzero()[:, 0], device)
        embeddings = self.embed_segments(
            **{
                name: self._cut(x, most).index_select(0, places)
                for name, x in frames.items()
            }
        )  # (n, E)
        shares = send(1.0 / num_segments[owners], device)[:, None]
        pooled = embeddings.new_zeros(len(num_frames), self.embedding_size)
        shared = (shares * embeddings).to(pooled.dtype)
        return pooled.index_add(0, send(owners, device), shared)

    def _cut(self, frames, count):
        """Cuts [B, T, D] into segments [B * count, frames, D], 0 behind T."""
        missing = count * self.segment_frames - frames.shape[1]
        frames = nn.functional.pad(frames, (0, 0, 0, missing))
        return frames.reshape(-1, self.segment_frames, frames.shape[2])

    def embed_segments(self, speech, mfcc, spectrogram):
        """Embeds n segments (Sec. 2.2, 2.3).

        Arguments
        ---------
        speech, mfcc, spectrogram : torch.Tensor
            Standardised frames, shape [n, segment_frames, D], zero where a
            segment is not filled.

        Returns
        -------
        embeddings : torch.Tensor
            Shape [n, embedding_size].
        """
        # not every processor has an LSTM in half precision
        with torch.autocast(mfcc.device.type, enabled=False):
            by_time = self.lstm(mfcc)[0]  # (n, frames, 2 * lstm_size)
        mfcc = self.embed_mfcc(by_time.flatten(start_dim=1))
        # pairs to single frames of 10 ms, an image of one channel
        image = spectrogram.unflatten(2, (2, -1)).flatten(1, 2)
        image = self.convolutions(image.transpose(1, 2)[:, None])
        spectrogram = self.embed_spectrogram(image.flatten(start_dim=1))
        # the two tell how much each frame counts
        weights = self.weigh(torch.cat([spectrogram, mfcc], dim=1))
        weighted = (weights[:, None] @ speech)[:, 0]  # (n, D)
        speech = self.embed_speech(weighted)
        return self.fuse(torch.cat([spectrogram, mfcc, speech], dim=1))

    def before_fit(self, batches):
        """Measures the frames of each stream, by which it is standardised.

        Arguments
        ---------
        batches : iterable
            One utterance in each; looked at once for each stream.
        """
        for name, stream in self.streams.items():
            utterances = (batch[f"feats_{name}"].data[0] for batch in batches)
            stream.set_input_statistics(
                *measure_frames((feats.cpu(), 1.0) for feats in utterances)
            )


def make_convolutions(channels):
    """Makes AlexNet's convolutions for images of one channel (B23).

    Arguments
    ---------
    channels : list of int
        Of its five convolutions (AlexNet: 64, 192, 384, 256, 256).

    Returns
    -------
    convolutions : torch.nn.Sequential
        Maps [n, 1, frequencies, times] to [n, channels, 6, 6].
    """
    if not isinstance(channels, (list, tuple)) or len(channels) != 5:
        raise RecipeError(
            f"cnn_channels={channels} must be a list of five numbers, one for "
            "each convolution."
        )
    for size in channels:
        check_whole("cnn_channels", size, least=1)
    kernels, strides, pads = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
    layers, before = [], 1
    for number, after in enumerate(channels):
        layers += [
            nn.Conv2d(
                before, after, *(x[number] for x in (kernels, strides, pads))
            ),
            nn.ReLU(),
        ]
        if number in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, stride=2))
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(GRID))
