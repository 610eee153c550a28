"""One display of how training goes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback, UpdateInfo

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


@final
class Progress(Callback):
    """A line on the terminal: epoch, phase, step, per-task losses and metrics, time left.

    Where standard error is not a terminal it is silent, or tells the epochs and the time left as lines of the log.

    Args:
        interval: seconds between refreshes.
        label: what stands before the count of epochs.
        before: epochs of earlier fits that belong to the same work; the count and the time left are of the whole.
        after: epochs of later ones.
        log_interval: seconds between the lines of the log, which end epochs; None for no lines.
    """

    observes_only = True

    def __init__(
        self,
        interval: float = 0.1,
        label: str = "epoch",
        before: int = 0,
        after: int = 0,
        log_interval: float | None = None,
    ) -> None:
        self.interval = interval
        self.label = label
        self.before = before
        self.after = after
        self.log_interval = log_interval
        self._live: Any = None

    def on_fit_start(self, run: Run) -> None:
        self._live = None
        self._started = self._told = time.monotonic()
        self._first = run.epoch
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Display
        from rich.table import Column

        total = self.before + run.epochs + self.after
        # what stands first is never squeezed; the figures take what is left of the line
        figures = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._live = Display(
            TextColumn(self.label, table_column=Column(no_wrap=True, min_width=len(self.label))),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1)),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
            TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
            TextColumn("{task.description}", table_column=figures),
            console=Console(stderr=True), auto_refresh=False, transient=False, expand=True,
        )  # fmt: skip
        self._bar = self._live.add_task("", total=total, completed=self.before)
        self._live.start()
        self._shown = 0.0
        self._figures = ""

    def on_update(self, run: Run, info: UpdateInfo) -> None:
        if self._live is None or (now := time.monotonic()) - self._shown < self.interval:
            return
        self._shown = now
        steps = run.steps_per_epoch
        done = run.step_in_epoch + 1
        fraction = done / steps if steps else 0.0
        self._draw(run.epoch + fraction, f"{run.phase} {done}/{steps or '?'} {self._figures}")

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        if self._live is None:
            self._tell(run)
            return
        part = "validation" if run.validation is not None else "train"
        self._figures = "  ".join(
            f"{column.removeprefix(part + '/')} {value:.4g}"
            for column, value in row.items()
            if column.startswith(part + "/") and isinstance(value, float) and column != f"{part}/loss"
        )
        if (now := time.monotonic()) - self._shown >= self.interval or run.epoch + 1 == run.epochs:
            self._shown = now
            self._draw(run.epoch + 1, f"{run.phase} {self._figures}")

    def _tell(self, run: Run) -> None:
        now = time.monotonic()
        if self.log_interval is None or now - self._told < self.log_interval:
            return
        self._told = now
        done, total = run.epoch + 1, self.before + run.epochs + self.after
        left = (now - self._started) / (done - self._first) * (total - self.before - done)
        logger.info("%s %d of %d, about %s left", self.label, self.before + done, total, in_hours(left))

    def _draw(self, completed: float, description: str) -> None:
        self._live.update(self._bar, completed=self.before + completed, description=description, refresh=True)

    def on_fit_end(self, run: Run) -> None:
        if self._live is not None:
            self._draw(run.epoch, f"done  {self._figures}")
            if run.stopped:
                self._live.console.print(f"stopped after {run.epoch} epochs: {run.stopped}")

    def on_close(self, run: Run) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def in_hours(seconds: float) -> str:
    """A time as hours, minutes and seconds.

    >>> in_hours(75), in_hours(7322.4)
    ('1:15', '2:02:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
