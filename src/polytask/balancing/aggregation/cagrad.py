"""CAGrad: near the mean gradient, as good as possible for the worst-off task."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import conflict_averse_weights


@final
class CAGrad(Aggregator):
    """Conflict-averse gradient descent: max_d min_k ⟨g_k, d⟩ subject to ‖d − g_0‖ ≤ c ‖g_0‖.

    g_0 is the mean of the task gradients. c = 0 is the mean itself; a large c approaches MGDA's direction.
    For c < 1 the method converges to a stationary point of the mean loss.

    Paper: Liu, Liu, Jin, Stone and Liu 2021, `arXiv:2110.14048 <https://arxiv.org/abs/2110.14048>`_. Their code
    approximates the inner problem (SLSQP, or 21 steps of gradient descent) and by default divides the result
    by 1 + c², which the paper's algorithm does not; here the problem is solved exactly
    (`polytask.balancing.solvers.conflict_averse_weights`) and nothing is divided. Where several d are best, the
    one nearest to g_0 is taken. For one task it is the plain gradient: its maximiser, (1 + c) g, would only
    change the learning rate.

    Args:
        c: radius of the ball relative to ‖g_0‖, at least 0; the paper tries 0.1 to 0.9.

    Raises:
        ValueError: `c` is negative or not finite.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> CAGrad(c=0.5).combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.1835, 1.2041, 1.2041])
    """

    def __init__(self, c: float = 0.5) -> None:
        super().__init__()
        if not 0 <= c < float("inf"):
            raise ValueError(f"`c` must be at least 0 and finite, found {c}")
        self.c = c

    def combine(self, evidence: Evidence) -> Tensor:
        if len(evidence.names) == 1:
            return evidence.gramian.new_ones(1)
        return conflict_averse_weights(evidence.gramian, self.c)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"c": self.c}
