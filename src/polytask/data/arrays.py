"""Examples held in memory, served by indexing tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from polytask.batch import Batch, Rows, map_inputs, tensors_of
from polytask.data.base import Augmentation
from polytask.data.source import Source, check_inputs, derived_seed, permutation, portion
from polytask.data.sparse import SparseRows, is_sparse
from polytask.errors import nearest, whole
from polytask.task import Task

BLOCK = 64
"""Steps whose rows are laid out together."""


class Arrays(Source):
    """An in-memory source: one index per tensor and batch, no worker processes, no collating.

    Args:
        inputs: tensor, array, SciPy sparse matrix, or a tuple or dictionary of them; N examples along the first
            dimension. A sparse matrix stays one: only a batch's rows are made dense, see `SparseRows`.
        targets: {task name: N targets}. Missing ones are NaN (float) or -100 (integer). A task whose name
            is left out has no target here.
        batch_size: examples per step over all processes, at least 1.
        shuffle: draw a new permutation each epoch, from (seed, epoch).
        seed: any whole number; None takes the trainer's.
        drop_last: leave out a last batch smaller than `batch_size` (a network with BatchNorm cannot train
            on a batch of one example).
        weights: {task name: N sample weights, at least 0}; they multiply the examples' losses.
        augment: (inputs of a batch, generator) -> inputs, random draws from that generator only. Makes the
            source uncacheable; never applied in evaluation.
        name: label of the source.

    Raises:
        ValueError: lengths differ, there is no example, inputs are not finite, a target is out of range, or a
            task is unknown (the last three when the trainer binds the source to its tasks).

    >>> import torch
    >>> source = Arrays(torch.zeros(10, 2), {"circle": torch.zeros(10)}, batch_size=4)
    >>> source.steps_per_epoch
    3
    """

    tells_everywhere = True

    def __init__(
        self,
        inputs: Any,
        targets: Mapping[str, Any],
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        weights: Mapping[str, Any] | None = None,
        augment: Augmentation | None = None,
        name: str = "",
    ) -> None:
        whole("batch_size", batch_size, 1)
        self.inputs = as_tensors(inputs)
        self.targets = {task: torch.as_tensor(values) for task, values in targets.items()}
        self.weights = {task: torch.as_tensor(w) for task, w in (weights or {}).items()}
        self.batch_size: int = batch_size  # pyright: ignore[reportIncompatibleVariableOverride] (never None here)
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.augment = augment
        self.name = name
        self.cacheable = augment is None
        self._present: dict[str, Tensor | None] = {}
        self._device = torch.device("cpu")
        self._part = (0, 1)
        self._spread: int | None = None

    def shard(self, index: int, count: int) -> None:
        self._part = (index, count)

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        self._seed = seed if self.seed is None else self.seed
        self._spread = None
        self._length = check_inputs(self.inputs, where)
        if self._length == 0:
            raise ValueError(f"{where}: a split must hold at least one example, found none")
        if self.drop_last and self._length < self.batch_size:
            raise ValueError(
                f"{where}: with `drop_last` there must be at least `batch_size` = {self.batch_size} examples, "
                f"found {self._length}"
            )
        for task in (*self.targets, *self.weights):
            if task not in tasks:
                raise ValueError(f"{where}: targets for an unknown task `{task}`: {nearest(task, tasks)}")
        checked = {name: self._check(tasks[name], values, where) for name, values in self.targets.items()}
        for name, weights in self.weights.items():
            _check_weights(name, weights, self._length, where)
        self._present = {name: _mask_if_needed(tasks[name], values) for name, values in checked.items()}
        self._device = device
        self._inputs = map_inputs(lambda t: t.to(device), self.inputs)
        self._targets = {name: values.to(device) for name, values in checked.items()}
        self._weights = {name: weights.float().to(device) for name, weights in self.weights.items()}

    def _check(self, task: Task, values: Tensor, where: str) -> Tensor:
        if len(values) != self._length:
            raise ValueError(
                f"{where}: inputs and targets must have the same length, found {self._length} inputs and "
                f"{len(values)} targets of task `{task.name}`"
            )
        values = task.check(values, where)
        if not task.present(values).any():
            raise ValueError(
                f"{where}: a task must have at least one target, found none for task `{task.name}` in "
                f"{self._length} examples"
            )
        return values

    @property
    def examples(self) -> int:
        return len(tensors_of(self.inputs)[0])

    @property
    def steps_per_epoch(self) -> int:
        if self._spread is not None:
            return self._spread
        full, rest = divmod(self.examples, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def spread(self, steps: int) -> None:
        if not 1 <= steps <= self._length:
            raise ValueError(f"a source must have an example for each of {steps} steps, found {self._length} examples")
        self._spread = steps

    def label_counts(self) -> dict[str, int]:
        return {name: self.examples if mask is None else int(mask.sum()) for name, mask in self._present.items()}

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        order = permutation(self._length, self._seed, epoch) if self.shuffle else torch.arange(self._length)
        for step, rows in enumerate(self._chunks(order, start), start):
            yield (self._batch(rows, (self._seed, epoch, step)),)

    def _chunks(self, order: Tensor, start: int) -> Iterable[Tensor]:
        """The rows of each step from `start` on."""
        if self._spread is not None:
            return order.tensor_split(self._spread)[start:]
        size, steps = self.batch_size, self.steps_per_epoch
        if start >= steps:
            return ()
        # a block at a time: a tensor for every step of an epoch would take memory that each pass asks for anew
        blocks = order[start * size : steps * size].split(BLOCK * size)
        return chain.from_iterable(block.split(size) for block in blocks)

    def in_order(self, size: int) -> Iterator[Batch]:
        for begin in range(0, self._length, size):
            part = slice(begin, min(begin + size, self._length))
            counts = {
                name: part.stop - part.start if mask is None else int(mask[part].sum())
                for name, mask in self._present.items()
            }
            yield Batch(
                None,
                {name: values[part] for name, values in self._targets.items()},
                counts, part.stop - part.start, self.name, torch.arange(part.start, part.stop),
                {name: weights[part] for name, weights in self._weights.items()},
                partial(map_inputs, itemgetter(part), self._inputs),
            )  # fmt: skip

    def _batch(self, rows: Tensor, draw: tuple[int, int, int]) -> Batch:
        everywhere = None
        if self._part[1] > 1:
            everywhere = self._counts(rows)
            rows = rows[portion(len(rows), *self._part)]
        size, counts = len(rows), self._counts(rows)
        on_host, rows = rows, rows.to(self._device)
        return Batch(
            None,
            {name: values.index_select(0, rows) for name, values in self._targets.items()},
            counts, size, self.name, rows if self.cacheable else None,
            {name: weights.index_select(0, rows) for name, weights in self._weights.items()},
            partial(self._gather, on_host, rows, draw), everywhere,
        )  # fmt: skip

    def _counts(self, rows: Tensor) -> dict[str, int]:
        return {name: len(rows) if mask is None else int(mask[rows].sum()) for name, mask in self._present.items()}

    def _gather(self, on_host: Tensor, rows: Tensor, draw: tuple[int, int, int]) -> Any:
        # what lies on the host is gathered there: asking the device for the numbers back would wait for it
        inputs = map_inputs(lambda t: t.index_select(0, on_host if isinstance(t, Rows) else rows), self._inputs)
        if self.augment is None:
            return inputs
        others = self._part[:1] if self._part[0] else ()  # two ranks must not draw the same for their examples
        generator = torch.Generator(self._device).manual_seed(derived_seed(*draw, 1, *others))
        return self.augment(inputs, generator)

    def describe(self) -> dict[str, Any]:
        described = {"batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed}
        tensors = [*tensors_of(self._inputs), *self._targets.values(), *self._weights.values()]
        more = {
            "drop_last": self.drop_last,
            "sums": [_sum(stored) for stored in tensors],
            "augment": _name(self.augment),
        }
        return super().describe() | described | more


def as_tensors(inputs: Any) -> Any:
    """Arrays to tensors within tuples and dictionaries; NumPy's float64 becomes float32, a sparse matrix `SparseRows`.

    Raises:
        TypeError: something in there is neither.
    """
    if isinstance(inputs, Rows) or is_sparse(inputs):  # first: one of SciPy's formats is a mapping
        return inputs if isinstance(inputs, Rows) else SparseRows(inputs)
    if isinstance(inputs, Mapping):
        return {name: as_tensors(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(as_tensors(value) for value in inputs)
    try:
        tensor = torch.as_tensor(inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        found = type(inputs).__name__
        raise TypeError(
            f"inputs must be a tensor, an array, or a tuple or dictionary of them, found {found}"
        ) from error
    return tensor.float() if tensor.dtype == torch.float64 and not isinstance(inputs, Tensor) else tensor


def _sum(stored: Tensor | Rows) -> str:
    if isinstance(stored, Rows):
        return stored.digest()
    return repr(torch.nansum(stored, dtype=torch.float64).item())


def _name(augment: Augmentation | None) -> str | None:
    """What tells one augmentation from another in any process: a data class's fields, else a name."""
    if augment is None or is_dataclass(augment):
        return None if augment is None else repr(augment)
    return getattr(augment, "__qualname__", type(augment).__qualname__)


def _check_weights(task: str, weights: Tensor, length: int, where: str) -> None:
    if weights.shape != (length,):
        raise ValueError(
            f"{where}: sample weights must have shape ({length},), found {tuple(weights.shape)} for task `{task}`"
        )
    if not (weights >= 0).all():
        raise ValueError(f"{where}: sample weights must be at least 0, found {weights.min().item()} for task `{task}`")


def _mask_if_needed(task: Task, values: Tensor) -> Tensor | None:
    present = task.present(values)
    return None if present.all() else present
