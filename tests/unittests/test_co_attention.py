"""Co-att: segments by hand; its result is an utterance's own."""

import pytest
import torch
from helpers import assert_near, make_utterances, pad_batch, randomise_
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_wap.baselines.co_attention import CoAttention
from speechbrain_wap.errors import RecipeError

SIZES = {"speech": 5, "mfcc": 6, "spectrogram": 400}
SEGMENT, CLASSES = 32, 3
# of the encoder's frames, and by how many more the others have
LENGTHS, MORE = [5, 70, 1, 64], {"speech": 0, "mfcc": 1, "spectrogram": 1}


def make_model(**options):
    """Makes a small model with random numbers all over, in eval mode."""
    torch.manual_seed(0)
    options = {"segment_frames": SEGMENT, "lstm_size": 4, **options}
    options = {"cnn_channels": [3] * 5, "embedding_size": 7, **options}
    model = CoAttention(SIZES, **options)
    model.set_classes(CLASSES)
    return randomise_(model, scale=0.2).eval()


def make_streams(lengths, num_layers=1):
    """Draws utterances by the streams' names."""
    layers = {"speech": [num_layers] * (num_layers > 1)}
    return {
        name: make_utterances(
            [n + MORE[name] for n in lengths], *layers.get(name, []), size
        )
        for name, size in SIZES.items()
    }


def pad_streams(streams, fill=0.0, more=0):
    """Pads each stream by itself: frames and relative lengths by name."""
    padded = {
        name: pad_batch(utterances, fill, max(map(len, utterances)) + more)
        for name, utterances in streams.items()
    }
    return [{name: pair[n] for name, pair in padded.items()} for n in (0, 1)]


def pick(streams, *numbers):
    """Takes some utterances of all streams."""
    return {name: [x[n] for n in numbers] for name, x in streams.items()}


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("fill", [1e4, float("nan")])
@pytest.mark.parametrize("is_masked", [False, True])
def test_an_utterances_logits_do_not_depend_on_its_batch(
    num_layers, fill, is_masked
):
    model = make_model(num_encoder_layers=num_layers)
    streams = make_streams(LENGTHS, num_layers)
    feats, lens = pad_streams(streams, fill, more=30)
    mask = None
    if is_masked:
        mask = {x: torch.rand(feats[x].shape[:2]) < 0.4 for x in SIZES}
    logits = model(feats, lens, mask)
    assert torch.isfinite(logits).all()
    for number in range(len(LENGTHS)):
        alone = pick(streams, number)
        hidden = mask and {
            name: mask[name][[number], : len(alone[name][0])] for name in SIZES
        }
        assert_near(model(*pad_streams(alone), hidden)[0], logits[number])
    feats, lens, mask = (
        one and {name: x.flip(0) for name, x in one.items()}
        for one in (feats, lens, mask)
    )
    assert_near(model(feats, lens, mask).flip(0), logits)


@torch.no_grad()
def test_segments_are_those_of_the_paper_and_averaged():
    model = make_model()
    streams = make_streams([70])
    model.before_fit(
        [
            PaddedBatch([{f"feats_{name}": x[n] for name, x in other.items()}])
            for other in [make_streams([9, 30])]
            for n in range(2)
        ]
    )
    logits = []
    for start in (0, 32, 64):  # the third has six frames, and zeros
        segment = {}
        for name, (x,) in streams.items():
            stream = model.streams[name]
            x = (x - stream.input_mean) / stream.input_std
            segment[name] = torch.zeros(SEGMENT, SIZES[name])
            part = x[start:][:SEGMENT]
            segment[name][: len(part)] = part
        mfcc = model.lstm(segment["mfcc"][None])[0].reshape(1, -1)
        mfcc = model.embed_mfcc(mfcc)
        image = torch.zeros(1, 1, 200, 2 * SEGMENT)
        for step, pair in enumerate(segment["spectrogram"]):
            image[0, 0, :, 2 * step] = pair[:200]
            image[0, 0, :, 2 * step + 1] = pair[200:]
        image = model.convolutions(image).reshape(1, -1)
        spectrogram = model.embed_spectrogram(image)
        weights = model.weigh(torch.cat([spectrogram, mfcc], dim=1))[0]
        assert (weights >= 0).all() and weights.any()
        weighted = sum(w * x for w, x in zip(weights, segment["speech"]))
        speech = model.embed_speech(weighted[None])
        fused = model.fuse(torch.cat([spectrogram, mfcc, speech], dim=1))
        logits.append(model.classifier(fused)[0])
    assert_near(model(*pad_streams(streams))[0], sum(logits) / 3)


def test_a_frame_more_than_the_encoder_has_makes_no_segment():
    model = make_model()
    streams = make_streams([2 * SEGMENT])  # of the others, 2 * SEGMENT + 1
    fewer = {name: [x[0][: 2 * SEGMENT]] for name, x in streams.items()}
    assert_near(model(*pad_streams(streams)), model(*pad_streams(fewer)))


def test_losses_reach_all_parameters_and_all_frames_but_no_padding():
    model = make_model(num_encoder_layers=2).train()
    feats, lens = pad_streams(make_streams(LENGTHS, 2))
    feats = {name: x.requires_grad_() for name, x in feats.items()}
    model(feats, lens)[:, 0].sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("classifier"):
            assert parameter.grad.abs().sum() > 0, name
    for name, x in feats.items():
        for row, n in zip(x.grad, LENGTHS):
            assert not row[n + MORE[name] :].any()
            assert row[:n].any() or n == 1  # whose weight may be 0


def test_it_learns_in_bf16_what_it_does_in_float32():
    model = make_model()
    feats, lens = pad_streams(make_streams(LENGTHS))
    expected = model(feats, lens)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(feats, lens)
    logits.sum().backward()
    assert model.lstm.weight_ih_l0.grad.any()
    assert_near(logits.float(), expected, atol=0.05)


def test_a_checkpoint_is_the_whole_system():
    model, other = make_model(), make_model()
    streams = make_streams(LENGTHS)
    model.before_fit(
        [
            PaddedBatch(
                [{f"feats_{name}": x[n] for name, x in streams.items()}]
            )
            for n in range(len(LENGTHS))
        ]
    )
    other.load_state_dict(randomise_(model, seed=5).state_dict())
    given = pad_streams(streams)
    assert torch.equal(model(*given), other(*given))
    for name, stream in model.streams.items():
        frames = torch.cat(streams[name])
        assert_near(stream.input_mean, frames.mean(dim=0))
        assert_near(stream.input_std, frames.std(dim=0, unbiased=False))


def test_what_does_not_fit_is_named():
    for sizes in (80, {"speech": 5, "mfcc": 6}):
        with pytest.raises(RecipeError, match="speech, mfcc, spectrogram"):
            CoAttention(sizes)
    for channels, says in (
        ([3, 3], r"=\[3, 3\] must be a list of five"),
        (3, "=3 must be a list of five"),
        ([4.5, 4, 4, 4, 4], "=4.5 must be a whole"),
        ([0] * 5, "=0 must be a whole"),
    ):
        with pytest.raises(RecipeError, match=f"cnn_channels{says}"):
            make_model(cnn_channels=channels)
    streams = make_streams([19])
    streams["speech"][0] = streams["speech"][0][:12]
    with pytest.raises(RecipeError, match="mfcc has 20 .* the encoder has 12"):
        make_model()(*pad_streams(streams))
