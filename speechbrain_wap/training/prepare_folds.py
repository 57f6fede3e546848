"""What a cross-validation settles and refuses before it trains anything."""

import hashlib
import re
from pathlib import Path

from speechbrain.utils.distributed import is_distributed_initialized

from speechbrain_wap.data.classes import choose_classes, label_utterances
from speechbrain_wap.data.folds import (
    SPLITS,
    FoldPlan,
    check_folds,
    list_sessions,
)
from speechbrain_wap.data.further_corpora import read_tables
from speechbrain_wap.data.preparation import prepare_table
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import ANY_BYTES, read_json
from speechbrain_wap.training.adapter_folder import (
    MODEL_KEYS,
    check_adapter,
    find_finished,
)
from speechbrain_wap.training.cross_validation import (
    SEED_MARK,
    STAGES,
    load_scripts,
)
from speechbrain_wap.training.experiment import Experiment
from speechbrain_wap.training.resume_guard import is_guarded, record_settings

# Keys that decide, with the seed, what weights a network begins with
START_KEYS = ("projection_init", "residual_init")


def prepare_folds(plan):
    """Writes the corpus table and settles the folds before any training.

    Returns the folds that are run and all sessions, of which fold k holds out
    the k-th, and at which revision the encoder of each stage was found.
    """
    if plan.adapter_training:
        _refuse_different_models(plan)
    scripts, experiments, revisions = load_scripts(), {}, {}
    for stage in plan.stages:  # what cannot be built is said at once
        command = plan.commands[stage]
        experiments[stage] = experiment = Experiment(
            command.change(output_folder=plan.output_folder),
            scripts[stage].NEEDED,
        )
        experiment.remove_empty_save_folder()
        revisions[stage] = experiment.settings.get("encoder_revision")
    hparams = experiment.hparams  # the classifier's, which is the last one
    if plan.has_adapter and not hasattr(hparams["model"], "backbone"):
        raise RecipeError(
            f"the system {type(hparams['model']).__name__} has no backbone to "
            "start from an adapter: give --adapter_training=False."
        )
    table = prepare_table(
        **hparams["corpus"], corpus_table=experiment.corpus_table
    )
    classes = choose_classes(
        table,
        hparams["classes"],
        "corpus_csv" not in command.overrides or "classes" in command.overrides,
    )
    if not is_distributed_initialized():  # else this is the main rank alone
        for stage, one in experiments.items():
            scripts[stage].try_out(one, list(classes))
    style = hparams["dialogue_style"]
    protocol = hparams["protocol"]
    FoldPlan(1, protocol).warn_of_splits(table)
    sessions = list_sessions(table)
    # A session without labels is no fold: it serves adapter training only.
    labelled = set(label_utterances(table, classes, style)["session"])
    if protocol == "predefined":
        sessions = labelled = ["test"]
    folds = plan.folds or [
        fold
        for fold, session in enumerate(sessions, start=1)
        if session in labelled
    ]
    plans = [FoldPlan(fold, protocol) for fold in folds]
    check_folds(plans, table, classes, style)

    def split(plans):
        """Splits the labelled utterances as several folds hold them out."""
        if len(plans) == 1:
            return plans[0].split_labelled(table, classes, style)
        named = {s for one in plans for s in one.hold_out(sessions)}
        utterances = label_utterances(table, classes, style)
        is_held_out = utterances["session"].isin(named)
        parts = utterances[~is_held_out], utterances[:0]
        return dict(zip(SPLITS, (*parts, utterances[is_held_out])))

    settings = {**experiment.settings, "encoder_key": experiment.encoder_key}
    compared = ["id", "digest", "speaker", "session", "emo"]
    compared += ["split"] * (protocol == "predefined")
    content = table[compared].to_csv()
    if plan.corpora:
        further, _ = read_tables(plan.corpora, hparams["cache_folder"])
        content += further[["id", "digest", "speaker"]].to_csv()
    guarded = {
        f"{stage}.{key}": value
        for stage in plan.stages
        for key, value in plan.settings[stage].items()
        if is_guarded(key)
    }
    guarded["encoder_key"] = experiment.encoder_key
    guarded["adapter_training"] = plan.adapter_training
    guarded["adapter_identity"] = _check_earlier_adapters(
        plan, settings, plans, split, experiment.corpus_table
    )
    content = content.encode(**ANY_BYTES)
    guarded["data"] = hashlib.sha256(content).hexdigest()[:16]
    record_settings(plan.output_folder, {**guarded, "number_of_epochs": 0})
    return folds, sessions, revisions


def _refuse_different_models(plan):
    """Makes sure that both stages mean the same model and the same folds."""
    adapter, classifier = (plan.settings[stage] for stage in STAGES)
    keys = {*MODEL_KEYS, "feature_precision", "protocol", "fold_by"}
    for key, value in adapter.items():
        if key.startswith("encoder"):  # and the keys that it refers to
            keys |= {key, *re.findall(r"<(\w+)>", str(value))}
    for key in sorted(keys & adapter.keys() & classifier.keys()):
        if adapter[key] != classifier[key]:
            raise RecipeError(
                f"{key} is {adapter[key]} for the adapter, but "
                f"{classifier[key]} for the classifier: both stages need the "
                "same."
            )


def _check_earlier_adapters(plan, settings, plans, split, corpus_table):
    """Refuses adapters that may not be used; returns what identifies them."""
    identity = None
    for adapter in dict.fromkeys(plan.earlier_adapters.values()):
        identity = _check_folds(adapter, settings, plans, split, corpus_table)
    if plan.has_adapter_per_seed:
        for seed, adapter in plan.earlier_adapters.items():
            _check_start(adapter, seed, settings)
        # seeds may be added: each fold is guarded by itself
        identity = "one for each seed"
    return identity


def _check_folds(adapter_folder, settings, plans, split, corpus_table):
    """Refuses an adapter that does not fit or heard a fold's held-out speakers.

    All folds are checked at once; where one fails, one by one: the error names
    the folds that it may be used for.
    """

    def check(plans):
        """Checks the adapter for what several folds hold out."""
        return check_adapter(
            adapter_folder, settings, split(plans), corpus_table
        )

    identity, reasons = None, {}
    try:
        identity = check(plans)
    except RecipeError:
        for plan in plans:
            try:
                identity = check([plan])
            except RecipeError as error:
                reasons[plan.fold] = str(error)
    if reasons:
        fold = min(reasons)
        left = ",".join(str(p.fold) for p in plans if p.fold not in reasons)
        cure = f" It may be used with --folds={left}." if left else ""
        raise RecipeError(f"fold {fold}: {reasons[fold]}{cure}")
    find_finished(adapter_folder)
    return identity


def _check_start(adapter_folder, seed, settings):
    """Refuses an adapter that did not begin as the seed's network does.

    Else a comparison would be of two things, the start and the training.
    """
    path = Path(adapter_folder, "save", "settings.json")
    recorded = read_json(path, "run train_adapter.py again.", ("settings",))
    began = recorded["settings"]
    wanted = {key: settings[key] for key in START_KEYS if key in settings}
    for key, mine in {"seed": seed, **wanted}.items():
        if key in began and began[key] != mine:
            raise RecipeError(
                f"the adapter in {adapter_folder} was trained with {key}="
                f"{began[key]}, but {SEED_MARK} in --adapter_folder stands for "
                f"adapters that began as the network of each seed does, here "
                f"{key}={mine}: train it so, or name one adapter for all seeds."
            )
