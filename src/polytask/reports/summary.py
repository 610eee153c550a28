"""The numbers of a comparison: means, spreads, Δm, ranks and costs, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from polytask.errors import nearest
from polytask.reports.delta import ALL_FIGURES, METRICS, TASK_FIRST, Delta, all_figures, columns_of, delta_m
from polytask.reports.estimate import SEEDS_FOR_A_VERDICT, Estimate, Figure, Values, compare
from polytask.reports.method import Method, phases_of
from polytask.reports.sweep import CHOSEN, Sweep, choose
from polytask.studies.methods import SAME_AS_JOINT, SAME_AS_SINGLE, plain
from polytask.studies.store import RunRecord

RANK_TOLERANCE = 1e-4
"""Relative difference of two means, of the larger, up to which they rank alike: less is not in the printed digits."""


@dataclass
class Summary:
    """A comparison in numbers.

    Attributes:
        split: ``test``, or ``validation`` if no finished run has test figures.
        metrics: each task's metric.
        losses: each task's loss.
        methods: baseline and reference first, the others in the order of the records.
        baseline: the method that Δm compares with, None if there is none.
        reference: the method that verdicts on task figures compare with, None if there is none.
        deltas: the Δm columns.
        sweep: the fixed weights, None if they were not swept. The chosen ones are among `methods` once more, as
            `CHOSEN`; of the points only the plain sum is.
        stages: whether the methods are stages of one another, each from the weights of the one before: such are not
            ranked, have no Δm, and are not set side by side at equal budgets.
    """

    split: str
    tasks: list[dict[str, Any]]
    metrics: list[Figure]
    losses: list[Figure]
    methods: list[Method]
    baseline: str | None
    reference: str | None
    deltas: list[Delta] = field(default_factory=list)
    sweep: Sweep | None = None
    stages: bool = False

    @property
    def noun(self) -> str:
        """What a row of the tables is."""
        return "stage" if self.stages else "method"

    @property
    def every(self) -> list[Method]:
        """The methods, and the points of the sweep that are not among them."""
        names = {method.name for method in self.methods}
        return [*self.methods, *(p for p in (self.sweep.points if self.sweep else ()) if p.name not in names)]

    @property
    def runs(self) -> list[RunRecord]:
        """Every run, once."""
        return [run for m in self.every if self.sweep is None or m.name != CHOSEN for run in m.runs]

    @property
    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return sorted({run.seed for run in self.runs})

    @property
    def unfinished(self) -> list[RunRecord]:
        """Failed and running runs."""
        return [run for run in self.runs if run.state != "done"]


def summarize(
    records: Sequence[RunRecord],
    baseline: str | None = None,
    reference: str | None = None,
    sweep: Sequence[str] = (),
    *,
    stages: bool = False,
) -> Summary:
    """Means, spreads, Δm, ranks and costs of a comparison.

    Args:
        records: runs of one or more methods and seeds on the same tasks.
        baseline: the method whose runs are the single-task baselines of Δm; None looks for one called
            ``single-task`` (however it is written), and if there is none Δm is refused.
        reference: the method that the others must beat by more than the seeds' spread to be called better;
            None looks for one called ``joint``.
        sweep: the methods that are fixed weights, the plain sum first. The others among them leave the table;
            the one that validation data choose stands in it as `CHOSEN`. It is chosen by the mean Δm of the
            tasks' metrics, equal ones by total loss; by total loss alone where Δm cannot be taken.
        stages: whether the methods are stages of one another, see `Summary`.

    Raises:
        ValueError: no records, two runs of one method and seed, a task judged by different metrics, or no
            method of the given name.
    """
    if not records:
        raise ValueError("a report must have at least one run, found none")
    tasks = _tasks(records)
    methods = _methods(records)
    names = [method.name for method in methods]
    baseline = _pick("baseline", baseline, names, SAME_AS_SINGLE)
    reference = _pick("reference", reference, names, SAME_AS_JOINT)
    methods.sort(key=lambda m: (m.name != baseline, m.name != reference))
    metrics = [Figure(t["name"], t["metric"], bool(t["higher_is_better"])) for t in tasks]
    losses = [Figure(t["name"], "loss", False) for t in tasks]
    finished = [run for run in records if run.state == "done"]
    split = "validation" if finished and not any(run.metrics.get("test") for run in finished) else "test"
    summary = Summary(split, tasks, metrics, losses, methods, baseline, reference, stages=stages)
    if sweep:
        _add_sweep(summary, sweep)
    _fill_figures(summary)
    _fill_deltas(summary)
    _fill_ranks(summary)
    return summary


def _tasks(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for task in record.tasks:
            known = found.setdefault(task["name"], task)
            if any(known[key] != task[key] for key in ("metric", "higher_is_better")):
                raise ValueError(
                    f"runs that are compared must judge task `{task['name']}` by one metric, found "
                    f"{known['metric']} and {task['metric']}"
                )
    return list(found.values())


def _methods(records: Sequence[RunRecord]) -> list[Method]:
    methods: dict[str, Method] = {}
    for record in records:
        method = methods.setdefault(record.method, Method(record.method, []))
        if any(record.seed == run.seed for run in method.runs):
            raise ValueError(
                f"a method must have one run per seed, found two of `{record.method}` with seed {record.seed}"
            )
        method.runs.append(record)
    return list(methods.values())


def _pick(what: str, wanted: str | None, names: Sequence[str], usual: Sequence[str]) -> str | None:
    if wanted is None:
        found = {plain(name): name for name in names}
        return next((found[word] for word in usual if word in found), None)
    if wanted not in names:
        raise ValueError(f"the {what} must be one of the methods, found `{wanted}`: {nearest(wanted, names)}")
    return wanted


def _add_sweep(summary: Summary, names: Sequence[str]) -> None:
    """Takes the points out of the methods and puts the chosen one in."""
    by_name = {method.name: method for method in summary.methods}
    points = [by_name[name] for name in names if name in by_name]
    baseline = by_name.get(summary.baseline or "")
    summary.sweep = choose(points, baseline, summary.metrics, len(summary.seeds))
    if len(points) < len(names) or any(run.state not in ("done", "failed") for point in points for run in point.runs):
        summary.sweep.chosen = None
    away = {point.name for point in points} - {summary.reference}
    summary.methods = [method for method in summary.methods if method.name not in away]
    if summary.sweep.chosen is not None:
        runs = [replace(run, method=CHOSEN) for run in by_name[summary.sweep.chosen].runs]
        place = sum(method.name in (summary.baseline, summary.reference) for method in summary.methods)
        summary.methods.insert(place, Method(CHOSEN, runs))


def _fill_figures(summary: Summary) -> None:
    everything = summary.every
    for method in everything:
        values = method.values(summary.split)
        for figure in (*summary.metrics, *summary.losses):
            method.figures[figure.key] = _figure(values, figure)
        method.phases = phases_of(method)
    reference = next((m for m in summary.methods if m.name == summary.reference), None)
    for method in everything if reference else ():
        for figure in (*summary.metrics, *summary.losses):
            assert reference is not None
            estimate, other = method.figures[figure.key], reference.figures[figure.key]
            if method is not reference:
                verdict = compare(estimate, other, figure.higher_is_better)
                method.figures[figure.key] = estimate.judged(verdict)


def _figure(values: Values, figure: Figure) -> Estimate:
    if not values:
        return Estimate(reason="no finished run")
    found = [row.get(figure.key) for row in values.values()]
    if all(value is None for value in found):
        return Estimate(reason="not recorded")
    return Estimate.of(math.nan if value is None else value for value in found)


def _fill_deltas(summary: Summary) -> None:
    baseline = next((m for m in summary.methods if m.name == summary.baseline), None)
    finished = [figures for method in summary.methods for figures in method.values(summary.split).values()]
    everything = all_figures(summary.metrics, summary.losses, finished)
    for method in summary.every:
        for key, figures, task_first in (
            (METRICS, summary.metrics, True),
            (ALL_FIGURES, everything, False),
            (TASK_FIRST, everything, True),
        ):
            method.deltas[key] = _delta(summary, method, baseline, figures, task_first)
    summary.deltas = columns_of(summary.metrics, everything)


def _delta(
    summary: Summary, method: Method, baseline: Method | None, figures: Sequence[Figure], task_first: bool
) -> Estimate:
    if baseline is None:
        return Estimate(reason="no single-task baseline among the methods")
    if method is baseline:
        return Estimate(reason="the baseline itself")
    values, bases = method.values(summary.split), baseline.values(summary.split)
    estimate = delta_m(values, bases, figures, task_first=task_first)
    if estimate.mean is None or estimate.spread is None or estimate.count < SEEDS_FOR_A_VERDICT:
        return estimate
    within = abs(estimate.mean) <= estimate.spread
    return estimate.judged("" if within else "better" if estimate.mean < 0 else "worse")


def _fill_ranks(summary: Summary) -> None:
    ranked = [method for method in summary.methods if method.done]
    totals = dict.fromkeys((method.name for method in ranked), 0.0)
    for figure in summary.metrics:
        for name, rank in _ranks(ranked, figure).items():
            totals[name] += rank
    for method in ranked if summary.metrics else ():
        method.rank = totals[method.name] / len(summary.metrics)


def _ranks(methods: Sequence[Method], figure: Figure) -> dict[str, float]:
    """{method: rank}, 1 the best; equal means share the mean of their ranks; no finite mean ranks last.

    From the best on, means within `RANK_TOLERANCE` of the first of a group are equal to it.
    """

    def score(method: Method) -> float:
        mean = method.figures[figure.key].mean
        return math.inf if mean is None else -mean if figure.higher_is_better else mean

    scores = {method.name: score(method) for method in methods}
    groups: list[list[str]] = []
    for name in sorted(scores, key=lambda name: scores[name]):
        if groups and math.isclose(scores[groups[-1][0]], scores[name], rel_tol=RANK_TOLERANCE):
            groups[-1].append(name)
        else:
            groups.append([name])
    ranks: dict[str, float] = {}
    for group in groups:
        shared = len(ranks) + (len(group) + 1) / 2
        ranks |= dict.fromkeys(group, shared)
    return ranks
