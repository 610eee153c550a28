"""Δm, the mean relative change against single-task baselines, and which figures enter it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from polytask.reports.estimate import Estimate, Figure, Values, finite

NEAR_ZERO = 1e-6
"""A baseline figure below this has no meaningful relative change."""

METRICS, ALL_FIGURES, TASK_FIRST = "delta_m_metrics", "delta_m_all_figures", "delta_m_task_first"


@dataclass(frozen=True)
class Delta:
    """One Δm column: its key, its heading, and what enters it."""

    key: str
    label: str
    meaning: str


def relative_change(value: float, base: float, higher_is_better: bool) -> float:
    """(−1)^{higher is better} · 100 (M − S)/|S|: in percent, negative where M is better than S.

    >>> relative_change(1.0, 0.5, True), relative_change(0.5, 1.0, False), relative_change(-0.25, -0.5, True)
    (-100.0, -50.0, -50.0)
    """
    change = 100 * (value - base) / abs(base)
    return -change if higher_is_better else change


def delta_m(method: Values, baseline: Values, figures: Sequence[Figure], *, task_first: bool) -> Estimate:
    """Δm of a method against single-task baselines, in percent; lower is better.

    Where both have at least two seeds in common, Δm is taken seed by seed against the baseline of the same
    seed, so that the spread over seeds holds the baseline's too. Otherwise it is taken between the means,
    and the two spreads are carried through to first order and added in squares.

    Args:
        method: the method's figures by seed.
        baseline: the baseline's.
        figures: what enters.
        task_first: True averages each task's figures, then the tasks; False averages all figures at once.

    Returns:
        The estimate; refused, with the reason, where a figure is missing or not finite, or where a
        baseline's |S| is below `NEAR_ZERO` or not above its own spread over seeds.
    """
    refusal = _refusal(method, baseline, figures)
    if refusal:
        return Estimate(reason=refusal)
    weights = _weights(figures, task_first)
    common = sorted(set(method) & set(baseline))
    if len(common) > 1 or (len(common) == 1 and len(method) == len(baseline) == 1):
        return Estimate.of(_weighted_change(method[s], baseline[s], figures, weights) for s in common)
    return _unpaired(method, baseline, figures, weights)


def _unpaired(method: Values, baseline: Values, figures: Sequence[Figure], weights: Mapping[str, float]) -> Estimate:
    means, bases = _means(method, figures), _means(baseline, figures)
    mean = _weighted_change(means, bases, figures, weights)
    count = min(len(method), len(baseline))
    if count < 2:
        return Estimate(mean, None, count, "a spread needs two seeds of the method and of the baseline")
    # one number per seed keeps the correlation between tasks; ∂Δ/∂M = ∓1/|S| and ∂Δ/∂S = ±M/(S|S|)
    sign = {f.key: -1 if f.higher_is_better else 1 for f in figures}
    by_method = {k: 100 * sign[k] * weights[k] / abs(bases[k]) for k in sign}
    by_base = {k: 100 * sign[k] * weights[k] * means[k] / (bases[k] * abs(bases[k])) for k in sign}
    spread = math.hypot(_linear_spread(method, by_method), _linear_spread(baseline, by_base))
    return Estimate(mean, spread, count, "no seeds in common: taken between means")


def _linear_spread(values: Values, coefficients: Mapping[str, float]) -> float:
    return stdev(sum(c * row[key] for key, c in coefficients.items()) for row in values.values())


def _weighted_change(
    values: Mapping[str, float],
    base: Mapping[str, float],
    figures: Sequence[Figure],
    weights: Mapping[str, float],
) -> float:
    return sum(weights[f.key] * relative_change(values[f.key], base[f.key], f.higher_is_better) for f in figures)


def _weights(figures: Sequence[Figure], task_first: bool) -> dict[str, float]:
    if not task_first:
        return {f.key: 1 / len(figures) for f in figures}
    tasks = [f.task for f in figures]
    return {f.key: 1 / (len(set(tasks)) * tasks.count(f.task)) for f in figures}


def _means(values: Values, figures: Sequence[Figure]) -> dict[str, float]:
    return {f.key: fmean(row[f.key] for row in values.values()) for f in figures}


def _refusal(method: Values, baseline: Values, figures: Sequence[Figure]) -> str:
    for values, who in ((method, "the method"), (baseline, "the baseline")):
        if not values:
            return f"{who} has no finished run"
        for figure in figures:
            if any(not finite(row.get(figure.key)) for row in values.values()):
                return f"{who} has a run without a finite {figure.key}"
    for figure in figures:
        base = Estimate.of(row[figure.key] for row in baseline.values())
        assert base.mean is not None
        lowest = min(abs(row[figure.key]) for row in baseline.values())
        if lowest < NEAR_ZERO or abs(base.mean) <= (base.spread or 0.0):
            return f"the baseline's {figure.key} is too near 0 ({base.mean:.3g})"
    return ""


def all_figures(
    metrics: Sequence[Figure], losses: Sequence[Figure], finished: Sequence[Mapping[str, float]]
) -> list[Figure]:
    """Metrics and losses, without losses that no run recorded or that are their task's metric under another name.

    Args:
        metrics: each task's metric.
        losses: each task's loss, in the same order.
        finished: the figures of every finished run.
    """

    def same(metric: Figure, loss: Figure) -> bool:
        pairs = [
            (row[metric.key], row[loss.key])
            for row in finished
            if finite(row.get(metric.key)) and finite(row.get(loss.key))
        ]
        return bool(pairs) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)

    kept = [
        loss for metric, loss in zip(metrics, losses, strict=True)
        if metric.key != loss.key and any(loss.key in row for row in finished) and not same(metric, loss)
    ]  # fmt: skip
    return [*metrics, *kept]


def columns_of(metrics: Sequence[Figure], everything: Sequence[Figure]) -> list[Delta]:
    """The Δm columns that differ from one another.

    Args:
        metrics: each task's metric.
        everything: metrics and losses, from `all_figures`.
    """
    listed = ", ".join(f.key for f in everything)
    columns = [
        Delta(METRICS, "Δm metrics", "the mean over the tasks' metrics. There is one metric per task, so the "
              "two definitions in use (the mean over all metrics, and per task first) are the same number: "
              + ", ".join(f.key for f in metrics)),
    ]  # fmt: skip
    losses = [f for f in everything if f not in metrics]
    if not losses:
        return columns
    tasks = [f.task for f in everything]
    if len({tasks.count(task) for task in tasks}) == 1:
        meaning = (
            "the mean over the tasks' metrics and losses. Every task enters as many figures, so the two "
            f"definitions in use (the mean over all figures, and per task first) are the same number: {listed}"
        )
        return [*columns, Delta(ALL_FIGURES, "Δm metrics and losses", meaning)]
    return [
        *columns,
        Delta(ALL_FIGURES, "Δm all figures", f"the mean over all figures at once, metrics and losses: {listed}"),
        Delta(TASK_FIRST, "Δm task first", f"the same figures averaged within each task, then over tasks: {listed}"),
    ]
