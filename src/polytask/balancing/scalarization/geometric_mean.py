"""The geometric mean of losses."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from polytask.balancing.base import Evidence, Scalarizer
from polytask.balancing.keyed import FirstLook, some_objectives

_FLOOR = 1e-8


@final
class GeometricMean(Scalarizer):
    """S = (Π_k L_k)^(1/K): a relative gain in any loss counts the same, whatever the losses' scales.

    The weights are ∂S/∂L_k = S / (K L_k), over the K objectives that are present.

    Paper: Chennupati, Sistu, Yogamani and Rawashdeh 2019 (the geometric loss strategy, GLS),
    `arXiv:1904.08492 <https://arxiv.org/abs/1904.08492>`_. The paper says nothing of losses of 0; here a loss
    below 1e-8 counts as 1e-8, for one that reaches 0 would make its own weight infinite and those of all
    others 0. A first loss below 0 is refused: such a loss has no geometric mean. One objective gets the
    weight 1.

    Raises:
        ValueError: an objective whose first loss is negative, or a resumed state of other objectives.

    >>> import torch
    >>> GeometricMean().combine(Evidence(["circle", "rhombus"], [torch.tensor(1.0), torch.tensor(4.0)]))
    tensor([1.0000, 0.2500])
    """

    keeps = "which losses were checked"

    def __init__(self) -> None:
        super().__init__()
        self._look = FirstLook("GeometricMean", "0")

    def combine(self, evidence: Evidence) -> Tensor:
        self._look(evidence.names, evidence.losses)
        losses = evidence.losses.clamp(min=_FLOOR)
        logs = losses.log()
        return (logs.mean() - logs).exp() / len(losses)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": list(self._look.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        some_objectives(state["seen"], self.objectives)
        self._look.seen = list(state["seen"])
