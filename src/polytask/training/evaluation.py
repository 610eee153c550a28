"""Losses, metrics and predictions of a network as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from polytask.batch import map_inputs, tensors_of
from polytask.data.source import Source
from polytask.models.base import Model
from polytask.ranks import Ranks
from polytask.task import Prediction, Task
from polytask.training.features import FeatureCache
from polytask.training.meter import Meter

Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def evaluate(
    model: Model,
    tasks: Mapping[str, Task],
    source: Source,
    chunk: int,
    autocast: Autocast,
    meter: Meter | None = None,
    cache: FeatureCache | None = None,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Figures of the whole source: ``loss``, ``<task>/loss``, ``<task>/<metric>``.

    The model must be in eval mode. Each loss is the mean over the examples that carry that target.

    Args:
        model: the network.
        tasks: tasks by name.
        source: bound examples; every one is seen once, in order.
        chunk: examples per forward pass.
        autocast: makes the context of the forward pass.
        meter: an emptied meter to reuse.
        cache: the source's features, if they are known.
        ranks: the processes that share the work, each of which calls this; None for this one alone. A meter
            that is given must have the same.
    """
    meter = meter or Meter(tasks, ranks=ranks)
    sharing = None if ranks is None or ranks.alone or source.divided else ranks
    meter.reset()
    start = 0
    for number, batch in enumerate(source.in_order(chunk)):
        mine = sharing is None or number % sharing.count == sharing.index
        names = [name for name in tasks if mine and batch.counts.get(name)]
        with autocast():
            if cache is not None:
                features = cache.part(start, start + batch.size)
                read = batch.inputs if model.heads_read_inputs else None
                outputs = {name: model.head(name, features, read) for name in names}
            else:
                outputs = model(batch.inputs, names, batch.source) if names else {}
            for name in names:
                target, count = batch.targets[name], batch.counts[name]
                meter.add(name, tasks[name].total(outputs[name], target, count, batch.weights.get(name)), count)
                meter.keep(name, outputs[name], target)
        start += batch.size
    return meter.figures()


@torch.no_grad()
def predict(
    model: Model, tasks: Mapping[str, Task], inputs: Any, chunk: int, autocast: Autocast
) -> dict[str, Prediction]:
    """Predictions for bare inputs, `chunk` examples at a time; the model must be in eval mode."""
    length = len(tensors_of(inputs)[0])
    parts: dict[str, list[Any]] = {name: [] for name in tasks}
    for start in range(0, max(length, 1), chunk):
        part = map_inputs(lambda t, start=start: t[start : start + chunk], inputs)
        with autocast():
            outputs = model(part, tuple(tasks))
        for name in tasks:
            parts[name].append(outputs[name])
    return {name: tasks[name].predict(torch.cat(outputs)) for name, outputs in parts.items()}
