"""GradDrop."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torchjd.aggregation as oracle
from tests.helpers import same
from tests.inputs import HARD
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence

GradDrop = pt.aggregation.GradDrop
MANY = torch.randn(4, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _names(jacobian: Tensor) -> list[str]:
    return [str(k) for k in range(len(jacobian))]


def _built(jacobian: Tensor, *given, **options):
    balancer = GradDrop(*given, **options)
    balancer.setup(_names(jacobian))
    return balancer


def _gradient(balancer, jacobian: Tensor) -> Tensor:
    return balancer.combine(Evidence(_names(jacobian), jacobian=jacobian))


@pytest.mark.parametrize("name", HARD)
def test_where_all_signs_agree_it_is_the_sum(name: str):
    jacobian = HARD[name]
    agree = (jacobian >= 0).all(0) | (jacobian <= 0).all(0)
    for seed in range(3):
        found = _gradient(_built(jacobian, seed=seed), jacobian)
        torch.testing.assert_close(found[agree], jacobian.sum(0)[agree])
    assert torch.equal(_gradient(_built(jacobian), jacobian.abs()), jacobian.abs().sum(0))


def test_elsewhere_one_sign_is_left():
    found = _gradient(_built(MANY), MANY)
    positive, negative = MANY.clamp(min=0).sum(0), MANY.clamp(max=0).sum(0)
    either = torch.isclose(found, positive) | torch.isclose(found, negative)
    assert either.all()
    assert (found > 0).any() and (found < 0).any()


def test_its_expectation_is_the_sum():
    balancer = _built(MANY)
    mean = torch.stack([_gradient(balancer, MANY) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, MANY.sum(0), rtol=0, atol=0.2)


def test_leaks():
    torch.testing.assert_close(_gradient(_built(MANY, 1.0), MANY), MANY.sum(0))
    hard, soft = _gradient(_built(MANY), MANY), _gradient(_built(MANY, 0.25), MANY)
    torch.testing.assert_close(soft, 0.25 * MANY.sum(0) + 0.75 * hard)
    named = {"3": 0.0, "1": 1.0, "0": 0.5, "2": 0.2}
    one, other = _built(MANY, named), _built(MANY, [0.5, 1.0, 0.2, 0.0])
    assert torch.equal(_gradient(one, MANY), _gradient(other, MANY))


@pytest.mark.parametrize("leaks", [None, [0.5, 1.0, 0.2, 0.0]])
def test_it_equals_torchjds_for_the_same_draws(leaks: list[float] | None):
    draws = torch.rand(200, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with mock.patch.object(torch, "rand", lambda *size, **options: draws):
        found = _gradient(_built(MANY, leaks or 0.0), MANY)
        other = oracle.GradDrop(leak=None if leaks is None else torch.tensor(leaks, dtype=torch.float64))(MANY)
    torch.testing.assert_close(found, other)


def test_its_draws_are_its_own_and_resume():
    before = torch.get_rng_state()
    one, other = _built(MANY, seed=2), _built(MANY, seed=2)
    assert torch.equal(_gradient(one, MANY), _gradient(other, MANY))
    assert torch.equal(torch.get_rng_state(), before)
    later = GradDrop()
    later.load_state_dict(one.state_dict())
    assert same(later.state_dict(), one.state_dict())
    assert torch.equal(_gradient(later, MANY), _gradient(other, MANY))
    assert not torch.equal(_gradient(later, MANY), _gradient(_built(MANY, seed=2), MANY))


@pytest.mark.parametrize(
    ("leak", "rule"),
    [
        (1.5, "every value of `leak` must be finite and at least 0 and at most 1, found 1.5 for position 0"),
        ({"0": -1.0}, "every value of `leak` must be finite and at least 0 and at most 1, found -1.0 for `0`"),
        ([0.5], "`leak` must hold one value per objective (`0`, `1`, `2`, `3`), found 1"),
        ({"0": 0.5, "x": 1.0}, "`leak` names an unknown objective `x`: known: `0`, `1`, `2`, `3`"),
    ],
)
def test_refusals(leak: object, rule: str):
    with pytest.raises(ValueError) as caught:
        _built(MANY, leak)
    assert str(caught.value) == rule
