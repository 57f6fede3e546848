"""From a corpus to the datasets of a stage, the same way for both stages.

corpus -> corpus table -> manifests of a fold -> cached features -> datasets
"""

import hashlib
import json
import os
import re
from collections import Counter
from itertools import product
from pathlib import Path

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio import inspect_audio
from speechbrain_wap.data.corpus_table import (
    SKIPPED_NAME,
    choose_classes,
    inspect_files,
    label_utterances,
    natural_key,
    read_own_corpus,
    read_skipped,
    record_skipped,
    split_table,
    write_corpus_table,
    write_manifest,
)
from speechbrain_wap.data.further_corpora import (
    ORIGIN_COLUMNS,
    choose_utterances,
    find_held_out_people,
    join_tables,
    original_names,
    read_tables,
    report_choice,
    warn_of_same_ids,
)
from speechbrain_wap.data.speakers import check_speakers
from speechbrain_wap.errors import RecipeError, check_choice

logger = get_logger(__name__)

SPLITS = ("train", "valid", "test")
# In the cache folder: which audio files are known
AUDIO_INDEX = "audio_index.json"


def find_index(cache_folder):
    """Names the file that keeps which audio files are known.

    Arguments
    ---------
    cache_folder : str
        The cache's folder.

    Returns
    -------
    audio_index : str
        See :func:`speechbrain_wap.data.corpus_table.inspect_files`.
    """
    return os.path.join(cache_folder, AUDIO_INDEX)


def prepare_table(
    prepare_corpus,
    data_folder,
    corpus_csv,
    corpus_table,
    max_skipped,
    cache_folder,
):
    """Writes the corpus table of a recipe's corpus or of an own one.

    Arguments
    ---------
    prepare_corpus : callable
        The recipe's prepare function.
    data_folder : str
        The recipe's corpus.
    corpus_csv : str or None
        Table of an own corpus, which is used instead.
    corpus_table : str
        The file to write.
    max_skipped : float
        Share of the audio files that may be unreadable, 0 to 1.
    cache_folder : str
        Where it is kept which audio files are known.

    Returns
    -------
    table : pandas.DataFrame
    """
    kept = {
        "max_skipped": max_skipped,
        "audio_index": find_index(cache_folder),
    }
    if corpus_csv:
        table = read_own_corpus(corpus_csv)
        return write_corpus_table(table, corpus_table, **kept)
    return prepare_corpus(data_folder, corpus_table, **kept)


def prepare_adapter_data(
    corpus,
    fold,
    protocol,
    adapter_data,
    manifests,
    corpora=(),
    left_out_csv=None,
):
    """Writes the manifests of stage 1: all utterances, labelled or not (D8).

    Labels serve to watch the training, with those of the training sessions.

    Arguments
    ---------
    corpus : dict
        Arguments of :func:`prepare_table`; where they name no corpus, the
        adapter trains on the further tables alone, and nothing is held out.
    fold : int
        Counted from 1.
    protocol : str
        "paper" or "held_out" (D9).
    adapter_data : str
        "train": the training sessions only; "all": every session, the
        transductive reading.
    manifests : dict
        File to write for "train", "valid" and "test".
    corpora : list of dict
        Further tables, see :func:`speechbrain_wap.data.further_corpora.parse_corpora`.
    left_out_csv : str, optional
        Lists what of them may not be, or is already, among the training data.
    """
    if adapter_data not in ("train", "all"):
        raise RecipeError(
            f"adapter_data={adapter_data} is unknown: choose train or all."
        )
    table, further = prepare_tables(corpus, corpora)
    if table is None:
        nothing = further[:0]
        splits = {"train": nothing, "valid": nothing, "test": nothing}
    else:
        splits = split_table(table, fold, protocol)
    if adapter_data == "all" and table is not None:
        nothing = table[:0]
        # labels of held-out speakers are not even written down
        is_train = table["id"].isin(splits["train"]["id"])
        if corpora:
            people = find_held_out_people(further, table[~is_train])
            is_held_out = further["speaker"].isin(people)
            further = further.assign(emo=further["emo"].mask(is_held_out, ""))
        table = table.assign(emo=table["emo"].where(is_train, ""))
        splits = {"train": table, "valid": nothing, "test": nothing}
        logger.warning(
            "adapter_data=all: the adapter sees the held-out session's "
            "speakers (without labels); the report says so."
        )
    elif protocol == "paper":
        # The held-out session, valid and test in one, is not even looked at.
        splits["valid"] = splits["valid"][:0]
    if corpora:
        train, held_out = splits["train"], further[:0]
        if table is not None:
            held_out = table[~table["id"].isin(train["id"])]
        added, left_out = choose_utterances(further, train, held_out)
        report_choice(corpora, added, left_out, left_out_csv)
        warn_of_same_ids(added, held_out)
        splits["train"] = join_tables(train, added)
    for name in SPLITS:
        optional = ORIGIN_COLUMNS if corpora and name == "train" else ()
        write_manifest(splits[name], manifests[name], optional)


def prepare_tables(corpus, corpora=()):
    """Writes the table of the corpus under test and reads the further ones.

    Arguments
    ---------
    corpus : dict
        Arguments of :func:`prepare_table`.
    corpora : list of dict
        Further tables, see :func:`speechbrain_wap.data.further_corpora.parse_corpora`.

    Returns
    -------
    table : pandas.DataFrame or None
        None where there is no corpus under test.
    further : pandas.DataFrame or None
        See :func:`speechbrain_wap.data.further_corpora.read_tables`; None without corpora.

    Raises
    ------
    RecipeError
        If too much of all tables together cannot be read, among others.
    """
    if not corpora:
        return prepare_table(**corpus), None
    audio_index = find_index(corpus["cache_folder"])
    skipped_csv = Path(corpus["corpus_table"]).with_name(SKIPPED_NAME)
    table, reasons, ids = None, {}, []
    if corpus["corpus_csv"] or corpus["data_folder"]:
        # what may be unreadable is a share of all tables
        table = prepare_table(**{**corpus, "max_skipped": 1.0})
        reasons = read_skipped(skipped_csv)
        ids = [*table["id"], *reasons]
    further, unreadable, further_ids = read_tables(corpora, audio_index)
    ids += further_ids
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise RecipeError(
            f"the id {repeated[0]} stands for more than one utterance of the "
            "corpus under test and the tables of corpora: give a table there "
            "another name, as in {table: b.csv, name: mine}."
        )
    record_skipped(
        skipped_csv, {**reasons, **unreadable}, ids, corpus["max_skipped"]
    )
    return table, further


def split_labelled(table, classes, dialogue_style, fold, protocol):
    """Splits the utterances of the classes, and checks that they can serve.

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    classes : dict
        Labels of each class.
    dialogue_style : str
        "improvised", "scripted" or "all".
    fold : int
        Counted from 1, over all sessions, labelled or not.
    protocol : str
        "paper" or "held_out" (D9).

    Returns
    -------
    splits : dict
        Table of "train", "valid" and "test".

    Raises
    ------
    RecipeError
        If a split is empty, a class has no utterance in the training
        sessions, or a speaker is in two splits.
    """
    labelled = label_utterances(table, classes, dialogue_style)
    whole = split_table(table, fold, protocol)
    check_speakers(
        {
            name: split.set_index("id").to_dict("index")
            for name, split in whole.items()
        }
    )
    splits = {
        name: labelled[labelled["id"].isin(split["id"])]
        for name, split in whole.items()
    }
    check_labels(
        {name: list(split["label"]) for name, split in splits.items()},
        classes,
        f"fold {fold}",
    )
    return splits


def check_labels(labels, classes, fold="the fold"):
    """Makes sure that a fold can be trained and tested.

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


def prepare_classifier_data(
    corpus,
    fold,
    protocol,
    classes,
    explicit_classes,
    dialogue_style,
    manifests,
):
    """Writes the manifests of stage 2: the utterances of the classes (D2).

    Arguments
    ---------
    corpus : dict
        Arguments of :func:`prepare_table`.
    fold : int
        Counted from 1.
    protocol : str
        "paper" or "held_out" (D9).
    classes : dict, str or None
        Labels of each class, or "all".
    explicit_classes : bool
        See :func:`speechbrain_wap.data.corpus_table.choose_classes`.
    dialogue_style : str
        "improvised", "scripted" or "all".
    manifests : dict
        File to write for "train", "valid" and "test".

    Raises
    ------
    RecipeError
        If a class has no utterance in the training sessions.
    """
    table = prepare_table(**corpus)
    chosen = choose_classes(table, classes, explicit_classes)
    splits = split_labelled(table, chosen, dialogue_style, fold, protocol)
    for name in SPLITS:
        write_manifest(splits[name], manifests[name])


def read_manifests(manifests, fields=("wav", "speaker"), audio_index=None):
    """Reads the manifests of a fold and checks that no speaker leaks.

    Arguments
    ---------
    manifests : dict
        JSON file of "train", "valid" and "test".
    fields : tuple of str
        What each utterance must have, as text.
    audio_index : str, optional
        See :func:`speechbrain_wap.data.corpus_table.inspect_files`; where it is given,
        the audio files must be those that the manifests were made of.

    Returns
    -------
    splits : dict
        Entries by utterance id of each split.

    Raises
    ------
    RecipeError
        If a file or a field is missing, training data are, or a speaker is in
        two splits.
    """
    splits = {}
    for name in SPLITS:
        path = manifests[name]
        try:
            splits[name] = json.loads(Path(path).read_text("utf-8"))
            if not isinstance(splits[name], dict):
                raise ValueError("it must map ids to utterances")
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"manifest {path} cannot be read ({error}): run without "
                "--skip_prep to make it."
            )
        for key, entry in splits[name].items():
            _check_entry(entry, fields, f"manifest {path}: utterance {key}")
    if not splits["train"]:
        raise RecipeError(f"manifest {manifests['train']} is empty.")
    check_speakers(splits)
    warn_of_shared_audio(splits)
    if audio_index is not None:
        _refuse_other_audio(splits, audio_index)
    return splits


def warn_of_shared_audio(splits):
    """Says where a held-out session has audio of the training sessions.

    By other speakers' names, or it would have been refused: a mistake in the
    corpus, by which it is tested on what it was trained on.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of each split.
    """
    kinds = ("digest", "sound")  # hand-made manifests may lack the latter
    heard = {
        entry[kind]: (key, entry["speaker"])
        for key, entry in splits["train"].items()
        for kind in kinds
        if entry.get(kind)
    }
    shared = {
        (key, entry["speaker"]): heard[entry[kind]]
        for name in ("valid", "test")
        for key, entry in splits[name].items()
        for kind in kinds
        if entry.get(kind) in heard
    }
    if shared:
        (key, speaker), (other, other_speaker) = next(iter(shared.items()))
        logger.warning(
            f"Leak: {len(shared)} utterances of the held-out session are the "
            f"same audio as training utterances, first {key} of speaker "
            f"{speaker} and {other} of speaker {other_speaker}: scores are too "
            "good; remove one of each from the corpus."
        )


def find_audio_index(hparams):
    """Says where the audio files are known that manifests were made of.

    Arguments
    ---------
    hparams : dict
        The YAML's values.

    Returns
    -------
    audio_index : str or None
        None where the manifests have just been made.
    """
    if not hparams["skip_prep"]:
        return None
    return find_index(hparams["cache_folder"])


def _check_entry(entry, fields, name):
    """Checks an utterance of a manifest, and completes what others made."""
    if not isinstance(entry, dict):
        raise RecipeError(f"{name} must be a mapping: run without --skip_prep.")
    missing = set(fields) - entry.keys()
    if missing:
        raise RecipeError(f"{name} lacks {', '.join(sorted(missing))}.")
    for field in fields:
        if not isinstance(entry[field], str):
            raise RecipeError(f"{name}: {field} must be text.")
    if not {"digest", "duration"} <= entry.keys():
        found = inspect_audio(entry["wav"])
        entry["duration"], entry["digest"], entry["sound"] = found
    # it names a file
    if not re.fullmatch("[0-9a-f]{32}", str(entry["digest"])):
        raise RecipeError(
            f"{name}: the digest {entry['digest']} is none: leave it out, or "
            "run without --skip_prep."
        )


def _refuse_other_audio(splits, audio_index):
    """Refuses manifests of audio files that have changed since."""
    entries = {k: e for split in splits.values() for k, e in split.items()}
    # features may be cached where the audio is not
    there = {k: e for k, e in entries.items() if os.path.isfile(e["wav"])}
    found = inspect_files([e["wav"] for e in there.values()], audio_index)
    for (key, entry), (duration, digest, _) in zip(there.items(), found):
        if duration is not None and digest != entry["digest"]:
            raise RecipeError(
                f"utterance {key}: {entry['wav']} is not the file that it was "
                "when the manifests were made: run without --skip_prep."
            )


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
        write=if_main_process(),
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


def describe_data(splits, labels=None):
    """Digests what a run is trained and tested on, for the settings guard.

    Arguments
    ---------
    splits : dict
        Manifest entries by utterance id of each split.
    labels : list of str, optional
        The classes in their order.

    Returns
    -------
    digest : str
        Independent of where the corpus lies.
    """
    content = {
        name: [
            # whether a table's names are its own shows in who is left out
            [
                key,
                original_names(key, entry)[0],
                entry.get("label"),
                entry.get("digest"),
            ]
            for key, entry in sorted(split.items())
        ]
        for name, split in splits.items()
    }
    text = json.dumps([content, labels])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def make_dataset(
    entries, caches, max_frames, long_utterances, dynamic_items=(), keys=()
):
    """Makes a SpeechBrain dataset whose features come from caches.

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
    dynamic_items : tuple
        Further dynamic items.
    keys : tuple of str
        Further output keys.

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
    check_choice("long_utterances", long_utterances, ("error", "cut"))
    if long_utterances == "error":
        for (key, entry), cache in product(entries.items(), caches.values()):
            num_frames = cache.count_frames(entry["digest"])
            if num_frames > max_frames:
                raise RecipeError(
                    f"{key} has {num_frames} frames, more than "
                    f"max_frames={max_frames}: raise max_frames or set "
                    "long_utterances: cut."
                )

    def read_from(name, cache):
        """Makes the item that reads a cache's features."""

        @takes("digest")
        @provides(feats_key(name))
        def features(digest):
            """Reads an utterance's features, cut where they are too long."""
            return cache.read(digest)[:max_frames]

        return features

    items = [read_from(name, cache) for name, cache in caches.items()]
    return DynamicItemDataset(
        entries,
        dynamic_items=[*items, *dynamic_items],
        output_keys=["id", *map(feats_key, caches), *keys],
    )


def make_labelled_dataset(entries, caches, classes, speakers, keys=(), **how):
    """Makes a dataset of features, classes and speakers.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id, labelled.
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
        See :func:`make_dataset`; also with target, the class's index, and
        speaker_index, that of the speaker, -1 for one who does not train.
    """

    @takes("label")
    @provides("target")
    def target(label):
        """Turns the label into the class's index."""
        return classes.index(label)

    numbers = {speaker: number for number, speaker in enumerate(speakers)}

    @takes("speaker")
    @provides("speaker_index")
    def speaker_index(speaker):
        """Turns the speaker's name into a number."""
        return numbers.get(speaker, -1)

    items = [target, speaker_index]
    own = ["target", "speaker_index", *keys]
    return make_dataset(entries, caches, dynamic_items=items, keys=own, **how)
