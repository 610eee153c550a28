"""A frozen block is frozen: parameters, buffers and optimizer state keep their bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import FEATURED, Witness, adam, data, network, same, sgd, trainer, weights
from tests.parameters import covering, in_turn
from torch import nn

import polytask as pt

OPTIMIZERS = {
    "sgd": sgd(),
    "momentum": sgd(momentum=0.9, weight_decay=0.01),
    "adam": adam(),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
SCHEDULES = {
    "ate 1 1": pt.schedules.AlternateEpochs(1, 1),
    "ate 1 2": pt.schedules.AlternateEpochs(1, 2),
    "ate 2 1": pt.schedules.AlternateEpochs(2, 1),
    "sat": pt.schedules.AlternateBatches(),
    "sat fresh": pt.schedules.AlternateBatches(fresh=True),
}


@pytest.mark.parametrize(
    ("optimizer", "schedule", "form", "two", "cached"),
    covering(
        OPTIMIZERS, SCHEDULES, ["hard", "partitioned", "partitioned by shared only"], [False, True], [True, False]
    ),
)
def test_frozen_blocks_keep_every_bit(optimizer: str, schedule: str, form: str, two: bool, cached: bool):
    witness = Witness()
    factory = OPTIMIZERS[optimizer]
    run = trainer(
        network("norm+dropout", form=form), optimizer=factory, specific_optimizer=factory if two else None,
        schedule=SCHEDULES[schedule], callbacks=[witness], cache_features=None if cached else False,
    )  # fmt: skip
    run.fit(data(24), data(10, seed=1), epochs=4)
    assert witness.frozen_seen >= 12
    assert witness.live_seen >= 12


@pytest.mark.parametrize(("schedule", "form", "cached"), covering(SCHEDULES, FEATURED, [True, False]))
def test_frozen_blocks_of_networks_whose_heads_do_more_keep_every_bit(schedule: str, form: str, cached: bool):
    """Monitors and attention rest with their heads; alpha too, which belongs to no layer."""
    witness = Witness()
    run = trainer(
        network("norm+dropout", form=form), optimizer=OPTIMIZERS["adamw"], schedule=SCHEDULES[schedule],
        callbacks=[witness], cache_features=None if cached else False,
    )  # fmt: skip
    run.fit(data(24), data(10, seed=1), epochs=4)
    assert witness.frozen_seen >= 12
    assert witness.live_seen >= 12


@pytest.mark.parametrize(
    ("form", "optimizer"), in_turn(["hard", "partitioned", "single", "soft", *FEATURED], list(OPTIMIZERS))
)
def test_absent_tasks_keep_every_bit(form: str, optimizer: str):
    x, y = data(24, "abc")
    y["a"][:8] = torch.nan  # batch 1 lacks a, batch 2 lacks b, batch 3 lacks c
    y["b"][8:16] = -100
    y["c"][16:] = torch.nan
    witness = Witness()
    run = trainer(network("norm+dropout", "abc", form), "abc", optimizer=OPTIMIZERS[optimizer], callbacks=[witness])
    run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=2)
    present = [names for _, _, names in witness.updates]
    assert present == [("b", "c"), ("a", "c"), ("a", "b")] * 2


def test_modules_of_a_frozen_block_are_in_eval_mode_and_come_back():
    model = network("norm+dropout")
    seen = []

    class Look(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            def modes(module: nn.Module) -> set[bool]:
                return {m.training for m in module.modules()}

            seen.append((info.update.shared, modes(model.trunk), modes(model.heads["a"])))

    model.trunk[1].eval()
    model.heads["b"].eval()
    trainer(model, schedule=pt.schedules.AlternateBatches(), callbacks=[Look()]).fit(data(8), epochs=1)
    assert seen == [(True, {True}, {False}), (False, {False}, {True})]
    assert not model.trunk[1].training
    assert not model.heads["b"].training
    assert model.trunk[0].training


def test_user_frozen_parameters_stay_frozen_and_keep_their_flags():
    model = network()
    model.trunk[0].bias.requires_grad_(False)
    model.heads["a"][0].weight.requires_grad_(False)
    before = weights(model)
    trainer(model, optimizer=adam(), schedule=pt.schedules.AlternateEpochs(1, 1)).fit(data(), epochs=4)
    after = weights(model)
    for name, parameter in model.named_parameters():
        fixed = name in ("trunk.0.bias", "heads.a.0.weight")
        assert parameter.requires_grad is not fixed
        assert same(before[name], after[name]) is fixed


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_flags_modes_and_gradients_come_back_after_an_error_in_a_callback(schedule: str):
    class Fail(pt.Callback):
        def __init__(self, after: int) -> None:
            self.left = after

        def on_update(self, run: Any, info: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise ArithmeticError("on purpose")

    for after in (1, 2, 4, 5):
        model = network("norm+dropout").eval()
        model.trunk[0].bias.requires_grad_(False)
        with pytest.raises(ArithmeticError):
            trainer(model, schedule=SCHEDULES[schedule], callbacks=[Fail(after)]).fit(data(), data(), epochs=3)
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["trunk.0.bias"]
        assert not any(m.training for m in model.modules())
        assert all(p.grad is None for p in model.parameters())


def test_flags_come_back_when_a_later_update_of_the_schedule_is_refused():
    class Turns(pt.schedules.Schedule):
        def phase(self, epoch: int) -> str:
            return "turns"

        def updates(self, epoch: int, step: int) -> tuple[pt.schedules.Update, ...]:
            return tuple(pt.schedules.Update(False, frozenset({name})) for name in "ab")

    model = network()
    model.heads["b"].requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        trainer(model, schedule=Turns()).fit(data(), epochs=1)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        n for n, _ in model.named_parameters() if n.startswith("heads.b")
    ]


class OwnScale(pt.Objective):
    """A penalty with a parameter of its own, which belongs to the shared block."""

    def __init__(self) -> None:
        super().__init__("scale", weight=0.1)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, context: Any) -> torch.Tensor:
        return self.scale**2 + sum(p.square().sum() for p in context.model.parameters())


@pytest.mark.parametrize("two", [False, True])
def test_an_objectives_own_parameters_move_with_the_shared_block_only(two: bool):
    objective = OwnScale()
    seen: dict[bool, list[bool]] = {True: [], False: []}

    class Look(pt.Callback):
        def on_fit_start(self, run: Any) -> None:
            self.before = objective.scale.item()

        def on_update(self, run: Any, info: Any) -> None:
            seen[info.update.shared].append(objective.scale.item() != self.before)
            self.before = objective.scale.item()

    run = trainer(
        schedule=pt.schedules.AlternateEpochs(1, 1), objectives=[objective], callbacks=[Look()],
        optimizer=adam(), specific_optimizer=adam() if two else None,
    )  # fmt: skip
    run.fit(data(), epochs=4)
    assert all(seen[True])
    assert not any(seen[False])
    assert objective.scale.requires_grad
    assert objective.scale.grad is None


class Watching(pt.Objective):
    """A penalty that keeps the network, as one that looks at its layers would."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__("watching", weight=0.1)
        self.model = model

    def forward(self, context: Any) -> torch.Tensor:
        return sum((p.square().sum() for p in self.model.parameters()), torch.zeros(()))


def test_what_an_objective_holds_of_the_model_stays_in_the_model_s_blocks():
    model, witness = network("norm"), Witness()
    schedule = pt.schedules.AlternateEpochs(1, 1)
    trainer(model, objectives=[Watching(model)], schedule=schedule, callbacks=[witness]).fit(data(), epochs=4)
    assert witness.frozen_seen >= 12


def test_dropout_and_batch_statistics_of_heads_rest_in_validation_with_cached_features():
    """The first validation of a specific phase fills the cache; the heads must be in eval mode after that."""
    model = network("norm+dropout")
    run = trainer(model, schedule=pt.schedules.AlternateEpochs(1, 1), cache_features=True)
    validation = data(12, seed=3)
    history = run.fit(data(), validation, epochs=2)
    figures = run.evaluate(validation)
    for name in ("loss", "a/loss", "b/loss"):
        assert history[-1][f"validation/{name}"] == pytest.approx(figures[name], rel=1e-5)


def test_validation_leaves_every_bit_alone():
    class Look(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            self.after_last_step = weights(run.model)

        def on_epoch_end(self, run: Any, row: Any) -> None:
            assert same(weights(run.model), self.after_last_step)

    for schedule in [pt.schedules.Joint(), *SCHEDULES.values()]:
        trainer(network("norm+dropout", "ab"), schedule=schedule, callbacks=[Look()]).fit(
            data(), data(9, seed=1), epochs=4
        )


@pytest.mark.parametrize("balancer", [pt.scalarization.Linear, pt.aggregation.MGDA])
@pytest.mark.parametrize(
    "schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(), pt.schedules.AlternateBatches()]
)
def test_a_head_that_the_user_froze_is_passed_over(balancer: type, schedule: pt.schedules.Schedule):
    """Its loss still counts in shared phases and in the figures; in specific phases nothing of it can move."""
    model = network()
    model.heads["a"].requires_grad_(False)
    before = weights(model.heads["a"])
    fit = trainer(model, schedule=schedule, balancer=balancer())
    history = fit.fit(data(), epochs=2)
    assert same(weights(model.heads["a"]), before)
    assert all("train/a/loss" in row and "train/b/loss" in row for row in history)


def test_a_batch_that_can_move_nothing_is_passed_over():
    x, y = data(16)
    y["b"][:8] = -100  # without shuffling, the first batch holds task a alone
    model = network()
    model.heads["a"].requires_grad_(False)
    fit = trainer(model, schedule=pt.schedules.AlternateEpochs(shared=0, specific=1))
    before = weights(model.heads["b"])
    fit.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=1)
    assert not same(weights(model.heads["b"]), before)


class Norm(pt.Objective):
    """The squared norm of the trunk, through a module with statistics of its own."""

    def __init__(self) -> None:
        super().__init__("norm")
        self.inner = nn.BatchNorm1d(3)

    def forward(self, context: Any) -> torch.Tensor:
        self.inner(context.batch.inputs)
        return sum((p.square().sum() for p in context.model.trunk.parameters()), torch.zeros(()))


def test_an_objective_s_own_modules_rest_with_the_shared_block():
    objective = Norm()
    trainer(objectives=[objective], schedule=pt.schedules.AlternateEpochs(0, 1)).fit(data(), epochs=2)
    assert int(objective.inner.num_batches_tracked) == 0
    trainer(objectives=[objective]).fit(data(16), epochs=1)
    assert int(objective.inner.num_batches_tracked) > 0


def test_a_module_held_by_trunk_and_head_rests_with_the_trunk():
    norm = nn.BatchNorm1d(3)
    model = pt.models.HardSharing(
        nn.Sequential(norm, nn.Linear(3, 3)), {"a": nn.Sequential(norm, nn.Linear(3, 1)), "b": nn.Linear(3, 3)}
    )
    before = int(norm.num_batches_tracked)
    trainer(model, schedule=pt.schedules.AlternateEpochs(0, 1)).fit(data(), epochs=2)
    assert int(norm.num_batches_tracked) == before
