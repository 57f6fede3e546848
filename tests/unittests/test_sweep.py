"""A sweep: what is run for each value, shared, and tested against what."""

import pytest
from readings import FILES, SMALL

from speechbrain_wap.comparisons.sweep import (
    WITHOUT,
    _list_plans,
    _read_arguments,
    list_notes,
)
from speechbrain_wap.errors import RecipeError


def list_plans(*options):
    """Lists the plans and pairs of a command line."""
    _, swept, arguments = _read_arguments([*FILES, *SMALL, *options])
    return _list_plans("R", arguments, swept)


def test_values_of_an_adapters_key_share_one_network_without_it():
    plans, pairs = list_plans("--sweep", "num_attributes=64,8,64")
    assert list(plans) == ["num_attributes=64", "num_attributes=8", WITHOUT]
    assert pairs == [(name, WITHOUT) for name in list(plans)[:2]]
    for value in (64, 8):
        plan = plans[f"num_attributes={value}"]
        assert plan.settings["adapter"]["num_attributes"] == value
        assert plan.adapter_training and not plans[WITHOUT].has_adapter
    folders = {plan.output_folder for plan in plans.values()}
    adapters = {plan.adapters_folder for plan in plans.values()}
    assert len(folders) == 3 and len(adapters) == 2


def test_values_of_a_classifiers_key_share_the_adapters():
    plans, pairs = list_plans("--sweep=classifier.lr=0.1,1e-4")
    names = ["classifier.lr=0.1", "classifier.lr=0.0001"]
    assert pairs == [(name, f"{name}, {WITHOUT}") for name in names]
    assert len({plans[name].adapters_folder for name in names}) == 1
    for pair in pairs:
        one, other = (plans[name].settings["classifier"] for name in pair)
        assert one == other
    # both stages' keys share nothing
    plans, pairs = list_plans("--sweep=encoder_layer=last,[1, 2]")
    assert len(pairs) == 2 and len(plans) == 4
    layers = [plans[a].settings["adapter"]["encoder_layer"] for a, _ in pairs]
    assert layers == ["last", [1, 2]]
    assert len({plans[a].adapters_folder for a, _ in pairs}) == 2


def test_without_adapters_the_first_value_is_the_reference():
    plans, pairs = list_plans(
        "--sweep=sap_heads=4,2,1", "--adapter_training=False"
    )
    names = [f"sap_heads={n}" for n in (4, 2, 1)]
    assert list(plans) == names and pairs == [(n, names[0]) for n in names[1:]]


def test_a_note_of_some_values_names_them():
    plans, _ = list_plans("--sweep=model_selection=last,best")
    notes = list_notes(plans)
    assert notes[0].startswith("Corpus ")
    best = "model_selection=best"
    others = f"model_selection=last, model_selection=last, {WITHOUT}"
    assert notes[2].startswith(f"{others}: Scores are those of the last")
    assert notes[3].startswith(f"{best}, {best}, {WITHOUT}: **Optimistic**")
    plans, _ = list_plans("--sweep=num_attributes=8,16")
    assert not any(note.startswith("num_attr") for note in list_notes(plans))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([], "give one key and its values: --sweep num_attributes=128,256"),
        (["--sweep=lr=1", "--sweep=seed=2"], "give one key"),
        (["--sweep", "num_attributes"], "num_attributes has no values"),
        (["--sweep=lr="], "has no values"),
        (["--sweep=lr=[1"], "has no values"),
        (["--sweep=folds=1,2"], "folds cannot be swept"),
        (["--sweep=num_atributes=1"], "did you mean --num_attributes"),
        (["--sweep=seed=1,2"], "--seed cannot be set here: use --seeds"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        list_plans(*options)
