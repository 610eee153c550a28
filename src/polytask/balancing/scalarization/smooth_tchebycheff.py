"""Smooth Tchebycheff scalarization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence
from polytask.balancing.keyed import number
from polytask.balancing.scalarization.preferred import PreferenceScalarizer


@final
class SmoothTchebycheff(PreferenceScalarizer):
    """A smooth worst case: S = μ log Σ_k exp(λ_k (L_k − z_k) / μ).

    As μ → 0, S tends to max_k λ_k (L_k − z_k), whose minima over all λ are all Pareto optima, on non-convex
    fronts too; as μ → ∞, ∂S tends to the mean of the λ_k ∂L_k. The weights are
    ∂S/∂L_k = λ_k softmax_k(λ (L − z) / μ). Absent objectives are left out of the sum.

    Paper: Lin, Zhang, Yang, Liu, Wang and Zhang 2024, `arXiv:2402.19078 <https://arxiv.org/abs/2402.19078>`_.
    Their code keeps an estimate of the ideal point in some experiments; here z is given. With one objective
    λ is 1 and so is its weight.

    Args:
        preference: λ_k at least 0, summing to 1: {objective: λ_k} or in the objectives' order; 1/K if None.
        mu: μ > 0, in the units of λ_k L_k; the paper tries 0.01 to 1.
        reference: z_k, a bound below every loss; 0 if None.

    Raises:
        ValueError: a preference that is negative, does not sum to 1 or does not fit the objectives; a
            reference that is not finite or does not fit them; a `mu` that is not above 0.
        TypeError: a setting that is not a number, or not numbers.

    >>> balancer = SmoothTchebycheff([0.5, 0.5], mu=0.1)
    >>> balancer.setup(["circle", "rhombus"])
    >>> balancer.combine(Evidence(["circle", "rhombus"], [torch.tensor(0.4), torch.tensor(0.6)]))
    tensor([0.1345, 0.3655])
    """

    def __init__(
        self,
        preference: Mapping[str, float] | Sequence[float] | None = None,
        mu: float = 0.1,
        reference: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        super().__init__(preference, reference)
        number("mu", mu)
        if not 0 < mu < math.inf:
            raise ValueError(f"`mu` must be above 0 and finite, found {mu}")
        self.mu = mu

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        preference = self._factors(names, losses)
        gaps = preference * (losses - self._reference(names, losses))
        return preference * torch.softmax(gaps / self.mu, 0)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mu": self.mu}
