"""The one door through which users' data enter: whatever they hold becomes a `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from polytask.batch import map_inputs
from polytask.data.arrays import Arrays, as_tensors
from polytask.data.loader import DatasetLoader, Loader
from polytask.data.source import Source, check_inputs
from polytask.task import Task


def as_source(data: Any, tasks: Mapping[str, Task], *, batch_size: int, shuffle: bool, where: str) -> Source:
    """`data` as a source; sources are taken as they are.

    Args:
        data: a `Source`, a DataLoader, a torch Dataset, or (inputs, {task: targets}) of arrays or tensors,
            in which the targets may be one array if there is one task; a `Split` may bring its augmentation.
        tasks: tasks by name.
        batch_size: used where the data do not bring one.
        shuffle: whether arrays and data sets are shuffled each epoch.
        where: "train", "validation", ... for messages.

    Raises:
        TypeError: the data are none of these.
    """
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
    raise TypeError(
        f"{where} data must be a Source, a DataLoader, a Dataset or (inputs, {{task: targets}}), "
        f"found {type(data).__name__}"
    )


def as_inputs(inputs: Any, device: torch.device) -> Any:
    """Bare inputs (tensor, array, tuple or dictionary of them) on `device`.

    Raises:
        TypeError: they are something else, such as a DataLoader.
        ValueError: lengths differ, or a number is not finite.
    """
    tensors = as_tensors(inputs)
    check_inputs(tensors, "inputs")
    return map_inputs(lambda t: t.to(device), tensors)
