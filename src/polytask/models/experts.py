"""Experts and gates: what mixtures of experts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.errors import whole
from polytask.models.base import check_apart
from polytask.models.by_source import encode


def check_experts(name: str, groups: Mapping[str, Sequence[nn.Module]]) -> None:
    """Raises unless `groups`, of the argument `name`, are lists of modules that have no parameter in common."""
    for whose, experts in groups.items():
        where = f" for {whose}" if whose else ""
        if not isinstance(experts, (list, tuple, nn.ModuleList)):
            raise TypeError(f"`{name}` must hold lists of modules, found {type(experts).__name__}{where}")
        for expert in experts:
            if not isinstance(expert, nn.Module):
                raise TypeError(f"`{name}` must hold lists of modules, found a list with {expert!r}{where}")
    numbered = ((f"expert {number} {whose}".strip(), e) for whose, es in groups.items() for number, e in enumerate(es))
    check_apart(name, dict(numbered))


def linear_gate(width: int, experts: int) -> nn.Module:
    """The papers' gate, a matrix: inputs (B, ...) of `width` numbers each to logits (B, experts)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(width, experts, bias=False))


def gates_for(gates: int | Mapping[str, nn.Module], experts: Mapping[str, int]) -> nn.ModuleDict:
    """{task: gate over its `experts`}: linear ones that read `gates` numbers, or the given ones, checked.

    Raises:
        ValueError: a width below 1, or not a gate for every task and for nothing else, or one given to two tasks.
        TypeError: neither a whole number nor modules.
    """
    if not isinstance(gates, Mapping):
        whole("gates", gates, 1)
        return nn.ModuleDict({task: linear_gate(gates, count) for task, count in experts.items()})
    if set(gates) != set(experts):
        raise ValueError(f"every task must have a gate, found gates for {sorted(gates)} and tasks {sorted(experts)}")
    for task, gate in gates.items():
        if not isinstance(gate, nn.Module):
            raise TypeError(f"`gates` must map tasks to modules, found {type(gate).__name__} for task `{task}`")
    check_apart("gates", {f"that of task `{task}`": gate for task, gate in gates.items()})
    return nn.ModuleDict({task: gates[task] for task in experts})


def run_experts(experts: Any, inputs: Any, source: str = "") -> list[Tensor]:
    """What each of the experts, n modules, makes of a batch's inputs: n tensors (B, F)."""
    return [encode(expert, inputs, source) for expert in experts]


def stacked(outputs: Sequence[Tensor]) -> Tensor:
    """n experts' outputs (B, F) as one tensor (B, n, F)."""
    for output in outputs:
        if output.shape != outputs[0].shape:
            raise ValueError(
                f"experts that are mixed must give outputs of one shape, found {tuple(outputs[0].shape)} and "
                f"{tuple(output.shape)}"
            )
    return torch.stack(list(outputs), 1)


def mixed(logits: Tensor, outputs: Tensor, whose: str) -> Tensor:
    """Outputs (B, n, F) of n experts, averaged with the weights softmax(logits), logits (B, n): (B, F).

    Raises:
        ValueError: the logits are not as many as the experts, or not for each example; `whose` gate it was.
    """
    if logits.shape != outputs.shape[:2]:
        raise ValueError(
            f"a gate must give a logit for each example and expert, {tuple(outputs.shape[:2])}, found "
            f"{tuple(logits.shape)} from {whose}"
        )
    return torch.einsum("bn,bn...->b...", logits.softmax(1), outputs)
