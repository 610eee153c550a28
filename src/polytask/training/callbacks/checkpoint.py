"""Checkpoints as training goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback
from polytask.errors import whole
from polytask.training.callbacks.monitor import Monitor

if TYPE_CHECKING:
    from polytask.training.run import Run


@final
class Checkpoint(Callback):
    """Keeps ``last.ckpt`` and, if it watches a column, ``best.ckpt`` in a folder.

    Each is written under a temporary name and renamed, so a killed process leaves the previous one. From
    either `fit(resume=...)` goes on exactly.

    Args:
        folder: where; made if need be. The trainer's folder if None.
        every: epochs between writes of ``last.ckpt``, at least 1.
        monitor: a column of the history whose best epoch is kept as ``best.ckpt``, or None.
        by: ``cycle`` or ``epoch``: which epochs are compared; see `EarlyStopping`.

    Raises:
        ValueError: `every` is below 1, there is no folder, or a column will not exist.
        OSError: the folder cannot be written (found out at the start of a fit).

    >>> Checkpoint("runs/demo", every=5).every
    5
    """

    def __init__(
        self, folder: str | Path | None = None, every: int = 1, monitor: str | None = None, by: str = "cycle"
    ) -> None:
        whole("every", every, 1)
        self.folder = None if folder is None else Path(folder)
        self.every = every
        self.monitor = None if monitor is None else Monitor(monitor, by, 0.0)

    def on_fit_start(self, run: Run) -> None:
        place = self.folder or run.trainer.folder
        if place is None:
            raise ValueError("`Checkpoint` must know a folder, found none: give it one, or give the trainer one")
        self._place = place
        run.ranks.once(lambda: place.mkdir(parents=True, exist_ok=True))
        self._improved = False
        if self.monitor is not None:
            self.monitor.start(run)

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        if self.monitor is not None and self.monitor.counts(run):
            self._improved = self.monitor.improved(run, row)

    def on_boundary(self, run: Run) -> None:
        if self._improved:
            self._improved = False
            run.save(self._place / "best.ckpt")
        if run.epoch % self.every == 0 or run.epoch == run.epochs or run.stopped:
            run.save(self._place / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.monitor is not None:
            self.monitor.load_state_dict(state)
