"""A trunk with an encoder for each source, and what a step leaves untouched of those that are absent from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.data.two_sources import both, network, part, tasks, trainer
from tests.helpers import block_state, same
from tests.parameters import covering
from torch import nn

import polytask as pt
from polytask.models import Block, BySource, HardSharing, SingleTask

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "momentum, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}
SCHEDULES = [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1), pt.schedules.AlternateBatches()]
BALANCERS: dict[str, Callable[[], Any]] = {
    "sum": pt.scalarization.Linear,
    "uncertainty": pt.scalarization.Uncertainty,
    "mgda": pt.aggregation.MGDA,
    "graddrop": pt.aggregation.GradDrop,
}


def by_source(model: nn.Module) -> list[BySource]:
    return [module for module in model.modules() if isinstance(module, BySource)]


def test_inputs_go_through_their_sources_encoder_and_then_the_trunk():
    left, right, trunk = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)
    model = BySource({"left": left, "right": right}, trunk)
    x = torch.randn(6, 5)
    assert torch.equal(model(x, "right"), trunk(right(x)))
    assert torch.equal(BySource({"left": left, "right": right})(x, "right"), right(x))


@pytest.mark.parametrize("form", [HardSharing, SingleTask])
def test_models_train_and_predict_with_it(form: type):
    run = trainer(form, optimizer=OPTIMIZERS["adam"])
    before = run.evaluate(both())
    run.fit(both(), both(seed=3), epochs=30)
    after = run.evaluate(both())
    assert all(after[f"{task}/loss"] < before[f"{task}/loss"] for task in "abc")
    inputs, targets = both()["right"]
    predicted = run.predict(inputs, "right")["b"]
    assert (predicted.labels == targets["b"]).float().mean().item() == pytest.approx(after["b/accuracy"])


def test_names_are_checked_at_the_door():
    x, y = part(8, 3, "ac")
    data = {"left": (x, y), "rihgt": part(8, 5, "b")}
    with pytest.raises(ValueError, match="found none for `rihgt`: did you mean `right`"):
        trainer().fit(data, epochs=1)
    with pytest.raises(ValueError, match="found none for `rihgt`"):
        trainer().evaluate(data)
    with pytest.raises(ValueError, match="found none for `rihgt`"):
        trainer().predict(x, "rihgt")
    with pytest.raises(ValueError, match="every encoder must have a source, found none for `right`"):
        trainer().fit({"left": part(8, 3, "abc")}, epochs=1)
    with pytest.raises(
        ValueError, match="must be told which one inputs come from, found none told: name one of `left`, `right`"
    ):
        network()(x)
    with pytest.raises(ValueError, match="at least one source, found none"):
        BySource({})


class AbsentUntouched(pt.Callback):
    """Fails if an update moves the head of a task, or the encoder of a source, that is not in its batches."""

    def on_fit_start(self, run: Any) -> None:
        self.before = self._look(run)
        self.absent = {"head": 0, "encoder": 0}
        self.moved: set[str] = set()

    def _look(self, run: Any) -> dict[str, Any]:
        found = {f"head {task}": Block.of(run.model.heads[task]) for task in run.model.task_names}
        for number, module in enumerate(by_source(run.model)):
            found |= {f"encoder {number} {name}": Block.of(each) for name, each in module.encoders.items()}
        return {name: block_state(block, run.optimizers.optimizers) for name, block in found.items()}

    def on_update(self, run: Any, info: Any) -> None:
        now, present = self._look(run), set(info.losses)
        here = {"left"} if present <= {"a", "c"} else {"right"}
        for name in now:
            kind, label = name.split()[0], name.split()[-1]
            if not same(now[name], self.before[name]):
                self.moved.add(name)
            elif label not in present | here:
                self.absent[kind] += 1
            if label not in present | here:
                assert same(now[name], self.before[name]), f"{name} moved in a step without it"
        self.before = now


CASES = [
    *covering([HardSharing], BALANCERS, SCHEDULES, OPTIMIZERS),
    *covering([SingleTask], ["sum"], [pt.schedules.Joint()], OPTIMIZERS),
]


@pytest.mark.parametrize(("form", "balancer", "schedule", "optimizer"), CASES)
def test_what_is_absent_from_a_step_is_untouched(form: type, balancer: str, schedule: Any, optimizer: str):
    """Parameters, optimizer state, batch statistics: to the bit."""
    watch = AbsentUntouched()
    run = trainer(
        form, mixture=pt.data.RoundRobin, schedule=schedule, balancer=BALANCERS[balancer](), callbacks=[watch],
        optimizer=OPTIMIZERS[optimizer],
    )  # fmt: skip
    history = run.fit(both(16, 16), both(10, 10), epochs=4)
    assert min(watch.absent.values()) > 10
    wanted = {f"head {task}" for task in "abc"}
    if form is HardSharing:  # a tower of its own has an encoder that no source with its task feeds
        wanted |= {"encoder 0 left", "encoder 0 right"}
    assert wanted <= watch.moved
    assert all(f"train/{task}/loss" in row for row in history for task in "abc")


def test_a_metric_is_that_of_the_steps_with_its_task():
    """Steps of another source add nothing to a task's figures."""
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "train_metrics": True}
    source = both(20, 12)

    def first_row(data: Any, given: list[pt.Task], model: Any) -> dict[str, Any]:
        options = {"mixture": lambda s: pt.data.RoundRobin(s, "all"), "batch_size": 4, "progress": False, **still}
        return pt.Trainer(model, given, **options).fit(data, epochs=1)[0]

    plain = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 3), "c": nn.Linear(4, 1)}
    encoders = {"left": nn.Linear(3, 4), "right": nn.Linear(5, 4)}
    every = HardSharing(BySource(encoders), plain)
    alone = HardSharing(BySource({"right": encoders["right"]}), {"b": plain["b"]})
    whole, only = first_row(source, tasks(), every), first_row({"right": source["right"]}, tasks()[1:2], alone)
    assert whole["train/b/accuracy"] == only["train/b/accuracy"]
    assert whole["train/b/loss"] == pytest.approx(only["train/b/loss"], rel=1e-6)


def test_a_teacher_without_boundary_tells_its_features_source_by_source():
    def apart(trunk: nn.Module, heads: Any) -> pt.models.Model:
        return pt.models.Grouped(trunk, heads, [["a"], ["b", "c"]])

    def soft(trunk: nn.Module, heads: Any) -> pt.models.Model:
        return pt.models.SoftSharing({task: copy.deepcopy(trunk) for task in heads}, heads)

    x = torch.randn(6, 5)
    for form in (SingleTask, apart, soft):
        teacher = network(form).eval()
        read = teacher.representation("b", None, x, "right")
        torch.testing.assert_close(teacher.heads["b"](read), teacher(x, ["b"], "right")["b"])
        term = pt.distillation.FeatureDistillation("b", teacher, nn.Linear(4, 4))
        before = term.adaptor.weight.detach().clone()
        trainer(objectives=[term]).fit(both(), epochs=2)
        assert torch.isfinite(term.adaptor.weight).all() and not torch.equal(term.adaptor.weight, before)
