"""One objective under bounds on the others: the conditions of Karush, Kuhn and Tucker."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tests.scalarizers import built, descend, evidence

import polytask as pt

EpsilonConstraint = pt.scalarization.EpsilonConstraint
ADAM = partial(torch.optim.Adam, lr=0.03)
CENTRE = torch.tensor([1.0, 0.0])


def quadratics(x):
    return [(x - CENTRE).square().sum(), (x + CENTRE).square().sum()]


@pytest.mark.parametrize("bound", [0.25, 2.25])
def test_two_quadratics_satisfy_the_kkt_conditions(bound: float):
    """min ‖x − e‖² s.t. ‖x + e‖² ≤ ε is at √ε − 1, and the bound's price is (2 − √ε) / √ε."""
    found, weights = descend(built(EpsilonConstraint, {"b": bound}, names=["a", "b"]), quadratics, [0.3, 0.8], ADAM)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(bound) - 1, 0.0]), atol=1e-3, rtol=0)
    price = (2 - math.sqrt(bound)) / math.sqrt(bound)
    assert weights[1] / weights[0] == pytest.approx(price, rel=1e-2)
    assert weights.sum() == pytest.approx(1)


def test_a_bound_that_is_no_bound_costs_nothing():
    found, weights = descend(built(EpsilonConstraint, {"b": 9.0}, names=["a", "b"]), quadratics, [-0.3, 0.8], ADAM)
    torch.testing.assert_close(found, CENTRE, atol=1e-3, rtol=0)
    assert weights.tolist() == [1, 0]


def test_it_reaches_a_concave_front():
    """No sum of these losses has a minimum at which the second is neither 0 nor its largest."""

    def losses(x):
        return [1 - torch.exp(-(x + side * 3**-0.5).square().sum()) for side in (-1, 1)]

    bound = 0.4
    found, _ = descend(
        built(EpsilonConstraint, {"b": bound}, mu=10.0, names=["a", "b"]), losses, [0.5, 0.2, -0.1], ADAM
    )
    one, other = losses(found)
    assert other == pytest.approx(bound, abs=5e-3)
    # the front: both optima and the point lie on one line, so the distances add up to 2
    assert sum(math.sqrt(-math.log(1 - value)) for value in (one, other)) == pytest.approx(2, abs=1e-2)


def test_the_multipliers_follow_the_excess_and_stay_at_0():
    balancer = built(EpsilonConstraint, {"b": 0.5, "c": 2.0}, mu=2.0, eta=1.0)
    first = balancer.combine(evidence([1.0, 0.75, 1.0]))
    torch.testing.assert_close(first, torch.tensor([1.0, 0.5, 0.0]) / 1.5)
    second = balancer.combine(evidence([1.0, 0.75, 1.0]))
    torch.testing.assert_close(second, torch.tensor([1.0, 0.75, 0.0]) / 1.75)
    alone = balancer.combine(evidence([0.75], ["b"]))  # the same share as beside the primary objective
    torch.testing.assert_close(alone, torch.tensor([1.0]) / 2)


def test_who_has_no_bound():
    losses = evidence([0.9, 0.9, 0.9])
    for given in ({"bounds": {"a": 0.5, "c": 0.5}}, {"bounds": 0.5, "primary": "b"}):
        torch.testing.assert_close(
            built(EpsilonConstraint, mu=1.0, **given).combine(losses), torch.tensor([0.4, 1.0, 0.4]) / 1.8
        )
    everyone = built(EpsilonConstraint, 0.5, mu=1.0)
    torch.testing.assert_close(everyone.combine(losses), torch.full((3,), 0.4 / 2.2))
    assert not built(EpsilonConstraint, 2.0).combine(losses).any()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"bounds": {"a": math.nan}}, "every value of `bounds` must be finite, found nan for `a`"),
        ({"bounds": 1.0, "mu": 0.0}, "`mu` must be above 0 and finite, found 0"),
        ({"bounds": 1.0, "eta": -1.0}, "`eta` must be above 0 and finite, found -1"),
        ({"bounds": {"a": 1.0}, "primary": "a"}, "`bounds` must leave out the `primary` objective, found one for `a`"),
        ({"bounds": {"a": 1.0}}, "`bounds` must name every objective but one, found none for `b`"),
        ({"bounds": {"a": 1.0}, "primary": "b"}, "`bounds` must name every objective but one, found none for `c`"),
        ({"bounds": {"a": 1.0, "bb": 1.0}}, "`bounds` names an unknown objective `bb`"),
        ({"bounds": 1.0, "primary": "aa"}, "`primary` names an unknown objective `aa`: did you mean `a`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, rule):
    with pytest.raises(ValueError, match=rule):
        built(EpsilonConstraint, **given)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"bounds": "0.5"}, r"`bounds` must be a number or {objective: bound}, found '0.5'"),
        ({"bounds": [0.5]}, r"`bounds` must be a number or {objective: bound}, found \[0.5\]"),
        ({"bounds": None}, r"`bounds` must be a number or {objective: bound}, found None"),
        ({"bounds": {"b": "0.5"}}, "every value of `bounds` must be a number, found '0.5' for `b`"),
        ({"bounds": 0.5, "mu": "1"}, "`mu` must be a number, found '1'"),
    ],
)
def test_what_is_no_number_is_named(given, rule):
    with pytest.raises(TypeError, match=rule):
        EpsilonConstraint(**given)
