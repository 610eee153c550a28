"""DualProj: the mean gradient, freed of its conflicts."""

from __future__ import annotations

from typing import final

from torch import Tensor

from polytask.balancing.aggregation.preference import PreferenceAggregator
from polytask.balancing.base import Evidence
from polytask.balancing.solvers import dual_cone_weights


@final
class DualProj(PreferenceAggregator):
    """Projection of the preferred combination Σ_k p_k g_k onto the gradients' dual cone.

    The nearest vector to it whose inner product with every g_k is at least 0, so no task's loss rises to
    first order. Unlike `UPGrad` it projects once: a task with a short gradient has no say before the
    projection.

    Paper: Lopez-Paz and Ranzato 2017 (gradient episodic memory, equation 11),
    `arXiv:1706.08840 <https://arxiv.org/abs/1706.08840>`_. Their code adds 1e-3 to the Gramian's diagonal and a
    margin of 0.5 to each constraint; here neither is added. For one task it is the plain gradient.

    Args:
        preference: p_k ≥ 0. ``"mean"``: 1 over the number of tasks present; ``"sum"``: 1; or {objective: p_k},
            or one p_k per objective in their order.

    Raises:
        ValueError: another word; values that are negative, not finite, all 0, or do not fit the objectives.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> DualProj().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.5556, 1.1111, 1.1111])
    """

    def combine(self, evidence: Evidence) -> Tensor:
        return dual_cone_weights(evidence.gramian, self.preference(evidence).unsqueeze(0)).squeeze(0)
