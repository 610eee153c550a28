"""One update: forward, backward through the balancer, clip, step. It names no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import Balancer
from polytask.balancing.gradients import Backward
from polytask.balancing.sharded import parallel_backward
from polytask.batch import Batch, tensors_of
from polytask.callback import UpdateInfo
from polytask.models.base import Model
from polytask.objective import Context, Objective
from polytask.ranks import Ranks
from polytask.schedules.base import Update
from polytask.task import Task
from polytask.training.features import FeatureCache
from polytask.training.freezing import Freezer, Live, reset_gradients
from polytask.training.meter import Meter
from polytask.training.misfit import refuse_misfit
from polytask.training.optimizers import Optimizers


@dataclass(slots=True)
class _Look:
    """What the passes of one update must know.

    Attributes:
        names: the tasks present.
        terms: the objectives beside the tasks that take part: those that the step's examples concern.
        counts: {objective: what its total is divided by}: targets in the whole step; 1 for those beside tasks.
        sizes: {objective beside the tasks: examples of the whole step that it is a mean over}.
        metered: the objectives whose figures are in the meter already.
    """

    update: Update
    names: list[str]
    terms: list[str]
    counts: dict[str, int]
    sizes: Mapping[str, int]
    caches: Mapping[str, FeatureCache] | None
    meter: Meter | None
    metered: set[str]

    def share(self, objective: Objective, batch: Batch) -> float:
        """A batch's part of the step's examples that concern an objective: what its value on it counts for."""
        count, whole = objective.count(batch), self.sizes[objective.name]
        return 1 if count == whole else count / whole


def _pooled(counts: Sequence[Mapping[str, int]], names: Iterable[str]) -> dict[str, int]:
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


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
        ranks: the processes that each hold a part of every batch; None for this one alone.

    With several ranks each makes the forward and backward passes of its own part, which may be empty, and all
    take the same decisions: tasks are present if any rank has them, losses and gradients are those of all ranks'
    examples. Every rank must make the same calls.
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
        ranks: Ranks | None = None,
    ) -> None:
        self._model = model
        self._tasks = tasks
        self._objectives = objectives
        self._balancer = balancer
        self._freezer = freezer
        self._optimizers = optimizers
        self._autocast = autocast
        self._gradients = gradients
        self._ranks = None if ranks is None or ranks.alone else ranks
        self._checked: set[str] = set()
        self._settled: dict[Any, list[str]] = {}  # which objectives take part, by what could

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
        every, sizes = self._counts(batches)
        names, terms = self._present(every, update), self._terms(sizes, update)
        if not names and not terms:
            return None
        live = self._freezer.switch(update.shared, self._live_tasks(names, terms, update))
        metered = set() if metered is None else metered
        counts = {name: every[name] for name in names} | dict.fromkeys(self._objectives, 1)
        look = _Look(update, names, terms, counts, sizes, caches, meter, metered)
        if self._ranks is not None:
            return self._together(self._ranks, batches, look, live)
        work = Backward(self._balancer, live.shared, live.specific, mode=self._gradients, batches=len(batches))
        before = self._remember() if work.looks_again else None
        sums = self._add(work, batches, look)
        metered.update(names, sums)
        if not sums:  # all that is present is out of reach: the user froze it
            return None
        weights = work.finish()
        self._move(live)
        if before is not None:
            self._look_again(batches, look, sums, before)
        return UpdateInfo(update, sums, {name: counts[name] for name in sums}, {name: weights[name] for name in sums})

    def _add(self, work: Backward, batches: Sequence[Batch], look: _Look) -> dict[str, Tensor]:
        """The passes of all batches; gives the pooled losses of what can move a parameter."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            totals, features = self._losses(batch, look.names, look, look.meter)
            if len(self._checked) < len(self._tasks) + len(self._objectives):
                self._check_first(totals, look.counts)
            movable = {name: total for name, total in totals.items() if total.requires_grad}
            if movable:
                scales = [self._scale(name, batch, look) for name in movable]
                work.add(list(movable), list(movable.values()), scales, features)
            if len(batches) == 1:
                return movable
            for name, total in movable.items():
                part = (
                    total.detach()
                    if name in self._tasks
                    else total.detach() * look.share(self._objectives[name], batch)
                )
                sums[name] = sums[name] + part if name in sums else part
        return sums

    def _move(self, live: Live) -> None:
        self._optimizers.step(bool(live.shared), bool(live.specific))
        reset_gradients(live.shared)  # ten times cheaper than Optimizer.zero_grad, which profiles itself
        reset_gradients(live.specific)

    def _counts(self, batches: Sequence[Batch]) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """{task: targets} and {objective: examples that concern it} in the whole step."""
        if self._ranks is not None:
            return self._counts_together(self._ranks, batches)
        if len(batches) == 1:
            return batches[0].counts, self._sizes(batches)
        return _pooled([batch.counts for batch in batches], self._tasks), self._sizes(batches)

    def _sizes(self, batches: Sequence[Batch]) -> dict[str, int]:
        return {name: sum(map(objective.count, batches)) for name, objective in self._objectives.items()}

    def _present(self, counts: Mapping[str, int], update: Update) -> list[str]:
        wanted = update.objectives
        return [
            name
            for name in self._tasks
            if (wanted is None or name in wanted)
            and (update.shared or update.specific is None or name in update.specific)
            and counts.get(name)
        ]

    def _terms(self, sizes: Mapping[str, int], update: Update) -> list[str]:
        """The objectives beside the tasks that an update does not rule out and that some examples concern."""
        wanted = update.objectives
        return [name for name, size in sizes.items() if size and (wanted is None or name in wanted)]

    def _live_tasks(self, names: Sequence[str], terms: Sequence[str], update: Update) -> frozenset[str]:
        """The tasks whose blocks move: those present or taught by a term, or all allowed ones if only penalties act."""
        taught = {block for name in terms if (block := self._objectives[name].block) is not None}
        acting = taught.union(names) or self._tasks
        return frozenset(acting if update.specific is None else update.specific.intersection(acting))

    def _weight(self, name: str) -> float:
        return self._tasks[name].weight if name in self._tasks else self._objectives[name].weight

    def _scale(self, name: str, batch: Batch, look: _Look) -> float:
        """What a batch's total is multiplied by to be its part of the weighted loss."""
        weight = self._weight(name)
        return weight / look.counts[name] if name in self._tasks else weight * look.share(self._objectives[name], batch)

    # Several ranks

    def _counts_together(self, ranks: Ranks, batches: Sequence[Batch]) -> tuple[Mapping[str, int], Mapping[str, int]]:
        told = [batch.everywhere for batch in batches if batch.everywhere is not None]
        if not self._objectives and told and len(told) == len(batches):
            return _pooled(told, self._tasks), {}
        own = _pooled([batch.counts for batch in batches], self._tasks)
        sizes = self._sizes(batches)
        device = next(self._model.parameters()).device
        pooled = ranks.sum(torch.tensor([*own.values(), *sizes.values()], device=device)).tolist()
        counts, wholes = pooled[: len(own)], pooled[len(own) :]
        return dict(zip(own, counts, strict=True)), dict(zip(sizes, wholes, strict=True))

    def _together(self, ranks: Ranks, batches: Sequence[Batch], look: _Look, live: Live) -> UpdateInfo | None:
        """The update from this rank's batches and all the others'."""
        batches = [batch for batch in batches if batch.size]  # many modules refuse a batch without examples
        update, every = look.update, [*look.names, *look.terms]
        key = (update.shared, update.specific, *every)
        work = parallel_backward(
            self._balancer, live.shared, live.specific, ranks=ranks, mode=self._gradients, batches=len(batches),
            settled=self._settled.get(key),
        )  # fmt: skip
        before = self._remember() if work.looks_again else None
        with self._first_checks(ranks, every):
            self._add(work, batches, look)
        weights = work.finish(every)
        losses = dict(work.losses)
        look.metered.update(look.names, losses)
        if not losses:
            return None
        self._settled[key] = list(losses)
        self._move(live)
        if before is not None:
            self._look_again(batches, look, losses, before)
        counts = {name: look.counts[name] for name in losses}
        totals = {name: loss * (counts[name] / self._weight(name)) for name, loss in losses.items()}
        return UpdateInfo(update, totals, counts, {name: weights[name] for name in losses})

    @contextmanager
    def _first_checks(self, ranks: Ranks, names: Sequence[str]) -> Iterator[None]:
        """While first losses are looked at, what one rank refuses is raised by all: none is left waiting."""
        unchecked = not self._checked.issuperset(names)
        found = ""
        try:
            yield
        except ValueError as error:
            if not unchecked:
                raise
            found = str(error)
        if unchecked:
            for message in ranks.objects(found):
                if message:
                    raise ValueError(message)
            self._checked.update(names)

    # Passes

    def _losses(
        self, batch: Batch, names: Sequence[str], look: _Look, meter: Meter | None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Summed losses of one batch, and the features they hang on."""
        totals: dict[str, Tensor] = {}
        here = [name for name in names if batch.counts.get(name)]
        with self._autocast():
            try:
                features, outputs = self._forward(batch, here, look.update, look.caches)
            except RuntimeError as error:
                refuse_misfit(self._model, batch.inputs, batch.source, error)
                raise
            for name in here:
                count, target = batch.counts[name], batch.targets[name]
                if name not in self._checked:
                    _check_width(self._tasks[name], outputs[name], batch.size)
                total = batch.totals.get(name, self._tasks[name].total)
                totals[name] = total(outputs[name], target, count, batch.weights.get(name))
                if meter is not None and name not in look.metered:
                    meter.add(name, totals[name], count)
                    meter.keep(name, outputs[name], target)
            if self._objectives:
                context = Context(self._model, batch, features, outputs)
                for name in look.terms:
                    objective = self._objectives[name]
                    if not objective.count(batch):
                        continue  # of a step of several batches it concerns others
                    totals[name] = objective(context)
                    if meter is not None and name not in look.metered and totals[name].requires_grad:
                        share = look.share(objective, batch)
                        meter.add(name, totals[name] * share, share)
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
        look: _Look,
        names: Iterable[str],
        before: tuple[Tensor, list[tuple[Tensor, Tensor]]],
    ) -> None:
        """Shows the balancer the losses of the same objectives on the same batches after the step."""
        wanted = list(names)
        tasks = [name for name in wanted if name in self._tasks]
        after: dict[str, Tensor] = {}
        kept = [(buffer, buffer.clone()) for buffer, _ in before[1]]
        with torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(before[0])
            for buffer, value in before[1]:
                buffer.copy_(value)
            for batch in batches:
                totals = self._losses(batch, tasks, look, None)[0]
                for name in wanted:
                    if name in totals:
                        part = totals[name] * self._scale(name, batch, look)
                        after[name] = after[name] + part if name in after else part
        for buffer, value in kept:
            buffer.copy_(value)
        if self._ranks is not None:
            nothing = torch.zeros((), device=next(self._model.parameters()).device)
            pooled = self._ranks.sum(torch.stack([after.get(name, nothing).float() for name in wanted]))
            after = dict(zip(wanted, pooled.unbind(), strict=True))
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
