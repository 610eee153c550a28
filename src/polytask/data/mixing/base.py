"""What mixtures have in common: one source made of several, each read on and on in its own order."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count, islice
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from polytask.batch import Batch
from polytask.data.source import Source, derived_seed
from polytask.errors import whole
from polytask.ranks import Ranks
from polytask.task import Task

Step = tuple[Batch, ...]


class Mixture(Source):
    """A source made of several, each of which brings inputs for some of the tasks.

    Every batch comes from one of the sources and carries its name (`Batch.source`). Their inputs may differ in kind if
    the model has an encoder for each (`polytask.models.BySource`).

    Each source is read on and on, in an order of its own: where an epoch of the mixture leaves it, the next goes on,
    and it draws a new order whenever it has been read to its end. What is served at (epoch, step) follows from the seed
    and, for a mixture that adapts, from `state_dict`; of several processes all make the same choices, and each gets its
    part of every batch.

    Made without sources it is a setting, to be called with them: ``Temperature(T=2)(sources)`` is
    ``Temperature(sources, T=2)``, and ``Trainer(..., mixture=Temperature(T=2))`` makes one for the data of each fit.

    Args:
        sources: {name: a Source, a DataLoader, a torch Dataset or (inputs, {task: targets})}, at least one. Names must
            be free of dots, as they name modules. None for a setting without them.
        seed: of the draws and, where a source has none of its own, of its order; None takes the trainer's.
        batch_size: for the arrays and data sets among `sources`; the trainer, if it makes the mixture, gives its own.

    Raises:
        ValueError: there is no source, a name is empty or has a dot, `batch_size` is missing, or (when bound) a source
            does not fit the tasks, brings targets of none, or has not the same size on all ranks.
        TypeError: something is not a source, or is a mixture itself.
    """

    def __init__(
        self, sources: Mapping[str, Any] | None = None, *, seed: int | None = None, batch_size: int | None = None
    ) -> None:
        self.sources: dict[str, Source] = {}
        self.seed = seed
        self._seed = 0
        self._part = (0, 1)
        self._plain_batch_size = batch_size
        if sources is not None:
            self._take(sources)

    def _take(self, sources: Mapping[str, Any]) -> None:
        if not isinstance(sources, Mapping):
            raise TypeError(f"`sources` must be a mapping of names to sources, found {type(sources).__name__}")
        if not sources:
            raise ValueError("a mixture must have at least one source, found none")
        self.sources = {name: _source(name, data, self._plain_batch_size) for name, data in sources.items()}
        self._tells = all(source.tells_everywhere for source in self.sources.values())
        self._forget()

    def __call__(self, sources: Mapping[str, Any]) -> Self:
        """A mixture of these sources with the settings of this one, which has none and stays so.

        Raises:
            ValueError: this one has sources; see `Mixture` for the others.
        """
        if self.sources:
            raise ValueError(
                f"a mixture that is given as a setting must have no sources of its own, found {list(self.sources)}: "
                "it is data, for `fit`"
            )
        made = copy.copy(self)
        made._take(sources)
        return made

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
    def cacheable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] (the sources')
        """Whether any of the sources is."""
        return any(source.cacheable for source in self.sources.values())

    @property
    def divided(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] (the sources')
        """Whether each process brings examples of its own, to all of the sources."""
        return all(source.divided for source in self.sources.values())

    def shard(self, index: int, count: int) -> None:
        self._check_sources()
        self._check_alike(count)
        for source in self.sources.values():
            source.shard(index, count)
        self._part = (index, count)

    def check_parts(self, index: int, count: int) -> None:
        self._check_sources()
        self._check_alike(count)
        for source in self.sources.values():
            source.check_parts(index, count)

    def _check_sources(self) -> None:
        if not self.sources:
            name = type(self).__name__
            raise ValueError(
                f"a mixture must have sources before it can serve them, found a {name} without: give it as `mixture`, "
                f"and {{name: source}} as data, or make it of them, {name}({{name: source}}, ...)"
            )

    def _check_alike(self, count: int) -> None:
        divided = [name for name, source in self.sources.items() if source.divided]
        if count > 1 and 0 < len(divided) < len(self.sources):
            raise ValueError(
                f"with {count} processes all sources of a mixture must be divided among them, or none, found {divided} "
                f"divided of {list(self.sources)}"
            )

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        self._check_sources()
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
        self._check_sizes(where)
        self._forget()

    def _check_sizes(self, where: str) -> None:
        """Whose turn it is follows from what sources tell of their sizes, so all ranks must be told the same."""
        if self._part[1] == 1:
            return
        own = {name: (source.steps_per_epoch, source.examples) for name, source in self.sources.items()}
        told = Ranks().objects(own)
        for what, place in (("steps", 0), ("examples", 1)):
            for name in own:
                found = [sizes[name][place] for sizes in told]
                if len(set(found)) > 1:
                    raise ValueError(
                        f"{where}: a source of a mixture must have as many {what} on every rank, or ranks would choose "
                        f"differently, found {found} for `{name}`: give the data set itself, or parts of one size"
                    )

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
            for task, number in counts.items():
                total[task] = total.get(task, 0) + number
        return total

    def steps(self, epoch: int, start: int = 0) -> Iterator[Step]:
        turns, sources = self.turns(epoch), len(self.sources)
        before = self._places(epoch)
        if len(self._before) == epoch + 1:  # as `_places` would find, which would ask for the turns once more
            self._before.append(before + _visits(turns, sources))
        places = (before + _visits(turns[:start], sources)).tolist()
        kept, self._kept = self._kept, None
        readers = kept[1] if kept and kept[0] == places else self._readers(places)
        if turns.shape[1] == 1:  # nothing but iterators of C, so that mixing is as good as free
            served = map(next, map(readers.__getitem__, turns[start:, 0].tolist()))
        else:
            served = (_joined(readers, turn) for turn in turns[start:].tolist())
        return chain(served, self._kept_for(epoch + 1, readers))

    def _kept_for(self, epoch: int, readers: list[Iterator[Step]]) -> Iterator[Step]:
        """No more steps; on its way, it leaves the readers for the next epoch to go on with."""
        self._kept = self._places(epoch).tolist(), readers
        yield from ()

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
        if steps < 1:
            raise ValueError(f"a source of a mixture must have at least 1 step, found {steps} in `{name}`")
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

    def _readers(self, places: list[int]) -> list[Iterator[Step]]:
        sources = zip(self.sources.items(), self.lengths, places, strict=True)
        return [_reader(name, source, length, place, self._tells) for (name, source), length, place in sources]

    def _forget(self) -> None:
        """Forgets what was counted of other epochs, and where sources stood."""
        self._before = [torch.zeros(len(self.sources), dtype=torch.int64)]
        self._kept: tuple[list[int], list[Iterator[Step]]] | None = None  # places, and who reads from there


def _joined(readers: Sequence[Iterator[Step]], turn: list[int]) -> Step:
    return tuple(batch for index in turn for batch in next(readers[index]))


def _reader(name: str, source: Source, length: int, place: int, tells: bool) -> Iterator[Step]:
    """Reads one source on and on, pass after pass, from a place: the number of steps read before."""
    first, start = divmod(place, length)
    passes = (_pass(name, source, epoch, start if epoch == first else 0, length) for epoch in count(first))
    steps = chain.from_iterable(passes)
    return steps if tells else map(partial(_untold, name), steps)


def _untold(name: str, batches: Step) -> Step:
    """A step's batches as of source `name`: all batches of a step must tell the counts of all ranks, or none."""
    for batch in batches:
        batch.source, batch.everywhere = name, None
    return batches


def _pass(name: str, source: Source, epoch: int, start: int, length: int) -> Iterator[Step]:
    """The rest of a pass, which must have the steps that its source tells of."""
    steps = source.steps(epoch, start)
    return chain(islice(steps, length - start - 1), _last(name, steps, length))


def _last(name: str, steps: Iterator[Step], length: int) -> Iterator[Step]:
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
