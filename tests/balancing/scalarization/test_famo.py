"""FAMO."""

from __future__ import annotations

import pytest
import torch
import torchjd.scalarization as oracle
from tests.helpers import data, same, trainer
from tests.scalarizers import NAMES, built, evidence
from torch import Tensor

import polytask as pt

FAMO = pt.scalarization.FAMO


def _problem(x: Tensor) -> Tensor:
    """Three losses of three scales."""
    return torch.stack([(x - 1).square().sum() + 0.1, 20 * (x + 1).square().mean() + 1, x.exp().sum()])


def _train(step, update, steps=20):
    x = torch.tensor([0.3, -0.6, 0.2], requires_grad=True)
    seen = []
    for _ in range(steps):
        losses = _problem(x)
        weights = step(losses)
        (gradient,) = torch.autograd.grad(weights @ losses, x)
        with torch.no_grad():
            x -= 0.02 * gradient
        update(_problem(x).detach())
        seen.append(weights)
    return torch.stack(seen)


def _ours(balancer):
    return _train(
        lambda losses: balancer.combine(evidence(losses.tolist())),
        lambda losses: balancer.after(dict(zip(NAMES, losses, strict=True))),
    )


def test_it_follows_the_papers_algorithm():
    """Algorithm 2, transcribed: the Jacobian of softmax times the falls of the logarithms, into Adam."""
    logits = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1, weight_decay=0.001)
    before = torch.zeros(3)

    def step(losses: Tensor) -> Tensor:
        nonlocal before
        before = losses.detach()
        z = torch.softmax(logits.detach(), 0)
        c = 1 / (z / before).sum()
        return c * z / before

    def update(after: Tensor) -> None:
        z = torch.softmax(logits.detach(), 0)
        jacobian = torch.diag(z) - torch.outer(z, z)
        logits.grad = jacobian @ (before.log() - after.log())
        adam.step()

    found = _ours(built(FAMO, lr=0.1))
    torch.testing.assert_close(found, _train(step, update), rtol=1e-4, atol=1e-5)
    assert (found[-1] - found[0]).abs().max() > 0.03


@pytest.mark.parametrize("bounds", [None, [0.05, 0.5, 0.0]])
def test_it_equals_torchjds(bounds: list[float] | None):
    other = oracle.FAMO(3, None if bounds is None else torch.tensor(bounds), lr=0.1)

    def step(losses: Tensor) -> Tensor:
        values = losses.detach().requires_grad_()
        return torch.autograd.grad(other(values), values)[0]

    torch.testing.assert_close(
        _ours(built(FAMO, lr=0.1, lower_bounds=bounds)), _train(step, other.update), rtol=1e-4, atol=1e-5
    )


def test_weights_sum_to_one_and_even_out_relative_gains():
    balancer = built(FAMO)
    weights = balancer.combine(evidence([0.5, 1.0, 2.0]))
    assert weights.sum().item() == pytest.approx(1)
    torch.testing.assert_close(weights * torch.tensor([0.5, 1.0, 2.0]), torch.full((3,), 1 / 3.5), rtol=1e-5, atol=0)
    balancer.after({"a": torch.tensor(0.1), "b": torch.tensor(0.9), "c": torch.tensor(1.9)})
    later = balancer.combine(evidence([0.5, 1.0, 2.0]))
    assert later[0] < weights[0]


def test_an_absent_objective_is_untouched():
    balancer = built(FAMO, lr=0.1)
    _ours(balancer)
    before = balancer.get_extra_state()["logits"]["b"]
    balancer.combine(evidence([1.0, 2.0], ["a", "c"]))
    balancer.after({"a": torch.tensor(0.1), "c": torch.tensor(1.9)})
    assert same(balancer.get_extra_state()["logits"]["b"], before)


def test_the_trainer_shows_it_the_losses_after_the_step():
    balancer = FAMO()
    trainer(balancer=balancer).fit(data(), epochs=2)
    assert all(saved["step"] == 6 for saved in balancer.get_extra_state()["logits"].values())


def test_refusals():
    with pytest.raises(ValueError, match="`lr` must be at least 0, found -1"):
        FAMO(lr=-1)
    with pytest.raises(ValueError, match="`weight_decay` must be at least 0, found -1"):
        FAMO(weight_decay=-1)
    with pytest.raises(ValueError, match=r"`lower_bounds` must hold one value per objective .* found 1"):
        built(FAMO, lower_bounds=[0.0])
    with pytest.raises(ValueError, match="FAMO needs losses of at least their lower bounds, found -1 for `b`"):
        built(FAMO).combine(evidence([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match="of the same objectives"):
        built(FAMO).load_state_dict(built(FAMO, names=["a", "b"]).state_dict())


def test_a_loss_may_reach_its_bound():
    balancer = built(FAMO)
    for losses in ([0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 1.0]):
        assert torch.isfinite(balancer.combine(evidence(losses))).all()
        balancer.after({name: torch.tensor(0.0) for name in NAMES})
    assert torch.isfinite(balancer.combine(evidence())).all()
