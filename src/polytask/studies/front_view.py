"""What a front's runs amount to: axes, non-dominated points, hypervolumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytask.errors import one_of
from polytask.studies.pareto import Vector, hypervolume, non_dominated
from polytask.studies.store import RunRecord

KINDS = ("metric", "loss")
SPLITS = ("validation", "test")
MARGIN = 0.1


@dataclass(frozen=True)
class Point:
    """One run of a front.

    Attributes:
        sweep: which scalarizer was given the vector.
        seed: its seed.
        vector: the preference.
        record: what the run found.
    """

    sweep: str
    seed: int
    vector: Vector
    record: RunRecord


@dataclass(frozen=True)
class Axis:
    """One objective as a coordinate of the front.

    Attributes:
        objective: its name.
        figure: ``accuracy``, ``loss`` and the like; ``value`` for an objective that is no task.
        maximise: which way it is better.
    """

    objective: str
    figure: str
    maximise: bool

    @property
    def key(self) -> str:
        """Its name in a run's figures."""
        return f"{self.objective}/{self.figure}"

    @property
    def direction(self) -> str:
        """In words."""
        return "higher is better" if self.maximise else "lower is better"


@dataclass(frozen=True)
class Curve:
    """The points of one sweep and one seed.

    Attributes:
        sweep: its name.
        seed: its seed.
        points: N finished runs with finite figures, in the order of the vectors.
        values: {split: (N, M) coordinates}.
        chosen: (N,) which points are non-dominated among these on validation.
        volumes: {split: hypervolume of the chosen points}. On test too they are the points chosen on validation.
        complete: whether no vector is missing.
    """

    sweep: str
    seed: int
    points: list[Point]
    values: dict[str, np.ndarray]
    chosen: list[bool]
    volumes: dict[str, float]
    complete: bool


@dataclass(frozen=True)
class View:
    """A front by metrics or by losses.

    Attributes:
        kind: ``metric`` or ``loss``.
        axes: M coordinates.
        reference: (M,) the hypervolume's reference point, the same for all sweeps, seeds and splits.
        given: whether the user gave it.
        curves: one per sweep and seed with at least one point.
    """

    kind: str
    axes: list[Axis]
    reference: list[float]
    given: bool
    curves: list[Curve]

    def volumes(self, sweep: str, split: str) -> list[float]:
        """Hypervolumes of the seeds for which no sweep lacks a vector: those may be compared."""
        whole = {curve.seed for curve in self.curves} - {curve.seed for curve in self.curves if not curve.complete}
        sweeps = {curve.sweep for curve in self.curves}
        found = {(curve.sweep, curve.seed): curve for curve in self.curves}
        return [
            found[sweep, seed].volumes[split] for seed in sorted(whole) if all((name, seed) in found for name in sweeps)
        ]


def view(
    points: Sequence[Point],
    objectives: Sequence[str],
    sweeps: Sequence[str],
    seeds: Sequence[int],
    kind: str = "metric",
    reference: Mapping[str, float] | None = None,
) -> View:
    """Non-dominated points and hypervolumes.

    Which points are non-dominated is decided on validation; test figures are those of the same points.

    Args:
        points: the runs, failed and unfinished ones among them.
        objectives: M names.
        sweeps: in the order wanted.
        seeds: likewise.
        kind: ``metric``: each task by its metric, ``loss``: by its loss; other objectives by their value, lower is
            better.
        reference: {objective: value}; `default_reference` if None.

    Raises:
        ValueError: another kind, or no run has ended with finite figures.
    """
    one_of("kind", kind, KINDS)
    done = [point for point in points if point.record.state == "done"]
    axes = _axes(done, objectives, kind)
    finite = [point for point in done if all(math.isfinite(v) for s in SPLITS for v in coordinates(point, axes, s))]
    if not finite:
        raise ValueError("a front must have at least one finished run with finite figures, found none")
    maximise = [axis.maximise for axis in axes]
    parts = [[p for p in finite if (p.sweep, p.seed) == (sweep, seed)] for sweep in sweeps for seed in seeds]
    own = [part for part in parts if part]
    if reference is None:
        limits = default_reference([[coordinates(p, axes, "validation") for p in part] for part in own], maximise)
    else:
        limits = [reference[axis.objective] for axis in axes]
    wanted = {tuple(point.vector.values()) for point in points}
    curves = [_curve(part, axes, limits, len(part) == len(wanted)) for part in own]
    return View(kind, axes, limits, reference is not None, curves)


def default_reference(curves: Sequence[Any], maximise: Sequence[bool]) -> list[float]:
    """A reference point for a study: the worst of each coordinate, moved out by a tenth of its range.

    The worst and the range are taken on validation, over the points of all sweeps and seeds that are non-dominated
    within their own sweep and seed. A run that went astray is mostly dominated and then does not stretch the range; the
    ends of every front count.

    Args:
        curves: (N, M) of each sweep and seed.
        maximise: which way each coordinate is better.

    >>> default_reference([[[0, 2], [1, 1], [9, 9]], [[2, 0]]], [False, False])
    [2.2, 2.2]
    """
    tables = [np.asarray(values, dtype=float) for values in curves]
    kept = np.concatenate([table[np.asarray(non_dominated(table, maximise))] for table in tables])
    limits = []
    for column, up in zip(kept.T, maximise, strict=True):
        width = column.max() - column.min()
        margin = MARGIN * (width if width > 0 else max(abs(column.max()), 1.0))
        limits.append(float(column.min() - margin if up else column.max() + margin))
    return limits


def coordinates(point: Point, axes: Sequence[Axis], split: str) -> list[float]:
    """(M,) a run's figures; NaN where there is none."""
    figures = point.record.metrics.get(split, {})
    found = [figures.get(axis.key) for axis in axes]
    return [math.nan if value is None else value for value in found]


def _axes(done: Sequence[Point], objectives: Sequence[str], kind: str) -> list[Axis]:
    tasks = {task["name"]: task for point in done[:1] for task in point.record.tasks}
    axes = []
    for name in objectives:
        task = tasks.get(name)
        if task is None:
            axes.append(Axis(name, "value", False))
        elif kind == "loss":
            axes.append(Axis(name, "loss", False))
        else:
            axes.append(Axis(name, task["metric"], task["higher_is_better"]))
    return axes


def _curve(points: list[Point], axes: Sequence[Axis], limits: Sequence[float], complete: bool) -> Curve:
    maximise = [axis.maximise for axis in axes]
    values = {split: np.array([coordinates(point, axes, split) for point in points]) for split in SPLITS}
    chosen = non_dominated(values["validation"], maximise)
    volumes = {split: hypervolume(table[np.array(chosen)], limits, maximise) for split, table in values.items()}
    return Curve(points[0].sweep, points[0].seed, points, values, chosen, volumes, complete)
