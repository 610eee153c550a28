"""Tasks that enter over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.errors import whole
from polytask.schedules.base import Schedule
from polytask.schedules.drawing import Drawing
from polytask.schedules.task_schedule import check_names


@final
class Curriculum(Drawing):
    """Tasks enter one after the other, and those that are in stay.

    A curriculum over tasks, from easy to hard or from general to special, so that later tasks start from features
    that earlier ones shaped; which order helps depends on the tasks (Pentina et al. 2015, *Curriculum Learning
    of Multiple Tasks*, `arXiv:1412.1353 <https://arxiv.org/abs/1412.1353>`_, learns one). If all tasks start at 0,
    it is the inner schedule alone.

    A start is the number of the run's epochs that pass before the task enters: 0 is in from the first epoch on, and a
    task that starts at 5 is first trained in epoch 6 of the history, which counts from 1. These are epochs of the run,
    whatever the inner schedule: within ATE a task may enter in the middle of a cycle, so that its own block moves
    before the shared one has seen it, or the other way round; starts that are multiples of the inner schedule's cycle
    (shared + specific epochs) avoid that.

    With `ramp` = r a newcomer takes part in a step of its j-th epoch, j = 1 ... r, with probability j / (r + 1), and
    always afterwards; those that start at 0 always do.

    Until the last task is in, sums of losses over the tasks are not comparable between epochs; give early
    stopping the patience to wait for that. A schedule that draws tasks, such as `BySize`, goes outside, with the
    curriculum as its inner one: it then draws among the tasks that are in. Inside, it would draw tasks that are not in
    yet, and such steps make no update.

    Args:
        starts: {task: epochs of the run before it enters, at least 0} of every task, one of them 0; or all tasks in the
            order in which they enter, the first of which starts at 0.
        interval: epochs of the run between one task of an order and the next, at least 1; 1 if None.
        ramp: r, in epochs of the run, at least 0.
        seed: of the ramp's draws, which depend on it and on the step alone; at least 0.
        inner: which blocks move; `Joint` if None.

    Raises:
        ValueError: no task, a task twice, no task that starts at 0, a number out of range, or an interval where starts
            are given; at the start of a fit a name that is no task's, or a task that is not named.
        TypeError: `starts` is a single name, or a number is not whole.

    >>> import torch, polytask as pt
    >>> x = torch.rand(32, 2)
    >>> y = {"left": (x[:, 0] < 0.5).float(), "low": (x[:, 1] < 0.5).float()}
    >>> heads = {name: torch.nn.Linear(8, 1) for name in y}
    >>> model = pt.models.HardSharing(pt.models.MLP(2, [8]), heads)
    >>> schedule = pt.schedules.Curriculum({"left": 0, "low": 2})
    >>> trainer = pt.Trainer(model, [pt.binary("left"), pt.binary("low")], schedule=schedule)
    >>> history = trainer.fit((x, y), epochs=3)
    >>> [(row["epoch"], row["phase"], "train/low/loss" in row) for row in history]
    [(1, '1 of 2 tasks', False), (2, '1 of 2 tasks', False), (3, '2 of 2 tasks', True)]

    The same as an order, with another two epochs between one task and the next:

    >>> pt.schedules.Curriculum(["left", "low"], interval=2).starts
    {'left': 0, 'low': 2}
    """

    def __init__(
        self,
        starts: Mapping[str, int] | Sequence[str],
        *,
        interval: int | None = None,
        ramp: int = 0,
        seed: int = 0,
        inner: Schedule | None = None,
    ) -> None:
        super().__init__(inner, seed)
        self.starts = _starts(starts, interval)
        whole("ramp", ramp, 0)
        self.ramp = ramp

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
        parts = {name: part for name in tasks if (part := self._part(name, epoch)) > 0}
        return list(parts) if all(part == 1 for part in parts.values()) else self.each(parts, step)

    def _part(self, name: str, epoch: int) -> float:
        """The part of the steps of an epoch in which a task takes part."""
        since = epoch - self.starts[name]
        if since < 0:
            return 0.0
        return min((since + 1) / (self.ramp + 1), 1.0) if self.starts[name] else 1.0

    def label(self, epoch: int) -> str:
        entered = sum(start <= epoch for start in self.starts.values())
        return f"{entered} of {len(self.starts)} tasks"

    def settings(self) -> dict[str, Any]:
        return {"starts": self.starts, "ramp": self.ramp} | super().settings()


def _starts(starts: Mapping[str, int] | Sequence[str], interval: int | None) -> dict[str, int]:
    """{task: epochs before it enters}, checked."""
    if isinstance(starts, str):
        raise TypeError(f"`starts` must be a mapping or a list of tasks, found {starts!r}")
    if not starts:
        raise ValueError("`starts` must name at least one task, found none")
    if isinstance(starts, Mapping):
        if interval is not None:
            raise ValueError(f"`interval` goes with an order of tasks, found {interval} beside a start for each")
        for name, start in starts.items():
            whole(f"starts[{name}]", start, 0)
        if first := min(starts.values()):
            raise ValueError(f"at least one task must start at 0, in the run's first epoch, found the first at {first}")
        return dict(starts)
    gap = 1 if interval is None else interval
    whole("interval", gap, 1)
    for name in starts:
        if starts.count(name) > 1:
            raise ValueError(f"an order must name each task once, found `{name}` twice")
    return {name: gap * place for place, name in enumerate(starts)}
