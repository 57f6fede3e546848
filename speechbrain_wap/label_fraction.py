"""Fine-tuning on a share of the labels, in as many steps as on all of them."""

from collections import Counter

from speechbrain_wap.masking import utterance_generator


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
        # initial_seed is the digest of seed and id itself
        members.sort(
            key=lambda key: (
                utterance_generator(seed, 0, key, "label").initial_seed(),
                key,
            )
        )
        chosen.update(members[: max(1, round(fraction * len(members)))])
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


def repeat_utterances(manifest, num_passes):
    """Lists utterances as often as an epoch may go through them.

    A repeat has an id of its own, so that what is random about it (its mask)
    is another one.

    Arguments
    ---------
    manifest : dict
        Entries by id.
    num_passes : int
        How often each is listed.

    Returns
    -------
    repeated : dict
        One pass after the other, each in the manifest's order. The first one
        has the manifest's ids, the others a number behind them.

    Example
    -------
    >>> list(repeat_utterances({"a": {}, "b": {}}, 2))
    ['a', 'b', 'a*1', 'b*1']
    """
    repeated = dict(manifest)
    for number in range(1, num_passes):
        for key, entry in manifest.items():
            name = f"{key}*{number}"
            while name in repeated:  # may be an utterance's id
                name += "'"
            repeated[name] = entry
    return repeated
