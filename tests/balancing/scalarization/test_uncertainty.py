"""Uncertainty weighting."""

from __future__ import annotations

import pytest
import torch
import torchjd.scalarization as oracle
from tests.helpers import same
from tests.scalarizers import LOSSES, NAMES, built, evidence, gradient

import polytask as pt

Uncertainty = pt.scalarization.Uncertainty


def test_weights_and_steps_are_those_of_the_scalar():
    """s learned by Adam on the written-out S, beside a network that stands still."""
    balancer = built(Uncertainty, ["b"], lr=0.1, initial=0.2)
    s = torch.full((3,), 0.2, requires_grad=True)
    factors = torch.tensor([0.5, 1.0, 0.5])
    adam = torch.optim.Adam([s], lr=0.1)
    for _ in range(5):
        expected = gradient(lambda losses: (factors * (-s).exp() * losses + s / 2).sum())
        torch.testing.assert_close(balancer.combine(evidence()), expected)
        adam.zero_grad()
        (factors * (-s).exp() * torch.tensor(LOSSES) + s / 2).sum().backward()
        adam.step()


def test_it_equals_torchjds():
    balancer, other = built(Uncertainty, lr=0.1), oracle.UW(3)
    adam = torch.optim.Adam(other.parameters(), lr=0.1)
    for step in range(5):
        losses = [loss / (1 + step) for loss in LOSSES]
        torch.testing.assert_close(balancer.combine(evidence(losses)), gradient(other, losses))
        adam.zero_grad()
        other(torch.tensor(losses)).backward()
        adam.step()


def test_it_converges_to_the_inverse_of_twice_the_loss():
    balancer = built(Uncertainty, ["b"], lr=0.05)
    for _ in range(600):
        weights = balancer.combine(evidence())
    torch.testing.assert_close(weights, 0.5 / torch.tensor(LOSSES), rtol=1e-2, atol=0)


def test_an_absent_objective_is_untouched():
    balancer, other = (built(Uncertainty, lr=0.1) for _ in range(2))
    for one in (balancer, other):
        one.combine(evidence())
    before = balancer.get_extra_state()["log_variances"]["b"]
    balancer.combine(evidence([1.0, 2.0], ["a", "c"]))
    assert same(balancer.get_extra_state()["log_variances"]["b"], before)
    assert balancer.combine(evidence())[1] == other.combine(evidence())[1]


def test_a_single_objective_gets_one():
    balancer = built(Uncertainty, names=["a"])
    assert [balancer.combine(evidence([3.0], ["a"])).item() for _ in range(3)] == [1, 1, 1]


def test_refusals():
    with pytest.raises(ValueError, match="`lr` must be at least 0, found -1"):
        Uncertainty(lr=-1)
    with pytest.raises(ValueError, match="`classification` names an unknown objective `bb`: did you mean `b`"):
        built(Uncertainty, ["bb"])
    with pytest.raises(ValueError, match=r"state must be of the same objectives, saved \['a', 'b'\], found \['a', 'b'"):
        built(Uncertainty).load_state_dict(built(Uncertainty, names=["a", "b"]).state_dict())


def test_a_state_may_come_before_the_names():
    one, other = built(Uncertainty, lr=0.1), Uncertainty(lr=0.1)
    one.combine(evidence())
    other.load_state_dict(one.state_dict())
    other.setup(NAMES)
    assert torch.equal(one.combine(evidence()), other.combine(evidence()))
