"""What mixtures have in common: one source made of several, each read on and on in its own order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from polytask.batch import Batch
from polytask.data.source import Source, derived_seed
from polytask.errors import whole
from polytask.task import Task


class Mixture(Source):
    """A source made of several, each of which brings inputs for some of the tasks.

    Every batch comes from one of the sources and carries its name (`Batch.source`). Their inputs may differ in kind if
    the model has an encoder for each (`polytask.models.BySource`).

    Each source is read on and on, in an order of its own: where an epoch of the mixture leaves it, the next goes on,
    and it draws a new order whenever it has been read to its end. What is served at (epoch, step) follows from the seed
    and, for a mixture that adapts, from `state_dict`; of several processes all make the same choices, and each gets its
    part of every batch.

    Args:
        sources: {name: a Source, a DataLoader, a torch Dataset or (inputs, {task: targets})}, at least one. Names must
            be free of dots, as they name modules.
        seed: of the draws and, where a source has none of its own, of its order; None takes the trainer's.
        batch_size: for the arrays and data sets among `sources`; the trainer, if it makes the mixture, gives its own.

    Raises:
        ValueError: there is no source, a name is empty or has a dot, `batch_size` is missing, or (when bound) a source
            does not fit the tasks or brings targets of none.
        TypeError: something is not a source, or is a mixture itself.
    """

    def __init__(self, sources: Mapping[str, Any], *, seed: int | None = None, batch_size: int | None = None) -> None:
        if not isinstance(sources, Mapping):
            raise TypeError(f"`sources` must be a mapping of names to sources, found {type(sources).__name__}")
        if not sources:
            raise ValueError("a mixture must have at least one source, found none")
        self.sources = {name: _source(name, data, batch_size) for name, data in sources.items()}
        self.seed = seed
        self._seed = 0
        self._part = (0, 1)
        self._tells = all(source.tells_everywhere for source in self.sources.values())
        self._forget()

    @abstractmethod
    def turns(self, epoch: int) -> Tensor:
        """Whose turn each step of epoch `epoch` is: (steps, sources per step), positions in `sources`.

        Raises:
            ValueError: a source does not know how many steps a pass over it has.
        """

    # The contract of sources

    @property
    def parts(self) -> dict[str, Source]:
        return self.sources

    @property
    def cacheable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any of the sources is."""
        return any(source.cacheable for source in self.sources.values())

    @property
    def divided(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether each process brings examples of its own, to all of the sources."""
        return all(source.divided for source in self.sources.values())

    def shard(self, index: int, count: int) -> None:
        self._check_alike(count)
        for source in self.sources.values():
            source.shard(index, count)
        self._part = (index, count)

    def check_parts(self, index: int, count: int) -> None:
        self._check_alike(count)
        for source in self.sources.values():
            source.check_parts(index, count)

    def _check_alike(self, count: int) -> None:
        divided = [name for name, source in self.sources.items() if source.divided]
        if count > 1 and 0 < len(divided) < len(self.sources):
            raise ValueError(
                f"with {count} processes all sources of a mixture must be divided among them, or none, found {divided} "
                f"divided of {list(self.sources)}"
            )

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        self._seed = seed if self.seed is None else self.seed
        for index, (name, source) in enumerate(self.sources.items()):
            try:
                source.bind(tasks, device, f"{where}, source `{name}`", derived_seed(self._seed, 2, index))
            except ValueError as error:
                raise ValueError(f"{error}{self._others(name, tasks, where)}") from error
            counts = source.label_counts()
            if counts is not None and not any(counts.values()):
                raise ValueError(
                    f"{where}: every source must have targets of at least one task, found none in `{name}`"
                )
        self._forget()

    def _others(self, name: str, tasks: Mapping[str, Task], where: str) -> str:
        """If a source's targets do not fit a task that others bring too: who they are."""
        for task, values in _targets(self.sources[name]).items():
            others = [
                f"`{other}`" for other, source in self.sources.items() if other != name and task in _targets(source)
            ]
            if task in tasks and others and not _fits(tasks[task], values, where):
                named = ", ".join(others)
                return f"; sources that share a task must agree on its classes, and `{task}` also comes from {named}"
        return ""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps of every epoch; each mixture says what they are."""

    @property
    def examples(self) -> int | None:
        """Examples of all sources, as `in_order` gives them; None if one does not know."""
        counts = [source.examples for source in self.sources.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def label_counts(self) -> dict[str, int] | None:
        total: dict[str, int] = {}
        for source in self.sources.values():
            counts = source.label_counts()
            if counts is None:
                return None
            for task, count in counts.items():
                total[task] = total.get(task, 0) + count
        return total

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        turns, count = self.turns(epoch), len(self.sources)
        places = (self._places(epoch) + _visits(turns[:start], count)).tolist()
        kept, self._kept = self._kept, None
        readers = kept[1] if kept and kept[0] == places else self._readers(places)
        if turns.shape[1] == 1:  # as good as free
            yield from map(next, map(readers.__getitem__, turns[start:, 0].tolist()))
        else:
            for turn in turns[start:].tolist():
                yield tuple(batch for index in turn for batch in next(readers[index]))
        self._kept = self._places(epoch + 1).tolist(), readers

    def in_order(self, size: int) -> Iterator[Batch]:
        for name, source in self.sources.items():
            for batch in source.in_order(size):
                batch.source = name
                yield batch

    def observe(self, row: Mapping[str, Any]) -> None:
        for source in self.sources.values():
            source.observe(row)

    def state_dict(self) -> dict[str, Any]:
        return {"sources": {name: source.state_dict() for name, source in self.sources.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, source in self.sources.items():
            source.load_state_dict(state["sources"][name])
        self._forget()

    def describe(self) -> dict[str, Any]:
        parts = {name: source.describe() for name, source in self.sources.items()}
        return super().describe() | {"seed": self.seed, "sources": parts}

    # Where each source is

    def length(self, name: str) -> int:
        """Steps of one pass over a source.

        Raises:
            ValueError: it does not know them.
        """
        steps = self.sources[name].steps_per_epoch
        if steps is None:
            raise ValueError(
                f"a source of a {type(self).__name__} must know how many steps a pass over it has, found a stream: "
                f"`{name}`"
            )
        return steps

    @property
    def lengths(self) -> list[int]:
        """Steps of one pass over each source."""
        return [self.length(name) for name in self.sources]

    def _places(self, epoch: int) -> Tensor:
        """How many steps of each source (K,) the epochs before this one took."""
        while len(self._before) <= epoch:
            earlier = len(self._before) - 1
            self._before.append(self._before[-1] + _visits(self.turns(earlier), len(self.sources)))
        return self._before[epoch]

    def _readers(self, places: list[int]) -> list[Iterator[tuple[Batch, ...]]]:
        sources = zip(self.sources.items(), self.lengths, places, strict=True)
        return [_reader(name, source, length, place, self._tells) for (name, source), length, place in sources]

    def _forget(self) -> None:
        """Forgets what was counted of other epochs, and where sources stood."""
        self._before = [torch.zeros(len(self.sources), dtype=torch.int64)]
        self._kept: tuple[list[int], list[Iterator[tuple[Batch, ...]]]] | None = (
            None  # places, and who reads from there
        )


def _reader(name: str, source: Source, length: int, place: int, tells: bool) -> Iterator[tuple[Batch, ...]]:
    """Reads one source on and on, pass after pass, from a place: the number of steps read before."""
    epoch, start = divmod(place, length)
    while True:
        steps = _pass(name, source.steps(epoch, start), length, start)
        if tells:
            yield from steps
        else:
            for batches in steps:
                for batch in batches:  # all batches of a step must tell the counts of all ranks, or none
                    batch.source, batch.everywhere = name, None
                yield batches
        epoch, start = epoch + 1, 0


def _pass(name: str, steps: Iterator[tuple[Batch, ...]], length: int, start: int) -> Iterator[tuple[Batch, ...]]:
    """The rest of a pass, which must have the steps that its source tells of."""
    yield from islice(steps, length - start - 1)
    last = next(steps, None)
    # to its very end, where a sampler may draw once more: a resumed run begins the next pass from there
    if last is not None and next(steps, None) is None:
        yield last
        return
    found = "fewer" if last is None else "more"
    raise ValueError(f"source `{name}` must serve the {length} steps it tells of, found {found}")


def _visits(turns: Tensor, count: int) -> Tensor:
    return torch.bincount(turns.flatten(), minlength=count)


def _source(name: Any, data: Any, batch_size: int | None) -> Source:
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"a source's name must be non-empty and free of '.' (it names modules), found {name!r}")
    if isinstance(data, (Mixture, Mapping)):
        raise TypeError(f"a mixture's sources must be single ones, found a {type(data).__name__} as `{name}`")
    from polytask.data.accept import as_source  # which makes a mixture of a mapping, hence not at the top

    if batch_size is not None:
        whole("batch_size", batch_size, 1)
    elif not isinstance(data, (Source, DataLoader)):
        raise ValueError(f"`batch_size` must be given where a mixture is made of plain data, found none for `{name}`")
    source = as_source(data, {}, batch_size=batch_size or 1, shuffle=True, where=f"source `{name}`:")
    source.name = name
    return source


def _targets(source: Source) -> Mapping[str, Any]:
    """The raw targets of a source that holds them in memory."""
    return getattr(source, "targets", {})


def _fits(task: Task, values: Any, where: str) -> bool:
    try:
        task.check(torch.as_tensor(values), where)
    except ValueError:
        return False
    return True
