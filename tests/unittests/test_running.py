"""Running systems one beside another: shared adapters, what fails."""

import logging

import pytest
from readings import FILES, SMALL

from speechbrain_wap.comparisons.running import (
    going_on,
    report_failures,
    share_adapters,
)
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.cross_validation import CrossValidation


def test_stage_1_is_shared_where_its_settings_are_the_same(tmp_path):
    def find(*options):
        plan = CrossValidation([*FILES, *SMALL, "--output_folder=O", *options])
        return share_adapters(plan, tmp_path).adapters_folder

    usual = find("--adapter_training=True")
    assert usual == find("--classifier.lr=0.1", "--sap_heads=2")
    others = {find("--mask_ratio=0.2"), find("--adapter.number_of_epochs=2")}
    assert len(others | {usual}) == 3
    assert find("--adapter_training=False") == "O"


def test_a_system_that_fails_is_named_and_the_others_go_on(caplog):
    failures, ran = {}, []
    errors = {"a": None, "b": RecipeError("b is bad."), "c": ZeroDivisionError}
    with caplog.at_level(logging.ERROR):
        for name, error in errors.items():
            with going_on(failures, name):
                if error:
                    raise error
                ran.append(name)
    assert ran == ["a"] and list(failures) == ["b", "c"]
    # a programmer's mistake has its traceback
    traces = [bool(record.exc_info) for record in caplog.records]
    assert traces == [False, True]
    with pytest.raises(RecipeError, match="b: b is bad; c: .*; the same comm"):
        report_failures(failures)
    report_failures({})
    with pytest.raises(KeyboardInterrupt):
        with going_on(failures, "d"):
            raise KeyboardInterrupt
