"""Tasks that enter over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.errors import whole
from polytask.schedules.base import Schedule
from polytask.schedules.task_schedule import TaskSchedule, check_names


@final
class Curriculum(TaskSchedule):
    """Tasks enter one after the other, and those that are in stay.

    A curriculum over tasks, from easy to hard or from general to special, so that later tasks start from features
    that earlier ones shaped; which order helps depends on the tasks (Pentina et al. 2015, *Curriculum Learning
    of Multiple Tasks*, `arXiv:1412.1353 <https://arxiv.org/abs/1412.1353>`_, learns one). An order whose tasks
    are all in from epoch 0 is the inner schedule alone.

    With `ramp` = r a newcomer takes part in a step of its j-th epoch, j = 1 ... r, with probability j / (r + 1), and
    always afterwards; those that are in from epoch 0 always do.

    Until the last task is in, sums of losses over the tasks are not comparable between epochs; give early
    stopping the patience to wait for that. A schedule that draws tasks, such as `BySize`, goes outside, with the
    curriculum as its inner one: it then draws among the tasks that are in. Inside, it would draw tasks that are not in
    yet, and such steps make no update.

    Args:
        starts: {task: its first epoch, from 0} of every task, or all tasks in the order in which they enter.
        interval: epochs between one task of an order and the next, at least 1; 1 if None.
        ramp: r, at least 0.
        seed: of the ramp's draws, which depend on it and on the step alone; at least 0.
        inner: which blocks move; `Joint` if None.

    Raises:
        ValueError: no task, a task twice, no task at epoch 0, a number out of range, or an interval where first epochs
            are given; at the start of a fit a name that is no task's, or a task that is not named.
        TypeError: `starts` is a single name, or a number is not whole.

    >>> schedule = Curriculum(["edges", "digit"], interval=5)
    >>> schedule.setup(["digit", "edges"])
    >>> [schedule.phase(epoch) for epoch in (0, 4, 5)]
    ['1 of 2 tasks', '1 of 2 tasks', '2 of 2 tasks']
    >>> sorted(schedule.updates(4, 0)[0].objectives)
    ['edges']
    """

    def __init__(
        self,
        starts: Mapping[str, int] | Sequence[str],
        interval: int | None = None,
        ramp: int = 0,
        seed: int = 0,
        inner: Schedule | None = None,
    ) -> None:
        super().__init__(inner)
        self.starts = _first_epochs(starts, interval)
        whole("ramp", ramp, 0)
        whole("seed", seed, 0)
        self.ramp = ramp
        self.seed = seed

    @property
    def lead(self) -> int:
        return max(self.inner.lead, max(self.starts.values()) + self.ramp)

    def setup(
        self,
        tasks: Sequence[str],
        counts: Mapping[str, int] | None = None,
        terms: Mapping[str, str | None] | None = None,
    ) -> None:
        super().setup(tasks, counts, terms)
        check_names("a curriculum", self.starts, tasks)

    def choose(self, tasks: Sequence[str], epoch: int, step: int) -> list[str]:
        entered = [name for name in tasks if self.starts[name] <= epoch]
        if not any(self._rises(name, epoch) for name in entered):
            return entered
        drawn = dict(zip(self.tasks, self.draws(len(self.tasks), self.seed, step), strict=True))
        parts = {name: (epoch - self.starts[name] + 1) / (self.ramp + 1) for name in entered}
        return [name for name in entered if not self._rises(name, epoch) or drawn[name] < parts[name]]

    def _rises(self, name: str, epoch: int) -> bool:
        start = self.starts[name]
        return 0 < start <= epoch < start + self.ramp

    def label(self, epoch: int) -> str:
        entered = sum(start <= epoch for start in self.starts.values())
        return f"{entered} of {len(self.starts)} tasks"

    def settings(self) -> dict[str, Any]:
        return {"starts": self.starts, "ramp": self.ramp, "seed": self.seed}


def _first_epochs(starts: Mapping[str, int] | Sequence[str], interval: int | None) -> dict[str, int]:
    """{task: first epoch}, checked."""
    if isinstance(starts, str):
        raise TypeError(f"`starts` must be a mapping or a list of tasks, found {starts!r}")
    if not starts:
        raise ValueError("`starts` must name at least one task, found none")
    if isinstance(starts, Mapping):
        if interval is not None:
            raise ValueError(f"`interval` goes with an order of tasks, found {interval} beside their first epochs")
        for name, start in starts.items():
            whole(f"starts[{name}]", start, 0)
        if min(starts.values()):
            raise ValueError(f"at least one task must start at epoch 0, found the first at {min(starts.values())}")
        return dict(starts)
    gap = 1 if interval is None else interval
    whole("interval", gap, 1)
    for name in starts:
        if starts.count(name) > 1:
            raise ValueError(f"an order must name each task once, found `{name}` twice")
    return {name: gap * place for place, name in enumerate(starts)}
