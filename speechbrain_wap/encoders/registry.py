"""The families of encoders, and what each has to offer (Sec. II-A.1).

A front end is a module that is given one utterance without padding and returns
the states of the chosen layers: layer 0 is what enters the first Transformer
layer, n what leaves the n-th, and the last is the model's output. Layers beyond
the highest chosen one are not run (but for the first, which always is, save in
Whisper). Which other layers are chosen changes nothing, but for the last bits
in Whisper, whose highest chosen layer is not computed for the padding.

It has the attributes ``num_layers`` (the index of the last one),
``output_size`` (D), ``sample_rate`` (Hz), ``frame_rate`` (frames per second)
and ``min_samples`` (the fewest that give a frame), and the methods

- ``identity()``: a dict of plain values that the features depend on;
- ``load(layers, device)``: readies it for these layers, weights loaded once;
- ``forward(signal, layers)``: maps samples [n] at ``sample_rate`` to states
  [len(layers), T, D], where ``layers`` are those that were loaded.

To add a family: a file like :mod:`speechbrain_wap.encoders.w2v_bert`, and a
line in :data:`FRONT_ENDS`, or in :data:`WEIGHT_FREE`.
"""

from speechbrain_wap.encoders.checkpoints import read_config, resolve_source
from speechbrain_wap.encoders.fbank import FbankFrontEnd
from speechbrain_wap.encoders.spectra import MFCCFrontEnd, SpectrogramFrontEnd
from speechbrain_wap.encoders.w2v_bert import W2VBertFrontEnd
from speechbrain_wap.encoders.waveform import WaveformFrontEnd
from speechbrain_wap.encoders.whisper import WhisperFrontEnd
from speechbrain_wap.errors import RecipeError

# By model_type of the checkpoint's config
FRONT_ENDS = {
    "data2vec-audio": WaveformFrontEnd,
    "hubert": WaveformFrontEnd,
    "wav2vec2": WaveformFrontEnd,
    "wav2vec2-bert": W2VBertFrontEnd,
    "wavlm": WaveformFrontEnd,
    "whisper": WhisperFrontEnd,
}
# By encoder_source, without a checkpoint
WEIGHT_FREE = {
    "fbank": FbankFrontEnd,
    "mfcc": MFCCFrontEnd,
    "spectrogram": SpectrogramFrontEnd,
}


def make_front_end(source, context="full", revision=None):
    """Chooses the front end by the checkpoint's own config.

    Arguments
    ---------
    source : str
        Hub id, folder, or a name of :data:`WEIGHT_FREE`.
    context : str
        "full" or "clip"; matters for Whisper only.
    revision : str, optional
        Commit, tag or branch of a hub id.

    Returns
    -------
    front_end : torch.nn.Module
    commit : str or None
        Of a hub id, the one that it was found at.

    Raises
    ------
    RecipeError
        If the checkpoint is not to be had, or of a family that is not served.
    """
    if source in WEIGHT_FREE:
        if revision is not None:
            raise RecipeError(
                f"encoder_revision={revision} is for hub ids, but "
                f"encoder_source is {source}: leave it out."
            )
        return WEIGHT_FREE[source](), None
    folder, commit = resolve_source(source, revision)
    config = read_config(folder, "config.json")
    family = config.get("model_type")
    known = ", ".join(sorted(FRONT_ENDS))
    if family is None:
        raise RecipeError(
            f"{folder}/config.json names no model_type: write the family into "
            f"it, which is one of {known}."
        )
    if family not in FRONT_ENDS:
        raise RecipeError(
            f"encoder_source={source} is of the family {family!r}, but only "
            f"{known}, {', '.join(WEIGHT_FREE)} are supported: wire another "
            "module with encoder: !new: in the YAML."
        )
    return FRONT_ENDS[family](folder, config, context), commit
