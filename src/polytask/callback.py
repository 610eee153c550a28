"""The Callback contract: what happens between updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from polytask.batch import Batch
    from polytask.data.source import Source
    from polytask.schedules.base import Update
    from polytask.training.run import Run


@dataclass
class UpdateInfo:
    """What one update did.

    Attributes:
        update: which blocks and objectives it touched.
        totals: {objective present: its summed loss before the update, a scalar}.
        counts: {objective present: over how many examples}.
        weights: {objective present: the balancer's weight}; 1 where it gives a gradient instead.
    """

    update: Update
    totals: Mapping[str, Tensor]
    counts: Mapping[str, int]
    weights: Mapping[str, float | Tensor]

    @property
    def losses(self) -> dict[str, Tensor]:
        """{objective present: its loss before the update, a detached scalar}."""
        return {name: total.detach() / self.counts[name] for name, total in self.totals.items()}


class Callback:
    """Acts between updates. Every hook does nothing unless overridden.

    Attributes:
        observes_only: True for displays and logs, which change nothing: a checkpoint takes no notice of them,
            so that a run may be resumed with others, and of several processes only the first runs them.
        initialises: True for those that draw the network's weights anew when a fit begins: what it was given is lost.

    `run` gives the model, the history, the optimizers, `run.epoch`, `run.step`, `run.stop(reason)` and
    `run.save(path)`. Of several processes each runs its own copy, with the same figures: write files where
    `run.ranks.first`, or within `run.ranks.once(...)`. A callback may be reused in another fit: `on_fit_start` must
    reset it.
    """

    observes_only: bool = False
    initialises: bool = False

    def serve(self, source: Source) -> Source:
        """What a fit is to train on in place of `source`, not bound yet: itself, or one that wraps it.

        Called before `on_fit_start`, for every fit.
        """
        return source

    def on_fit_start(self, run: Run) -> None:
        """Before the first update. Raise here what can be known to be wrong."""

    def on_step_start(self, run: Run, batches: Sequence[Batch]) -> None:
        """Before the updates of a step, with its batches; none, on a rank whose data have ended."""

    def on_update(self, run: Run, info: UpdateInfo) -> None:
        """After every update."""

    def figures(self, run: Run) -> Mapping[str, float]:
        """{column: value} to add to the row of the epoch that ends, before sources, schedules and balancers see it.

        Asked once an epoch; of several processes the first one's figures count.
        """
        return {}

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """After an epoch and its validation; `row` is its row of the history."""

    def on_boundary(self, run: Run) -> None:
        """After every callback has seen the end of an epoch: a checkpoint written now resumes exactly."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch, however it came to be the last, except after an error or interruption."""

    def on_close(self, run: Run) -> None:
        """Last of all, errors and interruptions included: close files and displays here."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records: the kind and its settings, read at the start of a fit."""
        plain = {bool, int, float, str}
        public = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        settings = {key: value for key, value in public.items() if type(value) in plain}
        nested = {key: value.describe() for key, value in public.items() if hasattr(value, "describe")}
        return {"callback": type(self).__name__, **settings, **nested}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dictionaries that must be kept to go on exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
