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
choice = partial(check_choice, choices=("cosine", "distance"))
FRACTION = "must be within 0 and 1"
SHARE = "must be above 0 and at most 1"
COUNT = "must be a whole number of at least 1"
NULLABLE = f"{COUNT}, or null: never"
CHOICE = "is unknown: choose one of cosine, distance"
FLAG = "must be True or False"


@pytest.mark.parametrize(
    "check, value, mistake",
    [
        *((fraction, value, None) for value in (0, 0.0, 0.3, 1, 1.0)),
        *(
            (fraction, value, FRACTION)
            for value in (-0.1, 1.1, 2, math.nan, math.inf, True, "0.5", None)
        ),
        *((share, value, None) for value in (1e-9, 1)),
        *((share, value, SHARE) for value in (0, 0.0, 1.1, math.nan, False)),
        (partial(number, least=0), 1e30, None),
        (partial(number, least=0), -1, "must be a number of at least 0"),
        (partial(number, least=0), math.inf, "must be finite"),
        (partial(number, most=1e-6), 1, "must be a number of at most 1e-06"),
        (partial(number, above=0), 0, "must be above 0"),
        (partial(number, above=0), math.inf, "must be finite"),
        (number, -3, None),
        (number, -math.inf, "must be finite"),
        (number, "three", "must be a number"),
        *((count, value, None) for value in (1, 2**31 - 1)),
        *((count, value, COUNT) for value in (0, -1, 1.0, True, "1", None)),
        (count, 2**31, "must be below 2147483648"),
        (check_whole, 0, None),
        (partial(count, most=9), 10, "must be below 10"),
        *((nullable, value, None) for value in (None, 1)),
        *((nullable, value, NULLABLE) for value in (0, -1, False, "never")),
        *((choice, value, None) for value in ("cosine", "distance")),
        *((choice, value, CHOICE) for value in ("dot", None, ["cosine"])),
        (
            partial(check_choice, choices={"a": 1}),
            ["b"],
            "is unknown: choose one of a",
        ),
        *((check_flag, value, None) for value in (True, False)),
        *((check_flag, value, FLAG) for value in ("no", 0, 1, None)),
    ],
)
def test_a_value_passes_or_is_refused_by_name_with_what_would_do(
    check, value, mistake
):
    if mistake is None:
        check("the_key", value)
        return
    with pytest.raises(RecipeError) as error:
        check("the_key", value)
    assert str(error.value) == f"the_key={value} {mistake}."
