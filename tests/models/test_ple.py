"""CGC and PLE: which experts are whose, and what they become at their limits."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.helpers import adam, data, heads, sgd, trainer, trunk
from tests.models.limits import close, expert, fitted, fresh
from torch import nn

import polytask as pt
from polytask.models import CGC, PLE, BySource, HardSharing, MMoE, SingleTask

OPTIMIZERS = pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["momentum", "adam"])
SCHEDULES = pytest.mark.parametrize(
    "schedule", [pt.schedules.Joint(), pt.schedules.AlternateEpochs(1, 1)], ids=["joint", "ate"]
)


def experts(count: int, inputs: int = 3) -> list[nn.Module]:
    return [expert(inputs) for _ in range(count)]


def ple(shared: tuple[int, ...] = (1, 2, 1), own: tuple[int, ...] = (2, 1, 1), names: str = "ab", **more: Any) -> PLE:
    """So many shared experts, and so many own ones of each task, level by level."""
    widths = [6 if more else 3] + [6] * (len(shared) - 1)

    def levels(counts: tuple[int, ...]) -> list[list[nn.Module]]:
        return [experts(count, width) for count, width in zip(counts, widths, strict=True)]

    return PLE(levels(shared), {name: levels(own) for name in names}, widths, heads(names), **more)


@OPTIMIZERS
@SCHEDULES
def test_without_own_experts_it_is_mmoe(schedule: Any, optimizer: Any):
    model = CGC(experts(3), {name: [] for name in "ab"}, gates=3, heads=heads())
    level = copy.deepcopy(model.levels[0])
    mmoe = MMoE(list(level.shared), dict(level.gates.items()), copy.deepcopy(dict(model.heads.items())))
    fitted(model, mmoe, optimizer=optimizer, schedule=schedule)
    close(model(fresh()), mmoe(fresh()))
    close(model.levels[0].shared.parameters(), mmoe.experts.parameters())
    close(model.levels[0].gates.parameters(), mmoe.gates.parameters())


@OPTIMIZERS
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_with_an_own_expert_each_and_none_shared_it_is_single_task_networks(levels: int, optimizer: Any):
    model = ple((0,) * levels, (1,) * levels)
    parts = copy.deepcopy(model)
    towers = {name: nn.Sequential(*(level.own[name][0] for level in parts.levels)) for name in "ab"}
    alone = SingleTask(towers, dict(parts.heads.items()))
    assert not model.blocks().shared.parameters
    fitted(model, alone, optimizer=optimizer)
    close(model(fresh()), alone(fresh()))
    for name in "ab":
        found = [p for level in model.levels for p in level.own[name].parameters()]
        close(found, alone.towers[name].parameters())


def test_with_shared_experts_alone_and_one_a_level_it_is_hard_sharing():
    """The shared gates, over one expert, do nothing either."""
    model = ple((1, 1, 1), (0, 0, 0))
    parts = copy.deepcopy(model)
    hard = HardSharing(nn.Sequential(*(level.shared[0] for level in parts.levels)), dict(parts.heads.items()))
    fitted(model, hard, optimizer=adam())
    close(model(fresh()), hard(fresh()))


@OPTIMIZERS
@SCHEDULES
def test_one_level_is_cgc(schedule: Any, optimizer: Any):
    model = ple((2,), (1,))
    level = copy.deepcopy(model.levels[0])
    own = {name: list(level.own[name]) for name in "ab"}
    cgc = CGC(list(level.shared), own, dict(level.gates.items()), copy.deepcopy(dict(model.heads.items())))
    fitted(model, cgc, optimizer=optimizer, schedule=schedule)
    close(model.state_dict(), cgc.state_dict())


@pytest.mark.parametrize("encoder", [None, trunk()], ids=["raw inputs", "an encoder"])
def test_three_levels_written_out(encoder: Any):
    model = ple(encoder=encoder) if encoder else ple()
    model.eval()
    x = data()[0]
    e = encoder(x) if encoder else x
    reads, common = {"a": e, "b": e}, e

    def average(gate: Any, read: Any, outputs: list[Any]) -> torch.Tensor:
        shares = (read @ gate[1].weight.T).softmax(1)
        return sum(shares[:, i, None] * output for i, output in enumerate(outputs))

    for level in model.levels:
        shared = [each(common) for each in level.shared]
        own = {name: [each(reads[name]) for each in level.own[name]] for name in "ab"}
        if level.gate is not None:
            common = average(level.gate, common, [*own["a"], *own["b"], *shared])
        reads = {name: average(level.gates[name], reads[name], [*own[name], *shared]) for name in "ab"}
    assert [level.gate is None for level in model.levels] == [False, False, True]
    for task, out in model(x).items():
        torch.testing.assert_close(out, model.heads[task](reads[task]))
        torch.testing.assert_close(model.representation(task, model.features(x), x), reads[task])


def own_names(model: PLE | CGC, task: str) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {".".join(names[id(p)].split(".")[:3]) for p in model.blocks().specific[task].parameters}


def test_only_the_last_level_s_experts_and_gates_are_a_task_s_own():
    assert own_names(ple(), "a") == {"levels.2.own", "levels.2.gates", "heads.a.0", "heads.a.2"}
    assert own_names(ple((2,), (1,)), "a") == {"levels.0.own", "levels.0.gates", "heads.a.0", "heads.a.2"}
    # above the last shared expert nothing is shared, and there is no gate for it
    model = ple((1, 1, 0), (1, 1, 1))
    assert [level.gate is None for level in model.levels] == [False, True, True]
    assert {"levels.1.own", "levels.2.own"} <= own_names(model, "b")


@pytest.mark.parametrize("schedule", [pt.schedules.AlternateBatches(), pt.schedules.AlternateEpochs(1, 1)])
def test_training_works_where_all_levels_are_of_another_kind(schedule: Any):
    for shared in ((1, 1, 0), (0, 1, 0), (1, 0, 0)):
        trainer(ple(shared, (1, 1, 1)), schedule=schedule).fit(data(), data(8, seed=1), epochs=2)


def test_sources_of_several_kinds_share_levels_behind_their_encoders():
    model = ple(encoder=BySource({"wide": nn.Linear(9, 6), "narrow": nn.Linear(2, 6)}))
    assert model(torch.zeros(4, 9), ["a"], "wide")["a"].shape == (4, 1)
    assert model(torch.zeros(4, 2), ["b"], "narrow")["b"].shape == (4, 3)


def twice() -> CGC:
    one = expert()
    return CGC([one], {"a": [one], "b": [expert()]}, 3, heads())


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: CGC(experts(1), {}, 3, {}), ValueError, "`heads` must name a module for at least one task, found none"),
        (lambda: CGC(experts(1), {"a": experts(1)}, 3, heads()), ValueError, "found ['a'] in `specific` and heads for ['a', 'b']"),
        (lambda: CGC([], {"a": experts(1), "b": []}, 3, heads()), ValueError, "every task must have an expert on every level, found none for `b` on 0"),
        (lambda: CGC(experts(1), {"a": [3], "b": []}, 3, heads()), TypeError, "`specific` must hold lists of modules, found a list with 3 for of task `a` on level 0"),
        (lambda: CGC(expert(), {"a": [], "b": []}, 3, heads()), TypeError, "`shared` must hold lists of modules, found Sequential"),
        (twice, ValueError, "found one parameter in shared on level 0 and of task `a` on level 0"),
        (lambda: CGC(experts(1), {"a": [], "b": []}, 0, heads()), ValueError, "`gates` must be at least 1, found 0"),
        (lambda: PLE([], {"a": [], "b": []}, [], heads()), ValueError, "as many levels, at least 1, found {'`shared`': 0, 'task `a`': 0, 'task `b`': 0}"),
        (lambda: PLE([experts(1)], {"a": [[]], "b": [[], []]}, [3], heads()), ValueError, "as many levels, at least 1, found {'`shared`': 1, 'task `a`': 1, 'task `b`': 2}"),
        (lambda: PLE([experts(1)], {"a": [[]], "b": [[]]}, [3, 6], heads()), ValueError, "`gates` must hold a width for each of 1 levels, found 2"),
        (lambda: PLE([experts(1)], {"a": [[]], "b": [[]]}, [2.5], heads()), TypeError, "`gates` must be a whole number, found 2.5"),
        (lambda: CGC(experts(1), {"a": [expert(3, 5)], "b": []}, 3, heads())(torch.zeros(4, 3)), ValueError, "outputs of one shape, found (4, 5) and (4, 6)"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
