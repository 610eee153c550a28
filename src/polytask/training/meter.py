"""Losses and predictions of an epoch, gathered cheaply and judged once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytask.objective import Objective
from polytask.ranks import Ranks
from polytask.task import Task


class Meter:
    """Gathers sums, counts and predictions batch by batch without touching the host.

    Args:
        tasks: tasks by name.
        metrics: whether predictions are kept for the tasks' metrics.
        objectives: terms beside the tasks, by name.
        ranks: the processes whose parts make the figures; every one of them must ask for figures then. None
            for this one alone.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        metrics: bool = True,
        objectives: Mapping[str, Objective] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._tasks = tasks
        everything = {**tasks, **(objectives or {})}
        self._weights: dict[str, float] = {name: each.weight for name, each in everything.items()}
        self._metrics = metrics
        self._ranks = None if ranks is None or ranks.alone else ranks
        self._built: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Empties it for another epoch."""
        self._totals: dict[str, list[Tensor]] = {}
        self._counts: dict[str, float] = {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._targets: dict[str, list[Tensor]] = {}

    def add(self, name: str, total: Tensor, count: float) -> None:
        """Adds one objective's summed loss over `count` examples (or its value, weighted by `count`)."""
        self._totals.setdefault(name, []).append(total.detach())
        self._counts[name] = self._counts.get(name, 0) + count

    def keep(self, task: str, outputs: Tensor, targets: Tensor) -> None:
        """Adds a task's raw outputs (B, C) and targets for its metric."""
        if self._metrics:
            self._outputs.setdefault(task, []).append(outputs.detach())
            self._targets.setdefault(task, []).append(targets)

    def losses(self) -> dict[str, float]:
        """{objective: mean loss over the epoch}."""
        sums, counts = self._sums() if self._ranks is None else self._sums_over(self._ranks)
        return {name: total / counts[name] for name, total in sums.items()}

    def _sums(self) -> tuple[dict[str, float], Mapping[str, float]]:
        names = [name for name in self._totals if self._counts[name]]
        if not names:
            return {}, {}
        # float64 sums in a fixed order: the same bits however the epoch was interrupted
        sums = torch.stack([torch.stack(self._totals[n]).double().sum() for n in names]).tolist()
        return dict(zip(names, sums, strict=True)), self._counts

    def _sums_over(self, ranks: Ranks) -> tuple[dict[str, float], Mapping[str, float]]:
        parts = ranks.objects(self._sums())
        counts = {name: sum(c.get(name, 0) for s, c in parts if name in s) for name in self._weights}
        return {name: sum(s.get(name, 0.0) for s, _ in parts) for name, count in counts.items() if count}, counts

    def figures(self) -> dict[str, float]:
        """``loss`` (weighted sum over tasks and objectives seen), ``<task>/loss``, ``<task>/<metric>``."""
        losses = self.losses()
        kept = {name: (torch.cat(self._outputs[name]), torch.cat(self._targets[name])) for name in self._outputs}
        if self._ranks is not None:
            kept = _gathered(kept, self._ranks)
        row: dict[str, float] = {}
        if losses:
            row["loss"] = sum(self._weights[name] * value for name, value in losses.items())
        for name, value in losses.items():
            row[f"{name}/loss"] = value
            if name in kept:
                row[f"{name}/{self._tasks[name].metric.name}"] = self._metric(name, *kept[name])
        return row

    def _metric(self, name: str, outputs: Tensor, targets: Tensor) -> float:
        task = self._tasks[name]
        present = task.present(targets)  # counts do not tell: an example may be in the loss without a target
        if not present.all():
            outputs, targets = outputs[present], targets[present]
        if len(outputs) < task.metric.least or not torch.isfinite(outputs).all():
            return float("nan")
        if name not in self._built:
            self._built[name] = _local(task.metric.build()).to(outputs.device)
        metric = self._built[name]
        metric.update(*task.metric_arguments(outputs, targets))
        value = float(metric.compute())
        metric.reset()
        return value

    def state_dict(self) -> dict[str, Any]:
        """What an epoch interrupted here has gathered."""
        parts = {"totals": self._totals, "outputs": self._outputs, "targets": self._targets}
        joined = {"totals": torch.stack, "outputs": torch.cat, "targets": torch.cat}
        kept = {key: {name: joined[key](tensors) for name, tensors in part.items()} for key, part in parts.items()}
        return kept | {"counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restores `state_dict`, on the device where the epoch goes on."""
        self._totals = {name: list(values.to(device).unbind()) for name, values in state["totals"].items()}
        self._outputs = {name: [values.to(device)] for name, values in state["outputs"].items()}
        self._targets = {name: [values.to(device)] for name, values in state["targets"].items()}
        self._counts = dict(state["counts"])


def _gathered(kept: dict[str, tuple[Tensor, Tensor]], ranks: Ranks) -> dict[str, tuple[Tensor, Tensor]]:
    """Outputs and targets of all ranks; one that saw nothing of a task gives tensors of length 0."""
    empty = {name: (a[:0].cpu(), b[:0].cpu(), a.device.type) for name, (a, b) in kept.items()}
    everywhere = ranks.objects(empty)
    gathered = {}
    for name in dict.fromkeys(name for names in everywhere for name in names):
        like = next(names[name] for names in everywhere if name in names)
        pair = kept.get(name) or (like[0].to(like[2]), like[1].to(like[2]))
        outputs, targets = (torch.cat(ranks.gather(tensor)) for tensor in pair)
        gathered[name] = (outputs, targets)
    return gathered


def _local(metric: Any) -> Any:
    """A torchmetrics metric that judges what it is shown, and gathers nothing from other processes itself."""
    for part in metric.modules():
        part.distributed_available_fn = _never
    return metric


def _never() -> bool:
    return False
