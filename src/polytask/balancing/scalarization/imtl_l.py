"""IMTL-L: impartial losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, Scalarizer
from polytask.balancing.keyed import FirstLook, Learned
from polytask.errors import at_least


@final
class IMTLL(Scalarizer):
    """Learned scales that bring all losses to one size: S = Σ_k (exp(s_k) L_k − s_k).

    At its minimum in s every scaled loss exp(s_k) L_k is 1, whatever the distribution behind the loss. The
    weights are ∂S/∂L_k = exp(s_k).

    Paper: Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang 2021, "Towards Impartial Multi-task Learning",
    `openreview.net/forum?id=IMPnRXEWpvr <https://openreview.net/forum?id=IMPnRXEWpvr>`_; its gradient half
    is `IMTLG`. The paper learns s with the network's optimizer; here s takes one Adam step on
    ∂S/∂s_k = exp(s_k) L_k − 1 after the weights were read, so that the network's weight decay and schedule
    never touch it. At a loss of 0 or below S has no minimum and s_k grows by `lr` a step: a first loss below
    0 is refused. A single objective gets the weight 1 and learns nothing.

    Args:
        lr: learning rate of s, at least 0.

    Raises:
        ValueError: a negative `lr`, an objective whose first loss is negative, or a resumed state of other
            objectives.

    >>> balancer = IMTLL(lr=0.1)
    >>> balancer.setup(["circle", "rhombus"])
    >>> evidence = Evidence(["circle", "rhombus"], [torch.tensor(3.0), torch.tensor(0.5)])
    >>> balancer.combine(evidence), balancer.combine(evidence)
    (tensor([1., 1.]), tensor([0.9048, 1.1052]))
    """

    keeps = "a learned log scale per task"

    def __init__(self, lr: float = 0.025) -> None:
        super().__init__()
        at_least("lr", lr, 0)
        self.lr = lr
        self._log_scales = Learned(lr)
        self._look = FirstLook("IMTLL", "0")

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        for name in names:
            self._log_scales.add(name, torch.tensor(0.0))
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        if len(self._log_scales) == 1:
            return torch.ones_like(losses)
        self._look(names, losses)
        weights = torch.exp(self._log_scales.stack(names, losses.device))
        self._log_scales.step(names, (weights * losses - 1).unbind())
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {"log_scales": self._log_scales.state(), "seen": list(self._look.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._log_scales.load(state["log_scales"])
        self._look.seen = list(state["seen"])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"lr": self.lr}
