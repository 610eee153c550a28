"""The geometric mean."""

from __future__ import annotations

import pytest
import torch
import torchjd.scalarization as oracle
from tests.scalarizers import LOSSES, built, evidence, gradient

import polytask as pt

GeometricMean = pt.scalarization.GeometricMean


@pytest.mark.parametrize("losses", [LOSSES, [1e-7, 1.0, 1e7], [2.0, 2.0, 2.0]])
def test_weights_are_the_gradient(losses: list[float]):
    found = built(GeometricMean).combine(evidence(losses))
    torch.testing.assert_close(found, gradient(lambda values: values.prod() ** (1 / 3), losses))
    torch.testing.assert_close(found, gradient(oracle.GeometricMean(), losses))


def test_the_scale_of_a_loss_does_not_matter():
    """w_k L_k is the same for every k, and S itself is the mean of the w_k L_k times K."""
    weights = built(GeometricMean).combine(evidence([0.3, 1700.0, 4e-5]))
    parts = weights * torch.tensor([0.3, 1700.0, 4e-5])
    torch.testing.assert_close(parts, parts.mean().expand(3))


def test_absent_objectives_leave_the_mean_of_the_others():
    found = built(GeometricMean).combine(evidence([2.0, 8.0], ["a", "c"]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.25]))


def test_a_loss_may_reach_zero_but_not_begin_below():
    balancer = built(GeometricMean)
    assert torch.isfinite(balancer.combine(evidence([0.0, 1.0, 2.0]))).all()
    assert torch.isfinite(balancer.combine(evidence([-0.5, 1.0, 2.0]))).all()
    with pytest.raises(ValueError, match=r"GeometricMean needs losses of at least 0, found -0\.5 for `a`"):
        built(GeometricMean).combine(evidence([-0.5, 1.0, 2.0]))
    resumed = GeometricMean()
    resumed.load_state_dict(balancer.state_dict())
    assert torch.isfinite(resumed.combine(evidence([-0.5, 1.0, 2.0]))).all()
