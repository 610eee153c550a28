"""Stop at the first loss or weight that is not a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from polytask.callback import Callback, UpdateInfo
from polytask.errors import whole

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


@final
class StopOnNonFinite(Callback):
    """Ends training when a loss or a weight is NaN or infinite, says which, and puts the best finite weights back.

    The best weights are those with the lowest loss, or the initial ones. A validation loss belongs to the
    weights at the end of its epoch; without validation, an epoch's training loss counts for the weights at
    its start.

    Args:
        every: updates between looks at the losses, at least 1; each look waits for the device. The end of
            every epoch, weights included, is looked at besides. Values that are not finite before training
            (a mask of minus infinity) are let be.

    Raises:
        ValueError: `every` is below 1.

    >>> StopOnNonFinite(every=10).every
    10
    """

    def __init__(self, every: int = 50) -> None:
        whole("every", every, 1)
        self.every = every
        self._culprit = ""

    @property
    def selected_epoch(self) -> int | None:
        """The epoch after which the weights put back were taken (0: the initial ones), None if none were."""
        return self._best_epoch if self._culprit else None

    def on_fit_start(self, run: Run) -> None:
        self._updates = 0
        self._culprit = ""
        self._best_loss = math.inf
        self._best_epoch = 0
        self._best = self._start = run.snapshot()
        self._let_be = {name for name, value in self._start.items() if not torch.isfinite(value).all()}

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
        if self._culprit:
            return
        now = run.snapshot()
        for name, value in now.items():
            if name not in self._let_be and not torch.isfinite(value).all():
                self._stop(run, name, f"the weights `{name.removeprefix('model/')}` hold values that are not finite")
        if "validation/loss" not in row:
            self._choose(row.get("train/loss", math.nan), self._start, run.epoch)
            self._start = now
        elif not self._culprit:
            self._choose(row["validation/loss"], now, run.epoch + 1)

    def _choose(self, loss: float, snapshot: dict[str, Tensor], epoch: int) -> None:
        if loss < self._best_loss:
            self._best_loss, self._best, self._best_epoch = loss, snapshot, epoch

    def _blame(self, run: Run, name: str, value: float) -> None:
        self._stop(run, name, f"the loss of `{name}` is {value}")

    def _stop(self, run: Run, culprit: str, finding: str) -> None:
        if not self._culprit:
            self._culprit = culprit
            run.stop(f"{finding} in epoch {run.epoch + 1}")
            logger.warning("training stops: %s; the best finite weights are put back", run.stopped)

    def on_fit_end(self, run: Run) -> None:
        if self._culprit:
            run.restore(self._best)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._updates, "culprit": self._culprit, "loss": self._best_loss,
            "epoch": self._best_epoch, "best": self._best, "start": self._start,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates, self._culprit = state["updates"], state["culprit"]
        self._best_loss, self._best_epoch = state["loss"], state["epoch"]
        self._best, self._start = dict(state["best"]), dict(state["start"])
