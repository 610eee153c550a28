"""PCGrad: each gradient gives up what conflicts with the others."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from polytask.balancing.aggregation.orders import Orders
from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import surgery_weights


@final
class PCGrad(Aggregator):
    """Projecting conflicting gradients: Σ_k of each gradient after its conflicts with the others are projected out.

    A copy of g_i meets the other g_j one by one, in random order; if ⟨g_i', g_j⟩ < 0,
    g_i' ← g_i' − ⟨g_i', g_j⟩ / ‖g_j‖² g_j. For two tasks the result conflicts with none and equals `UPGrad`'s
    with ``preference="sum"``; for more, a later projection can bring an earlier conflict back.

    Paper: Yu et al. 2020, `arXiv:2001.06782 <https://arxiv.org/abs/2001.06782>`_. Here all copies are projected
    at once, as coefficients of the gradients (only G is needed), and orders come from a stream of their own,
    saved in checkpoints. As in the paper the copies are summed; the authors' code means or sums them. A gradient
    of zero conflicts with none. For one task it is the plain gradient.

    Args:
        seed: of the random orders, at least 0. Two tasks have one order only.

    Raises:
        ValueError: a negative seed.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> PCGrad().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.5848, 3.8012, 3.8012])
    """

    keeps = "a random stream"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self._orders = Orders(seed)

    def combine(self, evidence: Evidence) -> Tensor:
        gramian = evidence.gramian
        if len(evidence.names) == 1:
            return gramian.new_ones(1)
        return surgery_weights(gramian, self._orders(len(evidence.names), gramian.device))[0]

    def get_extra_state(self) -> dict[str, Any]:
        return {"orders": self._orders.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._orders.load(state["orders"])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"seed": self.seed}
