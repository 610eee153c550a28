"""Trained networks, read back from the folders that runs left."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polytask.data.base import DataSet
from polytask.models.base import Model
from polytask.sparsity.compact import rebuild
from polytask.studies import spec
from polytask.studies.run_folder import FITTED, LAYOUT, check_one, stored
from polytask.studies.store import read_history
from polytask.task import Task
from polytask.training.trainer import Trainer


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


def trained(folder: str) -> Model:
    """The network of a run folder, for configurations that need a trained one, such as a teacher.

    Args:
        folder: the run folder, as for `load`.

    Raises:
        FileNotFoundError: the folder holds no weights or no configuration.
        ValueError: its files are damaged.
    """
    return load(folder).model


def opened(folder: Path) -> spec.Built:
    """The objects of a run folder, the network with its trained weights; see `load`."""
    _check_weights(folder)
    built = rebuilt(folder)
    _filled(built.trainer, folder)
    return built


def _check_weights(folder: Path) -> None:
    if not (folder / "weights.safetensors").is_file():
        check_one(folder)
        hint = ": the run has not finished, the command that began it goes on" * (folder / "run.json").is_file()
        raise FileNotFoundError(f"a folder to load must hold weights.safetensors, found none in {folder}{hint}")


def rebuilt(folder: Path) -> spec.Built:
    """The objects of a run folder with fresh weights, smaller where it holds a compact network."""
    config = stored(folder) | {"start": None}  # its own weights follow
    return spec.build(config, adapt=_made_compact(folder), restore=_fitted_again(config, folder))


def _made_compact(folder: Path) -> Callable[[Model], Model] | None:
    """What makes a configuration's network the compact one of a folder; None if it holds none."""
    path = folder / LAYOUT

    def compact(model: Model) -> Model:
        try:
            return rebuild(model, json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must be the layout of its network, found a damaged one ({error})") from error

    return compact if path.is_file() else None


def _fitted_again(config: spec.Config, folder: Path) -> Callable[[DataSet], None] | None:
    """What gives a data set what it learned in the run; None if it learns nothing."""
    if not getattr(spec.find_class(config["data"]["class_path"]), "learns", False):
        return None
    path = folder / FITTED
    if not path.is_file():
        raise FileNotFoundError(f"a run folder must hold {FITTED}, how its inputs are encoded, found none in {folder}")
    try:
        fitted = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, found a damaged file ({error})") from error

    def restore(data: DataSet) -> None:
        try:
            data.restore(fitted)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    return restore


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
