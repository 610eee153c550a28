"""One run: train, evaluate and record a configuration in a folder."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import torch

from polytask.callback import Callback, UpdateInfo
from polytask.data.base import Part, Splits
from polytask.launched import first_error
from polytask.studies import spec
from polytask.studies.machine import threads, versions
from polytask.studies.network import check_first_losses, check_network, splits_of
from polytask.studies.regions import write_regions
from polytask.studies.run_folder import check_same, clear, different, finished, write_fitted
from polytask.studies.store import RunRecord, lock, probe, read_record, write_record, write_text
from polytask.training.callbacks.progress import Progress
from polytask.training.cost import measure
from polytask.training.history import History
from polytask.training.launch import join
from polytask.training.run import Run
from polytask.training.signals import Interrupted
from polytask.training.trainer import Trainer

logger = logging.getLogger("polytask")

Maker = Callable[[spec.Config, Path, Sequence[Callback]], spec.Built]

CHECKPOINT_SECONDS = 5.0
RECORD_SECONDS = 1.0


def run(
    config: Mapping[str, Any] | str | Path,
    folder: str | Path,
    *,
    overrides: spec.Overrides = (),
    method: str = "",
    overwrite: bool = False,
    progress: bool | Progress = False,
    wait: float = 0.0,
    make: Maker = spec.build,
    rehearse: bool = True,
) -> RunRecord:
    """Trains a configuration, evaluates it on validation and test data, and records all in `folder`.

    Of several processes (``trainer.devices``, or torchrun) all call this and all return the record; only the
    first reads and writes the folder.

    A folder that already holds this run, finished, is left as it is; one that was interrupted goes on from
    its checkpoint, exactly.

    Args:
        config: a train configuration, or the path of its YAML file; see `polytask.studies.spec`.
        folder: the run folder; made if need be.
        overrides: values that win over the configuration's, see `polytask.studies.spec.resolve`.
        method: the name under which a comparison lists the run; the folder's name if empty.
        overwrite: start afresh where the folder holds a run of another configuration.
        progress: show a display on a terminal; or the display.
        wait: seconds to wait for another process that works in the folder.
        make: makes the objects from the resolved configuration, the folder and the callbacks to add; a study whose
            stages build on one another adds to what `polytask.studies.spec.build` makes. What it adds must follow
            from what is on disk, or a resumed run would be another.
        rehearse: refuse what cannot make a first step, before anything is written; False records such a run as
            failed, like one that breaks later.

    Returns:
        The record, also in ``run.json``. A run that breaks during training is recorded as failed, with its
        error, and raises nothing.

    Raises:
        ValueError: a wrong configuration, or a folder that holds a run of another one.
        FileNotFoundError: no such configuration file, or the data set's files are missing.
        OSError: the folder cannot be written or is in use.
        Interrupted: Ctrl-C or SIGTERM, after writing a checkpoint.
    """
    resolved = spec.resolve(spec.read_config(config), overrides)
    target = Path(folder)
    ranks = join(resolved["trainer"])
    if (old := ranks.once(lambda: _old(target, resolved))) is not None:
        return old
    record = RunRecord(method or target.name, resolved["seed"], "running", folder=target)
    with threads(resolved["threads"]):
        display = progress if isinstance(progress, Progress) else Progress() if progress else None
        keeper = _Keeper(record, display if ranks.first else None)
        built = make(resolved, target, [keeper])
        record.start = built.start
        if built.start:
            keeper.start = built.start
        splits = splits_of(built)  # first: without its files nothing must be written
        check_network(built, splits)
        if rehearse:
            check_first_losses(built, splits)
        with ExitStack() as held:

            def occupy() -> RunRecord | None:
                probe(target)
                held.enter_context(lock(target, wait))
                return _occupied(target, resolved, overwrite)

            if (old := ranks.once(occupy)) is not None:
                return old
            _guarded(built, splits, record)
    return record


def _old(folder: Path, resolved: spec.Config) -> RunRecord | None:
    """The record of this very run, if it is finished."""
    return read_record(folder) if finished(folder) and not different(folder, resolved) else None


def _occupied(folder: Path, resolved: spec.Config, overwrite: bool) -> RunRecord | None:
    """Makes a locked folder ready, unless another process finished the run while this one waited."""
    if overwrite and different(folder, resolved):
        clear(folder)
    check_same(folder, resolved)
    if finished(folder):
        return read_record(folder)
    write_text(folder / "config.yaml", spec.dump(resolved))
    return None


@final
class _Keeper(Callback):
    """Keeps the run folder up to date: a checkpoint and a record every few seconds, not every epoch.

    Args:
        record: the run's record; its `epochs` follow.
        display: shown besides. It acts through this callback, since the list of callbacks is part of what a
            resumed run must have in common with the interrupted one, and a terminal is not.
    """

    def __init__(self, record: RunRecord, display: Progress | None) -> None:
        self._record = record
        self._display = display
        self._saved = self._written = time.monotonic()
        self.cached: set[str] = set()

    start: str
    """Set, where the run starts from other weights, to their digest: callbacks are part of a fingerprint."""

    def state_dict(self) -> dict[str, Any]:
        return {"cached": sorted(self.cached)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cached = set(state["cached"])

    def on_fit_start(self, run: Run) -> None:
        self._saved = self._written = time.monotonic()
        if self._display is not None:
            self._display.on_fit_start(run)

    def on_update(self, run: Run, info: UpdateInfo) -> None:
        if self._display is not None:
            self._display.on_update(run, info)

    def on_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        if run.caching:
            self.cached.add(row["phase"])
        if self._display is not None:
            self._display.on_epoch_end(run, row)

    def on_boundary(self, run: Run) -> None:
        assert self._record.folder is not None
        now = time.monotonic()
        self._record.epochs, self._record.stopped = run.epoch, run.stopped
        if now - self._written >= RECORD_SECONDS:
            self._written = now
            if run.ranks.first:
                write_record(self._record, self._record.folder)
        if run.ranks.share(now - self._saved >= CHECKPOINT_SECONDS) or run.stopped or run.epoch == run.epochs:
            run.save(self._record.folder / "last.ckpt")
            self._saved = time.monotonic()

    def on_fit_end(self, run: Run) -> None:
        if self._display is not None:
            self._display.on_fit_end(run)

    def on_close(self, run: Run) -> None:
        if self._display is not None:
            self._display.on_close(run)


def _guarded(built: spec.Built, splits: Splits, record: RunRecord) -> None:
    """Carries the run out; what breaks it is recorded."""
    assert record.folder is not None
    record.tasks = [task.describe() for task in built.data.tasks]
    record.versions = versions()
    record.started = datetime.now(UTC).isoformat(timespec="seconds")
    first = built.trainer.ranks.first
    if first:
        write_record(record, record.folder)
    try:
        _carry_out(built, splits, record)
        record.state = "done"
    except Interrupted as interrupted:
        _note_interruption(record, interrupted, first)
        raise
    except Exception as error:  # whatever a user's own class raises, the other runs of a study go on
        record.state = "failed"
        record.error = first_error(spec.one_line(error))[0]
        logger.debug("%s, seed %d failed", record.method, record.seed, exc_info=error)
    if first:
        write_record(record, record.folder)


def _carry_out(built: spec.Built, splits: Splits, record: RunRecord) -> None:
    folder, trainer = record.folder, built.trainer
    assert folder is not None
    record.cost = cost_of_training(trainer, splits.train)
    resume = trainer.ranks.once(lambda: _checkpoint(folder))
    history = trainer.fit(splits.train, splits.validation, epochs=built.epochs, resume=resume)
    record.epochs = len(history)
    record.selected_epoch = _selected(trainer.callbacks, len(history))
    keepers = (callback.cached for callback in trainer.callbacks if isinstance(callback, _Keeper))
    _time(record, history, set().union(*keepers))
    if trainer.ranks.first:
        write_fitted(built.data, folder)
    trainer.save(folder)
    record.metrics = {
        name: trainer.evaluate(split) | (trainer.objective_values(split) if trainer.objectives else {})
        for name, split in (("validation", splits.validation), ("test", splits.test))
    }
    if trainer.ranks.first:
        write_regions(trainer, splits, folder)
        (folder / "interrupted.ckpt").unlink(missing_ok=True)


def _note_interruption(record: RunRecord, interrupted: Interrupted, first: bool) -> None:
    # on resuming there must be no doubt which file is newer
    assert record.folder is not None
    record.state = "interrupted"
    path, interrupted.path = interrupted.path, record.folder / "last.ckpt"
    if first:
        os.replace(path, interrupted.path)
        write_record(record, record.folder)


def _checkpoint(folder: Path) -> Path | None:
    path = folder / "last.ckpt"
    return path if path.is_file() else None


def cost_of_training(trainer: Trainer, train: Part) -> dict[str, Any]:
    """What `polytask.training.cost.measure` finds for a trainer and its training data."""
    # where the network is: what looked at it before may have moved it to an accelerator
    source = trainer.served(train, next(trainer.model.parameters()).device)
    with torch.random.fork_rng(devices=[]):  # dropout in the measured steps draws numbers
        return measure(trainer, source)


def _selected(callbacks: Sequence[Callback], last: int) -> int:
    """The epoch whose weights the run ended with: what the last callback to put weights back says, else `last`."""
    told = [getattr(callback, "selected_epoch", None) for callback in callbacks]
    return next((epoch for epoch in reversed(told) if epoch is not None), last)


def _time(record: RunRecord, history: History, cached: set[str]) -> None:
    by_phase: dict[str, list[float]] = {}
    for row in history:
        phase = f"{row['phase']} (cached)" if row["phase"] in cached else row["phase"]
        by_phase.setdefault(phase, []).append(row["seconds"])
    record.seconds = sum(history.column("seconds"))
    record.seconds_per_epoch = {phase: statistics.median(times) for phase, times in by_phase.items()}
