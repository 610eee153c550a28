"""`pt.balance`: one call in place of `loss.backward()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import data, network, sgd, trainer, weights
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt


def _losses(model: nn.Module, x: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = model(x)
    return {
        "a": F.binary_cross_entropy_with_logits(outputs["a"].squeeze(1), y["a"]),
        "b": F.cross_entropy(outputs["b"], y["b"]),
    }


def test_linear_is_the_plain_backward():
    x, y = data()
    one, other = network(), network()
    sum(_losses(one, x, y).values()).backward()
    returned = pt.balance(_losses(other, x, y), shared=other.trunk, balancer=pt.scalarization.Linear())
    assert returned.tolist() == [1, 1]
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-8)


@pytest.mark.parametrize("form", ["block", "module", "parameters", "generator"])
def test_the_shared_parameters_may_be_given_in_any_form(form: str):
    x, y = data()
    model = network()
    shared: Any = {
        "block": model.blocks().shared, "module": model.trunk, "parameters": list(model.trunk.parameters()),
        "generator": model.trunk.parameters(),
    }[form]  # fmt: skip
    found = pt.balance(_losses(model, x, y), shared=shared, balancer=pt.aggregation.MGDA())
    assert found.sum().item() == pytest.approx(1)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("balancer", [pt.scalarization.Linear({"a": 2.0, "b": 1.0}), pt.aggregation.MGDA()])
def test_a_loop_of_ones_own_equals_the_trainer(balancer: Any):
    x, y = data(24)
    model = network()
    optimizer = sgd(0.1)(model.parameters())
    for _ in range(3):
        for rows in torch.arange(24).split(8):
            optimizer.zero_grad()
            part = {name: values[rows] for name, values in y.items()}
            pt.balance(_losses(model, x[rows], part), shared=model.blocks().shared, balancer=balancer)
            optimizer.step()
    run = trainer(balancer=balancer)
    run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=3)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, run.model.state_dict()[name], rtol=0, atol=1e-6)


def test_gradients_accumulate_as_backward_does():
    x, y = data()
    model = network()
    for _ in range(2):
        pt.balance(_losses(model, x, y), shared=model.trunk, balancer=pt.aggregation.MGDA())
    twice = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    pt.balance(_losses(model, x, y), shared=model.trunk, balancer=pt.aggregation.MGDA())
    for p, grad in zip(model.parameters(), twice, strict=True):
        torch.testing.assert_close(2 * p.grad, grad)


def _refused(losses: Any, shared: Any, balancer: Any = None) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        pt.balance(losses, shared=shared, balancer=balancer or pt.aggregation.MGDA())
    return str(caught.value)


def test_refusals():
    w = nn.Parameter(torch.ones(2))
    head = nn.Parameter(torch.ones(()))
    loss = w.sum()
    assert _refused({}, [w]) == "there must be at least one loss, found none"
    assert _refused({"a": w * 1}, [w]) == "a loss must be a scalar tensor, found shape (2,) for `a`"
    assert _refused({"a": 1.0}, [w]) == "a loss must be a scalar tensor, found float for `a`"
    assert _refused({"a": loss.detach()}, [w]) == "a loss must require a gradient, found that `a` does not"
    assert _refused({"a": loss * float("nan")}, [w]) == "a loss must be finite, found nan for `a`"
    assert "found one tensor under two names" in _refused({"a": loss, "b": loss}, [w])
    assert "found that `b` does not" in _refused({"a": loss, "b": head * 2}, [w])
    assert "`shared` must hold at least one parameter that requires a gradient" in _refused({"a": loss}, [])
    assert "`balancer` must be a polytask balancer, found str" in _refused({"a": loss}, [w], "mgda")
    with pytest.raises(ValueError, match="must name every objective, found none for `b`"):
        pt.balance({"a": loss, "b": w.prod()}, shared=[w], balancer=pt.scalarization.Linear({"a": 1.0}))


class HeadPenalty(pt.Objective):
    def forward(self, context: Any) -> Tensor:
        return sum(p.square().sum() for p in context.model.heads.parameters())


def test_an_objective_that_never_reaches_the_shared_block_has_no_say_in_it():
    """Its gradient there is zero, so the shortest vector in the hull would be zero and the trunk would stand still."""
    runs = []
    for objectives in ([], [HeadPenalty("penalty")]):
        run = trainer(balancer=pt.aggregation.MGDA(), objectives=objectives)
        run.fit(pt.Arrays(*data(8), batch_size=8, shuffle=False), epochs=1)
        runs.append(weights(run.model))
    for name in runs[0]:
        if name.startswith("trunk"):
            torch.testing.assert_close(runs[0][name], runs[1][name])
    assert not torch.equal(runs[0]["heads.a.0.weight"], runs[1]["heads.a.0.weight"])
