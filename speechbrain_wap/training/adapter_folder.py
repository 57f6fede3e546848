"""What stage 2 takes over from an adapter training, and what it refuses."""

import hashlib
import json
import os
from pathlib import Path

import torch
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.corpus_table import read_corpus_table
from speechbrain_wap.data.folds import FoldPlan
from speechbrain_wap.data.speakers import (
    KnownUtterances,
    list_utterances,
    read_speech,
    record_speech,
)
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import read_json, write_text
from speechbrain_wap.training.checkpoints import Checkpointer
from speechbrain_wap.training.resume_guard import guard

logger = get_logger(__name__)

RECORD = "adapter.json"
# What both stages must agree on; shapes alone would not show nhead.
MODEL_KEYS = ("encoder_key", "d_model", "num_layers", "nhead", "d_ffn")
MODEL_KEYS += ("max_frames", "mlp_layers", "mlp_residual")
MODEL_KEYS += ("normalize_before", "input_norm")
# What the encoder_key comes of, beside the checkpoint's content
ENCODER_KEYS = ("encoder_source", "encoder_layer", "encoder_context")
ENCODER_KEYS += ("feature_precision",)
# Of the record, what says nothing of what was learned
UNIDENTIFIED = {"corpora", "speaker_names", "sounds", "parts", "encoder"}


def _digest(content):
    """Digests what JSON can hold, to 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def write_adapter_record(output_folder, settings, train, adapter_data):
    """Records what an adapter is and which utterances it has heard.

    Arguments
    ---------
    output_folder : str
        Output folder of the adapter training.
    settings : dict
        Its settings.
    train : dict
        Manifest entries of its training utterances by id.
    adapter_data : str
        "train" or "all" (D8).
    """
    # the ranks may share the same batch otherwise when a run goes on
    kept = {
        key: value
        for key, value in guard(settings).items()
        if not key.endswith("batch_size")
    }
    tables = {}
    for utterance in list_utterances(train):
        tables.setdefault(utterance.table, []).append(utterance)
    record = {
        "model": {key: settings[key] for key in MODEL_KEYS},
        "encoder": {key: settings.get(key) for key in ENCODER_KEYS},
        "settings": _digest(kept),
        "number_of_epochs": settings["number_of_epochs"],
        "adapter_data": adapter_data,
        **record_speech(tables.pop("", [])),
    }
    if tables:
        record["corpora"] = [
            {
                "name": name,
                "speaker_names": "own" if heard[0].has_own_names else "shared",
                **record_speech(heard),
            }
            for name, heard in tables.items()
        ]
    path = os.path.join(output_folder, RECORD)
    write_text(path, json.dumps(record, indent=1))


def read_adapter_record(adapter_folder, cure="run train_adapter.py again."):
    """Reads what :func:`write_adapter_record` wrote.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    cure : str
        What to do about a damaged one, as the errors say it.

    Returns
    -------
    record : dict
        "corpora" lists the further tables; it is empty where there are none.

    Raises
    ------
    RecipeError
        If there is none, or it is damaged.
    """
    path = Path(adapter_folder) / RECORD
    if not path.is_file():
        raise RecipeError(
            f"adapter_folder={adapter_folder} holds no {RECORD}: give the "
            "output folder of train_adapter.py."
        )
    heard = ("speakers", "utterances")
    keys = ("model", "number_of_epochs", "adapter_data", *heard)
    record = {"corpora": [], **read_json(path, cure, keys)}
    for table in record["corpora"]:
        lacks = {"name", "speaker_names", *heard} - {*table}
        if lacks:
            raise RecipeError(
                f"{path} is damaged (it lacks {min(lacks)}): {cure}"
            )
    return record


def describe_adapter(adapter_folder):
    """Says in words what an earlier adapter has learned from.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.

    Returns
    -------
    text : str
    """
    record = read_adapter_record(adapter_folder)
    tables = [{**record, "name": "its corpus under test"}, *record["corpora"]]
    heard = " and ".join(
        # an audio file and a name for each
        f"{len(table['utterances']) // 2} utterances of "
        f"{len(table['speakers'])} speakers of {table['name']}"
        for table in tables
        if table["utterances"]
    )
    return f"{record['number_of_epochs']} epochs on {heard}"


def identify_adapter(record):
    """Digests what an adapter is.

    Arguments
    ---------
    record : dict
        What :func:`read_adapter_record` gave.

    Returns
    -------
    identity : str
        What only serves to compare speakers and to say what differs is no
        part of it, so that a record may be completed.
    """
    what, *corpora = (
        {key: table[key] for key in table.keys() - UNIDENTIFIED}
        for table in (record, *record["corpora"])
    )
    if corpora:
        what["corpora"] = corpora
    return _digest(what)


def check_adapter(adapter_folder, settings, splits, corpus_table=None):
    """Refuses an adapter of another model or one that heard a held-out speaker.

    A speaker was heard if an audio file of theirs was, or one of the same name,
    in whatever spelling: in a further table whose names are shared; else, where
    the adapter was trained on this very corpus, which shows in any utterance in
    common. Another corpus's equal names are taken for other people, which a
    warning says. Of speakers whom official splits have on both sides, no held-
    out utterance must have been heard.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    settings : dict
        Settings of the classifier training.
    splits : dict
        Manifest entries by utterance id of each split.
    corpus_table : str, optional
        The corpus table, for utterances in no class.

    Returns
    -------
    identity : str
        Digest of the adapter training's settings, for the settings guard.

    Raises
    ------
    RecipeError
        If there is no adapter, a key differs (named), or the adapter was
        trained on a speaker of the validation or test split (named).
    """
    record = read_adapter_record(adapter_folder)
    _check_model(adapter_folder, record, settings)
    trained_on = set()  # whom official splits may have on both sides
    if settings.get("protocol") == "predefined":
        if corpus_table is not None and Path(corpus_table).is_file():
            whole, corpus_table = read_corpus_table(corpus_table), None
            splits = FoldPlan(1, "predefined").split(whole)
        trained_on = {one.person for one in list_utterances(splits["train"])}
    held_out = _list_held_out(splits, corpus_table)
    mine = [one for split in splits.values() for one in list_utterances(split)]
    namesakes = []
    for table in [record, *record["corpora"]]:
        heard = KnownUtterances(read_speech(table))
        matches = map(heard.find, mine)
        is_this_corpus = any(match.audio or match.id for match in matches)
        for split, one in held_out:
            match = heard.find(one)
            is_heard = match.audio or match.id
            if one.person not in trained_on:
                namesake = is_this_corpus and match.namesake
                is_heard = is_heard or match.name or namesake
            if is_heard:
                if record["adapter_data"] != "all":
                    refusal = _explain_leak(table, match, one)
                    raise RecipeError(
                        f"speaker {one.speaker} is in the {split} split, but "
                        f"the adapter in {adapter_folder} was trained on that "
                        f"speaker{refusal}."
                    )
                logger.warning(
                    f"The adapter in {adapter_folder} is transductive "
                    "(adapter_data=all): it has seen the held-out speakers, "
                    f"{one.speaker} for one."
                )
                return identify_adapter(record)
            if table is record and match.namesake:
                namesakes.append(one.speaker)
    if namesakes:
        logger.warning(
            f"The adapter in {adapter_folder} was trained on a corpus that has "
            f"a speaker called {namesakes[0]}, too, who is held out here. They "
            "are taken for two people, since the corpora have no utterance in "
            "common; if they are one, scores are too good."
        )
    return identify_adapter(record)


def _explain_leak(table, match, utterance):
    """Says where an adapter has heard a held-out speaker, and what to do."""
    place = cure = ""
    if "speaker_names" in table:  # a further one
        place = f", in the table {table['name']} of corpora"
        cure = ", or one that has this corpus under test"
    if match.audio:
        place += f" ({utterance.key} is the same audio)"
    elif table.get("speaker_names") == "shared":
        cure += (
            "; if they are but called alike, run train_adapter.py again with "
            "speakers: own for that table, which trains nothing anew"
        )
    return f"{place}: use the adapter of the same fold and protocol{cure}"


def _list_held_out(splits, corpus_table):
    """Lists split and utterance of the speakers who are validated or tested on.

    The corpus table, where it is given, has those in no class, too.
    """
    held_out = [
        (name, utterance)
        for name in ("valid", "test")
        for utterance in list_utterances(splits[name])
    ]
    if corpus_table is not None and not Path(corpus_table).is_file():
        logger.warning(
            f"{corpus_table} is missing: the held-out speakers' utterances in "
            "no class are not compared with what the adapter has heard."
        )
    elif corpus_table is not None:
        splits_of = {one.speaker: name for name, one in held_out}
        table = read_corpus_table(corpus_table)
        is_held_out = table["speaker"].isin(splits_of)
        is_known = table["id"].isin([one.id for _, one in held_out])
        held_out += [
            (splits_of[one.speaker], one)
            for one in list_utterances(table[is_held_out & ~is_known])
        ]
    return held_out


def _check_model(adapter_folder, record, settings):
    """Refuses an adapter of another network or encoder, by key and values."""
    theirs = {**record.get("encoder", {}), **record["model"]}

    def list_changed(keys):
        """Lists those that differ; a system need not have them all."""
        both = [key for key in keys if key in theirs and key in settings]
        return [key for key in both if theirs[key] != settings[key]]

    changed = list_changed(MODEL_KEYS)
    if not changed:
        return
    content = {"encoder_key": "the content of encoder_source"}
    encoder = list_changed(ENCODER_KEYS)
    if "encoder_key" in changed and encoder:
        changed = encoder + [key for key in changed if key not in content]
    listing = ", ".join(f"{content.get(k, k)}={theirs[k]}" for k in changed)
    values = ", ".join(str(settings[key]) for key in changed)
    options = " ".join(
        f"--{key}={theirs[key]}" for key in changed if key not in content
    )
    cure = f", as with {options}" if options else ""
    raise RecipeError(
        f"the adapter in {adapter_folder} was trained with {listing}, but the "
        f"classifier's is {values}: make them agree{cure}."
    )


def find_finished(adapter_folder):
    """Finds the checkpoint of a finished adapter training.

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.

    Returns
    -------
    checkpoint : speechbrain.utils.checkpoints.Checkpoint

    Raises
    ------
    RecipeError
        If there is no checkpoint, or the training is not finished.
    """
    folder = os.path.join(adapter_folder, "save")
    checkpoint = None
    if os.path.isdir(folder):
        checkpoint = Checkpointer(folder).find_checkpoint()
    if checkpoint is None:
        raise RecipeError(
            f"adapter_folder={adapter_folder} holds no checkpoint: give the "
            "output folder of train_adapter.py."
        )
    record = read_adapter_record(adapter_folder)
    epoch, epochs = checkpoint.meta.get("epoch"), record["number_of_epochs"]
    if epoch != epochs:
        raise RecipeError(
            f"the adapter training in {adapter_folder} is not finished (last "
            f"full epoch saved: {epoch or 'none'} of {epochs}): run "
            "train_adapter.py with the same options again."
        )
    return checkpoint


def load_branch(adapter_folder, branch, adapter):
    """Starts stage 2 from what stage 1 learned (Sec. II-C, D13).

    Arguments
    ---------
    adapter_folder : str
        Output folder of an adapter training.
    branch : str
        "teacher" or "student".
    adapter : torch.nn.Module
        The WAP-Transformer that takes the weights.

    Raises
    ------
    RecipeError
        If the weights do not fit, there is no checkpoint, or the training is
        not finished.
    """
    state = run_on_main(_read_branch, args=[adapter_folder, branch])
    try:
        adapter.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RecipeError(
            f"the adapter in {adapter_folder} does not fit the YAML: {reason}"
        )


def _read_branch(adapter_folder, branch):
    """Reads the WAP-Transformer's weights of a finished adapter training."""
    path = find_finished(adapter_folder).paramfiles[branch]
    state = torch.load(path, map_location="cpu", weights_only=True)
    if branch == "teacher":
        state = {k.removeprefix("model."): v for k, v in state.items()}
    return state
