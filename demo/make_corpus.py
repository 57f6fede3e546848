"""Makes a small corpus of synthetic expressive speech in IEMOCAP's layout.

> python demo/make_corpus.py FOLDER [--seed=0] [--utterances_per_speaker=40]

IEMOCAP needs a licence, so a first run of the recipe, and its tests, need
speech that anyone may have: five sessions of two speakers, improvised and
scripted dialogs, all of IEMOCAP's labels, and the files that a prepare script
must step over. The speech is vowels from a source-filter synthesiser; emotion
changes a speaker's own way of speaking, more in some utterances than in others.
The scores that models reach on it say that the code works, and nothing about
real speech.
"""

import argparse
import sys
from pathlib import Path
from shutil import rmtree

import numpy as np
import soundfile

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_text

SAMPLE_RATE = 16000
SESSIONS = (1, 2, 3, 4, 5)
NOTICE = "demo_corpus.txt"  # tells a demo corpus from other folders

# The evaluators' word; valence, activation and dominance; and how the speech
# departs from NEUTRAL: pitch and depth of the pitch accents in semitones, rate
# in octaves, tilt of the spectrum in dB per octave, level in dB, breath in dB,
# pauses as a share of the utterance.
EMOTIONS = {
    "ang": ("Anger", (2, 4, 4), (3.5, 2, 0.25, 4, 5, -6, -0.05)),
    "hap": ("Happiness", (4, 3, 3), (4.5, 3, 0.2, 1, 2, 0, -0.03)),
    "exc": ("Excited", (4, 4, 3), (6.5, 4.5, 0.35, 1.5, 3, 0, -0.05)),
    "sad": ("Sadness", (2, 2, 2), (-3, -1.5, -0.45, -3.5, -4.5, 8, 0.2)),
    "neu": ("Neutral", (3, 3, 3), (0, 0, 0, 0, 0, 0, 0)),
    "fru": ("Frustration", (2, 3, 3), (2, 1, 0.1, 2, 2.5, -2, 0)),
    "sur": ("Surprise", (3, 4, 3), (6.5, 5, 0.2, 1, 2.5, 2, -0.03)),
    "fea": ("Fear", (2, 4, 2), (7, 0, 0.3, -0.5, -1, 7, 0.05)),
    "dis": ("Disgust", (2, 3, 3), (-1.5, 1, -0.2, 1, 0.5, 2, 0.06)),
    "oth": ("Other", (3, 3, 3), (1, 1, 0.1, 0, 0, 0, 0)),
    "xxx": (None, (3, 3, 3), (1, 0, 0, 0, 0, 2, 0.03)),  # they did not agree
}
NEUTRAL = (0, 2, 0, 0, 0, -20, 0.08)
SPREAD = (1, 0.4, 0.1, 0.7, 3, 2, 0.02)  # standard deviation of one utterance

# The labels of each actor's turns, in rotation. A small corpus has the first
# columns only, so that these alone have all classes.
DIALOGS = {
    "F_impro01": "neu sad xxx neu ang",
    "F_impro02": "sad neu hap fru neu",
    "F_impro03": "ang neu sad exc sad",
    "M_impro01": "exc ang neu sad neu",
    "M_impro02": "neu hap fru exc fea",
    "M_impro03": "hap xxx sad ang sur",
    "F_script01_1": "neu fru xxx hap dis",
    "M_script01_1b": "ang sad exc neu oth",
}

# Formants of an average voice and their bandwidths in Hz
LOWEST_FORMANTS = np.array([280, 880, 2250, 3300, 4400])
HIGHEST_FORMANTS = np.array([740, 2250, 2950, 3500, 4500])
BANDWIDTHS = np.array([70, 90, 130, 200, 260])


def make_demo_corpus(folder, seed=0, utterances_per_speaker=40):
    """Makes a corpus of synthetic expressive speech in IEMOCAP's layout.

    The same parameters always give the same bytes. A complete corpus is kept,
    a half-made one is made again, and a folder of other files is left alone.

    Arguments
    ---------
    folder : str or Path
        A new or empty folder, or a demo corpus of the same parameters.
    seed : int
        Seed of all voices and sounds; not negative.
    utterances_per_speaker : int
        Turns of each of the ten speakers, 8 to 8000; a quarter are scripted.

    Returns
    -------
    folder : Path
        The `data_folder` of the IEMOCAP recipe.

    Raises
    ------
    RecipeError
        If the folder holds anything else, or a parameter is out of range.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir")) / "corpus"
    >>> folder = make_demo_corpus(folder, utterances_per_speaker=8)
    >>> len(list(folder.glob("Session1/sentences/wav/*/Ses*.wav")))
    16
    """
    folder = Path(folder)
    if seed < 0 or not 8 <= utterances_per_speaker <= 8000:
        raise RecipeError(
            f"seed={seed} must be 0 or more, and utterances_per_speaker="
            f"{utterances_per_speaker} 8 to 8000."
        )
    parameters = f"{seed=}, {utterances_per_speaker=}"
    complete = f"Synthetic speech of no person, {parameters}\n"
    half_made = f"Half made: {complete}"
    notice = folder / NOTICE
    found = notice.read_text("utf-8") if notice.is_file() else None
    if found == complete:
        return folder
    if found != half_made and folder.exists() and any(folder.iterdir()):
        raise RecipeError(
            f"{folder} holds other files than a demo corpus of {parameters}: "
            "choose a new or empty folder."
        )
    write_text(notice, half_made)
    for session in SESSIONS:
        session_folder = folder / f"Session{session}"
        if session_folder.exists():  # half made
            rmtree(session_folder)
        for i, dialog in enumerate(DIALOGS):
            num_turns = len(range(i, utterances_per_speaker, len(DIALOGS)))
            name = f"Ses{session:02d}{dialog}"
            _make_dialog(session_folder, name, num_turns, seed)
    write_text(notice, complete)
    return folder


def _make_dialog(folder, dialog, num_turns, seed):
    """Writes the audio and the evaluation of a dialog to a session's folder."""
    labels = DIALOGS[dialog[5:]].split()
    evaluation = folder / "dialog" / "EmoEvaluation"
    wavs = folder / "sentences" / "wav" / dialog
    (evaluation / "Categorical").mkdir(parents=True, exist_ok=True)
    wavs.mkdir(parents=True)
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for actor, gender in enumerate("FM"):
        voice = _draw_voice(gender, _generator(seed, dialog[:5] + gender))
        for number in range(num_turns):
            label = labels[number % len(labels)]
            turn = f"{dialog}_{gender}{number:03d}"
            speech = _synthesise(voice, label, _generator(seed, turn))
            soundfile.write(wavs / f"{turn}.wav", speech, SAMPLE_RATE)
            # The actors alternate every 3 s, which no utterance exceeds.
            start = 6 + 3 * (2 * number + actor)
            end = start + len(speech) / SAMPLE_RATE
            lines += _describe_turn(turn, label, start, end)
    (evaluation / f"{dialog}.txt").write_text("\n".join(lines) + "\n")

    # What else lies there and is no data: one evaluator's file, macOS's litter
    opinion = evaluation / "Categorical" / f"{dialog}_e2_cat.txt"
    opinion.write_text(f"{turn} :Neutral; ()\n")
    for path in (evaluation / f"._{dialog}.txt", wavs / f"._{turn}.wav"):
        path.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")


def _describe_turn(turn, label, start, end):
    """Returns the lines of a turn in an evaluation file."""
    word, (valence, activation, dominance), _ = EMOTIONS[label]
    mean = f"[{valence:.4f}, {activation:.4f}, {dominance:.4f}]"
    words = [word] * 3 if word else ["Neutral", "Anger", "Sadness"]
    scores = f"val {valence}; act {activation}; dom  {dominance};"
    return [
        f"[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t{mean}",
        *(f"C-E{i}:\t{word};\t()" for i, word in enumerate(words, start=2)),
        *(f"A-E{i}:\t{scores}\t()" for i in (3, 4)),
        "",
    ]


def _generator(seed, name):
    """Returns the random generator that belongs to a name."""
    return np.random.default_rng([seed, *name.encode()])


def _draw_voice(gender, rng):
    """Returns what makes a speaker, whatever they feel."""
    # a woman's shorter vocal tract has higher formants
    pitch, formant_scale = {"F": (208, 1.15), "M": (116, 0.98)}[gender]
    return {
        "pitch": pitch * rng.uniform(0.85, 1.15),  # Hz
        "formant_scale": formant_scale * rng.uniform(0.94, 1.06),
        "rate": rng.uniform(4, 5.2),  # syllables per second
        "tilt": rng.uniform(-4, -2),  # dB per octave
    }


def _synthesise(voice, label, rng):
    """Returns an utterance of 0.8 to 2.2 s, (samples,), -1 to 1."""
    size = int(rng.uniform(0.8, 2.2) * SAMPLE_RATE)
    strength = rng.uniform(0.5, 1.2)  # of the emotion
    style = np.array(NEUTRAL) + strength * np.array(EMOTIONS[label][2])
    pitch, accent, rate, tilt, level, breath, pause = rng.normal(style, SPREAD)

    # Syllables, each after a pause: few long pauses, not many short ones
    pause = np.clip(pause, 0, 0.4)
    seconds = (1 - pause) * size / SAMPLE_RATE
    count = max(2, round(seconds * voice["rate"] * 2**rate))
    silent, spoken = rng.uniform(size=count) ** 4, rng.uniform(1, 2, count)
    silent *= pause * size / silent.sum()
    spoken *= (1 - pause) * size / spoken.sum()
    ends = np.cumsum(silent + spoken).astype(int)
    starts = ends - spoken.astype(int)

    # A pulse per period, of unit power, and breath; accents on a falling line
    accents = rng.normal(0, max(accent, 0), count)
    semitones = np.interp(np.arange(size), (starts + ends) / 2, accents)
    semitones += pitch + np.linspace(1, -1, size)
    f0 = np.clip(voice["pitch"] * 2 ** (semitones / 12), 60, 600)
    pulses = np.diff(np.floor(np.cumsum(f0 / SAMPLE_RATE)), prepend=0)
    source = pulses * np.sqrt(SAMPLE_RATE / f0)
    source += _ratio(breath) * rng.standard_normal(size)

    speech = np.zeros(size)
    for start, end in zip(starts, ends):
        loudness = rng.uniform(0.5, 1) * np.hanning(end - start)
        vowel = rng.uniform(LOWEST_FORMANTS, HIGHEST_FORMANTS)
        speech[start:end] = _filter_by_vocal_tract(
            loudness * source[start:end],
            voice["formant_scale"] * vowel,
            voice["tilt"] + tilt,
        )
    speech *= _ratio(level - 33) / speech.std()
    speech += _ratio(rng.uniform(-68, -56)) * rng.standard_normal(size)  # room
    return speech / max(1, np.abs(speech).max())


def _filter_by_vocal_tract(source, formants, tilt):
    """Filters a syllable by formants in Hz and a tilt in dB per octave."""
    size = 2 * len(source)  # else its end would ring into its beginning
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(source, size)
    spectrum *= _ratio(tilt * np.log2(np.maximum(hertz, 200) / 200))
    delay = np.exp(-2j * np.pi * hertz / SAMPLE_RATE)
    for pole in np.exp(np.pi * (2j * formants - BANDWIDTHS) / SAMPLE_RATE):
        spectrum /= (1 - pole * delay) * (1 - pole.conj() * delay)
        spectrum *= abs(1 - pole) ** 2  # a gain of one at 0 Hz
    return np.fft.irfft(spectrum)[: len(source)]


def _ratio(decibels):
    """Returns the amplitude ratio of a level."""
    return 10 ** (decibels / 20)


def main(argv=None):
    """Makes a demo corpus from the command line."""
    parser = argparse.ArgumentParser(
        description="Make synthetic expressive speech in IEMOCAP's layout."
    )
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--utterances_per_speaker", type=int, default=40)
    arguments = parser.parse_args(argv)
    try:
        make_demo_corpus(**vars(arguments))
    except (OSError, RecipeError) as error:
        sys.exit(f"error: {error}")
    count = 2 * len(SESSIONS) * arguments.utterances_per_speaker
    print(f"Demo corpus of {count} utterances: {arguments.folder}")


if __name__ == "__main__":
    main()
