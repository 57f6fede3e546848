"""The recogniser: windows say what files say, and silence is silence."""

import re

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_wap import inference
from speechbrain_wap.emotion_model import AveragedModels
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.inference import EmotionRecognizer


@pytest.fixture(scope="module")
def recognizer(model):
    return EmotionRecognizer.from_hparams(model)


@pytest.fixture
def talk(tmp_path, write_sound):
    """Two stretches of speech; the first has both classes."""
    parts = [("", 1), ("low", 6), ("high", 5), ("", 2), ("high", 1), ("", 1)]
    return write_sound(tmp_path / "talk.wav", *parts)


def test_a_file_is_classified_as_speechbrain_does(
    recognizer, tmp_path, write_sound
):
    path = write_sound(tmp_path / "a.wav", ("high", 1))
    probabilities, score, index, label = recognizer.classify_file(path)
    assert probabilities.shape == (1, 2) and score.shape == index.shape == (1,)
    assert label == ["high"] == [recognizer.classes[index[0]]]
    assert float(score) == float(probabilities.max()) > 0.5
    assert float(probabilities.sum()) == pytest.approx(1)


def test_any_rate_format_and_number_of_channels_is_taken(
    recognizer, tmp_path, write_sound
):
    expected = recognizer.classify_file(
        write_sound(tmp_path / "a.wav", ("low", 1))
    )[0]
    for name, settings in {
        "b.wav": {"rate": 8000},
        "c.flac": {"rate": 44100, "channels": 2},
        "d.wav": {"channels": 11, "subtype": "FLOAT"},
        "e.mp3": {"rate": 22050},
    }.items():
        path = write_sound(tmp_path / name, ("low", 1), **settings)
        found, _, _, label = recognizer.classify_file(path)
        assert label == ["low"], name
        assert (found - expected).abs().max() < 0.2, name


def test_a_batch_gives_each_what_it_gets_alone(recognizer):
    lengths = [16000, 400, 7777]
    wavs = torch.rand(3, 16000)  # not silent where there is padding
    lens = torch.tensor(lengths) / 16000
    together = recognizer.classify_batch(wavs, lens)[0]
    for row, wav, length in zip(together, wavs, lengths):
        alone = recognizer(wav[:length])[0][0]
        torch.testing.assert_close(row, alone, atol=1e-6, rtol=0)


def test_windows_say_what_the_file_says_there(recognizer, talk):
    (segments,) = recognizer.diarize_file(talk, merge=False).values()
    spoken = [s for s in segments if s["emotion"] != "silence"]
    assert len(spoken) > 5
    for segment in spoken:
        (part,) = segment["windows"]
        assert part[1] - part[0] <= 4.0 + 1e-9
        probabilities, score, _, (label,) = recognizer.classify_file(
            talk, *part
        )
        assert segment["emotion"] == label
        assert segment["score"] == float(score)
        assert segment["probabilities"] == dict(
            zip(["low", "high"], probabilities[0].tolist())
        )
        # what it speaks for, it has heard
        assert part[0] <= segment["start"] < segment["end"] <= part[1]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("window, hop", [(4.0, 2.0), (2.5, 2.5), (1.0, 0.7)])
def test_segments_cover_the_recording_once(
    recognizer, talk, merge, window, hop
):
    found = recognizer.diarize_file(talk, window, hop, merge=merge)
    assert list(found) == [talk]
    segments = found[talk]
    assert segments[0]["start"] == 0.0 and segments[-1]["end"] == 16.0
    for one, other in zip(segments, segments[1:]):
        assert one["end"] == other["start"]
    silence = [s for s in segments if s["emotion"] == "silence"]
    assert len(silence) == 3
    assert all(set(s) == {"start", "end", "emotion"} for s in silence)
    if merge:
        emotions = [segment["emotion"] for segment in segments]
        assert [emotions[0], *emotions[2:]] == [
            *("silence", "high", "silence", "high", "silence")
        ] or emotions == [
            *("silence", "low", "high", "silence", "high", "silence")
        ]
        border = segments[1]["end"]
        assert border == pytest.approx(7.0, abs=window / 2 + hop / 2)


def test_a_stretch_has_an_end_whatever_its_length_rounds_to(
    recognizer, monkeypatch
):
    scores = torch.tensor([[0.5, 0.5]])
    monkeypatch.setattr(recognizer, "classify_file", lambda *_: [scores])
    for start, end, window, count in (
        *((0.0, 15.94, 2.2, 14), (0.0, 20.4, 4.4, 9), (0.0, 0.3, 0.1, 5)),
        *((0.0, 2.2, 2.2, 1), (3.51, 4.61, 1.1, 1)),
    ):
        stretch = start, end, window, window / 2
        parts = recognizer._classify_stretch("a", *stretch)
        windows = [tuple(part["windows"][0]) for part in parts]
        assert len(windows) == len({*windows}) == count
        assert parts[-1]["end"] == windows[-1][1] == end


def test_what_is_merged_has_the_mean_of_its_windows(recognizer, talk):
    (parts,) = recognizer.diarize_file(talk, merge=False).values()
    (segments,) = recognizer.diarize_file(talk).values()
    spoken = [s for s in segments if s["emotion"] != "silence"]
    parts = [s for s in parts if s["emotion"] != "silence"]
    for segment in spoken:
        mine = [p for p in parts if p["windows"][0] in segment["windows"]]
        assert len(mine) == len(segment["windows"])
        for name, value in segment["probabilities"].items():
            mean = np.mean([p["probabilities"][name] for p in mine])
            assert value == pytest.approx(mean)
        assert segment["score"] == segment["probabilities"][segment["emotion"]]


def test_nothing_but_windows_is_decoded(recognizer, talk, monkeypatch):
    decoded = []

    def read(path, sample_rate, start=None, end=None):
        decoded.append((start, end))
        return read_audio(path, sample_rate, start, end)

    read_audio = inference.read_audio
    monkeypatch.setattr(inference, "read_audio", read)
    (segments,) = recognizer.diarize_file(talk).values()
    windows = [
        tuple(window) for s in segments for window in s.get("windows", ())
    ]
    assert decoded == windows
    assert max(end - start for start, end in decoded) <= 4.0 + 1e-9


def test_short_and_silent_recordings(recognizer, tmp_path, write_sound):
    path = write_sound(tmp_path / "short.wav", ("high", 0.5))
    (segment,) = recognizer.diarize_file(path)[path]
    assert (segment["start"], segment["end"]) == (0.0, 0.5)
    assert segment["windows"] == [[0.0, 0.5]]
    whole = recognizer.classify_file(path)[0][0].tolist()
    assert list(segment["probabilities"].values()) == pytest.approx(whole)
    path = write_sound(tmp_path / "silent.wav", ("", 3))
    assert recognizer.diarize_file(path)[path] == [
        {"start": 0.0, "end": 3.0, "emotion": "silence"}
    ]


def test_another_detector_may_say_where_speech_is(recognizer, talk):
    speech = [[2.0, 5.0], [5.0, 6.5], [13.0, 13.5]]  # as SpeechBrain's has it
    (segments,) = recognizer.diarize_file(
        talk, merge=False, speech=speech
    ).values()
    spoken = [s for s in segments if "windows" in s]
    assert [s["windows"] for s in spoken] == [[part] for part in speech]
    assert [s["emotion"] for s in segments[::3]] == ["silence", "silence"]
    assert segments[-1]["end"] == 16.0
    for wrong in ([[3, 2]], [[0, 2], [1, 3]], [[-1, 2]]):
        with pytest.raises(RecipeError, match="does not follow what ends at"):
            recognizer.diarize_file(talk, speech=wrong)
    with pytest.raises(RecipeError, match="lasts 16.000 s, but"):
        recognizer.diarize_file(talk, speech=[[14, 20]])


@pytest.mark.parametrize(
    "numbers, says",
    [
        ({"window": 0}, "window=0 must be a number from 0.1 to "),
        ({"window": 99.0}, "window=99.0 must be a number from 0.1 to "),
        # more is encoded than is used
        ({"window": 10.5}, "window=10.5 must be a number from 0.1 to 10"),
        ({"window": float("nan")}, "window=nan must be"),
        ({"hop": -1}, "hop=-1 must be a number of at least 0.01"),
        ({"hop": 1e-30}, "hop=1e-30 must be"),
        ({"hop": "2"}, "hop=2 must be"),
        ({"pause": -1}, "pause=-1 must be a number of at least 0"),
        ({"quiet": float("inf")}, "quiet=inf must be finite"),
    ],
)
def test_lengths_that_are_none_are_refused(recognizer, talk, numbers, says):
    with pytest.raises(RecipeError, match=says):
        recognizer.diarize_file(talk, **numbers)


def test_what_is_too_long_for_the_model_is_refused_or_cut(
    make_model, recognizer, tmp_path, write_sound
):
    path = write_sound(tmp_path / "a.wav", ("low", 8), ("high", 18))
    with pytest.raises(
        RecipeError, match="a.wav: 26.0 s are 1301 frames, .* the 500 .*--long"
    ):
        recognizer.classify_file(path)
    cut = EmotionRecognizer.from_hparams(make_model(long_utterances="cut"))
    seconds = []
    encode = cut.mods.feats_encoder.forward

    def watch(wavs, lens):
        seconds.append(wavs.shape[1] / 16000)
        return encode(wavs, lens)

    cut.mods.feats_encoder.forward = watch
    found, _, _, label = cut.classify_file(path)
    assert label == ["low"]
    whole, _ = soundfile.read(path, dtype="float32")
    batch = cut.classify_batch(torch.from_numpy(whole))[0]
    torch.testing.assert_close(batch, found)
    assert max(seconds) <= cut.longest + 0.01 < 26


@pytest.mark.parametrize(
    "name, spoil, says, long",
    [
        ("text.wav", lambda p: p.write_text("no audio" * 99), None, None),
        ("empty.wav", lambda p: p.write_bytes(b""), "it is empty", None),
        ("gone.wav", lambda p: None, "does not exist", None),
        ("folder.wav", lambda p: p.mkdir(), "it is a folder", None),
        (
            "short.wav",
            lambda p: soundfile.write(p, np.zeros(160), 16000),
            "fbank",
            "is too short: of less than 0.1 s",
        ),
        (
            "nothing.wav",
            lambda p: soundfile.write(p, np.zeros(0), 16000),
            "holds no samples",
            "is too short",
        ),
    ],
)
def test_a_file_that_is_no_speech_is_refused(
    recognizer, tmp_path, name, spoil, says, long, record_fault
):
    path = tmp_path / name
    spoil(path)
    for method, reason, option in (
        (recognizer.classify_file, says, ""),
        (recognizer.diarize_file, long or says, " --long"),
    ):
        with pytest.raises(RecipeError, match=re.escape(str(path))) as error:
            method(path)
        said = str(error.value)
        assert len(said.splitlines()) == 1 and said.endswith(".")
        assert (reason or "cannot be read as audio") in said
        record_fault("files to recognise", name + option, said, "nothing")


def test_frames_that_do_not_fit_the_models_precision_are_refused(
    make_model, tmp_path, write_sound
):
    own = EmotionRecognizer.from_hparams(make_model())
    encode = own.mods.feats_encoder.forward
    own.mods.feats_encoder.forward = lambda *x: 1e5 * encode(*x)
    path = write_sound(tmp_path / "a.wav", ("low", 1))
    with pytest.raises(
        RecipeError, match="a.wav: frames .* do not fit float16"
    ):
        own.classify_file(path)


def test_models_are_averaged_by_their_probabilities(recognizer):
    one = recognizer.mods.model
    both = AveragedModels([one, lambda *_: torch.tensor([[0.0, 50.0]])][:1] * 2)
    feats, lens = torch.rand(2, 9, 80), torch.tensor([1.0, 0.5])
    torch.testing.assert_close(
        both(feats, lens).exp(), one(feats, lens).softmax(dim=-1)
    )


def test_the_hub_is_asked_for_what_is_no_folder(model, monkeypatch):
    asked = []

    def download(name):
        asked.append(name)
        return str(model)

    monkeypatch.setattr(inference, "snapshot_download", download)
    recognizer = EmotionRecognizer.from_hparams("me/emotions")
    assert asked == ["me/emotions"] and recognizer.classes == ["low", "high"]
