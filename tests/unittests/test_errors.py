"""The checks of arguments: one sentence that says what would do."""

import io
import logging
import math
from functools import partial

import pytest
import torch

from speechbrain_wap import errors
from speechbrain_wap.augmentation import Augmentation
from speechbrain_wap.emotion_model import EmotionModel
from speechbrain_wap.errors import (
    RecipeError,
    check_choice,
    check_flag,
    check_number,
    check_whole,
)
from speechbrain_wap.local_attributes import LocalAttributes
from speechbrain_wap.losses import AdapterObjective
from speechbrain_wap.masking import UtteranceMasks
from speechbrain_wap.pooling import StatisticalAttentivePooling
from speechbrain_wap.schedules import Schedule
from speechbrain_wap.targets import Predictor, Targets
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.wap_transformer import WAPTransformer

fraction = partial(check_number, least=0, most=1)
share = partial(check_number, above=0, most=1)
count = partial(check_whole, least=1)
nullable = partial(check_whole, least=1, or_none="never")
choice = partial(check_choice, choices={"cosine": 1, "distance": 2})
FRACTION = "must be a number from 0 to 1"
SHARE = "must be a number above 0 and at most 1"
COUNT = "must be a whole number of at least 1"
KNOWN = "is unknown: choose one of"


@pytest.mark.parametrize(
    "check, mistake, values",
    [
        (fraction, None, [0, 0.3, 1.0]),
        (fraction, FRACTION, [-0.1, 2, math.nan, math.inf, True, "0.5", None]),
        (share, None, [1e-9, 1]),
        (share, SHARE, [0, 0.0, 1.1, math.nan, False]),
        (
            partial(check_number, least=0),
            "must be a number of at least 0",
            [-1],
        ),
        (partial(check_number, least=0), "must be finite", [math.inf]),
        (
            partial(check_number, most=1e-6),
            "must be a number of at most 1e-06",
            [1],
        ),
        (partial(check_number, above=0), "must be a number above 0", [0]),
        (check_number, None, [-3, 1e30]),
        (check_number, "must be a number", ["three"]),
        (count, None, [1, 2**31 - 1]),
        (count, COUNT, [0, -1, 1.0, True, "1", None]),
        (count, "must be below 2147483648", [2**31]),
        (nullable, None, [None, 1]),
        (nullable, f"{COUNT}, or null: never", [0, False, "never"]),
        (choice, None, ["cosine", "distance"]),
        (choice, f"{KNOWN} cosine, distance", ["dot", None, ["cosine"]]),
        (check_flag, None, [True, False]),
        (check_flag, "must be True or False", ["no", 0, 1, None]),
    ],
)
def test_a_value_passes_or_is_refused_by_name_with_what_would_do(
    check, mistake, values
):
    for value in values:
        if mistake is None:
            check("the_key", value)
            continue
        with pytest.raises(RecipeError) as error:
            check("the_key", value)
        assert str(error.value) == f"the_key={value} {mistake}."


@pytest.mark.parametrize(
    "make, mistake",
    [
        (lambda: Schedule(1.0, 0.5, "step"), "shape=step is unknown"),
        (lambda: WAPTransformer(5, num_layers=0), f"num_layers=0 {COUNT}"),
        (lambda: WAPTransformer(5, 8, nhead=3), r"d_model \(8\) must be div"),
        (lambda: UtteranceMasks(1.1), f"mask_ratio=1.1 {FRACTION}"),
        (lambda: UtteranceMasks()(["u"], [0], 1), "utterance 0 .* 0 valid"),
        (
            lambda: EMATeacher(torch.nn.Linear(1, 1), 0.9, 0.99),
            r"ema_decay_start \(0.99\) must not be above ema_decay",
        ),
        (lambda: LocalAttributes(update_rule="mean"), "update_rule=mean is un"),
        (
            lambda: AdapterObjective(rec_weight=Schedule(1.0, -0.5)),
            f"rec_weight_end=-0.5 {FRACTION}",
        ),
        (
            lambda: StatisticalAttentivePooling(5, variance="plain"),
            f"variance=plain {KNOWN} weighted, printed",
        ),
        (lambda: Augmentation("more"), "strategy=more is unknown"),
        (lambda: Targets(smoothing=-1), "smoothing=-1 must be a whole number"),
        (lambda: Predictor(3, -1), "num_layers=-1 must be a whole number"),
        (
            lambda: EmotionModel(None, None, 5, input_norm=1),
            "input_norm=1 must be True or False",
        ),
    ],
)
def test_a_constructor_refuses_a_bad_value_by_its_name(make, mistake):
    with pytest.raises(RecipeError, match=mistake):
        make()


def test_a_poor_console_loses_characters_but_no_run(monkeypatch, tmp_path):
    factory = logging.getLogRecordFactory()
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", console)
    log = logging.FileHandler(tmp_path / "log.txt", encoding="utf-8")
    try:
        errors.print_any_text()
        print("UA 72.3 \xb1 4.0")
        console.flush()
        record = logging.getLogger().makeRecord
        log.handle(record("a", 20, "", 0, "in %s", ("Z\udcfcrich",), None))
        log.handle(record("a", 20, "", 0, "in Zürich", (), None))
    finally:
        logging.setLogRecordFactory(factory)
        log.close()
    assert console.buffer.getvalue() == b"UA 72.3 \\xb1 4.0\n"
    text = (tmp_path / "log.txt").read_text("utf-8")
    assert text == "in Z\\udcfcrich\nin Zürich\n"


def test_a_name_that_the_locale_has_no_letters_for_is_said():
    says = r"'Z\\xfcrich' cannot be written in ascii.*PYTHONUTF8=1"
    with pytest.raises(RecipeError, match=says):
        with errors.report_path_errors():
            "Zürich".encode("ascii")


def test_what_is_said_is_one_line_whatever_is_named():
    with pytest.raises(SystemExit) as end, errors.report_errors():
        raise RecipeError("speaker a\x1b[31m\nb is in both splits.")
    assert str(end.value) == (r"error: speaker a\x1b[31m\nb is in both splits.")
