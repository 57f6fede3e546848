"""LPMN against its formulas in loops; what its selection keeps."""

import numpy as np
import pytest
import torch
from helpers import assert_near, make_utterances, pad_batch, randomise_
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_wap.baselines.lpmn import LPMN
from speechbrain_wap.errors import RecipeError

DIM, K, CLASSES = 5, 10, 3
LENGTHS = [5, 9, 1, 6]


def make_model(**options):
    """Makes a small model with random numbers all over."""
    options = {"num_prototypes": K, "d_model": 4, **options}
    model = LPMN(DIM, **options)
    model.set_classes(CLASSES)
    return randomise_(model).eval()


def make_batches(utterances):
    """Batches of one utterance each, as hooks see them."""
    return [PaddedBatch([{"feats": x}]) for x in utterances]


@torch.no_grad()
def embed_with_numpy(model, x):
    """The frames z of an utterance, in float64."""
    x = x.double().numpy() - model.input_mean.numpy()
    x = x / model.input_std.numpy()
    z = x @ model.projection.weight.numpy().T + model.projection.bias.numpy()
    z = z - z.mean(axis=1, keepdims=True)
    return z / np.sqrt(z.var(axis=1, keepdims=True) + 1e-5)


def test_mappings_are_the_similarities_of_the_most_similar_frames():
    utterances = make_utterances(LENGTHS, DIM)
    model = make_model()
    model.before_fit(make_batches(make_utterances([8, 8, 3], DIM, seed=1)))
    randomise_(model, seed=2)
    weight = model.classifier.w.weight.detach().numpy()
    logits = model(*pad_batch(utterances, float("nan")))
    for row, x in zip(logits, utterances):
        z, mappings = embed_with_numpy(model, x), []
        for p in model.prototypes.codebook.detach().double().numpy():
            cosines = [f @ p / np.sqrt((f @ f) * (p @ p)) for f in z]
            mappings.append(max(cosines))
        mappings = (np.array(mappings) - model.mean.numpy()) / model.std.numpy()
        bias = model.classifier.w.bias.detach().numpy()
        assert_near(row, weight @ mappings + bias, atol=1e-4)


@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_quantisation_loss_is_that_of_vq_vae(commitment):
    model = make_model(commitment=commitment, quantisation_weight=2.0)
    utterances = make_utterances(LENGTHS, DIM)
    expected = []
    for x in utterances:
        errors = []
        for f in embed_with_numpy(model, x):
            p = model.prototypes.codebook.detach().numpy()
            errors.append(((f - p) ** 2).mean(axis=1).min())
        expected.append(2.0 * (1.0 + commitment) * np.mean(errors))
    feats, lens = pad_batch(utterances, float("nan"))
    logits = model(feats, lens)
    loss = model.losses(logits, None)["quantisation"]
    assert_near(loss, np.mean(expected), atol=1e-4)
    # of the utterances that are in the batch, as of each by itself
    loss = model.losses(logits[:-1], None)["quantisation"]
    assert_near(loss, np.mean(expected[:-1]), atol=1e-4)


def test_quantisation_loss_moves_nearest_prototypes_and_frames_only():
    for commitment in (0.0, 0.25):
        model = make_model(commitment=commitment)
        feats, lens = pad_batch(make_utterances(LENGTHS, DIM))
        logits = model(feats, lens)
        model.losses(logits, None)["quantisation"].backward()
        moved = model.prototypes.codebook.grad.abs().sum(dim=1) > 0
        nearest = model.prototypes.assign(model.latest[0]).unique()
        assert moved.nonzero()[:, 0].tolist() == nearest.tolist()
        assert 1 < len(nearest) < K
        reaches_frames = bool(model.projection.weight.grad.any())
        assert reaches_frames == (commitment > 0)
        assert model.classifier.w.weight.grad is None


def test_quantisation_loss_falls():
    model = make_model()
    feats, lens = pad_batch(make_utterances([30] * 8, DIM))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        logits = model(feats, lens)
        losses.append(model.losses(logits, None)["quantisation"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_prototypes_start_on_training_frames():
    model = make_model()
    batches = make_batches(make_utterances([12, 30, 2], DIM))
    model.before_fit(batches)
    z = torch.cat([model.embed(b.feats.data)[0] for b in batches])
    codebook = model.prototypes.codebook.detach()
    distances = (codebook[:, None] - z.detach()).norm(dim=-1)
    distances, frames = distances.min(dim=1)
    assert distances.max() < 1e-5
    assert len(frames.unique()) == K
    mappings = torch.cat([model.pool(b.feats.data) for b in batches])
    assert_near(mappings.mean(dim=0), torch.zeros(K))
    assert_near(mappings.std(dim=0, unbiased=False), torch.ones(K))
    again = make_model()
    again.before_fit(make_batches(make_utterances([12, 30, 2], DIM)))
    assert torch.equal(again.prototypes.codebook, codebook)
    # mappings that do not vary are only shifted
    again.before_fit(make_batches(make_utterances([12], DIM) * 3))
    assert torch.equal(again.std, torch.ones(K))


@pytest.mark.parametrize("selection, kept", [(1.0, K), (0.6, 6), (0.01, 1)])
def test_selection_keeps_the_prototypes_that_move_the_logits_most(
    selection, kept
):
    model = make_model(selection=selection)
    utterances = make_utterances([12, 30, 2, 7], DIM)
    batches = make_batches(utterances)
    feats, lens = pad_batch(utterances)
    with torch.no_grad():  # what all classes share moves no decision
        model.classifier.w.weight[:, ::2] += 5.0
    before = model(feats, lens).mean(dim=0)
    mappings = model.pool(feats, lens).detach().numpy()
    model.kept[:8] = selection == 1.0  # an earlier selection
    for _ in range(2):  # the second call changes nothing
        model.after_fit(batches)
        assert int(model.kept.sum()) == kept
    weight = model.classifier.w.weight.detach().numpy()
    effects = [
        np.sqrt(sum((w - np.mean(weight[:, k])) ** 2 for w in weight[:, k]))
        * np.std(mappings[:, k])
        for k in range(K)
    ]
    best = sorted(range(K), key=lambda k: -effects[k])[:kept]
    assert model.kept.nonzero()[:, 0].tolist() == sorted(best)
    # no class gains by what is left out
    logits = model(feats, lens)
    assert_near(logits.mean(dim=0), before, atol=1e-3)
    # what is left out is without effect, and only that
    for k in range(K):
        other = make_model()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.prototypes.codebook[k].neg_()
        is_alike = torch.equal(other(feats, lens), logits)
        assert is_alike == (k not in best)


def test_a_value_that_does_not_fit_is_named():
    for option in ({"selection": 0}, {"selection": 2}, {"num_prototypes": 0}):
        (name,) = option
        with pytest.raises(RecipeError, match=f"{name}={option[name]} must be"):
            make_model(**option)
