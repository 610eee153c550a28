"""Which epoch of a search for a sparse network is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback
from polytask.sparsity.removal import Removal

if TYPE_CHECKING:
    from polytask.training.run import Run

COLUMN = "dead_rows"
"""The history's column with the share of dead rows at each epoch's end."""


@final
class BestSparse(Callback):
    """Puts back the best weights among the epochs that are sparse enough.

    Epochs at which at least `sparsity` of the rows are dead are compared by `monitor`, on validation data. If there is
    none, the sparsest epoch is kept, and of equally sparse ones the best: a later training cannot make up for rows that
    live, but it can for a loss. Epochs with a value that is not finite are left out.

    Each epoch's share of dead rows goes into the history as ``dead_rows``.

    Args:
        removal: the callback that lets rows die; must come before this one. Callbacks that also put weights back,
            such as `EarlyStopping`, must too, or they would have the last word.
        sparsity: the share of dead rows that is enough, in (0, 1).
        monitor: a column of the history; its direction is the metric's own.

    Raises:
        ValueError: `sparsity` is out of range; at the start of a fit: `removal` does not come first, or a column
            that will not exist.

    >>> from polytask.sparsity import Magnitude
    >>> BestSparse(Magnitude(sparsity=0.5), sparsity=0.5).monitor
    'validation/loss'
    """

    def __init__(self, removal: Removal, sparsity: float, monitor: str = "validation/loss") -> None:
        if not 0 < sparsity < 1:
            raise ValueError(f"`sparsity` must be between 0 and 1, found {sparsity}")
        self.removal = removal
        self.sparsity = sparsity
        self.monitor = monitor
        self._forget()

    def _forget(self) -> None:
        self._epoch = 0
        self._rank = (-math.inf, -math.inf)
        self._best: dict[str, Any] = {}

    @property
    def selected_epoch(self) -> int | None:
        """The epoch whose weights are put back, None if none are."""
        return self._epoch or None

    def on_fit_start(self, run: Run) -> None:
        self._forget()
        self._sign = 1.0 if run.direction(self.monitor) == "max" else -1.0
        before = list(run.callbacks)[: list(run.callbacks).index(self)]
        if self.removal not in before:
            raise ValueError("BestSparse needs its `removal` before it among the trainer's callbacks, found none")

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        share = self.removal.trace[-1]
        run.note(COLUMN, share)
        value = row.get(self.monitor, math.nan)
        rank = (min(share, self.sparsity), self._sign * value)
        if math.isfinite(value) and rank > self._rank:
            self._epoch, self._rank, self._best = run.epoch + 1, rank, run.snapshot()

    def on_fit_end(self, run: Run) -> None:
        if self._best:
            run.restore(self._best)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "rank": list(self._rank), "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._rank = state["epoch"], tuple(state["rank"])
        self._best = dict(state["best"])
