"""Trunks for inputs of several kinds: an encoder for each source, then what all sources share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, final

from torch import nn

from polytask.errors import nearest
from polytask.models.checks import check_mapping, check_module


@final
class BySource(nn.Module):
    """A trunk that takes the inputs of several sources: each has its own encoder, and all share the rest.

    It stands wherever a trunk, a tower or an expert does; see `encode`.

    Args:
        encoders: {source: module from its inputs (B, ...) to (B, E)}, at least one.
        trunk: what follows all of them, (B, E) to features (B, F); nothing if None.

    Raises:
        ValueError: there is no encoder, or (when called) none of that name.
        TypeError: an encoder or the trunk is not a module.

    >>> import torch
    >>> trunk = BySource({"reviews": nn.Linear(9, 4), "tickets": nn.Linear(5, 4)}, nn.Linear(4, 2))
    >>> trunk(torch.zeros(3, 5), "tickets").shape
    torch.Size([3, 2])
    """

    def __init__(self, encoders: Mapping[str, nn.Module], trunk: nn.Module | None = None) -> None:
        super().__init__()
        check_mapping("encoders", encoders, "sources to modules")
        for source, encoder in encoders.items():
            check_module(f"encoders[{source!r}]", encoder)
        if trunk is not None:
            check_module("trunk", trunk)
        if not encoders:
            raise ValueError("`encoders` must name a module for at least one source, found none")
        self.encoders = nn.ModuleDict(encoders)
        self.trunk = nn.Identity() if trunk is None else trunk

    def encoder(self, source: str) -> nn.Module:
        """The encoder of this source's inputs.

        Raises:
            ValueError: there is none.
        """
        if not source and "" not in self.encoders:
            known = ", ".join(f"`{name}`" for name in self.encoders)
            raise ValueError(
                f"a network with encoders for several sources must be told which one inputs come from, found none "
                f'told: name one of {known}, with `source="{next(iter(self.encoders))}"` for inputs, or as '
                f'{{"{next(iter(self.encoders))}": data}}'
            )
        if source not in self.encoders:
            raise ValueError(
                f"every source must have an encoder, found none for `{source}`: {nearest(source, list(self.encoders))}"
            )
        return self.encoders[source]

    def forward(self, inputs: Any, source: str = "") -> Any:
        return self.trunk(self.encoder(source)(inputs))


def encode(module: nn.Module, inputs: Any, source: str) -> Any:
    """What a trunk, a tower or an expert makes of a batch's inputs; only `BySource` asks where they come from."""
    return module(inputs, source) if isinstance(module, BySource) else module(inputs)


def find_by_source(model: nn.Module) -> str | None:
    """The name of the first `BySource` in a network, None if it has none."""
    return next((name for name, module in model.named_modules() if isinstance(module, BySource)), None)


def known_sources(model: nn.Module) -> tuple[str, ...]:
    """The sources that a model has encoders for, none if it takes inputs of one kind."""
    found = (name for module in model.modules() if isinstance(module, BySource) for name in module.encoders)
    return tuple(dict.fromkeys(found))


def check_sources(model: nn.Module, sources: Collection[str], every: bool = False) -> None:
    """Refuses sources that a model has no encoder for; one without encoders for sources takes any.

    Args:
        model: the network.
        sources: names of sources.
        every: whether each encoder must have its source.

    Raises:
        ValueError: a source without an encoder, or (if `every`) an encoder without a source.
    """
    for module in model.modules():
        if not isinstance(module, BySource):
            continue
        for source in sources:
            module.encoder(source)
        for name in module.encoders if every else ():
            if name not in sources:
                raise ValueError(f"every encoder must have a source, found none for `{name}`: {nearest(name, sources)}")
