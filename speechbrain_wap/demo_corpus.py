"""A small corpus of synthetic expressive speech in IEMOCAP's layout.

IEMOCAP needs a licence, so a first run of the recipe, and its tests, need
speech that anyone may have. This file makes some in a few seconds: five
sessions of two speakers, improvised and scripted dialogues, all of IEMOCAP's
labels, and the files that a prepare script must step over.

The speech is nonsense from a source-filter synthesiser: a jittered pulse train
with breath noise, moving formants, bursts and fricatives at the syllable rate.
Emotion acts on a speaker's own pitch, range, rate, spectral tilt, level, breath
and pauses, more or less strongly from utterance to utterance. The scores that
models reach on it say that the code works, and nothing about real speech.

Run ``python -m speechbrain_wap.demo_corpus FOLDER`` to make one.
"""

import argparse
import hashlib
import json
import shutil
import struct
import sys
from dataclasses import astuple, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from scipy.io import wavfile
from scipy.signal import lfilter
from tqdm import tqdm

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_text

SAMPLE_RATE = 16000
SESSIONS = (1, 2, 3, 4, 5)
LABELS = {  # label: (the evaluators' word, valence, activation, dominance)
    "ang": ("Anger", 2, 4, 4),
    "hap": ("Happiness", 4, 3, 3),
    "exc": ("Excited", 4, 4, 3),
    "sad": ("Sadness", 2, 2, 2),
    "neu": ("Neutral", 3, 3, 3),
    "fru": ("Frustration", 2, 3, 3),
    "sur": ("Surprise", 3, 4, 3),
    "fea": ("Fear", 2, 4, 2),
    "dis": ("Disgust", 2, 3, 3),
    "oth": ("Other", 3, 3, 3),
    "xxx": (None, 3, 3, 3),  # the evaluators did not agree
}

# The marker is written last, and tells a complete corpus from a half-made one;
# the notice is written first, and tells a half-made one from another's folder.
MARKER = "demo_corpus.json"
NOTICE = "DEMO_CORPUS.txt"
_NOTICE_TEXT = (
    "Synthetic speech in the layout of IEMOCAP, made by "
    "speechbrain_wap.demo_corpus.\n"
    "It holds no recording of any person and may be deleted.\n"
)

_IMPROVISED = ("F_impro01", "F_impro02", "M_impro01", "M_impro02")
_SCRIPTED = ("F_script01_1", "M_script01_1b")
_RARE = ("sur", "fea", "dis", "oth")
# Ordered so that any beginning is about as unbalanced as the whole.
_IMPROVISED_LABELS = (
    "neu sad ang exc neu hap fru sad neu xxx ang rare sad neu exc "
    "neu sad fru ang neu hap sad neu xxx exc ang rare neu sad fru"
).split()
_SCRIPTED_LABELS = "neu ang fru sad exc xxx neu hap fru rare".split()


@dataclass(frozen=True)
class _Voice:
    """What makes a speaker, whatever they feel."""

    pitch: float  # base F0 in Hz
    formant_scale: float  # above 1 for a short vocal tract
    tilt: float  # slope of the spectrum in dB per octave
    breath: float  # noise relative to the pulses in dB
    rate: float  # syllables per second
    liveliness: float  # factor on the pitch accents


@dataclass(frozen=True)
class _Prosody:
    """How an utterance is spoken, relative to the speaker's voice."""

    pitch: float = 0.0  # mean F0 in semitones
    accent: float = 0.0  # depth of the pitch accents in semitones
    arch: float = 0.0  # rise and fall over the utterance in semitones
    final: float = 0.0  # rise at the end in semitones
    rate: float = 0.0  # syllable rate in octaves: 1 is twice as fast
    tilt: float = 0.0  # dB per octave: positive is brighter
    level: float = 0.0  # dB
    breath: float = 0.0  # dB
    pause: float = 0.0  # share of silence between syllables
    jitter: float = 0.0  # relative deviation of single periods


_NEUTRAL = _Prosody(accent=2.0, arch=1.0, final=-2.0, pause=0.08, jitter=0.01)
# Departures from _NEUTRAL at full intensity, in the order of the fields.
_PROSODY = {
    "ang": _Prosody(3.5, 2.0, 0.0, -1.5, 0.25, 4.0, 5.0, -6.0, -0.05, 0.010),
    "hap": _Prosody(4.5, 3.0, 3.0, 1.5, 0.20, 1.0, 2.0, 0.0, -0.03, 0.000),
    "exc": _Prosody(6.5, 4.5, 4.0, 2.0, 0.35, 1.5, 3.0, 0.0, -0.05, 0.005),
    "sad": _Prosody(-3.0, -1.6, -0.8, 0.0, -0.45, -3.5, -4.5, 8.0, 0.20, 0.005),
    "neu": _Prosody(),
    "fru": _Prosody(2.0, 1.0, 0.0, -1.0, 0.10, 2.0, 2.5, -2.0, 0.00, 0.005),
    "sur": _Prosody(6.5, 3.0, 2.0, 8.0, 0.20, 1.0, 2.5, 2.0, -0.03, 0.000),
    "fea": _Prosody(7.0, 0.0, 0.0, 2.0, 0.30, -0.5, -1.0, 7.0, 0.05, 0.030),
    "dis": _Prosody(-1.5, 1.0, 0.5, -2.0, -0.20, 1.0, 0.5, 2.0, 0.06, 0.015),
}

# How utterances of one emotion differ: how much of it, and by chance.
_INTENSITY = (0.4, 1.2)
_SPREAD = _Prosody(1.0, 0.4, 0.5, 1.0, 0.10, 0.7, 0.0, 2.0, 0.02, 0.003)

# Formants of an average male voice, in Hz, and their bandwidths.
_VOWELS = np.array(
    [
        [280, 2250, 2950, 3500, 4500],  # i
        [500, 1850, 2500, 3500, 4500],  # e
        [680, 1700, 2450, 3450, 4450],  # ae
        [740, 1150, 2450, 3400, 4400],  # a
        [560, 880, 2400, 3350, 4400],  # o
        [310, 900, 2250, 3300, 4400],  # u
        [490, 1400, 2300, 3450, 4450],  # schwa
    ],
    dtype=float,
)
_MURMUR = np.array([260.0, 1150.0, 2300.0, 3300.0, 4400.0])  # nasals, glides
_BANDWIDTHS = np.array([70.0, 90.0, 130.0, 200.0, 260.0])
_NOISE_BANDS = ((1800.0, 900.0), (3200.0, 1200.0), (5500.0, 1800.0))  # k, sh, s

_HOP = 160  # samples between control points: 10 ms
_FFT_HOPS = 4  # two hops of windowed source, two for the filters to ring


def make_demo_corpus(folder, seed=0, utterances_per_speaker=40):
    """Makes a corpus of synthetic expressive speech in IEMOCAP's layout.

    A complete corpus of the same parameters is kept as it is, a half-made one
    is made again, and any other folder that holds files is left alone. The
    same parameters always give the same bytes.

    Arguments
    ---------
    folder : str or Path
        Where to make it: a new or empty folder.
    seed : int
        Seed of all voices, labels and sounds; not negative.
    utterances_per_speaker : int
        Number of turns of each of the ten speakers, 6 (one in each dialogue)
        to 4000; about a quarter of them are scripted.

    Returns
    -------
    folder : Path
        The corpus folder, as `data_folder` of the IEMOCAP recipes.

    Raises
    ------
    RecipeError
        If the folder holds anything but a demo corpus of these parameters, or
        a parameter is out of range.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as tmp:
    ...     folder = make_demo_corpus(tmp, utterances_per_speaker=6)
    ...     dialog = folder / "Session1/sentences/wav/Ses01F_impro01"
    ...     print(*sorted(wav.name for wav in dialog.glob("Ses*.wav")))
    Ses01F_impro01_F000.wav Ses01F_impro01_M000.wav
    """
    folder = Path(folder)
    parameters = {
        "seed": seed,
        "utterances_per_speaker": utterances_per_speaker,
    }
    plan = _plan_dialogs(**parameters)
    if _is_complete(folder, parameters, plan):
        return folder
    _clear(folder, parameters)

    voices = _make_voices(seed)
    utterances, samples = 0, 0
    for session in tqdm(SESSIONS, desc="Demo corpus", unit="session"):
        for dialog, turns in plan[session].items():
            lengths = {}
            for turn, label in turns.items():
                voice = voices[session, _gender(turn)]
                wav = _synthesise(voice, label, _generator(seed, turn))
                path = _wav_path(folder, turn)
                path.parent.mkdir(parents=True, exist_ok=True)
                wavfile.write(path, SAMPLE_RATE, wav)
                lengths[turn] = len(wav)
            _write_evaluation(folder, dialog, turns, lengths, seed)
            _write_litter(folder, dialog, turns)
            utterances += len(lengths)
            samples += sum(lengths.values())

    facts = {"utterances": utterances, "seconds": samples / SAMPLE_RATE}
    write_text(folder / MARKER, json.dumps({**parameters, **facts}) + "\n")
    return folder


def main(argv=None):
    """Makes a demo corpus from the command line.

    Arguments
    ---------
    argv : list of str, optional
        The arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_wap.demo_corpus",
        description="Make synthetic expressive speech in IEMOCAP's layout.",
    )
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--utterances_per_speaker", type=int, default=40)
    arguments = parser.parse_args(argv)

    marker = arguments.folder / MARKER
    before = marker.stat().st_mtime_ns if marker.is_file() else None
    try:
        make_demo_corpus(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    facts = _read_marker(arguments.folder)
    verb = "Kept" if marker.stat().st_mtime_ns == before else "Made"
    print(
        f"{verb} {facts['utterances']} utterances "
        f"({facts['seconds'] / 60:.1f} minutes) in {len(SESSIONS)} sessions "
        f"with {2 * len(SESSIONS)} speakers: {arguments.folder}"
    )


def _generator(seed, *names):
    """Returns the random generator that belongs to a name."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16], "big")])


def _gender(turn):
    """Returns F or M, the speaker of a turn such as Ses01F_impro01_M003."""
    return turn[-4]


def _evaluation_folder(folder, name):
    """Returns the evaluation folder of a dialogue's or turn's session."""
    return folder / f"Session{int(name[3:5])}" / "dialog" / "EmoEvaluation"


def _wav_path(folder, turn):
    """Returns where the audio of a turn lies."""
    session = folder / f"Session{int(turn[3:5])}"
    return session / "sentences" / "wav" / turn[:-5] / f"{turn}.wav"


def _plan_dialogs(seed, utterances_per_speaker):
    """Returns {session: {dialogue: {turn: label}}}, sorted by turn."""
    if seed < 0:
        raise RecipeError(f"seed={seed}: choose 0 or more.")
    # Every dialogue needs a turn of each actor, and numbers have three digits.
    if not 6 <= utterances_per_speaker <= 4000:
        raise RecipeError(
            f"utterances_per_speaker={utterances_per_speaker}: choose 6 to "
            "4000."
        )
    scripted = max(len(_SCRIPTED), utterances_per_speaker // 4)
    parts = (
        (_IMPROVISED, _IMPROVISED_LABELS, utterances_per_speaker - scripted),
        (_SCRIPTED, _SCRIPTED_LABELS, scripted),
    )
    plan = {}
    for session in SESSIONS:
        plan[session] = {}
        for names, pattern, count in parts:
            dialogs = [f"Ses{session:02d}{name}" for name in names]
            plan[session].update({dialog: {} for dialog in dialogs})
            for gender, rare in (
                ("F", cycle(_RARE)),
                ("M", cycle(_RARE[::-1])),
            ):
                labels = [
                    next(rare) if label == "rare" else label
                    for label in islice(cycle(pattern), count)
                ]
                _generator(seed, gender, *dialogs).shuffle(labels)
                for i, label in enumerate(labels):
                    number, which = divmod(i, len(dialogs))
                    turn = f"{dialogs[which]}_{gender}{number:03d}"
                    plan[session][dialogs[which]][turn] = label
    return plan


def _is_complete(folder, parameters, plan):
    """Tells whether a folder holds the whole corpus of these parameters."""
    return _read_marker(folder).items() >= parameters.items() and all(
        (_evaluation_folder(folder, dialog) / f"{dialog}.txt").is_file()
        and all(_wav_path(folder, turn).is_file() for turn in turns)
        for dialogs in plan.values()
        for dialog, turns in dialogs.items()
    )


def _read_marker(folder):
    """Returns what the marker says, nothing where there is none."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def _clear(folder, parameters):
    """Makes room for a corpus, or refuses where the folder is another's."""
    facts = _read_marker(folder)
    if facts and not facts.items() >= parameters.items():
        raise RecipeError(
            f"{folder} holds a demo corpus of other parameters "
            f"(seed={facts['seed']}, utterances_per_speaker="
            f"{facts['utterances_per_speaker']}): choose another folder, or "
            "delete it."
        )
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder} is a file: choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / NOTICE).is_file():
        raise RecipeError(
            f"{folder} holds files that are no demo corpus: choose a new or "
            "empty folder."
        )
    write_text(folder / NOTICE, _NOTICE_TEXT)
    (folder / MARKER).unlink(missing_ok=True)
    for session in SESSIONS:
        path = folder / f"Session{session}"
        if path.is_dir():
            shutil.rmtree(path)


def _make_voices(seed):
    """Returns {(session, gender): voice}, no two alike."""
    voices = {}
    for gender, (low, high), scales in (
        ("F", (180.0, 240.0), (1.08, 1.22)),
        ("M", (95.0, 140.0), (0.92, 1.05)),
    ):
        rng = _generator(seed, "voices", gender)
        # One speaker in each fifth of the range: no two share a pitch.
        steps = rng.permutation(len(SESSIONS)) + rng.uniform(0.2, 0.8, 5)
        for session, step in zip(SESSIONS, steps / len(SESSIONS)):
            voices[session, gender] = _Voice(
                pitch=low + step * (high - low),
                formant_scale=rng.uniform(*scales),
                tilt=rng.uniform(-4.5, -1.5),
                breath=rng.uniform(-24.0, -16.0),
                rate=rng.uniform(4.0, 5.2),
                liveliness=rng.uniform(0.75, 1.3),
            )
    return voices


def _synthesise(voice, label, rng):
    """Returns one utterance as 16-bit samples, 0.8 to 2.2 s long."""
    prosody = _draw_prosody(label, rng)
    num_frames = int(rng.integers(80, 221))
    t = np.arange(num_frames) * _HOP / SAMPLE_RATE  # (T,) seconds
    syllables = _draw_syllables(voice, prosody, t[-1], rng)

    f0 = _pitch_track(voice, prosody, syllables, t, rng)
    amplitude = _to_samples(_amplitude_track(syllables, t))
    pulses = _pulse_train(_to_samples(f0), prosody.jitter, rng)
    breath = lfilter([1.0, -0.7], [1.0], rng.standard_normal(len(pulses)))
    breath *= _ratio(voice.breath + prosody.breath)
    speech = _filter_by_vocal_tract(
        amplitude * (pulses + breath),
        voice.formant_scale * _formant_tracks(syllables, t),
        voice.tilt + prosody.tilt,
    )
    speech /= _rms(speech)
    speech += _consonants(syllables, t, rng)

    # A random recording gain: the level alone does not give emotions away.
    speech *= _ratio(-33.0 + prosody.level + rng.uniform(-4.0, 4.0))
    room = lfilter([1.0], [1.0, -0.9], rng.standard_normal(len(speech)))
    speech += room / _rms(room) * _ratio(rng.uniform(-68.0, -56.0))
    speech /= max(1.0, np.abs(speech).max() / 0.99)
    return np.round(32767 * speech).astype(np.int16)


def _draw_prosody(label, rng):
    """Returns the prosody of one utterance: an emotion, more or less of it."""
    intensity = rng.uniform(*_INTENSITY)
    if label not in _PROSODY:  # no single emotion: a weak one of any kind
        label, intensity = rng.choice(list(_PROSODY)), 0.5 * intensity
    neutral, departure, spread = (
        np.array(astuple(row)) for row in (_NEUTRAL, _PROSODY[label], _SPREAD)
    )
    drawn = neutral + intensity * departure
    return _Prosody(*(drawn + spread * rng.standard_normal(len(drawn))))


@dataclass(frozen=True)
class _Syllables:
    """When and how syllables are spoken; all arrays are (N,) or (N, 5)."""

    start: np.ndarray  # seconds
    consonant: np.ndarray  # seconds, from the start
    length: np.ndarray  # seconds
    kind: np.ndarray  # of consonant: 0 stop, 1 fricative, 2 murmur
    band: np.ndarray  # of the consonant's noise
    stress: np.ndarray  # 0.5 to 1
    vowel: np.ndarray  # formants in Hz


def _draw_syllables(voice, prosody, seconds, rng):
    """Returns random syllables that fill an utterance."""
    margin = 0.06  # silence at both ends
    share = np.clip(prosody.pause, 0.0, 0.4)
    spoken = (1.0 - share) * (seconds - 2 * margin)
    count = max(2, round(spoken * voice.rate * 2.0**prosody.rate))
    length = rng.uniform(0.7, 1.3, count)
    length[-1] *= 1.3  # final lengthening
    length *= spoken / length.sum()
    pause = rng.uniform(size=count) ** 4  # few long pauses, not many short
    pause[0] = 0.0
    pause *= share * (seconds - 2 * margin) / pause.sum()
    start = margin + np.cumsum(pause) + np.cumsum(length) - length
    vowel = _VOWELS[rng.integers(len(_VOWELS), size=count)]
    return _Syllables(
        start=start,
        consonant=np.minimum(rng.uniform(0.25, 0.45, count) * length, 0.11),
        length=length,
        kind=rng.integers(3, size=count),
        band=rng.integers(len(_NOISE_BANDS), size=count),
        stress=rng.uniform(0.5, 1.0, count),
        vowel=vowel * rng.uniform(0.95, 1.05, vowel.shape),
    )


def _pitch_track(voice, prosody, syllables, t, rng):
    """Returns F0 in Hz, (T,): declination, arch, accents and final rise."""
    place = t / t[-1]  # 0 to 1 over the utterance
    semitones = prosody.pitch + prosody.arch * np.sin(np.pi * place)
    semitones += 1.0 - 2.0 * place
    semitones += prosody.final * np.clip(4.0 * place - 3.0, 0.0, 1.0)
    middle = syllables.start + 0.6 * syllables.length
    accent = max(prosody.accent, 0.0) * voice.liveliness
    depth = accent * rng.normal(0.3, 1.0, len(middle))
    semitones += (depth * _bumps(t, middle, 0.35 * syllables.length)).sum(1)
    return np.clip(voice.pitch * 2.0 ** (semitones / 12.0), 60.0, 600.0)


def _amplitude_track(syllables, t):
    """Returns the loudness of voice and breath, (T,)."""
    closure = np.array([0.0, 0.03, 0.35])[syllables.kind]
    return _through(
        t,
        syllables.start,
        (0.00 * syllables.length, 0.0 * syllables.stress),
        (0.20 * syllables.consonant, closure * syllables.stress),
        (0.85 * syllables.consonant, closure * syllables.stress),
        (1.15 * syllables.consonant, syllables.stress),
        (0.75 * syllables.length, 0.8 * syllables.stress),
        (0.98 * syllables.length, 0.0 * syllables.stress),
    )


def _formant_tracks(syllables, t):
    """Returns the formants of an average voice in Hz, (T, 5)."""
    murmur = np.array([0.5, 0.5, 1.0])[syllables.kind]
    tracks = []
    for locus, vowel in zip(_MURMUR, syllables.vowel.T):
        onset = murmur * locus + (1.0 - murmur) * vowel
        tracks.append(
            _through(
                t,
                syllables.start,
                (0.80 * syllables.consonant, onset),
                (1.60 * syllables.consonant, vowel),
                (0.85 * syllables.length, vowel),
            )
        )
    return np.stack(tracks, axis=1)


def _pulse_train(f0, jitter, rng):
    """Returns pulses of unit power with jitter and shimmer, (samples,)."""
    period = np.cumsum(f0 / SAMPLE_RATE).astype(int)
    deviation = rng.standard_normal(period[-1] + 1)
    step = f0 / SAMPLE_RATE * (1.0 + max(jitter, 0.0) * deviation[period])
    phase = np.cumsum(step)
    at = np.flatnonzero(np.diff(np.floor(phase))) + 1
    # A pulse falls between two samples and is shared by them.
    late = phase[at] % 1.0 / step[at]
    height = (1.0 + 0.08 * rng.standard_normal(len(at))) / np.sqrt(step[at])
    pulses = np.zeros_like(phase)
    pulses[at] += (1.0 - late) * height
    pulses[at - 1] += late * height
    return pulses


def _filter_by_vocal_tract(source, formants, tilt):
    """Filters a source by formants (T, 5) in Hz and a tilt in dB per octave."""
    num_frames = len(formants)
    window = np.sin(np.pi * np.arange(2 * _HOP) / (2 * _HOP)) ** 2
    padded = np.pad(source, _HOP).reshape(-1, _HOP)
    frames = np.hstack([padded[:num_frames], padded[1 : num_frames + 1]])
    spectra = np.fft.rfft(window * frames, _FFT_HOPS * _HOP)  # (T, bins)

    hertz = np.fft.rfftfreq(_FFT_HOPS * _HOP, 1 / SAMPLE_RATE)
    spectra *= _ratio(tilt * np.log2(np.maximum(hertz, 200.0) / 200.0))
    delay = np.exp(-2j * np.pi * hertz / SAMPLE_RATE)
    radius = np.exp(-np.pi * _BANDWIDTHS / SAMPLE_RATE)
    angle = 2.0 * np.pi * formants / SAMPLE_RATE
    for a, b in zip((2.0 * radius * np.cos(angle)).T, radius**2):
        gain = 1.0 - a + b  # one at 0 Hz
        spectra *= gain[:, None] / (1.0 - a[:, None] * delay + b * delay**2)

    pieces = np.fft.irfft(spectra).reshape(num_frames, _FFT_HOPS, _HOP)
    output = np.zeros((num_frames + _FFT_HOPS - 1, _HOP))
    for hop in range(_FFT_HOPS):
        output[hop : hop + num_frames] += pieces[:, hop]
    return output[1 : num_frames + 1].ravel()


def _consonants(syllables, t, rng):
    """Returns bursts and fricatives, (samples,)."""
    stop = syllables.kind == 0
    centre = np.where(stop, 0.9, 0.5) * syllables.consonant
    width = np.where(stop, 0.006, 0.22 * syllables.consonant)
    level = np.array([0.8, 0.5, 0.0])[syllables.kind] * syllables.stress
    bumps = level * _bumps(t, syllables.start + centre, width)  # (T, N)
    noise = np.zeros(len(t) * _HOP)
    for band, (hertz, bandwidth) in enumerate(_NOISE_BANDS):
        radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
        turn = 2.0 * radius * np.cos(2.0 * np.pi * hertz / SAMPLE_RATE)
        white = rng.standard_normal(len(noise))
        colour = lfilter([1.0, 0.0, -1.0], [1.0, -turn, radius**2], white)
        envelope = bumps[:, syllables.band == band].sum(1)
        noise += colour / _rms(colour) * _to_samples(envelope)
    return noise


def _bumps(t, centre, width):
    """Returns one bell per syllable, (T, N)."""
    return np.exp(-0.5 * ((t[:, None] - centre) / width) ** 2)


def _through(t, start, *knots):
    """Returns the line through each syllable's (delay, value) knots, (T,)."""
    delays, values = (np.stack(column, axis=1) for column in zip(*knots))
    return np.interp(t, (start[:, None] + delays).ravel(), values.ravel())


def _to_samples(track):
    """Returns a track of one value per hop at the sample rate."""
    at = np.arange(len(track) * _HOP) / _HOP
    return np.interp(at, np.arange(len(track)), track)


def _ratio(decibels):
    """Returns the amplitude ratio of a level."""
    return 10.0 ** (decibels / 20.0)


def _rms(signal):
    """Returns the root mean square."""
    return np.sqrt(np.mean(signal**2))


def _write_evaluation(folder, dialog, turns, lengths, seed):
    """Writes the evaluators' file of a dialogue, as the real release has it."""
    rng = _generator(seed, "evaluation", dialog)
    clock, times = rng.uniform(2.0, 8.0), {}
    # The actors take turns, the marked one first; the file is by name.
    for turn in sorted(turns, key=lambda t: (t[-3:], _gender(t) != dialog[5])):
        end = clock + lengths[turn] / SAMPLE_RATE
        times[turn] = f"[{clock:.4f} - {end:.4f}]"
        clock = end + rng.uniform(0.2, 1.5)

    words = [word for word, *_ in LABELS.values() if word]
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for turn, label in turns.items():
        word, *centre = LABELS[label]
        votes = list(rng.permutation(words)[:3])
        if word is not None:  # a majority
            votes[:2] = word, word
        scores = np.clip(centre + rng.integers(-1, 2, (3, 3)), 1, 5)
        mean = ", ".join(f"{score:.4f}" for score in scores[:2].mean(0))
        own = f"{_gender(turn)}1"
        lines.append(f"{times[turn]}\t{turn}\t{label}\t[{mean}]")
        for evaluator, vote in zip(("E2", "E3", "E4", own), [*votes, votes[0]]):
            lines.append(f"C-{evaluator}:\t{vote};\t()")
        for evaluator, (v, a, d) in zip(("E3", "E4", own), scores):
            lines.append(f"A-{evaluator}:\tval {v}; act {a}; dom  {d};\t()")
        lines.append("")
    path = _evaluation_folder(folder, dialog) / f"{dialog}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _write_litter(folder, dialog, turns):
    """Writes what else lies in the real folders and is no data."""
    evaluation = _evaluation_folder(folder, dialog)
    first = next(iter(turns))
    for name, line in (
        (f"Categorical/{dialog}_e2_cat.txt", f"{first} :Neutral; ()"),
        (f"Attribute/{dialog}_e3_atr.txt", f"{first} :act  3; :val  3; ()"),
        (f"Self-evaluation/{dialog}_f1_cat.txt", f"{first} :Neutral; ()"),
    ):
        path = evaluation / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(line + "\n")
    wav = _wav_path(folder, first)
    apple_double = struct.pack(">II16sH", 0x00051607, 0x00020000, b"", 0)
    (evaluation / f"._{dialog}.txt").write_bytes(apple_double)
    wav.with_name(f"._{wav.name}").write_bytes(apple_double)
    wav.with_suffix(".pk").write_bytes(bytes(64))


if __name__ == "__main__":
    main()
