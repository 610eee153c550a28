"""Penalty-based boundary intersection: the ray, the distance to it, and where they meet the front."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tests.scalarizers import LOSSES, built, descend, evidence, gradient

import polytask as pt

PBI = pt.scalarization.PBI
SGD = partial(torch.optim.SGD, lr=0.05)
PREFERENCE = [0.5, 0.2, 0.3]
REFERENCE = [0.1, 0.0, -1.0]


def written(losses: torch.Tensor, theta: float) -> torch.Tensor:
    """d_1 + θ d_2 with the ray 1 / k."""
    gaps, ray = losses - torch.tensor(REFERENCE), 1 / torch.tensor(PREFERENCE)
    along = (gaps @ ray) / ray.norm()
    return along + theta * (gaps - (gaps @ ray) / ray.norm() ** 2 * ray).norm()


@pytest.mark.parametrize("theta", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("losses", [LOSSES, [-3.0, -1.0, -2.0]])
def test_weights_are_the_gradient(theta: float, losses: list[float]):
    found = built(PBI, PREFERENCE, theta=theta, reference=REFERENCE).combine(evidence(losses))
    torch.testing.assert_close(found, gradient(lambda values: written(values, theta), losses))


def test_on_the_ray_only_the_ray_counts():
    """k_k L_k equal: the losses' own direction, of length 1, whatever θ; rounding does not tip it over."""
    ray = torch.tensor([1 / k for k in PREFERENCE])
    found = built(PBI, PREFERENCE, theta=1e3).combine(evidence((0.7 * ray).tolist()))
    torch.testing.assert_close(found, ray / ray.norm())


@pytest.mark.parametrize(("preference", "axis"), [([0.0, 1.0], 0), ([1.0, 0.0], 1)])
def test_no_preference_at_all_makes_the_ray_an_axis(preference: list[float], axis: int):
    found = built(PBI, preference, theta=2.0, names=["a", "b"]).combine(evidence([1.0, 1.0], ["a", "b"]))
    wanted = torch.full((2,), 2.0)
    wanted[axis] = 1.0
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_two_quadratics_end_where_the_ray_meets_the_front(share: float):
    """Of ‖x ∓ e‖² the front is the segment between ±e, and k_1 L_1 = k_2 L_2 at 1 − 2 √k_2 / (√k_1 + √k_2)."""
    balancer = built(PBI, [share, 1 - share], names=["a", "b"])
    centre = torch.tensor([1.0, 0.0])
    found, _ = descend(balancer, lambda x: [(x - centre).square().sum(), (x + centre).square().sum()], [0.3, 0.8], SGD)
    one, other = math.sqrt(share), math.sqrt(1 - share)
    torch.testing.assert_close(found, torch.tensor([1 - 2 * other / (one + other), 0.0]), atol=2e-3, rtol=0)


def test_it_reaches_a_concave_front():
    """Where the sum ends at an end point."""
    share = 0.3

    def losses(x):
        return [1 - torch.exp(-(x + side * 3**-0.5).square().sum()) for side in (-1, 1)]

    found, _ = descend(built(PBI, [share, 1 - share], names=["a", "b"]), losses, [0.5, 0.2, -0.1], SGD)
    one, other = losses(found)
    assert abs(share * one - (1 - share) * other) < 5e-3
    assert max(one, other) < 0.95


def test_the_preference_belongs_to_names_and_absent_ones_are_left_out():
    named = built(PBI, {"c": 0.3, "a": 0.5, "b": 0.2})
    torch.testing.assert_close(named.combine(evidence()), built(PBI, PREFERENCE).combine(evidence()))
    part = built(PBI, [0.5 / 0.8, 0.3 / 0.8], names=["a", "c"])
    torch.testing.assert_close(
        named.combine(evidence([0.3, 4.0], ["a", "c"])), part.combine(evidence([0.3, 4.0], ["a", "c"]))
    )


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"preference": [0.5, 0.6]}, "`preference` must sum to 1, found a sum of 1.1"),
        ({"preference": [-0.5, 1.5]}, "every value of `preference` must be finite and at least 0"),
        ({"theta": -1.0}, "`theta` must be at least 0 and finite, found -1"),
        ({"theta": math.inf}, "`theta` must be at least 0 and finite, found inf"),
        ({"preference": [0.5, 0.5]}, r"`preference` must hold one value per objective \(`a`, `b`, `c`\), found 2"),
    ],
)
def test_settings_out_of_range_are_refused(given, rule):
    with pytest.raises(ValueError, match=rule):
        built(PBI, **given)


@pytest.mark.parametrize("start", [0.9, 0.2])
def test_one_objective_falls_above_and_below_the_reference(start: float):
    balancer = built(PBI, [1.0], reference=[0.5], names=["a"])
    assert balancer.combine(evidence([start], ["a"])).tolist() == [1.0]


def test_losses_below_the_reference_go_on_falling():
    ray = torch.tensor([1 / k for k in PREFERENCE])
    found = built(PBI, PREFERENCE, theta=5.0).combine(evidence((-0.7 * ray).tolist()))
    torch.testing.assert_close(found, ray / ray.norm())


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"theta": "x"}, "`theta` must be a number, found 'x'"),
        ({"preference": {"a": "x"}}, "every value of `preference` must be a number, found 'x' for `a`"),
        ({"reference": [None]}, "every value of `reference` must be a number, found None for position 0"),
    ],
)
def test_what_is_no_number_is_named(given, rule):
    with pytest.raises(TypeError, match=rule):
        PBI(**given)
