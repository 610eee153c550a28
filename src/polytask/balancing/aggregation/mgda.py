"""MGDA: the steepest common descent direction."""

from __future__ import annotations

from typing import final

from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import min_norm_weights


@final
class MGDA(Aggregator):
    """Multiple-gradient descent: the shortest vector in the convex hull of the task gradients.

    min_w ‖Σ_k w_k g_k‖² over the simplex. The result has a non-negative inner product with every g_k: no
    task's loss rises to first order; it is zero exactly at a Pareto-stationary point.

    Papers: Désidéri 2012, `doi:10.1016/j.crma.2012.03.014 <https://doi.org/10.1016/j.crma.2012.03.014>`_;
    Sener and Koltun 2018, `arXiv:1810.04650 <https://arxiv.org/abs/1810.04650>`_. Their code and its
    descendants iterate Frank-Wolfe and stop early for three tasks and more; here the point is exact for any
    number of tasks (`polytask.balancing.solvers.min_norm_weights`). For one task it is the plain gradient.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> MGDA().combine(Evidence(["left", "right"], jacobian=jacobian))
    tensor([0.6000, 0.4000])
    """

    def combine(self, evidence: Evidence) -> Tensor:
        return min_norm_weights(evidence.gramian)
