"""Folds, the encoder's cached frames, and scores: what both stages share."""

import json
import os

import torch
from tqdm import tqdm

import speechbrain as sb
from speechbrain.utils.data_pipeline import CachedDynamicItem, provides, takes


def write_manifests(rows, fold, train, valid, test):
    """Writes the manifests of a fold, which holds out one session.

    As in the paper, the held-out session is validation and test set in one.

    Arguments
    ---------
    rows : list of dict
        Of each utterance "id", "wav", "speaker", "session" and "emo", and what
        else a corpus tells.
    fold : int
        The number, from 1, of the session that is held out.
    train, valid, test : str
        The files to write.
    """
    sessions = sorted({row["session"] for row in rows})
    if not 1 <= fold <= len(sessions):
        raise ValueError(f"fold={fold} must be a number of 1 to {len(sessions)}")
    held_out = sessions[fold - 1]
    splits = {True: {}, False: {}}
    for row in rows:
        entry = {key: row[key] for key in row if key != "id"}
        splits[row["session"] == held_out][row["id"]] = entry
    for path, entries in (
        (train, splits[False]),
        (valid, splits[True]),
        (test, splits[True]),
    ):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(entries, f, indent=1)


def read_manifest(path, data_folder):
    """Reads a manifest.

    Arguments
    ---------
    path : str
        A JSON file.
    data_folder : str
        Replaces "{data_root}" in it.

    Returns
    -------
    entries : dict
        By utterance id; each has its id as "utterance", too.
    """
    entries = sb.dataio.dataio.load_data_json(path, {"data_root": data_folder})
    return {key: {**entry, "utterance": key} for key, entry in entries.items()}


def label_utterances(entries, classes, dialogue_style="all"):
    """Keeps the utterances of the classes (D2), each with its class as "label".

    Arguments
    ---------
    entries : dict
        A manifest's.
    classes : dict
        Labels of each class.
    dialogue_style : str
        "improvised", "scripted" or "all"; of a corpus that tells.

    Returns
    -------
    labelled : dict
    """
    names = {label: name for name in classes for label in classes[name]}
    return {
        key: {**entry, "label": names[entry["emo"]]}
        for key, entry in entries.items()
        if entry["emo"] in names
        and dialogue_style in ("all", entry.get("style", dialogue_style))
    }


def make_dataset(entries, encoder, feature_folder, device, keys=()):
    """Makes a dataset of the encoder's frames, which are cached as float16.

    Arguments
    ---------
    entries : dict
        A manifest's.
    encoder : speechbrain.lobes.models.wap_adapter.encoder.FrozenEncoder
        Encodes what is not in the cache.
    feature_folder : str
        The cache. It does not know what has encoded them: another encoder
        needs another folder.
    device : str
        Where utterances are encoded.
    keys : iterable of str
        What else items have, beside "id" and "feats".

    Returns
    -------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
    """

    def encode(utterance, wav):
        """Encodes an utterance."""
        signal = sb.dataio.dataio.read_audio(wav).to(device)
        return encoder.encode(signal).half().cpu()

    cached = CachedDynamicItem(
        feature_folder, takes=["id", "wav"], func=encode, provides=["feats"]
    )

    @takes("utterance", "wav")
    @provides("feats")
    def feats_pipeline(utterance, wav):
        """Finds the frames, also of a masked copy of an utterance."""
        return cached(utterance, wav)

    return sb.dataio.dataset.DynamicItemDataset(
        entries,
        dynamic_items=[feats_pipeline],
        output_keys=["id", "feats", *keys],
    )


def encode_all(dataset):
    """Fills the cache, before several processes or ranks read it.

    Arguments
    ---------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        Of :func:`make_dataset`.
    """
    with dataset.output_keys_as(["feats"]):
        for _ in tqdm(dataset, "frozen encoder", disable=None):
            pass


def emotion_scores(targets, predictions):
    """Computes UA, WA and macro F1 (Sec. III-A).

    Arguments
    ---------
    targets, predictions : list of int
        Classes of the utterances.

    Returns
    -------
    scores : dict
        "UA": mean of the classes' recalls; "WA": share of utterances that are
        right; "F1": mean of the classes' F1 scores. In percent.
    """
    targets, predictions = torch.tensor(targets), torch.tensor(predictions)
    recalls, f1_scores = [], []
    for number in sorted({*targets.tolist(), *predictions.tolist()}):
        is_it, is_said = targets == number, predictions == number
        hits = (is_it & is_said).sum()
        f1_scores.append(2 * hits / (is_it.sum() + is_said.sum()))
        if is_it.any():
            recalls.append(hits / is_it.sum())
    right = (targets == predictions).float().mean()
    return {
        "UA": 100 * float(torch.stack(recalls).mean()),
        "WA": 100 * float(right),
        "F1": 100 * float(torch.stack(f1_scores).mean()),
    }
