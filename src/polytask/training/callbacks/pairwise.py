"""What GradientCosines and Affinity have in common: a figure for every pair of tasks, averaged over each epoch."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polytask.batch import Batch
from polytask.callback import Callback
from polytask.data.source import Source
from polytask.errors import whole
from polytask.training.probe import Probe, probing

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger(__name__)

MEET = "use `Zip`, or `accumulate` at least the number of sources"
"""How tasks of different sources come into one step."""


class Pairwise(Callback, ABC):
    """Looks at every `every`-th step of an epoch, from its first one on, before the step is made.

    Of several sources that take turns, the steps of each set of sources are counted on their own: no order of turns
    keeps one from being looked at.

    Epochs in which the shared block rests are not looked at, and have no such columns; nor has a pair that was in no
    step that was looked at. A figure that a step leaves undefined does not enter the mean, which is NaN if all do.
    Where it is known beforehand that no two tasks will meet, the fit is refused; where an epoch shows it, the log says
    so, once.

    Args:
        every: steps between looks, at least 1.

    Attributes:
        kind: the first part of the columns' names, ``<kind>/<a>/<b>``.
        symmetric: whether (a, b) and (b, a) are one figure, kept for the pair in the order of the tasks.
    """

    kind: str
    symmetric: bool = False

    def __init__(self, every: int) -> None:
        whole("every", every, 1)
        self.every = every
        self._warned = False
        self._reset(0)

    @abstractmethod
    def measure(self, run: Run, probe: Probe) -> Tensor:
        """The figures (K, K) of the K tasks of a probe; the diagonal is not looked at."""

    def on_fit_start(self, run: Run) -> None:
        tasks, name = list(run.trainer.tasks), type(self).__name__
        if len(tasks) < 2:
            raise ValueError(f"{name} must have at least two tasks to compare, found {len(tasks)}: `{tasks[0]}`")
        if not any(p.requires_grad for p in run.model.blocks().shared.parameters):
            raise ValueError(
                f"{name} must have a shared block with parameters to train, found none in {type(run.model).__name__}"
            )
        pairs = list(combinations(tasks, 2))
        if never_meet(run.train, tasks, run.trainer.accumulate, run.epochs) == pairs:
            raise ValueError(f"{name} must have steps with targets of two tasks, and no step would hold any: {MEET}")
        self._warned = False
        self._reset(len(tasks))

    def on_step_start(self, run: Run, batches: Sequence[Batch]) -> None:
        if not run.trainer.schedule.moves_shared(run.epoch):
            return
        sources = _sources(run, batches)
        count = self._steps.get(sources, 0)
        self._steps[sources] = count + 1
        if count % self.every:
            return
        with probing(run, batches) as probe:
            if len(probe.names) < 2:
                return
            found = self.measure(run, probe).cpu().double()
        order = list(run.trainer.tasks)
        places = torch.tensor([order.index(name) for name in probe.names])
        self._met[places[:, None], places] = True
        known = torch.isfinite(found)
        self._sums[places[:, None], places] += torch.where(known, found, 0.0)
        self._counts[places[:, None], places] += known.long()

    def figures(self, run: Run) -> Mapping[str, float]:
        pairs = [
            (i, j, f"{self.kind}/{first}/{second}")
            for (i, first), (j, second) in permutations(enumerate(run.trainer.tasks), 2)
            if i < j or not self.symmetric
        ]
        means = (self._sums / self._counts).tolist()  # NaN for a pair that met and was left undefined
        found = {column: means[i][j] for i, j, column in pairs if self._met[i, j]}
        if not found and not self._warned and run.trainer.schedule.moves_shared(run.epoch):
            self._warned = True
            logger.warning("%s: no step held targets of two tasks: %s", type(self).__name__, MEET)
        self._reset(len(run.trainer.tasks))
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self._sums.clone(),
            "counts": self._counts.clone(),
            "met": self._met.clone(),
            "steps": [[list(sources), count] for sources, count in self._steps.items()],
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()
        self._met, self._warned = state["met"].clone(), state["warned"]
        self._steps = {tuple(sources): count for sources, count in state["steps"]}

    def _reset(self, tasks: int) -> None:
        self._sums = torch.zeros(tasks, tasks, dtype=torch.float64)
        self._counts = torch.zeros(tasks, tasks, dtype=torch.int64)
        self._met = torch.zeros(tasks, tasks, dtype=torch.bool)
        self._steps: dict[tuple[str, ...], int] = {}


def never_meet(source: Source, tasks: Sequence[str], accumulate: int, epochs: int) -> list[tuple[str, str]]:
    """The pairs of tasks of which it is known before training that no step holds targets of both.

    Known are which tasks each of several sources brings, and whose turn it is; of tasks that one source brings it
    counts as possible that they meet. Nothing is known if a source cannot tell its targets or turns, if each of several
    processes brings its own examples, nor of a source that adapts and whose batches are accumulated.

    Args:
        source: the training data, bound.
        tasks: their names, in order.
        accumulate: batches that make one step.
        epochs: how many will be trained.
    """
    if source.divided:  # each process knows its own examples only
        return []
    brought = [part.label_counts() for part in source.parts.values()]
    apart = dict.fromkeys(combinations(tasks, 2), True)
    for counts in brought:
        if counts is None:
            return []
        for one, other in apart:
            apart[one, other] &= not (counts.get(one) and counts.get(other))
    for met in _meetings(source, accumulate, epochs):
        here = {task for index in met for task, count in (brought[index] or {}).items() if count}
        for one, other in apart:
            apart[one, other] &= not {one, other} <= here
        if not any(apart.values()):
            break
    return [pair for pair, never in apart.items() if never]


def _meetings(source: Source, accumulate: int, epochs: int) -> Iterator[list[int]]:
    """The sets of sources, as positions, that steps draw from; all of them in one where it is not known."""
    everything = list(range(len(source.parts)))
    first = source.turns(0)
    if first is None or (source.monitored and accumulate > 1):
        yield everything
        return
    if first.shape[1] * accumulate == 1:  # whoever's turn it is, it is alone
        return
    for epoch in range(epochs):
        turns = source.turns(epoch)
        if turns is None:
            yield everything
            return
        missing = -len(turns) % accumulate  # the last step of an epoch may have fewer batches: the last one again
        steps = torch.cat([turns, turns[-1:].expand(missing, -1)]).reshape(-1, accumulate * turns.shape[1])
        yield from steps.sort(dim=1).values.unique(dim=0).tolist()


def _sources(run: Run, batches: Sequence[Batch]) -> tuple[str, ...]:
    """The sources of a step, the same on every rank; () where there is only one."""
    if len(run.train.parts) < 2:
        return ()
    own = {batch.source for batch in batches}
    if run.train.divided:  # a rank whose data have ended has no batch to tell
        own = set().union(*run.ranks.objects(sorted(own)))
    return tuple(sorted(own))
