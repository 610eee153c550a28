"""How much each objective counts, where a method lets the user say so."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import Aggregator, Evidence
from polytask.balancing.keyed import Constants, by_name, in_range
from polytask.errors import one_of


class Preference:
    """Non-negative numbers p_k by objective, as a tensor beside the Gramian.

    Args:
        given: ``"mean"``: 1 over the number of objectives that are present. ``"sum"``: 1. Or {objective: p_k},
            or one p_k per objective in their order: used as they are, whichever objectives are present.

    Raises:
        ValueError: another word; a p_k that is negative or not finite; all of them 0.
    """

    def __init__(self, given: str | Mapping[str, float] | Sequence[float]) -> None:
        if isinstance(given, str):
            one_of("preference", given, ("mean", "sum"))
        else:
            in_range("preference", given, low=0)
            values = list(given.values() if isinstance(given, Mapping) else given)
            if not any(values):
                raise ValueError(f"at least one value of `preference` must be above 0, found {values}")
        self.given = given
        self._constants: Constants | None = None

    def setup(self, names: Sequence[str]) -> None:
        """Raises `ValueError` if the preference does not fit the objectives."""
        if not isinstance(self.given, str):
            self._constants = Constants(by_name("preference", self.given, names, 1.0), 0.0)

    def __call__(self, evidence: Evidence) -> Tensor:
        """(K,) the numbers of the objectives that are present; 1 for one alone, whose gradient is then its own."""
        like = evidence.gramian
        size = len(evidence.names)
        if isinstance(self.given, str) or size == 1:
            value = 1 / size if self.given == "mean" else 1.0
            return torch.full((size,), value, dtype=like.dtype, device=like.device)
        if self._constants is None:
            self.setup(evidence.names)
        assert self._constants is not None
        return self._constants(evidence.names, like)

    def describe(self) -> Any:
        """Plain words, numbers, lists and dictionaries."""
        if isinstance(self.given, str):
            return self.given
        return dict(self.given) if isinstance(self.given, Mapping) else list(self.given)


class PreferenceAggregator(Aggregator, ABC):
    """An aggregator in which the user may say how much each objective counts.

    Args:
        preference: see `Preference`.
    """

    def __init__(self, preference: str | Mapping[str, float] | Sequence[float] = "mean") -> None:
        super().__init__()
        self.preference = Preference(preference)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        self.preference.setup(names)
        super().setup(names, examples)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"preference": self.preference.describe()}
