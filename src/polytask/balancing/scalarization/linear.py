"""The weighted sum of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.balancing.base import Evidence, Needs, Scalarizer
from polytask.balancing.keyed import by_name, in_range
from polytask.errors import nearest


@final
class Linear(Scalarizer):
    """S = Σ_k w_k L_k: the plain sum, given weights, or weights that make up for data-set sizes.

    Papers: Xin et al. 2022, `arXiv:2209.11379 <https://arxiv.org/abs/2209.11379>`_, and Kurin et al. 2022,
    `arXiv:2201.04122 <https://arxiv.org/abs/2201.04122>`_: a tuned weighted sum is on par with most
    balancing methods.

    Args:
        weights: None or ``"equal"``: every w_k = 1. ``"inverse"``: w_k inversely proportional to the number of training
            examples that carry a target of task k, scaled to a mean of 1 (objectives that are no tasks get
            1). Or {objective: w_k at least 0}, complete, or in the objectives' order.

    Raises:
        ValueError: a negative weight, all weights 0, a missing or unknown objective, another number of weights
            than of objectives, or sizes that the data cannot tell.

    >>> balancer = Linear({"circle": 1.0, "rhombus": 3.0})
    >>> balancer.setup(["circle", "rhombus"])
    >>> balancer.combine(Evidence(["rhombus"]))
    [3.0]
    """

    needs = Needs.NOTHING

    def __init__(self, weights: Mapping[str, float] | Sequence[float] | str | None = None) -> None:
        super().__init__()
        if isinstance(weights, str) and weights not in ("equal", "inverse"):
            raise ValueError(f'`weights` must be "equal", "inverse" or {{objective: weight}}, found "{weights}"')
        if isinstance(weights, Mapping):
            for name, weight in weights.items():
                if not 0 <= weight < float("inf"):
                    raise ValueError(f"a weight must be at least 0 and finite, found {weight} for `{name}`")
        elif not isinstance(weights, str):
            in_range("weights", weights, low=0)
        if weights is not None and not isinstance(weights, str):
            values = weights.values() if isinstance(weights, Mapping) else weights
            if not any(values):
                raise ValueError("at least one weight must be above 0, found none")
        self.weights = weights
        self._by_name: dict[str, float] = dict(weights) if isinstance(weights, Mapping) else {}

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        if isinstance(self.weights, Mapping):
            for name in self.weights:
                if name not in names:
                    raise ValueError(f"a weight is given for an unknown objective `{name}`: {nearest(name, names)}")
            for name in names:
                if name not in self.weights:
                    raise ValueError(f"`weights` must name every objective, found none for `{name}`")
        elif self.weights is not None and not isinstance(self.weights, str):
            self._by_name = by_name("weights", self.weights, names, 1.0)
        elif self.weights == "inverse":
            if examples is None:
                raise ValueError('weights="inverse" needs data of known size, found a source that cannot tell')
            self._by_name = _inverse_to_size(names, examples)
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> list[float]:
        return [self._by_name.get(name, 1.0) for name in evidence.names]

    def describe(self) -> dict[str, Any]:
        given = self.weights
        if given is None or isinstance(given, str):
            return super().describe() | {"weights": given or "equal"}
        return super().describe() | {"weights": dict(given) if isinstance(given, Mapping) else list(given)}


def _inverse_to_size(names: Sequence[str], examples: Mapping[str, int]) -> dict[str, float]:
    inverse = {name: 1.0 / examples[name] for name in names if examples.get(name)}
    scale = len(inverse) / sum(inverse.values())
    return {name: inverse[name] * scale if name in inverse else 1.0 for name in names}
