"""The numbers of a comparison: means, spreads, Δm, ranks and costs, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from polytask.errors import nearest
from polytask.studies.methods import SAME_AS_JOINT, SAME_AS_SINGLE, plain
from polytask.studies.store import RunRecord

NEAR_ZERO = 1e-6
"""A baseline figure below this has no meaningful relative change."""

SEEDS_FOR_A_VERDICT = 3
"""Fewer seeds than this give no spread worth trusting, so no method is called better or worse."""

METRICS, ALL_FIGURES, TASK_FIRST = "delta_m_metrics", "delta_m_all_figures", "delta_m_task_first"

CHOSEN = "weights, chosen"
"""The name under which the chosen fixed weights stand among the methods."""

Values = Mapping[int, Mapping[str, float]]
"""{seed: {figure's key: value}} of one method."""


@dataclass(frozen=True)
class Figure:
    """One figure of one task.

    Attributes:
        task: the task's name.
        name: ``loss`` or the metric's name.
        higher_is_better: its direction.
    """

    task: str
    name: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """Its key in a record's metrics."""
        return f"{self.task}/{self.name}"

    @property
    def direction(self) -> str:
        """In words."""
        return "higher is better" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: None if there is nothing to show; `reason` then says why.
        spread: sample standard deviation (n − 1) over seeds; None below two seeds.
        count: seeds, or pairs of seeds, that entered.
        reason: why `mean` or `spread` is missing.
        verdict: ``better`` or ``worse`` where the difference exceeds the spread, "" where it does not.
    """

    mean: float | None = None
    spread: float | None = None
    count: int = 0
    reason: str = ""
    verdict: str = ""

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """The mean and sample standard deviation; nothing if a value is not finite.

        >>> Estimate.of([1.0, 3.0]).mean, round(Estimate.of([1.0, 3.0]).spread, 3)
        (2.0, 1.414)
        """
        numbers = list(values)
        if not numbers:
            return cls(reason="no figures")
        wrong = sum(not math.isfinite(v) for v in numbers)
        if wrong:
            # leaving them out would make a method that diverges look as good as one that does not
            return cls(count=len(numbers), reason=f"not finite in {wrong} of {len(numbers)} runs")
        return cls(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))

    def judged(self, verdict: str) -> Estimate:
        """The same with a verdict."""
        return Estimate(self.mean, self.spread, self.count, self.reason, verdict)


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
        """Training seconds in all."""
        return self.over_runs(lambda run: run.seconds)

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
        return self.over_runs(lambda run: run.epochs)

    @property
    def selected_epoch(self) -> Estimate:
        """The epoch whose weights were kept."""
        return self.over_runs(lambda run: run.selected_epoch)


@dataclass(frozen=True)
class Delta:
    """One Δm column: its key, its heading, and what enters it."""

    key: str
    label: str
    meaning: str


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
    summary = Summary(split, tasks, metrics, losses, methods, baseline, reference)
    if sweep:
        _add_sweep(summary, sweep)
    _fill_figures(summary)
    _fill_deltas(summary)
    _fill_ranks(summary)
    return summary


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
            if any(not _finite(row.get(figure.key)) for row in values.values()):
                return f"{who} has a run without a finite {figure.key}"
    for figure in figures:
        base = Estimate.of(row[figure.key] for row in baseline.values())
        assert base.mean is not None
        lowest = min(abs(row[figure.key]) for row in baseline.values())
        if lowest < NEAR_ZERO or abs(base.mean) <= (base.spread or 0.0):
            return f"the baseline's {figure.key} is too near 0 ({base.mean:.3g})"
    return ""


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


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


def _costs(run: RunRecord, what: str) -> dict[str, float]:
    phases = run.cost.get("phases") or {}
    return {name: cost[what] for name, cost in phases.items() if cost.get(what) is not None}


def _values(method: Method, split: str) -> dict[int, dict[str, float]]:
    return {run.seed: run.metrics.get(split, {}) for run in method.done}


def _add_sweep(summary: Summary, names: Sequence[str]) -> None:
    """Takes the points out of the methods and puts the chosen one in."""
    by_name = {method.name: method for method in summary.methods}
    points = [by_name[name] for name in names if name in by_name]
    baseline = by_name.get(summary.baseline or "")
    summary.sweep = _chosen(points, baseline, summary.metrics, len(summary.seeds))
    if len(points) < len(names) or any(run.state not in ("done", "failed") for point in points for run in point.runs):
        summary.sweep.chosen = None
    away = {point.name for point in points} - {summary.reference}
    summary.methods = [method for method in summary.methods if method.name not in away]
    if summary.sweep.chosen is not None:
        runs = [replace(run, method=CHOSEN) for run in by_name[summary.sweep.chosen].runs]
        place = sum(method.name in (summary.baseline, summary.reference) for method in summary.methods)
        summary.methods.insert(place, Method(CHOSEN, runs))


def _chosen(points: list[Method], baseline: Method | None, metrics: Sequence[Figure], seeds: int) -> Sweep:
    complete = [point for point in points if len(point.done) == seeds]
    losses = {p.name: p.over_runs(lambda run: run.metrics.get("validation", {}).get("loss")) for p in complete}
    bases = {} if baseline is None else _values(baseline, "validation")
    deltas = {p.name: delta_m(_values(p, "validation"), bases, metrics, task_first=True) for p in complete}
    by_delta = any(delta.mean is not None for delta in deltas.values())  # points that diverged have none
    scores = deltas if by_delta else losses
    by = f"mean Δm of the tasks' metrics against {baseline.name}" if by_delta and baseline else "mean total loss"

    def score(name: str) -> tuple[float, float]:
        first, second = scores[name].mean, losses[name].mean
        return math.inf if first is None else round(first, 9), math.inf if second is None else second

    finite = [point.name for point in complete if scores[point.name].mean is not None]
    return Sweep(points, min(finite, key=score, default=None), by, scores)


def _fill_figures(summary: Summary) -> None:
    everything = summary.every
    for method in everything:
        values = _values(method, summary.split)
        for figure in (*summary.metrics, *summary.losses):
            method.figures[figure.key] = _figure(values, figure)
        method.phases = _phases(method)
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


def compare(one: Estimate, other: Estimate, higher_is_better: bool) -> str:
    """``better`` or ``worse``, or "" if the means differ by no more than √(s² + s'²) or seeds are too few."""
    if one.mean is None or other.mean is None or min(one.count, other.count) < SEEDS_FOR_A_VERDICT:
        return ""
    difference = one.mean - other.mean
    if abs(difference) <= math.hypot(one.spread or 0.0, other.spread or 0.0):
        return ""
    return "better" if (difference > 0) == higher_is_better else "worse"


def _phases(method: Method) -> dict[str, PhaseCost]:
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


def _fill_deltas(summary: Summary) -> None:
    baseline = next((m for m in summary.methods if m.name == summary.baseline), None)
    everything = _all_figures(summary)
    for method in summary.every:
        for key, figures, task_first in (
            (METRICS, summary.metrics, True),
            (ALL_FIGURES, everything, False),
            (TASK_FIRST, everything, True),
        ):
            method.deltas[key] = _delta(summary, method, baseline, figures, task_first)
    summary.deltas = _columns(summary, everything)


def _delta(
    summary: Summary, method: Method, baseline: Method | None, figures: Sequence[Figure], task_first: bool
) -> Estimate:
    if baseline is None:
        return Estimate(reason="no single-task baseline among the methods")
    if method is baseline:
        return Estimate(reason="the baseline itself")
    values, bases = _values(method, summary.split), _values(baseline, summary.split)
    estimate = delta_m(values, bases, figures, task_first=task_first)
    if estimate.mean is None or estimate.spread is None or estimate.count < SEEDS_FOR_A_VERDICT:
        return estimate
    within = abs(estimate.mean) <= estimate.spread
    return estimate.judged("" if within else "better" if estimate.mean < 0 else "worse")


def _all_figures(summary: Summary) -> list[Figure]:
    """Metrics and losses, without losses that no run recorded or that are their task's metric under another name."""
    finished = [run.metrics.get(summary.split, {}) for m in summary.methods for run in m.done]

    def same(metric: Figure, loss: Figure) -> bool:
        pairs = [
            (row[metric.key], row[loss.key])
            for row in finished
            if _finite(row.get(metric.key)) and _finite(row.get(loss.key))
        ]
        return bool(pairs) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)

    kept = [
        loss for metric, loss in zip(summary.metrics, summary.losses, strict=True)
        if metric.key != loss.key and any(loss.key in row for row in finished) and not same(metric, loss)
    ]  # fmt: skip
    return [*summary.metrics, *kept]


def _columns(summary: Summary, everything: Sequence[Figure]) -> list[Delta]:
    listed = ", ".join(f.key for f in everything)
    columns = [
        Delta(METRICS, "Δm metrics", "the mean over the tasks' metrics. There is one metric per task, so the "
              "two definitions in use (the mean over all metrics, and per task first) are the same number: "
              + ", ".join(f.key for f in summary.metrics)),
    ]  # fmt: skip
    losses = [f for f in everything if f not in summary.metrics]
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


def _fill_ranks(summary: Summary) -> None:
    ranked = [method for method in summary.methods if method.done]
    totals = dict.fromkeys((method.name for method in ranked), 0.0)
    for figure in summary.metrics:
        for name, rank in _ranks(ranked, figure).items():
            totals[name] += rank
    for method in ranked if summary.metrics else ():
        method.rank = totals[method.name] / len(summary.metrics)


def _ranks(methods: Sequence[Method], figure: Figure) -> dict[str, float]:
    """{method: rank}, 1 the best; equal means share the mean of their ranks; no finite mean ranks last."""

    def score(method: Method) -> float:
        mean = method.figures[figure.key].mean
        if mean is None:
            return math.inf
        return float(f"{-mean if figure.higher_is_better else mean:.12g}")  # rounding errors are no difference

    scores = {method.name: score(method) for method in methods}
    ordered = sorted(scores.values())
    return {n: ordered.index(s) + 1 + (ordered.count(s) - 1) / 2 for n, s in scores.items()}
