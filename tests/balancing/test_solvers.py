"""The min-norm point against its optimality conditions, on inputs where solvers break."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.inputs import HARD
from torch import Tensor

from polytask.balancing.solvers import min_norm_weights


def check_kkt(jacobian: Tensor, weights: Tensor, tolerance: float = 1e-7) -> None:
    """On the simplex, and <g_k, d> >= |d|² for all k: the nearest point's supporting plane."""
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    scale = jacobian.norm(dim=1).max().clamp(min=1e-300)
    direction = weights @ jacobian / scale
    slack = (jacobian / scale) @ direction - direction @ direction
    assert slack.min() >= -tolerance
    active = weights > 1e-5
    assert slack[active].abs().max() <= tolerance


@pytest.mark.parametrize("name", HARD)
def test_the_optimality_conditions_hold_on_hard_inputs(name: str):
    jacobian = HARD[name]
    check_kkt(jacobian, min_norm_weights(jacobian @ jacobian.T))


@pytest.mark.parametrize("name", HARD)
def test_single_precision_is_served_in_single_precision(name: str):
    jacobian = HARD[name].float()
    weights = min_norm_weights(jacobian @ jacobian.T)
    assert weights.dtype == torch.float32
    check_kkt(jacobian.double(), weights.double(), 1e-4)


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 8)),
        elements=st.floats(-4, 4).map(lambda v: round(v, 1)),
    )
)
def test_the_optimality_conditions_hold_on_any_input(values: np.ndarray):
    jacobian = torch.as_tensor(values)
    check_kkt(jacobian, min_norm_weights(jacobian @ jacobian.T))


@pytest.mark.parametrize("name", [n for n in HARD if len(HARD[n]) > 1])
def test_order_does_not_matter(name: str):
    """The weights need not be unique, but the nearest point is."""
    jacobian = HARD[name]
    order = torch.randperm(len(jacobian))
    one = min_norm_weights(jacobian @ jacobian.T) @ jacobian
    shuffled = jacobian[order]
    other = min_norm_weights(shuffled @ shuffled.T) @ shuffled
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7 * jacobian.norm(dim=1).max().item())


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e7, 1e15])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_scaling_all_gradients_changes_nothing(k: int, scale: float):
    jacobian = torch.randn(k, 5, dtype=torch.float64)
    gramian = jacobian @ jacobian.T
    torch.testing.assert_close(min_norm_weights(gramian * scale**2), min_norm_weights(gramian), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_a_gradient_that_is_not_a_number_gives_weights_that_are_not(k: int):
    gramian = torch.eye(k)
    gramian[-1, -1] = torch.nan
    weights = min_norm_weights(gramian)
    assert weights.shape == (k,)
    assert k == 1 or torch.isnan(weights).any()


@pytest.mark.parametrize("name", ["rows from 1 to 1000", "rows from 0.001 to 1000", "pair of 1e-10 and 1e+15"])
def test_no_gradient_is_opposed_however_unequal_their_lengths(name: str):
    jacobian = HARD[name]
    direction = min_norm_weights(jacobian @ jacobian.T) @ jacobian
    cosines = (jacobian @ direction) / (jacobian.norm(dim=1) * direction.norm())
    assert cosines.min() >= -1e-6
