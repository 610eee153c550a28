"""Rows: a layer's weights by input unit. The only place where weights are reshaped into rows and back.

Row i of a layer is every weight that input unit i meets: the i-th column of a `Linear`, the i-th input channel of a
convolution. A row of zeros makes the unit that feeds it useless to this layer.

After a `Flatten` one convolution filter feeds H·W neighbouring rows of the next linear layer. They are one *group*
under the granularity ``unit``, and H·W groups under ``row``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.models.by_source import find_by_source

SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Kinds of layers that have rows."""

GRANULARITIES = ("unit", "row")


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer in play and how its rows hang together.

    Attributes:
        name: its name in the model, such as ``trunk.3``.
        module: a `Linear` or a convolution; grouped and depthwise ones have one row per input channel like any other.
        spread: how many neighbouring rows each upstream unit feeds: H·W after a `Flatten`, else 1.
        size: rows in a group, which live and die together: `spread` under ``unit``, 1 under ``row``.
        sources: names of the layers whose outputs reach it without another layer between; ``""`` is the raw input.

    Raises:
        TypeError: the module has no rows.
        ValueError: its rows do not divide into groups of `size`.
    """

    name: str
    module: nn.Module
    spread: int = 1
    size: int = 1
    sources: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check(self.module, self.name)
        if self.size < 1 or self.rows % self.size:
            raise ValueError(
                f"the {self.rows} rows of `{self.name}` must divide into groups of equal size, found a size of "
                f"{self.size}"
            )

    @property
    def weight(self) -> Tensor:
        """The weights as the module holds them; computed anew where they are parametrised."""
        return weight_of(self.module)

    @property
    def rows(self) -> int:
        """Number of rows, one per input unit."""
        return inputs_of(self.module)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.rows // self.size

    def norms(self) -> Tensor:
        """(groups,) Euclidean norm of each group; differentiable, with gradient 0 at a group of zeros."""
        return torch.linalg.vector_norm(self._blocks(self.weight), dim=(1, 3)).flatten()

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiplies each group in place by its factor (groups,)."""
        blocks = self._blocks(self.module.weight.data)  # pyright: ignore[reportArgumentType] (a Tensor)
        blocks.mul_(factors.to(blocks).view(blocks.shape[0], 1, -1, 1))

    def alive(self) -> Tensor:
        """(groups,) whether any weight of the group is not 0."""
        return (self._blocks(self.weight.detach()) != 0).any(3).any(1).flatten()

    def by_row(self, of_groups: Tensor) -> Tensor:
        """One entry per group to one per row."""
        return of_groups.repeat_interleave(self.size)

    def _blocks(self, weight: Tensor) -> Tensor:
        """A view (convolution groups, outputs, groups of rows, size · kernel): no weight is copied."""
        parts = parts_of(self.module)
        return weight.view(parts, weight.shape[0] // parts, self.groups // parts, -1)


def check(module: nn.Module, name: str = "") -> None:
    """Raises `TypeError` unless the module has rows."""
    if not isinstance(module, SUPPORTED):
        kinds = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise TypeError(f"a layer with rows must be one of {kinds}, found {type(module).__name__} for `{name}`")


def weight_of(module: nn.Module) -> Tensor:
    """The module's weights."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def inputs_of(module: nn.Module) -> int:
    """Number of rows: input features or channels."""
    return weight_of(module).shape[1] * parts_of(module)


def parts_of(module: nn.Module) -> int:
    """Groups of a grouped convolution, 1 for every other layer."""
    parts = getattr(module, "groups", 1)
    assert isinstance(parts, int)
    return parts


def to_rows(module: nn.Module, weight: Tensor | None = None) -> Tensor:
    """A layer's weights, or others of the same shape (a gradient, a mask), as rows.

    Returns:
        (inputs, D): D = outputs · kernel entries, and outputs / groups · kernel for a grouped convolution.

    >>> to_rows(nn.Linear(3, 5)).shape, to_rows(nn.Conv2d(4, 6, 5)).shape, to_rows(nn.Conv1d(8, 8, 3, groups=8)).shape
    (torch.Size([3, 5]), torch.Size([4, 150]), torch.Size([8, 3]))
    """
    check(module)
    weight = weight_of(module) if weight is None else weight
    parts = parts_of(module)
    blocks = weight.reshape(parts, weight.shape[0] // parts, weight.shape[1], -1)
    return blocks.permute(0, 2, 1, 3).reshape(inputs_of(module), -1)


def from_rows(module: nn.Module, rows: Tensor) -> Tensor:
    """Rows (inputs, D) in the shape of the layer's weights: the inverse of `to_rows`.

    >>> layer = nn.Conv2d(4, 6, 5, groups=2)
    >>> torch.equal(from_rows(layer, to_rows(layer)), layer.weight)
    True
    """
    check(module)
    weight, parts = weight_of(module), parts_of(module)
    blocks = rows.reshape(parts, weight.shape[1], weight.shape[0] // parts, -1)
    return blocks.permute(0, 2, 1, 3).reshape(weight.shape)


def check_one_encoder(model: nn.Module) -> None:
    """Raises `ValueError` for a network with an encoder for each source, which no one pass goes through."""
    name = find_by_source(model)
    if name is not None:
        where = f" in `{name}`" if name else ""
        raise ValueError(f"networks with an encoder for each source cannot be made sparse, found `BySource`{where}")
