"""Frames to emotions: backbone, pooling and a linear classifier (Sec. II-C).

Every system that ``train_classifier.py`` trains has::

    set_classes(num_classes)          once, when the classes are known
    forward(feats, lens, mask=None)   logits [B, C]

``feats`` are the encoder's frames [B, T, D], in half precision unless the
YAML's ``feature_precision`` is float32, ``lens`` relative lengths [B] and
``mask`` the frames that augmentation masks, boolean [B, T]. Where the system's
YAML names further ``streams``, or the corpus's wires several
``feature_caches``, each is a mapping by their names; with ``streams``, so is
the ``input_size`` that the system is made with.

A system may also have

``losses(logits, batch)``
    A mapping of scalars. They are added to the cross entropy and logged, each
    by its name; one that is called "cross_entropy" takes its place. The batch
    has ``target`` (indices of the classes) and ``speaker`` (indices of the
    training speakers, -1 for others, hence for all of validation), both of
    shape [B]. Where the ranks cannot share an epoch evenly, some forward one
    utterance more at its end; it is not in this batch.
``before_fit(batches)``, ``after_fit(batches)``
    See the training utterances, one in each batch: before the training begins,
    for statistics or a codebook's start, which belong into buffers; and before
    each test, of the weights that are tested, for prototypes, which are not in
    the checkpoint. A batch has ``feats``, ``target`` and ``speaker_index``.
    Before anything is encoded, a copy of the system sees noise in
    ``before_fit`` and takes a step on it.
``transductive``
    A phrase that says what a system hears beside the training utterances
    ("hears ..."); None, or absent, for one that hears nothing else. Both hooks
    of such a one see all utterances, validation's and test's too, with the
    target -1 and ``speaker_name``, a list of one; and ``forward`` is also given
    the speakers' names [B]. Reports say the phrase, and it is not exported.
``frame_weights(feats, lens)``
    How much each frame counts for the utterance: for each utterance a tensor
    [T] of its own frames, not negative, or None for all. The report draws it
    over the waveform.
``backbone``
    A module that may start from an adapter (``adapter_folder``); it has an
    optimiser of its own (``opt_class``), all else has ``classifier_opt_class``.
"""

import torch
from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_wap.errors import RecipeError, check_flag, check_whole
from speechbrain_wap.frame_input import measure_frames
from speechbrain_wap.packing import send, valid_frames


def build_model(system, num_classes=None, **sizes):
    """Builds a system once the sizes of its input are known, for the YAML.

    Arguments
    ---------
    system : callable
        What the system's YAML wires with ``!name:``.
    num_classes : int, optional
        Number of classes, where they are known.
    **sizes : dict
        "input_size" and "num_encoder_layers" of the encoder's frames; the
        former by name where there are several streams.

    Returns
    -------
    model : torch.nn.Module

    Example
    -------
    >>> from speechbrain_wap.baselines.linear import MeanPoolingClassifier
    >>> type(build_model(MeanPoolingClassifier, input_size=80)).__name__
    'MeanPoolingClassifier'
    """
    try:
        model = system(**sizes)
    except TypeError as error:
        raise RecipeError(
            f"the system cannot be made with {' and '.join(sizes)}: {error}."
        )
    if not hasattr(model, "set_classes"):
        raise RecipeError(
            f"{type(model).__name__} is no system, which has set_classes("
            "num_classes) and maps (feats, lens, mask) to logits [B, C]: see "
            "speechbrain_wap/emotion_model.py."
        )
    return model if num_classes is None else add_classes(model, num_classes)


def add_classes(model, num_classes):
    """Tells a system the number of classes, and gives it back.

    Arguments
    ---------
    model : torch.nn.Module
        A system.
    num_classes : int
        Number of classes.

    Returns
    -------
    model : torch.nn.Module
    """
    model.set_classes(num_classes)
    return model


class EmotionModel(nn.Module):
    """Backbone, pooling and a linear classifier (Sec. II-C).

    Arguments
    ---------
    backbone : callable
        Given ``input_size`` and ``num_encoder_layers``, makes a module that
        enriches frames as the WAP-Transformer does: ``(feats, lens, mask) ->
        [B, T, d_model]``, with the attribute ``d_model``.
    pooling : callable
        Given ``input_size``, makes a module that pools frames:
        ``(z, lens) -> [B, output_size]``, with the attribute ``output_size``.
    input_size : int
        Dimension of the encoder's frames.
    num_encoder_layers : int
        How many layers of the encoder are given.
    input_norm : bool
        Whether the backbone standardises frames by the training utterances'
        statistics (D14), unless it starts from an adapter, which has its own.
    pooled_norm : bool
        Whether what is pooled is standardised by the training utterances'
        statistics (D19).

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_wap.pooling import StatisticalAttentivePooling
    >>> from speechbrain_wap.wap_transformer import WAPTransformer
    >>> model = EmotionModel(
    ...     partial(WAPTransformer, d_model=8, nhead=2, d_ffn=8),
    ...     partial(StatisticalAttentivePooling, num_heads=2),
    ...     input_size=80,
    ... )
    >>> model.set_classes(4)
    >>> model(torch.rand(2, 50, 80), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        backbone,
        pooling,
        input_size,
        num_encoder_layers=1,
        input_norm=True,
        pooled_norm=False,
    ):
        super().__init__()
        check_flag("input_norm", input_norm)
        check_flag("pooled_norm", pooled_norm)
        self.input_norm = input_norm
        self.pooled_norm = pooled_norm
        self.backbone = backbone(
            input_size=input_size, num_encoder_layers=num_encoder_layers
        )
        try:
            self.pooling = pooling(input_size=self.backbone.d_model)
            if not hasattr(self.pooling, "output_size"):
                name = type(self.pooling).__name__
                raise TypeError(f"{name} has no output_size")
        except TypeError as error:
            raise RecipeError(
                f"pooling cannot be made with input_size ({error}): it must "
                "have output_size and map frames [B, T, input_size] and lens "
                "to [B, output_size], as StatisticalAttentivePooling does."
            )
        for key, wanted, part, method in (
            ("input_norm", input_norm, self.backbone, "set_input_statistics"),
            ("input_norm", input_norm, self.backbone, "has_input_statistics"),
            ("pooled_norm", pooled_norm, self.pooling, "set_output_statistics"),
        ):
            if wanted and not hasattr(part, method):
                raise RecipeError(
                    f"{key}=True needs {method}, which "
                    f"{type(part).__name__} does not have: set {key}=False."
                )

    def set_classes(self, num_classes):
        """Adds the classifier, once the number C of classes is known."""
        check_whole("num_classes", num_classes, least=1)
        self.classifier = Linear(
            input_size=self.pooling.output_size, n_neurons=num_classes
        )

    def forward(self, feats, lens=None, mask=None):
        """Computes the logits of the classes (Sec. II-C).

        Arguments
        ---------
        feats : torch.Tensor
            The encoder's frames, shape [B, T, D].
        lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1; best kept on the CPU.
            None stands for 1.
        mask : torch.Tensor, optional
            Shape [B, T], boolean, True where a frame's embedding is masked.

        Returns
        -------
        logits : torch.Tensor
            Shape [B, C].
        """
        return self.classifier(self.pool(feats, lens, mask))

    def pool(self, feats, lens=None, mask=None):
        """Computes the utterances' embeddings [B, output_size]; see forward."""
        if lens is None:
            lens = torch.ones(feats.shape[0])
        z = self.backbone(feats, lens, mask)  # (B, T, d_model)
        return self.pooling(z, send(lens, z.device))

    @torch.no_grad()
    def frame_weights(self, feats, lens):
        """Computes how much each frame counts in the pooling (Eq. 7).

        Arguments
        ---------
        feats, lens : torch.Tensor
            See forward.

        Returns
        -------
        weights : list of torch.Tensor, or None
            Of each utterance its own frames', shape [T], the mean of the heads;
            None where the pooling has no ``attention_map``.
        """
        if not hasattr(self.pooling, "attention_map"):
            return None
        z = self.backbone(feats, lens, None)  # (B, T, d_model)
        weights = self.pooling.attention_map(z, send(lens, z.device))
        num_frames, _ = valid_frames(lens, z.shape[1])
        return [w[:n] for w, n in zip(weights.mean(dim=1), num_frames.tolist())]

    @torch.no_grad()
    def before_fit(self, batches):
        """Measures the training utterances' frames and embeddings (D14, D19).

        Without their labels, and of all of them at every ``label_fraction``:
        what a fraction of the labels costs is then not mixed with this.

        Arguments
        ---------
        batches : iterable
            One utterance in each; looked at twice.
        """
        if self.input_norm and not self.backbone.has_input_statistics():
            self.backbone.set_input_statistics(
                *measure_frames((b.feats.data[0].cpu(), 1.0) for b in batches)
            )
        if not self.pooled_norm:
            return
        was_training = self.training
        self.eval()
        pooled = [
            self.pool(batch.feats.data, batch.feats.lengths)[0].double().cpu()
            for batch in batches
        ]
        self.train(was_training)
        pooled = torch.stack(pooled)
        self.pooling.set_output_statistics(
            pooled.mean(dim=0), pooled.std(dim=0, unbiased=False)
        )


class AveragedModels(nn.Module):
    """Averages the probabilities of several models, as those of all folds.

    Arguments
    ---------
    models : list of torch.nn.Module
        Systems of the same classes.

    Example
    -------
    >>> from speechbrain_wap.baselines.linear import MeanPoolingClassifier
    >>> model = MeanPoolingClassifier(input_size=8)
    >>> model.set_classes(3)
    >>> feats, lens = torch.rand(1, 5, 8), torch.ones(1)
    >>> two = AveragedModels([model, model])(feats, lens)
    >>> bool(two.exp().allclose(model(feats, lens).softmax(dim=-1)))
    True
    """

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, feats, lens=None, mask=None):
        """Computes logarithms of the average probabilities, shape [B, C]."""
        logits = torch.stack([m(feats, lens, mask) for m in self.models])
        return logits.float().softmax(dim=-1).mean(dim=0).log()
