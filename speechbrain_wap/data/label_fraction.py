"""Fine-tuning on a share of the labels: which, and how many of each class."""

from collections import Counter

from speechbrain_wap.masking import shuffle_utterances


def choose_labelled(manifest, fraction, seed):
    """Chooses the utterances whose labels are used.

    Of n utterances of a class, ``max(1, round(fraction * n))`` are chosen: the
    first ones in an order that seed and ids alone decide. A smaller fraction
    hence lies inside a larger one, and no class depends on another.

    Arguments
    ---------
    manifest : dict
        Entries of the training utterances by id, each with a label.
    fraction : float
        Share of them, above 0 and at most 1 (all).
    seed : int
        Another seed, other utterances.

    Returns
    -------
    chosen : dict
        Their entries, in the manifest's order.

    Example
    -------
    >>> manifest = {f"u{i}": {"label": "ab"[i % 2]} for i in range(20)}
    >>> few = choose_labelled(manifest, 0.2, seed=1)
    >>> more = choose_labelled(manifest, 0.5, seed=1)
    >>> len(few), len(more), few.keys() <= more.keys()
    (4, 10, True)
    """
    classes = {}
    for key, entry in manifest.items():
        classes.setdefault(entry["label"], []).append(key)
    chosen = set()
    for members in classes.values():
        number = max(1, round(fraction * len(members)))
        chosen.update(shuffle_utterances(members, seed, 0, "label")[:number])
    return {key: entry for key, entry in manifest.items() if key in chosen}


def count_labels(manifest, classes):
    """Counts the utterances of each class.

    Arguments
    ---------
    manifest : dict
        Entries by id, each with a label.
    classes : list of str
        The classes in their order.

    Returns
    -------
    counts : dict
        Number by class.

    Example
    -------
    >>> count_labels({"u": {"label": "sad"}}, ["angry", "sad"])
    {'angry': 0, 'sad': 1}
    """
    counts = Counter(entry["label"] for entry in manifest.values())
    return {name: counts[name] for name in classes}
