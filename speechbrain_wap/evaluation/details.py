"""What a test leaves for the report, beside scores and predictions.

``details.json`` has the linear probe of the same fold, the weights that a model
gives to layers, and of each utterance the envelope of its waveform and the
attention of its frames, each as BINS digits; if only its beginning was used,
where in the file that ends.
"""

import json
import string
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import read_audio
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import ANY_BYTES, write_text

logger = get_logger(__name__)

DETAILS = "details.json"
# An utterance is drawn in so many steps, whatever its length
BINS = 100
# Of a step's height: 0 is nothing, z the utterance's largest
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Enough for the envelope of speech
SAMPLE_RATE = 16000


def write_digits(values):
    """Writes a curve as BINS digits, relative to its largest value.

    Arguments
    ---------
    values : numpy.ndarray
        Shape [n], not negative; a digit is the largest value of its part.

    Returns
    -------
    digits : str

    Example
    -------
    >>> write_digits(np.array([0.0, 0.5, 1.0, 0.0]))[::25]
    '0Uz0'
    """
    starts = np.arange(BINS) * len(values) // BINS
    heights = np.maximum.reduceat(np.asarray(values, np.float64), starts)
    largest = heights.max()
    if largest > 0.0:
        heights = heights / largest
    return "".join(DIGITS[round(h * (len(DIGITS) - 1))] for h in heights)


def weigh_frames(model, ids, feats, lens):
    """Asks a model how much the frames of each utterance count.

    Arguments
    ---------
    model : torch.nn.Module
        A system, see ``emotion_model.py``.
    ids : list of str
        The utterances.
    feats, lens : torch.Tensor or dict
        As the model is given them.

    Returns
    -------
    weights : dict
        Digits by utterance id; empty where the model does not tell.
    """
    weights = None
    if hasattr(model, "frame_weights"):
        weights = model.frame_weights(feats, lens)
    if weights is None:
        return {}
    return {
        key: write_digits(row.float().cpu().numpy())
        for key, row in zip(ids, weights)
    }


def _draw_envelope(entry, end):
    """Draws a waveform as digits; None where the audio cannot be read."""
    try:
        signal = read_audio(entry["wav"], SAMPLE_RATE, entry.get("start"), end)
    except RecipeError as error:
        logger.warning(f"{error} The report is without its waveform.")
        return None
    return write_digits(signal.abs().numpy())


def write_details(folder, model, entries, weights, probe, heard=None):
    """Writes details.json.

    Arguments
    ---------
    folder : str
        The run's output folder.
    model : torch.nn.Module
        What was tested. A parameter whose name ends with "layer_weights" is
        taken for weights of layers, before a softmax.
    entries : dict
        Manifest entries of the tested utterances by id.
    weights : dict
        What :func:`weigh_frames` gave.
    probe : dict or None
        UA, WA and F1 of a linear probe on the same utterances.
    heard : float, optional
        Seconds of an utterance that the model is given at most (D12).
    """
    ends = {
        key: (entry.get("start") or 0.0) + heard
        for key, entry in entries.items()
        if heard is not None and entry["duration"] > heard
    }
    details = {
        "linear_probe": probe,
        "layer_weights": {
            name: parameter.detach().float().softmax(dim=0).tolist()
            for name, parameter in model.named_parameters()
            if name.endswith("layer_weights")
        },
        "envelope": {
            key: _draw_envelope(e, ends.get(key, e.get("end")))
            for key, e in entries.items()
        },
        "heard_end": ends,
        "attention": {key: weights[key] for key in entries if key in weights},
    }
    write_text(Path(folder, DETAILS), json.dumps(details, indent=0))


def read_details(folder):
    """Reads details.json, for a report.

    Arguments
    ---------
    folder : str
        The run's output folder.

    Returns
    -------
    details : dict
        Without content where an earlier version ran, or it is damaged.
    """
    empty = {"linear_probe": None}
    named = ("layer_weights", "envelope", "heard_end", "attention")
    empty |= {key: {} for key in named}
    path = Path(folder, DETAILS)
    try:
        return {**empty, **json.loads(path.read_text(**ANY_BYTES))}
    except (OSError, TypeError, ValueError):
        logger.warning(
            f"{path} is missing or damaged: the report shows neither waveforms "
            "nor attention of that run; run train_classifier.py --test_only."
        )
        return empty
