"""Stop at the first loss that is not a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch

from polytask.callback import Callback, UpdateInfo
from polytask.errors import whole

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


@final
class StopOnNonFinite(Callback):
    """Ends training when a loss is NaN or infinite, says which, and puts the best finite weights back.

    The best weights are those at the end of the epoch with the lowest loss (validation if there is any,
    else training), or the initial ones.

    Args:
        every: updates between looks at the losses, at least 1; each look waits for the device. The end of
            every epoch is looked at besides.

    Raises:
        ValueError: `every` is below 1.

    >>> StopOnNonFinite(every=10).every
    10
    """

    def __init__(self, every: int = 50) -> None:
        whole("every", every, 1)
        self.every = every

    def on_fit_start(self, run: Run) -> None:
        self._updates = 0
        self._culprit = ""
        self._best_loss = math.inf
        self._best = run.snapshot()

    def on_update(self, run: Run, info: UpdateInfo) -> None:
        self._updates += 1
        if self._updates % self.every == 0 and not self._culprit:
            for name, loss in info.losses.items():
                if not torch.isfinite(loss):
                    self._blame(run, name, loss.item())

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        for column, value in row.items():
            if column.endswith("/loss") and column.count("/") == 2 and not math.isfinite(value):
                self._blame(run, column.split("/")[1], value)
        loss = row.get("validation/loss", row.get("train/loss", math.nan))
        if not self._culprit and loss < self._best_loss:
            self._best_loss, self._best = loss, run.snapshot()

    def _blame(self, run: Run, name: str, value: float) -> None:
        if not self._culprit:
            self._culprit = name
            run.stop(f"the loss of `{name}` is {value} in epoch {run.epoch + 1}")
            logger.warning("training stops: %s; the best finite weights are put back", run.stopped)

    def on_fit_end(self, run: Run) -> None:
        if self._culprit:
            run.restore(self._best)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._updates, "culprit": self._culprit, "loss": self._best_loss, "best": self._best,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates, self._culprit = state["updates"], state["culprit"]
        self._best_loss, self._best = state["loss"], dict(state["best"])
