"""Sources drawn as often as they are large."""

from __future__ import annotations

from typing import final

from polytask.data.mixing.sampled import Sampled


@final
class Proportional(Sampled):
    """Draws a source for every step with probability p_k = n_k / Σ n_j, n_k its number of examples.

    An epoch has as many steps as one pass over every source, or `steps`. With equal batch sizes every source is then
    visited, on average, once an epoch from end to end; draws are independent, so in a single epoch it may be somewhat
    more or less, and the next goes on from there.

    Args:
        sources, seed, batch_size: see `polytask.data.Mixture`.
        steps: steps of an epoch, at least 1; None for those of one pass over every source.

    Raises:
        ValueError: `steps` is below 1, or a source does not know its size; see `polytask.data.Mixture` for the others.

    >>> import torch
    >>> part = lambda task, n: (torch.zeros(n, 2), {task: torch.zeros(n)})
    >>> source = Proportional({"reviews": part("opinion", 30), "tickets": part("urgent", 10)}, batch_size=5)
    >>> source.rates(0), source.steps_per_epoch
    ({'reviews': 0.75, 'tickets': 0.25}, 8)
    """

    def rates(self, epoch: int) -> dict[str, float]:
        sizes = [source.examples or 0 for source in self.sources.values()]
        return {name: size / sum(sizes) for name, size in zip(self.sources, sizes, strict=True)}
