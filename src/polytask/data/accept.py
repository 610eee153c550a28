"""The one door through which users' data enter: whatever they hold becomes a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from polytask.batch import map_inputs
from polytask.data.arrays import Arrays, as_tensors
from polytask.data.loader import DatasetLoader, Loader
from polytask.data.mixing import Chain, Proportional
from polytask.data.source import Source, check_inputs
from polytask.task import Task

MixtureFactory = Callable[[Mapping[str, Source]], Source]
"""{name: source} -> one source of all of them: a kind of `polytask.data.Mixture`, or one made without any."""


def as_source(
    data: Any,
    tasks: Mapping[str, Task],
    *,
    batch_size: int,
    shuffle: bool,
    where: str,
    mixture: MixtureFactory | None = None,
) -> Source:
    """`data` as a source; sources are taken as they are.

    Args:
        data: a `Source`, a DataLoader, a torch Dataset, or (inputs, {task: targets}) of arrays, tensors or sparse
            matrices, in which the targets may be one array if there is one task; a `Split` may bring its
            augmentation. Or {source name: any of these}.
        tasks: tasks by name.
        batch_size: used where the data do not bring one.
        shuffle: whether arrays and data sets are shuffled each epoch.
        where: "train", "validation", ... for messages.
        mixture: makes one source of several; if None `Proportional` where they are shuffled, else `Chain`.

    Raises:
        TypeError: the data are none of these, or `mixture` makes no source.
        ValueError: the mapping holds no source, or one of a wrong name, or there is a `mixture` and no mapping.
    """
    if mixture is not None and not isinstance(data, Mapping):
        raise ValueError(
            f"{where}: `mixture` serves data of several sources, {{name: data}}, found {_kind(data)} beside it: leave "
            "it out, or name the sources"
        )
    if isinstance(data, Source):
        return data
    if isinstance(data, DataLoader):
        return Loader(data)
    if isinstance(data, Dataset):
        return DatasetLoader(data, batch_size, shuffle)
    if isinstance(data, tuple) and len(data) == 2:
        inputs, targets = data
        if not isinstance(targets, Mapping) and len(tasks) == 1:
            targets = {next(iter(tasks)): targets}
        if isinstance(targets, Mapping):
            augment = getattr(data, "augment", None)  # of a data set's training split
            return Arrays(inputs, targets, batch_size=batch_size, shuffle=shuffle, augment=augment)
    if isinstance(data, Mapping):
        sources = {name: _one_of_several(name, part, tasks, batch_size, shuffle, where) for name, part in data.items()}
        return _mixed(sources, mixture or (Proportional if shuffle else Chain))
    raise TypeError(
        f"{where} data must be a Source, a DataLoader, a Dataset, (inputs, {{task: targets}}) or a mapping of source "
        f"names to them, found {type(data).__name__}"
    )


def _one_of_several(
    name: str, data: Any, tasks: Mapping[str, Task], batch_size: int, shuffle: bool, where: str
) -> Source:
    if isinstance(data, Mapping):
        raise TypeError(f"{where}: a source of several must be a single one, found a mapping as `{name}`")
    return as_source(data, tasks, batch_size=batch_size, shuffle=shuffle, where=f"{where}, source `{name}`:")


def _mixed(sources: Mapping[str, Source], mixture: MixtureFactory) -> Source:
    mixed = mixture(sources)
    if not isinstance(mixed, Source):
        raise TypeError(f"`mixture` must make a polytask source, found {type(mixed).__name__}")
    return mixed


def _kind(data: Any) -> str:
    return "one pair of inputs and targets" if isinstance(data, tuple) else f"a {type(data).__name__}"


def as_inputs(inputs: Any, device: torch.device) -> Any:
    """Bare inputs (tensor, array, sparse matrix, tuple or dictionary of them) on `device`.

    Raises:
        TypeError: they are something else, such as a DataLoader.
        ValueError: lengths differ, or a number is not finite.
    """
    tensors = as_tensors(inputs)
    check_inputs(tensors, "inputs")
    return map_inputs(lambda t: t.to(device), tensors)
