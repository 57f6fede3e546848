"""What several unit tests share: batches, random parameters, differences."""

import torch


def generator(seed=0):
    """Makes a source of random numbers for a test's data."""
    return torch.Generator().manual_seed(seed)


def make_utterances(num_frames, *shape, seed=0):
    """Draws utterances of the given lengths, each [n, *shape]."""
    source = generator(seed)
    return [torch.randn(n, *shape, generator=source) for n in num_frames]


def pad_batch(utterances, fill=0.0, num_steps=None):
    """Pads utterances to frames [B, T, ...] and relative lengths [B]."""
    longest = num_steps or max(len(utterance) for utterance in utterances)
    shape = len(utterances), longest, *utterances[0].shape[1:]
    feats = torch.full(shape, fill, dtype=utterances[0].dtype)
    for row, utterance in zip(feats, utterances):
        row[: len(utterance)] = utterance
    lens = torch.tensor([len(u) / longest for u in utterances])
    return feats, lens


def randomise_(module, seed=0, scale=0.4):
    """Draws all parameters anew, so that none is at a value that hides it."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=scale, generator=source)
    return module


def assert_near(actual, expected, atol=1e-5):
    """Compares values in float64: NaN equals nothing, shapes count."""
    actual, expected = (
        torch.as_tensor(values).detach().double()
        for values in (actual, expected)
    )
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0.0)
