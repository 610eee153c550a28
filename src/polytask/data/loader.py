"""Other people's DataLoaders as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from polytask.batch import Batch, map_inputs
from polytask.data.source import Source, check_inputs, derived_seed, portion
from polytask.errors import nearest
from polytask.task import Task


class Loader(Source):
    """Any iterable of batches that starts anew at each `iter`, a torch DataLoader first of all.

    A batch may be (inputs, {task: targets}), (inputs, targets) with one tensor per task in the tasks'
    order, or a dictionary whose keys include the tasks' names (the other keys are the inputs, as with
    Hugging Face data sets; a single one is passed on as a bare tensor).

    The loader draws from a random stream of its own, seeded by (seed, epoch), so the batches of an epoch do
    not depend on what the network drew meanwhile. Resuming is exact at epoch boundaries; inside an epoch the
    batches already seen are drawn again and dropped. Draws from NumPy's or Python's global generators inside
    the loader's workers are the user's own affair.

    Where several processes train together, each brings its part of every batch: a DataLoader whose sampler is a
    `torch.utils.data.distributed.DistributedSampler` (its `set_epoch` is called), or one over a stream
    that the user has split. A rank whose loader ends early goes on without examples until all have ended.

    Args:
        loader: the iterable.
        seed: seed of its stream; None takes the trainer's.
        name: label of the source.
    """

    def __init__(self, loader: Any, *, seed: int | None = None, name: str = "") -> None:
        self.loader = loader
        self.seed = seed
        self.name = name
        self._generators = _generators(loader)
        self._at_epoch_start = [g.get_state() for g in self._generators]
        self._sampler = _distributed_sampler(loader)
        self.divided = self._sampler is not None or isinstance(getattr(loader, "dataset", None), IterableDataset)
        self._part = (0, 1)
        self._served = loader  # what training steps come from

    def shard(self, index: int, count: int) -> None:
        self._part = (index, count)
        if count == 1 or (self.divided and self._sampler is None):
            return
        if self._sampler is None:
            raise ValueError(
                f"with {count} processes a loader must have a DistributedSampler (or be given as the data set "
                f"itself, or as arrays), found {_sampler_name(self.loader)}"
            )
        found = (self._sampler.rank, self._sampler.num_replicas)
        if found != (index, count):
            raise ValueError(
                f"the DistributedSampler must be that of rank {index} of {count}, found rank {found[0]} of {found[1]}"
            )

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        self._seed = seed if self.seed is None else self.seed
        self._tasks, self._device, self._where = dict(tasks), device, where
        if self.steps_per_epoch == 0 and self._part[1] == 1:
            raise ValueError(f"{where}: a split must hold at least one example, found an empty loader")

    @property
    def steps_per_epoch(self) -> int | None:
        try:
            return len(self.loader)
        except TypeError:
            return None

    @property
    def examples(self) -> int | None:
        try:
            return len(self.loader.dataset)
        except (AttributeError, TypeError):
            return None

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        if start:
            for generator, state in zip(self._generators, self._at_epoch_start, strict=True):
                generator.set_state(state)
        else:
            self._at_epoch_start = [g.get_state() for g in self._generators]
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
        others = self._part[:1] if self._part[0] and self.divided else ()
        for step, batch in enumerate(self._own_stream(self._served, derived_seed(self._seed, epoch, *others))):
            if step >= start:
                yield () if batch is None else (self._convert(batch),)

    def in_order(self, size: int) -> Iterator[Batch]:
        found = 0
        for batch in self._own_stream(self.loader, derived_seed(self._seed)):
            found += 1
            yield self._convert(batch)
        if not found and not self.divided:
            raise ValueError(f"{self._where}: a split must hold at least one example, found an empty loader")

    def _own_stream(self, loader: Any, seed: int) -> Iterator[Any]:
        outer = torch.random.get_rng_state()
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        inside = True  # whether the global stream is the loader's at this moment
        try:
            iterator, batch = iter(loader), None
            while True:
                batch = next(iterator, _END)
                inner = torch.random.get_rng_state()
                torch.random.set_rng_state(outer)
                inside = False
                if batch is _END:
                    return
                yield batch
                outer = torch.random.get_rng_state()
                torch.random.set_rng_state(inner)
                inside = True
        finally:
            if inside:
                torch.random.set_rng_state(outer)

    def _convert(self, batch: Any) -> Batch:
        inputs, targets = split_batch(batch, tuple(self._tasks), self._where)
        inputs = map_inputs(torch.as_tensor, inputs)
        size = check_inputs(inputs, self._where)
        checked, counts = {}, {}
        for name, values in targets.items():
            if name not in self._tasks:
                raise ValueError(f"{self._where}: targets for an unknown task `{name}`: {nearest(name, self._tasks)}")
            if len(values) != size:
                raise ValueError(
                    f"{self._where}: inputs and targets must have the same length, found {size} inputs and "
                    f"{len(values)} targets of task `{name}`"
                )
            checked[name] = self._tasks[name].check(torch.as_tensor(values), self._where)
            counts[name] = int(self._tasks[name].present(checked[name]).sum())
        return Batch(inputs, checked, counts, size, self.name).to(self._device)

    def describe(self) -> dict[str, Any]:
        size = getattr(self.loader, "batch_size", None)
        return super().describe() | {"batches": self.steps_per_epoch, "batch_size": size, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        now = [g.get_state() for g in self._generators]
        return {"epoch_start": list(self._at_epoch_start), "now": now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._at_epoch_start = list(state["epoch_start"])
        for generator, saved in zip(self._generators, state["now"], strict=True):
            generator.set_state(saved)


class DatasetLoader(Loader):
    """A map-style data set, batched here; of several processes each loads its part of every batch.

    Args:
        dataset: the data set; its `collate`, if it has one, joins examples to a batch.
        batch_size: examples per step over all processes.
        shuffle: whether they are shuffled each epoch, unless they stream.
    """

    def __init__(self, dataset: Any, batch_size: int, shuffle: bool) -> None:
        super().__init__(loader_over(dataset, batch_size, shuffle))

    def shard(self, index: int, count: int) -> None:
        if self.divided:
            super().shard(index, count)
            return
        self._part = (index, count)
        self._served = self.loader if count == 1 else _parted(self.loader, index, count)


class _Portions(Sampler[list[int]]):
    """One rank's portion, maybe empty, of each batch of row numbers."""

    def __init__(self, batches: BatchSampler, index: int, count: int) -> None:
        self._batches, self._index, self._count = batches, index, count

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        every = list(self._batches)  # drawn at once, from the stream that all ranks have in common
        if self._index:  # what data sets draw while they load must not be the same on all ranks
            torch.manual_seed(derived_seed(int(torch.randint(2**62, ())), self._index))
        for rows in every:
            yield rows[portion(len(rows), self._index, self._count)]


def _parted(loader: DataLoader[Any], index: int, count: int) -> DataLoader[Any]:
    collate: Callable[..., Any] = loader.collate_fn
    batches: Any = loader.batch_sampler
    return DataLoader(
        loader.dataset, batch_sampler=_Portions(batches, index, count),
        collate_fn=lambda rows: collate(rows) if rows else None,
    )  # fmt: skip


_END: Any = object()


def _distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    batches = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        if isinstance(sampler, DistributedSampler):
            return sampler
    return None


def _sampler_name(loader: Any) -> str:
    sampler = getattr(loader, "sampler", None)
    return f"a {type(loader).__name__} without a sampler" if sampler is None else f"a {type(sampler).__name__}"


def _generators(loader: Any) -> list[torch.Generator]:
    """The random generators that the user gave to the loader or its samplers, each once."""
    holders = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    found = {id(g): g for h in holders if isinstance(g := getattr(h, "generator", None), torch.Generator)}
    return list(found.values())


def split_batch(batch: Any, tasks: Sequence[str], where: str) -> tuple[Any, dict[str, Tensor]]:
    """A batch as (inputs, {task: targets}); see `Loader` for the forms understood.

    Raises:
        ValueError: the batch has another form; the message shows what was found.
    """
    if isinstance(batch, Mapping) and any(name in batch for name in tasks):
        inputs = {key: value for key, value in batch.items() if key not in tasks}
        targets = {name: batch[name] for name in tasks if name in batch}
        return (next(iter(inputs.values())) if len(inputs) == 1 else inputs), targets
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        if isinstance(inputs, list):
            inputs = tuple(inputs)
        if isinstance(targets, Mapping):
            return inputs, dict(targets)
        if isinstance(targets, Tensor) and len(tasks) == 1:
            return inputs, {tasks[0]: targets}
        if isinstance(targets, (tuple, list)) and len(targets) == len(tasks):
            return inputs, dict(zip(tasks, targets, strict=True))
    raise ValueError(
        f"{where}: a batch must be (inputs, {{task: targets}}), (inputs, targets in the order of the tasks "
        f"{list(tasks)}) or a dictionary with the tasks' names among its keys, found {_form(batch)}"
    )


def _form(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dictionary with keys {sorted(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {[type(part).__name__ for part in batch]}"
    return type(batch).__name__


def loader_over(dataset: Any, batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """A plain DataLoader over a map-style or iterable data set."""
    streaming = isinstance(dataset, torch.utils.data.IterableDataset)
    collate: Callable[..., Any] | None = getattr(dataset, "collate", None)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle and not streaming, collate_fn=collate)
