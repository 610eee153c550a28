"""One update: forward, backward through the balancer, clip, step. It names no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import Balancer
from polytask.balancing.gradients import Backward
from polytask.batch import Batch, tensors_of
from polytask.callback import UpdateInfo
from polytask.models.base import Model
from polytask.objective import Context, Objective
from polytask.schedules.base import Update
from polytask.task import Task
from polytask.training.features import FeatureCache
from polytask.training.freezing import Freezer, reset_gradients
from polytask.training.meter import Meter
from polytask.training.optimizers import Optimizers


class Step:
    """Makes updates.

    Args:
        model: the network.
        tasks: tasks by name.
        objectives: terms beside the tasks' losses, by name.
        balancer: how objectives share the shared block.
        freezer: switches blocks.
        optimizers: step the blocks.
        autocast: makes the context of the forward pass.
        gradients: how gradients are taken for the balancer, see `polytask.balancing.gradients.Backward`.
    """

    def __init__(
        self,
        model: Model,
        tasks: Mapping[str, Task],
        objectives: Mapping[str, Objective],
        balancer: Balancer,
        freezer: Freezer,
        optimizers: Optimizers,
        autocast: Callable[[], AbstractContextManager[Any]],
        gradients: str = "exact",
    ) -> None:
        self._model = model
        self._tasks = tasks
        self._objectives = objectives
        self._balancer = balancer
        self._freezer = freezer
        self._optimizers = optimizers
        self._autocast = autocast
        self._gradients = gradients
        self._checked: set[str] = set()

    def __call__(
        self,
        batches: Sequence[Batch],
        update: Update,
        caches: Mapping[str, FeatureCache] | None = None,
        meter: Meter | None = None,
        metered: set[str] | None = None,
    ) -> UpdateInfo | None:
        """Makes one update from the batches of a step.

        Args:
            batches: the step's batches; their losses are pooled, L_k = sum / count over all of them.
            update: which blocks and objectives it touches.
            caches: {source: cached features} while the shared block is frozen.
            meter: gathers the training figures; None to gather none.
            metered: the objectives whose figures an earlier update of this step has gathered; those of this
                update are added.

        Returns:
            What happened; None if nothing that is present in the batches could move a parameter.

        Raises:
            ValueError: outputs that do not fit a task, or a task's first loss is not finite; parameters
                are untouched then.
        """
        names = self._present(batches, update)
        if not names and not self._wanted(update):
            return None
        live = self._freezer.switch(update.shared, self._live_tasks(names, update))
        metered = set() if metered is None else metered
        counts = {name: sum(batch.counts.get(name, 0) for batch in batches) for name in names}
        counts |= dict.fromkeys(self._objectives, len(batches))
        work = Backward(self._balancer, live.shared, live.specific, mode=self._gradients, batches=len(batches))
        before = self._remember() if work.looks_again else None
        sums: dict[str, Tensor] = {}
        for batch in batches:
            totals, features = self._losses(batch, names, update, caches, meter, metered)
            if len(self._checked) < len(self._tasks) + len(self._objectives):
                self._check_first(totals, counts)
            movable = {name: total for name, total in totals.items() if total.requires_grad}
            if movable:
                scales = [self._weight(name) / counts[name] for name in movable]
                work.add(list(movable), list(movable.values()), scales, features)
            if len(batches) == 1:
                sums = movable
                break
            for name, total in movable.items():
                sums[name] = sums[name] + total.detach() if name in sums else total.detach()
        metered.update(names, sums)
        if not sums:  # all that is present is out of reach: the user froze it
            return None
        weights = work.finish()
        self._optimizers.step(bool(live.shared), bool(live.specific))
        reset_gradients(live.shared)  # ten times cheaper than Optimizer.zero_grad, which profiles itself
        reset_gradients(live.specific)
        if before is not None:
            self._look_again(batches, update, caches, sums, counts, before)
        return UpdateInfo(update, sums, {name: counts[name] for name in sums}, weights)

    def _present(self, batches: Sequence[Batch], update: Update) -> list[str]:
        wanted = update.objectives
        return [
            name
            for name in self._tasks
            if (wanted is None or name in wanted)
            and (update.shared or update.specific is None or name in update.specific)
            and any(batch.counts.get(name) for batch in batches)
        ]

    def _wanted(self, update: Update) -> list[str]:
        """The objectives beside the tasks that an update names or does not rule out."""
        return [name for name in self._objectives if update.objectives is None or name in update.objectives]

    def _live_tasks(self, names: Sequence[str], update: Update) -> frozenset[str]:
        """The tasks whose blocks move: those present, or all allowed ones if only penalties act."""
        acting = names or self._tasks
        return frozenset(acting if update.specific is None else update.specific.intersection(acting))

    def _weight(self, name: str) -> float:
        return self._tasks[name].weight if name in self._tasks else self._objectives[name].weight

    def _losses(
        self,
        batch: Batch,
        names: Sequence[str],
        update: Update,
        caches: Mapping[str, FeatureCache] | None,
        meter: Meter | None,
        metered: set[str],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Summed losses of one batch, and the features they hang on."""
        totals: dict[str, Tensor] = {}
        here = [name for name in names if batch.counts.get(name)]
        with self._autocast():
            features, outputs = self._forward(batch, here, update, caches)
            for name in here:
                count, target = batch.counts[name], batch.targets[name]
                if name not in self._checked:
                    _check_width(self._tasks[name], outputs[name], batch.size)
                totals[name] = self._tasks[name].total(outputs[name], target, count, batch.weights.get(name))
                if meter is not None and name not in metered:
                    meter.add(name, totals[name], count)
                    meter.keep(name, outputs[name], target)
            if self._objectives:
                context = Context(self._model, batch, features, outputs)
                for name in self._wanted(update):
                    totals[name] = self._objectives[name](context)
                    if meter is not None and name not in metered and totals[name].requires_grad:
                        meter.add(name, totals[name], 1)
        return totals, [] if features is None else [f for f in tensors_of(features) if f.requires_grad]

    def _forward(
        self,
        batch: Batch,
        names: Sequence[str],
        update: Update,
        caches: Mapping[str, FeatureCache] | None,
    ) -> tuple[Any, dict[str, Tensor]]:
        model = self._model
        if not model.boundary:
            return None, model(batch.inputs, names, batch.source)
        if update.shared:
            features = model.features(batch.inputs, batch.source)
        elif caches is not None and batch.source in caches and batch.rows is not None:
            features = caches[batch.source].rows(batch.rows)
        else:
            with torch.no_grad():
                features = model.features(batch.inputs, batch.source)
        read = batch.inputs if model.heads_read_inputs else None
        return features, {name: model.head(name, features, read) for name in names}

    def _remember(self) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Random state and buffers, so that a second look draws the same dropout and moves no statistics."""
        return torch.random.get_rng_state(), [(buffer, buffer.clone()) for buffer in self._model.buffers()]

    @torch.no_grad()
    def _look_again(
        self,
        batches: Sequence[Batch],
        update: Update,
        caches: Mapping[str, FeatureCache] | None,
        names: Iterable[str],
        counts: Mapping[str, int],
        before: tuple[Tensor, list[tuple[Tensor, Tensor]]],
    ) -> None:
        """Shows the balancer the losses of the same objectives on the same batches after the step."""
        wanted = list(names)
        after: dict[str, Tensor] = {}
        kept = [(buffer, buffer.clone()) for buffer, _ in before[1]]
        with torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(before[0])
            for buffer, value in before[1]:
                buffer.copy_(value)
            for batch in batches:
                tasks = [name for name in wanted if name in self._tasks]
                totals = self._losses(batch, tasks, update, caches, None, set())[0]
                for name in wanted:
                    if name in totals:
                        part = totals[name] * (self._weight(name) / counts[name])
                        after[name] = after[name] + part if name in after else part
        for buffer, value in kept:
            buffer.copy_(value)
        self._balancer.after(after)

    def _check_first(self, totals: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        for name, total in totals.items():
            if name in self._checked:
                continue
            self._checked.add(name)
            if not torch.isfinite(total):
                value = total.item() / counts[name]
                raise ValueError(f"the first loss of every task must be finite, found {value} for `{name}`")


def _check_width(task: Task, outputs: Tensor, size: int) -> None:
    if task.loss is not None:  # an own loss may take outputs of any shape
        return
    fits = {(size, task.outputs)} | ({(size,)} if task.outputs == 1 else set())
    if tuple(outputs.shape) not in fits:
        raise ValueError(
            f"a head must give {task.outputs} outputs per example for task `{task.name}`, found shape "
            f"{tuple(outputs.shape)} for {size} examples"
        )
