"""IMTL-L."""

from __future__ import annotations

import pytest
import torch
import torchjd.scalarization as oracle
from tests.helpers import same
from tests.scalarizers import LOSSES, built, evidence, gradient

import polytask as pt

IMTLL = pt.scalarization.IMTLL


def test_it_equals_torchjds_and_autograd():
    balancer, other = built(IMTLL, lr=0.1), oracle.IMTLL(3)
    adam = torch.optim.Adam(other.parameters(), lr=0.1)
    for step in range(5):
        losses = [loss / (1 + step) for loss in LOSSES]
        torch.testing.assert_close(balancer.combine(evidence(losses)), gradient(other, losses))
        adam.zero_grad()
        other(torch.tensor(losses)).backward()
        adam.step()


def test_scaled_losses_become_one():
    balancer = built(IMTLL, lr=0.05)
    for _ in range(600):
        weights = balancer.combine(evidence())
    torch.testing.assert_close(weights * torch.tensor(LOSSES), torch.ones(3), rtol=1e-2, atol=0)


def test_an_absent_objective_is_untouched_and_a_single_one_gets_one():
    balancer = built(IMTLL, lr=0.1)
    balancer.combine(evidence())
    before = balancer.get_extra_state()["log_scales"]["b"]
    balancer.combine(evidence([1.0, 2.0], ["a", "c"]))
    assert same(balancer.get_extra_state()["log_scales"]["b"], before)
    single = built(IMTLL, names=["a"])
    assert [single.combine(evidence([3.0], ["a"])).item() for _ in range(3)] == [1, 1, 1]


def test_refusals():
    with pytest.raises(ValueError, match="`lr` must be at least 0, found -1"):
        IMTLL(lr=-1)
    with pytest.raises(ValueError, match="IMTLL needs losses of at least 0, found -1 for `b`"):
        built(IMTLL).combine(evidence([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match="of the same objectives"):
        built(IMTLL).load_state_dict(built(IMTLL, names=["a", "b"]).state_dict())
