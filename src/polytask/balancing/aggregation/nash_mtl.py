"""Nash-MTL: the update as a bargain between the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.keyed import some_objectives
from polytask.balancing.solvers import fair_weights
from polytask.errors import whole


@final
class NashMTL(Aggregator):
    """The Nash bargaining solution: d = Σ_k w_k g_k with (G w)_k = 1 / w_k, w > 0.

    d maximises Σ_k log ⟨g_k, d⟩ in a ball: no task's loss rises to first order, and ‖d‖ = √K whatever the
    gradients' lengths, until it is clipped. For two tasks w_k = 1 / (‖g_k‖ √(1 + c)), c their cosine.

    Paper: Navon et al. 2022, `arXiv:2202.01017 <https://arxiv.org/abs/2202.01017>`_. Their code approximates the
    solution by up to 20 convex programs from the previous weights, and so depends on the past and misses it at
    times; here it is solved each time (`polytask.balancing.solvers.fair_weights`). Where zero is in the convex
    hull of the gradients there is none and all weights are 0; a gradient of zero takes no part. For one task it
    is the plain gradient.

    Args:
        update_every: at least 1: weights are solved for at every so many steps and used again in between
            (clipped anew), as long as the same tasks are present.
        max_norm: the most that ‖d‖ may be, above 0, as in the authors' code: 1, at which every step is clipped
            to the same length. None: no clipping.

    Raises:
        ValueError: `update_every` below 1; `max_norm` not above 0; a resumed state of other objectives.
        TypeError: `update_every` is not a whole number.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> NashMTL().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.0542, 0.7061, 0.7061])
    """

    keeps = "the last weights, where update_every is above 1"

    def __init__(self, update_every: int = 1, max_norm: float | None = 1.0) -> None:
        super().__init__()
        whole("update_every", update_every, 1)
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"`max_norm` must be above 0 or None, found {max_norm}")
        self.update_every = update_every
        self.max_norm = max_norm
        self._age = 0
        self._names: list[str] = []
        self._weights: Tensor | None = None

    def combine(self, evidence: Evidence) -> Tensor:
        gramian = evidence.gramian
        if len(evidence.names) == 1:
            return gramian.new_ones(1)
        weights = self._current(evidence.names, gramian)
        if self.max_norm is None:
            return weights
        square = weights.double() @ gramian.double() @ weights.double()
        return (weights * (self.max_norm / square.clamp(min=self.max_norm**2).sqrt())).to(gramian)

    def _current(self, names: Sequence[str], gramian: Tensor) -> Tensor:
        if self._weights is None or self._age >= self.update_every or sorted(names) != sorted(self._names):
            self._weights, self._names, self._age = fair_weights(gramian), list(names), 0
        self._age += 1
        if self._names == list(names):
            return self._weights.to(gramian)
        weights = self._weights.to(gramian).unbind()  # a list of positions would be copied to the device
        return torch.stack([weights[self._names.index(name)] for name in names])

    def get_extra_state(self) -> dict[str, Any]:
        if self.update_every == 1 or self._weights is None:
            return {}
        return {"age": self._age, "names": list(self._names), "weights": self._weights.clone()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        names = list(state.get("names", []))
        some_objectives(names, self.objectives)
        self._age, self._names = state.get("age", 0), names
        self._weights = state["weights"].clone() if "weights" in state else None

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"update_every": self.update_every, "max_norm": self.max_norm}
