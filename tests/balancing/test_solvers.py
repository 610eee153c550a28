"""Solvers against their optimality conditions, on inputs where solvers break, and both paths against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.inputs import HARD
from torch import Tensor

from polytask.balancing import solvers
from polytask.balancing.aggregation.orders import Orders
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


RANDOM = {
    f"random {size}x{columns} again": torch.randn(
        size, columns, generator=torch.Generator().manual_seed(size + columns), dtype=torch.float64
    )
    for size in (2, 3, 10, 64)
    for columns in (size // 2 + 1, 2 * size)
}
ALL = HARD | RANDOM


def _mean(gramian: Tensor) -> Tensor:
    return torch.full_like(gramian[:1], 1 / len(gramian))


SOLVERS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "min norm": lambda g, path: solvers.min_norm_weights(g, path),
    "dual cone of each": lambda g, path: solvers.dual_cone_weights(g, torch.eye(len(g), dtype=g.dtype), path),
    "dual cone of the mean": lambda g, path: solvers.dual_cone_weights(g, _mean(g), path),
    "Nash": lambda g, path: solvers.fair_weights(g, 1.0, path),
    "fair, 2": lambda g, path: solvers.fair_weights(g, 2.0, path),
    "fair, 0.5": lambda g, path: solvers.fair_weights(g, 0.5, path),
    "conflict averse": lambda g, path: solvers.conflict_averse_weights(g, 0.5, path),
    "conflict averse, wide": lambda g, path: solvers.conflict_averse_weights(g, 1.5, path),
    "equal projections": lambda g, path: solvers.equal_projection_weights(g, path),
    "inverse gradient": lambda g, path: solvers.inverse_gradient_weights(g, path),
    "aligned": lambda g, path: solvers.aligned_weights(g, _mean(g)[0], "min", path),
    "aligned, median": lambda g, path: solvers.aligned_weights(g, _mean(g)[0], "median", path),
    "aligned, mean": lambda g, path: solvers.aligned_weights(g, _mean(g)[0], "rmse", path),
    "surgery": lambda g, path: solvers.surgery_weights(g, Orders(0)(len(g), g.device), path=path)[0],
    "averaged surgery": lambda g, path: solvers.surgery_weights(
        g, Orders(0)(len(g), g.device), torch.full(g.shape, 0.1, dtype=torch.float64), 0.1, path
    )[0],
}


# "nearly opposed" is left out: its cosine of -1 + 5e-15 is known to 1 % only, so both answers are right
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", [name for name in ALL if name != "nearly opposed"])
def test_both_paths_give_the_same_gradient(solver: str, name: str):
    jacobian = ALL[name]
    gramian = jacobian @ jacobian.T
    host, device = (SOLVERS[solver](gramian, path) for path in ("host", "device"))
    assert torch.isfinite(device).all()
    scale = 1.0 if solver.startswith(("Nash", "fair")) else jacobian.norm(dim=1).max().item()
    floor = 1e-9 * scale  # where the answer is zero
    one, other = host @ jacobian, device @ jacobian
    assert (one - other).norm() <= 1e-6 * one.norm() + floor


@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("solver", ["min norm", "Nash", "conflict averse", "equal projections", "inverse gradient"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_is_its_members(solver: str, size: int, path: Any):
    jacobians = torch.randn(2, 3, size, 5, dtype=torch.float64)
    gramians = jacobians @ jacobians.mT
    batch = SOLVERS[solver](gramians, path)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(batch[i, j], SOLVERS[solver](gramians[i, j], path), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("path", ["host", "device"])
def test_a_batch_of_dual_cones_is_its_members(path: Any):
    jacobians = torch.randn(3, 4, 5, dtype=torch.float64)
    gramians, targets = jacobians @ jacobians.mT, torch.rand(3, 2, 4, dtype=torch.float64)
    batch = solvers.dual_cone_weights(gramians, targets, path)
    for i in range(3):
        single = solvers.dual_cone_weights(gramians[i], targets[i], path)
        torch.testing.assert_close(batch[i], single, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("name", ALL)
def test_the_dual_cone_projection_is_optimal(name: str, path: Any):
    """w >= u, no conflict, and none where w > u, relative to the lengths of gradients and results."""
    jacobian = ALL[name]
    targets = torch.eye(len(jacobian), dtype=torch.float64)
    weights = solvers.dual_cone_weights(jacobian @ jacobian.T, targets, path)
    lengths = jacobian.norm(dim=1)
    unit = jacobian / lengths.clamp(min=1e-300)[:, None]
    steps = (weights - targets) * lengths  # over unit gradients
    slack = (weights @ jacobian) @ unit.T
    scale = torch.where(lengths > 0, lengths, 1.0)[:, None]  # of what is projected
    assert (steps / scale).min() >= -1e-9
    assert (slack / scale).min() >= -1e-7
    # the projection is orthogonal to what was added, to the error of either factor
    assert ((steps * slack).sum(1).abs() / scale.squeeze(1) ** 2).max() <= 1e-7


@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("name", HARD)
def test_the_nearest_point_is_optimal_on_both_paths(name: str, path: Any):
    jacobian = HARD[name]
    check_kkt(jacobian, min_norm_weights(jacobian @ jacobian.T, path))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", ["host", "device"])
def test_what_is_not_finite_is_not_hidden(solver: str, path: Any):
    for size in (2, 4):
        for value in (torch.nan, torch.inf):
            gramian = torch.eye(size, dtype=torch.float64)
            gramian[0, -1] = gramian[-1, 0] = value
            assert torch.isnan(SOLVERS[solver](gramian, path)).all()


def test_the_projection_onto_the_simplex_is_the_nearest_point():
    points = 3 * torch.randn(50, 7, dtype=torch.float64)
    points[0], points[1] = 0.0, 5.0
    found = solvers.project_to_simplex(points)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(50, dtype=torch.float64))
    vertices = torch.eye(7, dtype=torch.float64)
    for point, nearest in zip(points, found, strict=True):  # no vertex lies beyond the supporting plane
        assert ((vertices - nearest) @ (point - nearest)).max() <= 1e-9
    torch.testing.assert_close(solvers.project_to_simplex(found), found)
    assert solvers.project_to_simplex(torch.tensor([-4.0])).tolist() == [1.0]
