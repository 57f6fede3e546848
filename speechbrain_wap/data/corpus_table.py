"""Corpus tables, classes and folds: which utterance goes where.

A corpus table has one row per utterance, labelled or not: ``id, wav, duration,
speaker, session, emo``, then what a corpus adds. One fold holds out one
session, and no speaker is ever in two splits (D8, D9).
"""

import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from speechbrain_wap.data.audio import inspect_audio
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_atomically, write_text

logger = get_logger(__name__)

# Columns of predictions.csv beside those of the classes
PREDICTION_COLUMNS = ("id", "session", "speaker", "label", "prediction")
COLUMNS = ["id", "wav", "duration", "speaker", "session", "emo"]
# What the audio file is known by, see inspect_audio
AUDIO_COLUMNS = ["digest", "sound"]
STYLES = ("improvised", "scripted")
# Beside a corpus table
SKIPPED_NAME = "skipped.csv"
OWN_COLUMNS = ["id", "wav", "speaker", "session", "emo"]


def natural_key(name):
    """Sorts names with numbers as people do: 2 before 10.

    Arguments
    ---------
    name : str
        A session's or speaker's name.

    Returns
    -------
    key : list
        For ``sorted``.

    Example
    -------
    >>> sorted(["s10", "s2"], key=natural_key)
    ['s2', 's10']
    """
    parts = re.split(r"(\d+)", str(name))
    numbers = [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]
    return numbers, str(name)  # "1" and "01" have an order, too


def _read_csv(path, required, cure):
    """Reads a table as text, without guessing at "NA" or numbers."""
    options = {
        "dtype": str,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
        "index_col": False,  # a comma at a line's end is no column
        "skipinitialspace": True,
    }
    try:
        first = pd.read_csv(path, nrows=1, header=None, **options)
        header = [str(name).strip() for name in first.iloc[0]]
        twice = [name for name in required if header.count(name) > 1]
        if twice:
            raise RecipeError(
                f"{path} has the column {twice[0]} twice: remove one."
            )
        missing = [name for name in required if name not in header]
        if missing:
            raise RecipeError(
                f"{path} lacks the columns {', '.join(missing)}: {cure}"
            )
        with warnings.catch_warnings():
            # a row with more cells than the header, which pandas would cut
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, **options)
    except RecipeError:
        raise
    except FileNotFoundError:
        raise RecipeError(f"corpus table {path} does not exist.")
    except UnicodeError:
        raise RecipeError(
            f"corpus table {path} cannot be read: it is no text in UTF-8; "
            "save it as CSV (UTF-8)."
        )
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"corpus table {path} cannot be read: {reason}.")
    table.columns = [str(column).strip() for column in table.columns]
    return table.apply(lambda column: column.str.strip())


def read_own_corpus(csv):
    """Reads the table of a user's own corpus.

    Arguments
    ---------
    csv : str
        A CSV file with the columns id, wav, speaker, session, emo; emo may be
        empty; relative wav paths are relative to the file.

    Returns
    -------
    table : pandas.DataFrame
        All columns as text, wav paths absolute.

    Raises
    ------
    RecipeError
        If the file or a column is missing, or a cell is empty.
    """
    cure = f"a corpus table has {', '.join(OWN_COLUMNS)}."
    table = _read_csv(csv, OWN_COLUMNS, cure)
    if len(table) == 0:
        raise RecipeError(f"{csv} has no utterance: add rows below its header.")
    for column in ["id", "wav", "speaker", "session"]:
        empty = table.index[table[column] == ""]
        if len(empty):
            # + 2: the header, and lines count from 1
            raise RecipeError(
                f"{csv}, line {empty[0] + 2}: the column {column} is empty."
            )
    folder = Path(csv).resolve().parent
    table["wav"] = [str(folder / wav) for wav in table["wav"]]
    return table


def open_data_folder(data_folder):
    """Checks that a corpus's folder is there.

    Arguments
    ---------
    data_folder : str
        As the user gave it.

    Returns
    -------
    folder : pathlib.Path

    Raises
    ------
    RecipeError
        If there is no such folder.
    """
    folder = Path(data_folder)
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise RecipeError(f"data_folder={data_folder} {reason}.")
    return folder


def inspect_files(wavs, audio_index=None):
    """Decodes audio files, but for those that have not changed since.

    Arguments
    ---------
    wavs : list of str
        Audio files.
    audio_index : str, optional
        A JSON file that keeps size, time of change, duration, digest and
        sound of the files, so that unchanged ones are not decoded again.

    Returns
    -------
    results : list of tuple
        Duration (in seconds), digest and sound of each file, see
        :func:`speechbrain_wap.data.audio.inspect_audio`; or None, the reason why it
        cannot be read, and None.
    """
    known = {}
    if audio_index is not None and Path(audio_index).is_file():
        try:
            known = dict(json.loads(Path(audio_index).read_text("utf-8")))
            for wav, (_, _, duration, *digests) in known.items():
                float(duration), Path(wav), [int(d, 16) for d in digests]
            # an earlier version kept no sound
            known = {wav: e for wav, e in known.items() if len(e) == 5}
        except (OSError, TypeError, ValueError):
            logger.warning(f"{audio_index} is damaged and is made again.")
            known = {}

    def inspect(wav):
        try:
            stat = Path(wav).stat()
            state = [stat.st_size, stat.st_mtime_ns]
            if known.get(wav, [])[:2] == state:
                return known[wav]
            return state + list(inspect_audio(wav))
        except (RecipeError, OSError) as error:
            reason = getattr(error, "strerror", None)
            return f"{wav}: {reason}." if reason else str(error)

    with ThreadPoolExecutor() as pool:
        found = list(
            tqdm(
                pool.map(inspect, wavs),
                total=len(wavs),
                desc="Checking audio",
                unit="file",
                dynamic_ncols=True,
            )
        )
    fresh = {w: f for w, f in zip(wavs, found) if not isinstance(f, str)}
    if audio_index is not None and any(
        known.get(wav) != entry for wav, entry in fresh.items()
    ):
        try:
            write_text(audio_index, json.dumps({**known, **fresh}))
        except RecipeError as error:  # it only saves time
            logger.warning(f"{error} The next run decodes all files again.")
    return [
        (None, f, None) if isinstance(f, str) else tuple(f[2:]) for f in found
    ]


def check_audio(table, audio_index=None):
    """Decodes every audio file of a table once.

    Arguments
    ---------
    table : pandas.DataFrame
        With the columns id and wav.
    audio_index : str, optional
        See :func:`inspect_files`.

    Returns
    -------
    table : pandas.DataFrame
        The rows that can be read, with duration, digest and sound of their
        files.
    reasons : dict
        Why the others cannot, by id.
    """
    results = inspect_files(table["wav"].tolist(), audio_index)
    found = pd.DataFrame(
        results, columns=["duration", *AUDIO_COLUMNS], index=table.index
    )
    table = table.assign(**found)
    unreadable = table["duration"].isna()
    reasons = dict(zip(table["id"][unreadable], table["digest"][unreadable]))
    return table[~unreadable].reset_index(drop=True), reasons


def check_ids(table, place=""):
    """Makes sure that an id stands for one utterance.

    Arguments
    ---------
    table : pandas.DataFrame
        With the columns id and wav.
    place : str
        Where the table is from, for errors.

    Raises
    ------
    RecipeError
        If one repeats; names two of its files.
    """
    repeated = table["id"][table["id"].duplicated()]
    if len(repeated):
        key = repeated.iloc[0]
        one, other = table["wav"][table["id"] == key].iloc[:2]
        raise RecipeError(
            f"{place}the id {key} stands for more than one utterance ({one} "
            f"and {other}): ids must be unique."
        )


def write_corpus_table(table, corpus_csv, max_skipped=0.01, audio_index=None):
    """Checks every audio file and writes the corpus table.

    What cannot be read is left out and listed with its reason in
    ``skipped.csv`` beside the table.

    Arguments
    ---------
    table : pandas.DataFrame
        At least the columns id, wav, speaker, session, emo.
    corpus_csv : str
        The file to write.
    max_skipped : float
        Share of the files that may be unreadable, 0 to 1.
    audio_index : str, optional
        See :func:`inspect_files`.

    Returns
    -------
    table : pandas.DataFrame
        What was written: COLUMNS first, then other columns, then digest and
        sound of each audio file.

    Raises
    ------
    RecipeError
        If the table is empty, ids repeat, or too many files are unreadable.
    """
    if len(table) == 0:
        raise RecipeError(f"no utterance found for {corpus_csv}.")
    check_ids(table)
    ids = table["id"].tolist()
    table, reasons = check_audio(table, audio_index)
    record_skipped(
        Path(corpus_csv).with_name(SKIPPED_NAME), reasons, ids, max_skipped
    )
    extra = [c for c in table.columns if c not in COLUMNS + AUDIO_COLUMNS]
    table = table[COLUMNS + extra + AUDIO_COLUMNS]
    with write_atomically(corpus_csv) as temporary:
        table.to_csv(temporary, index=False)
    return table


def record_skipped(
    skipped_csv, reasons, ids, max_skipped, append=False, write=True
):
    """Lists what had to be left out, and stops where that is too much.

    Arguments
    ---------
    skipped_csv : str
        The file to write; it is removed where there is nothing to list.
    reasons : dict
        Reason by utterance id.
    ids : list of str
        All utterances that were tried.
    max_skipped : float
        Share of them that may fail, 0 to 1.
    append : bool
        Whether what the file says of other utterances stays.
    write : bool
        False on all ranks but one, which only join in the decision.

    Raises
    ------
    RecipeError
        If more failed.
    """
    if write:
        listed = dict(reasons)
        if append:
            before, known = read_skipped(skipped_csv), set(ids)
            others = {k: r for k, r in before.items() if k not in known}
            listed = {**others, **reasons}
        _write_skipped(skipped_csv, listed)
    if not reasons:
        return
    first = next(iter(reasons))
    summary = (
        f"{len(reasons)} of {len(ids)} utterances cannot be used, first "
        f"{first}: {reasons[first]} All are listed in {skipped_csv}"
    )
    if len(reasons) > max_skipped * len(ids):
        raise RecipeError(
            f"{summary}. Mend or remove them, or allow more with "
            f"max_skipped (now {max_skipped})."
        )
    logger.warning(f"{summary}; they are left out.")


def read_skipped(skipped_csv):
    """Reads what :func:`record_skipped` listed.

    Arguments
    ---------
    skipped_csv : str
        The file.

    Returns
    -------
    reasons : dict
        Reason by utterance id; empty where there is no file, or a damaged one.
    """
    if not Path(skipped_csv).is_file():
        return {}
    try:
        table = _read_csv(skipped_csv, ["id", "reason"], "")
    except RecipeError:
        logger.warning(f"{skipped_csv} is damaged and is made again.")
        return {}
    return dict(zip(table["id"], table["reason"]))


def _write_skipped(skipped_csv, reasons):
    """Writes the list, or removes it where there is nothing to list."""
    if not reasons:
        Path(skipped_csv).unlink(missing_ok=True)
        return
    listing = pd.DataFrame(reasons.items(), columns=["id", "reason"])
    with write_atomically(skipped_csv) as temporary:
        listing.to_csv(temporary, index=False)


def read_corpus_table(corpus_csv):
    """Reads the table that :func:`write_corpus_table` wrote.

    Arguments
    ---------
    corpus_csv : str
        The file.

    Returns
    -------
    table : pandas.DataFrame
        All columns as text, but the duration, in seconds.
    """
    cure = "run without --skip_prep to prepare the corpus."
    table = _read_csv(corpus_csv, COLUMNS + ["digest"], cure)
    table["duration"] = table["duration"].astype(float)
    return table


def choose_classes(table, classes, explicit=True):
    """Settles which classes there are and which labels they take (D2).

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    classes : dict, str or None
        Labels of each class; "all" or None makes every label of the table a
        class.
    explicit : bool
        Whether the user asked for these classes. If not, as where an own
        corpus is given to a recipe whose YAML maps another corpus's labels,
        a mapping that does not fit the table gives way to the table's labels.

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
    if absent:
        raise RecipeError(
            f"no utterance of the class {absent[0]} (labels "
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
    if dialogue_style not in ("all", *STYLES):
        raise RecipeError(
            f"dialogue_style={dialogue_style} is unknown: choose one of all, "
            f"{', '.join(STYLES)}."
        )
    # an own table may mean something else by style
    styles = sorted(set(table.get("style", []))) or [""]
    if set(styles) <= set(STYLES) and dialogue_style != "all":
        table = table[table["style"] == dialogue_style]
        if len(table) == 0:
            raise RecipeError(
                f"dialogue_style={dialogue_style} leaves no utterance: choose "
                f"one of all, {', '.join(styles)}."
            )
    names = {v: name for name, members in classes.items() for v in members}
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


def list_sessions(table):
    """Names the sessions in the order of the folds.

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.

    Returns
    -------
    sessions : list of str
        Fold k holds out the k-th, counted from 1.
    """
    return sorted(set(table["session"]), key=natural_key)


def split_sessions(sessions, fold, protocol="paper"):
    """Chooses the sessions of each split of a fold (D9).

    Arguments
    ---------
    sessions : list of str
        All sessions.
    fold : int
        Counted from 1.
    protocol : str
        "paper": the held-out session is both validation and test set;
        "held_out": the session after it (cyclically) validates, and the
        held-out session only tests.

    Returns
    -------
    splits : dict
        List of sessions of "train", "valid" and "test".

    Raises
    ------
    RecipeError
        If the fold or the protocol does not exist, or sessions are too few.

    Example
    -------
    >>> split_sessions(["1", "2", "3"], 3, "held_out")
    {'train': ['2'], 'valid': ['1'], 'test': ['3']}
    """
    if protocol not in ("paper", "held_out"):
        raise RecipeError(
            f"protocol={protocol} is unknown: choose paper or held_out."
        )
    folds = range(1, len(sessions) + 1)
    if fold not in folds:
        listing = ", ".join(f"{k} ({sessions[k - 1]})" for k in folds)
        raise RecipeError(
            f"fold {fold} does not exist: the corpus has the folds (held-out "
            f"sessions) {listing}."
        )
    least = 2 if protocol == "paper" else 3
    if len(sessions) < least:
        raise RecipeError(
            f"protocol={protocol} needs at least {least} sessions, but the "
            f"corpus has {len(sessions)}."
        )
    test = sessions[fold - 1]
    valid = test if protocol == "paper" else sessions[fold % len(sessions)]
    train = [s for s in sessions if s not in (test, valid)]
    return {"train": train, "valid": [valid], "test": [test]}


def split_table(table, fold, protocol="paper"):
    """Splits a corpus table by sessions (D9).

    Arguments
    ---------
    table : pandas.DataFrame
        A corpus table.
    fold : int
        Counted from 1.
    protocol : str
        See :func:`split_sessions`.

    Returns
    -------
    splits : dict
        Table of "train", "valid" and "test".
    """
    sessions = split_sessions(list_sessions(table), fold, protocol)
    return {
        name: table[table["session"].isin(members)]
        for name, members in sessions.items()
    }


def write_manifest(table, path, optional=()):
    """Writes one split as SpeechBrain's JSON manifest.

    Arguments
    ---------
    table : pandas.DataFrame
        Rows of a corpus table, with label where classes matter.
    path : str
        The file to write.
    optional : tuple of str
        Further columns, which only some of the rows have.
    """
    columns = ["wav", "duration", "speaker", "session", "emo", *AUDIO_COLUMNS]
    columns += ["label"] if "label" in table.columns else []
    entries = {
        row["id"]: {
            **{column: row[column] for column in columns},
            **{c: row[c] for c in optional if not pd.isna(row[c])},
        }
        for row in table.to_dict("records")
    }
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False))
