"""Laws of the demo corpus: it is IEMOCAP in form, and the same every time."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import soundfile
from make_corpus import EMOTIONS, NOTICE, main, make_demo_corpus

from speechbrain_wap.errors import RecipeError

TURN_LINE = re.compile(
    r"\[(?P<start>\d+\.\d{4}) - (?P<end>\d+\.\d{4})\]\t"
    r"(?P<turn>(?P<dialog>Ses0(?P<session>[1-5])[FM]_(?P<style>impro|script)"
    r"\d\d(_\d[ab]?)?)_(?P<actor>[FM])(?P<number>\d{3}))\t"
    r"(?P<label>[a-z]{3})\t\[\d\.\d{4}, \d\.\d{4}, \d\.\d{4}\]"
)


def digest(folder):
    """Hashes all names and bytes of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def read_turns(folder):
    """Collects what the evaluation files say, and where the audio should be."""
    turns = []
    for path in sorted(folder.glob("Session*/dialog/EmoEvaluation/Ses*.txt")):
        header, *lines = path.read_text().splitlines()
        assert header.startswith("% [START_TIME - END_TIME] TURN_NAME EMOTION")
        assert any(line.startswith("C-E2:") for line in lines)
        wavs = path.parents[2] / "sentences" / "wav" / path.stem
        for line in lines:
            if line.startswith("["):
                turn = TURN_LINE.fullmatch(line).groupdict()
                assert turn["dialog"] == path.stem
                turns.append({**turn, "wav": wavs / f"{turn['turn']}.wav"})
    return turns


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The demo corpus as `make demo` has it."""
    return make_demo_corpus(tmp_path_factory.mktemp("default") / "corpus")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest corpus."""
    return make_demo_corpus(
        tmp_path_factory.mktemp("small") / "corpus", utterances_per_speaker=8
    )


def test_every_turn_has_its_wav_and_every_wav_its_turn(corpus):
    turns = read_turns(corpus)
    per_speaker = Counter((turn["session"], turn["actor"]) for turn in turns)
    assert per_speaker == {(s, actor): 40 for s in "12345" for actor in "FM"}
    assert {turn["label"] for turn in turns} == set(EMOTIONS)
    wavs = set(corpus.glob("Session*/sentences/wav/*/Ses*.wav"))
    assert wavs == {turn["wav"] for turn in turns}
    for turn in turns:
        info = soundfile.info(turn["wav"])
        assert (info.samplerate, info.channels) == (16000, 1)
        stated = float(turn["end"]) - float(turn["start"])
        assert stated == pytest.approx(info.duration, abs=2e-4)


def test_each_session_has_improvised_turns_of_each_class(small, corpus):
    merged = {"ang": "ang", "hap": "hap", "exc": "hap", "sad": "sad"}
    merged["neu"] = "neu"
    for folder, fewest in ((small, 2), (corpus, 8)):
        counts = Counter(
            (turn["session"], merged[turn["label"]])
            for turn in read_turns(folder)
            if turn["style"] == "impro" and turn["label"] in merged
        )
        assert len(counts) == 20
        assert min(counts.values()) == fewest


def test_every_speaker_is_louder_and_brighter_in_anger_than_in_sadness(corpus):
    measured = defaultdict(list)
    for turn in read_turns(corpus):
        samples, _ = soundfile.read(turn["wav"])
        power = np.abs(np.fft.rfft(samples)) ** 2
        high = power[len(power) // 8 : len(power) // 2].sum()  # 1 to 4 kHz
        ratios = power.sum() / len(samples), high / power.sum()
        key = turn["session"], turn["actor"], turn["label"]
        measured[key].append(10 * np.log10(ratios))
    for session in "12345":
        for actor in "FM":
            ang, sad = (
                np.mean(measured[session, actor, label], axis=0)
                for label in ("ang", "sad")
            )
            assert (ang > sad + 2.0).all(), f"speaker {session}{actor}"


def test_same_seed_gives_the_same_bytes_in_another_process(
    small, tmp_path, repository
):
    subprocess.run(
        [
            *(sys.executable, repository / "demo" / "make_corpus.py"),
            *(tmp_path / "again", "--utterances_per_speaker=8"),
        ],
        env={**os.environ, "PYTHONPATH": str(repository)},
        check=True,
    )
    assert digest(tmp_path / "again") == digest(small)


def test_half_made_corpus_is_made_again(small, tmp_path, monkeypatch):
    folder, write = tmp_path / "corpus", soundfile.write

    def write_two_sessions(path, *arguments):
        if path.name.startswith("Ses03"):
            raise KeyboardInterrupt
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "write", write_two_sessions)
        with pytest.raises(KeyboardInterrupt):
            make_demo_corpus(folder, utterances_per_speaker=8)
    next(folder.rglob("Ses02*.wav")).write_bytes(b"RIFF")
    make_demo_corpus(folder, utterances_per_speaker=8)
    with pytest.raises(RecipeError, match="seed=1, utterances_per_speaker=8"):
        make_demo_corpus(folder, seed=1, utterances_per_speaker=8)
    assert digest(folder) == digest(small)


@pytest.mark.parametrize("name", ["Session1/notes.txt", NOTICE])
def test_folder_of_other_files_is_left_alone(name, tmp_path):
    precious = tmp_path / name
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("the real release")
    before = digest(tmp_path)
    with pytest.raises(SystemExit, match="holds other files than a demo"):
        main([str(tmp_path)])
    assert digest(tmp_path) == before
