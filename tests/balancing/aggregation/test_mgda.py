"""MGDA: its paper's claims."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import data, network, trainer, weights
from tests.inputs import HARD

import polytask as pt
from polytask.balancing import Evidence


def _direction(jacobian: torch.Tensor) -> torch.Tensor:
    names = [str(k) for k in range(len(jacobian))]
    return pt.aggregation.MGDA().combine(Evidence(names, jacobian=jacobian)) @ jacobian


def test_fixed_value():
    torch.testing.assert_close(_direction(HARD["fixed"]), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("name", HARD)
def test_no_objective_rises_to_first_order(name: str):
    jacobian = HARD[name]
    scale = jacobian.norm(dim=1).max().clamp(min=1e-300)
    assert ((jacobian / scale) @ (_direction(jacobian) / scale)).min() >= -1e-7


@pytest.mark.parametrize("name", HARD)
def test_no_convex_combination_is_shorter(name: str):
    jacobian = HARD[name]
    shortest = _direction(jacobian).norm()
    for _ in range(20):
        others = torch.distributions.Dirichlet(torch.ones(len(jacobian), dtype=torch.float64)).sample()
        assert shortest <= (others @ jacobian).norm() * (1 + 1e-9) + 1e-7 * jacobian.norm()


def test_at_a_pareto_stationary_point_it_is_zero():
    assert _direction(HARD["opposed"]).norm() < 1e-12
    assert _direction(HARD["opposed among 3"]).norm() < 1e-7


def test_heads_get_their_own_gradient_and_the_trunk_the_shortest():
    x, y = data(16)
    model = network()
    blocks = model.blocks()
    losses = _losses(model, x, y)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, blocks.shared.parameters, retain_graph=True)])
        for loss in losses.values()
    ]
    own = {
        name: torch.autograd.grad(losses[name], blocks.specific[name].parameters, retain_graph=True) for name in losses
    }
    expected = _direction(torch.stack(rows))
    before = weights(model)
    run = trainer(model, balancer=pt.aggregation.MGDA(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    run.fit(pt.Arrays(x, y, batch_size=16, shuffle=False), epochs=1)
    after = weights(model)
    moved = torch.cat([(before[n] - after[n]).flatten() for n in before if n.startswith("trunk")])
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
    for name in "ab":
        names = [n for n in before if n.startswith(f"heads.{name}")]
        for parameter, gradient in zip(names, own[name], strict=True):
            torch.testing.assert_close(before[parameter] - after[parameter], gradient, rtol=1e-4, atol=1e-6)


def test_in_a_specific_phase_it_rests():
    x, y = data(16)
    runs = []
    for balancer in (pt.aggregation.MGDA(), pt.scalarization.Linear()):
        run = trainer(schedule=pt.schedules.AlternateEpochs(0, 1), balancer=balancer)
        run.fit((x, y), epochs=2)
        runs.append(weights(run.model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def _losses(model: torch.nn.Module, x: torch.Tensor, y: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outputs = model(x)
    return {
        "a": torch.nn.functional.binary_cross_entropy_with_logits(outputs["a"].squeeze(1), y["a"]),
        "b": torch.nn.functional.cross_entropy(outputs["b"], y["b"]),
    }
