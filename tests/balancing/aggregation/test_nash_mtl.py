"""NashMTL and FairGrad: their equations, the clipping, the interval between updates, its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.inputs import HARD
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence
from polytask.balancing.solvers import fair_weights, min_norm_weights


def _matrix(size: int, seed: int) -> Tensor:
    return torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _nash(balancer: Any, names: str, jacobian: Tensor) -> Tensor:
    return balancer.combine(Evidence(list(names), jacobian=jacobian))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("size", [2, 3, 5, 10, 40])
def test_the_equations_hold_on_random_matrices(size: int, path: Any, alpha: float):
    for seed in range(3):
        gramian = _matrix(size, seed) @ _matrix(size, seed).T
        weights = fair_weights(gramian, alpha, path)
        assert (weights > 0).all()
        torch.testing.assert_close(gramian @ weights, weights ** (-1 / alpha), rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("name", HARD)
def test_the_equations_hold_on_hard_matrices(name: str, path: Any, alpha: float):
    """Or zero is in the hull of the unit gradients (then all weights are 0), or a gradient is zero (its weight is)."""
    jacobian = HARD[name]
    weights = fair_weights(jacobian @ jacobian.T, alpha, path)
    lengths = jacobian.norm(dim=1)
    present = lengths > 0
    assert (weights[~present] == 0).all()
    if not weights.any():
        unit = jacobian[present] / lengths[present, None]
        assert not len(unit) or (min_norm_weights(unit @ unit.T) @ unit).norm() < 1e-6
        return
    assert (weights[present] > 0).all()
    part, w = jacobian[present], weights[present]
    tolerance = 1e-1 if name == "nearly opposed" else 1e-6  # a cosine of -1 + 5e-15 is known to 1 %
    terms = part @ part.T * w  # their sum may cancel: what is left is known to the rounding of the largest
    allowed = tolerance * w ** (-1 / alpha) + 1e-14 * terms.abs().amax(1)
    assert ((terms.sum(1) - w ** (-1 / alpha)).abs() <= allowed).all()


def test_unclipped_its_length_is_the_root_of_the_number_of_tasks():
    for size in (2, 5, 9):
        jacobian = _matrix(size, 0) * 10 ** _matrix(size, 1)[:, :1]
        weights = _nash(pt.aggregation.NashMTL(max_norm=None), "abcdefghi"[:size], jacobian)
        assert (weights @ jacobian).norm().item() == pytest.approx(size**0.5)
        for limit in (0.1, 1.0):
            clipped = _nash(pt.aggregation.NashMTL(max_norm=limit), "abcdefghi"[:size], jacobian)
            assert (clipped @ jacobian).norm().item() == pytest.approx(limit)
        free = _nash(pt.aggregation.NashMTL(max_norm=10.0), "abcdefghi"[:size], jacobian)
        torch.testing.assert_close(free, weights)


def test_weights_are_used_again_by_name_until_the_next_update():
    balancer = pt.aggregation.NashMTL(update_every=3, max_norm=None)
    first = _nash(balancer, "abc", _matrix(3, 0))
    assert torch.equal(_nash(balancer, "abc", _matrix(3, 1)), first)
    assert torch.equal(_nash(balancer, "cab", _matrix(3, 2)), first[[2, 0, 1]])
    assert not torch.equal(_nash(balancer, "abc", _matrix(3, 3)), first)
    pair = _nash(balancer, "ab", _matrix(2, 4))  # another set of tasks: solved anew
    assert torch.equal(pair, fair_weights(_matrix(2, 4) @ _matrix(2, 4).T))


@pytest.mark.parametrize("update_every", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_resumed_at_any_step_it_goes_on_the_same(update_every: int, done: int):
    whole = pt.aggregation.NashMTL(update_every)
    expected = [_nash(whole, "abc", _matrix(3, step)) for step in range(8)]
    part, resumed = pt.aggregation.NashMTL(update_every), pt.aggregation.NashMTL(update_every)
    for step in range(done):
        _nash(part, "abc", _matrix(3, step))
    resumed.load_state_dict(part.state_dict())
    for step in range(done, 8):
        assert torch.equal(_nash(resumed, "abc", _matrix(3, step)), expected[step])
