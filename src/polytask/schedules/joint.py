"""Joint training: every block moves at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from polytask.schedules.base import JOINT, Schedule, Update


@final
@dataclass(frozen=True)
class Joint(Schedule):
    """The usual way: shared and task-specific blocks move together, from the same point.

    >>> Joint().phase(3)
    'joint'
    """

    def phase(self, epoch: int) -> str:
        return "joint"

    def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
        return (JOINT,)
