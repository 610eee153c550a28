"""One source after another."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from polytask.data.mixing.base import Mixture


@final
class Chain(Mixture):
    """All steps of the first source, then all of the second, and so on: how several sources are evaluated.

    An epoch is one pass over every source, each example served once. In training it makes a network forget the first
    source while it sees the last, which is what the other mixtures are there to prevent.

    Args:
        sources, seed, batch_size: see `polytask.data.Mixture`.

    >>> import torch
    >>> part = lambda task, n: (torch.zeros(n, 2), {task: torch.zeros(n)})
    >>> source = Chain({"reviews": part("opinion", 4), "tickets": part("urgent", 6)}, batch_size=2)
    >>> source.turns(0).flatten().tolist()
    [0, 0, 1, 1, 1]
    """

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.lengths)

    def turns(self, epoch: int) -> Tensor:
        lengths = torch.tensor(self.lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).unsqueeze(1)
