"""One run: train, evaluate and record a configuration in a folder, and load it back."""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from polytask.batch import map_inputs
from polytask.callback import Callback, UpdateInfo
from polytask.data.arrays import as_tensors
from polytask.data.base import DataSet, Part, Split, Splits, as_splits
from polytask.data.sparse import SparseRows, is_sparse
from polytask.errors import nearest, one_of
from polytask.export import FORMATS, SUFFIX, export
from polytask.models.base import Model
from polytask.models.encoders import MLP
from polytask.sparsity.compact import rebuild
from polytask.studies import spec
from polytask.studies.store import (
    LOCK,
    RunRecord,
    lock,
    probe,
    read_history,
    read_record,
    write_record,
    write_text,
)
from polytask.task import Task
from polytask.training.callbacks.progress import Progress
from polytask.training.cost import measure
from polytask.training.history import History
from polytask.training.launch import first_error, join
from polytask.training.misfit import Misfit
from polytask.training.run import Interrupted, Run
from polytask.training.trainer import Trainer

logger = logging.getLogger("polytask")

Maker = Callable[[spec.Config, Path, Sequence[Callback]], spec.Built]

CHECKPOINT_SECONDS = 5.0
RECORD_SECONDS = 1.0
GRID = 121
POINTS = 500
STUDIES = ("study.json", "front.json", "sparsify.json", "seeds.json")
"""Files that tell the folder of a study from that of a run."""
LAYOUT = "layout.json"
"""Sizes of the layers of a compact network, see `polytask.sparsity.compact.rebuild`."""
FITTED = "data.json"
"""What the data set learned from training examples, see `polytask.data.DataSet.fitted`."""
FILES = (
    "config.yaml", "run.json", "history.csv", "weights.safetensors", "tasks.json", "last.ckpt",
    "interrupted.ckpt", "regions.npz", LAYOUT, FITTED, LOCK,
)  # fmt: skip


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


def splits_of(built: spec.Built) -> Splits:
    """The data of a run, read or made."""
    return as_splits(built.data.load(), type(built.data).__name__)


def check_network(built: spec.Built, splits: Splits) -> None:
    """Refuses, before anything is written, a network of other widths than the data's.

    Looked at for every source whose inputs are one tensor or sparse matrix; others are told apart by training itself.

    Raises:
        ValueError: it does not take the inputs, or a head has another width than its task.
    """
    train = splits.train
    for source, split in ({"": train} if isinstance(train, Split) else train).items():
        inputs = SparseRows(split.inputs) if is_sparse(split.inputs) else split.inputs
        if isinstance(inputs, (Tensor, SparseRows)) and len(inputs):
            _check_source(built.trainer, inputs[:2], source)


def _check_source(trainer: Trainer, inputs: Tensor, source: str) -> None:
    shape, whose = tuple(inputs.shape[1:]), f" from source `{source}`" if source else ""
    try:
        found = trainer.predict(inputs, source)
    except (RuntimeError, Misfit) as error:
        hint = f" (`inputs: {shape[0]}` of a first MLP)" if len(shape) == 1 and _in_mlp(trainer.model, error) else ""
        raise ValueError(
            f"the network must take examples of shape {shape}{whose}{hint}, as the data have, found: {error}"
        ) from error
    except Exception:  # of a user's own class: training tells and records it
        return
    for name, prediction in found.items():
        wanted = trainer.tasks[name].outputs
        if prediction.outputs.dim() == 2 and prediction.outputs.shape[1] != wanted:
            raise ValueError(
                f"the head of task `{name}` must have {wanted} outputs, found {prediction.outputs.shape[1]}"
            )


def _in_mlp(model: Model, error: Exception) -> bool:
    """Whether it is an MLP's first layer that refused."""
    parent, _, place = getattr(error, "layer", "").rpartition(".")
    return place == "0" and isinstance(model.get_submodule(parent), MLP)


def write_fitted(data: DataSet, folder: Path) -> None:
    """Writes what the data set learned, if it learns, into a run folder."""
    if data.learns:
        write_text(folder / FITTED, json.dumps(data.fitted(), indent=1) + "\n")


def finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / "run.json").is_file() and read_record(folder).state == "done"


def different(folder: Path, resolved: Mapping[str, Any]) -> list[str]:
    """How the configuration stored in `folder`, if any, differs from this one.

    Weights to start from are the same where their content is, wherever they lie.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return []
    before, now = spec.read_config(path), dict(resolved)
    starts = before.pop("start", None), now.pop("start", None)
    return [*spec.differences(before, now), *_other_start(folder, *starts)]


def _other_start(folder: Path, before: str | None, now: str | None) -> list[str]:
    begun = read_record(folder).start if (folder / "run.json").is_file() else ""
    found = "" if now is None else spec.digest(now)
    if begun and found:
        return [] if begun == found else [f"start: other weights than now in {now}"]
    return spec.differences(before, now, "start")


def check_same(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Refuses a folder that holds a run of another configuration."""
    found = different(folder, resolved)
    if found:
        listed = "; ".join(found[:3]) + " and more" * (len(found) > 3)
        raise ValueError(
            f"{folder} must hold no run of another configuration, found one that differs in {listed}: "
            "choose another output folder (--out), or overwrite this one (--overwrite)"
        )


def clear(folder: Path) -> None:
    """Removes the files of a run, and nothing else, from its folder."""
    for name in FILES:
        if name != LOCK:
            (folder / name).unlink(missing_ok=True)


def load(folder: str | Path, *, model: Model | None = None, tasks: Sequence[Task] | None = None) -> Trainer:
    """A trained network, ready to predict and evaluate, from the folder a run or `Trainer.save` left.

    A run folder says in ``config.yaml`` how to build the network; a folder that `Trainer.save` wrote does
    not, so `model` and `tasks` must be given for it. Weights cannot run code; a configuration names classes
    and calls them, so load only run folders you trust. No data are read.

    Args:
        folder: the run folder.
        model: the network, built as it was; needs `tasks`.
        tasks: its tasks.

    Returns:
        A `Trainer` with the kept weights and the run's history.

    Raises:
        FileNotFoundError: the folder holds no weights, or no configuration and no model is given.
        ValueError: its files are damaged or do not fit the model.

    >>> trainer = load("runs/digits/joint/seed-0")  # doctest: +SKIP
    >>> trainer.predict(images)["left"].labels  # doctest: +SKIP
    """
    target = Path(folder)
    if model is None and tasks is None:
        return opened(target).trainer
    _check_weights(target)
    if model is None or tasks is None:
        raise ValueError("`model` and `tasks` must be given together, found one of them")
    return _filled(Trainer(model, tasks, progress=False), target)


def opened(folder: Path) -> spec.Built:
    """The objects of a run folder, the network with its trained weights; see `load`."""
    _check_weights(folder)
    built = rebuilt(folder)
    _filled(built.trainer, folder)
    return built


def _check_weights(folder: Path) -> None:
    if not (folder / "weights.safetensors").is_file():
        hint = ": the run has not finished, the command that began it goes on" * (folder / "run.json").is_file()
        raise FileNotFoundError(f"a folder to load must hold weights.safetensors, found none in {folder}{hint}")


def trained(folder: str) -> Model:
    """The network of a run folder, for configurations that need a trained one, such as a teacher.

    Args:
        folder: the run folder, as for `load`.

    Raises:
        FileNotFoundError: the folder holds no weights or no configuration.
        ValueError: its files are damaged.
    """
    return load(folder).model


def evaluate_run(folder: str, split: str = "test", file: str | None = None) -> dict[str, float]:
    """Losses and metrics of a trained run.

    Args:
        folder: the run folder.
        split: ``train``, ``validation`` or ``test``.
        file: a file with inputs and targets in the data set's raw form, such as another table, in place of a split.

    Raises:
        FileNotFoundError: there is no such run or file, or its data set's files are missing.
        ValueError: an unknown split, damaged files, or a data set that reads no such files.
    """
    if split not in Splits._fields:
        raise ValueError(f"unknown split `{split}`: {nearest(split, Splits._fields)}")
    config = stored(Path(folder))
    with threads(config["threads"]):
        built = opened(Path(folder))
        return built.trainer.evaluate(getattr(splits_of(built), split) if file is None else _labelled(built.data, file))


def _labelled(data: DataSet, file: str) -> Split:
    found = data.read(file, targets=True)
    if found is None:
        raise ValueError(f"`file` must be one that {type(data).__name__} reads, found {file}")
    return Split(found.inputs, found.targets)


def export_run(folder: str, format: str = "onnx", out: str | None = None, source: str = "") -> Path:
    """Writes a trained run's network as a file for other programs; see `polytask.export.export`.

    Args:
        folder: the run folder, of a compact network or any other.
        format: ``onnx`` or ``torch``.
        out: the file; ``model.onnx`` or ``model.pt2``, of a source ``model-<source>.onnx``, in the run folder if None.
        source: whose kind of inputs the file takes, for a run on data of several sources.

    Returns:
        The file's path; ``<path>.json`` beside it tells inputs, outputs, classes and preprocessing.

    Raises:
        FileNotFoundError: there is no such run, or its data set's files are missing (an example is needed).
        ValueError: an unknown format, damaged files, an unknown source or none named of several, or a file whose
            outputs are not the network's; it is deleted.
        ModuleNotFoundError: the packages for ``onnx`` are not installed.
    """
    place = Path(folder)
    one_of("format", format, FORMATS)
    with threads(stored(place)["threads"]):
        built = opened(place)
        trainer = built.trainer
        source, split = _source_of(splits_of(built).train, source)
        example = map_inputs(lambda tensor: tensor[:2], as_tensors(split.inputs))
        name = f"model-{source}{SUFFIX[format]}" if source else f"model{SUFFIX[format]}"
        return export(
            trainer.model, place / name if out is None else out, format, list(trainer.tasks.values()),
            example=example, source=source, preprocessing=built.data.preprocessing,
        )  # fmt: skip


def _source_of(part: Part, source: str) -> tuple[str, Split]:
    """The source that is named, or the only one there is, and its split; "" for data without sources."""
    known = [] if isinstance(part, Split) else list(part)
    if source and source not in known:
        raise ValueError(f"`source` must name a source of the run's data, found `{source}`: {nearest(source, known)}")
    if isinstance(part, Split):
        return "", part
    if not source and len(part) > 1:
        listed = ", ".join(f"`{name}`" for name in known)
        raise ValueError(
            f"an exported file takes the inputs of one source, found data of several and none named: name one with "
            f"`source` (--source) of {listed}"
        )
    source = source or known[0]
    return source, part[source]


def rebuilt(folder: Path) -> spec.Built:
    """The objects of a run folder with fresh weights, smaller where it holds a compact network."""
    config, path = stored(folder) | {"start": None}, folder / LAYOUT  # its own weights follow
    fitted = _stored_fitted(config, folder)
    if not path.is_file():
        return spec.build(config, fitted=fitted)
    try:
        layout = json.loads(path.read_text())
        return spec.build(config, adapt=lambda model: rebuild(model, layout), fitted=fitted)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be the layout of its network, found a damaged one ({error})") from error


def _stored_fitted(config: spec.Config, folder: Path) -> dict[str, Any] | None:
    """What the run's data set learned; None if it learns nothing."""
    if not getattr(spec.find_class(config["data"]["class_path"]), "learns", False):
        return None
    path = folder / FITTED
    if not path.is_file():
        raise FileNotFoundError(f"a run folder must hold {FITTED}, how its inputs are encoded, found none in {folder}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, found a damaged file ({error})") from error


def stored(folder: Path) -> spec.Config:
    """The configuration of a run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it is not a run's.
        ValueError: the configuration is damaged.
    """
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise FileNotFoundError(f"a run folder must exist, found none at {folder}")
    alone = not (folder / "run.json").is_file()  # a configuration may have been trained and compared in one folder
    if alone and any((folder / name).is_file() for name in STUDIES):
        runs = sorted(str(found.parent.relative_to(folder)) for found in folder.rglob("run.json"))
        raise FileNotFoundError(f"{folder} must be the folder of one run, found a study's: name one of {runs[:3]}")
    if not path.is_file():
        raise FileNotFoundError(
            f"a run folder must hold config.yaml, found none in {folder} (polytask.load can be given a model and "
            "tasks instead)"
        )
    config = spec.resolve(spec.read_config(path))
    config["trainer"] |= {"devices": None, "nodes": 1}  # a trained network needs no more than there are
    return config


def _filled(trainer: Trainer, folder: Path) -> Trainer:
    """The trainer with the folder's weights and history."""
    _check_tasks(folder, trainer.tasks)
    trainer.load_weights(folder)
    if (folder / "history.csv").is_file():
        trainer.history = read_history(folder / "history.csv")
    return trainer


def _check_tasks(folder: Path, tasks: Mapping[str, Task]) -> None:
    path = folder / "tasks.json"
    if not path.is_file():
        return
    try:
        saved = [(entry["name"], entry["kind"], entry["outputs"]) for entry in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must describe tasks, found a damaged file ({error})") from error
    given = [(task.name, task.describe()["kind"], task.outputs) for task in tasks.values()]
    if sorted(saved) != sorted(given):
        raise ValueError(f"the tasks must be those of {path}, {saved}, found {given}")


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
    source = trainer.served(train, torch.device("cpu"))
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


def write_regions(trainer: Trainer, splits: Splits, folder: Path) -> None:
    """For inputs of two numbers, writes what is predicted all over the plane, for pictures: ``regions.npz``.

    Holds ``x`` and ``y`` (121,), the grid over the data's bounding box; ``<task>`` (121, 121), rows along
    y: the positive class's probability (binary), the label (classification) or the value (regression);
    ``points`` (at most 500, 2), test inputs, and ``targets_<task>``, their targets.
    """
    import numpy as np

    train, test = splits.train, splits.test
    if not isinstance(train, Split) or not isinstance(test, Split):
        return  # several sources have no plane in common
    inputs = train.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.shape[1] != 2:
        return
    everything = torch.cat([inputs, test.inputs])
    low, high = everything.min(0).values, everything.max(0).values
    x, y = (torch.linspace(low[i].item(), high[i].item(), GRID) for i in (0, 1))
    grid = torch.cartesian_prod(y, x).flip(1).to(inputs.dtype)  # (121 * 121, 2), x fastest
    content: dict[str, Any] = {"x": x.numpy(), "y": y.numpy()}
    for name, prediction in trainer.predict(grid).items():
        positive = prediction.probabilities is not None and prediction.probabilities.dim() == 1
        values = prediction.probabilities if positive else prediction.values
        if values is not None and values.dim() == 1:
            content[name] = values.reshape(GRID, GRID).cpu().numpy()
            content[f"targets_{name}"] = test.targets[name][:POINTS].numpy()
    content["points"] = test.inputs[:POINTS].numpy()
    with (folder / "regions.npz.part").open("wb") as file:
        np.savez_compressed(file, **content)
    os.replace(folder / "regions.npz.part", folder / "regions.npz")


def versions() -> dict[str, Any]:
    """What a record says about where it was made."""
    from polytask import __version__

    return {
        "polytask": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's number of threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
