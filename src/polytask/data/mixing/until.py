"""Mixtures in which no chance is involved: the sources' lengths say whose turn it is, and when an epoch ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from polytask.data.mixing.base import Mixture
from polytask.errors import one_of


class Until(Mixture):
    """Serves sources in turn until one of them, or all, have been passed over.

    Args:
        sources, seed, batch_size: see `Mixture`.
        until: one of `ends`.

    Attributes:
        ends: what `until` may be; ``longest`` and ``shortest`` mean the same in all of them.
    """

    ends: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        sources: Mapping[str, Any] | None = None,
        until: str = "longest",
        *,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(sources, seed=seed, batch_size=batch_size)
        one_of("until", until, self.ends)
        self.until = until

    @property
    def rounds(self) -> int:
        """Steps of one pass over the longest source, or over the shortest."""
        return (min if self.until == "shortest" else max)(self.lengths)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"until": self.until}
