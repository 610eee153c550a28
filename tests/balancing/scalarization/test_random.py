"""Random weights."""

from __future__ import annotations

import pytest
import torch

import polytask as pt
from polytask.balancing import Evidence

NAMES = ["a", "b", "c"]


def _built(**options):
    balancer = pt.scalarization.Random(**options)
    balancer.setup(NAMES)
    return balancer


def _draws(balancer, count=1, names=NAMES):
    return torch.tensor([balancer.combine(Evidence(names)) for _ in range(count)])


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_weights_are_positive_with_a_mean_of_one(distribution: str):
    draws = _draws(_built(distribution=distribution), 2000)
    assert (draws > 0).all()
    torch.testing.assert_close(draws.mean(1), torch.ones(2000))
    torch.testing.assert_close(draws.mean(0), torch.ones(3), rtol=0, atol=0.06)


def test_variances_are_the_distributions():
    dirichlet = _draws(_built(distribution="dirichlet", concentration=2.0), 4000)
    share, total = 1 / 3, 6.0
    assert dirichlet.var(0).mean().item() == pytest.approx(9 * share * (1 - share) / (total + 1), rel=0.1)
    random = torch.Generator().manual_seed(0)
    softmax = 3 * torch.randn(4000, 3, generator=random).softmax(1)
    assert _draws(_built(), 4000).var(0).mean().item() == pytest.approx(softmax.var(0).mean().item(), rel=0.1)


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_a_seed_is_a_stream_and_the_state_goes_on_with_it(distribution: str):
    one, other = (_built(distribution=distribution, seed=3) for _ in range(2))
    before = torch.get_rng_state()
    assert torch.equal(_draws(one, 5), _draws(other, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(_draws(_built(distribution=distribution, seed=4), 5), _draws(_built(seed=3), 5))
    later = _built(distribution=distribution)
    later.load_state_dict(one.state_dict())
    assert torch.equal(_draws(later, 3), _draws(other, 3))


def test_a_weight_depends_neither_on_the_order_nor_on_who_is_absent():
    whole, turned, part = _draws(_built()), _draws(_built(), names=["c", "a", "b"]), _draws(_built(), names=["b"])
    assert torch.equal(whole[:, [2, 0, 1]], turned)
    assert torch.equal(whole[:, [1]], part)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"distribution": "uniform"}, "`distribution` must be one of 'normal', 'dirichlet', found 'uniform'"),
        ({"concentration": 0.0}, "`concentration` must be above 0 and finite, found 0.0"),
        ({"seed": -1}, "`seed` must be at least 0, found -1"),
    ],
)
def test_refusals(options: dict, rule: str):
    with pytest.raises(ValueError) as caught:
        pt.scalarization.Random(**options)
    assert str(caught.value) == rule
