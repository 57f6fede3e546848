"""A trained model at work: the emotion of a file, a batch, an hour of speech.

>>> from speechbrain_wap.inference import EmotionRecognizer
>>> recognizer = EmotionRecognizer.from_hparams("model")  # doctest: +SKIP
>>> recognizer.classify_file("speech.wav")  # doctest: +SKIP

What a model folder holds is written by ``python -m speechbrain_wap export``.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.interfaces import Pretrained
from torch.nn.utils.rnn import pad_sequence

from speechbrain_wap.data.audio import measure_duration, read_audio
from speechbrain_wap.data.silence import find_speech
from speechbrain_wap.encoders.speech_encoder import digest_encoder
from speechbrain_wap.errors import RecipeError, check_number, first_line
from speechbrain_wap.features.cache import round_frames
from speechbrain_wap.features.extraction import (
    MARGIN_SECONDS,
    encode_utterance,
    find_used_seconds,
)
from speechbrain_wap.files import digest_file, expand_path
from speechbrain_wap.packing import valid_frames

# What a model folder has to hold, whatever the system
HPARAMS_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "model.ckpt"
SILENCE = "silence"


class Embeddings(NamedTuple):
    """What a model makes of a batch before it classifies.

    Attributes
    ----------
    frames : torch.Tensor or None
        Frames of the backbone, shape [B, T, D]; None where there is none.
    lens : torch.Tensor
        Their relative lengths, shape [B].
    utterances : torch.Tensor or None
        What is classified, shape [B, E]; None where a system has no ``pool``.
    codes : torch.Tensor or None
        Each frame's nearest local attribute (Eq. 4), shape [B, T], -1 where
        there is padding; None where the model did not start from an adapter.
        They are those of the adapter, looked up by frames that fine-tuning has
        moved.
    """

    frames: torch.Tensor | None
    lens: torch.Tensor
    utterances: torch.Tensor | None
    codes: torch.Tensor | None


def load_checked(target, path, digest):
    """Loads what was exported and nothing else, for a model folder's YAML.

    Arguments
    ---------
    target : torch.nn.Module or speechbrain.dataio.encoder.CategoricalEncoder
        What takes the weights, or the labels.
    path : str
        The file.
    digest : str
        Of the file that was exported.

    Raises
    ------
    RecipeError
        If it is missing or another one.
    """
    if not os.path.isfile(path):
        raise RecipeError(f"{path} is missing: export the model again.")
    if digest_file(path) != digest:
        raise RecipeError(
            f"{path} is damaged or another model's: export the model again."
        )
    if isinstance(target, CategoricalEncoder):
        target.load(path)
    else:
        target.load_state_dict(torch.load(path, "cpu", weights_only=True))


class EmotionRecognizer(Pretrained):
    """Recognises emotions with an exported model.

    It is always in eval mode and computes no gradient. What it says of an
    utterance does not depend on what else is in the batch.

    Arguments
    ---------
    modules : dict
        "model", and "local_attributes" where there are any.
    hparams : dict
        What the model folder's YAML wires.
    run_opts : dict, optional
        SpeechBrain's own options, as ``{"device": "cuda"}``.
    **kwargs : dict
        See :class:`speechbrain.inference.interfaces.Pretrained`.

    Attributes
    ----------
    classes : list of str
        In the order of the probabilities.
    sample_rate : int
        Of what is given as samples, in Hz.

    Raises
    ------
    RecipeError
        If an encoder is missing, or another one than the model was trained
        with.
    """

    MODULES_NEEDED = ["model"]
    HPARAMS_NEEDED = ["front_ends", "label_encoder", "pretrainer"]

    def __init__(self, modules=None, hparams=None, run_opts=None, **kwargs):
        folder = _find_folder(hparams)
        encoders = {
            name: _open_encoder(front_end, folder)
            for name, front_end in hparams["front_ends"].items()
        }
        rates = {getattr(e, "sample_rate", 16000) for e in encoders.values()}
        if len(rates) > 1:
            raise RecipeError(
                f"{folder}: its encoders take different sample rates: "
                f"{', '.join(map(str, sorted(rates)))} Hz."
            )
        modules = {
            **modules,
            **{f"{k}_encoder": e for k, e in encoders.items()},
        }
        super().__init__(modules, hparams, run_opts, **kwargs)
        (self.sample_rate,) = rates
        # seconds of an utterance that are used, and that are encoded of what
        # is cut; None if nobody knows
        used = find_used_seconds(encoders.values(), hparams["max_frames"])
        self.longest_window = used
        self.longest = None if used is None else used + MARGIN_SECONDS
        self.is_cut = hparams["long_utterances"] == "cut"
        labels = hparams["label_encoder"].ind2lab
        self.classes = [labels[number] for number in range(len(labels))]

    @classmethod
    def from_hparams(cls, source, hparams_file=HPARAMS_FILE, **kwargs):
        """Loads a model folder, or one of the hub.

        Arguments
        ---------
        source : str
            The folder, or its name on the hub.
        hparams_file : str
            The YAML file in it.
        **kwargs : dict
            See SpeechBrain's :meth:`Pretrained.from_hparams`.

        Returns
        -------
        recognizer : EmotionRecognizer

        Raises
        ------
        RecipeError
            If it is no model folder, or a file is missing or damaged.
        """
        folder = Path(expand_path(source))
        if not folder.exists():
            try:  # all of it: a bundled encoder lies in a folder of its own
                folder = Path(snapshot_download(str(source)))
            except (OSError, ValueError) as error:
                raise RecipeError(
                    f"{source} is no folder, and neither the hub nor its "
                    f"local cache gives it ({first_line(error)}): give a "
                    "folder that python -m speechbrain_wap export has made."
                )
        for name in (hparams_file, WEIGHTS_FILE, "label_encoder.ckpt"):
            if not (folder / name).is_file():
                raise RecipeError(
                    f"{source} is no model folder, for it has no {name}: give "
                    "one that python -m speechbrain_wap export has made."
                )
        place = str(folder.resolve())
        if place not in sys.path:  # modules of one's own lie in it
            sys.path.append(place)
        try:
            return super().from_hparams(str(folder), hparams_file, **kwargs)
        except RecipeError:
            raise
        except Exception as error:  # of whatever the YAML wires
            raise RecipeError(
                f"{source} cannot be loaded ({first_line(error)}): install "
                "what it names, or export the model again."
            ) from error

    def train(self, mode=True):
        """Stays in eval mode, whatever is called around it."""
        del mode
        return super().train(False)

    # Recognition --------------------------------------------------------------

    def load_audio(self, path, start=None, end=None):
        """Reads a file of any format, sample rate and number of channels.

        Arguments
        ---------
        path : str
            The file.
        start, end : float, optional
            The part of it that is wanted, in seconds.

        Returns
        -------
        signal : torch.Tensor
            Shape [samples], at ``sample_rate``.

        Raises
        ------
        RecipeError
            If it cannot be read; names it.
        """
        if self.is_cut and self.longest is not None:  # as in training (D12)
            last = (start or 0.0) + self.longest
            duration = measure_duration(path)
            if min(duration if end is None else end, duration) > last:
                end = last
        return read_audio(path, self.sample_rate, start, end)

    def classify_file(self, path, start=None, end=None):
        """Tells the emotion of a file, or of a part of it.

        Arguments
        ---------
        path : str
            A file of any format, sample rate and number of channels.
        start, end : float, optional
            The part of it that is wanted, in seconds.

        Returns
        -------
        probabilities : torch.Tensor
            Of each class, shape [1, C].
        score : torch.Tensor
            The highest of them, shape [1].
        index : torch.Tensor
            Its class's number, shape [1].
        label : list of str
            Its class's name.

        Raises
        ------
        RecipeError
            If it cannot be read, is too short, or too long; names it.
        """
        signal = self.load_audio(path, start, end)
        try:
            return self.classify_batch(signal[None])
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}")

    def classify_batch(self, wavs, wav_lens=None):
        """Tells the emotion of each utterance of a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at ``sample_rate``, shape [B, samples].
        wav_lens : torch.Tensor, optional
            Relative lengths, shape [B], each in 0 to 1.

        Returns
        -------
        probabilities : torch.Tensor
            Shape [B, C].
        score : torch.Tensor
            The highest of each utterance, shape [B].
        index : torch.Tensor
            Its class's number, shape [B].
        label : list of str
            Its class's name.
        """
        inputs = self._encode(wavs, wav_lens)
        with torch.no_grad(), self.inference_ctx:
            logits = self.mods.model(*inputs)
        probabilities = logits.float().softmax(dim=-1)
        score, index = probabilities.max(dim=-1)
        return probabilities, score, index, [self.classes[i] for i in index]

    def forward(self, wavs, wav_lens=None):
        """Tells the emotions of a batch, see :meth:`classify_batch`."""
        return self.classify_batch(wavs, wav_lens)

    def encode_batch(self, wavs, wav_lens=None):
        """Gives what the model makes of a batch before it classifies.

        Arguments
        ---------
        wavs, wav_lens : torch.Tensor
            See :meth:`classify_batch`.

        Returns
        -------
        embeddings : Embeddings
        """
        inputs = self._encode(wavs, wav_lens)
        model = self.mods.model
        frames = utterances = codes = None
        with torch.no_grad(), self.inference_ctx:
            if hasattr(model, "backbone"):
                frames = model.backbone(*inputs)
            if hasattr(model, "pool"):
                utterances = model.pool(*inputs)
        if frames is not None and "local_attributes" in self.mods:
            _, valid = valid_frames(inputs[1], frames.shape[1])
            targets = self.hparams.targets
            wanted = targets.normalise(targets.select(frames, valid))
            codes = torch.full(valid.shape, -1, device=frames.device)
            codes[valid.to(codes.device)] = self.mods.local_attributes.assign(
                wanted
            )
        return Embeddings(frames, inputs[1], utterances, codes)

    def _encode(self, wavs, wav_lens):
        """Computes frames as the feature cache holds them; lens, no mask."""
        self.eval()  # mods.train() may have been called
        wavs = wavs[None] if wavs.dim() == 1 else wavs
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs))
        num_samples, _ = valid_frames(wav_lens.cpu(), wavs.shape[1])
        if self.is_cut and self.longest is not None:
            most = round(self.longest * self.sample_rate) + 1
            num_samples = num_samples.clamp(max=most)
        signals = [w[:n] for w, n in zip(wavs.cpu(), num_samples.tolist())]
        feats, lens = {}, {}
        for name, front_end in self.hparams.front_ends.items():
            frames = [
                self._encode_alone(name, front_end, signal)
                for signal in signals
            ]
            longest = max(map(len, frames))
            lens[name] = torch.tensor([len(x) / longest for x in frames])
            feats[name] = pad_sequence(frames, batch_first=True)
            feats[name] = feats[name].to(self.device)
        if list(feats) == ["feats"]:
            return feats["feats"], lens["feats"], None
        names = [key.removeprefix("feats_") for key in feats]
        feats, lens = (dict(zip(names, x.values())) for x in (feats, lens))
        return feats, lens, dict.fromkeys(names)

    def _encode_alone(self, name, front_end, signal):
        """Encodes samples [n], and rounds the frames as the cache does."""
        encoder = self.mods[f"{name}_encoder"]
        frames = encode_utterance(encoder, signal, self.device)
        most = self.hparams.max_frames
        if len(frames) > most and self.hparams.long_utterances == "error":
            seconds = len(signal) / self.sample_rate
            raise RecipeError(
                f"{seconds:.1f} s are {len(frames)} frames, more than the "
                f"{most} that the model takes: for long audio, there is "
                "diarize_file (recognize --long), with shorter windows."
            )
        return round_frames(frames[:most], front_end["precision"])

    # Long audio ---------------------------------------------------------------

    def diarize_file(
        self,
        path,
        window=4.0,
        hop=2.0,
        pause=0.5,
        quiet=35.0,
        merge=True,
        speech=None,
    ):
        """Tells the emotions of a recording of any length, and its silence.

        Each stretch of speech is looked at through a window that moves on by
        ``hop``; each window is read and classified as :meth:`classify_file`
        would that part of the file, so that memory does not grow with the
        recording.

        Arguments
        ---------
        path : str
            The recording.
        window : float
            How much is classified at a time, in seconds; what the model has
            been trained on suits it best.
        hop : float
            Seconds from one window to the next.
        pause : float
            Shortest silence between two stretches of speech, in seconds.
        quiet : float
            How far below the loudest speech silence is, in decibels.
        merge : bool
            Whether neighbours of the same emotion become one segment, with
            their average probabilities.
        speech : list of tuple, optional
            Start and end of each stretch of speech, in their order, in seconds,
            of a detector of one's own, such as SpeechBrain's
            ``VAD.get_speech_segments(path).tolist()``. By default they are
            found by their energy (``pause``, ``quiet``).

        Returns
        -------
        segments : dict
            By the path, a list of dicts with "start" and "end" in seconds,
            "emotion" (a class or "silence"), and, where there is speech,
            "score", "probabilities" by class, and "windows", the parts of the
            file that were classified.

        Raises
        ------
        RecipeError
            If it cannot be read, or a number is no length.
        """
        self.check_lengths(window, hop, pause, quiet)
        if speech is None:
            speech, duration = find_speech(path, pause, quiet)
        else:
            duration = measure_duration(path)
        segments, place = [], 0.0
        for start, end in speech:
            if not place <= start < end:
                raise RecipeError(
                    f"speech from {start} s to {end} s does not follow what "
                    f"ends at {place} s: give stretches in their order."
                )
            if start > place:
                segments.append(_make_segment(place, start))
            segments += self._classify_stretch(path, start, end, window, hop)
            place = end
        if duration > place:
            segments.append(_make_segment(place, duration))
        return {str(path): _merge(segments) if merge else segments}

    def check_lengths(self, window, hop, pause, quiet):
        """Refuses what is no length for :meth:`diarize_file`."""
        check_number("window", window, least=0.1, most=self.longest_window)
        check_number("hop", hop, least=0.01)
        check_number("pause", pause, least=0)
        check_number("quiet", quiet, least=0)

    def _classify_stretch(self, path, start, end, window, hop):
        """Classifies a stretch of speech, a window for each part of it."""
        starts, last = [start], end - window
        while last - starts[-1] > 1e-6:  # else what floats are rounded by
            starts.append(min(starts[-1] + hop, last))
        parts = [
            (round(one, 3), round(min(one + window, end), 3)) for one in starts
        ]
        # a window speaks for what is nearer to its middle than to another's
        middles = [sum(part) / 2 for part in parts]
        borders = [(a + b) / 2 for a, b in zip(middles, middles[1:])]
        borders = [start, *borders, end]
        segments = []
        for part, *place in zip(parts, borders, borders[1:]):
            probabilities = self.classify_file(path, *part)[0][0].tolist()
            named = dict(zip(self.classes, probabilities))
            segments.append(_make_segment(*place, named, [part]))
        return segments


def _make_segment(start, end, probabilities=None, windows=()):
    """Makes a segment, of silence where there are no probabilities."""
    segment = {"start": round(start, 3), "end": round(end, 3)}
    if probabilities is None:
        return {**segment, "emotion": SILENCE}
    emotion = max(probabilities, key=probabilities.get)
    return {
        **segment,
        "emotion": emotion,
        "score": probabilities[emotion],
        "probabilities": probabilities,
        "windows": [list(window) for window in windows],
    }


def _merge(segments):
    """Joins neighbours of the same emotion."""
    merged = []
    for segment in segments:
        last = merged[-1] if merged else {"emotion": None}
        if (
            last["emotion"] != segment["emotion"]
            or segment["emotion"] == SILENCE
        ):
            merged.append(segment)
            continue
        counts = len(last["windows"]), len(segment["windows"])
        probabilities = {
            name: (
                counts[0] * value + counts[1] * segment["probabilities"][name]
            )
            / sum(counts)
            for name, value in last["probabilities"].items()
        }
        windows = last["windows"] + segment["windows"]
        merged[-1] = _make_segment(
            last["start"], segment["end"], probabilities, windows
        )
    return merged


# Model folders ----------------------------------------------------------------


def _find_folder(hparams):
    """Finds the model folder, by where its weights have been collected."""
    path = Path(hparams["pretrainer"].paths["model"])
    if hparams.get("savedir"):
        path = Path(os.readlink(path)) if path.is_symlink() else path
    return path.parent


def _open_encoder(front_end, folder):
    """Makes an encoder, and refuses another one than in training."""
    make, source = front_end["encoder"], None
    if isinstance(make, partial):
        source = make.keywords.get("source")
        if source and (folder / source).is_dir():  # bundled
            make = partial(make, source=str(folder / source))
    cure = (
        f"name the right one as source in {folder / HPARAMS_FILE}, or export "
        "the model with --bundle_encoder."
    )
    try:
        encoder = make()
    except RecipeError as error:
        raise RecipeError(f"{error} For this model: {cure}")
    digest = digest_encoder(encoder)
    if digest != front_end["digest"]:
        raise RecipeError(
            f"the encoder {source or type(encoder).__name__} is another one "
            f"than the model in {folder} was trained with (its digest is "
            f"{digest}, not {front_end['digest']}): {cure}"
        )
    return encoder
