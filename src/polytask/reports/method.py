"""The runs of one method, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from polytask.reports.estimate import Estimate
from polytask.studies.store import RunRecord


@dataclass(frozen=True)
class PhaseCost:
    """What one phase costs: seconds per epoch, multiply-accumulates per example, bytes a step allocates."""

    seconds: Estimate
    macs: Estimate
    memory: Estimate


@dataclass
class Method:
    """The runs of one method, and what follows from them.

    Attributes:
        name: its name.
        runs: all of its records.
        figures: {figure's key: estimate} of the tasks' metrics and losses; the verdict compares with the
            reference method.
        deltas: {Δm's key: estimate}, in percent, lower is better; the verdict compares with the baseline.
        rank: mean over tasks of its rank by metric, 1 the best; None without finished runs.
        phases: {phase: cost}.
    """

    name: str
    runs: list[RunRecord]
    figures: dict[str, Estimate] = field(default_factory=dict)
    deltas: dict[str, Estimate] = field(default_factory=dict)
    rank: float | None = None
    phases: dict[str, PhaseCost] = field(default_factory=dict)

    @cached_property
    def done(self) -> list[RunRecord]:
        """Its finished runs, by seed."""
        return sorted((run for run in self.runs if run.state == "done"), key=lambda run: run.seed)

    def values(self, split: str) -> dict[int, dict[str, float]]:
        """{seed: figures} of its finished runs on ``validation`` or ``test`` data."""
        return {run.seed: run.metrics.get(split, {}) for run in self.done}

    @property
    def unfinished(self) -> list[RunRecord]:
        """Failed and running ones."""
        return [run for run in self.runs if run.state != "done"]

    def over_runs(self, figure: Callable[[RunRecord], Any]) -> Estimate:
        """The estimate of any figure of the finished runs; runs where it is None do not count."""
        return Estimate.of(float(v) for run in self.done if (v := figure(run)) is not None)

    @property
    def seconds_per_epoch(self) -> Estimate:
        """Training seconds over epochs trained."""
        return self.over_runs(lambda run: run.seconds / run.epochs if run.epochs else None)

    @property
    def seconds(self) -> Estimate:
        """Training seconds in all, of runs that were trained."""
        return self.over_runs(lambda run: run.seconds if run.epochs else None)

    @property
    def memory(self) -> Estimate:
        """Peak bytes of a step, over the run's phases."""
        return self.over_runs(lambda run: max((m for m in _costs(run, "memory").values()), default=None))

    @property
    def parameters(self) -> Estimate:
        """Trainable numbers of the network."""
        return self.over_runs(lambda run: run.cost.get("parameters"))

    @property
    def shared_parameters(self) -> Estimate:
        """Those that several tasks use."""
        return self.over_runs(lambda run: run.cost.get("shared_parameters"))

    @property
    def forward_macs(self) -> Estimate:
        """Multiply-accumulates of one prediction."""
        return self.over_runs(lambda run: run.cost.get("forward_macs"))

    @property
    def epochs(self) -> Estimate:
        """Epochs trained."""
        return self.over_runs(lambda run: run.epochs or None)

    @property
    def selected_epoch(self) -> Estimate:
        """The epoch whose weights were kept."""
        return self.over_runs(lambda run: run.selected_epoch if run.epochs else None)


def phases_of(method: Method) -> dict[str, PhaseCost]:
    """{phase: what it costs}, in the order in which runs came to them."""
    names = dict.fromkeys(
        name for run in method.done for name in (*run.seconds_per_epoch, *(run.cost.get("phases") or {}))
    )
    return {
        name: PhaseCost(
            method.over_runs(lambda run, n=name: run.seconds_per_epoch.get(n)),
            method.over_runs(lambda run, n=name: _costs(run, "macs").get(n)),
            method.over_runs(lambda run, n=name: _costs(run, "memory").get(n)),
        )
        for name in names
    }


def _costs(run: RunRecord, what: str) -> dict[str, float]:
    phases = run.cost.get("phases") or {}
    return {name: cost[what] for name, cost in phases.items() if cost.get(what) is not None}
