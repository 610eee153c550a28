"""Dynamic weight average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.balancing.base import Evidence, Needs, Scalarizer
from polytask.balancing.keyed import same_objectives


@final
class DynamicWeightAverage(Scalarizer):
    """More weight to the losses that fall more slowly: S = Σ_k w_k L_k, w = K softmax(r / T).

    r_k = L_k(t−1) / L_k(t−2), the ratio of the mean training losses of the last two epochs in which the
    objective took part. K counts the objectives that have two such epochs, present or not; until it has, an
    objective gets 1, so the first two epochs are the plain sum, as in the paper, and so is a single task.

    Paper: Liu, Johns and Davison 2019, `arXiv:1803.10704 <https://arxiv.org/abs/1803.10704>`_. The means are
    those of the history (over examples), where the authors' code averages batches. The trainer tells them;
    a loop of one's own calls ``balancer.observe({"train/circle/loss": ..., ...})`` once an epoch, else every
    weight stays 1. A ratio is held within ±1e6 and is 1 where an epoch's loss was 0.

    Args:
        temperature: T > 0; large is near to the plain sum. The paper uses 2.

    Raises:
        ValueError: a temperature that is not above 0, or a resumed state of other objectives.

    >>> balancer = DynamicWeightAverage()
    >>> balancer.setup(["circle", "rhombus"])
    >>> for circle, rhombus in ((1.0, 1.0), (0.5, 0.9)):
    ...     balancer.observe({"train/circle/loss": circle, "train/rhombus/loss": rhombus})
    >>> [round(weight, 3) for weight in balancer.combine(Evidence(["circle", "rhombus"]))]
    [0.9, 1.1]
    """

    needs = Needs.NOTHING
    keeps = "each task's losses of the last two epochs"

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0 and finite, found {temperature}")
        self.temperature = temperature
        self._losses: dict[str, list[float]] = {}
        self._weights: dict[str, float] = {}

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        for name in names:
            self._losses.setdefault(name, [])
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> list[float]:
        return [self._weights.get(name, 1.0) for name in evidence.names]

    def observe(self, row: Mapping[str, Any]) -> None:
        for name, losses in self._losses.items():
            loss = row.get(f"train/{name}/loss")
            if loss is not None and math.isfinite(loss):
                self._losses[name] = [*losses, float(loss)][-2:]
        self._weights = self._weigh()

    def _weigh(self) -> dict[str, float]:
        rates = {name: _ratio(*losses) for name, losses in self._losses.items() if len(losses) == 2}
        largest = max(rates.values(), default=0.0)
        powers = {name: math.exp((rate - largest) / self.temperature) for name, rate in rates.items()}
        total = math.fsum(powers.values())
        return {name: len(powers) * power / total for name, power in powers.items()}

    def get_extra_state(self) -> dict[str, Any]:
        return {"losses": {name: list(losses) for name, losses in self._losses.items()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        same_objectives(state["losses"], self._losses)
        self._losses = {name: list(losses) for name, losses in state["losses"].items()}
        self._weights = self._weigh()

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"temperature": self.temperature}


def _ratio(before: float, last: float) -> float:
    return min(max(last / before, -1e6), 1e6) if before else 1.0
