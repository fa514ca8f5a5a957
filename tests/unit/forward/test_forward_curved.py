"""Log-probs that curve over a step: a policy that is sure of most tokens, and shorter steps where its products need them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from gradalign.forward import Direction

QUIET = 400


class SureOfMost(nn.Module):
    """Each token's log-prob is that of a coin; all but the first stay as they are when the weights move."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        return logsigmoid(inputs @ self.weights)


def case(**settings):
    """A direction with v taken, and what its check takes."""
    model = SureOfMost()
    inputs = torch.zeros(QUIET, 1, 2, dtype=torch.float64)
    inputs[0, 0, 1] = 40.0
    inputs[1:, 0, 0] = 1e-3
    weights = torch.full((QUIET,), 1.0 / QUIET, dtype=torch.float64)
    direction = Direction(model, **settings)
    again(model, direction, inputs, weights)
    with torch.no_grad():
        given = model(inputs)
    model.passes = 0
    return model, direction, (model, inputs, weights, torch.ones(QUIET, 1, dtype=torch.bool)), {"logprobs_at": given}


def again(model, direction, inputs, weights):
    (-(weights[:, None] * model(inputs)).sum()).backward()
    direction.take()
    model.passes = 0


def test_a_shorter_step_is_taken_where_the_products_do_not_add_up():
    _, direction, asked, given = case(method="one-sided")
    check = direction.check(*asked, **given)
    assert check.quotient == pytest.approx(1, abs=0.01)
    assert 0.02 / 64 / 2 <= check.rms <= 0.02 / 64 * 2
    products = direction.products(*asked, **given)
    assert torch.allclose(products, check.products[0], rtol=1e-3)  # h is adapted from batch to batch
    assert products.sum() == pytest.approx(direction.length, rel=0.01)


def test_without_a_check_the_step_is_as_long_as_the_mean_change_allows():
    _, direction, asked, given = case(method="one-sided")
    products = direction.products(*asked, **given)
    assert abs(products.sum() / direction.length - 1) > 0.05


def test_a_step_that_need_not_be_short_is_not():
    _, direction, asked, given = case(method="central")
    check = direction.check(*asked, **given)
    assert check.quotient == pytest.approx(1, abs=0.02)
    assert 0.01 <= check.rms <= 0.04


def test_a_brief_check_costs_the_products_alone_and_keeps_method_and_step():
    model, direction, asked, given = case(method="one-sided")
    whole = direction.check(*asked, **given)
    again(model, direction, asked[1], asked[2])
    brief = direction.check(*asked, **given, brief=True)
    assert model.passes <= 2  # what was given is compared with a pass of the function
    assert (brief.method, brief.fidelity) == (whole.method, None)
    assert brief.quotient == pytest.approx(whole.quotient, abs=1e-3)
    assert brief.rms == pytest.approx(whole.rms, rel=0.1)
    assert torch.allclose(direction.products(*asked, **given), brief.products[0], rtol=1e-3)


def test_a_brief_check_is_a_whole_one_before_any_other():
    _, direction, asked, given = case()
    assert direction.check(*asked, **given, brief=True).fidelity > 0.99


def test_a_brief_check_that_is_off_becomes_a_whole_one():
    model, direction, asked, given = case()
    direction.check(*asked, **given)
    again(model, direction, asked[1], asked[2])
    function, inputs, weights, mask = asked
    with pytest.warns(UserWarning, match="add up to 1.07"):
        check = direction.check(function, inputs, 1.07 * weights, mask, **given, brief=True)
    assert check.fidelity is not None


def test_the_length_of_the_step_is_in_a_checkpoint():
    model, direction, asked, given = case(method="one-sided")
    direction.check(*asked, **given)
    resumed = Direction(model, method="one-sided")
    resumed.load_state_dict(direction.state_dict())
    assert torch.equal(resumed.products(*asked, **given), direction.products(*asked, **given))


class Bends(nn.Module):
    """A log-prob whose change grows by the sixth power of the step, from about the step on that makes the target."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs):
        return inputs * self.weights * (0.53 + 40 * (self.weights / 0.0377).abs() ** 5) - 1.0


@pytest.mark.parametrize("method", ["one-sided", "central"])
def test_a_step_is_found_between_one_too_short_and_one_too_long(method):
    """By proportion alone the two follow one another without end."""
    model, inputs = Bends(), torch.ones(3, 1, dtype=torch.float64)
    asked = (inputs, torch.full((3,), 1 / 3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.bool))
    direction = Direction(model, method=method, target=0.02)
    again(model, direction, *asked[:2])
    with torch.no_grad():
        check = direction.check(model, *asked, logprobs_at=model(inputs))
    assert check.quotient == pytest.approx(1, abs=0.02)
    assert check.products[0].sum() == pytest.approx(direction.length, rel=0.02)
