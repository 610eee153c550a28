"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from polytask.balancing.aggregation.preference import Preference
from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.solvers import aligned_weights
from polytask.errors import one_of


@final
class AlignedMTL(Aggregator):
    """Independent component alignment: w = σ V Λ^(−1/2) Vᵀ p, with G = V Λ Vᵀ.

    The gradient matrix is replaced by the nearest one, up to a scale, whose principal components are equally
    long: Ĵ = σ V Λ^(−1/2) Vᵀ J. Its rows are orthogonal if the gradients are linearly independent, so no
    component dominates; then no two aligned gradients conflict.

    Paper: Senushkin, Patakin, Kuznetsov and Konushin 2023,
    `arXiv:2305.19000 <https://arxiv.org/abs/2305.19000>`_. Eigenvalues below rounding of the largest are left
    out, as in their code; if all are 0, w = p. For one task it is the plain gradient.

    Args:
        scale: σ², the common squared length. ``"min"`` (the paper's): the smallest eigenvalue kept, which
            guarantees descent; ``"median"``: the (lower) median; ``"rmse"``: the mean.
        preference: p_k ≥ 0. ``"mean"``: 1 over the number of tasks present; ``"sum"``: 1; or {objective: p_k},
            or one p_k per objective in their order.

    Raises:
        ValueError: another word; values that are negative, not finite, all 0, or do not fit the objectives.

    >>> import torch
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> AlignedMTL().combine(Evidence(["left", "right"], jacobian=jacobian)) @ jacobian
    tensor([0.2133, 0.9673, 0.9673])
    """

    def __init__(self, scale: str = "min", preference: str | Mapping[str, float] | Sequence[float] = "mean") -> None:
        super().__init__()
        one_of("scale", scale, ("min", "median", "rmse"))
        self.scale = scale
        self.preference = Preference(preference)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        self.preference.setup(names)
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        preference = self.preference(evidence)
        if len(evidence.names) == 1:
            return preference
        return aligned_weights(evidence.gramian, preference, self.scale)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"scale": self.scale, "preference": self.preference.describe()}
