"""Random loss weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from polytask.balancing.base import Evidence, Needs, Scalarizer
from polytask.balancing.keyed import same_objectives
from polytask.errors import at_least, one_of


@final
class Random(Scalarizer):
    """S = Σ_k w_k L_k with weights drawn anew at every step: the baseline that a clever weighting has to beat.

    Paper: Lin, Ye, Zhang and Tsang 2021, `arXiv:2111.10603 <https://arxiv.org/abs/2111.10603>`_.
    ``"normal"``: w = K softmax(z), z_k ~ N(0, 1), the paper's choice; ``"dirichlet"``: w = K d,
    d ~ Dirichlet(c, ..., c). K is the number of all objectives, absent ones included, so what a present one
    gets does not depend on which others are absent.

    The paper's weights sum to 1; here their mean is 1, so that the learning rate of the plain sum still
    fits. They come from a stream of their own: the same seed gives the same weights in the trainer, in a loop
    of one's own and on every process. One objective always gets 1.

    Args:
        distribution: ``"normal"`` or ``"dirichlet"``.
        concentration: c > 0 of the Dirichlet: small is near to one task at a time, large near to the plain sum.
        seed: of the stream.

    Raises:
        ValueError: another distribution, a concentration that is not above 0, or a resumed state of other
            objectives.

    >>> balancer = Random(seed=1)
    >>> balancer.setup(["circle", "rhombus"])
    >>> [round(weight, 2) for weight in balancer.combine(Evidence(["circle", "rhombus"]))]
    [0.77, 1.23]
    """

    needs = Needs.NOTHING
    keeps = "a random stream"

    def __init__(self, distribution: str = "normal", concentration: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        one_of("distribution", distribution, ("normal", "dirichlet"))
        if not 0 < concentration < float("inf"):
            raise ValueError(f"`concentration` must be above 0 and finite, found {concentration}")
        at_least("seed", seed, 0)
        self.distribution = distribution
        self.concentration = concentration
        self.seed = seed
        self._objectives: set[str] = set()
        self._stream = np.random.Generator(np.random.PCG64(seed))

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        self._objectives |= set(names)
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> list[float]:
        self._objectives |= set(evidence.names)
        weights = dict(
            zip(sorted(self._objectives), self._draw(len(self._objectives)), strict=True)
        )  # in any order the same
        return [weights[name] for name in evidence.names]

    def _draw(self, count: int) -> list[float]:
        if self.distribution == "dirichlet":
            shares = self._stream.dirichlet(np.full(count, self.concentration))
        else:
            shares = np.exp(self._stream.standard_normal(count))
            shares /= shares.sum()
        return (count * shares).tolist()

    def get_extra_state(self) -> dict[str, Any]:
        state = self._stream.bit_generator.state
        words = {key: str(value) for key, value in state["state"].items()}  # of 128 bits
        return {**state, "state": words, "objectives": sorted(self._objectives)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        same_objectives(state["objectives"], self._objectives)
        self._objectives = set(state["objectives"])
        words = {key: int(value) for key, value in state["state"].items()}
        self._stream.bit_generator.state = {key: state[key] for key in state if key != "objectives"} | {"state": words}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "distribution": self.distribution, "concentration": self.concentration, "seed": self.seed
        }  # fmt: skip
