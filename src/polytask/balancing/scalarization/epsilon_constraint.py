"""One objective under bounds on the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, Scalarizer
from polytask.balancing.keyed import Constants, in_range, known, number, some_objectives


@final
class EpsilonConstraint(Scalarizer):
    """One objective as low as the bounds on the others allow: min_θ L_p subject to L_i ≤ ε_i.

    Every Pareto optimum, on non-convex fronts too, is a minimum for some bounds. They are kept by an augmented
    Lagrangian, L_p + (1/2μ) Σ_i [max(0, λ_i + μ (L_i − ε_i))² − λ_i²]: the objective p weighs 1, the others

        v_i = max(0, λ_i + μ (L_i − ε_i)),

    and the multipliers follow by λ_i ← max(0, λ_i + η (L_i − ε_i)), each step. All weights are then divided by
    1 + Σ_i v_i, which changes no stationary point and keeps a step's size from growing with the multipliers. Where the
    gradients cancel, v_i is the multiplier of Karush, Kuhn and Tucker: the price of the bound in units of L_p.

    A bound that cannot be kept drives its weight towards 1 and the others' towards 0. An objective well within its
    bound weighs 0, so its task-specific part rests. Absent objectives keep their multipliers. With one objective the
    weight is 1.

    Papers: Haimes, Lasdon and Wismer 1971, `doi.org/10.1109/TSMC.1971.4308298
    <https://doi.org/10.1109/TSMC.1971.4308298>`_ (the formulation); the augmented Lagrangian is that of Powell,
    Hestenes and Rockafellar, Nocedal and Wright 2006, chapter 17, with small steps of the multipliers in place of
    inner minimisations.

    Args:
        bounds: ε_i, in the losses' units: {objective: bound}, of all but the `primary`; or one for all but it.
        primary: the objective p that has no bound; if None, the one that `bounds` leaves out. Where all are bounded
            there is none, and training rests once all bounds are kept.
        mu: μ above 0. With losses near 1, 1 to 10; noise of size s in a loss moves its weight by μ s.
        eta: η above 0, likewise; μ / 100 if None.

    Raises:
        ValueError: a bound or number that is out of range; an unknown objective, one with neither bound nor the part
            of `primary`, or a bound for it; a resumed state of other objectives.
        TypeError: a bound or number that is not a number.

    >>> balancer = EpsilonConstraint({"rhombus": 0.5}, mu=1.0, eta=1.0)
    >>> balancer.setup(["circle", "rhombus"])
    >>> losses = Evidence(["circle", "rhombus"], [torch.tensor(0.4), torch.tensor(0.75)])
    >>> balancer.combine(losses), balancer.combine(losses)
    (tensor([0.8000, 0.2000]), tensor([0.6667, 0.3333]))
    """

    keeps = "a multiplier of each bounded objective"

    def __init__(
        self,
        bounds: Mapping[str, float] | float,
        primary: str | None = None,
        mu: float = 5.0,
        eta: float | None = None,
    ) -> None:
        super().__init__()
        _check_bounds(bounds)
        for name, value in (("mu", mu), ("eta", mu if eta is None else eta)):
            number(name, value)
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be above 0 and finite, found {value}")
        if isinstance(bounds, Mapping) and primary in bounds:
            raise ValueError(f"`bounds` must leave out the `primary` objective, found one for `{primary}`")
        self.bounds = bounds
        self.primary = primary
        self.mu = mu
        self.eta = mu / 100 if eta is None else eta
        self._chosen = primary
        self._bounds = Constants({}, 0.0)
        self._multipliers: dict[str, Tensor] = {}

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        chosen = self._choose(names)
        if isinstance(self.bounds, Mapping):
            self._bounds = Constants(self.bounds, 0.0)
        else:
            self._bounds = Constants({}, float(self.bounds))
        if self.objectives and not set(self._multipliers) <= set(names):  # without, they are a resumed state's
            self._multipliers = {}
        self._chosen = chosen
        super().setup(names, examples)

    def _choose(self, names: Sequence[str]) -> str | None:
        """The objective that has no bound."""
        if self.primary is not None:
            known("primary", [self.primary], names)
        if not isinstance(self.bounds, Mapping):
            return self.primary
        known("bounds", self.bounds, names)
        free = [name for name in names if name not in self.bounds]
        for name in free:
            if len(free) > 1 and name != self.primary:
                raise ValueError(f"`bounds` must name every objective but one, found none for `{name}`")
        return free[0] if free else None

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        if len(self.objectives) == 1:
            return torch.ones_like(losses)
        excess = losses - self._bounds(names, losses)
        multipliers = torch.stack([self._multiplier(name, losses) for name in names])
        v = (multipliers + self.mu * excess).clamp(min=0)
        moved = (multipliers + self.eta * excess).clamp(min=0)
        free = [name == self._chosen for name in names]
        for name, value, is_free in zip(names, moved, free, strict=True):
            self._multipliers[name] = torch.zeros_like(value) if is_free else value
        weights = torch.stack([torch.ones_like(one) if is_free else one for one, is_free in zip(v, free, strict=True)])
        return weights / (weights.sum() + (0.0 if any(free) else 1.0))

    def _multiplier(self, name: str, like: Tensor) -> Tensor:
        found = self._multipliers.get(name)
        return like.new_zeros(()) if found is None else found.to(like)

    def get_extra_state(self) -> dict[str, Any]:
        return {"multipliers": {name: value.clone() for name, value in self._multipliers.items()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        some_objectives(state["multipliers"], self.objectives)
        self._multipliers = {name: value.clone() for name, value in state["multipliers"].items()}

    def describe(self) -> dict[str, Any]:
        bounds = dict(self.bounds) if isinstance(self.bounds, Mapping) else self.bounds
        return super().describe() | {"bounds": bounds, "primary": self.primary, "mu": self.mu, "eta": self.eta}


def _check_bounds(bounds: Any) -> None:
    if isinstance(bounds, Mapping):
        in_range("bounds", bounds)
        return
    try:
        finite = math.isfinite(bounds)
    except TypeError:
        raise TypeError(f"`bounds` must be a number or {{objective: bound}}, found {bounds!r}") from None
    if not finite:
        raise ValueError(f"`bounds` must be finite, found {bounds}")
