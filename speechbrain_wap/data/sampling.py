"""Sampling: which labels are used, and how often an epoch has an utterance.

Copies of an utterance are entries with ids of their own, so that what is random
about them (their masks) differs; which utterances are drawn is a function of
seed, epoch and ids, so that it does not depend on batches, ranks or an
interruption.
"""

from collections import Counter

from speechbrain_wap.masking import shuffle_utterances


class EpochPlan:
    """Says how often an epoch has the utterances of each group.

    Where n utterances fill m places of an epoch, it has each of them
    ``m // n`` times, and another random ``m % n`` of them once more: epochs
    have the same length.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    groups : list of tuple
        Ids of each group (each in one group only) and its number of places, at
        least 1.
    seed : int
        The run's seed.

    Attributes
    ----------
    entries : dict
        The entries, then the copies; a copy's id is the original's with "+" and
        a number. Where each utterance has one place, it is what was given.
    weights : dict
        How often, on average, an epoch has each utterance, by id.

    Example
    -------
    >>> entries = {"a": {}, "b": {}, "c": {}, "d": {}}
    >>> plan = EpochPlan(entries, [(["a", "b"], 3), (["c", "d"], 1)], seed=1)
    >>> list(plan.entries)
    ['a', 'b', 'c', 'd', 'a+1', 'b+1']
    >>> len(plan), plan.weights["a"], plan.weights["c"]
    (4, 1.5, 0.5)
    >>> plan.choose(epoch=3), plan.choose(epoch=4)
    ([0, 1, 3, 5], [0, 1, 3, 4])
    """

    def __init__(self, entries, groups, seed):
        self.entries = dict(entries)
        self.seed = seed
        self.weights = {}
        self._always = []  # ids in every epoch
        self._drawn = []  # copies by original id, and how many an epoch has
        for ids, places in groups:
            whole, rest = divmod(places, len(ids))
            self.weights.update(dict.fromkeys(ids, places / len(ids)))
            for number in range(whole):
                self._always += [self._copy(key, number) for key in ids]
            if rest:
                copies = {key: self._copy(key, whole) for key in ids}
                self._drawn.append((copies, rest))
        self._places = {key: place for place, key in enumerate(self.entries)}

    def _copy(self, key, number):
        """Adds an entry for another place of an utterance; returns its id."""
        if number == 0:
            return key
        name = f"{key}+{number}"
        while name in self.entries:  # may be an utterance's id
            name += "'"
        self.entries[name] = self.entries[key]
        return name

    def __len__(self):
        """Counts the places of an epoch."""
        return len(self._always) + sum(number for _, number in self._drawn)

    def choose(self, epoch):
        """Chooses what an epoch has.

        Arguments
        ---------
        epoch : int
            Counted from 1.

        Returns
        -------
        numbers : list of int
            Places in ``entries``, ascending.
        """
        chosen = list(self._always)
        for copies, number in self._drawn:
            order = shuffle_utterances(copies, self.seed, epoch, "draw")
            chosen += [copies[key] for key in order[:number]]
        return sorted(self._places[key] for key in chosen)


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
    """
    counts = Counter(entry["label"] for entry in manifest.values())
    return {name: counts[name] for name in classes}
