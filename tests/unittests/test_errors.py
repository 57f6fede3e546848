"""The checks of arguments: one sentence that says what would do."""

import math
from functools import partial

import pytest

from speechbrain_wap.errors import (
    RecipeError,
    check_choice,
    check_flag,
    check_number,
    check_whole,
)

number = check_number
fraction = partial(check_number, least=0, most=1)
share = partial(check_number, above=0, most=1)
count = partial(check_whole, least=1)
nullable = partial(check_whole, least=1, or_none="never")
choice = partial(check_choice, choices={"cosine": 1, "distance": 2})
FRACTION = "must be within 0 and 1"
SHARE = "must be above 0 and at most 1"
COUNT = "must be a whole number of at least 1"


@pytest.mark.parametrize(
    "check, mistake, values",
    [
        (fraction, None, [0, 0.3, 1.0]),
        (fraction, FRACTION, [-0.1, 2, math.nan, math.inf, True, "0.5", None]),
        (share, None, [1e-9, 1]),
        (share, SHARE, [0, 0.0, 1.1, math.nan, False]),
        (partial(number, least=0), "must be a number of at least 0", [-1]),
        (partial(number, least=0), "must be finite", [math.inf]),
        (partial(number, most=1e-6), "must be a number of at most 1e-06", [1]),
        (partial(number, above=0), "must be above 0", [0]),
        (number, None, [-3, 1e30]),
        (number, "must be a number", ["three"]),
        (count, None, [1, 2**31 - 1]),
        (count, COUNT, [0, -1, 1.0, True, "1", None]),
        (count, "must be below 2147483648", [2**31]),
        (nullable, None, [None, 1]),
        (nullable, f"{COUNT}, or null: never", [0, False, "never"]),
        (choice, None, ["cosine", "distance"]),
        (
            choice,
            "is unknown: choose one of cosine, distance",
            ["dot", None, ["cosine"]],
        ),
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
