"""Table I: the systems' options, the choice of a configuration, the file."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from readings import CORPORA, FILES, SMALL, STAGES, find_yaml

from speechbrain_wap.comparisons import choice, table1
from speechbrain_wap.comparisons.choice import (
    choose_configuration,
    plan_trial,
    split_training,
    validate,
)
from speechbrain_wap.comparisons.side_by_side import Row
from speechbrain_wap.comparisons.table1 import (
    TABLE,
    _Entry,
    _read_arguments,
    list_plans,
    read_table,
)
from speechbrain_wap.data.folds import FoldPlan
from speechbrain_wap.errors import DivergedError, RecipeError
from speechbrain_wap.training.command_line import split_options

PROBE = "{probe: True, configurations: [{C: %s}]}"
LINEAR = {"system": "linear", "adapter_training": False}
GRID = [
    {"classifier_lr": lr, "number_of_epochs": n}
    for lr in (1, 2)
    for n in (3, 4)
]


def plan_all(entry, *options, others=()):
    """Lists the plans of a system as they are typed."""
    _, options = split_options([*SMALL, *options])
    return list_plans(FILES, options, [entry, *others])[entry.name]


# What is run -----------------------------------------------------------------


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_system_of_the_packages_table_can_be_planned(corpus):
    entries, reference = read_table(TABLE)
    assert reference in entries
    files = [find_yaml(stage, corpus) for stage in STAGES]
    trained = [entry for entry in entries.values() if not entry.probe]
    assert all(len(entry.configurations) == 4 for entry in trained)
    # one of each, which takes a quarter of the time
    firsts = [e._replace(configurations=e.configurations[:1]) for e in trained]
    listed = list_plans(files, [("data_folder", "D")], firsts)
    for entry in trained:
        (plan,) = listed[entry.name].values()
        assert plan.adapter_training == entry.options["adapter_training"]


def test_what_is_typed_counts_more_than_a_configuration():
    entry = _Entry("linear", LINEAR, GRID)
    plans = plan_all(entry)
    assert list(plans) == [
        f"classifier_lr={lr}, number_of_epochs={n}"
        for lr in (1, 2)
        for n in (3, 4)
    ]
    # what a configuration leaves to the YAML is told, too
    plans = plan_all(entry._replace(configurations=[{}, {"classifier_lr": 1}]))
    assert list(plans) == ["classifier_lr=0.0001", "classifier_lr=1"]
    # of what is then the same, one is left
    plans = plan_all(entry, "--classifier.number_of_epochs=7")
    assert list(plans) == [
        f"classifier_lr={lr}, number_of_epochs=7" for lr in (1, 2)
    ]
    for lr, plan in zip((1, 2), plans.values()):
        settings = plan.settings["classifier"]
        assert settings["classifier_lr"] == lr
        assert settings["number_of_epochs"] == 7


def test_what_a_system_is_counts_more_than_what_is_typed():
    entry = _Entry("weighted", {**LINEAR, "encoder_layer": "weighted"})
    (plan,) = plan_all(entry, "--encoder_layer=3").values()
    assert plan.settings["classifier"]["encoder_layer"] == "weighted"
    assert plan.settings["classifier"]["system"] == "linear"


def test_a_key_goes_to_the_systems_that_have_it():
    linear, wap = _Entry("linear", LINEAR), _Entry("wap")
    (plan,) = plan_all(linear, "--sap_heads=2", others=[wap]).values()
    assert "sap_heads" not in plan.settings["classifier"]
    (plan,) = plan_all(wap, "--sap_heads=2", others=[linear]).values()
    assert plan.settings["classifier"]["sap_heads"] == 2
    with pytest.raises(RecipeError, match="did you mean --sap_heads"):
        plan_all(wap, "--sap_head=2", others=[linear])


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--systems=LPMM"], "there is no LPMM: choose of linear probe, W2v2"),
        (["--systems=linear probe"], "takes the folds of another system"),
        (["--system=linear"], "--system cannot be set here"),
        (["--classifier.adapter_folder=x"], "cannot be set here"),
        (["--table=nowhere.yaml"], "nowhere.yaml cannot be read: No such"),
    ],
)
def test_a_table_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        _read_arguments(options)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("systems: [a]", "is no table of systems"),
        ("reference: a", "is no table of systems"),
        ("systems: {a: {option: {}}}", "is no table of systems"),
        ("systems: {a: [", "is no table of systems"),
        ("systems: {a: {configurations: []}}", "a has 0 configurations, but"),
        ("systems: {a b: , a_b: }", "give different folders, other than"),
        ("systems: {choice: }", "give different folders, other than adapt"),
        ("systems: {†: }", "give different folders, other than adapters"),
        ("systems: {'a,b': }", "names of systems must have no comma"),
        ("systems: {a: {options: {seeds: 3}}}", "a: seeds is the same for all"),
        ("systems: {a: {configurations: [{folds: 1}]}}", "type --folds=... in"),
        ("{reference: b, systems: {a: }}", "b is none of its systems: choose"),
        ("systems: {a: {options: linear}}", "a must have a mapping of options"),
        ("systems: {a: {configurations: {lr: 1}}}", "a list of configurations"),
        ("systems: {a: {configurations: [lr]}}", "which are mappings"),
        ("systems: {a: {configurations: [{system: b}]}}", "into its options"),
        ("systems: {a: {probe: True}}", "a configuration is a value of C"),
        (f"systems: {{a: {PROBE % '1e-3'}}}", "YAML takes 1.0e-3, not 1e-3"),
        (f"systems: {{a: {PROBE % '0'}}}", "a value of C, a number above 0"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, sentence):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(
        RecipeError, match=f"{re.escape(str(path))}.*{sentence}"
    ):
        read_table(path)


def test_names_that_yaml_takes_for_numbers_are_names(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("{reference: 1, systems: {1: }}")
    entries, reference = read_table(path)
    assert list(entries) == [reference] == ["1"]


# The choice ------------------------------------------------------------------


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Chooses by scores that are given; returns choice and what was tried."""

    def run(scores, grid=GRID, usable=(1, 2, 3)):
        tried = []

        def fake(plan):
            tried.append(plan)
            return scores[len(tried) - 1]

        def settle(plan):
            if plan.folds is not None and plan.folds[0] not in usable:
                raise RecipeError("no labels.")
            return plan.folds, list("abc"), {}

        monkeypatch.setattr(choice, "validate", fake)
        monkeypatch.setattr(choice, "settle_folds", settle)
        plans = plan_all(_Entry("A b", LINEAR, grid))
        return choose_configuration(tmp_path, "A b", plans), tried

    return run


def test_the_best_is_chosen_once_for_a_folder(choose, tmp_path):
    chosen, tried = choose([0.2, 0.5, 0.5, 0.1])
    assert chosen == "classifier_lr=1, number_of_epochs=4"
    for plan in tried:
        assert plan.settings["classifier"]["protocol"] == "held_out"
        assert (plan.folds, len(plan.seeds)) == ([1], 1)
    assert len({plan.output_folder for plan in tried}) == 4
    assert choose([0.9, 0.0, 0.0, 0.0]) == (chosen, [])
    path = tmp_path / "choice" / "A_b" / "choice.json"
    assert json.loads(path.read_text())["validation_UA"][chosen] == 0.5
    with pytest.raises(RecipeError, match="a choice among other configurat"):
        choose([], GRID[:2])


def test_what_diverges_is_not_chosen(choose, tmp_path):
    assert choose([None, 0.1, None, 0.2])[0].endswith("2, number_of_epochs=4")
    path = tmp_path / "choice" / "A_b" / "choice.json"
    path.unlink()
    with pytest.raises(RecipeError, match="each of its configurations diverg"):
        choose([None] * 4)
    assert not path.exists()


@pytest.mark.parametrize(
    "damaged",
    [
        {"chosen": "b", "validation_UA": {"a": 0.5}},
        {"chosen": "a", "validation_UA": [0.5]},
        {"chosen": "a"},
    ],
)
def test_a_damaged_choice_is_named(choose, tmp_path, damaged):
    path = tmp_path / "choice" / "A_b" / "choice.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(damaged))
    with pytest.raises(RecipeError, match=f"{re.escape(str(path))} is damaged"):
        choose([])


@pytest.mark.parametrize("usable", [[1, 2, 3], [2, 3], [3]])
def test_the_first_fold_that_can_be_chosen_on_is(choose, usable):
    _, tried = choose([0.1] * 4, usable=usable)
    assert {plan.folds[0] for plan in tried} == {usable[0]}


def test_a_corpus_that_nothing_can_be_chosen_on_is_refused(choose):
    with pytest.raises(RecipeError, match=r"to spare \(no labels\): give each"):
        choose([], usable=[])


def test_nothing_is_tried_where_there_is_no_choice(choose, tmp_path):
    assert choose([], GRID[:1])[1] == [] and not list(tmp_path.iterdir())


def test_official_splits_stay_as_they_are():
    (plan,) = plan_all(_Entry("a"), "--protocol=predefined").values()
    trial = plan_trial("R", "F", plan, 1)
    for stage in STAGES:
        assert trial.settings[stage]["protocol"] == "predefined"
    (plan,) = plan_all(_Entry("a")).values()
    for stage in STAGES:
        settings = plan_trial("R", "F", plan, 1).settings[stage]
        assert settings["protocol"] == "held_out"


@pytest.mark.parametrize("selection, expected", [("last", 0.4), ("best", 0.6)])
def test_the_session_that_is_tested_has_no_say(
    tmp_path, monkeypatch, selection, expected
):
    options = [f"--output_folder={tmp_path}", "--seeds=5", "--folds=1"]
    options.append(f"--model_selection={selection}")
    (plan,) = plan_all(_Entry("a", LINEAR), *options).values()

    def fake(plan, report):
        place = Path(tmp_path, "seed5", "fold1", "classifier")
        place.mkdir(parents=True)
        rows = [{"valid": {"UA": ua}} for ua in (0.6, 0.4)]
        (place / "history.json").write_text(json.dumps(rows))
        (place / "scores.json").write_text('{"UA": 0.99}')

    monkeypatch.setattr(choice, "run_all", fake)
    assert validate(plan) == expected


def test_a_trial_that_diverges_has_no_score(tmp_path, monkeypatch):
    def diverge(plan, report):
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(choice, "run_all", diverge)
    (plan,) = plan_all(_Entry("a", LINEAR)).values()
    assert validate(plan) is None


@pytest.fixture
def probe(monkeypatch):
    """Runs the probe of fold 2 on sessions that are given; tells its C."""

    def run(sessions, *strengths):
        train = {s: {"session": s, "label": "a"} for s in sessions}
        splits = {"train": train, "valid": {}, "test": {}}
        cache = SimpleNamespace(make_reader=lambda _: None)
        hparams = {"fold_plan": FoldPlan(2), "feature_cache": cache}
        hparams["max_frames"] = 9
        used = []

        def fake_folds(hparams, plan, runs, fraction, pooled, strength):
            pooled["digest"] = [0.0, 0.0]
            used.append(strength)
            return {"classes": ["a", "b"]}

        for name, fake in {
            "build_hparams": lambda plan: hparams,
            "read_splits": lambda *_: splits,
            "linear_probe": lambda *given: {"UA": -abs(given[-1] - 0.3)},
            "probe_folds": fake_folds,
        }.items():
            monkeypatch.setattr(table1, name, fake)
        (plan,) = plan_all(_Entry("A", LINEAR)).values()
        runs = [{"fold": fold, "seed": 1} for fold in (3, 2)]
        entry = _Entry("p", probe=True)
        entry = entry._replace(configurations=[{"C": C} for C in strengths])
        row = Row("A", {"runs": runs}, {})
        table1._probe(plan, entry, {"A": plan}, [row])
        return used[0]

    return run


def test_the_probe_chooses_where_fold_1_is_not_run(probe):
    assert probe("134", 0.1, 0.4, 1.0) == 0.4
    assert probe("1", 7.0) == 7.0
    with pytest.raises(RecipeError, match="needs two training sessions"):
        probe("1", 0.1, 0.4)


def test_the_probe_chooses_on_what_fold_1_trains_on():
    train = {f"{s}{i}": {"session": s} for s in ("10", "2", "3") for i in "ab"}
    test = {"x": {"session": "1"}}
    found = split_training(
        {"train": train, "valid": test, "test": test}, "paper"
    )
    assert list(found["test"]) == ["2a", "2b"]
    assert found["train"].keys() | found["test"].keys() == train.keys()
    valid = {"v": {"session": "9"}}
    splits = {"train": train, "valid": valid, "test": test}
    for protocol in ("held_out", "predefined"):
        found = split_training(splits, protocol)
        assert found == {"train": train, "test": valid}
