"""What is not a module, a list or a mapping where one must be: every argument of every model says so by name."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import polytask as pt
from polytask import models as m


def linear(inputs: int = 8, outputs: int = 8) -> nn.Module:
    return nn.Linear(inputs, outputs)


def each(make: Callable[[], Any] = linear) -> dict[str, Any]:
    return {"a": make(), "b": make()}


def levels() -> list[list[nn.Module]]:
    return [[linear()], [linear()]]


WHOLE: dict[type, Callable[[], dict[str, Any]]] = {
    m.HardSharing: lambda: {"trunk": linear(), "heads": each()},
    m.SingleTask: lambda: {"trunk": linear(), "heads": each()},
    m.SoftSharing: lambda: {"trunk": linear(), "heads": each()},
    m.Grouped: lambda: {"trunk": linear(), "heads": each(), "groups": [["a"], ["b"]]},
    m.CrossStitch: lambda: {
        "stages": [linear(), linear()], "heads": each(), "after": [0], "channels": [8], "beta": 0.1
    },
    m.MMoE: lambda: {"experts": [linear()], "gates": 8, "heads": each(), "encoder": linear()},
    m.CGC: lambda: {
        "shared": [linear()], "specific": each(lambda: [linear()]), "gates": 8, "heads": each(), "encoder": linear()
    },
    m.PLE: lambda: {
        "shared": levels(), "specific": each(levels), "gates": [8, 8], "heads": each(), "encoder": linear()
    },
    m.MTAN: lambda: {"stages": [linear(), linear()], "attention": each(lambda: [linear()]), "heads": each()},
    m.Monitored: lambda: {"trunk": linear(), "monitors": each(), "heads": each(), "alpha": "learned"},
    m.SharedDecision: lambda: {"trunk": linear(), "heads": each(), "decision": linear(16, 4), "readouts": each()},
    m.Partitioned: lambda: {
        "module": nn.ModuleDict({"trunk": linear(), **each()}), "shared": "trunk", "specific": {"a": "a", "b": "b"},
        "tasks": ["a", "b"],
    },
    m.BySource: lambda: {"encoders": each(), "trunk": linear()},
    m.MLP: lambda: {"inputs": 2, "widths": [3], "outputs": 1, "dropout": 0.1, "activation": "relu", "init": "default"},
    m.TowerDistance: lambda: {"weight": 1.0, "parameters": []},
}  # fmt: skip
WRONG = [
    -1.5, -1, True, "x y", [-1], ["x y"], [[-1]], [1.5], ["a", 3], {"a": 3, "b": 3}, {"a": [3], "b": [3]},
    {3: linear(), 4: linear()}, {"a": linear(), "b": None}, [linear(), 3], object(),
]  # fmt: skip


RULES = {
    "groups": ["a group must be a list", "every task must be in one group"],
    "trunk": ["every group must have a trunk"],
    "specific": ["shared and specific experts must have as many levels"],
    "shared": ["prefix `x y` must match a parameter"],
}
"""Messages about an argument that do not give its name."""


def test_the_arguments_that_are_to_fit_do():
    for form, arguments in WHOLE.items():
        form(**arguments())


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, made in WHOLE.items() for name in made()])
def test_a_wrong_argument_is_named(form: type, name: str):
    wrong = [one for one in WRONG if not (name in ("tasks", "parameters") and one == ["x y"])]
    for value in wrong:
        with pytest.raises((TypeError, ValueError)) as caught:
            form(**(WHOLE[form]() | {name: value}))
        message = str(caught.value)
        assert f"`{name}" in message or any(rule in message for rule in RULES.get(name, ())), (value, message)
        assert "found" in message, (value, message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pt.models.PLE(levels(), each(levels), 10, each()), "`gates` must be a list of widths, one for each of 2 levels, found 10"),
        (lambda: pt.models.PLE([linear()], each(lambda: [[linear()]]), [8], each()), "`shared` must hold lists of modules, found Linear"),
        (lambda: pt.models.CGC([linear()], 3, 8, each()), "`specific` must map tasks to lists of modules, found 3"),
        (lambda: pt.models.MMoE([linear()], "8", each()), "`gates` must be a width, a whole number, or map tasks to modules, found '8'"),
        (lambda: pt.models.MMoE([linear()], 8, [linear()]), "`heads` must map tasks to modules, found list"),
        (lambda: pt.models.HardSharing(10, each()), "`trunk` must be a module, found 10"),
        (lambda: pt.models.SoftSharing(10, each()), "`trunk` must map tasks to modules, found 10"),
    ],
)  # fmt: skip
def test_messages(build: Callable[[], Any], message: str):
    with pytest.raises(TypeError) as caught:
        build()
    assert message in str(caught.value)


def test_mappings_and_lists_of_torch_are_taken_too():
    assert pt.models.HardSharing(linear(), nn.ModuleDict(each())).task_names == ("a", "b")
    assert pt.models.SingleTask(nn.ModuleDict(each()), each()).task_names == ("a", "b")
    assert len(pt.models.Grouped(nn.ModuleList([linear(), linear()]), each(), [["a"], ["b"]]).trunks) == 2
    assert pt.models.MMoE(nn.ModuleList([linear()]), nn.ModuleDict(each(lambda: linear(8, 1))), each()).task_names


@pytest.mark.parametrize("form", [pt.models.MMoE, pt.models.CGC, pt.models.PLE])
def test_gates_of_another_width_are_told(form: type):
    width: Any = [8, 7] if form is pt.models.PLE else 7
    model = form(**(WHOLE[form]() | {"gates": width}))
    with pytest.raises(ValueError, match="`gates` must be how many numbers a gate reads, 8, found 7"):
        model(torch.zeros(5, 8))
