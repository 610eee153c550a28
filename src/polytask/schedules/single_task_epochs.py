"""One task an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.errors import whole
from polytask.schedules.base import Schedule
from polytask.schedules.task_schedule import TaskSchedule, check_names


@final
class SingleTaskEpochs(TaskSchedule):
    """One task an epoch, all tasks in turn: the naive baseline that shows catastrophic forgetting.

    While one task is trained nothing holds the shared block where the others need it, so their losses rise
    until their turn comes again, the more the longer a turn lasts; with a turn of one step (what `BySize` with
    alpha 0 does at random) little is lost. Kirkpatrick et al. 2017, `arXiv:1612.00796
    <https://arxiv.org/abs/1612.00796>`_, describe forgetting between tasks learned in sequence.

    Figures are comparable between ends of whole cycles, in which every task has had its turn: what early stopping
    looks at by default.

    Args:
        order: every task once; the trainer's order if None.
        cycles: length of a turn, at least 1, counted in cycles of the inner schedule: under `Joint` and SAT a cycle is
            one epoch; under ATE it is its shared and specific epochs together, so that a turn trains both kinds of
            blocks. `AlternateEpochs(1, 2)` with ``cycles=2`` makes turns of 6 epochs. (`Curriculum` counts epochs.)
        inner: which blocks move; `Joint` if None.

    Raises:
        ValueError: a number out of range or a task twice; at the start of a fit a name that is no task's, or a task
            that is not named.
        TypeError: `order` is a single name, or `cycles` is not whole.

    >>> from polytask.schedules import AlternateEpochs
    >>> schedule = SingleTaskEpochs(inner=AlternateEpochs(1, 1))
    >>> schedule.setup(["circle", "digit"])
    >>> [schedule.phase(epoch) for epoch in range(3)]
    ['shared, task circle', 'specific, task circle', 'shared, task digit']
    """

    def __init__(self, order: Sequence[str] | None = None, cycles: int = 1, *, inner: Schedule | None = None) -> None:
        super().__init__(inner)
        if isinstance(order, str):
            raise TypeError(f"`order` must be a list of tasks, found {order!r}")
        for name in order or ():
            if order is not None and order.count(name) > 1:
                raise ValueError(f"an order must name each task once, found `{name}` twice")
        whole("cycles", cycles, 1)
        self.order = None if order is None else list(order)
        self.cycles = cycles

    @property
    def _turns(self) -> Sequence[str]:
        return self.tasks if self.order is None else self.order

    @property
    def cycle(self) -> int:
        return len(self._turns) * self.cycles * self.inner.cycle

    def setup(
        self,
        tasks: Sequence[str],
        counts: Mapping[str, int] | None = None,
        terms: Mapping[str, str | None] | None = None,
    ) -> None:
        super().setup(tasks, counts, terms)
        check_names("an order", self._turns, tasks)

    def task(self, epoch: int) -> str:
        """Whose turn epoch `epoch` (from 0) belongs to."""
        turn = epoch // (self.cycles * self.inner.cycle)
        return self._turns[turn % len(self._turns)]

    def choose(self, tasks: Sequence[str], epoch: int, step: int) -> list[str]:
        return [name for name in tasks if name == self.task(epoch)]

    def label(self, epoch: int) -> str:
        return f"task {self.task(epoch)}"

    def settings(self) -> dict[str, Any]:
        return {"order": self.order, "cycles": self.cycles}
