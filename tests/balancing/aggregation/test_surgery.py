"""PCGrad and GradVac: random orders and averages of their own, by name, in the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence
from polytask.balancing.aggregation.orders import Orders
from polytask.balancing.solvers import surgery_weights

KINDS = [pt.aggregation.PCGrad, pt.aggregation.GradVac]


def _matrix(size: int, seed: int) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _step(balancer: Any, names: str, seed: int) -> Tensor:
    return balancer.combine(Evidence(list(names), jacobian=_matrix(len(names), seed)))


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_draws_and_averages_on(kind: Any):
    whole, part, resumed = kind(seed=3), kind(seed=3), kind(seed=9)
    expected = [_step(whole, "abcd", step) for step in range(6)]
    for step in range(3):
        _step(part, "abcd", step)
    resumed.load_state_dict(part.state_dict())
    for step in range(3, 6):
        assert torch.equal(_step(resumed, "abcd", step), expected[step])


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_stream_is_left_alone(kind: Any):
    before = torch.get_rng_state()
    _step(kind(), "abcdef", 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_matters(kind: Any):
    found = [_step(kind(seed=seed), "abcdefgh", 5) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_orders_are_permutations_of_the_others():
    orders = Orders(0)
    for size in (2, 3, 7):
        rows = orders(size, torch.device("cpu"))
        for own, row in enumerate(rows):
            assert sorted([own, *row.tolist()]) == list(range(size))


def test_averages_belong_to_pairs_of_names():
    balancer = pt.aggregation.GradVac(beta=0.5)
    balancer.setup(["a", "b", "c"])
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    balancer.combine(Evidence(["c", "a"], jacobian=jacobian[[1, 0]]))
    usual = balancer.get_extra_state()["usual"]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 2] = expected[2, 0] = 0.5 * 0.5**0.5  # half of a cosine of 45 degrees
    torch.testing.assert_close(usual, expected)
    # b is absent: nothing of its pairs has moved, and the next meeting of a and c goes by their average
    weights = balancer.combine(Evidence(["a", "c"], jacobian=jacobian[[0, 2]]))
    target = expected[0, 2]
    torch.testing.assert_close(weights, torch.full((2,), (1 + target / (1 - target**2).sqrt()).item()).double())


def test_a_turned_gradient_has_the_usual_cosine():
    """Two tasks: each copy is turned once, to exactly its target."""
    jacobian = _matrix(2, 4)
    unit = jacobian / jacobian.norm(dim=1)[:, None]
    target = float(unit[0] @ unit[1]) + 0.2
    usual = torch.tensor([[0.0, target], [-1.0, 0.0]], dtype=torch.float64)  # the second one's is met already
    orders = torch.tensor([[1], [0]])
    weights, _ = surgery_weights(jacobian @ jacobian.T, orders, usual, 0.0)
    turned = weights @ jacobian - jacobian[1]
    assert (turned @ unit[1] / turned.norm()).item() == pytest.approx(target)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_were_always_parallel_get_finite_weights(kind: Any):
    balancer = kind(beta=1.0) if kind is pt.aggregation.GradVac else kind()
    row = torch.ones(1, 3, dtype=torch.float64)
    balancer.combine(Evidence(["a", "b"], jacobian=torch.cat([row, 2 * row])))
    assert torch.isfinite(balancer.combine(Evidence(["a", "b"], jacobian=torch.cat([row, -row])))).all()


@pytest.mark.parametrize("path", ["host", "device"])
def test_the_averages_move_by_their_share_towards_the_copies_cosines(path: str):
    """For two tasks a copy meets the other once, as it was: φ̂ ← (1 − β) φ̂ + β cos."""
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    orders, usual = torch.tensor([[1], [0]]), torch.full((2, 2), 0.1, dtype=torch.float64)
    found = surgery_weights(jacobian @ jacobian.T, orders, usual, 0.25, path)[1]
    expected = 0.75 * 0.1 + 0.25 * 0.5**0.5
    torch.testing.assert_close(found[[0, 1], [1, 0]], torch.full((2,), expected, dtype=torch.float64))
    assert found.diagonal().tolist() == [0.1, 0.1]
