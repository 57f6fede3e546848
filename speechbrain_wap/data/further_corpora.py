"""Several corpora in stage 1: their tables, speakers and weights.

Further corpus tables join the training sessions of the corpus under test, or
train a universal adapter where there is none. No speaker of a held-out session
comes in with them, under whatever name.
"""

from itertools import chain, count
from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio_index import (
    AUDIO_COLUMNS,
    AUDIO_INDEX,
    check_audio,
)
from speechbrain_wap.data.corpus_table import (
    COLUMNS,
    check_ids,
    read_own_corpus,
    write_listing,
)
from speechbrain_wap.data.sampling import EpochPlan
from speechbrain_wap.data.segments import SEGMENT_COLUMNS
from speechbrain_wap.data.speakers import (
    KnownUtterances,
    explain_held_out,
    list_utterances,
)
from speechbrain_wap.errors import RecipeError, check_choice, check_number
from speechbrain_wap.files import expand_path

logger = get_logger(__name__)

# The keys of an item of corpora, with their defaults
ITEM = {"table": None, "name": None, "weight": 1.0, "speakers": "shared"}
# Further fields of a manifest for utterances of further tables
ORIGIN_COLUMNS = ("table", "speaker_names")
LEFT_OUT_COLUMNS = ["id", "table", "speaker", "reason"]
HELD_OUT = "held-out speaker"


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
        table = Path(item["table"]).resolve()
        if table in tables:
            raise RecipeError(
                f"corpora has {item['table']} twice: give it once, with "
                "weight: 2 if each utterance is to be seen twice."
            )
        if item["name"] in names:
            raise RecipeError(
                f"corpora has the name {item['name']} twice: give the tables "
                "different ones."
            )
        tables.add(table)
        names |= {item["name"]} - {None}
    for item in corpora:
        if item["name"] is None:
            stem = Path(item["table"]).stem
            numbered = (f"{stem}-{number}" for number in count(2))
            free = (n for n in chain([stem], numbered) if n not in names)
            item["name"] = next(free)
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
    item["table"] = expand_path(item["table"], "corpora: ")
    name = f"corpora: {item['table']}: "
    check_number(f"{name}weight", item["weight"], least=0.001, most=1000.0)
    check_choice(f"{name}speakers", item["speakers"], ("shared", "own"))
    if item["name"] is not None:
        item["name"] = str(item["name"]).strip()
        if not item["name"]:
            raise RecipeError(
                f"corpora: the name of {item['table']} is empty: leave it out, "
                "and it is that of the file."
            )
    return {**item, "weight": float(item["weight"])}


def describe_corpora(corpora):
    """Lists what the resume guard compares of the key corpora.

    Arguments
    ---------
    corpora : list of dict
        What :func:`parse_corpora` gave.

    Returns
    -------
    described : list of dict or None
        Names and weights: tables may be moved, and their content is guarded
        apart, see :func:`speechbrain_wap.data.manifests.describe_data`.
    """
    kept = [{key: item[key] for key in ("name", "weight")} for item in corpora]
    return kept or None


def read_tables(corpora, cache_folder):
    """Reads the further tables and decodes their audio.

    Arguments
    ---------
    corpora : list of dict
        What :func:`parse_corpora` gave.
    cache_folder : str
        Holds the index of known audio files.

    Returns
    -------
    table : pandas.DataFrame
        Rows of all tables whose audio can be read. The item's name is in
        "table" and before the id, and before the speaker where "speaker_names"
        is own.
    reasons : dict
        Why others cannot be read, by id.

    Raises
    ------
    RecipeError
        If a table cannot be read, or an id repeats in it.
    """
    audio_index = Path(cache_folder, AUDIO_INDEX)
    tables, reasons = [], {}
    for item in corpora:
        table = read_own_corpus(item["table"])
        check_ids(table, f"{item['table']}: ")
        table["id"] = [f"{item['name']}/{key}" for key in table["id"]]
        if item["speakers"] == "own":
            table["speaker"] = [f"{item['name']}/{s}" for s in table["speaker"]]
        table, unreadable = check_audio(table, audio_index)
        reasons.update(unreadable)
        columns = [*COLUMNS, *AUDIO_COLUMNS]
        columns += [c for c in SEGMENT_COLUMNS if c in table]
        table = table[columns]
        origin = {"table": item["name"], "speaker_names": item["speakers"]}
        tables.append(table.assign(**origin))
    return pd.concat(tables, ignore_index=True), reasons


def join_corpora(further, train, held_out, corpora, left_out_csv):
    """Joins the training sessions with the utterances of further tables.

    Left out are held-out speakers, and audio that the training sessions or an
    earlier table has already.

    Arguments
    ---------
    further : pandas.DataFrame
        What :func:`read_tables` gave.
    train : pandas.DataFrame
        The training sessions of the corpus under test.
    held_out : pandas.DataFrame
        All utterances of its held-out sessions.
    corpora : list of dict
        What :func:`parse_corpora` gave.
    left_out_csv : str
        Lists id, table, speaker and the reason of the others.

    Returns
    -------
    joined : pandas.DataFrame
        A manifest's columns; ORIGIN_COLUMNS are NaN in the rows of the corpus
        under test, whatever columns of these names it has.
    """
    utterances = list_utterances(further)
    held_out = list_utterances(held_out)
    known = KnownUtterances(list_utterances(train))
    reasons = []
    for one, reason in zip(utterances, explain_held_out(utterances, held_out)):
        same = known.find(one).audio
        if reason:
            reasons.append(f"{HELD_OUT}: {reason}")
        # within a table, as within the corpus under test, audio may repeat
        elif same and same.table != one.table:
            reasons.append(f"same audio as {same.key}")
        else:
            reasons.append("")
            if not same:
                known.add_audio(one)
    further = further.assign(reason=reasons)
    added = further[further["reason"] == ""]
    left_out = further[further["reason"] != ""]
    write_listing(left_out[LEFT_OUT_COLUMNS], left_out_csv)
    for item in corpora:
        _report_table(item, added, left_out, left_out_csv)
    _warn_of_same_ids(added, held_out)
    columns = [*COLUMNS, *AUDIO_COLUMNS]
    columns += [c for c in SEGMENT_COLUMNS if c in train or c in added]
    train = train.reindex(columns=columns)
    parts = [part for part in (train, added) if len(part)]
    joined = pd.concat(parts or [added], ignore_index=True)
    return joined.reindex(columns=[*columns, *ORIGIN_COLUMNS])


def _report_table(item, added, left_out, left_out_csv):
    """Reports how much of a table is added and how much left out."""
    added = added[added["table"] == item["name"]]
    left_out = left_out[left_out["table"] == item["name"]]
    is_held_out = left_out["reason"].str.startswith(HELD_OUT)
    people = sorted(set(left_out["speaker"][is_held_out]))
    text = (
        f"corpora: {item['table']} (called {item['name']}) adds "
        f"{len(added)} utterances of {added['speaker'].nunique()} speakers"
    )
    if people:
        text += (
            f"; {is_held_out.sum()} of the held-out speakers "
            f"{', '.join(people)} are left out"
        )
    if not is_held_out.all():
        text += (
            f"; {(~is_held_out).sum()} are in a table before it and train once"
        )
    if len(left_out):
        text += f": {left_out_csv} lists them"
    (logger.info if len(added) else logger.warning)(f"{text}.")


def _warn_of_same_ids(added, held_out):
    """Warns where added utterances have ids of held-out ones."""
    known = KnownUtterances(held_out)
    pairs = known.pair(list_utterances(added), "other_id")
    if pairs:
        one, other = pairs[0]
        logger.warning(
            f"corpora: {len(pairs)} utterances that are added have ids of the "
            f"held-out session, first {one.key} of speaker {one.speaker}, who "
            f"is {other.speaker} there. They are taken for others; if they are "
            "the same recordings, give their speakers the same names in both "
            "tables."
        )


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
    weights = {item["name"]: item["weight"] for item in corpora}
    weights[""] = corpus_weight
    groups = {}
    for key, entry in entries.items():
        groups.setdefault(entry.get("table", ""), []).append(key)
    for name in groups:
        if name not in weights:
            raise RecipeError(
                f"the training manifest has utterances of the table {name}, "
                "which is not listed in corpora: run without --skip_prep."
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
