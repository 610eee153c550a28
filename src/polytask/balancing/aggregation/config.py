"""ConFIG: one direction at equal angles, as long as the gradients agree with it."""

from __future__ import annotations

from typing import final

from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import inverse_gradient_weights


@final
class ConFIG(Aggregator):
    """Conflict-free inverse gradients: d = (Σ_k ⟨g_k, û⟩) û, û the unit vector of Ĵ⁺ 1.

    Ĵ has the unit gradients as rows, so û has the same, positive cosine with every gradient wherever one
    exists (always if they are linearly independent), and d is linear under a scaling of the gradients. With
    C = Ĵ Ĵᵀ and v = C⁺ 1, d = s Σ_k v_k ĝ_k, s = Σ_k ‖g_k‖ (C v)_k / vᵀ C v.

    Paper: Liu, Chu and Thuerey 2024, `arXiv:2408.11104 <https://arxiv.org/abs/2408.11104>`_. Their code takes the
    pseudo-inverse of the K × P matrix Ĵ; here only C, K × K, is needed, so directions that differ by less than
    1e-8 (float64; 1e-3 in float32) count as one. A gradient of zero takes no part; where all directions cancel
    d is zero. For one task it is the plain gradient.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> ConFIG().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.1588, 2.0706, 2.0706])
    """

    def combine(self, evidence: Evidence) -> Tensor:
        if len(evidence.names) == 1:
            return evidence.gramian.new_ones(1)
        return inverse_gradient_weights(evidence.gramian)
