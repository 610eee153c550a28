"""GradientCosines and Affinity: right by hand, and without a trace in the training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import NAN, Interrupter, SaveAll, adam, data, loader, network, same, sgd, tasks, trainer, weights
from tests.parameters import covering
from torch import Tensor, nn

import polytask as pt
from polytask.batch import Batch
from polytask.data.remembered import Remembered
from polytask.schedules.base import SHARED, Schedule, Update
from polytask.training.callbacks import Affinity, GradientCosines
from polytask.training.callbacks.pairwise import never_meet

LR = 0.3


class ByHand(pt.Callback):
    """The cosines and affinities of every step, on copies of the network, with torch's own optimizer.

    Stands before the callbacks under test, and puts the random state back.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self._weights = weights or {}

    def on_fit_start(self, run: Any) -> None:
        self.cosines: list[Tensor] = []
        self.affinities: list[Tensor] = []

    def on_step_start(self, run: Any, batches: Sequence[Batch]) -> None:
        names = list(run.trainer.tasks)
        begin = torch.random.get_rng_state()

        def losses(model: pt.models.Model) -> dict[str, Tensor]:
            torch.random.set_rng_state(begin)
            model.train()
            totals = dict.fromkeys(names, torch.zeros(()))
            for batch in batches:
                outputs = model(batch.inputs)
                for name in names:
                    count = batch.counts[name]
                    totals[name] = totals[name] + run.trainer.tasks[name].total(
                        outputs[name], batch.targets[name], count
                    )
            return {name: totals[name] / sum(batch.counts[name] for batch in batches) for name in names}

        before = losses(copy.deepcopy(run.model))
        gradients, rows = [], []
        for first in names:
            model = copy.deepcopy(run.model)
            optimizer = torch.optim.SGD(model.trunk.parameters(), lr=LR)
            (losses(model)[first] * self._weights.get(first, 1.0)).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.trunk.parameters()]))
            optimizer.step()
            after = losses(_with_buffers_of(run.model, model))
            rows.append(torch.stack([1 - after[name] / before[name] for name in names]).detach())
        similarity = torch.nn.functional.cosine_similarity
        self.cosines.append(torch.stack([torch.stack([similarity(a, b, dim=0) for b in gradients]) for a in gradients]))
        self.affinities.append(torch.stack(rows))
        torch.random.set_rng_state(begin)


def _with_buffers_of(one: nn.Module, other: nn.Module) -> Any:
    for buffer, value in zip(other.buffers(), one.buffers(), strict=True):
        buffer.copy_(value)
    return other


def _means(history: pt.History, epoch: int, kind: str, names: str) -> dict[str, float]:
    found = {column: value for column, value in history[epoch].items() if column.startswith(f"{kind}/")}
    assert len(found) == len(names) * (len(names) - 1) // (2 if kind == "cosine" else 1)
    return found


@pytest.mark.parametrize(("every", "kind", "accumulate"), covering([1, 2], ["plain", "norm+dropout"], [1, 2]))
def test_figures_are_those_of_copies_moved_by_hand(every: int, kind: str, accumulate: int):
    hand = ByHand()
    made = trainer(
        network(kind, "abc"), "abc", accumulate=accumulate, optimizer=sgd(LR),
        callbacks=[hand, GradientCosines(every), Affinity(every)],
    )  # fmt: skip
    made.fit(data(30, "abc"), epochs=2)
    steps = len(hand.cosines) // 2
    for epoch in (0, 1):
        looked = slice(epoch * steps, (epoch + 1) * steps, every)
        for found, kept in (("cosine", hand.cosines), ("affinity", hand.affinities)):
            expected = torch.stack(kept[looked]).double().mean(0)
            for column, value in _means(made.history, epoch, found, "abc").items():
                _, first, second = column.split("/")
                wanted = expected["abc".index(first), "abc".index(second)].item()
                assert value == pytest.approx(wanted, abs=2e-6), column


def test_the_step_is_of_the_weighted_loss_and_of_the_rate_that_is_next():
    hand = ByHand({"b": 3.0})
    weighted = [pt.binary("a"), pt.classification("b", 3, weight=3.0)]
    made = trainer(
        tasks=weighted, callbacks=[hand, Affinity(1)], optimizer=sgd(9.0), groups={"trunk": {"lr": 2 * LR}}, warmup=2
    )
    made.fit(data(8), epochs=1)
    assert made.history[0]["affinity/b/a"] == pytest.approx(hand.affinities[0][1, 0].item(), abs=1e-6)
    given = trainer(tasks=weighted, callbacks=[Affinity(1, lr=LR)], optimizer=adam())
    given.fit(data(8), epochs=1)
    assert given.history[0]["affinity/b/a"] == made.history[0]["affinity/b/a"]


SCHEDULES = {
    "joint": {},
    "sat": {"schedule": pt.schedules.AlternateBatches()},
    "ate": {"schedule": pt.schedules.AlternateEpochs(1, 1), "cache_features": True},
}
OPTIONS = {
    "plain": dict,
    "adam, accumulated": lambda: {"optimizer": adam(), "accumulate": 2, "clip_norm": 0.5},
    "mgda": lambda: {"balancer": pt.aggregation.MGDA()},
    "famo": lambda: {"balancer": pt.scalarization.FAMO(), "optimizer": sgd(momentum=0.9)},
}
SOURCES = {"arrays": lambda: data(24, missing=True), "loader": lambda: loader(missing=True)}


def _state(options: str, schedule: str, source: str, form: str, callbacks: list[pt.Callback]) -> dict[str, Any]:
    keeper = SaveAll()
    made = trainer(
        network("norm+dropout", form=form), callbacks=[*callbacks, keeper], **SCHEDULES[schedule], **OPTIONS[options]()
    )
    made.fit(SOURCES[source](), data(9, seed=1), epochs=3)
    rows = [{k: v for k, v in row.items() if k.split("/")[0] not in ("cosine", "affinity")} for row in made.history]
    left_out = ("callbacks", "fingerprint", "history")
    return {k: v for k, v in keeper.state.items() if k not in left_out} | {
        "rows": rows,
        "random": keeper.state["random"],
    }


SERVED = (("arrays", "hard"), ("loader", "hard"), ("arrays", "partitioned"))
WITHOUT_CACHE = [name for name in SCHEDULES if name != "ate"]


@pytest.mark.parametrize(
    ("options", "schedule", "served"),
    [*covering(OPTIONS, WITHOUT_CACHE, SERVED), *covering(OPTIONS, ["ate"], [("arrays", "hard")])],
)
def test_training_does_not_change_by_a_bit(options: str, schedule: str, served: tuple[str, str]):
    looks: list[pt.Callback] = [GradientCosines(2), Affinity(1)]
    assert same(_state(options, schedule, *served, looks), _state(options, schedule, *served, []))


def test_a_look_leaves_gradients_and_random_states_alone():
    seen = []

    class Look(pt.Callback):
        def on_step_start(self, run: Any, batches: Any) -> None:
            grads = [None if p.grad is None else p.grad.clone() for p in run.model.parameters()]
            seen.append((grads, weights(run.model), torch.random.get_rng_state()))

    trainer(network("norm+dropout"), callbacks=[Look(), Affinity(1), Look()]).fit(data(), epochs=1)
    assert len(seen) == 6
    assert all(same(before, after) for before, after in zip(seen[::2], seen[1::2], strict=True))


def test_a_pair_that_never_meets_has_no_figure():
    x, y = data(24, "abc")
    y["a"][:16] = NAN
    y["b"][8:] = -100
    made = trainer(network("norm", "abc"), "abc", callbacks=[GradientCosines(1), Affinity(1)])
    made.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=1)
    found = {column for column in made.history.columns if column.startswith(("cosine", "affinity"))}
    assert found == {
        "cosine/a/c", "cosine/b/c", "affinity/a/c", "affinity/c/a", "affinity/b/c", "affinity/c/b",
    }  # fmt: skip


def test_undefined_figures_do_not_enter_the_mean():
    """A regression that is met exactly has no gradient and no loss to divide by."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    head = nn.Linear(6, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = pt.models.HardSharing(nn.Linear(3, 6), {"c": head, "a": nn.Linear(6, 1)})
    made = trainer(model, tasks=tasks("ca"), callbacks=[GradientCosines(1), Affinity(1)], optimizer=sgd(0.1))
    made.fit((x, {"c": torch.zeros(8), "a": data(8)[1]["a"]}), epochs=1)
    assert made.history[0]["affinity/c/a"] == 0.0  # its step moves nothing
    assert math.isnan(made.history[0]["cosine/c/a"]) and math.isnan(made.history[0]["affinity/a/c"])


def _in_turns(left: str, right: str, sizes: tuple[int, int] = (32, 32)) -> pt.data.RoundRobin:
    parts = {}
    for seed, (source, names) in enumerate((("left", left), ("right", right))):
        x, y = data(sizes[seed], "abc", seed=seed)
        parts[source] = (x, {name: y[name] for name in names})
    return pt.data.RoundRobin(parts, batch_size=8)


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_sources_that_take_turns_are_all_looked_at(every: int):
    made = trainer(network("norm", "abc"), "abc", callbacks=[GradientCosines(every), Affinity(every)])
    history = made.fit(_in_turns("ac", "bc"), epochs=2)
    wanted = {"cosine/a/c", "cosine/b/c", "affinity/a/c", "affinity/c/a", "affinity/b/c", "affinity/c/b"}
    for row in history:
        assert {column for column in row if column.startswith(("cosine", "affinity"))} == wanted


@pytest.mark.parametrize("after", [1, 3, 5, 11])
def test_a_run_resumed_among_sources_looks_at_the_same_steps(after: int, tmp_path: Path):
    def run(after: int | None = None, resume: Path | None = None) -> tuple[pt.History, SaveAll]:
        keeper = SaveAll()
        callbacks = [GradientCosines(3), keeper, Interrupter(after)]
        made = trainer(network("norm+dropout", "abc"), "abc", callbacks=callbacks, folder=tmp_path)
        return made.fit(_in_turns("ac", "bc"), epochs=2, resume=resume), keeper

    whole, expected = run()
    with pytest.raises(pt.Interrupted) as interrupted:
        run(after)
    resumed, found = run(resume=interrupted.value.path)
    assert resumed == whole and same(found.state, expected.state)


def _halves() -> pt.Arrays:
    """Targets of a in the first two batches, of b in the others: that they never meet shows in training only."""
    x, y = data(32)
    y["a"][16:] = NAN
    y["b"][:16] = -100
    return pt.Arrays(x, y, batch_size=8, shuffle=False)


@pytest.mark.parametrize(("accumulate", "meet"), [(1, False), (3, True)])
def test_the_log_says_once_that_no_tasks_meet(accumulate: int, meet: bool, caplog: pytest.LogCaptureFixture):
    schedule = pt.schedules.AlternateEpochs(1, 1)
    made = trainer(schedule=schedule, callbacks=[GradientCosines(1)], accumulate=accumulate)
    for _ in range(2):
        caplog.clear()
        history = made.fit(_halves(), epochs=4)
        said = [r.message for r in caplog.records if "no step held targets of two tasks" in r.message]
        assert len(said) == (0 if meet else 1) and ("cosine/a/b" in history.columns) == meet
        assert all("use `Zip`, or `accumulate` at least the number of sources" in text for text in said)


@pytest.mark.parametrize(
    ("mixture", "brought", "accumulate", "apart"),
    [
        (pt.data.RoundRobin, ["a", "b", "c"], 1, ["ab", "ac", "bc"]),
        (pt.data.RoundRobin, ["a", "b", "c"], 2, []),  # a with b, c with a, b with c
        (pt.data.RoundRobin, ["a", "bc"], 1, ["ab", "ac"]),
        (pt.data.RoundRobin, ["a", "b", "a", "c"], 2, ["bc"]),  # the pairs of turns never change
        (pt.data.Zip, ["a", "b", "c"], 1, []),
        (pt.data.Proportional, ["a", "b", "c"], 1, ["ab", "ac", "bc"]),
        (pt.data.Proportional, ["a", "b", "c"], 2, []),
        (pt.data.Adaptive, ["a", "b", "c"], 1, ["ab", "ac", "bc"]),
        (pt.data.Adaptive, ["a", "b", "c"], 2, []),  # not known, as rates move
    ],
)
def test_tasks_that_never_meet_are_known_beforehand(mixture: Any, brought: list[str], accumulate: int, apart: Any):
    x, y = data(32, "abc")
    parts = {f"s{i}": (x, {name: y[name] for name in names}) for i, names in enumerate(brought)}
    source = mixture(parts, batch_size=8)
    source.bind({task.name: task for task in tasks("abc")}, torch.device("cpu"), "train")
    assert never_meet(source, list("abc"), accumulate, 3) == [tuple(pair) for pair in apart]
    wrapped = Remembered(source, "key", lambda batch: None, 0)
    assert never_meet(wrapped, list("abc"), accumulate, 3) == [tuple(pair) for pair in apart]
    served = {
        frozenset(name for batch in batches for name, count in batch.counts.items() if count)
        for epoch in range(3)
        for batches in _accumulated(source.steps(epoch), accumulate)
    }
    for one, other in apart:  # nor do they, in fact
        assert not any({one, other} <= names for names in served)
    if mixture is not pt.data.Adaptive:
        met = [pair for pair in combinations("abc", 2) if any(set(pair) <= names for names in served)]
        assert sorted([*met, *map(tuple, apart)]) == [("a", "b"), ("a", "c"), ("b", "c")]


def _accumulated(steps: Any, count: int) -> Any:
    while joined := [batch for batches in islice(steps, count) for batch in batches]:
        yield joined


def test_nothing_is_known_of_what_one_source_or_a_stream_brings():
    for source in (_halves(), pt.data.Loader(loader())):
        source.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
        assert never_meet(source, ["a", "b"], 1, 1) == []


@pytest.mark.parametrize("kind", [GradientCosines, Affinity])
def test_a_fit_in_which_no_tasks_can_meet_is_refused(kind: Any):
    made = trainer(callbacks=[kind()])
    with pytest.raises(
        ValueError, match=f"{kind.__name__} must have steps with targets of two tasks, and no step .*Zip"
    ):
        made.fit(_in_turns("a", "b"), epochs=1)
    assert not len(made.history)


def test_epochs_in_which_the_shared_block_rests_have_no_figures():
    made = trainer(schedule=pt.schedules.AlternateEpochs(1, 1), callbacks=[GradientCosines(1), Affinity(1)])
    made.fit(data(), epochs=4)
    assert [("cosine/a/b" in row, "affinity/b/a" in row) for row in made.history] == [(True, True), (False, False)] * 2


def test_a_schedule_sees_the_figures():
    seen: list[Any] = []

    class Follows(Schedule):
        def phase(self, epoch: int) -> str:
            return "joint"

        def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
            return (SHARED,)

        def observe(self, row: Any) -> None:
            seen.append(row["cosine/a/b"])

    made = trainer(schedule=Follows(), callbacks=[GradientCosines(1)])
    made.fit(data(), epochs=2)
    assert seen == made.history.column("cosine/a/b")


@pytest.mark.parametrize("after", [1, 4, 5])
def test_a_resumed_run_has_the_same_figures(after: int, tmp_path: Path):
    def run(after: int | None = None, resume: Path | None = None) -> tuple[pt.History, SaveAll]:
        keeper = SaveAll()
        callbacks = [GradientCosines(2), Affinity(1), keeper, Interrupter(after)]
        made = trainer(network("norm+dropout"), callbacks=callbacks, folder=tmp_path)
        return made.fit(data(), epochs=3, resume=resume), keeper

    whole, expected = run()
    with pytest.raises(pt.Interrupted) as interrupted:
        run(after)
    resumed, found = run(resume=interrupted.value.path)
    assert resumed == whole and same(found.state, expected.state)


def opposing() -> tuple[pt.models.Model, list[pt.Task], Any]:
    """One number of the trunk is what all three heads read as it is; c's targets are the others' negated."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=random)
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    heads = {name: nn.Linear(1, 1) for name in "abc"}
    for head in heads.values():
        nn.init.ones_(head.weight)
        nn.init.zeros_(head.bias)
        head.requires_grad_(False)
    trunk = nn.Linear(3, 1)
    nn.init.zeros_(trunk.weight)
    model = pt.models.HardSharing(trunk, heads)
    targets = {"a": y, "b": y + 0.1 * torch.randn(64, generator=random), "c": -y}
    return model, [pt.regression(name) for name in "abc"], (x, targets)


def test_agreeing_and_opposing_tasks_have_the_signs_they_must():
    model, three, points = opposing()
    made = pt.Trainer(
        model, three, optimizer=sgd(0.01), batch_size=16, progress=False, callbacks=[GradientCosines(1), Affinity(1)]
    )
    row = made.fit(points, epochs=1)[0]
    assert row["cosine/a/b"] > 0.9 and row["cosine/a/c"] < -0.9 and row["cosine/b/c"] < -0.9
    for first, second in ("ab", "ba"):
        assert row[f"affinity/{first}/{second}"] > 0
        assert row[f"affinity/{first}/c"] < 0 and row[f"affinity/c/{first}"] < 0


@pytest.mark.parametrize("kind", [GradientCosines, Affinity])
def test_refusals(kind: Any):
    name = kind.__name__
    with pytest.raises(ValueError, match=f"{name} must have a shared block .* found none in SingleTask"):
        trainer(network(form="single"), callbacks=[kind()]).fit(data(), epochs=1)
    with pytest.raises(ValueError, match=f"{name} must have at least two tasks to compare, found 1: `a`"):
        trainer(network(names="a"), "a", callbacks=[kind()]).fit(data(names="a"), epochs=1)
    frozen = network()
    frozen.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match="with parameters to train, found none in HardSharing"):
        trainer(frozen, callbacks=[kind()]).fit(data(), epochs=1)
    with pytest.raises(ValueError, match="`every` must be at least 1, found 0"):
        kind(every=0)
    for lr in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"`lr` must be above 0 and finite, found {lr}"):
            Affinity(lr=lr)
