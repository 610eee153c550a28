"""Joint training with fixed task weights, and which of them validation data choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from polytask.reports.delta import delta_m
from polytask.reports.estimate import Estimate, Figure
from polytask.reports.method import Method

CHOSEN = "weights, chosen"
"""The name under which the chosen fixed weights stand among the methods."""


@dataclass
class Sweep:
    """Joint training with fixed task weights, and which of them validation data chose.

    Attributes:
        points: one method per vector of weights, the plain sum first.
        chosen: the name of the point with the lowest score among those that finished all seeds; None if there
            is none, and while points are missing or running, as an early choice would favour those that are trained
            first.
        by: the score in words.
        scores: {point: its score on validation data}; lower is better.
    """

    points: list[Method]
    chosen: str | None = None
    by: str = ""
    scores: dict[str, Estimate] = field(default_factory=dict)


def choose(points: list[Method], baseline: Method | None, metrics: Sequence[Figure], seeds: int) -> Sweep:
    """The weights with the lowest mean Δm of the tasks' metrics on validation data, or with the lowest total loss.

    Args:
        points: one method per vector of weights; those that lack a seed are not chosen.
        baseline: the method that Δm compares with; without one, the total loss decides.
        metrics: each task's metric.
        seeds: how many runs a complete point has.
    """
    complete = [point for point in points if len(point.done) == seeds]
    losses = {p.name: p.over_runs(lambda run: run.metrics.get("validation", {}).get("loss")) for p in complete}
    bases = {} if baseline is None else baseline.values("validation")
    deltas = {p.name: delta_m(p.values("validation"), bases, metrics, task_first=True) for p in complete}
    by_delta = any(delta.mean is not None for delta in deltas.values())  # points that diverged have none
    scores = deltas if by_delta else losses
    by = f"mean Δm of the tasks' metrics against {baseline.name}" if by_delta and baseline else "mean total loss"

    def score(name: str) -> tuple[float, float]:
        first, second = scores[name].mean, losses[name].mean
        return math.inf if first is None else round(first, 9), math.inf if second is None else second

    finite = [point.name for point in complete if scores[point.name].mean is not None]
    return Sweep(points, min(finite, key=score, default=None), by, scores)
