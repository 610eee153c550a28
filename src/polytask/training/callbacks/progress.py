"""One display of how training goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback, UpdateInfo

if TYPE_CHECKING:
    from polytask.training.run import Run


@final
class Progress(Callback):
    """A line on the terminal: epoch, phase, step, per-task losses and metrics, time left.

    Silent where standard error is not a terminal.

    Args:
        interval: seconds between refreshes.
        label: what stands before the count of epochs.
        before: epochs of earlier fits that belong to the same work; the count and the time left are of the whole.
        after: epochs of later ones.
    """

    observes_only = True

    def __init__(self, interval: float = 0.1, label: str = "epoch", before: int = 0, after: int = 0) -> None:
        self.interval = interval
        self.label = label
        self.before = before
        self.after = after
        self._live: Any = None

    def on_fit_start(self, run: Run) -> None:
        self._live = None
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
