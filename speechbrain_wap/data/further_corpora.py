"""Several corpora in stage 1: which tables, whose speakers, how often.

Further corpus tables join the training sessions of the corpus under test, or
train a universal adapter where there is none. No speaker of a held-out session
comes in with them, under whatever name.
"""

from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.corpus_table import (
    AUDIO_COLUMNS,
    COLUMNS,
    check_audio,
    check_ids,
    read_own_corpus,
)
from speechbrain_wap.data.sampling import EpochPlan
from speechbrain_wap.data.speakers import fold_name, may_be_same
from speechbrain_wap.errors import RecipeError, check_number
from speechbrain_wap.files import write_atomically

logger = get_logger(__name__)

# What an item of the key corpora may say, and what it means to leave it out
ITEM = {"table": None, "name": None, "weight": 1.0, "speakers": "shared"}
# What the manifests say of an utterance of a further table, beside the usual
ORIGIN_COLUMNS = ("table", "speaker_names")
LEFT_OUT_COLUMNS = ["id", "table", "speaker", "reason"]


def parse_corpora(value):
    """Reads the key corpora.

    Arguments
    ---------
    value : None, str, dict or list
        Paths of corpus tables with commas between them, or a list of paths and
        of mappings with the keys table (the path), weight (how often an epoch
        has each utterance, on average), speakers ("shared": speakers who are
        called alike are one person in all tables; "own": the table's names say
        nothing about others) and name (the file's by default), which stands
        before its utterances' ids.

    Returns
    -------
    corpora : list of dict
        Items with all four keys; names are unique.

    Raises
    ------
    RecipeError
        If it is anything else; names the item.

    Example
    -------
    >>> first, second = parse_corpora(
    ...     ["x/a.csv", {"table": "b.csv", "weight": 2}]
    ... )
    >>> first
    {'table': 'x/a.csv', 'name': 'a', 'weight': 1.0, 'speakers': 'shared'}
    >>> second["weight"]
    2.0
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise RecipeError(
            f"corpora={value} must be null, paths of corpus tables as in "
            "a.csv,b.csv, or a list as in [a.csv, {table: b.csv, weight: 2}]."
        )
    corpora = [_parse_item(item) for item in value]
    names, tables = set(), set()
    for item in corpora:
        place = str(Path(item["table"]).resolve())
        if place in tables:
            raise RecipeError(
                f"corpora has {item['table']} twice: give it once, with "
                "weight: 2 if each utterance is to be seen twice."
            )
        tables.add(place)
        if item["name"] in names:
            raise RecipeError(
                f"corpora has the name {item['name']} twice: give the tables "
                "different ones."
            )
        if item["name"] is not None:
            names.add(item["name"])
    for item in corpora:
        stem, number = Path(item["table"]).stem, 2
        if item["name"] is None:
            item["name"] = stem
            while item["name"] in names:
                item["name"] = f"{stem}-{number}"
                number += 1
            names.add(item["name"])
    return corpora


def _parse_item(item):
    """Completes one item of the list."""
    if isinstance(item, str):
        item = {"table": item}
    if not isinstance(item, dict):
        raise RecipeError(
            f"corpora has the item {item}, which is neither a path nor a "
            "mapping as in {table: b.csv, weight: 2}."
        )
    unknown = [key for key in item if key not in ITEM]
    if unknown:
        raise RecipeError(
            f"corpora has an item with the key {unknown[0]}, which is unknown: "
            f"choose of {', '.join(ITEM)}."
        )
    item = {**ITEM, **item}
    if not item["table"] or not isinstance(item["table"], str):
        raise RecipeError(
            "corpora has an item without a table: give a path, as in "
            "a.csv,b.csv or {table: b.csv, weight: 2}."
        )
    name = f"corpora: weight of {item['table']}"
    check_number(name, item["weight"], least=0.001, most=1000.0)
    if item["speakers"] not in ("shared", "own"):
        raise RecipeError(
            f"corpora: speakers={item['speakers']} of {item['table']} is "
            "unknown: choose shared or own."
        )
    if item["name"] is not None:
        item["name"] = str(item["name"]).strip()
        if not item["name"]:
            raise RecipeError(
                f"corpora: the name of {item['table']} is empty: leave it out, "
                "and it is that of the file."
            )
    return {**item, "weight": float(item["weight"])}


def describe_corpora(corpora):
    """Keeps of the key corpora what a run computes with.

    Arguments
    ---------
    corpora : list of dict
        What :func:`parse_corpora` gave.

    Returns
    -------
    described : list of dict or None
        Names and weights: where the tables lie may change, and what is in them
        is guarded by itself, as is what comes of the speakers' names.
    """
    kept = [{key: item[key] for key in ("name", "weight")} for item in corpora]
    return kept or None


def read_tables(corpora, audio_index=None):
    """Reads the further tables and decodes their audio.

    Arguments
    ---------
    corpora : list of dict
        What :func:`parse_corpora` gave.
    audio_index : str, optional
        See :func:`speechbrain_wap.data.corpus_table.inspect_files`.

    Returns
    -------
    table : pandas.DataFrame
        Rows of all tables whose audio can be read. "table" is the item's name,
        which also stands before the id, and before the speaker where the names
        are the table's own ("speaker_names" says that).
    reasons : dict
        Why others cannot be read, by id.
    ids : list of str
        Ids of all rows.

    Raises
    ------
    RecipeError
        If a table cannot be read, or an id repeats in it.
    """
    tables, reasons, ids = [], {}, []
    for item in corpora:
        table = read_own_corpus(item["table"])
        check_ids(table, f"{item['table']}: ")
        table["id"] = [f"{item['name']}/{key}" for key in table["id"]]
        if item["speakers"] == "own":
            table["speaker"] = [f"{item['name']}/{s}" for s in table["speaker"]]
        ids += table["id"].tolist()
        table, unreadable = check_audio(table, audio_index)
        reasons.update(unreadable)
        table = table[[*COLUMNS, *AUDIO_COLUMNS]]
        origin = {"table": item["name"], "speaker_names": item["speakers"]}
        tables.append(table.assign(**origin))
    return pd.concat(tables, ignore_index=True), reasons, ids


def original_names(utterance_id, entry):
    """Tells what an utterance and its speaker are called in their own table.

    Arguments
    ---------
    utterance_id : str
        The utterance's id.
    entry : dict
        Its manifest entry.

    Returns
    -------
    speaker : str
    utterance_id : str

    Example
    -------
    >>> entry = {"speaker": "b/11", "table": "b", "speaker_names": "own"}
    >>> original_names("b/u1", entry)
    ('11', 'u1')
    """
    speaker = entry["speaker"]
    if "table" not in entry:
        return speaker, utterance_id
    prefix = f"{entry['table']}/"
    if entry["speaker_names"] == "own":
        speaker = speaker.removeprefix(prefix)
    return speaker, utterance_id.removeprefix(prefix)


def find_held_out_people(table, held_out):
    """Finds the speakers of further tables who are held out.

    Who is called as a held-out speaker, in whatever spelling, is that person,
    and so is who says the very same audio, or an utterance of the same id while
    being called alike in a table of their own (the corpus at another sample
    rate, or coded with loss); and who is called as, or says the same as, one so
    found.

    Arguments
    ---------
    table : pandas.DataFrame
        What :func:`read_tables` gave.
    held_out : pandas.DataFrame
        All utterances of the held-out sessions.

    Returns
    -------
    people : dict
        Why, by speaker.

    Example
    -------
    >>> columns = ["id", "speaker", "sound"]
    >>> mine = pd.DataFrame([["u1", "anna", "12"]], columns=columns)
    >>> others = pd.DataFrame(
    ...     [["b/1", "b/x", "12"], ["b/2", "b/x", "34"], ["b/3", "b/y", "56"]],
    ...     columns=columns,
    ... )
    >>> find_held_out_people(others, mine)
    {'b/x': 'b/1 is the audio of u1, which is held out'}
    """
    names = {*held_out["speaker"], *table["speaker"]}
    person = {name: fold_name(name) for name in names}
    why = {person[n]: f"{n} is held out" for n in held_out["speaker"].unique()}
    audio = dict(zip(held_out["sound"], held_out["id"]))
    rows = list(table[["id", "speaker", "sound"]].itertuples(index=False))
    for key, speaker, name, held_out_name in find_same_ids(table, held_out):
        if may_be_same(name, held_out_name):
            reason = f"{key} is an utterance that is held out"
            why.setdefault(person[speaker], reason)
    before = -1
    while len(why) + len(audio) != before:  # until nobody else is found
        before = len(why) + len(audio)
        for key, speaker, sound in rows:
            if person[speaker] in why:
                audio.setdefault(sound, key)
            elif sound in audio:
                why[person[speaker]] = (
                    f"{key} is the audio of {audio[sound]}, which is held out"
                )
    return {n: why[person[n]] for n in table["speaker"] if person[n] in why}


def find_same_ids(table, held_out):
    """Finds utterances that are called as a held-out one.

    Arguments
    ---------
    table : pandas.DataFrame
        What :func:`read_tables` gave.
    held_out : pandas.DataFrame
        All utterances of the held-out sessions.

    Returns
    -------
    same : list of tuple
        The utterance's id and speaker, what its own table calls the speaker,
        and what the corpus under test calls the held-out one.
    """
    speakers = dict(zip(held_out["id"], held_out["speaker"]))
    same = []
    for key, entry in table.set_index("id").to_dict("index").items():
        name, own_id = original_names(key, entry)
        if own_id in speakers:
            same.append((key, entry["speaker"], name, speakers[own_id]))
    return same


def warn_of_same_ids(added, held_out):
    """Says where utterances that train are called as held-out ones.

    Arguments
    ---------
    added : pandas.DataFrame
        See :func:`choose_utterances`.
    held_out : pandas.DataFrame
        All utterances of the held-out sessions.
    """
    same = find_same_ids(added, held_out)
    if same:
        key, _, name, held_out_name = same[0]
        logger.warning(
            f"corpora: {len(same)} utterances that are added have ids of the "
            f"held-out session, first {key} of speaker {name}, who is "
            f"{held_out_name} there. They are taken for others; if they are "
            "the same recordings, give their speakers the same names in both "
            "tables."
        )


def choose_utterances(table, train, held_out):
    """Chooses what the further tables add to stage 1.

    Arguments
    ---------
    table : pandas.DataFrame
        What :func:`read_tables` gave.
    train : pandas.DataFrame
        The training sessions of the corpus under test.
    held_out : pandas.DataFrame
        All utterances of its held-out sessions.

    Returns
    -------
    added : pandas.DataFrame
        Rows without held-out speakers, and without audio that the training
        sessions or a table before has.
    left_out : pandas.DataFrame
        The other rows' id, table, speaker and the reason.
    """
    people = find_held_out_people(table, held_out)
    first = dict(zip(train["sound"], zip(train["id"], [""] * len(train))))
    reasons = []
    for row in table.itertuples(index=False):
        if row.speaker in people:
            reasons.append(f"held-out speaker: {people[row.speaker]}")
            continue
        # within a table, as within the corpus under test, it may repeat
        key, origin = first.setdefault(row.sound, (row.id, row.table))
        reasons.append(f"same audio as {key}" if origin != row.table else "")
    table = table.assign(reason=reasons)
    is_added = table["reason"] == ""
    return (
        table[is_added].drop(columns="reason"),
        table.loc[~is_added, LEFT_OUT_COLUMNS],
    )


def join_tables(train, added):
    """Joins the training sessions with what further tables add.

    Arguments
    ---------
    train : pandas.DataFrame
        Of the corpus under test.
    added : pandas.DataFrame
        See :func:`choose_utterances`.

    Returns
    -------
    joined : pandas.DataFrame
        What a manifest needs; ORIGIN_COLUMNS are missing (NaN) in the rows of
        the corpus under test, whatever columns of these names it has.
    """
    columns = [*COLUMNS, *AUDIO_COLUMNS]
    parts = [part for part in (train[columns], added) if len(part)]
    joined = pd.concat(parts or [added], ignore_index=True)
    return joined.reindex(columns=[*columns, *ORIGIN_COLUMNS])


def report_choice(corpora, added, left_out, left_out_csv):
    """Says and lists what of the further tables is left out.

    Arguments
    ---------
    corpora : list of dict
        What :func:`parse_corpora` gave.
    added : pandas.DataFrame
        See :func:`choose_utterances`.
    left_out : pandas.DataFrame
        See :func:`choose_utterances`.
    left_out_csv : str
        The list; it is removed where there is nothing to list.
    """
    for item in corpora:
        mine = left_out[left_out["table"] == item["name"]]
        is_person = mine["reason"].str.startswith("held-out speaker")
        people = sorted(set(mine["speaker"][is_person]))
        parts = []
        if people:
            parts.append(
                f"{is_person.sum()} of the held-out speakers "
                f"{', '.join(people)} are left out"
            )
        if not is_person.all():
            parts.append(
                f"{(~is_person).sum()} are in a table before it and train once"
            )
        rest = added[added["table"] == item["name"]]
        said = (
            f"corpora: {item['table']} (called {item['name']}) adds "
            f"{len(rest)} utterances of {rest['speaker'].nunique()} speakers"
        )
        if parts:
            said += f"; {'; '.join(parts)}: {left_out_csv} lists them"
        (logger.info if len(rest) else logger.warning)(f"{said}.")
    if len(left_out) == 0:
        Path(left_out_csv).unlink(missing_ok=True)
        return
    with write_atomically(left_out_csv) as temporary:
        left_out.to_csv(temporary, index=False)


def plan_epochs(entries, corpora, corpus_weight, seed):
    """Plans how often each epoch has the utterances of each corpus.

    Arguments
    ---------
    entries : dict
        Manifest entries of the training utterances by id.
    corpora : list of dict
        What :func:`parse_corpora` gave.
    corpus_weight : float
        Weight of the corpus under test.
    seed : int
        The run's seed.

    Returns
    -------
    plan : speechbrain_wap.data.sampling.EpochPlan

    Raises
    ------
    RecipeError
        If the manifests were made with other corpora.
    """
    weights = {"": corpus_weight}
    weights.update({item["name"]: item["weight"] for item in corpora})
    groups = {}
    for key, entry in entries.items():
        groups.setdefault(entry.get("table", ""), []).append(key)
    for name in groups:
        if name not in weights:
            raise RecipeError(
                f"the training manifest has utterances of the table {name}, "
                "which corpora has not: run without --skip_prep."
            )
    counts = {
        name: max(1, round(weights[name] * len(ids)))
        for name, ids in groups.items()
    }
    if set(counts) != {""} or counts[""] != len(entries):
        listing = ", ".join(
            f"{name or 'the corpus under test'} {counts[name]} (of {len(ids)})"
            for name, ids in groups.items()
        )
        logger.info(f"Utterances of an epoch: {listing}.")
    plan = [(ids, counts[name]) for name, ids in groups.items()]
    return EpochPlan(entries, plan, seed)
