"""Cross-stitch: between single-task networks and hard sharing, by the units."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.helpers import adam, data, heads, same, sgd, trainer, weights
from tests.models.limits import close, fitted, fresh
from torch import nn

import polytask as pt
from polytask.models import CrossStitch, HardSharing, LeNet, SingleTask


def stages() -> list[nn.Module]:
    """No parameter's gradient is zero but for rounding, which Adam would make steps of: no bias that BatchNorm undoes."""
    middle = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh())
    return [nn.Sequential(nn.Linear(3, 6), nn.Tanh()), middle, nn.Linear(5, 6)]


def towers(names: str = "ab") -> dict[str, list[nn.Module]]:
    return {name: stages() for name in names}


def single(model: CrossStitch) -> SingleTask:
    """Single-task networks of the same weights."""
    parts = copy.deepcopy(model)
    return SingleTask({name: nn.Sequential(*tower) for name, tower in parts.towers.items()}, dict(parts.heads.items()))


@pytest.mark.parametrize("channels", [(), (6, 5, 6)], ids=["a matrix a unit", "a matrix a channel"])
@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["momentum", "adam"])
def test_identity_units_are_single_task_networks(optimizer: Any, channels: Any):
    model = CrossStitch(towers("abc"), heads("abc"), channels=channels, beta=0.0, learn=False)
    alone = single(model)
    fitted(model, alone, names="abc", optimizer=optimizer)
    close(model(fresh()), alone(fresh()))
    for part in ("towers", "heads"):
        close(list(weights(getattr(model, part)).values()), list(weights(getattr(alone, part)).values()))


def test_uniform_units_and_equal_towers_are_hard_sharing():
    """In training too: each tower is given 1/K of the trunk's gradient, so at K times its learning rate."""
    tops = heads("abc")
    model = CrossStitch(stages(), copy.deepcopy(tops), beta=2 / 3, learn=False)
    hard = HardSharing(copy.deepcopy(nn.Sequential(*model.towers["a"])), tops)
    close(model(data()[0]), hard(data()[0]))
    fitted(hard, names="abc", optimizer=sgd(0.05))
    fitted(model, names="abc", optimizer=sgd(0.05), groups={"shared": {"lr": 0.15}})
    for tower in model.towers.values():
        close(list(tower.state_dict().values()), list(hard.trunk.state_dict().values()))
    close(model.heads.parameters(), hard.heads.parameters())


@pytest.mark.parametrize("channels", [(), (6, 5)])
def test_a_unit_mixes_what_the_towers_have_computed(channels: Any):
    """Written out, with units after the first and the second stage that are no longer symmetric."""
    one, two = stages(), stages()
    model = CrossStitch({"a": one, "b": two}, heads(), after=[1, 0], channels=channels).eval()
    for unit in model.units.values():
        nn.init.normal_(unit.weights)
    x = data()[0]
    p = q = x
    for place in (0, 1):
        weight = model.units[str(place)].weights
        u, v = one[place](p), two[place](q)
        p = weight[0, 0] * u + weight[0, 1] * v
        q = weight[1, 0] * u + weight[1, 1] * v
    torch.testing.assert_close(model(x)["a"], model.heads["a"](one[2](p)))
    torch.testing.assert_close(model(x)["b"], model.heads["b"](two[2](q)))


@pytest.mark.parametrize("channels", [(), (10, 20, 50)])
def test_the_stages_of_an_encoder_make_towers(channels: Any):
    tops = {task: nn.Linear(50, 10) for task in ("left", "right")}
    model = CrossStitch(LeNet(staged=True), tops, channels=channels)
    found = {task: tuple(out.shape) for task, out in model(torch.rand(2, 1, 28, 28)).items()}
    assert found == {"left": (2, 10), "right": (2, 10)}
    assert [tuple(unit.weights.shape) for unit in model.units.values()] == (
        [(2, 2, count) for count in channels] if channels else [(2, 2)] * 3
    )


def test_units_start_as_told_and_learn_unless_told_not_to():
    for names, beta, rows in (
        ("ab", 0.1, [[0.9, 0.1], [0.1, 0.9]]), ("a", 0.4, [[1.0]]), ("abc", 0.5, [[0.5, 0.25, 0.25]] * 1),
    ):  # fmt: skip
        found = CrossStitch(towers(names), heads(names), beta=beta).units["0"].weights.tolist()
        for row, wanted in zip(found, rows, strict=False):
            assert row == pytest.approx(wanted)
    for learn in (True, False):
        model = CrossStitch(towers(), heads(), learn=learn)
        before = weights(model.units)
        trainer(model, optimizer=adam(), schedule=pt.schedules.AlternateBatches()).fit(data(), epochs=1)
        assert same(before, weights(model.units)) is not learn


def test_units_may_learn_faster():
    model = CrossStitch(towers(), heads())
    moved = []
    for factor in (1, 100):
        fresh = copy.deepcopy(model)
        trainer(fresh, optimizer=sgd(0.1), groups={"units": {"lr": 0.1 * factor}}).fit(data(8), epochs=1)
        moved.append(fresh.units["2"].weights - model.units["2"].weights)
    torch.testing.assert_close(moved[1], 100 * moved[0], rtol=1e-4, atol=1e-5)


def shared() -> CrossStitch:
    one = stages()
    return CrossStitch({"a": one, "b": one}, heads())


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: CrossStitch(stages(), {}), ValueError, "`heads` must name a module for at least one task, found none"),
        (lambda: CrossStitch(towers("a"), heads()), ValueError, "found ['a'] in `stages` and heads for ['a', 'b']"),
        (lambda: CrossStitch({"a": stages(), "b": stages()[:2]}, heads()), ValueError, "as many modules for each task, at least 1, found {'a': 3, 'b': 2}"),
        (lambda: CrossStitch([], heads()), ValueError, "at least 1, found {'a': 0, 'b': 0}"),
        (lambda: CrossStitch({"a": nn.Linear(3, 6), "b": stages()}, heads()), TypeError, "`stages` must hold lists of modules, found Linear"),
        (lambda: CrossStitch([nn.Linear(3, 6), 3], heads()), TypeError, "`stages` must hold lists of modules, found list"),
        (shared, ValueError, "found one parameter in the tower of task `a` and the tower of task `b`"),
        (lambda: CrossStitch(stages(), heads(), after=[3]), ValueError, "`after` must hold numbers of stages from 0 to 2, found 3"),
        (lambda: CrossStitch(stages(), heads(), after=[1, 1]), ValueError, "`after` must name each stage once, found [1, 1]"),
        (lambda: CrossStitch(stages(), heads(), channels=[6]), ValueError, "`channels` must hold a number for each of 3 units, found 1"),
        (lambda: CrossStitch(stages(), heads(), channels=[6, 0, 6]), ValueError, "`channels` must be at least 1, found 0"),
        (lambda: CrossStitch(stages(), heads(), beta=1.5), ValueError, "`beta` must be from 0 to 1, found 1.5"),
        (lambda: CrossStitch(stages(), heads(), channels=[4, 5, 6])(torch.zeros(4, 3)), ValueError, "found 4 for outputs of shape (4, 6)"),
        (lambda: CrossStitch({"a": [nn.Linear(3, 6)], "b": [nn.Linear(3, 1)]}, heads())(torch.zeros(4, 3)), ValueError,
         "must have one shape, found {'a': (4, 6), 'b': (4, 1)} after stage 0"),
    ],
)  # fmt: skip
def test_refusals(build: Any, kind: type[Exception], message: str):
    with pytest.raises(kind) as caught:
        build()
    assert message in str(caught.value)
