"""Features of a fold's utterances, their statistics, and the datasets."""

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes

from speechbrain_wap.data.corpus_table import record_skipped
from speechbrain_wap.errors import RecipeError, check_choice


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
    """
    entries = {k: e for split in splits.values() for k, e in split.items()}
    by_digest = {entry["digest"]: entry for entry in entries.values()}
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


def measure_features(cache, entries, weights=None):
    """Computes mean and standard deviation of the frames, per dimension.

    Arguments
    ---------
    cache : speechbrain_wap.features.FeatureCache
        The filled feature cache.
    entries : dict
        Manifest entries of the training utterances, and of no others.
    weights : dict, optional
        How often the training sees each, by id; once, by default.

    Returns
    -------
    mean : torch.Tensor
        Shape [D].
    std : torch.Tensor
        Shape [D].
    """
    count, total, squares = 0, 0.0, 0.0
    for key, entry in entries.items():
        feats = cache.read(entry["digest"]).double()
        weight = weights[key] if weights else 1.0
        count += weight * len(feats)
        total = total + weight * feats.sum(dim=0)
        squares = squares + weight * feats.square().sum(dim=0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0)
    return mean.float(), variance.sqrt().float()


def make_dataset(
    entries, cache, max_frames, long_utterances, dynamic_items=(), keys=()
):
    """Makes a SpeechBrain dataset whose features come from the cache.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    cache : speechbrain_wap.features.FeatureCache
        The filled cache.
    max_frames : int
        Longest utterance that the position embedding has room for (D12).
    long_utterances : str
        What happens to longer ones: "error" or "cut".
    dynamic_items : tuple
        Further dynamic items.
    keys : tuple of str
        Further output keys.

    Returns
    -------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        With the output keys id and feats (shape [T, D], storage precision).
    """
    check_choice("long_utterances", long_utterances, ("error", "cut"))
    if long_utterances == "error":
        for key, entry in entries.items():
            num_frames = cache.count_frames(entry["digest"])
            if num_frames > max_frames:
                raise RecipeError(
                    f"{key} has {num_frames} frames, more than "
                    f"max_frames={max_frames}: raise max_frames or set "
                    "long_utterances: cut."
                )

    @takes("digest")
    @provides("feats")
    def features(digest):
        """Reads an utterance's features, cut where they are too long."""
        return cache.read(digest)[:max_frames]

    return DynamicItemDataset(
        entries,
        dynamic_items=[features, *dynamic_items],
        output_keys=["id", "feats", *keys],
    )
