"""Spk-norm: the reversed gradient of Eq. 3, and what a speaker probe finds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_near, generator, make_utterances, pad_batch
from speechbrain.dataio.batch import PaddedBatch
from torch.nn import functional as F

from speechbrain_wap.baselines.spk_norm import SpkNorm
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.linear_probe import cross_validate_probe

DIM, CLASSES, SPEAKERS = 8, 4, 4
TARGET = torch.tensor([0, 1, 3])


def make_model(**settings):
    """Makes a model whose projector is small."""
    torch.manual_seed(0)
    model = SpkNorm(DIM, d_model=16, dropout=0.0, **settings)
    model.set_classes(CLASSES)
    return model


def take_gradients(model, losses):
    """The gradients of a sum of losses, by parameter."""
    model.zero_grad()
    sum(losses).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_the_projector_climbs_what_the_adversary_descends():
    model = make_model(adversary_weight=0.5, adversary_decay=0.2)
    torch.nn.init.normal_(model.adversary.weight)
    feats, lens = pad_batch(make_utterances([5, 9, 6], DIM))
    speaker = torch.tensor([2, -1, 0])  # one of them unknown
    logits = model(feats, lens)
    (loss,) = model.losses(logits, SimpleNamespace(speaker=speaker)).values()
    found = take_gradients(model, [loss])

    scores = model.adversary(model.pool(feats, lens))
    plain = F.cross_entropy(scores[[0, 2]], speaker[[0, 2]]) * 2 / 3
    decay = 0.2 * model.adversary.weight.square().sum()
    assert_near(loss, plain + decay)
    expected = take_gradients(model, [plain, decay])
    assert found.keys() == expected.keys()
    assert not [name for name in found if name.startswith("classifier")]
    for name, gradient in found.items():
        is_adversary = name.startswith("adversary")
        assert_near(gradient, (1.0 if is_adversary else -0.5) * expected[name])


def test_speakers_that_do_not_train_are_none_to_tell_apart():
    model = make_model(max_speakers=3)
    hook = [
        PaddedBatch([{"feats": x, "speaker_index": n}])
        for n, x in enumerate(make_utterances([5, 9], DIM))
    ]
    model.before_fit(hook)
    feats, lens = pad_batch(make_utterances([5, 9, 6], DIM))
    speaker = torch.tensor([-1, -1, -1])
    logits = model(feats, lens)
    batch = SimpleNamespace(speaker=speaker)
    assert model.losses(logits, batch)["speaker_loss"].item() == 0.0
    batch.speaker = torch.tensor([0, 1, 0])
    found = model.losses(logits, batch)["speaker_loss"].item()
    assert found == pytest.approx(np.log(2))  # as it starts, of two
    more = [
        PaddedBatch([{"feats": x.feats.data[0], "speaker_index": 3}])
        for x in hook
    ]
    with pytest.raises(RecipeError, match="4 speakers train.*max_speakers=3"):
        model.before_fit(more)


def test_the_adversary_takes_the_speaker_out_of_the_representation():
    numbers = torch.arange(160)
    emotion, speaker = numbers % CLASSES, numbers // CLASSES % SPEAKERS
    source = generator(1)
    kinds = torch.randn(2, 4, DIM, generator=source)
    centres = kinds[0][emotion] + kinds[1][speaker]
    centres = centres + 0.5 * torch.randn(160, DIM, generator=source)
    feats = centres[:, None] + 0.3 * torch.randn(160, 5, DIM, generator=source)
    folds = [n % 5 for n in torch.randperm(160, generator=source).tolist()]

    def probe(adversary_weight):
        """Trains, and probes: the UA of speakers, and of emotions."""
        model = make_model(
            adversary_weight=adversary_weight, max_speakers=SPEAKERS
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(300):
            chosen = torch.randint(160, [32], generator=source)
            logits = model(feats[chosen])
            batch = SimpleNamespace(speaker=speaker[chosen])
            losses = model.losses(logits, batch)
            losses["cross_entropy"] = F.cross_entropy(logits, emotion[chosen])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        pooled = model.eval().pool(feats).detach().double().numpy()
        return [
            cross_validate_probe(pooled, list(map(str, x.tolist())), folds)
            for x in (speaker, emotion)
        ]

    before, _ = probe(0.0)
    after, of_emotions = probe(10.0)
    assert before > 0.45 and after < 0.35 and of_emotions > 0.9
