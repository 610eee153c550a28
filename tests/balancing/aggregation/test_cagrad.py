"""CAGrad: within the ball, and no direction in it is better for the worst-off task."""

from __future__ import annotations

import pytest
import torch
from tests.inputs import HARD
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence
from polytask.balancing.solvers import min_norm_weights

RANDOM = {
    f"random {size}, {seed}": torch.randn(
        size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    for size in (2, 3, 5, 10, 40)
    for seed in range(8)
}


def _certified(jacobian: Tensor, c: float) -> None:
    """The primal value min_k ⟨g_k, d⟩ is at most the dual one, ⟨g_w, g_0⟩ + c ‖g_0‖ ‖g_w‖; equality proves both.

    The dual weights are those of d − g_0, or where it is best that nothing improves, those of the hull's zero.
    """
    size = len(jacobian)
    names = [str(k) for k in range(size)]
    weights = pt.aggregation.CAGrad(c).combine(Evidence(names, jacobian=jacobian))
    longest = jacobian.norm(dim=1).max().clamp(min=1e-300)
    unit = jacobian / longest
    mean, found = unit.mean(0), weights @ unit
    radius = c * mean.norm()
    assert (found - mean).norm() <= radius * (1 + 1e-7) + 1e-9
    pushes = weights - 1 / size
    assert pushes.min() >= -1e-9 * pushes.abs().max().clamp(min=1)
    if pushes.max() <= 1e-12 or size == 1:
        return
    duals = []
    for w in (pushes.clamp(min=0) / pushes.clamp(min=0).sum(), min_norm_weights(unit @ unit.T)):
        duals.append((w @ unit @ mean + radius * (w @ unit).norm()).item())
    assert (unit @ found).min().item() >= min(duals) - 1e-7


@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", HARD | RANDOM)
def test_the_best_of_the_ball(name: str, c: float):
    _certified((HARD | RANDOM)[name], c)


def test_no_radius_is_the_mean():
    weights = pt.aggregation.CAGrad(0.0).combine(Evidence(list("abc"), jacobian=RANDOM["random 3, 0"]))
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3, dtype=torch.float64))
