"""IMTL-G: a direction with the same projection on every gradient."""

from __future__ import annotations

from typing import final

from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import equal_projection_weights


@final
class IMTLG(Aggregator):
    """Impartial multi-task learning, gradient part: d = Σ_k w_k g_k with Σ_k w_k = 1 and equal ⟨ĝ_k, d⟩.

    ĝ_k = g_k / ‖g_k‖. With C the Gramian of the ĝ_k, w_k ∝ (C⁻¹ 1)_k / ‖g_k‖; for two tasks d lies on the
    bisector. Weights may be negative. Nothing makes the common projection positive: for three tasks and more
    Σ_k (C⁻¹ 1)_k / ‖g_k‖ can be near 0, where d is long, or negative, where every loss rises. That is the
    paper's method; `ConFIG` has the same line and never the wrong sense.

    Paper: Liu et al. 2021, `Towards Impartial Multi-task Learning <https://openreview.net/forum?id=IMPnRXEWpvr>`_.
    Its closed form fails where gradients are linearly dependent; here C⁻¹ is then the pseudo-inverse of C. The
    extension of `arXiv:2406.16232 <https://arxiv.org/abs/2406.16232>`_ takes that of G, which for parallel
    gradients is not the limit of nearly parallel ones. A gradient of zero takes no part; where all directions
    cancel, all weights are 0. For one task it is the plain gradient.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> IMTLG().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.0767, 1.0000, 1.0000])
    """

    def combine(self, evidence: Evidence) -> Tensor:
        if len(evidence.names) == 1:
            return evidence.gramian.new_ones(1)
        return equal_projection_weights(evidence.gramian)
