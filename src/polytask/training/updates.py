"""Whether a schedule's updates name what there is, and move something."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from polytask.errors import nearest
from polytask.schedules.base import Schedule, Update
from polytask.training.freezing import Freezer


def check_updates(
    schedule: Schedule, epochs: Iterable[int], tasks: Collection[str], objectives: Collection[str], freezer: Freezer
) -> None:
    """Refuses a schedule that could not be carried out.

    Args:
        schedule: its first two steps of each epoch are looked at.
        epochs: the epochs after which none brings anything new.
        tasks: the tasks' names.
        objectives: the names of the terms beside the tasks' losses.
        freezer: knows which parameters an update could move.

    Raises:
        ValueError: an update names an unknown task or objective, or could not move any parameter.
    """
    for epoch in epochs:
        for step in (0, 1):
            for update in schedule.updates(epoch, step):
                _check_names(update, set(tasks), {*tasks, *objectives})
                freezer.check(update.shared, frozenset(tasks) if update.specific is None else update.specific)


def _check_names(update: Update, tasks: set[str], everything: set[str]) -> None:
    for name in (update.specific or frozenset()) - tasks:
        raise ValueError(f"the schedule updates an unknown task `{name}`: {nearest(name, tasks)}")
    for name in (update.objectives or frozenset()) - everything:
        raise ValueError(f"the schedule names an unknown objective `{name}`: {nearest(name, everything)}")
