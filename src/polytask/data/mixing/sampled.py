"""Mixtures that draw one source for every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytask.data.mixing.base import Mixture
from polytask.data.source import derived_seed
from polytask.errors import whole
from polytask.task import Task


class Sampled(Mixture):
    """Draws one source for every step, each draw independent of all others given the epoch's rates.

    An epoch has `steps` steps. If None, as many as one pass over every source has, sum_k S_k with S_k the steps of
    source k; a source is then visited more or less often than S_k times, and goes on from there in the next epoch. The
    draw of (epoch, step) depends on the seed, the epoch and the step alone.

    Args:
        sources, seed, batch_size: see `Mixture`.
        steps: steps of an epoch, at least 1; None for those of one pass over every source.
    """

    def __init__(
        self,
        sources: Mapping[str, Any] | None = None,
        *,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(sources, seed=seed, batch_size=batch_size)
        if steps is not None:
            whole("steps", steps, 1)
        self._asked = steps

    @abstractmethod
    def rates(self, epoch: int) -> dict[str, float]:
        """{source: the probability of being drawn} in epoch `epoch`; they add up to 1."""

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        super().bind(tasks, device, where, seed)
        for name, source in self.sources.items():
            if source.examples is None:
                raise ValueError(
                    f"{where}: a source of a {type(self).__name__} must know how many examples it has, found a stream: "
                    f"`{name}`"
                )

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.lengths) if self._asked is None else self._asked

    def turns(self, epoch: int) -> Tensor:
        rates = torch.tensor(list(self.rates(epoch).values()), dtype=torch.float64)
        generator = torch.Generator().manual_seed(derived_seed(self._seed, epoch, 3))
        draws = torch.rand(self.steps_per_epoch, generator=generator, dtype=torch.float64)
        # rounding may leave the last edge below a draw
        return torch.bucketize(draws, rates.cumsum(0)[:-1], right=True).unsqueeze(1)

    def by_size(self, exponent: float) -> Tensor:
        """log n_k^exponent of each source (K,), n_k its number of examples; all 0 where the exponent is."""
        sizes = torch.tensor([source.examples or 1 for source in self.sources.values()], dtype=torch.float64)
        return exponent * sizes.log()

    def named(self, logs: Tensor) -> dict[str, float]:
        """Logarithms of rates (K,), up to a constant, as {source: rate}."""
        return dict(zip(self.sources, logs.softmax(0).tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"steps": self._asked}
