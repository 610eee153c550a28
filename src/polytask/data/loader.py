"""Other people's DataLoaders as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from polytask.batch import Batch, map_inputs
from polytask.data.source import Source, check_inputs, derived_seed
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

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        self._seed = seed if self.seed is None else self.seed
        self._tasks, self._device, self._where = dict(tasks), device, where
        if self.steps_per_epoch == 0:
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
        for step, batch in enumerate(self._own_stream(derived_seed(self._seed, epoch))):
            if step >= start:
                yield (self._convert(batch),)

    def in_order(self, size: int) -> Iterator[Batch]:
        found = 0
        for batch in self._own_stream(derived_seed(self._seed)):
            found += 1
            yield self._convert(batch)
        if not found:
            raise ValueError(f"{self._where}: a split must hold at least one example, found an empty loader")

    def _own_stream(self, seed: int) -> Iterator[Any]:
        outer = torch.random.get_rng_state()
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        inside = True  # whether the global stream is the loader's at this moment
        try:
            iterator, batch = iter(self.loader), None
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


_END: Any = object()


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
