"""Figures of pairs of tasks, read from histories, and how far noise may have moved them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Matrix = Mapping[str, Mapping[str, float]]
"""{task that takes the step: {task whose loss is looked at: figure}}; the diagonal is not looked at."""

LEVEL = 0.95
"""How sure a figure must be to be told from zero."""


@dataclass(frozen=True)
class Mean:
    """A mean of several measurements.

    Attributes:
        value: the mean.
        error: its standard error; NaN of a single measurement.
        reach: half the width of its 95 % confidence interval; NaN likewise.

    >>> Mean(0.2, 0.1, 0.3).clear, Mean(-0.4, 0.1, 0.3).clear, Mean(0.2, math.nan, math.nan).clear
    (False, True, False)
    """

    value: float
    error: float
    reach: float

    @property
    def known(self) -> bool:
        """Whether there were measurements enough to judge it."""
        return math.isfinite(self.reach)

    @property
    def clear(self) -> bool:
        """Whether it can be told from zero."""
        return abs(self.value) > self.reach


Noise = Mapping[str, Mapping[str, Mean]]
"""A `Matrix` whose figures know their errors."""


def independent(values: Sequence[float]) -> Mean:
    """The mean of measurements that know nothing of each other, such as those of several seeds.

    With s their standard deviation and n their number the error is s / √n, the interval Student's with n - 1 degrees
    of freedom.

    Args:
        values: at least one.

    >>> made = independent([1.0, 2.0, 3.0])
    >>> round(made.value, 3), round(made.error, 3), round(made.reach, 3)
    (2.0, 0.577, 2.484)
    """
    count, value = len(values), math.fsum(values) / len(values)
    square = math.fsum((x - value) ** 2 for x in values) / (count - 1) if count > 1 else math.nan
    return _mean(value, square, count, count - 1)


def successive(values: Sequence[float]) -> Mean:
    r"""The mean of measurements in their order in time, such as those of the epochs of one run, which may drift.

    What tells noise from drift is how far each is from the one before (von Neumann et al. 1941,
    `doi:10.1214/aoms/1177731746 <https://doi.org/10.1214/aoms/1177731746>`_): with n measurements the variance is
    δ² = Σ (x_{t+1} - x_t)² / (2 (n - 1)), the error √(δ² / n), and the interval Student's with the degrees of freedom
    that δ² is worth for independent normal noise, 2 (n - 1)² / (3 n - 4). Noise that lasts from one measurement to the
    next is underrated.

    Args:
        values: at least one.

    >>> made = successive([1.0, 2.0, 3.0])  # a drift of one each time
    >>> round(made.value, 3), round(made.error, 3)
    (2.0, 0.408)
    """
    count, value = len(values), math.fsum(values) / len(values)
    if count < 2:
        return _mean(value, math.nan, count, 0.0)
    square = math.fsum((after - before) ** 2 for before, after in pairwise(values)) / (2 * (count - 1))
    return _mean(value, square, count, 2 * (count - 1) ** 2 / (3 * count - 4))


def _mean(value: float, square: float, count: int, freedom: float) -> Mean:
    """The mean of `count` measurements with this variance, which is known with these degrees of freedom."""
    if not math.isfinite(square):
        return Mean(value, math.nan, math.nan)
    from scipy.special import stdtrit

    error = math.sqrt(square / count)
    return Mean(value, error, float(stdtrit(freedom, (1 + LEVEL) / 2)) * error)


def by_epoch(history: Iterable[Mapping[str, Any]], kind: str = "affinity") -> list[dict[str, dict[str, float]]]:
    """The figures of pairs of tasks in each epoch that has some, with the arguments of `read_pairs`."""
    found = []
    for row in history:
        matrix: dict[str, dict[str, float]] = {}
        for column, value in row.items():
            parts = column.split("/")
            if len(parts) == 3 and parts[0] == kind and math.isfinite(value):
                _, i, j = parts
                matrix.setdefault(i, {})[j] = value
                matrix.setdefault(j, {})
                if kind == "cosine":
                    matrix[j][i] = value
        if matrix:
            found.append(matrix)
    return found


def read_pairs(history: Iterable[Mapping[str, Any]], kind: str = "affinity") -> dict[str, dict[str, float]]:
    """The figures of pairs of tasks in a history, as the mean over its epochs: {i: {j: figure}}.

    Args:
        history: rows with columns ``<kind>/<i>/<j>``; epochs without a column do not enter its mean.
        kind: ``affinity``, or ``cosine``, whose figures go both ways.

    Returns:
        One entry for each task, in order of appearance; empty if the history has no such columns. Pairs that have no
        figure are left out.
    """
    return values_of(read_noise([history], kind))


def read_noise(histories: Sequence[Iterable[Mapping[str, Any]]], kind: str = "affinity") -> dict[str, dict[str, Mean]]:
    """The same, of one run or of several, with errors: over the epochs of one, over the runs if there are several."""
    runs = [_together(by_epoch(history, kind), successive) for history in histories]
    runs = [run for run in runs if run]
    return runs[0] if len(runs) == 1 else _together([values_of(run) for run in runs], independent)


def values_of(noise: Noise) -> dict[str, dict[str, float]]:
    """The means alone."""
    return {i: {j: mean.value for j, mean in row.items()} for i, row in noise.items()}


def _together(matrices: Sequence[Matrix], mean: Callable[[Sequence[float]], Mean]) -> dict[str, dict[str, Mean]]:
    tasks = list(dict.fromkeys(task for matrix in matrices for task in matrix))
    found: dict[str, dict[str, Mean]] = {task: {} for task in tasks}
    for i in tasks:
        for j in tasks:
            values = [matrix[i][j] for matrix in matrices if j in matrix.get(i, {})]
            if values:
                found[i][j] = mean(values)
    return found
