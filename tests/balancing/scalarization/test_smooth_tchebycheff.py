"""Smooth Tchebycheff."""

from __future__ import annotations

import pytest
import torch
import torchjd.scalarization as oracle
from tests.scalarizers import LOSSES, built, evidence, gradient

import polytask as pt

Smooth = pt.scalarization.SmoothTchebycheff
PREFERENCE = [0.5, 0.2, 0.3]
REFERENCE = [0.1, 0.0, -1.0]


@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0, 100.0])
def test_weights_are_the_gradient(mu: float):
    found = built(Smooth, PREFERENCE, mu=mu, reference=REFERENCE).combine(evidence())
    preference, reference = torch.tensor(PREFERENCE), torch.tensor(REFERENCE)
    written = gradient(lambda losses: mu * torch.logsumexp(preference * (losses - reference) / mu, 0))
    torch.testing.assert_close(found, written)
    torch.testing.assert_close(found, gradient(oracle.STCH(mu, preference, reference)))


def test_limits():
    """The largest weighted loss alone, and the mean of the weighted losses."""
    small = built(Smooth, PREFERENCE, mu=1e-6).combine(evidence())
    torch.testing.assert_close(small, torch.tensor([0.0, 0.0, 0.3]))
    large = built(Smooth, PREFERENCE, mu=1e6).combine(evidence())
    torch.testing.assert_close(large, torch.tensor(PREFERENCE) / 3)


def test_it_reaches_a_concave_front_where_the_sum_does_not():
    balancer = built(Smooth, [0.5, 0.5], mu=0.02, names=["a", "b"])
    x = torch.tensor([0.5, 0.2, -0.1], requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.01)
    for _ in range(400):
        losses = [1 - torch.exp(-(x + side * 3**-0.5).square().sum()) for side in (-1, 1)]
        weights = balancer.combine(evidence([loss.item() for loss in losses], ["a", "b"]))
        adam.zero_grad()
        sum(w * loss for w, loss in zip(weights, losses, strict=True)).backward()
        adam.step()
    assert abs(losses[0] - losses[1]).item() < 1e-2


def test_the_preference_belongs_to_names():
    named = {"c": 0.3, "a": 0.5, "b": 0.2}
    one, other = built(Smooth, named, mu=1.0), built(Smooth, PREFERENCE, mu=1.0)
    assert torch.equal(one.combine(evidence()), other.combine(evidence()))
    turned = one.combine(evidence(LOSSES[::-1], ["c", "b", "a"]))
    torch.testing.assert_close(turned.flip(0), one.combine(evidence()))
    part = one.combine(evidence([0.3, 4.0], ["a", "c"]))
    torch.testing.assert_close(part, torch.tensor([0.5, 0.3]) * torch.tensor([0.15, 1.2]).softmax(0))


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"preference": [0.5, 0.5]}, "`preference` must hold one value per objective (`a`, `b`, `c`), found 2"),
        ({"preference": [1.5, -0.5, 0]}, "every value of `preference` must be finite and at least 0, found -0.5 for "),
        ({"preference": {"a": 0.0, "b": 0.0, "c": 0.0}}, "`preference` must sum to 1, found a sum of 0"),
        ({"preference": [0.3, 0.3, 0.3]}, "`preference` must sum to 1, found a sum of 0.9"),
        ({"preference": {"a": 1.0, "b": 0.0}}, "`preference` must name every objective, found none for `c`"),
        ({"preference": {"a": 1.0, "bb": 0.0}}, "`preference` names an unknown objective `bb`: did you mean `b`?"),
        ({"reference": [0.0]}, "`reference` must hold one value per objective (`a`, `b`, `c`), found 1"),
        ({"reference": {"a": float("nan")}}, "every value of `reference` must be finite, found nan for `a`"),
        ({"mu": 0.0}, "`mu` must be above 0 and finite, found 0.0"),
    ],
)
def test_refusals(given: dict, rule: str):
    with pytest.raises(ValueError) as caught:
        built(Smooth, **given)
    assert str(caught.value).startswith(rule)
