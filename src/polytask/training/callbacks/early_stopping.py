"""Stop when a figure no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback
from polytask.errors import whole
from polytask.training.callbacks.monitor import Monitor

if TYPE_CHECKING:
    from polytask.training.run import Run


@final
class EarlyStopping(Callback):
    """Ends training after `patience` cycles without improvement and puts the best weights back.

    The best weights are put back at the end whatever ended the run, the last epoch included. A run of fewer
    epochs than a cycle compares nothing by cycles, and ends with its last weights; a warning says so.

    Args:
        monitor: a column of the history, see `polytask.training.History`; or a pattern such as
            ``validation/*/accuracy``, for the mean of the columns that it fits.
        patience: cycles (or epochs) without improvement before the end, at least 1.
        min_delta: smallest change that counts as improvement, at least 0.
        by: ``cycle`` compares ends of whole cycles of the schedule, where figures are alike, and counts
            cycles; ``epoch`` compares and counts every epoch.
        restore_best: put the best weights and buffers back at the end.

    Raises:
        ValueError: a number out of range, or (at the start of a fit) a column that will not exist.

    >>> EarlyStopping("validation/loss", patience=25).monitor.column
    'validation/loss'
    """

    def __init__(
        self,
        monitor: str = "validation/loss",
        patience: int = 10,
        min_delta: float = 0.0,
        by: str = "cycle",
        restore_best: bool = True,
    ) -> None:
        whole("patience", patience, 1)
        self.monitor = Monitor(monitor, by, min_delta)
        self.patience = patience
        self.restore_best = restore_best
        self._best: dict[str, Any] = {}

    @property
    def selected_epoch(self) -> int | None:
        """The epoch whose weights are put back, None if none are."""
        return self.monitor.best_epoch if self._best else None

    def on_fit_start(self, run: Run) -> None:
        self.monitor.start(run)
        self._best = {}

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        if not self.monitor.counts(run):
            return
        if self.monitor.improved(run, row):
            self._best = run.snapshot() if self.restore_best else {}
        elif self.monitor.waited >= self.patience:
            best = f"{self.monitor.best:.6g} in epoch {self.monitor.best_epoch}"
            run.stop(f"{self.monitor.column} has not improved on {best} for {self.patience} checks")

    def on_fit_end(self, run: Run) -> None:
        if self._best:
            run.restore(self._best)

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor.state_dict(), "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.monitor.load_state_dict(state["monitor"])
        self._best = dict(state["best"])
