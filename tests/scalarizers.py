"""What tests of scalarizers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
