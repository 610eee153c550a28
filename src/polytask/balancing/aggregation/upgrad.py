"""UPGrad: the mean of the gradients, each freed of its conflicts."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from polytask.balancing.aggregation.preference import PreferenceAggregator
from polytask.balancing.base import Evidence
from polytask.balancing.solvers import dual_cone_weights


@final
class UPGrad(PreferenceAggregator):
    """Unconflicting projection of gradients: Σ_k p_k π(g_k).

    π projects onto the dual cone {d: ⟨g_j, d⟩ ≥ 0 for all j}: π(g_k) is the vector nearest to g_k that
    conflicts with no gradient. So the result conflicts with none, every task keeps a say in proportion to its
    gradient (the map is linear under a scaling of the gradients), and the order of tasks is immaterial.

    Paper: Quinton and Rey 2024, `arXiv:2406.16232 <https://arxiv.org/abs/2406.16232>`_. Their library adds 1e-4
    to the diagonal of the normalised Gramian before it solves the K quadratic programs, which moves the result
    (by its whole length where one gradient is 100 times longer than another); here the programs are solved as
    they stand (`polytask.balancing.solvers.dual_cone_weights`). For one task it is the plain gradient.

    Args:
        preference: p_k ≥ 0. ``"mean"`` (the paper's): 1 over the number of tasks present; ``"sum"``: 1; or
            {objective: p_k}, or one p_k per objective in their order.

    Raises:
        ValueError: another word; values that are negative, not finite, all 0, or do not fit the objectives.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> UPGrad().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.2924, 1.9006, 1.9006])
    """

    def combine(self, evidence: Evidence) -> Tensor:
        targets = torch.diag(self.preference(evidence))
        return dual_cone_weights(evidence.gramian, targets).sum(0)
