"""MGDA: the steepest common descent direction."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence, Needs
from polytask.balancing.keyed import FirstLook, some_objectives
from polytask.balancing.solvers import min_norm_weights
from polytask.errors import one_of


@final
class MGDA(Aggregator):
    """Multiple-gradient descent: the shortest vector in the convex hull of the task gradients.

    min_w ‖Σ_k w_k g_k / s_k‖² over the simplex, s_k > 0 a normalisation. The result has a non-negative inner
    product with every g_k: no task's loss rises to first order; it is zero exactly at a Pareto-stationary
    point. A long gradient gets little weight, which the normalisations correct.

    Papers: Désidéri 2012, `doi:10.1016/j.crma.2012.03.014 <https://doi.org/10.1016/j.crma.2012.03.014>`_;
    Sener and Koltun 2018, `arXiv:1810.04650 <https://arxiv.org/abs/1810.04650>`_. Their code and its
    descendants iterate Frank-Wolfe and stop early for three tasks and more; here the point is exact for any
    number of tasks (`polytask.balancing.solvers.min_norm_weights`). With a normalisation, their code solves
    for w and then puts w on the gradients as they were, which need not be a common descent direction; here
    w_k / s_k, scaled to sum to 1, is put on them, which is one. For one task it is the plain gradient.

    Args:
        normalization: ``"none"``: s_k = 1. ``"l2"``: s_k = ‖g_k‖. ``"loss"``: s_k = L_k, the current loss.
            ``"loss+"``: s_k = L_k ‖g_k‖. A task whose s_k is 0 keeps its gradient as it is.

    Raises:
        ValueError: another word; a first loss that is negative where losses normalise, or a resumed state of
            other objectives there.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> MGDA().combine(Evidence(["left", "right"], jacobian=jacobian))
    tensor([0.6000, 0.4000])
    """

    def __init__(self, normalization: str = "none") -> None:
        super().__init__()
        one_of("normalization", normalization, ("none", "l2", "loss", "loss+"))
        self.normalization = normalization
        if normalization.startswith("loss"):
            self.needs = Needs.GRAMIAN | Needs.LOSSES
        self._first_look = FirstLook(f'MGDA(normalization="{normalization}")', "0")

    def combine(self, evidence: Evidence) -> Tensor:
        gramian = evidence.gramian
        if self.normalization == "none":
            return min_norm_weights(gramian)
        inverse = 1 / self._scales(evidence)
        weights = min_norm_weights(gramian.double() * inverse * inverse.unsqueeze(-1)) * inverse
        return (weights / weights.sum()).to(gramian)

    def _scales(self, evidence: Evidence) -> Tensor:
        scales = torch.ones(len(evidence.names), dtype=torch.float64, device=evidence.gramian.device)
        if self.normalization in ("l2", "loss+"):
            scales = scales * evidence.gramian.double().diagonal().clamp(min=0).sqrt()
        if self.normalization in ("loss", "loss+"):
            self._first_look(evidence.names, evidence.losses)
            scales = scales * evidence.losses.to(scales).abs()
        return torch.where(scales > 0, scales, 1.0)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": list(self._first_look.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        some_objectives(state["seen"], self.objectives)
        self._first_look.seen = list(state["seen"])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"normalization": self.normalization}
