"""The Source contract: which examples of which tasks make one optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.batch import Batch, Rows, tensors_of
from polytask.task import Task


class Source(ABC):
    """Serves the batches of an epoch, epoch after epoch.

    Everything random depends on the seed and the epoch's number alone, or is in `state_dict`: a run that
    resumes at (epoch, step) sees the batches that the uninterrupted run would have seen.

    Attributes:
        cacheable: True if an example's inputs are the same at every visit and batches carry row ids.
        name: what batches are labelled with when there are several sources.
        divided: True if, of several processes, each brings examples of its own; False if all know the same
            examples, which `in_order` then gives on every one of them.
        tells_everywhere: True if, of several processes, each tells the counts of all (`Batch.everywhere`).
        batch_size: examples per step over all processes; None if the source does not say.
        monitored: the columns of the history that `observe` reads; a run that has none of that name is refused.
    """

    cacheable: bool = False
    divided: bool = False
    tells_everywhere: bool = False
    batch_size: int | None = None
    monitored: tuple[str, ...] = ()
    name: str = ""

    @property
    def parts(self) -> Mapping[str, Source]:
        """{label of batches: the source they come from}: itself alone, but for a source made of several."""
        return {self.name: self}

    @abstractmethod
    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        """Validates the data against the tasks once, at the door, and places it on the device.

        Args:
            tasks: the model's tasks by name.
            device: where batches must live.
            where: "train", "validation", ... for messages.
            seed: the trainer's, for a source that was given none of its own.
        """

    def shard(self, index: int, count: int) -> None:
        """Makes `steps` serve this process's part of every step, before `bind`.

        A source that is not `divided` must give the same number of steps on every rank, each a part of the
        batches that one process would get, and `Batch.everywhere` where it knows it: on all ranks or on none, as
        they else exchange counts. A part without examples is a batch of size 0 with `everywhere`, or else no
        batch, ``()``. A source that is divided may end earlier on some ranks than on others. `in_order`,
        `label_counts` and `examples` do not change.

        Args:
            index: this process, from 0.
            count: how many train together, 1 for one alone.

        Raises:
            ValueError: the source cannot be divided.
        """
        if count > 1:
            raise ValueError(
                f"a source must say with `shard` how {count} processes divide its steps, found a "
                f"{type(self).__name__} without it"
            )

    def check_parts(self, index: int, count: int) -> None:
        """Refuses to be evaluated by these processes, before `bind`, where `in_order` would not give each example once.

        Args:
            index: this process, from 0.
            count: how many evaluate together, 1 for one alone.

        Raises:
            ValueError: examples would be left out or seen twice.
        """

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None if only the end of the data tells."""

    @property
    @abstractmethod
    def examples(self) -> int | None:
        """Examples in an epoch; None if only the end of the data tells."""

    @abstractmethod
    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        """The batches of each optimizer step of epoch `epoch`, from step `start` on."""

    def preview(self) -> Iterator[tuple[Batch, ...]]:
        """The batches of the first epoch's steps, to be looked at: like `steps`, without what only training pays for.

        A source that prepares something for all examples before its first step prepares it for these alone.
        """
        return self.steps(0)

    @abstractmethod
    def in_order(self, size: int) -> Iterator[Batch]:
        """Every example once, in storage order, in batches of at most `size`, nothing augmented."""

    def turns(self, epoch: int) -> Tensor | None:
        """Whose turn each batch of epoch `epoch` is: (batches, sources of each), positions in `parts`; after `bind`.

        None if it cannot be told beforehand, or there is one source only. What a source that adapts (see `monitored`)
        says of an epoch to come is not final.
        """
        return None

    def spread(self, steps: int) -> None:
        """Makes every epoch this many steps, of sizes as even as can be; after `bind`.

        Raises:
            ValueError: the source cannot choose its batches' sizes, or has fewer examples.
        """
        raise ValueError(f"only arrays can be spread over {steps} steps, found a {type(self).__name__}")

    def label_counts(self) -> dict[str, int] | None:
        """How many examples carry a target of each task; None if unknown beforehand."""
        return None

    def observe(self, row: Mapping[str, Any]) -> None:
        """Sees each epoch's row of the history; for sources that adapt."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on exactly; taken at the start of an epoch or inside one."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records of the source."""
        return {"source": type(self).__name__, "examples": self.examples}


def derived_seed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers, such as (seed, epoch)."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


def portion(length: int, index: int, count: int) -> slice:
    """Which of `length` things are the part of process `index` of `count`: parts as even as can be, in order.

    >>> [portion(5, index, 3) for index in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size, more = divmod(length, count)
    start = index * size + min(index, more)
    return slice(start, start + size + (index < more))


def permutation(length: int, *numbers: int) -> torch.Tensor:
    """The permutation of `range(length)` that belongs to these numbers; no global state is touched."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(derived_seed(*numbers)))


def check_inputs(inputs: Any, where: str) -> int:
    """The number of examples in `inputs`.

    Raises:
        ValueError: there is no tensor, lengths differ, or a number is not finite.
    """
    tensors = tensors_of(inputs)
    if not tensors:
        raise ValueError(f"{where}: inputs must hold at least one tensor, found none")
    lengths = [len(t) if isinstance(t, Rows) or t.dim() else 0 for t in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{where}: all inputs must have the same number of examples, found {lengths}")
    for tensor in tensors:
        found = tensor.first_not_finite() if isinstance(tensor, Rows) else _first_not_finite(tensor)
        if found is not None:
            raise ValueError(f"{where}: inputs must be finite, found {found[1]} in example {found[0]}")
    return lengths[0]


def _first_not_finite(tensor: Tensor) -> tuple[int, float] | None:
    # a sum may overflow where every number is finite, so it only tells where to look closer
    if tensor.is_floating_point() and tensor.dim() and not torch.isfinite(tensor.sum()):
        for place in (~torch.isfinite(tensor)).nonzero()[:1].tolist():
            return place[0], tensor[tuple(place)].item()
    return None
