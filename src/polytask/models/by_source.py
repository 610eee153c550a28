"""Trunks for inputs of several kinds: an encoder for each source, then what all sources share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import nn

from polytask.errors import nearest


@final
class BySource(nn.Module):
    """A trunk that takes the inputs of several sources: each has its own encoder, and all share the rest.

    It stands wherever a trunk, a tower or an expert does; see `encode`.

    Args:
        encoders: {source: module from its inputs (B, ...) to (B, E)}, at least one.
        trunk: what follows all of them, (B, E) to features (B, F); nothing if None.

    Raises:
        ValueError: there is no encoder, or (when called) none of that name.

    >>> import torch
    >>> trunk = BySource({"reviews": nn.Linear(9, 4), "tickets": nn.Linear(5, 4)}, nn.Linear(4, 2))
    >>> trunk(torch.zeros(3, 5), "tickets").shape
    torch.Size([3, 2])
    """

    def __init__(self, encoders: Mapping[str, nn.Module], trunk: nn.Module | None = None) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("`encoders` must name a module for at least one source, found none")
        self.encoders = nn.ModuleDict(encoders)
        self.trunk = nn.Identity() if trunk is None else trunk

    def forward(self, inputs: Any, source: str = "") -> Any:
        if source not in self.encoders:
            raise ValueError(
                f"every source must have an encoder, found none for `{source}`: {nearest(source, list(self.encoders))}"
            )
        return self.trunk(self.encoders[source](inputs))


def encode(module: nn.Module, inputs: Any, source: str) -> Any:
    """What a trunk, a tower or an expert makes of a batch's inputs; only `BySource` asks where they come from."""
    return module(inputs, source) if isinstance(module, BySource) else module(inputs)
