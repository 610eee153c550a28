"""Random orders in which a gradient meets the others, from a stream of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polytask.balancing.keyed import to_device
from polytask.errors import at_least


class Orders:
    """For each of K gradients, an order of the K − 1 others, drawn anew at every step.

    Args:
        seed: of the stream, at least 0.

    Raises:
        ValueError: a negative seed.
    """

    def __init__(self, seed: int) -> None:
        at_least("seed", seed, 0)
        self._stream = torch.Generator().manual_seed(seed)

    def __call__(self, size: int, device: torch.device) -> Tensor:
        """(K, K − 1): row i is a permutation of all indices but i. For two there is only one, and none is drawn."""
        if size == 2:
            return torch.arange(1, -1, -1, device=device).unsqueeze(1)
        keys = torch.rand(size, size, generator=self._stream)
        keys.fill_diagonal_(2.0)  # oneself comes last
        return to_device(keys.argsort(1)[:, :-1], device)

    def state(self) -> Tensor:
        return self._stream.get_state()

    def load(self, state: Any) -> None:
        self._stream.set_state(state.cpu())
