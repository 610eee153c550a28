"""The Schedule contract: which blocks and objectives each update touches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Update:
    """One optimizer update.

    Attributes:
        shared: whether the shared block moves.
        specific: the tasks whose blocks move; None for all of them.
        objectives: the objectives whose losses are summed; None for all that are present.
    """

    shared: bool
    specific: frozenset[str] | None = None
    objectives: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not self.shared and self.specific is not None and not self.specific:
            raise ValueError("an update must touch at least one block, found neither shared nor specific ones")

    def concerns(self, task: str) -> bool:
        """Whether the loss of `task` takes part, where the task is present.

        >>> [Update(shared=False, specific=frozenset({"a"})).concerns(task) for task in "ab"]
        [True, False]
        """
        within = self.shared or self.specific is None or task in self.specific
        return within and (self.objectives is None or task in self.objectives)


NONE: frozenset[str] = frozenset()
JOINT = Update(shared=True)
SHARED = Update(shared=True, specific=NONE)
SPECIFIC = Update(shared=False)


class Schedule(ABC):
    """Says, for every step of every epoch, which updates are made.

    The built-in schedules are functions of the epoch and the step alone, so they resume by themselves; an
    adaptive one keeps what it needs in `state_dict`.
    """

    @property
    def cycle(self) -> int:
        """Epochs after which the pattern repeats: figures are comparable between ends of cycles."""
        return 1

    @property
    def lead(self) -> int:
        """Epochs before the first that belongs to the repeating pattern, as while a curriculum grows."""
        return 0

    def setup(
        self,
        tasks: Sequence[str],
        counts: Mapping[str, int] | None = None,
        terms: Mapping[str, str | None] | None = None,
    ) -> None:
        """Learns what it schedules and forgets what an earlier fit taught it; called once at the start of a fit.

        Args:
            tasks: the trainer's tasks, in order.
            counts: {task: training examples that carry its target}; None if the source cannot tell beforehand.
            terms: {objective beside the tasks' losses: the task whose block it belongs to, None for the shared one}.

        Raises:
            ValueError: the schedule does not fit them.
        """

    @abstractmethod
    def phase(self, epoch: int) -> str:
        """The name of epoch `epoch` (from 0) in the history, such as ``shared``."""

    @abstractmethod
    def updates(self, epoch: int, step: int) -> tuple[Update, ...]:
        """The updates of one step; `step` counts optimizer steps over the whole run, from 0."""

    def moves_shared(self, epoch: int) -> bool:
        """Whether any update of this epoch moves the shared block; if none does, its features may be cached."""
        return True

    def compares(self) -> list[tuple[str, str]]:
        """The pairs of tasks, in the trainer's order, whose gradients' cosines it needs; after `setup`.

        A fit of which it is known that no step will hold targets of both is refused before it trains.
        """
        return []

    def observe(self, row: Mapping[str, Any]) -> None:
        """Sees each epoch's row of the history; for schedules that adapt."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records: the kind and its settings, never what it has learned."""
        return {"schedule": type(self).__name__}

    def state_dict(self) -> dict[str, Any]:
        """What an adaptive schedule must keep to go on exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
