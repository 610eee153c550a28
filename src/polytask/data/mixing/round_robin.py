"""Sources in turn, one a step."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from polytask.data.mixing.until import Until


@final
class RoundRobin(Until):
    """Serves one source a step, in turn, in the order in which they are given.

    With S_k the steps of one pass over source k, of K sources, an epoch has

    - ``longest``: K max S_k steps. A source that ends earlier begins another pass and keeps its turns.
    - ``shortest``: K min S_k steps. The next epoch goes on where a longer source was left.
    - ``all``: Σ S_k steps, every batch of every source once. A source that ends earlier leaves the round.

    Args:
        sources, seed, batch_size: see `polytask.data.Mixture`.
        until: ``longest``, ``shortest`` or ``all``.

    Raises:
        ValueError: `until` is none of these; see `polytask.data.Mixture` for the others.

    >>> import torch
    >>> part = lambda task, n: (torch.zeros(n, 2), {task: torch.zeros(n)})
    >>> two = {"reviews": part("opinion", 6), "tickets": part("urgent", 4)}
    >>> RoundRobin(two, batch_size=2).turns(0).flatten().tolist()
    [0, 1, 0, 1, 0, 1]
    >>> RoundRobin(two, "all", batch_size=2).turns(0).flatten().tolist()
    [0, 1, 0, 1, 0]
    """

    ends = ("longest", "shortest", "all")

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.lengths) if self.until == "all" else len(self.sources) * self.rounds

    def turns(self, epoch: int) -> Tensor:
        count = len(self.sources)
        if self.until != "all":
            return torch.arange(self.steps_per_epoch).remainder(count).unsqueeze(1)
        # step j of source k comes after those of all earlier rounds, and within round j at place k
        places = torch.cat([torch.arange(length) * count + k for k, length in enumerate(self.lengths)])
        return places.sort().values.remainder(count).unsqueeze(1)
