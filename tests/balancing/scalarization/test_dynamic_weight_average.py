"""Dynamic weight average."""

from __future__ import annotations

import math

import pytest
import torch
import torchjd.scalarization as oracle
from tests.scalarizers import NAMES, built

import polytask as pt
from polytask.balancing import Evidence

Average = pt.scalarization.DynamicWeightAverage
EPOCHS = [[1.0, 1.0, 2.0], [0.5, 0.9, 2.0], [0.1, 0.8, 2.2]]


def _row(losses, names=NAMES):
    return {f"train/{name}/loss": loss for name, loss in zip(names, losses, strict=True)}


def _weights(balancer, names=NAMES):
    return balancer.combine(Evidence(names))


def test_fixed_values():
    """The formula, worked by hand at T = 2 for rates .2, .8889 and 1.1; two epochs of equal weights before."""
    balancer = built(Average)
    for losses in EPOCHS[:2]:
        assert _weights(balancer) == [1, 1, 1]
        balancer.observe(_row(losses))
    balancer.observe(_row(EPOCHS[2]))
    assert _weights(balancer) == pytest.approx([0.75386, 1.06385, 1.18229], abs=1e-5)
    assert sum(_weights(balancer)) == pytest.approx(3)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_it_equals_torchjds(temperature: float):
    balancer, other = built(Average, temperature), oracle.DWA(temperature)
    for losses in EPOCHS:
        other(torch.tensor(losses))
        other.step()
        balancer.observe(_row(losses))
    values = torch.ones(3, requires_grad=True)
    weights = torch.autograd.grad(other(values), values)[0]
    torch.testing.assert_close(torch.tensor(_weights(balancer)), weights)


def test_the_trainer_tells_it_every_epoch():
    from tests.helpers import data, trainer

    balancer = Average()
    history = trainer(balancer=balancer).fit(data(), epochs=3)
    told = balancer.get_extra_state()["losses"]
    assert told == {name: [row[f"train/{name}/loss"] for row in history[-2:]] for name in "ab"}


def test_objectives_without_two_epochs_get_one():
    balancer = built(Average)
    balancer.observe(_row([1.0, 2.0], ["a", "b"]))
    balancer.observe({"train/a/loss": 0.5, "train/b/loss": 1.5, "train/c/loss": float("nan")})
    weights = _weights(balancer)
    assert weights[2] == 1
    assert weights[0] + weights[1] == pytest.approx(2)
    balancer.observe({"train/a/loss": 0.1})
    assert balancer.get_extra_state()["losses"] == {"a": [0.5, 0.1], "b": [2.0, 1.5], "c": []}
    balancer.observe(_row([0.0, 0.0, 0.0]))
    balancer.observe(_row([1e300, -1.0, 0.0]))
    assert all(math.isfinite(weight) for weight in _weights(balancer))


def test_the_state_holds_the_two_epochs():
    one, other = built(Average), built(Average)
    for losses in EPOCHS:
        one.observe(_row(losses))
    other.load_state_dict(one.state_dict())
    assert _weights(other) == _weights(one) != [1, 1, 1]


def test_refusals():
    with pytest.raises(ValueError, match="`temperature` must be above 0 and finite, found 0"):
        Average(0)
    with pytest.raises(ValueError, match="of the same objectives"):
        built(Average).load_state_dict(built(Average, names=["a"]).state_dict())
