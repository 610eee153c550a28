"""What EarlyStopping, ReduceLROnPlateau and Checkpoint watch, and when figures are comparable."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytask.errors import at_least, one_of

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


def mean_of(row: Mapping[str, Any], columns: Sequence[str]) -> float:
    """The mean of some columns of the history's row, NaN if one is not there."""
    return sum(row.get(name, math.nan) for name in columns) / len(columns)


class Monitor:
    """The best value of one column of the history.

    Under alternate training figures saw-tooth between phases, so by default only the last epochs of whole
    cycles of the schedule are looked at and compared; joint training has cycles of one epoch.

    Args:
        column: ``validation/loss``, ``validation/<task>/<metric>``, ``train/loss``, ..., or a pattern such as
            ``validation/*/accuracy``, the mean of those it fits; its direction is the metric's own.
        by: ``cycle`` or ``epoch``: what is compared and counted.
        min_delta: by how much a value must be better to count, in the column's own units, at least 0.
    """

    def __init__(self, column: str, by: str, min_delta: float) -> None:
        one_of("by", by, ("cycle", "epoch"))
        at_least("min_delta", min_delta, 0)
        self.column = column
        self._by = by
        self._min_delta = min_delta
        self.reset()

    def reset(self) -> None:
        """Forgets the best value."""
        self.best = math.nan
        self.best_epoch = 0
        self.waited = 0

    def start(self, run: Run) -> None:
        """Resets, learns the direction, and warns if no epoch of the run will be looked at.

        Raises:
            ValueError: the run has no such column.
        """
        self.reset()
        self._columns = run.columns(self.column)
        self._sign = 1.0 if run.direction(self.column) == "max" else -1.0
        if self._by == "cycle" and run.epochs < run.cycle:
            logger.warning(
                "`%s` is compared at the ends of cycles of %d epochs, found %d epochs in all: nothing will be "
                "compared (by='epoch' compares every epoch)", self.column, run.cycle, run.epochs,
            )  # fmt: skip

    def counts(self, run: Run) -> bool:
        """Whether the epoch that just ended is looked at."""
        return self._by == "epoch" or (run.epoch + 1) % run.cycle == 0

    def improved(self, run: Run, row: Mapping[str, Any]) -> bool:
        """Takes note of an epoch that `counts`; whether it is the best so far."""
        value = mean_of(row, self._columns)
        better = math.isnan(self.best) or (value - self.best) * self._sign > self._min_delta
        if better and math.isfinite(value):
            self.best, self.best_epoch, self.waited = value, run.epoch + 1, 0
            return True
        self.waited += 1
        return False

    def describe(self) -> dict[str, Any]:
        """Its settings."""
        return {"column": self.column, "by": self._by, "min_delta": self._min_delta}

    def state_dict(self) -> dict[str, Any]:
        """The best value, its epoch, and how long ago that was."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
