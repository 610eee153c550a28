"""Lower the learning rate when a figure no longer improves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback
from polytask.errors import at_least, whole
from polytask.training.callbacks.monitor import Monitor

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


@final
class ReduceLROnPlateau(Callback):
    """Multiplies every learning rate by `factor` after `patience` cycles without improvement.

    Args:
        monitor: a column of the history; see `polytask.training.History`.
        factor: in (0, 1).
        patience: cycles (or epochs) without improvement before each cut, at least 1.
        min_delta: smallest change that counts as improvement (absolute), at least 0.
        min_lr: no learning rate falls below it.
        by: ``cycle`` compares ends of whole cycles of the schedule, where figures are alike, and counts
            cycles; ``epoch`` compares and counts every epoch.

    Raises:
        ValueError: a number out of range, or (at the start of a fit) a column that will not exist.

    >>> ReduceLROnPlateau(factor=0.5, patience=10).factor
    0.5
    """

    def __init__(
        self,
        monitor: str = "validation/loss",
        factor: float = 0.5,
        patience: int = 10,
        min_delta: float = 1e-4,
        min_lr: float = 0.0,
        by: str = "cycle",
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"`factor` must be between 0 and 1, found {factor}")
        whole("patience", patience, 1)
        at_least("min_lr", min_lr, 0)
        self.monitor = Monitor(monitor, by, min_delta)
        self.factor = factor
        self.patience = patience
        self.min_lr = min_lr

    def on_fit_start(self, run: Run) -> None:
        self.monitor.start(run)

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        if not self.monitor.counts(run) or self.monitor.improved(run, row):
            return
        if self.monitor.waited >= self.patience:
            self.monitor.waited = 0
            if run.optimizers.scale_rates(self.factor, self.min_lr):
                logger.info("epoch %d: learning rates times %g", run.epoch + 1, self.factor)

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.monitor.load_state_dict(state)
