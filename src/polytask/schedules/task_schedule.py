"""Task schedules: which tasks take part in a step, within what another schedule moves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polytask.errors import nearest
from polytask.schedules.base import NONE, Schedule, Update
from polytask.schedules.joint import Joint


class TaskSchedule(Schedule):
    """Chooses the tasks of every step, and leaves to an inner schedule which blocks move.

    Of each update of the inner schedule only the chosen tasks are kept: their losses, and their blocks where
    the update moves specific blocks at all. A task that is not chosen takes no part: its block, the optimizer's
    state for it and its training figures stay as they are. An update of which nothing is left is not made.
    Objectives beside the losses take part as the inner schedule says, those whose `block` is a task's only with
    that task.

    The choice is made once a step, among the tasks that the inner schedule lets take part; all updates of
    the step keep to it. Phases, cycles and the caching of features are the inner schedule's.

    A schedule does not see the batches. Where several sources bring different tasks, a chosen task may be absent
    from the step, which then makes no update: the step counts, but learning-rate schedulers and warm-up, which
    count updates, do not move. There a mixture from `polytask.data` chooses the source, and so the tasks.

    A subclass implements `choose` and `label`, and gives its settings in `settings`.

    Args:
        inner: the schedule to restrict; `Joint` if None. It may be a task schedule too.

    Raises:
        TypeError: `inner` is not a schedule.
    """

    def __init__(self, inner: Schedule | None = None) -> None:
        if inner is not None and not isinstance(inner, Schedule):
            raise TypeError(f"`inner` must be a polytask schedule, found {inner!r}")
        self.inner = Joint() if inner is None else inner
        self._tasks: tuple[str, ...] = ()
        self._terms: dict[str, str | None] = {}
        # what has been worked out already, as every step asks for it
        self._able: dict[tuple[Update, ...], tuple[str, ...]] = {}
        self._kept: dict[tuple[tuple[Update, ...], frozenset[str]], tuple[Update, ...]] = {}

    @abstractmethod
    def choose(self, tasks: Sequence[str], epoch: int, step: int) -> Collection[str]:
        """Which of `tasks`, those that may take part, do so in this step."""

    @abstractmethod
    def label(self, epoch: int) -> str:
        """What the history's phase says of the tasks in this epoch."""

    def settings(self) -> dict[str, Any]:
        """The settings but `inner`, as plain values."""
        return {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the trainer's order.

        Raises:
            ValueError: `setup` has not told them yet.
        """
        if not self._tasks:
            raise ValueError(f"`{type(self).__name__}` must be told the tasks with `setup` first, found none")
        return self._tasks

    @property
    def cycle(self) -> int:
        return self.inner.cycle

    @property
    def lead(self) -> int:
        return self.inner.lead

    def setup(
        self,
        tasks: Sequence[str],
        counts: Mapping[str, int] | None = None,
        terms: Mapping[str, str | None] | None = None,
    ) -> None:
        self.inner.setup(tasks, counts, terms)
        self._tasks, self._terms = tuple(tasks), dict(terms or {})
        self._able.clear()
        self._kept.clear()

    def phase(self, epoch: int) -> str:
        label = self.label(epoch)
        return label if isinstance(self.inner, Joint) else f"{self.inner.phase(epoch)}, {label}"

    def moves_shared(self, epoch: int) -> bool:
        return self.inner.moves_shared(epoch)

    def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
        moves = self.inner.updates(epoch, step)
        able = self._able.get(moves)
        if able is None:
            able = tuple(task for task in self.tasks if any(update.concerns(task) for update in moves))
            self._able[moves] = able
        key = (moves, frozenset(self.choose(able, epoch, step)) if able else NONE)
        if key not in self._kept:
            kept = (self._restricted(update, key[1]) for update in moves)
            self._kept[key] = tuple(update for update in kept if update is not None)
        return self._kept[key]

    def _restricted(self, update: Update, chosen: frozenset[str]) -> Update | None:
        able = frozenset(task for task in self.tasks if update.concerns(task))
        kept = able & chosen
        if kept == able:  # among them updates that follow a penalty alone
            return update
        if not kept:
            return None
        terms = [
            term
            for term, task in self._terms.items()
            if (update.objectives is None or term in update.objectives) and (task is None or task in kept)
        ]
        specific = kept if update.specific is None else update.specific & kept
        return Update(update.shared, specific, kept.union(terms))

    def compares(self) -> list[tuple[str, str]]:
        return self.inner.compares()

    def observe(self, row: Mapping[str, Any]) -> None:
        self.inner.observe(row)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"schedule_settings": self.settings() | {"inner": self.inner.describe()}}

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in (*self.settings().items(), ("inner", self.inner)))
        return f"{type(self).__name__}({given})"


def check_names(what: str, names: Collection[str], tasks: Collection[str]) -> None:
    """Raises `ValueError` unless `names` are exactly `tasks`; `what` says whose names they are.

    >>> check_names("`sizes`", ["digt"], ["digit", "circle"])
    Traceback (most recent call last):
    ValueError: `sizes` must name the tasks, found `digt`: did you mean `digit`?
    """
    for name in names:
        if name not in tasks:
            raise ValueError(f"{what} must name the tasks, found `{name}`: {nearest(name, tasks)}")
    for name in tasks:
        if name not in names:
            raise ValueError(f"{what} must name every task, found none for `{name}`")
