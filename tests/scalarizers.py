"""What tests of scalarizers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.balancing import Evidence

NAMES = ["a", "b", "c"]
LOSSES = [0.3, 1.7, 4.0]


def evidence(losses: Sequence[float] = LOSSES, names: Sequence[str] = NAMES, **more: Any) -> Evidence:
    return Evidence(list(names), [torch.tensor(float(loss)) for loss in losses], **more)


def built(kind: type, *given: Any, names: Sequence[str] = NAMES, **options: Any) -> Any:
    balancer = kind(*given, **options)
    balancer.setup(list(names))
    return balancer


def gradient(scalar: Callable[[Tensor], Tensor], losses: Sequence[float] = LOSSES) -> Tensor:
    """∂S/∂L by autograd."""
    values = torch.tensor(losses, requires_grad=True)
    return torch.autograd.grad(scalar(values), values)[0]


def descend(
    balancer: Any,
    losses: Callable[[Tensor], Sequence[Tensor]],
    start: Sequence[float],
    optimizer: Callable[[list[Tensor]], Optimizer],
    steps: int = 1500,
) -> tuple[Tensor, Tensor]:
    """Where two losses, a and b, end by gradient descent with a rate that falls to nothing, and the last weights."""
    x = torch.tensor(start, requires_grad=True)
    moves = optimizer([x])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(moves, steps)
    for _ in range(steps):
        values = losses(x)
        weights = balancer.combine(evidence([value.item() for value in values], ["a", "b"]))
        moves.zero_grad()
        torch.stack([w * value for w, value in zip(weights, values, strict=True)]).sum().backward()
        moves.step()
        decay.step()
    return x.detach(), weights
