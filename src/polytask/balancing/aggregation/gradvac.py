"""GradVac: gradients are pulled towards the similarity they usually have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.aggregation.orders import Orders
from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.keyed import same_objectives, to_device
from polytask.balancing.solvers import surgery_weights


@final
class GradVac(Aggregator):
    """Gradient vaccine: Σ_k of each gradient, turned towards the others until the cosine is the usual one.

    A copy of g_i meets the other g_j one by one, in random order. With φ their cosine and φ̂_ij its running
    average, if φ < φ̂_ij the multiple of g_j that brings the cosine to φ̂_ij is added to the copy:
    ‖g_i'‖ (φ̂ √(1−φ²) − φ √(1−φ̂²)) / (‖g_j‖ √(1−φ̂²)). Then φ̂_ij ← (1 − β) φ̂_ij + β φ. At the first
    step all φ̂ are 0: it is `PCGrad`'s.

    Paper: Wang, Tsvetkov, Firat and Cao 2021, `arXiv:2010.05874 <https://arxiv.org/abs/2010.05874>`_. Here all
    copies are turned at once, as coefficients of the gradients (only G is needed). √(1−φ̂²) is taken as at
    least 1e-4 where it divides: gradients that were always parallel would otherwise get infinite weight.
    Averages belong to pairs of objectives by name; those of absent ones rest. For one task it is the plain
    gradient.

    Args:
        beta: β from 0 to 1, the share of the newest cosine in its average; the paper's is 0.01.
        seed: of the random orders, at least 0. Two tasks have one order only.

    Raises:
        ValueError: `beta` outside 0 to 1, a negative seed, or a resumed state of other objectives.

    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> GradVac().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.5848, 3.8012, 3.8012])
    """

    keeps = "the usual cosine of each pair of tasks, and a random stream"

    def __init__(self, beta: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"`beta` must be from 0 to 1, found {beta}")
        self.beta = beta
        self.seed = seed
        self._orders = Orders(seed)
        self._names: list[str] = []
        self._usual = torch.zeros(0, 0, dtype=torch.float64)  # (names, names)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        self._know(names)
        super().setup(names, examples)

    def _know(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._names]
        if new:
            self._names += new
            self._usual = torch.nn.functional.pad(self._usual, (0, len(new), 0, len(new)))

    def combine(self, evidence: Evidence) -> Tensor:
        gramian, names = evidence.gramian, list(evidence.names)
        if len(names) == 1:
            return gramian.new_ones(1)
        self._know(names)
        place = gramian.device if gramian.device.type != "mps" else torch.device("cpu")
        self._usual = self._usual.to(place)
        orders = self._orders(len(names), place)
        if names == self._names:
            weights, self._usual = surgery_weights(gramian, orders, self._usual, self.beta)
            return weights
        rows = to_device(torch.tensor([self._names.index(name) for name in names]), place)
        pairs = (rows.unsqueeze(1), rows.unsqueeze(0))
        weights, usual = surgery_weights(gramian, orders, self._usual[pairs], self.beta)
        self._usual = self._usual.index_put(pairs, usual)
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {"orders": self._orders.state(), "names": list(self._names), "usual": self._usual.clone()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        same_objectives(state["names"], self._names)
        self._orders.load(state["orders"])
        self._names = list(state["names"])
        self._usual = state["usual"].clone()

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"beta": self.beta, "seed": self.seed}
