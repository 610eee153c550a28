"""A batch: the examples of one source that one optimizer step looks at."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model is fed: a tensor, a tuple or a dictionary of tensors, examples along the first dimension."""


class Rows(ABC):
    """Examples kept in another form than a tensor: indexed as one along the first dimension, and then given as one.

    A source may hold them where it else holds a tensor; a batch never does.
    """

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abstractmethod
    def __getitem__(self, part: slice) -> Tensor:
        """A run of examples, on the device that `to` named."""

    @abstractmethod
    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The examples of these numbers, in their order, on the device that `to` named; `dim` is 0."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same examples, stored where they are, whose parts come to lie on `device`."""

    @abstractmethod
    def first_not_finite(self) -> tuple[int, float] | None:
        """The first number that is not finite, as (example, number); None if there is none."""

    @abstractmethod
    def digest(self) -> str:
        """Tells the examples from others, the same in any process."""


def map_inputs(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Applies `function` to every tensor (or `Rows`) of nested tuples, lists and dictionaries, keeping the structure.

    `Rows` that `function` slices become tensors.
    """
    if isinstance(inputs, (Tensor, Rows)):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_inputs(function, value) for key, value in inputs.items()}
    return tuple(map_inputs(function, value) for value in inputs)


def tensors_of(inputs: Any) -> list[Any]:
    """Every tensor (or, of what a source holds, `Rows`) of nested tuples, lists and dictionaries, in order."""
    if isinstance(inputs, (Tensor, Rows)):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [tensor for part in parts for tensor in tensors_of(part)]


class Batch:
    """Examples with their targets; the tasks it lacks are simply not among its `targets`.

    Attributes:
        targets: {task: tensor}, first dimension `size`.
        counts: {task: how many of the examples carry a target, or are in its loss for another reason}, known on
            the host so that no step waits for a device. A task with count 0 is absent.
        size: number of examples.
        source: name of the source, "" if there is one only.
        rows: indices of the examples within their source (N,), or None where the inputs differ from visit
            to visit (augmented or streaming), which rules out caching.
        weights: {task: one factor per example} for the tasks that have sample weights.
        everywhere: `counts` over the parts of all ranks, where the source knows them; None where each rank
            knows its own part only, and with one process.
        known: {key: what is known beforehand of these examples}, see `polytask.data.Remembered`.
        totals: {task: what takes the place of its `Task.total` for these examples}, with the same arguments and
            meaning; the task's own where there is none.
    """

    __slots__ = (
        "_inputs", "_load", "counts", "everywhere", "known", "rows", "size", "source", "targets", "totals", "weights",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Any,
        targets: dict[str, Tensor],
        counts: dict[str, int],
        size: int,
        source: str = "",
        rows: Tensor | None = None,
        weights: dict[str, Tensor] | None = None,
        load: Callable[[], Any] | None = None,
        everywhere: dict[str, int] | None = None,
    ) -> None:
        self._inputs = inputs
        self._load = load
        self.targets = targets
        self.counts = counts
        self.size = size
        self.source = source
        self.rows = rows
        self.weights = weights or {}
        self.everywhere = everywhere
        self.known: dict[Hashable, Any] = {}
        self.totals: dict[str, Callable[[Tensor, Tensor, int, Tensor | None], Tensor]] = {}

    @property
    def inputs(self) -> Any:
        """The inputs, gathered on first use: a step that works on cached features never pays for them."""
        if self._load is not None:
            self._inputs, self._load = self._load(), None
        return self._inputs

    def but(self, **changes: Any) -> Batch:
        """This batch with other values of some attributes; its inputs are still gathered on first use."""
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def to(self, device: torch.device) -> Batch:
        """This batch as its source made it, nothing more known of it, with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            map_inputs(move, self.inputs), {k: move(v) for k, v in self.targets.items()}, self.counts,
            self.size, self.source, self.rows, {k: move(v) for k, v in self.weights.items()},
            everywhere=self.everywhere,
        )  # fmt: skip
