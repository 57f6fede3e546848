"""Laws of the demo corpus: it is IEMOCAP in form, and the same every time."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from make_corpus import EMOTIONS, NOTICE, main, make_demo_corpus

from speechbrain_wap.errors import RecipeError


def digest(folder):
    """Hashes all names and bytes of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest corpus."""
    return make_demo_corpus(
        tmp_path_factory.mktemp("small") / "corpus", utterances_per_speaker=8
    )


@pytest.fixture(scope="module")
def read(import_script, tmp_path_factory):
    """Prepares a corpus as the recipe does."""
    script = import_script("recipes/IEMOCAP/iemocap_prepare.py")

    def read(folder):
        csv = tmp_path_factory.mktemp("table") / "corpus.csv"
        return script.prepare_iemocap(folder, csv)

    return read


@pytest.fixture(scope="module")
def table(read, tmp_path_factory):
    """The demo corpus as `make demo` has it."""
    return read(make_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus"))


def test_each_speaker_has_turns_of_all_labels_with_their_audio(table):
    speakers = [
        f"Ses0{session}{actor}" for session in "12345" for actor in "FM"
    ]
    counts = table["speaker"].value_counts().to_dict()
    assert counts == dict.fromkeys(speakers, 40)
    # the annotators' xxx and oth are no labels
    assert set(table["emo"]) == {""} | set(EMOTIONS) - {"xxx", "oth"}
    assert table["digest"].is_unique
    folder = Path(table["wav"][0]).parents[4]
    wavs = folder.glob("Session*/sentences/wav/*/Ses*.wav")
    assert {*map(str, wavs)} == set(table["wav"])
    info = soundfile.info(table["wav"][0])
    assert (info.samplerate, info.channels) == (16000, 1)


def test_each_session_has_improvised_turns_of_each_class(table, small, read):
    for each, fewest in ((table, 8), (read(small), 2)):
        emo = each["emo"].replace("exc", "hap")
        is_used = emo.isin(["ang", "hap", "sad", "neu"])
        used = each[is_used & (each["style"] == "improvised")]
        counts = used.groupby([used["session"], emo]).size()
        assert len(counts) == 20 and counts.min() == fewest


def test_every_speaker_is_louder_and_brighter_in_anger_than_in_sadness(table):
    def measure(wav):
        samples, _ = soundfile.read(wav)
        power = np.abs(np.fft.rfft(samples)) ** 2
        high = power[len(power) // 8 : len(power) // 2].sum()  # 1 to 4 kHz
        return 10 * np.log10([power.sum() / len(samples), high / power.sum()])

    for speaker, turns in table.groupby("speaker"):
        ang, sad = (
            np.mean([*map(measure, turns["wav"][turns["emo"] == emo])], axis=0)
            for emo in ("ang", "sad")
        )
        assert (ang > sad + 2.0).all(), speaker


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
