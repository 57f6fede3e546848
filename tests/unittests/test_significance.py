"""Paired tests: signs by hand, equal systems, Holm's steps."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from speechbrain_wap.evaluation.significance import (
    average_seeds,
    compare_units,
    correct_holm,
)


def test_p_is_that_of_all_sign_changes():
    rng = np.random.default_rng(3)
    gains = rng.normal(0.02, 0.02, 6)
    other = pd.Series(rng.uniform(0.5, 0.7, 6))
    found = compare_units(other + gains, other)
    means = [np.mean(gains * signs) for signs in product((1, -1), repeat=6)]
    larger = np.abs(means) >= abs(gains.mean()) - 1e-12
    assert found.p == pytest.approx(larger.mean())
    assert found.mean == pytest.approx(gains.mean())
    assert found.low < found.mean < found.high


def test_all_better_of_six_is_two_in_sixty_four():
    one = pd.Series([0.6, 0.7, 0.8, 0.9, 0.5, 0.65])
    gains = [0.01, 0.02, 0.03, 0.015, 0.02, 0.01]
    assert compare_units(one + gains, one).p == 2 / 64


def test_equal_systems_do_not_differ():
    one = pd.Series([0.5, 0.6, 0.7])
    found = compare_units(one, one)
    assert found[1:] == (0.0, 0.0, 0.0, 1.0)


def test_units_of_one_system_alone_are_left_out():
    one = pd.Series({1: 0.5, 2: 0.6})
    found = compare_units(one, pd.Series({2: 0.5, 3: 0.1}))
    assert found.units == 1 and found.p is None
    with pytest.raises(ValueError, match="no fold in common"):
        compare_units(one, pd.Series({3: 0.1}))


def test_a_fold_counts_once_with_the_mean_of_its_seeds():
    runs = [
        {"fold": f, "seed": s, "UA": f / 10 + s / 100}
        for f, s in product((1, 2), (1, 3))
    ]
    assert average_seeds(runs).round(6).to_dict() == {1: 0.12, 2: 0.22}


def test_holm_multiplies_the_smallest_most_and_never_falls():
    assert correct_holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert correct_holm([0.9, 0.8]) == [1.0, 1.0]
    assert correct_holm([]) == []
