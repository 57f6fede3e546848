"""Classes: which labels make one, and which utterances stage 2 uses."""

import pytest
from corpus_tables import make_table

from speechbrain_wap.data.classes import (
    choose_classes,
    label_utterances,
    list_classes,
)
from speechbrain_wap.errors import RecipeError

IEMOCAP = {
    "angry": ["ang"],
    "happy": ["hap", "exc"],
    "sad": ["sad"],
    "neutral": ["neu"],
}


@pytest.mark.parametrize("classes", ["all", None])
def test_all_makes_each_label_a_class_in_natural_order(classes):
    table = make_table(["10", "", "b", "9", "a", "10"])
    chosen = choose_classes(table, classes)
    assert list(chosen.items()) == [(x, [x]) for x in ("9", "10", "a", "b")]


@pytest.mark.parametrize(
    "label", ["xxx", "Unknown", "n/a", "No agreement", "NA", "null", "?", "oth"]
)
def test_a_class_that_may_be_no_label_is_one_and_is_warned_of(label, caplog):
    table = make_table(["joy", "rage", label])
    assert label in choose_classes(table, "all")
    assert f"Of the classes, {label} may stand for no label" in caplog.text
    caplog.clear()
    choose_classes(table, {"joy": ["joy"], "other": [label]})  # as was asked
    choose_classes(make_table(["joy", "national", "another"]), "all")
    assert caplog.text == ""


def test_a_mapping_gives_the_classes_in_its_order():
    table = make_table(["neu", "ang", "exc", "sad", "fru", "", "1"])
    # a label alone, and a class that an override left out
    mapping = {"one": 1, "joy": None, **IEMOCAP}
    expected = {"one": ["1"], **IEMOCAP}
    assert list(choose_classes(table, mapping).items()) == [*expected.items()]


@pytest.mark.parametrize(
    "labels, classes, reason",
    [
        (["joy", ""], "all", "at least two classes"),
        ("ab", ["a", "b"], "must map each class"),
        ("ab", {"x": "a", "y": ["b", "a"]}, "label a .* two classes, x and y"),
        ("ab", {"x": ["a"], "y": ["c"]}, r"class y \(labels c\).* a, b"),
    ],
)
def test_classes_that_cannot_be_are_refused(labels, classes, reason):
    with pytest.raises(RecipeError, match=reason):
        choose_classes(make_table(labels), classes)


def test_utterances_of_the_classes_and_the_style_get_the_classs_name():
    table = make_table(["ang", "fru", "exc", "", "hap", "neu"])
    classes = {"angry": ["ang"], "happy": ["hap", "exc"], "calm": ["neu"]}
    named = label_utterances(table, classes)
    assert named["label"].tolist() == ["angry", "happy", "happy", "calm"]
    assert named["emo"].tolist() == ["ang", "exc", "hap", "neu"]
    assert "label" not in table
    # a corpus without styles takes any for all
    assert len(label_utterances(table, classes, "improvised")) == 4
    table["style"] = ["improvised", "scripted"] * 3
    mapping = {"happy": ["exc"], "angry": ["ang"]}
    kept = label_utterances(table, mapping, "improvised")
    assert kept["label"].tolist() == ["angry", "happy"]
    table["style"] = ["sung", "read"] * 3  # which mean something else
    assert len(label_utterances(table, classes, "improvised")) == 4


def test_a_style_that_leaves_nothing_or_empties_a_class_is_refused():
    classes = {"a": ["a"], "b": ["b"]}
    table = make_table("aab", style=["improvised", "scripted", "scripted"])
    for style, reason in (
        ("sung", "sung.*improvised, scripted"),
        ("improvised", "class b .*improvised"),
    ):
        with pytest.raises(RecipeError, match=reason):
            label_utterances(table, classes, style)
    table.loc[3] = {"emo": "", "style": ""}  # which is no one's
    assert len(label_utterances(table, {"a": ["a"]}, "improvised")) == 1
    table.loc[2, "style"] = ""
    with pytest.raises(RecipeError, match="has '' beside improvised"):
        label_utterances(table, classes, "improvised")
    assert len(label_utterances(table, classes)) == 3


@pytest.mark.parametrize(
    "classes, listed",
    [
        (
            {"x": ["h"], "sad": ["s"], "9": ["a"], "10": ["n"]},
            ["sad", "9", "10"],
        ),
        (None, ["9", "10", "sad"]),
        ("all", ["9", "10", "sad"]),
        ({"sad": ["s"]}, ["9", "10", "sad"]),
    ],
)
def test_classes_are_in_the_yamls_order_or_in_natural_order(classes, listed):
    train = {"u1": {"label": "sad"}, "u2": {"label": "10"}}
    splits = {"train": train, "test": {"u3": {"label": "9"}}}
    assert list_classes(splits, classes) == listed
