"""Losses, metrics and predictions of a network as it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter
from typing import Any

import torch

from polytask.batch import Batch, map_inputs, tensors_of
from polytask.data.source import Source
from polytask.models.base import Model
from polytask.objective import Context, Objective
from polytask.ranks import Ranks
from polytask.task import Prediction, Task
from polytask.training.features import FeatureCache
from polytask.training.meter import Meter
from polytask.training.misfit import refuse_misfit

Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def evaluate(
    model: Model,
    tasks: Mapping[str, Task],
    source: Source,
    chunk: int,
    autocast: Autocast,
    meter: Meter | None = None,
    caches: Mapping[str, FeatureCache] | None = None,
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
        caches: {label of batches: features of that source's examples}, where they are known.
        ranks: the processes that share the work, each of which calls this; None for this one alone. A meter
            that is given must have the same.
    """
    meter = meter or Meter(tasks, ranks=ranks)
    sharing = None if ranks is None or ranks.alone or source.divided else ranks
    meter.reset()
    seen: dict[str, int] = {}
    for number, batch in enumerate(source.in_order(chunk)):
        mine = sharing is None or number % sharing.count == sharing.index
        names = [name for name in tasks if mine and batch.counts.get(name)]
        with autocast():
            cache, start = (caches or {}).get(batch.source), seen.get(batch.source, 0)
            if cache is not None:
                features = cache.part(start, start + batch.size)
                read = batch.inputs if model.heads_read_inputs else None
                outputs = {name: model.head(name, features, read) for name in names}
            else:
                outputs = _outputs(model, batch.inputs, names, batch.source) if names else {}
            for name in names:
                target, count = batch.targets[name], batch.counts[name]
                meter.add(name, tasks[name].total(outputs[name], target, count, batch.weights.get(name)), count)
                meter.keep(name, outputs[name], target)
        seen[batch.source] = start + batch.size
    return meter.figures()


def _outputs(model: Model, inputs: Any, names: Sequence[str], source: str) -> dict[str, torch.Tensor]:
    try:
        return model(inputs, names, source)
    except RuntimeError as error:
        refuse_misfit(model, inputs, source, error)
        raise


def objective_values(
    model: Model,
    tasks: Mapping[str, Task],
    objectives: Mapping[str, Objective],
    source: Source,
    chunk: int,
    autocast: Autocast,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """``<objective>/value``: each objective's mean over the examples that concern it, without its fixed weight.

    NaN where there is no such example. The model must be in eval mode. An objective may take gradients, so they are
    not switched off.

    Args:
        model: the network.
        tasks: tasks by name.
        objectives: the terms beside the losses, by name.
        source: bound examples; every one is seen once, in order.
        chunk: examples per forward pass.
        autocast: makes the context of the forward pass.
        ranks: the processes that hold a part of the source each, where it is divided among them.
    """
    sums, counts = dict.fromkeys(objectives, 0.0), dict.fromkeys(objectives, 0)
    for batch in source.in_order(chunk) if objectives else ():
        names = [name for name in tasks if batch.counts.get(name)]
        with autocast():
            context = _looked_at(model, batch, names)
            for name, objective in objectives.items():
                if count := objective.count(batch):
                    sums[name] += objective(context).item() * count
                    counts[name] += count
    parts = [(sums, counts)] if ranks is None or not source.divided else ranks.objects((sums, counts))
    wholes = {name: sum(each[name] for _, each in parts) for name in objectives}
    return {
        f"{name}/value": sum(part[name] for part, _ in parts) / whole if whole else math.nan
        for name, whole in wholes.items()
    }


def rehearse(
    model: Model,
    tasks: Mapping[str, Task],
    objectives: Mapping[str, Objective],
    source: Source,
    autocast: Autocast,
) -> None:
    """Takes the losses of the first steps that each bring a source not seen before; the model must be in eval mode.

    What does not fit together raises as it would in training.
    """
    missing = set(source.parts)
    for batches in source.preview():
        new = [batch for batch in batches if batch.source in missing]
        for batch in new:
            names = [name for name in tasks if batch.counts.get(name)]
            with autocast():
                context = _looked_at(model, batch, names)
                for name in names:
                    total = batch.totals.get(name, tasks[name].total)
                    total(context.predictions[name], batch.targets[name], batch.counts[name], batch.weights.get(name))
                for objective in objectives.values():
                    if objective.count(batch):
                        objective(context)
        missing -= {batch.source for batch in new}
        if not missing:
            break


def _looked_at(model: Model, batch: Batch, names: Sequence[str]) -> Context:
    """What objectives see of a batch, with the outputs of the tasks named."""
    if not model.boundary:
        return Context(model, batch, None, model(batch.inputs, names, batch.source) if names else {})
    features = model.features(batch.inputs, batch.source)
    read = batch.inputs if model.heads_read_inputs else None
    return Context(model, batch, features, {name: model.head(name, features, read) for name in names})


@torch.no_grad()
def predict(
    model: Model, tasks: Mapping[str, Task], inputs: Any, chunk: int, autocast: Autocast, source: str = ""
) -> dict[str, Prediction]:
    """Predictions for bare inputs of one source, `chunk` examples at a time; the model must be in eval mode."""
    length = len(tensors_of(inputs)[0])
    parts: dict[str, list[Any]] = {name: [] for name in tasks}
    for start in range(0, max(length, 1), chunk):
        with autocast():  # nothing here holds a chunk, which may have been made dense, while the next is made
            outputs = _outputs(model, _part(inputs, slice(start, start + chunk)), tuple(tasks), source)
        for name in tasks:
            parts[name].append(outputs[name])
    return {name: tasks[name].predict(torch.cat(outputs)) for name, outputs in parts.items()}


def _part(inputs: Any, part: slice) -> Any:
    return map_inputs(itemgetter(part), inputs)
