"""FairGrad: α-fair shares of the improvement."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import fair_weights


@final
class FairGrad(Aggregator):
    """Fair resource allocation: the d that maximises Σ_k ⟨g_k, d⟩^(1−α) / (1−α) in a ball, as (G w)_k = w_k^(−1/α).

    α → 0 is the plain sum, α = 1 proportional fairness (`NashMTL` without its clipping; the sum of logarithms),
    α → ∞ the best worst case. All ⟨g_k, d⟩ are positive: no task's loss rises to first order.

    Paper: Ban and Ji 2024, `arXiv:2402.15638 <https://arxiv.org/abs/2402.15638>`_. Their code minimises the
    equations' squared residual by SciPy's least squares from equal weights; here they are solved as the
    gradient of a convex function (`polytask.balancing.solvers.fair_weights`). Where zero is in the convex hull
    of the gradients the equations have no solution and all weights are 0; a gradient of zero takes no part.
    For one task it is the plain gradient.

    Args:
        alpha: α > 0; the paper uses 1 and 2. Solved in a few steps from about 0.2 to 10.

    Raises:
        ValueError: `alpha` is not above 0 or not finite.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> FairGrad(alpha=1.0).combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.0766, 0.9985, 0.9985])
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if not 0 < alpha < float("inf"):
            raise ValueError(f"`alpha` must be above 0 and finite, found {alpha}")
        self.alpha = alpha

    def combine(self, evidence: Evidence) -> Tensor:
        if len(evidence.names) == 1:
            return evidence.gramian.new_ones(1)
        return fair_weights(evidence.gramian, self.alpha)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"alpha": self.alpha}
