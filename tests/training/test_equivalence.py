"""What training must equal: bare loops, separate trainings, partial gradients; and that it descends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import adam, data, heads, network, same, sgd, trainer, trunk, weights
from torch import Tensor
from torch.nn import functional as F

import polytask as pt
from polytask.data.source import derived_seed, permutation

ATE = pt.schedules.AlternateEpochs
SAT = pt.schedules.AlternateBatches


class Recording(torch.optim.SGD):
    """SGD that keeps every gradient it was given, by the parameter's position."""

    def __init__(self, parameters: Any, seen: list[list[Tensor | None]], lr: float = 0.0) -> None:
        super().__init__(parameters, lr=lr)
        self.seen = seen

    def step(self, closure: Any = None) -> None:
        self.seen.append([None if p.grad is None else p.grad.clone() for g in self.param_groups for p in g["params"]])
        super().step()


def _loss(outputs: dict[str, Tensor], y: dict[str, Tensor], rows: Any) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(outputs["a"].squeeze(1), y["a"][rows].to(outputs["a"]))
    return loss + F.cross_entropy(outputs["b"], y["b"][rows])


@pytest.mark.parametrize("cached", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["hard", "partitioned"])
@pytest.mark.parametrize("schedule", [ATE(1, 1), SAT(), SAT(fresh=True)], ids=["ate", "sat", "sat fresh"])
def test_the_active_gradient_is_its_part_of_the_joint_gradient(schedule: Any, form: str, dtype: Any, cached: Any):
    x, y = data(20)
    x = x.to(dtype)
    model = network(form=form).to(dtype)
    seen: list[list[Tensor | None]] = []
    updates: list[bool] = []

    class Note(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            updates.append(info.update.shared)

    run = trainer(
        model, optimizer=lambda p: Recording(p, seen), schedule=schedule, callbacks=[Note()], cache_features=cached,
    )  # fmt: skip
    run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=2)
    blocks = model.blocks()
    parameters = [*blocks.shared.parameters, *blocks.specific_parameters()]
    common = len(blocks.shared.parameters)
    slices = [slice(0, 8), slice(8, 16), slice(16, 20)] * 2
    order = [rows for rows in slices for _ in range(2)] if schedule == SAT() else slices
    exact = dtype == torch.float64 and cached is False
    assert len(seen) == len(updates) == len(order)
    for gradients, shared, rows in zip(seen, updates, order, strict=True):
        joint = torch.autograd.grad(_loss(model(x[rows]), y, rows), parameters)
        live = range(common) if shared else range(common, len(parameters))
        for i, (part, whole) in enumerate(zip(gradients, joint, strict=True)):
            if i not in live:
                assert part is None
            else:
                torch.testing.assert_close(part, whole, rtol=0, atol=1e-15 if exact else 1e-7)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), shared=st.booleans(), size=st.integers(2, 16))
def test_both_blocks_alone_are_descent_directions(seed: int, shared: bool, size: int):
    x, y = data(size, seed=seed)
    schedule = ATE(1, 0) if shared else ATE(0, 1)
    run = trainer(network(seed=seed).double(), optimizer=sgd(1e-4), schedule=schedule, batch_size=size)
    before = run.evaluate((x.double(), y))["loss"]
    run.fit((x.double(), y), epochs=1)
    assert run.evaluate((x.double(), y))["loss"] < before


@pytest.mark.parametrize("kind", ["plain", "norm", "dropout"])
@pytest.mark.parametrize("optimizer", [sgd(0.1), sgd(0.1, momentum=0.9), adam()], ids=["sgd", "momentum", "adam"])
def test_joint_training_equals_a_bare_loop_to_the_bit(optimizer: Any, kind: str):
    x, y = data(20)
    bare, seed = network(kind), 11
    stepper = optimizer(bare.parameters())
    with torch.random.fork_rng([]):
        torch.manual_seed(derived_seed(seed, 1))
        for epoch in range(3):
            for rows in permutation(20, seed, epoch).split(8):
                loss = _loss(bare(x[rows]), y, rows)
                stepper.zero_grad()
                loss.backward()
                stepper.step()
    run = trainer(network(kind), optimizer=optimizer, seed=seed)
    run.fit((x, y), epochs=3)
    assert same(weights(run.model), weights(bare))


@pytest.mark.parametrize("form", ["hard", "partitioned"])
def test_alternating_by_batches_equals_a_bare_alternating_loop_to_the_bit(form: str):
    x, y = data(20)
    bare, seed = network(form=form), 4
    blocks = bare.blocks()
    for epoch in range(3):
        for rows in permutation(20, seed, epoch).split(8):
            for block in (list(blocks.shared.parameters), blocks.specific_parameters()):
                gradients = torch.autograd.grad(_loss(bare(x[rows]), y, rows), block)
                with torch.no_grad():
                    for parameter, gradient in zip(block, gradients, strict=True):
                        parameter -= 0.1 * gradient
    run = trainer(network(form=form), schedule=SAT(), seed=seed)
    run.fit((x, y), epochs=3)
    for name, value in weights(bare).items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=0, atol=1e-7)

    loop = network(form=form)  # the same with torch's own optimizer, whose rounding is the trainer's
    blocks = loop.blocks()
    steppers = [torch.optim.SGD(b, lr=0.1) for b in (blocks.shared.parameters, blocks.specific_parameters())]
    for epoch in range(3):
        for rows in permutation(20, seed, epoch).split(8):
            for stepper in steppers:
                loop.zero_grad()
                _loss(loop(x[rows]), y, rows).backward()
                stepper.step()
    assert same(weights(run.model), weights(loop))


def test_alternating_by_epochs_equals_a_bare_alternating_loop_to_the_bit():
    x, y = data(20)
    bare, seed = network(), 4
    blocks = bare.blocks()
    steppers = [torch.optim.Adam(b, lr=0.01) for b in (blocks.shared.parameters, blocks.specific_parameters())]
    for epoch, stepper in enumerate([steppers[0], steppers[1], steppers[1], steppers[0]]):
        for rows in permutation(20, seed, epoch).split(8):
            bare.zero_grad()
            _loss(bare(x[rows]), y, rows).backward()
            stepper.step()
    run = trainer(network(), optimizer=adam(), schedule=ATE(1, 2), seed=seed, cache_features=False)
    run.fit((x, y), epochs=4)
    assert same(weights(run.model), weights(bare))


def test_fresh_alternation_gives_each_block_every_other_batch_across_epochs():
    x, y = data(24)  # three batches, so turns swap every epoch
    bare, seed = network(), 2
    blocks = bare.blocks()
    steppers = [torch.optim.SGD(b, lr=0.1) for b in (blocks.shared.parameters, blocks.specific_parameters())]
    turn = 0
    for epoch in range(4):
        for rows in permutation(24, seed, epoch).split(8):
            bare.zero_grad()
            _loss(bare(x[rows]), y, rows).backward()
            steppers[turn % 2].step()
            turn += 1
    run = trainer(network(), schedule=SAT(fresh=True), seed=seed)
    run.fit((x, y), epochs=4)
    assert same(weights(run.model), weights(bare))


@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["momentum", "adam"])
def test_single_task_towers_equal_independent_trainings(optimizer: Any):
    x, y = data(24)
    together = pt.models.SingleTask(trunk(), heads())
    apart = {name: pt.models.HardSharing(trunk(), {name: heads(name)[name]}) for name in "ab"}
    for name, model in apart.items():
        model.trunk.load_state_dict(together.towers[name].state_dict())
        model.heads[name].load_state_dict(together.heads[name].state_dict())
    whole = trainer(together, optimizer=optimizer)
    whole.fit((x, y), epochs=3)
    for name, model in apart.items():
        part = trainer(model, name, optimizer=optimizer)
        part.fit((x, {name: y[name]}), epochs=3)
        assert same(weights(model.trunk), weights(together.towers[name]))
        assert same(weights(model.heads[name]), weights(together.heads[name]))
        assert part.history.column(f"train/{name}/loss") == whole.history.column(f"train/{name}/loss")


@pytest.mark.parametrize(
    ("shared", "specific", "epochs", "phases"),
    [
        (1, 1, 5, "h s h s h"),
        (2, 3, 4, "h h s s"),
        (2, 1, 7, "h h s h h s h"),
        (0, 2, 3, "s s s"),
        (3, 0, 2, "h h"),
        (5, 5, 1, "h"),
    ],
)
def test_phases_are_as_requested_and_cut_at_the_epochs(shared: int, specific: int, epochs: int, phases: str):
    model = network()
    before = weights(model)
    history = trainer(model, schedule=ATE(shared, specific)).fit(data(), epochs=epochs)
    assert [{"shared": "h", "specific": "s"}[p] for p in history.column("phase")] == phases.split()
    assert history.column("epoch") == list(range(1, epochs + 1))
    moved = {name.split(".")[0] for name, value in weights(model).items() if not same(value, before[name])}
    assert moved == {{"h": "trunk", "s": "heads"}[p] for p in phases.split()}


def test_task_weights_scale_gradients_once():
    x, y = data(16)
    weighted = [pt.binary("a", weight=2.0), pt.classification("b", 3, weight=0.5)]
    by_task = trainer(tasks=weighted, optimizer=sgd(0.1))
    by_balancer = trainer(balancer=pt.scalarization.Linear({"a": 2.0, "b": 0.5}), optimizer=sgd(0.1))
    by_task.fit((x, y), epochs=2)
    by_balancer.fit((x, y), epochs=2)
    assert same(weights(by_task.model), weights(by_balancer.model))
    assert by_task.history[0]["train/loss"] == pytest.approx(
        2 * by_task.history[0]["train/a/loss"] + 0.5 * by_task.history[0]["train/b/loss"]
    )


def test_one_task_is_the_same_under_every_balancer():
    x, y = data(16, "a")
    results = []
    for balancer in (pt.scalarization.Linear(), pt.aggregation.MGDA()):
        run = trainer(network(names="a"), "a", balancer=balancer)
        run.fit((x, y), epochs=2)
        results.append(weights(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_a_data_loader_trains_like_the_same_batches_by_hand():
    x, y = data(24)
    order = torch.randperm(24)
    batches = [(x[rows], {name: values[rows] for name, values in y.items()}) for rows in order.split(8)]

    class Given:
        def __iter__(self) -> Any:
            return iter(batches)

        def __len__(self) -> int:
            return len(batches)

    from polytask.data.loader import Loader

    one = trainer()
    one.fit(Loader(Given()), epochs=2)
    other = trainer()
    other.fit(pt.Arrays(x[order], {k: v[order] for k, v in y.items()}, batch_size=8, shuffle=False), epochs=2)
    assert same(weights(one.model), weights(other.model))
    assert one.history == other.history
