"""Classes: which labels each has, and what stage 2 uses of a corpus (D2)."""

import re

from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.speakers import natural_key
from speechbrain_wap.errors import RecipeError, check_choice

logger = get_logger(__name__)

# Columns of predictions.csv beside those of the classes
PREDICTION_COLUMNS = ("id", "session", "speaker", "label", "prediction")
# What is often written where there is no label, letters alone
NO_LABELS = (
    "xxx na nan none null nil unknown unk undefined unlabelled unlabeled "
    "nolabel noagreement other others oth"
).split()
STYLES = ("improvised", "scripted")


def choose_classes(table, classes, explicit=True):
    """Chooses the classes and the labels of each (D2).

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    classes : dict, str or None
        Labels of each class; "all" or None makes every label of the table a
        class.
    explicit : bool
        Whether the user asked for these classes. If not, and they do not fit
        (the YAML's, for another corpus than the table's), each label of the
        table is a class.

    Returns
    -------
    classes : dict
        Labels (list) of each class, in order.

    Raises
    ------
    RecipeError
        If a class has no utterance, a label is in two classes, or there are
        fewer than two classes.
    """
    labels = sorted(set(table["emo"]) - {""}, key=natural_key)
    own = {label: [label] for label in labels}
    if classes in (None, "all"):
        chosen = own
    elif isinstance(classes, dict):
        # None: a class of the YAML that an override left out
        chosen = {
            str(name): [str(v) for v in (v if isinstance(v, list) else [v])]
            for name, v in classes.items()
            if v is not None
        }
    else:
        raise RecipeError(
            f"classes is {classes!r}, but must map each class to its labels, "
            "as in {angry: [ang], happy: [hap, exc]}, or be 'all'."
        )
    absent = [name for name in chosen if not set(chosen[name]) & set(labels)]
    if absent and not explicit:
        logger.warning(
            f"The YAML's classes ({', '.join(chosen)}) do not fit this corpus "
            f"table, which has no {absent[0]}: its own labels are the classes "
            f"({', '.join(own)}). Map them with --classes if that is not meant."
        )
        chosen, absent = own, []
    if chosen is own:
        _warn_of_no_labels(own)
    if absent:
        raise RecipeError(
            f"classes: no utterance of the class {absent[0]} (labels "
            f"{', '.join(chosen[absent[0]])}): the corpus has the labels "
            f"{', '.join(labels) or 'none'}."
        )
    for name in chosen:
        if name in PREDICTION_COLUMNS:
            raise RecipeError(
                f"the class {name} has the name of a column of "
                "predictions.csv: give it another with --classes="
                f'"{{my_{name}: [{name}], ...}}".'
            )
    seen = {}
    for name, members in chosen.items():
        for label in members:
            if seen.setdefault(label, name) != name:
                raise RecipeError(
                    f"the label {label} is in two classes, {seen[label]} and "
                    f"{name}: map it to one."
                )
    if len(chosen) < 2:
        raise RecipeError(
            "classification needs at least two classes, but the classes are "
            f"{', '.join(chosen) or 'none'}: check the column emo and the key "
            "classes."
        )
    return chosen


def _warn_of_no_labels(labels):
    """Warns of classes that may be words for no label at all."""
    doubtful = [
        label
        for label in labels
        if re.sub("[^a-z]", "", label.casefold()) in NO_LABELS
        or label.strip("?-_. ") == ""
    ]
    if doubtful:
        logger.warning(
            f"Of the classes, {', '.join(doubtful)} may stand for no label: if "
            "so, leave these cells of the column emo empty, or map the other "
            "labels with --classes; the speech then trains the adapter only."
        )


def label_utterances(table, classes, dialogue_style="all"):
    """Keeps the utterances that stage 2 uses, with their classes (D2).

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    classes : dict
        Labels of each class.
    dialogue_style : str
        "improvised", "scripted" or "all"; only for a corpus whose table has
        the column style with these values.

    Returns
    -------
    labelled : pandas.DataFrame
        The rows of the classes, with the column label (the class's name).

    Raises
    ------
    RecipeError
        If the style is unknown or leaves a class without utterance.
    """
    check_choice("dialogue_style", dialogue_style, (*STYLES, "all"))
    names = {v: name for name, members in classes.items() for v in members}
    # an own table may mean something else by style
    styles = set()
    if "style" in table:
        styles = {*table["style"][table["emo"].isin(names)]}
    known, others = sorted(styles & {*STYLES}), sorted(styles - {*STYLES})
    if dialogue_style != "all" and known and others:
        raise RecipeError(
            f"dialogue_style={dialogue_style}, but the column style has "
            f"'{others[0]}' beside {', '.join(known)}: correct the table, or "
            "set --dialogue_style=all."
        )
    if dialogue_style != "all" and known:
        table = table[table["style"] == dialogue_style]
        if len(table) == 0:
            raise RecipeError(
                f"dialogue_style={dialogue_style} leaves no utterance: choose "
                f"one of all, {', '.join(known)}."
            )
    labelled = table.assign(label=table["emo"].map(names))
    is_left_out = labelled["label"].isna() & (table["emo"] != "")
    if is_left_out.any():
        counts = table["emo"][is_left_out].value_counts().sort_index()
        listing = ", ".join(f"{label} ({n})" for label, n in counts.items())
        logger.info(f"Labels that are in no class are left out: {listing}.")
    labelled = labelled[labelled["label"].notna()]
    for name in classes:
        if not (labelled["label"] == name).any():
            raise RecipeError(
                f"no utterance of the class {name} among the dialogues that "
                f"dialogue_style={dialogue_style} keeps."
            )
    return labelled


def list_classes(splits, classes):
    """Lists the classes of a fold in the YAML's order.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id, with labels.
    classes : dict, str or None
        The YAML's classes.

    Returns
    -------
    names : list of str
    """
    found = {e["label"] for split in splits.values() for e in split.values()}
    ordered = list(classes) if isinstance(classes, dict) else []
    if found <= set(ordered):
        return [name for name in ordered if name in found]
    return sorted(found, key=natural_key)


def check_labels(labels, classes, fold="the fold"):
    """Makes sure that a fold can be trained on and tested.

    Arguments
    ---------
    labels : dict
        Labels of all utterances of "train", "valid" and "test".
    classes : list of str
        The classes.
    fold : str
        What errors call the fold.

    Raises
    ------
    RecipeError
        If a split is empty, a class has no training utterance, or a label is
        no class.
    """
    for name, split in labels.items():
        if not split:
            raise RecipeError(
                f"{fold} has no labelled utterance in its {name} split: "
                "choose another fold or other classes."
            )
        unknown = set(split) - set(classes)
        if unknown:
            raise RecipeError(
                f"the label {min(unknown)} in the {name} split of {fold} is "
                f"no class: the classes are {', '.join(classes)}."
            )
    for name in classes:
        if name not in set(labels["train"]):
            raise RecipeError(
                f"no utterance of the class {name} in the training sessions "
                f"of {fold}: choose other classes or another fold."
            )
