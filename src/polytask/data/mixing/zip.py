"""One batch of every source in each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from polytask.data.mixing.until import Until
from polytask.task import Task


@final
class Zip(Until):
    """Serves one batch of every source in each step; their losses make one update.

    The losses of different tasks are summed; that of a task which several sources bring is pooled, its sum over their
    batches divided by the number of targets in them. With S_k the steps of one pass over source k, an epoch has

    - ``longest``: max S_k steps. A source that ends earlier begins another pass.
    - ``shortest``: min S_k steps. The next epoch goes on where a longer source was left.
    - ``balance``: S = ⌈Σ n_k / Σ B_k⌉ steps, n_k the examples and B_k the batch size of source k, which is then
      replaced by one in proportion to n_k: all sources end together, each example served once, in batches of
      ⌊n_k / S⌋ or ⌈n_k / S⌉ examples. For arrays only.

    Args:
        sources, seed, batch_size: see `polytask.data.Mixture`.
        until: ``longest``, ``shortest`` or ``balance``.

    Raises:
        ValueError: `until` is none of these or, with ``balance`` (when bound), a source is no array or has fewer than S
            examples; see `polytask.data.Mixture` for the others.

    >>> import torch
    >>> part = lambda task, n: (torch.zeros(n, 2), {task: torch.zeros(n)})
    >>> source = Zip({"reviews": part("opinion", 6), "tickets": part("urgent", 4)}, batch_size=2)
    >>> source.turns(0).tolist()
    [[0, 1], [0, 1], [0, 1]]
    """

    ends = ("longest", "shortest", "balance")

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        super().bind(tasks, device, where, seed)
        if self.until != "balance":
            return
        sources = self.sources.values()
        # what has no batch size of its own refuses to be spread in any case
        steps = -(-sum(source.examples or 0 for source in sources) // sum(s.batch_size or 1 for s in sources))
        for name, source in self.sources.items():
            try:
                source.spread(steps)
            except ValueError as error:
                raise ValueError(f"{where}, source `{name}`, until='balance': {error}") from error

    @property
    def steps_per_epoch(self) -> int:
        return self.rounds

    def turns(self, epoch: int) -> Tensor:
        return torch.arange(len(self.sources)).expand(self.steps_per_epoch, -1)
