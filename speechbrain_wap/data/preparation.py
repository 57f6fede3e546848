"""From a corpus to the manifests of a fold, for both stages.

corpus -> corpus table, and further tables -> splits of a fold -> manifests
"""

from collections import Counter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_wap.data.audio_index import AUDIO_INDEX
from speechbrain_wap.data.classes import choose_classes
from speechbrain_wap.data.corpus_table import (
    COLUMNS,
    RECORDED_IN,
    SKIPPED_NAME,
    read_own_corpus,
    read_skipped,
    record_skipped,
    write_corpus_table,
)
from speechbrain_wap.data.folds import SPLITS
from speechbrain_wap.data.further_corpora import (
    ORIGIN_COLUMNS,
    join_corpora,
    read_tables,
)
from speechbrain_wap.data.manifests import write_manifest
from speechbrain_wap.data.speakers import explain_held_out, list_utterances
from speechbrain_wap.errors import RecipeError, check_choice
from speechbrain_wap.files import write_table

logger = get_logger(__name__)


def prepare_table(
    prepare_corpus,
    data_folder,
    corpus_csv,
    corpus_table,
    max_skipped,
    cache_folder,
    fold_by="session",
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
        Holds the index of known audio files.
    fold_by : str
        "session", or "speaker": each speaker is a session, and the corpus's
        own sessions are in the column recorded_in.

    Returns
    -------
    table : pandas.DataFrame
    """
    check_choice("fold_by", fold_by, ("session", "speaker"))
    audio_index = Path(cache_folder, AUDIO_INDEX)
    kept = {"max_skipped": max_skipped, "audio_index": audio_index}
    if corpus_csv:
        table = read_own_corpus(corpus_csv)
        table = write_corpus_table(table, corpus_table, **kept)
    else:
        table = prepare_corpus(data_folder, corpus_table, **kept)
    if fold_by == "speaker":
        if RECORDED_IN not in table:  # else a run wrote this table
            table.insert(len(COLUMNS), RECORDED_IN, table["session"])
        table["session"] = table["speaker"]
        write_table(corpus_table, table)
    return table


def prepare_adapter_data(
    corpus, plan, adapter_data, manifests, corpora=(), left_out_csv=None
):
    """Writes the manifests of stage 1: all utterances, labelled or not (D8).

    Labels, of the training sessions only, serve to watch the training.

    Arguments
    ---------
    corpus : dict
        Arguments of :func:`prepare_table`; where they name no corpus, the
        adapter trains on the further tables alone, and nothing is held out.
    plan : speechbrain_wap.data.folds.FoldPlan
        Which fold, and how it is split.
    adapter_data : str
        "train": the training sessions only; "all": every session, the
        transductive reading.
    manifests : dict
        File to write for "train", "valid" and "test".
    corpora : list of dict
        Further tables, see
        :func:`speechbrain_wap.data.further_corpora.parse_corpora`.
    left_out_csv : str, optional
        Lists their utterances that are held out or train already.
    """
    table, further = _prepare_tables(corpus, corpora)
    if table is None:
        table = further[:0]
        splits = dict.fromkeys(SPLITS, table)
    else:
        plan.warn_of_splits(table)
        splits = plan.split(table)
    nothing = table[:0]
    is_train = table["id"].isin(splits["train"]["id"])
    held_out = table[~is_train]
    if adapter_data == "all" and len(table):
        # labels of held-out speakers are not even written down
        if corpora:
            people = [list_utterances(part) for part in (further, held_out)]
            is_other = [reason == "" for reason in explain_held_out(*people)]
            further = further.assign(emo=further["emo"].where(is_other, ""))
        table = table.assign(emo=table["emo"].where(is_train, ""))
        splits = {"train": table, "valid": nothing, "test": nothing}
        held_out = nothing
        logger.warning(
            "adapter_data=all: the adapter sees the held-out session's "
            "speakers (without labels); the report says so."
        )
    elif plan.protocol == "paper":
        # The held-out session, valid and test in one, is not even looked at.
        splits["valid"] = nothing
    if corpora:
        splits["train"] = join_corpora(
            further, splits["train"], held_out, corpora, left_out_csv
        )
    for name in SPLITS:
        optional = ORIGIN_COLUMNS if corpora and name == "train" else ()
        write_manifest(splits[name], manifests[name], optional)


def _prepare_tables(corpus, corpora):
    """Writes the table of the corpus under test and reads the further ones.

    Either is None where there is none; max_skipped is a share of all together.
    """
    if not corpora:
        return prepare_table(**corpus), None
    skipped_csv = Path(corpus["corpus_table"]).with_name(SKIPPED_NAME)
    table, reasons, ids = None, {}, []
    if corpus["corpus_csv"] or corpus["data_folder"]:
        table = prepare_table(**{**corpus, "max_skipped": 1.0})
        reasons = read_skipped(skipped_csv)
        ids = [*table["id"], *reasons]
    further, unreadable = read_tables(corpora, corpus["cache_folder"])
    ids += [*further["id"], *unreadable]
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise RecipeError(
            f"the id {repeated[0]} stands for more than one utterance of the "
            "corpus under test and the tables of corpora: give a table there "
            "another name, as in {table: b.csv, name: mine}."
        )
    reasons = {**reasons, **unreadable}
    record_skipped(skipped_csv, reasons, ids, corpus["max_skipped"])
    return table, further


def prepare_classifier_data(
    corpus, plan, classes, explicit_classes, dialogue_style, manifests
):
    """Writes the manifests of stage 2: the utterances of the classes (D2).

    Arguments
    ---------
    corpus : dict
        Arguments of :func:`prepare_table`.
    plan : speechbrain_wap.data.folds.FoldPlan
        Which fold, and how it is split.
    classes : dict, str or None
        Labels of each class, or "all".
    explicit_classes : bool
        See :func:`speechbrain_wap.data.classes.choose_classes`.
    dialogue_style : str
        "improvised", "scripted" or "all".
    manifests : dict
        File to write for "train", "valid" and "test".
    """
    table = prepare_table(**corpus)
    plan.warn_of_splits(table)
    chosen = choose_classes(table, classes, explicit_classes)
    splits = plan.split_labelled(table, chosen, dialogue_style)
    for name in SPLITS:
        write_manifest(splits[name], manifests[name])
