"""Laws of dropout: the expected value, the seed, the gradient."""

import pytest
import torch
from helpers import assert_near, generator

from speechbrain_wap.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expected_value_and_repeats_with_the_seed(p):
    x = torch.rand(400, 501, generator=generator()) + 1.0
    x.requires_grad_()
    dropout = Dropout(p)
    torch.manual_seed(1)
    out = dropout(x)
    is_zero = out == 0
    assert float(is_zero.float().mean()) == pytest.approx(p, abs=0.005)
    assert_near(out[~is_zero], x[~is_zero] / (1 - p), atol=2e-3)
    # all four numbers of a draw, and neighbours, are independent
    for shift in (1, 2, 3, 4, 501):
        both = (is_zero.flatten() & is_zero.flatten().roll(shift)).float()
        assert float(both.mean()) == pytest.approx(p * p, abs=0.005)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), out)
    assert not torch.equal(dropout(x), out)
    out.sum().backward()
    assert_near(x.grad * x, out)


def test_dropout_is_off_in_evaluation_and_all_at_one():
    x = torch.rand(5, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert (Dropout(1.0)(x) == 0).all()
    assert torch.equal(Dropout(1e-9)(x), x)
