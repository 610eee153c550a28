"""Penalty-based boundary intersection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence
from polytask.balancing.keyed import number
from polytask.balancing.scalarization.preferred import PreferenceScalarizer

_TINY = 1e-12


@final
class PBI(PreferenceScalarizer):
    """Along a ray and towards it: S = d_1 + θ d_2, penalty-based boundary intersection.

    With l_k = L_k − z_k and a unit vector u, d_1 = lᵀu is how far the losses lie along the ray z + t u, and
    d_2 = ‖l − (lᵀu) u‖ how far away from it. For θ large enough the minimum is where the ray meets the front, a
    non-convex one too. The weights are ∂S/∂L = u + θ r / ‖r‖ with r = l − (lᵀu) u, and u alone on the ray.

    The ray is u_k ∝ 1 / k_k, on which all k_k (L_k − z_k) are equal, so that a preference k asks for the same point as
    under `Chebyshev`. A weight can be negative: an objective that is too good for its preference is given up for the
    others; a small θ avoids that and may miss the ray. S has a kink on the ray, so steps of constant size go to and
    fro across it: let the learning rate fall.

    Paper: Zhang and Li 2007, MOEA/D, `doi.org/10.1109/TEVC.2007.892759 <https://doi.org/10.1109/TEVC.2007.892759>`_.
    There d_1 = |lᵀu|, the same above the reference z; with its sign, losses below z go on falling instead of rising to
    it. There, too, the vector λ is the ray's direction itself, large for an objective that may be large; here a large
    k_k is, as in all scalarizers of this package, for one that must be small. Absent objectives are left out of both
    distances. With one objective the weight is 1.

    Args:
        preference: k_k at least 0, summing to 1: {objective: k_k} or in the objectives' order; 1/K if None. At 0 the
            ray is the axis of that objective.
        theta: θ at least 0, 5 in the paper. Two objectives whose front crosses the ray at an angle α to it need
            θ > cot α.
        reference: z_k, a bound below every loss, likewise; 0 if None.

    Raises:
        ValueError: a preference that is negative, does not sum to 1 or does not fit the objectives; a reference that
            is not finite or does not fit them; a `theta` that is negative or not finite.
        TypeError: a setting that is not a number, or not numbers.

    >>> balancer = PBI([0.5, 0.5], theta=0.5)
    >>> balancer.setup(["circle", "rhombus"])
    >>> balancer.combine(Evidence(["circle", "rhombus"], [torch.tensor(0.4), torch.tensor(0.6)]))
    tensor([0.3536, 1.0607])
    """

    def __init__(
        self,
        preference: Mapping[str, float] | Sequence[float] | None = None,
        theta: float = 5.0,
        reference: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        super().__init__(preference, reference)
        number("theta", theta)
        if not 0 <= theta < math.inf:
            raise ValueError(f"`theta` must be at least 0 and finite, found {theta}")
        self.theta = theta

    def factors(self, preference: dict[str, float]) -> dict[str, float]:
        """Slopes of the ray, 1 / k_k, the largest 1."""
        least = min((value for value in preference.values() if value > 0), default=1.0) * _TINY
        # scaled, as the inverse of the least would overflow in single precision
        slopes = {name: 1 / max(value, least) for name, value in preference.items()}
        largest = max(slopes.values(), default=1.0)
        return {name: value / largest for name, value in slopes.items()}

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        slopes = self._factors(names, losses)
        ray = slopes / torch.linalg.vector_norm(slopes)
        gaps = losses - self._reference(names, losses)
        along = gaps @ ray
        away = gaps - along * ray
        distance = torch.linalg.vector_norm(away)
        # below what the subtraction leaves of rounding, the losses are on the ray
        off = distance > 4 * torch.finfo(losses.dtype).eps * torch.linalg.vector_norm(gaps)
        return ray + self.theta * off * away / distance.clamp(min=torch.finfo(losses.dtype).tiny)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"theta": self.theta}
