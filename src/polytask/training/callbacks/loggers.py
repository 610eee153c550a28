"""Logs for other programs to read while training runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from polytask.callback import Callback

if TYPE_CHECKING:
    from polytask.training.run import Run


@final
class CSVLogger(Callback):
    """Writes the history as CSV after every epoch (to a temporary name, then renamed).

    Args:
        path: the file; its folder is made if need be.
    """

    observes_only = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_start(self, run: Run) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        run.history.write_csv(self.path)


@final
class TensorBoard(Callback):
    """Writes every number of the history for TensorBoard; needs the extra ``polytask[tensorboard]``.

    Args:
        folder: where event files go.

    Raises:
        ModuleNotFoundError: tensorboard is not installed (found out at the start of a fit).
    """

    observes_only = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_fit_start(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the TensorBoard callback needs tensorboard, found it not installed: pip install "
                "'polytask[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(self.folder))

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        for column, value in row.items():
            if isinstance(value, float):
                self._writer.add_scalar(column, value, run.epoch + 1)

    def on_close(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
