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
    """

    observes_only = True

    def __init__(self, interval: float = 0.1) -> None:
        self.interval = interval
        self._live: Any = None

    def on_fit_start(self, run: Run) -> None:
        self._live = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Display

        self._live = Display(
            TextColumn("[bold]epoch"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
            console=Console(stderr=True), auto_refresh=False, transient=False,
        )  # fmt: skip
        self._bar = self._live.add_task("", total=run.epochs)
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
        self._live.update(self._bar, completed=completed, description=description, refresh=True)

    def on_fit_end(self, run: Run) -> None:
        if self._live is not None:
            reason = f"stopped: {run.stopped}" if run.stopped else "done"
            self._draw(run.epoch, f"{reason}  {self._figures}")

    def on_close(self, run: Run) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
