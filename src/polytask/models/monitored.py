"""MDMTN: a shared trunk, and a monitor of its own for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from polytask.models.base import Block, Blocks, Model
from polytask.models.checks import check_heads, check_module, check_same_tasks

FIXED = (0.75, 0.25)
"""Weights of trunk and monitor in the fixed variant of the paper's code."""


@final
class Monitored(Model):
    """Monitored deep multi-task network (MDMTN): what a task's head sees is trunk plus monitor.

    Paper: Hotegni, Berkemeier and Peitz, *Multi-Objective Optimization for Sparse Deep Multi-Task Learning*,
    `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    Task k's head reads z_k = α_k0 · trunk(x) + α_k1 · monitor_k(x). A monitor looks at the raw inputs, so it can keep
    what only its task needs while the trunk is made sparse.

    Learned α start from [1, 0]: the network starts as hard sharing, and at the first step a monitor has no
    gradient, only its α_k1 has. α_k, monitor_k and head k are task k's own parameters; `features` is the trunk's output
    alone, so caching and alternate training work as for `HardSharing`. In the reference code α is not among the
    module's parameters, so that nothing trains or saves it; here it is.

    Args:
        trunk: inputs (B, ...) to features (B, F).
        monitors: {task: module from the same inputs to (B, F)}, one for each head.
        heads: {task: module from (B, F) to outputs (B, C)}.
        alpha: ``learned``, or a fixed pair (trunk, monitor) for all tasks, such as `FIXED`, (0.75, 0.25).

    Raises:
        ValueError: there is no head, monitors and heads are not for the same tasks, `alpha` is neither, or (at the
            first call) a monitor's output has another shape than the trunk's.
        TypeError: the trunk, a monitor or a head is not a module.

    >>> import torch
    >>> model = Monitored(nn.Linear(2, 8), {"circle": nn.Linear(2, 8)}, {"circle": nn.Linear(8, 1)})
    >>> model(torch.zeros(5, 2))["circle"].shape, model.mixes["circle"].weights.tolist()
    (torch.Size([5, 1]), [1.0, 0.0])
    """

    heads_read_inputs = True

    def __init__(
        self,
        trunk: nn.Module,
        monitors: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        alpha: str | tuple[float, float] = "learned",
    ) -> None:
        super().__init__()
        check_module("trunk", trunk)
        check_heads(heads)
        check_same_tasks("monitors", monitors, heads)
        _check_alpha(alpha)
        self.trunk = trunk
        self.monitors = nn.ModuleDict({task: monitors[task] for task in heads})
        self.heads = nn.ModuleDict(heads)
        self.mixes = nn.ModuleDict({task: _Mix(alpha) for task in heads})
        self.task_names = tuple(heads)

    def features(self, inputs: Any, source: str = "") -> Any:
        return self.trunk(inputs)

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        own = self.monitors[task](inputs)
        if own.shape != features.shape:  # (B, 1) would be broadcast in silence
            raise ValueError(
                f"a monitor must give what the trunk gives, {tuple(features.shape)}, found {tuple(own.shape)} for task "
                f"`{task}`"
            )
        return self.mixes[task](features, own)

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](self.representation(task, features, inputs))

    def blocks(self) -> Blocks:
        own = {task: Block.of(self.monitors[task], self.mixes[task], self.heads[task]) for task in self.task_names}
        return Blocks(Block.of(self.trunk), own)


class _Mix(nn.Module):
    """α_0 · shared + α_1 · own, α a parameter from [1, 0] or a fixed buffer."""

    weights: Tensor

    def __init__(self, alpha: str | tuple[float, float]) -> None:
        super().__init__()
        if isinstance(alpha, str):
            self.weights = nn.Parameter(torch.tensor([1.0, 0.0]))
        else:
            self.register_buffer("weights", torch.tensor([float(value) for value in alpha]))

    def forward(self, shared: Tensor, own: Tensor) -> Tensor:
        return self.weights[0] * shared + self.weights[1] * own


def _check_alpha(alpha: Any) -> None:
    pair = isinstance(alpha, Sequence) and not isinstance(alpha, str) and len(alpha) == 2
    if alpha != "learned" and not (
        pair and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in alpha)
    ):
        raise ValueError(f"`alpha` must be 'learned' or a pair of finite numbers, found {alpha!r}")
