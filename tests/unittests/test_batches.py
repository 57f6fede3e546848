"""Batches: joined frames, their padding, their masks, in any process."""

import multiprocessing

import pytest
import torch
from helpers import make_utterances, pad_batch
from torch.utils.data import DataLoader

from speechbrain_wap.augmentation import Augmentation
from speechbrain_wap.data.batches import Collate, pad_frames
from speechbrain_wap.data.datasets import make_labelled_dataset
from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
from speechbrain_wap.features.cache import FeatureCache
from speechbrain_wap.masking import UtteranceMasks


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("lengths", [[5], [4, 4], [3, 7, 1, 7]], ids=str)
def test_frames_travel_joined_and_are_padded_where_they_are_used(
    lengths, shape
):
    utterances = [x.half() for x in make_utterances(lengths, *shape)]
    batch = Collate()([{"feats": x} for x in utterances])
    assert batch.feats.data.shape == (sum(lengths), *shape)
    feats, lens = pad_frames(batch.feats, "cpu")
    for value, expected in zip((feats, lens), pad_batch(utterances)):
        assert value.dtype == expected.dtype and torch.equal(value, expected)


def test_masks_are_those_of_the_epoch_and_of_what_they_depend_on():
    utterances = [
        {"id": key, "feats": torch.ones(n, 2), "mask_probability": probability}
        for key, n, probability in (("a", 9, 0.0), ("b", 4, 1.0))
    ]
    masks = UtteranceMasks(0.4)
    collate = Collate(masks)
    for epoch in (0, 3):  # 0 is where it starts
        collate.epoch.fill_(epoch)
        expected = masks(["a", "b"], torch.tensor([9, 4]), epoch)
        assert torch.equal(collate(utterances).masks["feats"], expected)
    augment = Augmentation("mask", 0.5).mask
    mask = Collate(augment, ["id", "mask_probability"])(utterances).masks
    assert mask["feats"].sum(dim=1).tolist() == [0, 2]


# An epoch by worker processes ------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Eight utterances, of whose cache the encoder cannot be pickled."""
    cache = FeatureCache(tmp_path, SpeechEncoder("fbank"))
    cache.encoder.hook = lambda: None
    entries = {}
    for number, frames in enumerate(make_utterances(range(2, 10), 80)):
        digest = f"{number:032x}"
        cache.write(digest, frames, 1.0)
        entries[f"u{number}"] = {
            "digest": digest,
            "label": "ab"[number % 2],
            "speaker": "xyz"[number % 3],
        }
    return make_labelled_dataset(
        entries,
        {"": cache},
        ["a", "b"],
        ["x", "y"],
        max_frames=8,
        long_utterances="cut",
    )


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_make_the_same_batches_however_they_start(
    dataset, method, record_fault
):
    collate = Collate(UtteranceMasks(0.4))
    collate.epoch.share_memory_()
    shared = {"batch_size": 4, "collate_fn": collate}
    loader = DataLoader(
        dataset,
        num_workers=1,
        multiprocessing_context=method,
        persistent_workers=True,
        **shared,
    )
    for epoch in (1, 2):  # workers that stay see the next one, too
        collate.epoch.fill_(epoch)
        batches = zip(loader, DataLoader(dataset, **shared), strict=True)
        for batch, expected in batches:
            assert batch.id == expected.id
            for key in ("target", "speaker_index"):
                assert torch.equal(batch[key], expected[key])
            assert torch.equal(batch.feats.data, expected.feats.data)
            mask = expected.masks["feats"]
            assert torch.equal(batch.masks["feats"], mask)
    record_fault(
        "modules", f"workers that start by {method}", "same batches", ""
    )
