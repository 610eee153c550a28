"""GradNorm."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import same
from tests.scalarizers import NAMES, built, evidence

import polytask as pt

GradNorm = pt.scalarization.GradNorm


def _gram(norms):
    return torch.diag(torch.tensor(norms).square())


def _weights(balancer, losses, norms, names=NAMES):
    return balancer.combine(evidence(losses, names, gram=_gram(norms)))


def test_equal_norms_and_rates_give_equal_weights():
    balancer = built(GradNorm, lr=0.1)
    for scale in (1.0, 0.7, 0.5, 0.3):
        weights = _weights(balancer, [scale, 3 * scale, 5 * scale], [0.2, 0.2, 0.2])
        torch.testing.assert_close(weights, torch.ones(3))


def test_it_follows_the_papers_algorithm():
    """Algorithm 1, transcribed, with autograd for the gradient of its L_grad."""
    balancer = built(GradNorm, alpha=0.5, lr=0.1)
    w = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.1)
    random = torch.Generator().manual_seed(1)
    first = None
    for _ in range(8):
        losses = torch.rand(3, generator=random) + 0.5
        norms = 5 * torch.rand(3, generator=random) + 0.1
        first = losses if first is None else first
        torch.testing.assert_close(_weights(balancer, losses.tolist(), norms.tolist()), w.detach())
        rates = (losses / first) / (losses / first).mean()
        lengths = w * norms
        adam.zero_grad()
        (lengths - (lengths.mean() * rates**0.5).detach()).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            w *= 3 / w.sum()


def test_gradient_lengths_become_equal_and_weights_sum_to_their_number():
    balancer = built(GradNorm, alpha=0.0, lr=0.02)
    norms = torch.tensor([4.0, 1.0, 2.0])
    for _ in range(200):
        weights = _weights(balancer, [1.0, 1.0, 1.0], norms.tolist())
        assert weights.sum().item() == pytest.approx(3, rel=1e-5)
    lengths = weights * norms
    assert (lengths.max() / lengths.min()).item() < 1.15


def test_a_slow_task_gets_more_weight():
    balancer = built(GradNorm, lr=0.02)
    _weights(balancer, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    for _ in range(5):
        weights = _weights(balancer, [0.1, 1.0, 0.5], [1.0, 1.0, 1.0])
    assert weights[0] < 1 < weights[1]


def test_absent_objectives_are_untouched_and_the_sum_stays():
    balancer = built(GradNorm, lr=0.1)
    _weights(balancer, [1.0, 1.0, 1.0], [4.0, 1.0, 2.0])
    before = balancer.get_extra_state()["weights"]
    _weights(balancer, [1.0, 0.5], [4.0, 1.0], ["a", "c"])
    after = balancer.get_extra_state()["weights"]
    assert same(after["b"], before["b"]) and not same(after["a"], before["a"])
    assert sum(saved["value"].item() for saved in after.values()) == pytest.approx(3, rel=1e-5)
    _weights(balancer, [0.5], [1.0], ["c"])
    assert same(balancer.get_extra_state()["weights"], after)


def test_without_gradients_the_weights_rest():
    balancer = built(GradNorm, lr=0.1)
    _weights(balancer, [1.0, 1.0, 1.0], [4.0, 1.0, 2.0])
    before = balancer.state_dict()
    assert balancer.combine(evidence()).sum().item() == pytest.approx(3)
    assert same(balancer.state_dict(), before)


@pytest.mark.parametrize(
    ("losses", "norms"),
    [([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), ([0.0, 1.0, 1.0], [0.0, 1e15, 1e-10]), ([-1.0, 1.0, 1.0], [1.0, 1.0, 1.0])],
)
def test_weights_stay_positive_and_finite(losses: list[float], norms: list[float]):
    balancer = built(GradNorm, lr=0.9)
    _weights(balancer, [1.0, 0.0, 1.0], [1.0, 1.0, 1.0])
    for _ in range(5):
        weights = _weights(balancer, losses, norms)
        assert torch.isfinite(weights).all() and (weights > 0).all()


def test_refusals():
    with pytest.raises(ValueError, match="`alpha` must be at least 0, found -1"):
        GradNorm(alpha=-1)
    with pytest.raises(ValueError, match="`lr` must be at least 0, found -1"):
        GradNorm(lr=-1)
    with pytest.raises(ValueError, match="GradNorm needs losses of at least 0, found -1 for `b`"):
        built(GradNorm).combine(evidence([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match="of the same objectives"):
        built(GradNorm).load_state_dict(built(GradNorm, names=["a", "b"]).state_dict())
