"""Experts and gates: what mixtures of experts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from polytask.errors import whole
from polytask.models.by_source import encode
from polytask.models.checks import check_apart, check_mapping, check_module, shown


def check_experts(name: str, groups: Mapping[str, Sequence[nn.Module]]) -> None:
    """Raises unless `groups`, of the argument `name`, are lists of modules that have no parameter in common."""
    for whose, experts in groups.items():
        where = f" for {whose}" if whose else ""
        if not isinstance(experts, (list, tuple, nn.ModuleList)):
            raise TypeError(f"`{name}` must hold lists of modules, found {shown(experts)}{where}")
        for expert in experts:
            if not isinstance(expert, nn.Module):
                raise TypeError(f"`{name}` must hold lists of modules, found a list with {expert!r}{where}")
    numbered = ((f"expert {number} {whose}".strip(), e) for whose, es in groups.items() for number, e in enumerate(es))
    check_apart(name, dict(numbered))


def check_encoder(encoder: object) -> None:
    """Raises `TypeError` unless `encoder` is a module or None."""
    if encoder is not None:
        check_module("encoder", encoder)


@final
class LinearGate(nn.Sequential):
    """The papers' gate, a matrix: inputs (B, ...) of `width` numbers each to logits (B, experts).

    Raises:
        ValueError: (when called) the inputs have another width.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(width, experts, bias=False))

    def forward(self, input: Tensor) -> Tensor:
        width, read = self[1].in_features, input.shape[1:].numel()
        if read != width:
            raise ValueError(f"`gates` must be how many numbers a gate reads, {read}, found {width}")
        return super().forward(input)


def gates_for(gates: int | Mapping[str, nn.Module], experts: Mapping[str, int]) -> nn.ModuleDict:
    """{task: gate over its `experts`}: linear ones that read `gates` numbers, or the given ones, checked.

    Raises:
        ValueError: a width below 1, or not a gate for every task and for nothing else, or one given to two tasks.
        TypeError: neither a whole number nor modules.
    """
    if not isinstance(gates, (Mapping, nn.ModuleDict)):
        if not isinstance(gates, int) or isinstance(gates, bool):
            raise TypeError(f"`gates` must be a width, a whole number, or map tasks to modules, found {shown(gates)}")
        whole("gates", gates, 1)
        return nn.ModuleDict({task: LinearGate(gates, count) for task, count in experts.items()})
    check_mapping("gates", gates)
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
