"""Recognises emotions with an adapter that was fine-tuned.

The recipes in ``recipes/IEMOCAP/wap_adapter`` and ``recipes/EmoDB`` train one.
"""

import torch

from speechbrain.inference.interfaces import Pretrained


class EmotionRecognizer(Pretrained):
    """Tells the emotion of utterances.

    What it says of an utterance does not depend on what else is in the batch:
    ``encoder`` gives frames and their lengths, utterance by utterance, and
    ``model`` maps them to logits.

    Arguments
    ---------
    *args, **kwargs
        See :class:`speechbrain.inference.interfaces.Pretrained`.

    Example
    -------
    >>> from speechbrain.dataio.encoder import CategoricalEncoder
    >>> from speechbrain.lobes.features import Fbank
    >>> from speechbrain.lobes.models.wap_adapter.encoder import FrozenEncoder
    >>> from speechbrain.lobes.models.wap_adapter.pooling import (
    ...     StatisticalAttentivePooling,
    ... )
    >>> class Model(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.pooling = StatisticalAttentivePooling(40)
    ...         self.classifier = torch.nn.Linear(320, 2)
    ...
    ...     def forward(self, feats, lens):
    ...         return self.classifier(self.pooling(feats, lens))
    >>> label_encoder = CategoricalEncoder()
    >>> label_encoder.update_from_iterable(["angry", "calm"])
    >>> recognizer = EmotionRecognizer(
    ...     modules={"model": Model()},
    ...     hparams={
    ...         "encoder": FrozenEncoder(Fbank),
    ...         "label_encoder": label_encoder,
    ...     },
    ... )
    >>> probabilities, score, index, label = recognizer.classify_file(
    ...     "tests/samples/single-mic/example1.wav"
    ... )
    >>> probabilities.shape, label[0] in ("angry", "calm")
    (torch.Size([1, 2]), True)
    """

    MODULES_NEEDED = ["model"]
    HPARAMS_NEEDED = ["encoder", "label_encoder"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hparams.label_encoder.ignore_len()  # it is loaded as it is

    @torch.no_grad()
    def classify_batch(self, wavs, wav_lens=None):
        """Tells the emotion of each utterance of a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, shape [B, samples].
        wav_lens : torch.Tensor, optional
            Relative lengths, shape [B]; all of each waveform by default.

        Returns
        -------
        probabilities : torch.Tensor
            Of each class, shape [B, C].
        score : torch.Tensor
            The highest one, shape [B].
        index : torch.Tensor
            Number of its class, shape [B].
        label : list of str
            Its name.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs))
        wavs, wav_lens = wavs.to(self.device), wav_lens.to(self.device)
        feats, lens = self.hparams.encoder(wavs.float(), wav_lens)
        logits = self.mods.model(feats, lens)
        probabilities = logits.softmax(dim=-1)
        score, index = probabilities.max(dim=-1)
        label = self.hparams.label_encoder.decode_torch(index)
        return probabilities, score, index, label

    def classify_file(self, path, **kwargs):
        """Tells the emotion of a file.

        Arguments
        ---------
        path : str
            Where it is, also a web address or of the Hugging Face hub.
        **kwargs : dict
            See ``load_audio``.

        Returns
        -------
        result : tuple
            As of ``classify_batch``, for a batch of one.
        """
        return self.classify_batch(self.load_audio(path, **kwargs)[None])

    def forward(self, wavs, wav_lens=None):
        """Tells the emotion of a batch, see ``classify_batch``."""
        return self.classify_batch(wavs, wav_lens)
