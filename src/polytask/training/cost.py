"""What training costs: multiply-accumulates and peak memory of one step, phase by phase."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from polytask.batch import Batch
from polytask.training.features import FeatureCache
from polytask.training.freezing import Freezer, reset_gradients
from polytask.training.optimizers import Optimizers
from polytask.training.step import Step

if TYPE_CHECKING:
    from polytask.data.source import Source
    from polytask.training.trainer import Trainer


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are alive at the same time.

    It sees what operations return, on any device, and not the scratch space inside a kernel; unlike a
    process' resident memory it is the same at every run.

    Attributes:
        peak: largest number of bytes alive at once, so far.
        now: bytes alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        known = {_storage(t) for t in _tensors(args)} | {_storage(t) for t in _tensors(kwargs or {})}
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda t: self._track(t, known), out)
        return out

    def _track(self, tensor: Tensor, known: set[int]) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive and key not in known:
            self._alive.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes())
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, tree)
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_memory(function: Callable[[], Any]) -> int:
    """Peak bytes of tensors that `function` makes; see `PeakMemory`."""
    with PeakMemory() as memory:
        function()
    return memory.peak


def macs(function: Callable[[], Any]) -> int:
    """Multiply-accumulates of `function`: matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def measure(trainer: Trainer, source: Source) -> dict[str, Any]:
    """Parameters, and what one training step costs in each phase of the trainer's schedule.

    One step is made per phase on a copy of the model, so the trainer is left as it was.

    Args:
        trainer: its model, tasks, schedule and optimizer are used.
        source: a bound source; its first step is the one made. Of a source made of several, the first steps that
            each bring one not seen before: figures are their mean by examples, the memory that of the dearest.

    Returns:
        ``parameters`` and ``shared_parameters``; ``forward_macs`` per example; ``phases``: {phase:
        ``macs`` per training example and epoch, ``memory`` in bytes at the peak of a step}, where the phase
        ``specific (cached)`` works on cached features, filling them left out.
    """
    steps = _first_steps(source)
    size = sum(batch.size for batches in steps for batch in batches)
    blocks = trainer.model.blocks()
    with torch.no_grad():
        forward = macs(lambda: [trainer.model(b.inputs, tuple(b.targets), b.source) for each in steps for b in each])
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "shared_parameters": sum(p.numel() for p in blocks.shared.parameters),
        "forward_macs": forward // size,
        "phases": _phases(trainer, source, steps, size),
    }


def _first_steps(source: Source) -> list[tuple[Batch, ...]]:
    """The first steps of an epoch that each bring a source not seen before."""
    missing, steps = set(source.parts), []
    for batches in source.preview():
        found = {batch.source for batch in batches} & missing
        if found:
            steps.append(batches)
            missing -= found
        if not missing:
            break
    return steps


def _phases(trainer: Trainer, source: Source, steps: list[tuple[Batch, ...]], size: int) -> dict[str, Any]:
    schedule, phases = copy.deepcopy(trainer.schedule), {}
    terms = {name: objective.block for name, objective in trainer.objectives.items()}
    schedule.setup(list(trainer.tasks), source.label_counts(), terms)
    for epoch in range(schedule.lead + schedule.cycle):
        phase = schedule.phase(epoch)
        if phase in phases:
            continue
        # two steps, since a schedule may make its updates in turns; their mean is what an epoch costs
        updates = [update for step in (0, 1) for update in schedule.updates(epoch, step)]
        work = _Steps(trainer, source, steps, updates, None)
        phases[phase] = {"macs": macs(work) // (2 * size), "memory": work.memory()}
        frozen = not schedule.moves_shared(epoch)
        if frozen and trainer.model.boundary and source.cacheable and trainer.cache_features is not False:
            cached = _Steps(trainer, source, steps, updates, _first_features(trainer, source, steps))
            phases[f"{phase} (cached)"] = {"macs": macs(cached) // (2 * size), "memory": cached.memory()}
    return phases


def _first_features(
    trainer: Trainer, source: Source, steps: list[tuple[Batch, ...]]
) -> dict[int, dict[str, FeatureCache]]:
    """The caches of each step, by its position."""
    return {
        position: {b.source: _features(trainer, b) for b in batches if source.parts[b.source].cacheable}
        for position, batches in enumerate(steps)
    }


def _features(trainer: Trainer, batch: Batch) -> FeatureCache:
    one: Any = _OneBatch(batch)  # not a Source, but all that the cache asks of one
    with torch.no_grad():
        first = trainer.model.features(batch.inputs, batch.source)
        return FeatureCache(one, trainer.model.features, batch.size, first)


class _OneBatch:
    """The part of a Source that a FeatureCache needs, over one batch."""

    def __init__(self, batch: Batch) -> None:
        self.examples = batch.size
        self._batch = batch

    def in_order(self, size: int) -> list[Batch]:
        return [self._batch]


class _Steps:
    """Calls that make the given updates once, on copies."""

    def __init__(
        self,
        trainer: Trainer,
        source: Source,
        steps: list[tuple[Batch, ...]],
        updates: list[Any],
        caches: dict[int, dict[str, FeatureCache]] | None,
    ) -> None:
        self._model = copy.deepcopy(trainer.model).train()
        objectives = copy.deepcopy(trainer.objectives)
        optimizers = Optimizers(self._model, objectives.values(), trainer.optimization)
        balancer = copy.deepcopy(trainer.balancer)
        balancer.setup([*trainer.tasks, *objectives], source.label_counts())
        self._step = Step(
            self._model, trainer.tasks, objectives, balancer, Freezer(self._model, objectives.values()), optimizers,
            trainer.autocast, trainer.gradients,
        )  # fmt: skip
        self._batches = [[_rows_from_zero(batch) for batch in batches] if caches else batches for batches in steps]
        self._updates = updates
        self._caches = caches

    def __call__(self) -> None:
        for position, batches in enumerate(self._batches):
            for update in self._updates:
                self._step(batches, update, self._caches.get(position) if self._caches else None)

    def memory(self) -> int:
        """Peak bytes of a step once optimizer state exists; gradients are made anew in every step."""
        self()
        reset_gradients(self._model.parameters())
        return peak_memory(self)


def _rows_from_zero(batch: Batch) -> Batch:
    device = next(iter(batch.targets.values())).device
    return batch.but(rows=torch.arange(batch.size, device=device))
