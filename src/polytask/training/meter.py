"""Losses and predictions of an epoch, gathered cheaply and judged once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytask.objective import Objective
from polytask.task import Task


class Meter:
    """Gathers sums, counts and predictions batch by batch without touching the host.

    Args:
        tasks: tasks by name.
        metrics: whether predictions are kept for the tasks' metrics.
        objectives: terms beside the tasks, by name.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        metrics: bool = True,
        objectives: Mapping[str, Objective] | None = None,
    ) -> None:
        self._tasks = tasks
        everything = {**tasks, **(objectives or {})}
        self._weights: dict[str, float] = {name: each.weight for name, each in everything.items()}
        self._metrics = metrics
        self._built: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Empties it for another epoch."""
        self._totals: dict[str, list[Tensor]] = {}
        self._counts: dict[str, int] = {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._targets: dict[str, list[Tensor]] = {}

    def add(self, name: str, total: Tensor, count: int) -> None:
        """Adds one objective's summed loss over `count` examples."""
        self._totals.setdefault(name, []).append(total.detach())
        self._counts[name] = self._counts.get(name, 0) + count

    def keep(self, task: str, outputs: Tensor, targets: Tensor) -> None:
        """Adds a task's raw outputs (B, C) and targets for its metric."""
        if self._metrics:
            self._outputs.setdefault(task, []).append(outputs.detach())
            self._targets.setdefault(task, []).append(targets)

    def losses(self) -> dict[str, float]:
        """{objective: mean loss over the epoch}."""
        names = [name for name in self._totals if self._counts[name]]
        if not names:
            return {}
        # float64 sums in a fixed order: the same bits however the epoch was interrupted
        sums = torch.stack([torch.stack(self._totals[n]).double().sum() for n in names]).tolist()
        return {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}

    def figures(self) -> dict[str, float]:
        """``loss`` (weighted sum over tasks and objectives seen), ``<task>/loss``, ``<task>/<metric>``."""
        losses = self.losses()
        row: dict[str, float] = {}
        if losses:
            row["loss"] = sum(self._weights[name] * value for name, value in losses.items())
        for name, value in losses.items():
            row[f"{name}/loss"] = value
            if name in self._outputs:
                row[f"{name}/{self._tasks[name].metric.name}"] = self._metric(name)
        return row

    def _metric(self, name: str) -> float:
        task = self._tasks[name]
        outputs, targets = torch.cat(self._outputs[name]), torch.cat(self._targets[name])
        if self._counts[name] < len(targets):
            present = task.present(targets)
            outputs, targets = outputs[present], targets[present]
        if len(outputs) < task.metric.least or not torch.isfinite(outputs).all():
            return float("nan")
        if name not in self._built:
            self._built[name] = task.metric.build().to(outputs.device)
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
