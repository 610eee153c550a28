"""Where on the front the user wants to be: a preference and a reference point by objective."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

from polytask.balancing.base import Scalarizer
from polytask.balancing.keyed import Constants, by_name, in_range, plain, sums_to_one


class PreferenceScalarizer(Scalarizer, ABC):
    """A scalarizer with fixed numbers k_k and z_k for each objective, the same in every step.

    Args:
        preference: k_k at least 0, summing to 1: {objective: k_k} or in the objectives' order; 1/K if None.
        reference: z_k, likewise; 0 if None.

    Raises:
        ValueError: a preference that is negative or does not sum to 1; a reference that is not finite.
        TypeError: not numbers.
    """

    def __init__(
        self,
        preference: Mapping[str, float] | Sequence[float] | None,
        reference: Mapping[str, float] | Sequence[float] | None,
    ) -> None:
        super().__init__()
        in_range("preference", preference, low=0)
        in_range("reference", reference)
        sums_to_one("preference", preference)
        self.preference = preference
        self.reference = reference
        self._factors = Constants({}, 1.0)
        self._reference = Constants({}, 0.0)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        preference = by_name("preference", self.preference, names, 1 / max(len(names), 1))
        self._factors = Constants(self.factors(preference), 1.0)
        self._reference = Constants(by_name("reference", self.reference, names, 0.0), 0.0)
        super().setup(names, examples)

    def factors(self, preference: dict[str, float]) -> dict[str, float]:
        """What is made of the preference once, {objective: number}, for `combine` to read; itself by default."""
        return preference

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"preference": plain(self.preference), "reference": plain(self.reference)}
