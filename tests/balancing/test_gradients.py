"""`pt.balance`: one call in place of `loss.backward()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import data, network, sgd, trainer, weights
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.balancing.base import CotangentAggregator


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


@pytest.mark.parametrize("gradients", ["exact", "features", "low_memory"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_nothing_moves(gradients: str, value: float):
    model = network()
    before = weights(model)
    losses = _losses(model, *data())
    with pytest.raises(ValueError, match=r"must be finite, found .* for `b`"):
        pt.balance(
            losses | {"b": losses["b"] * value}, shared=model.trunk, balancer=pt.aggregation.MGDA(), gradients=gradients
        )
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_wrong_types_are_told():
    w = nn.Parameter(torch.ones(2))
    loss = w.sum()
    assert _refused([loss], [w]) == "`losses` must be a mapping of names to scalars, found list"
    assert _refused({"a": loss}, w) == "`shared` must be a block, a module or parameters, found Parameter"
    assert _refused({"a": loss}, "trunk") == "`shared` must be a block, a module or parameters, found str"
    assert _refused({"a": loss}, [w * 2]) == "`shared` must hold parameters, found a tensor that is not a leaf"
    assert _refused({"a": loss}, ["w"]) == "`shared` must hold parameters, found str"
    assert "found the class MGDA: call it" in _refused({"a": loss}, [w], pt.aggregation.MGDA)
    assert "no shared" not in _refused({"a": loss}, [w.detach()])
    with pytest.raises(ValueError, match="`gradients` must be"):
        pt.balance({"a": loss}, shared=[w], balancer=pt.aggregation.MGDA(), gradients="fast")


def test_mixed_devices_are_told():
    here, elsewhere = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    assert _refused({"a": here.sum()}, [here, elsewhere]) == (
        "all shared parameters must be on one device, found cpu, meta"
    )
    assert _refused({"a": here.sum(), "b": elsewhere.sum()}, [here]) == (
        "losses and shared parameters must be on one device, found `b` on meta and parameters on cpu"
    )


class FirstCotangent(CotangentAggregator):
    def combine(self, evidence: Any) -> Tensor:
        return evidence.cotangents[0]


def test_a_balancer_that_works_at_the_features_must_be_given_them():
    model = network()
    x, y = data()
    losses = _losses(model, x, y)
    shared = model.trunk
    assert "`features` must be given to FirstCotangent" in _refused(losses, shared, FirstCotangent())
    for features, text in (
        ((), "`features` must be given to MGDA with gradients='features'"),
        (torch.ones(2), "must be tensors that require a gradient"),
        (model.trunk(x), "found a tensor that no loss depends on"),
    ):
        with pytest.raises(ValueError, match=text):
            pt.balance(losses, shared=shared, balancer=pt.aggregation.MGDA(), gradients="features", features=features)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("balancer", [pt.aggregation.GREAT, pt.aggregation.MGDA, pt.aggregation.GradDrop])
def test_features_of_unlike_numbers_of_examples_are_refused(balancer: Any):
    w = nn.Parameter(torch.ones(3))
    for features, shapes in (((w[:2] * 2, w * 2), r"\(2,\), \(3,\)"), ((w.sum(),), r"\(\)")):
        losses = {"a": sum(f.sum() for f in features), "b": sum(f.square().sum() for f in features)}
        with pytest.raises(ValueError, match=f"one row per example, found shapes {shapes}"):
            pt.balance(losses, shared=[w], balancer=balancer(), gradients="features", features=features)
    assert w.grad is None


def test_one_process_with_ranks_needs_what_several_need():
    """A loop that runs alone is not one that breaks on two devices."""
    model, ranks = network(), pt.Ranks()
    options = {"shared": model.trunk, "balancer": pt.aggregation.MGDA(), "ranks": ranks}
    with pytest.raises(ValueError, match="must be among `shared` or `specific`, found one of shape"):
        pt.balance(_losses(model, *data()), specific=model.heads["a"], **options)
    with pytest.raises(TypeError, match="`counts` must be a mapping of names to numbers, found int"):
        pt.balance(_losses(model, *data()), specific=model, counts=3, **options)
    pt.balance(_losses(model, *data()), specific=model, counts={"a": 24, "b": 24}, **options)


def test_a_loss_may_be_a_bare_parameter():
    w = nn.Parameter(torch.tensor(3.0))
    pt.balance({"a": w, "b": w**2}, shared=[w], balancer=pt.aggregation.Sum())
    assert w.grad is not None and w.grad.item() == 7


def test_one_loss_gets_its_plain_gradient():
    one, other = network(), network()
    pt.balance({"a": _losses(one, *data())["a"]}, shared=one.trunk, balancer=pt.aggregation.MGDA())
    _losses(other, *data())["a"].backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("gradients", ["exact", "low_memory"])
@pytest.mark.parametrize("balancer", [pt.scalarization.Linear, pt.aggregation.MGDA, pt.aggregation.Sum])
def test_accumulated_micro_batches_equal_the_whole_batch(gradients: str, balancer: Any):
    x, y = data(24)
    one, other = network(), network()
    whole = pt.balance(_losses(one, x, y), shared=one.trunk, balancer=balancer(), gradients=gradients)
    accumulator = pt.Accumulator(shared=other.trunk, balancer=balancer(), gradients=gradients)
    for rows in torch.arange(24).split(8):
        losses = _losses(other, x[rows], {name: values[rows] for name, values in y.items()})
        accumulator.add({name: loss / 3 for name, loss in losses.items()})
        assert balancer is not pt.aggregation.MGDA or all(p.grad is None for p in other.parameters())
    torch.testing.assert_close(accumulator.finish(), whole, rtol=1e-4, atol=1e-5)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_a_task_may_be_absent_from_some_micro_batches():
    x, y = data(24)
    one, other = network(), network()
    first, last = (_losses(one, x[part], {n: v[part] for n, v in y.items()}) for part in (slice(8), slice(8, 24)))
    pt.balance({"a": first["a"], "b": last["b"]}, shared=one.trunk, balancer=pt.aggregation.MGDA())
    accumulator = pt.Accumulator(shared=other.trunk, balancer=pt.aggregation.MGDA())
    accumulator.add({"a": _losses(other, x[:8], {n: v[:8] for n, v in y.items()})["a"]})
    accumulator.add({"b": _losses(other, x[8:], {n: v[8:] for n, v in y.items()})["b"]})
    assert accumulator.finish().shape == (2,)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    with pytest.raises(ValueError, match="`add` must be called before `finish`"):
        accumulator.finish()


@pytest.mark.parametrize("gradients", ["exact", "features", "low_memory"])
@pytest.mark.parametrize("balancer", [pt.scalarization.Linear, pt.aggregation.MGDA, pt.aggregation.FairGrad])
def test_a_scaler_s_gradients_are_compared_unscaled(gradients: str, balancer: Any):
    """FairGrad's answer is not linear in the gradients, so that scaled ones would give another."""
    found = []
    for scale in (None, 256.0):
        model = network()
        z = model.trunk(data()[0])
        losses = {name: model.head(name, z, None).square().mean() for name in "ab"}
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        pt.balance(
            losses, shared=model.trunk, balancer=balancer(), gradients=gradients, features=z, scaler=scaler
        )  # fmt: skip
        found.append([p.grad / (scale or 1.0) for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_scaled_step_that_overflows_is_skipped():
    model = network()
    before = weights(model)
    optimizer = sgd(0.1)(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    losses = {name: 1e4 * loss for name, loss in _losses(model, *data()).items()}
    pt.balance(losses, shared=model.trunk, balancer=pt.aggregation.MGDA(), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", ["exact", "features", "low_memory"])
def test_autocast(dtype: torch.dtype, gradients: str):
    x, _ = data()
    found = []
    for enabled in (False, True):
        model = network()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            z = model.trunk(x)
            outputs = {name: model.head(name, z, None) for name in "ab"}
        losses = {name: output.float().square().mean() for name, output in outputs.items()}
        pt.balance(losses, shared=model.trunk, balancer=pt.aggregation.MGDA(), gradients=gradients, features=z)
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.trunk.parameters())
        found.append(torch.cat([p.grad.flatten() for p in model.trunk.parameters()]))
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


def test_parameters_in_bfloat16():
    model = network().to(torch.bfloat16)
    losses = {name: output.float().square().mean() for name, output in model(data()[0].bfloat16()).items()}
    pt.balance(losses, shared=model.trunk, balancer=pt.aggregation.MGDA())
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_what_a_balancer_learned_survives_absent_tasks_and_resume():
    """`balance` sets a balancer up once, not whenever other tasks are present."""
    model = network()
    balancer = pt.scalarization.Uncertainty()
    for _ in range(3):
        pt.balance(_losses(model, *data()), shared=model.trunk, balancer=balancer)
    learned = balancer.state_dict()
    again = pt.scalarization.Uncertainty()
    again.setup(["a", "b"])
    again.load_state_dict(learned)
    losses = _losses(model, *data())
    torch.testing.assert_close(
        pt.balance({"a": losses["a"]}, shared=model.trunk, balancer=again),
        pt.balance({"a": _losses(model, *data())["a"]}, shared=model.trunk, balancer=balancer),
    )


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
