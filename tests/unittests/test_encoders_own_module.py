"""Encoders of a user's: what they may return is understood or named."""

import re
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from encoder_cases import Blocks
from speechbrain.integrations.huggingface import wav2vec2, wavlm, whisper
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from transformers.modeling_outputs import BaseModelOutput

from speechbrain_wap.data.datasets import extract_features
from speechbrain_wap.encoders import get_encoder_dim
from speechbrain_wap.encoders.own_module import check_module, run_module
from speechbrain_wap.errors import RecipeError


@dataclass
class Output:
    """As several toolkits return it."""

    last_hidden_state: torch.Tensor
    attentions: None = None


Named = namedtuple("Named", "frames lengths")


class Own(Blocks):
    """Makes something of the frames [B, T, D]."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, wavs, lens):
        return self.make(super().forward(wavs, lens))


def count(frames):
    return torch.tensor([frames.shape[1]])


class SamplesOnly(Blocks):
    """Has no use for lengths."""

    def forward(self, wavs):
        return super().forward(wavs, None)


class AbsoluteLengths(Blocks):
    """Takes lengths in samples, as torchaudio's models do."""

    def forward(self, wavs, lens):
        return super().forward(wavs, lens), torch.div(lens, 320).int()


@pytest.mark.parametrize(
    "make",
    [
        lambda z: z,
        lambda z: z.half(),
        lambda z: z.double(),
        lambda z: (z, count(z)),
        lambda z: [z, torch.ones(1)],
        lambda z: (z, None),
        lambda z: (z,),
        lambda z: Named(z, count(z)),
        lambda z: Output(z),
        lambda z: BaseModelOutput(last_hidden_state=z, hidden_states=(z, z)),
        lambda z: {"last_hidden_state": z, "mask": None},
    ],
)
def test_frames_are_found_in_what_is_usually_returned(make):
    encoder, wavs = Own(make), torch.rand(1, 6400)
    check_module(encoder)
    found = run_module(encoder, wavs).float()
    expected = Blocks()(wavs, None)
    assert torch.allclose(found, expected, atol=1e-3)
    assert get_encoder_dim(encoder) == 320
    assert encoder.training  # as it was


def test_an_encoder_may_take_samples_alone():
    for encoder in (SamplesOnly(), Fbank(), Fbank(deltas=True)):
        check_module(encoder)
        assert run_module(encoder, torch.rand(1, 8000)).shape[1] in (25, 51)


class OptionalMask(Blocks):
    """As transformers' models, whose second argument is no length."""

    def forward(self, wavs, attention_mask=None):
        assert attention_mask is None
        return super().forward(wavs, None)


class OptionalSamples(Blocks):
    """As torchaudio's models, whose lengths are in samples."""

    def forward(self, wavs, lengths=None):
        frames = super().forward(wavs, None)
        if lengths is not None:
            frames[:, int(lengths) // 320 :] = 0.0
            lengths = torch.div(lengths, 320, rounding_mode="floor")
        return frames, lengths


@pytest.mark.parametrize("encoder", [OptionalMask(), OptionalSamples()])
def test_what_need_not_be_given_is_not_unless_it_is_called_lens(encoder):
    check_module(encoder)
    wavs = torch.rand(1, 6400)
    assert torch.equal(run_module(encoder, wavs), Blocks()(wavs, None))


@pytest.mark.parametrize(
    "encoder, sentence",
    [
        (Own(lambda z: z.mean(dim=1)), "gives [1, 320] .*before it sums"),
        (
            Own(lambda z: z.mean(dim=1, keepdim=True)),
            "gives 1 frames .*and 1 for tw",
        ),
        (Own(lambda z: z[:, :20]), "gives 20 frames .*and 20 for two: it sums"),
        (
            Own(lambda z: z.mT),
            "gives [1, 320, 50] .*: transpose it",
        ),
        (Own(lambda z: z[0]), "gives [50, 320] for one utterance, without a d"),
        (Own(lambda z: (z, 0.02 * torch.ones(1))), "says that 0.02 of its 50"),
        (Own(lambda z: z.flatten(1)), "gives [1, 16000] for one utterance"),
        (Own(lambda z: torch.stack([z, z])), "gives [2, 1, 50, 320]"),
        (Own(lambda z: z.repeat(2, 1, 1)), "gives [2, 50, 320] for one utt"),
        (Own(lambda z: z[:, :0]), "gives [1, 0, 320] for one utterance"),
        (Own(lambda z: z * 1j), "gives torch.complex64: frames must be real"),
        (Own(lambda z: z.long()), "gives torch.int64: frames must be real"),
        (Own(lambda z: z > 0), "gives torch.bool: frames must be real"),
        (Own(lambda z: z / 0), "gives frames that are NaN"),
        (Own(lambda z: (z, z)), "returns a tuple of 2 ([1, 50, 320], [1, 50"),
        (Own(lambda z: [z] * 13), "returns a list of 13 (.*, ...): put a"),
        (
            Own(lambda z: {"feats": z}),
            "returns a mapping .* feats: put",
        ),
        (Own(lambda z: z.numpy()), "returns a ndarray: put a module"),
        (Own(lambda z: None), "returns a NoneType"),
        (Own(lambda z: z.nothing), "fails on 1 s of .* (AttributeError: "),
        (AbsoluteLengths(), "says that 0 of its 50 frames count: lengths are"),
        (ECAPA_TDNN(80, lin_neurons=8), "fails on 1 s of sound at 16000"),
        (torch.nn.Identity, "is no torch.nn.Module: wire one with !new:"),
    ],
)
def test_what_gives_no_frames_is_named_with_the_reason(encoder, sentence):
    parts = map(re.escape, sentence.split(".*"))
    pattern = rf"^encoder \(\w+\) {'.*'.join(parts)}"
    with pytest.raises(RecipeError, match=pattern) as error:
        check_module(encoder)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(RecipeError, match=pattern):
        get_encoder_dim(encoder)


def test_the_size_that_an_encoder_says_it_has_is_the_frames():
    encoder = Blocks()
    encoder.output_size = 7
    with pytest.raises(RecipeError, match="output_size=7, but gives .* 320 d"):
        check_module(encoder)


def test_a_normaliser_is_not_tried_on_silence():
    class Normalised(Blocks):
        def forward(self, wavs, lens):
            return super().forward(wavs / wavs.std(), lens)

    check_module(Normalised())


@pytest.mark.parametrize(
    "wrapper, kind",
    [(wav2vec2.Wav2Vec2, "hubert"), (wavlm.WavLM, "wavlm")],
)
def test_speechbrains_wrappers_can_be_wired(sources, tmp_path, wrapper, kind):
    encoder = wrapper(sources[kind], str(tmp_path))
    check_module(encoder)
    assert get_encoder_dim(encoder) == 16


def test_speechbrains_whisper_pads_and_is_refused(sources, tmp_path):
    encoder = whisper.Whisper(
        sources["whisper"], str(tmp_path), encoder_only=True, freeze=True
    )
    with pytest.raises(RecipeError, match=r"\(Whisper\) gives 1500 fr"):
        check_module(encoder)


def test_a_fault_of_the_encoder_is_said_before_any_utterance_is_encoded(
    make_cache, prepare_classifier, tmp_path
):
    splits = prepare_classifier(1, "held_out")
    cache = make_cache(Own(lambda z: z.mean(dim=1)))
    csv = tmp_path / "skipped.csv"
    with pytest.raises(RecipeError, match=r"^encoder \(Own\) gives \[1, 320\]"):
        extract_features(cache, splits, csv, 0.5)
    assert not csv.exists() and not list(tmp_path.rglob("*.safetensors"))
    cache = make_cache(Own(lambda z: (z, count(z))))
    assert extract_features(cache, splits, csv, 0.0) == splits
