"""Features of a fold's utterances, and the datasets of both stages."""

from itertools import product

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import DynamicItem

from speechbrain_wap.data.corpus_table import record_skipped
from speechbrain_wap.encoders.own_module import check_module
from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
from speechbrain_wap.errors import RecipeError


def extract_features(cache, splits, skipped_csv, max_skipped):
    """Fills the feature cache for the splits of a fold.

    Arguments
    ---------
    cache : speechbrain_wap.features.FeatureCache
        The cache.
    splits : dict
        Manifest entries by utterance id of each split that is used.
    skipped_csv : str
        Lists what could not be encoded, with the reason.
    max_skipped : float
        Share of the utterances that may fail, 0 to 1.

    Returns
    -------
    splits : dict
        Without what could not be encoded.

    Raises
    ------
    RecipeError
        If too many fail, or an encoder of the user's gives no frames.
    """
    entries = {k: e for split in splits.values() for k, e in split.items()}
    by_digest = {entry["digest"]: entry for entry in entries.values()}
    is_own = not isinstance(cache.encoder, SpeechEncoder)
    if is_own and cache.missing(by_digest):
        # a fault of the module is no fault of the utterances
        check_module(cache.encoder.to(cache.device))
    failures = cache.extract(by_digest)
    reasons = {
        key: failures[entry["digest"]]
        for key, entry in entries.items()
        if entry["digest"] in failures
    }
    record_skipped(
        skipped_csv,
        reasons,
        list(entries),
        max_skipped,
        append=True,  # to what preparation could not read
    )
    usable = {
        name: {k: e for k, e in split.items() if k not in reasons}
        for name, split in splits.items()
    }
    if not usable["train"]:
        raise RecipeError(
            "no utterance of the train split can be used: "
            f"{skipped_csv} says why."
        )
    return usable


def feats_key(name):
    """Names the output key of a cache's features.

    Arguments
    ---------
    name : str
        What the YAML calls the cache; "" where there is one only.

    Returns
    -------
    key : str

    Example
    -------
    >>> feats_key(""), feats_key("pitch")
    ('feats', 'feats_pitch')
    """
    return f"feats_{name}" if name else "feats"


def make_dataset(entries, caches, max_frames, long_utterances, keys=()):
    """Makes a SpeechBrain dataset whose features come from caches.

    Nothing in it is a closure: worker processes take it however they start.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    caches : dict
        The filled feature caches by name, see :func:`feats_key`.
    max_frames : int
        Longest utterance that the position embedding has room for (D12).
    long_utterances : str
        What happens to longer ones: "error" or "cut".
    keys : tuple of str
        Further output keys, which the entries have.

    Returns
    -------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        With the output keys id and, for each cache, its features (shape
        [T, D], storage precision).

    Raises
    ------
    RecipeError
        If an utterance is too long; names it.
    """
    if long_utterances == "error":
        for (key, entry), cache in product(entries.items(), caches.values()):
            num_frames = cache.count_frames(entry["digest"])
            if num_frames > max_frames:
                raise RecipeError(
                    f"{key} has {num_frames} frames, more than "
                    f"max_frames={max_frames}: raise max_frames or set "
                    "--long_utterances=cut."
                )

    return DynamicItemDataset(
        entries,
        dynamic_items=[
            DynamicItem(
                ["digest"], cache.make_reader(max_frames), [feats_key(name)]
            )
            for name, cache in caches.items()
        ],
        output_keys=["id", *map(feats_key, caches), *keys],
    )


def make_labelled_dataset(entries, caches, classes, speakers, keys=(), **how):
    """Makes a dataset of features, classes and speakers.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id; without a label, it is None.
    caches : dict
        The filled feature caches by name.
    classes : list of str
        The classes in their order.
    speakers : list of str
        The training speakers.
    keys : tuple of str
        Further output keys, which the entries have.
    **how : dict
        max_frames and long_utterances, see :func:`make_dataset`.

    Returns
    -------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        See :func:`make_dataset`; also with target, the class's index, -1
        without a label; speaker_index, that of the speaker, -1 for one who
        does not train; and speaker_name.
    """

    targets = {None: -1} | {name: n for n, name in enumerate(classes)}
    numbers = {speaker: number for number, speaker in enumerate(speakers)}
    entries = {
        key: {
            **entry,
            "target": targets[entry["label"]],
            "speaker_index": numbers.get(entry["speaker"], -1),
            "speaker_name": entry["speaker"],
        }
        for key, entry in entries.items()
    }
    keys = ["target", "speaker_index", "speaker_name", *keys]
    return make_dataset(entries, caches, keys=keys, **how)
