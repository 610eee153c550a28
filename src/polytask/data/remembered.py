"""Sources that serve another one's batches with something added."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from polytask.batch import Batch, map_inputs, tensors_of
from polytask.data.source import Source
from polytask.task import Task

logger = logging.getLogger("polytask")

CHUNK = 256
"""Examples looked at together."""


class Wrapped(Source):
    """Serves the batches of another source; a subclass changes what it must.

    Args:
        source: the other one.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._take_over()

    def _take_over(self) -> None:
        source = self.source
        self.cacheable, self.divided = source.cacheable, source.divided
        self.tells_everywhere, self.monitored = source.tells_everywhere, source.monitored

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] (read and set at the other's)
        """The other source's, which labels the batches."""
        return self.source.name

    @name.setter
    def name(self, name: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] (as above)
        self.source.name = name

    @property
    def batch_size(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride] (read at the other's)
        """The other source's."""
        return self.source.batch_size

    @property
    def parts(self) -> Mapping[str, Source]:
        return self.source.parts

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        self.source.bind(tasks, device, where, seed)
        self._take_over()  # a source may know only now

    def shard(self, index: int, count: int) -> None:
        self.source.shard(index, count)

    def check_parts(self, index: int, count: int) -> None:
        self.source.check_parts(index, count)

    @property
    def steps_per_epoch(self) -> int | None:
        return self.source.steps_per_epoch

    @property
    def examples(self) -> int | None:
        return self.source.examples

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        return self.source.steps(epoch, start)

    def preview(self) -> Iterator[tuple[Batch, ...]]:
        return self.source.preview()

    def in_order(self, size: int) -> Iterator[Batch]:
        return self.source.in_order(size)

    def turns(self, epoch: int) -> Tensor | None:
        return self.source.turns(epoch)

    def spread(self, steps: int) -> None:
        self.source.spread(steps)

    def label_counts(self) -> dict[str, int] | None:
        return self.source.label_counts()

    def observe(self, row: Mapping[str, Any]) -> None:
        self.source.observe(row)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state)

    def describe(self) -> dict[str, Any]:
        return self.source.describe()


@final
class Remembered(Wrapped):
    """Adds to every batch what a fixed function gives for its examples, computed once where that is possible.

    It is possible where an example's inputs are the same at every visit (the source is `cacheable`) and the values of
    all its examples take no more than `limit` bytes; of a source made of several, each part is judged by itself, in
    their order, and may take what those before it left of `limit`. All are then computed before the first step, in
    storage order and in chunks of 256, never in the order of training: a run that resumes computes the same bits.
    Values of a chunk and of a training batch may differ in their last bits, as sums over examples are ordered
    otherwise. Elsewhere batches carry nothing and who needs the values calls the function. The log says which. Of
    several processes each computes the values of all the examples it knows.

    Args:
        source: whose batches are served.
        key: a name, or anything hashable, under which `Batch.known` has the values.
        function: batch -> a tensor, or a dictionary of them, examples along the first dimension, that follows from the
            inputs alone; or None for all batches of a source that it does not concern. Called without gradients.
        limit: bytes that all the values may take together, at least 0.

    >>> from polytask.data.arrays import Arrays
    >>> source = Remembered(Arrays(torch.ones(5, 2), {}, batch_size=5), "sum", lambda b: b.inputs.sum(1), 2**20)
    >>> source.bind({}, torch.device("cpu"), "train")
    >>> next(source.steps(0))[0].known["sum"]
    tensor([2., 2., 2., 2., 2.])
    """

    def __init__(self, source: Source, key: Hashable, function: Callable[[Batch], Any], limit: int) -> None:
        super().__init__(source)
        self._key = key
        self._function = function
        self._limit = limit
        self._stores: dict[str, Any] | None = None

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        super().bind(tasks, device, where, seed)
        self._stores = None

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        if self._stores is None:
            self._stores = self._computed()
        for batches in self.source.steps(epoch, start):
            yield tuple(self._with_values(batch, self._stores) for batch in batches)

    @torch.no_grad()
    def preview(self) -> Iterator[tuple[Batch, ...]]:
        """Batches with the values that training would look up for them, computed for them alone."""
        for batches in self.source.preview():
            yield tuple(map(self._with_own_values, batches))

    def _with_own_values(self, batch: Batch) -> Batch:
        part = self.parts.get(batch.source, self.source)
        if not batch.size or batch.rows is None or not part.cacheable or part.examples is None:
            return batch
        values = self._function(batch)
        if values is None or _size(values) * part.examples > self._limit * batch.size:
            return batch
        return batch.but(known=batch.known | {self._key: values})

    def _with_values(self, batch: Batch, stores: Mapping[str, Any]) -> Batch:
        rows = batch.rows
        if rows is None or batch.source not in stores:
            return batch
        values = map_inputs(lambda t: t.index_select(0, rows), stores[batch.source])
        return batch.but(known=batch.known | {self._key: values})

    @torch.no_grad()
    def _computed(self) -> dict[str, Any]:
        """{source name: the values of its examples by row}, without the sources whose values cannot be kept."""
        stores: dict[str, Any] = {}
        for name, part in self.parts.items():
            used = sum(t.numel() * t.element_size() for store in stores.values() for t in tensors_of(store))
            stores |= self._computed_of(name, part, used)
        return stores

    def _computed_of(self, name: str, part: Source, used: int) -> dict[str, Any]:
        if not part.cacheable or part.examples is None:
            return self._refuse(name, "the source streams or augments its inputs")
        rows: dict[str, list[Tensor]] = {}
        chunks: dict[str, list[Any]] = {}
        size, seen = 0, 0
        for batch in part.in_order(CHUNK):
            if batch.rows is None:
                return self._refuse(name, "the source does not tell examples apart")
            batch.source = name or batch.source
            seen += batch.size
            values = self._function(batch)
            if values is None:
                continue
            size += _size(values)
            if size * part.examples > (self._limit - used) * seen:  # known from the first chunk on
                expected = used + size * part.examples // seen
                return self._refuse(name, f"the values take {expected} bytes, above the limit of {self._limit}")
            rows.setdefault(batch.source, []).append(batch.rows)
            chunks.setdefault(batch.source, []).append(values)
        if rows:
            what = self._what(name)
            logger.info("%s: computed once for all training examples, %.1f MiB", what, size / 2**20)
        return {label: _by_row(torch.cat(rows[label]), chunks[label]) for label in rows}

    def _refuse(self, name: str, reason: str) -> dict[str, Any]:
        logger.info("%s: computed anew at every visit: %s", self._what(name), reason)
        return {}

    def _what(self, name: str) -> str:
        return f"{self._key}, source `{name}`" if name else str(self._key)


def _size(values: Any) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors_of(values))


def _by_row(rows: Tensor, parts: list[Any]) -> Any:
    """The values of all chunks as one, the values of row i at i."""
    if isinstance(parts[0], Mapping):
        return {key: _by_row(rows, [part[key] for part in parts]) for key in parts[0]}
    values = torch.cat(parts)
    store = values.new_zeros((int(rows.max()) + 1, *values.shape[1:]))
    store[rows.to(values.device)] = values
    return store
