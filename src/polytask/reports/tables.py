"""The comparison as a table: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytask.reports.budget import equal_budgets
from polytask.reports.estimate import SEEDS_FOR_A_VERDICT, Estimate, Figure
from polytask.reports.method import Method
from polytask.reports.summary import RANK_TOLERANCE, Summary, summarize
from polytask.reports.sweep import CHOSEN
from polytask.studies.store import RunRecord

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

MARKS = {"better": "▲", "worse": "▼", "": ""}
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, its verdict, and the reason for what is not shown."""

    text: str
    verdict: str = ""
    reason: str = ""

    @property
    def marked(self) -> str:
        """The text with its verdict's mark."""
        return f"{self.text} {MARKS[self.verdict]}".strip()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its heading.
        note: a second line, such as its direction.
        cells: one per row.
        text: whether the cells are words, which start at the left, rather than numbers.
    """

    heading: str
    note: str
    cells: list[Cell]
    text: bool = False


def terminal_table(
    records: Sequence[RunRecord],
    baseline: str | None = None,
    reference: str | None = None,
    sweep: Sequence[str] = (),
) -> RenderableType:
    """The comparison for a terminal, cut into blocks of columns that fit its width.

    Args:
        records: the runs; see `polytask.reports.summary.summarize`.
        baseline: the single-task method of Δm.
        reference: the method that verdicts compare with.
        sweep: the methods that are fixed weights.

    Raises:
        ValueError: the records cannot be compared.
    """
    return _Terminal(summarize(records, baseline, reference, sweep))


def markdown(
    records: Sequence[RunRecord],
    baseline: str | None = None,
    reference: str | None = None,
    sweep: Sequence[str] = (),
    *,
    stages: bool = False,
) -> str:
    """The comparison as Markdown: a table of figures, a table of costs, and notes.

    Args:
        records: the runs; see `polytask.reports.summary.summarize`.
        baseline: the single-task method of Δm.
        reference: the method that verdicts compare with.
        sweep: the methods that are fixed weights.
        stages: whether the methods are stages of one another.

    Raises:
        ValueError: the records cannot be compared.
    """
    summary = summarize(records, baseline, reference, sweep, stages=stages)
    by_phase, at_budget, points = phase_table(summary), budget_table(summary), sweep_table(summary)
    parts = [
        _markdown_table(summary.noun, names(summary), figure_columns(summary)),
        *([_markdown_table("fixed weights", *points)] if points[0] else []),
        _markdown_table(summary.noun, names(summary), cost_columns(summary)),
        *([_markdown_table(summary.noun, *by_phase)] if by_phase[0] else []),
        *([_markdown_table("method, on validation data", *at_budget)] if at_budget[0] else []),
        "\n".join(f"- {_markdown_text(note)}" for note in notes(summary)),
    ]
    if summary.unfinished:
        parts.append("\n".join(f"- {_markdown_text(unfinished(run))}" for run in summary.unfinished))
    return "\n\n".join(parts) + "\n"


def csv_text(summary: Summary) -> str:
    """The comparison as CSV: one row a method, full precision, empty where there is nothing."""
    import pandas as pd

    return pd.DataFrame([_csv_row(summary, method) for method in summary.every]).to_csv(index=False)


def names(summary: Summary) -> list[str]:
    """The methods' names, in the table's order."""
    return [method.name for method in summary.methods]


def figure_columns(summary: Summary) -> list[Column]:
    """The main table: every task's metric, Δm, mean rank and the headline costs."""
    columns = [_column(f"{f.task} {f.name}", f.direction, summary.methods, f) for f in summary.metrics]
    compared = len(summary.methods) > 1 and not summary.stages
    for delta in summary.deltas if compared else ():
        estimates = [method.deltas[delta.key] for method in summary.methods]
        columns.append(Column(delta.label, "%, lower is better", _cells(estimates)))
    if compared:
        cells = [Cell(NOTHING if m.rank is None else f"{m.rank:.2f}") for m in summary.methods]
        columns.append(Column("mean rank", "lower is better", cells))
    columns.append(Column("runs", "finished", [_runs(method) for method in summary.methods]))
    return columns


def sweep_table(summary: Summary) -> tuple[list[str], list[Column]]:
    """The rows' names and the columns of the table of fixed weights: which were chosen, and what each gave."""
    if summary.sweep is None:
        return [], []
    points, sweep = summary.sweep.points, summary.sweep
    delta = summary.deltas[0]
    scores = [sweep.scores.get(point.name, Estimate(reason="not every seed has finished")) for point in points]
    columns = [
        Column("score", "validation, lower is better", _cells(scores)),
        Column("chosen", "by the score", [Cell("chosen" if p.name == sweep.chosen else "") for p in points]),
        *(_column(f"{f.task} {f.name}", f.direction, points, f) for f in summary.metrics),
        Column(delta.label, "%, lower is better", _cells([point.deltas[delta.key] for point in points])),
        Column("runs", "finished", [_runs(point) for point in points]),
    ]
    return [point.name for point in points], columns


def cost_columns(summary: Summary) -> list[Column]:
    """The second table: what each method costs over a whole run."""

    def column(heading: str, note: str, what: str, show: Callable[[Estimate], Cell]) -> Column:
        return Column(heading, note, [show(getattr(method, what)) for method in summary.methods])

    return [
        column("seconds per epoch", "over all epochs", "seconds_per_epoch", _seconds),
        column("seconds", "training, in all", "seconds", _seconds),
        column("epochs", "trained", "epochs", _count),
        column("epoch kept", "by validation", "selected_epoch", _count),
        column("step memory", "peak", "memory", _bytes),
        column("parameters", "in all", "parameters", _count),
        column("parameters", "shared", "shared_parameters", _count),
        column("MACs", "per prediction", "forward_macs", _count),
    ]


def phase_table(summary: Summary) -> tuple[list[str], list[Column]]:
    """The rows' names and the columns of the third table: what each phase of each method costs."""
    rows = [(method.name, phase, cost) for method in summary.methods for phase, cost in method.phases.items()]
    columns = [
        Column("phase", "", [Cell(phase) for _, phase, _ in rows], text=True),
        Column("seconds per epoch", "median", [_seconds(cost.seconds) for _, _, cost in rows]),
        Column("MACs", "per training example", [_count(cost.macs) for _, _, cost in rows]),
        Column("step memory", "peak", [_bytes(cost.memory) for _, _, cost in rows]),
    ]
    return [name for name, _, _ in rows], columns


def budget_table(summary: Summary) -> tuple[list[str], list[Column]]:
    """The rows' names and the columns of the fourth table: validation figures at one budget for all methods."""
    budgets = [] if summary.stages else equal_budgets(summary)
    if not budgets:
        return [], []
    rows = list(budgets[0].figures)
    columns = []
    for budget in budgets:
        note = f"after {budget.limit:.0f} epochs" if budget.unit == "epochs" else f"after {budget.limit:.3g} seconds"
        for figure in summary.metrics:
            cells = _cells([budget.figures[name][figure.key] for name in rows])
            columns.append(Column(f"{figure.task} {figure.name}", f"{note}, {figure.direction}", cells))
    return rows, columns


def notes(summary: Summary) -> list[str]:
    """How the figures were made, one sentence or two each."""
    lines = [f"Figures are of the {summary.split} data: {_spread_note(summary)}"]
    if summary.split == "test":
        lines.append("Validation data alone selects which epoch's weights are kept; test data only reports.")
    else:
        lines.append("There are no test figures: these are of the data that selected the epochs, so they flatter.")
    if len(summary.methods) > 1 and not summary.stages:
        lines += [*_verdict_notes(summary), *_delta_notes(summary), *_sweep_notes(summary), _RANK_NOTE]
    if budget_table(summary)[0]:
        lines.append(_BUDGET_NOTE)
    return [*lines, _SECONDS_NOTE, _MEMORY_NOTE.format(noun=summary.noun), _MACS_NOTE]


_RANK_NOTE = (
    "Mean rank: methods are ranked on each task by the mean of its metric (1 is best, means within a relative "
    f"{RANK_TOLERANCE:g} of the best of them are equal and share the mean of their ranks, a mean that is not finite is "
    "last), then averaged over tasks. Ranks ignore the spread."
)
_BUDGET_NOTE = (
    "At equal budgets: every history is cut at the shortest run's number of epochs, or of training seconds, and the "
    "epoch with the lowest validation loss before the cut is shown, on validation data. Seconds depend on the machine "
    "and on what else it was doing."
)
_SECONDS_NOTE = "Seconds are of training alone, without validation."
_MEMORY_NOTE = (
    "Step memory is the largest number of bytes of tensors made during one training step that were alive at once, "
    "on any device; it does not hold the parameters themselves, nor scratch space inside kernels. A {noun}'s is "
    "the largest over its phases."
)
_MACS_NOTE = (
    "MACs are multiply-accumulates of matrix products and convolutions, per example, as PyTorch's flop counter "
    "counts them (one MAC is two operations): of one prediction of all tasks, or of the forward and backward pass "
    "of a training step. A phase marked (cached) works on features computed once; computing them is left out."
)


def unfinished(run: RunRecord) -> str:
    """One line on a run without figures."""
    what = f"{run.method}, seed {run.seed}: {run.state}"
    return f"{what}: {run.error}" if run.error else what


def _spread_note(summary: Summary) -> str:
    if len(summary.seeds) == 1:
        several = f"each {summary.noun} has one run" if len(summary.methods) > 1 else "there is one run"
        return f"{several}, of seed {summary.seeds[0]}, so how much they vary is not known."
    return (
        f"mean ± sample standard deviation over a {summary.noun}'s finished seeds (at most {len(summary.seeds)} here); "
        "a single seed has no spread."
    )


def _verdict_notes(summary: Summary) -> list[str]:
    if summary.reference is None:
        return ["No method is called better or worse on a task: there is no method named joint to compare with."]
    if not can_judge(summary):
        return [f"No method is called better or worse: that takes at least {SEEDS_FOR_A_VERDICT} seeds."]
    return [
        f"▲ (better) and ▼ (worse) compare a task's metric with {summary.reference}, and Δm with 0. They appear only "
        f"with at least {SEEDS_FOR_A_VERDICT} seeds, and where the difference of the means exceeds √(s² + s′²), s and "
        "s′ being the two standard deviations (for Δm: where |Δm| exceeds its own). No mark means no difference "
        "beyond the seeds' spread. This describes these runs; it is not a test of significance.",
    ]


def can_judge(summary: Summary) -> bool:
    """Whether there are seeds enough to call a method better or worse than the reference method."""
    return summary.reference is not None and len(summary.seeds) >= SEEDS_FOR_A_VERDICT


def _sweep_notes(summary: Summary) -> list[str]:
    if summary.sweep is None:
        return []
    points = summary.sweep.points
    runs = [run for point in points for run in point.done]
    chosen = f"chosen: {summary.sweep.chosen}" if summary.sweep.chosen else "not yet: the sweep is not complete"
    by = f", by {summary.sweep.by}" if summary.sweep.by else ""
    return [
        f"{CHOSEN}: joint training with fixed task weights that sum to the number of tasks, {len(points)} vectors with "
        "the plain sum among them. Validation data choose one vector for all seeds"
        f"{by} ({chosen}). The costs of this row are those of the chosen weights' runs; the sweep as a whole is "
        f"{len(runs)} runs, {sum(run.seconds for run in runs):,.0f} seconds of training."
    ]


_DELTA_ONE = "It is refused where a baseline's |S| is near 0."
_DELTA_SEEDS = (
    "It is taken seed by seed where method and baseline share at least two seeds, so its spread holds the baseline's; "
    "otherwise between means, with both spreads carried through. It is refused where a baseline's |S| is near 0 or not "
    "above its own spread."
)


def _delta_notes(summary: Summary) -> list[str]:
    if summary.baseline is None:
        return ["Δm is not given: it needs a single-task baseline among the methods."]
    lines = [
        "Δm = (100/n) Σ ± (M − S)/|S|, with − where higher is better: the mean relative change against "
        f"{summary.baseline}, in percent; lower is better. {_DELTA_ONE if len(summary.seeds) == 1 else _DELTA_SEEDS}",
    ]
    lines += [f"{delta.label}: {delta.meaning}." for delta in summary.deltas]
    for delta in summary.deltas:
        for method in summary.every:
            estimate = method.deltas[delta.key]
            if estimate.reason and method.name != summary.baseline:
                lines.append(f"{delta.label} of {method.name}: {estimate.reason}.")
    return lines


def _column(heading: str, note: str, methods: Sequence[Method], figure: Figure) -> Column:
    return Column(heading, note, _cells([method.figures[figure.key] for method in methods]))


def _runs(method: Method) -> Cell:
    failed = sum(run.state == "failed" for run in method.runs)
    running = len(method.unfinished) - failed
    counts = [f"{len(method.done)} of {len(method.runs)}"]
    counts += [f"{failed} failed"] * bool(failed) + [f"{running} running"] * bool(running)
    return Cell(", ".join(counts))


def _cells(estimates: Sequence[Estimate]) -> list[Cell]:
    digits = decimals(estimates)
    return [_cell(estimate, digits) for estimate in estimates]


def _cell(estimate: Estimate, digits: int) -> Cell:
    if estimate.mean is None:
        text = "baseline" if estimate.reason == "the baseline itself" else NOTHING
        return Cell(text, reason=estimate.reason)
    return Cell(_text(estimate, lambda v: f"{v:.{digits}f}"), estimate.verdict, estimate.reason)


def _text(estimate: Estimate, show: Callable[[float], str]) -> str:
    assert estimate.mean is not None
    mean = show(estimate.mean).replace("-", "−")
    return mean if estimate.spread is None else f"{mean} ± {show(estimate.spread)}"


def decimals(estimates: Iterable[Estimate]) -> int:
    """Decimals for a column: one figure of its smallest spread and two of its largest, or four of the
    smallest mean where there is no spread; 1 to 5.

    >>> decimals([Estimate(0.98712, 0.0013, 3), Estimate(0.97, 0.02, 3)])
    3
    """
    estimates = list(estimates)
    spreads = [e.spread for e in estimates if e.spread]
    means = [abs(e.mean) for e in estimates if e.mean]
    if spreads:
        wanted = max(-math.floor(math.log10(min(spreads))), 1 - math.floor(math.log10(max(spreads))))
    else:
        wanted = 3 - math.floor(math.log10(min(means))) if means else 1
    return min(max(wanted, 1), 5 if spreads else 4)


def _seconds(estimate: Estimate) -> Cell:
    if estimate.mean is None:
        return Cell(NOTHING, reason=estimate.reason)
    # two figures of the spread, where there is one
    of = estimate.spread or estimate.mean
    lead = math.floor(math.log10(of)) if of > 0 else 0
    digits = min(max((1 if estimate.spread else 2) - lead, 0), 6)
    return Cell(_text(estimate, lambda v: f"{v:.{digits}f}"))


def _count(estimate: Estimate) -> Cell:
    if estimate.mean is None:
        return Cell(NOTHING, reason=estimate.reason)
    if not estimate.spread:
        return Cell(f"{estimate.mean:,.0f}")
    return Cell(_text(estimate, lambda v: f"{v:,.0f}" if v >= 10 else f"{v:.1f}"))


def _bytes(estimate: Estimate) -> Cell:
    if estimate.mean is None:
        return Cell(NOTHING, reason=estimate.reason)
    power = min(int(math.log(max(estimate.mean, 1), 1024)), 4)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    shown = Estimate(estimate.mean / 1024**power, (estimate.spread or 0.0) / 1024**power or None)
    return Cell(f"{_text(shown, lambda v: f'{v:.1f}')} {unit}")


def _markdown_text(text: str) -> str:
    for character in "\\`*_{}[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _markdown_table(corner: str, rows: Sequence[str], columns: Sequence[Column]) -> str:
    headings = [corner, *(f"{c.heading} ({c.note})" if c.note else c.heading for c in columns)]
    lines = [headings, ["---", *("---" if c.text else "---:" for c in columns)]]
    body = [[name, *(column.cells[i].marked for column in columns)] for i, name in enumerate(rows)]
    text = [lines[0], *body]
    escaped = [[_markdown_text(cell) for cell in row] for row in text]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], lines[1], *escaped[1:]])


def _csv_row(summary: Summary, method: Method) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method.name, "runs": len(method.runs), "finished": len(method.done)}
    if summary.sweep is not None:
        listed = summary.sweep.scores.get(method.name)
        row["sweep_score"] = None if listed is None else listed.mean
        row["sweep_chosen"] = method.name == summary.sweep.chosen

    def add(name: str, estimate: Estimate) -> None:
        row[f"{name}/mean"], row[f"{name}/std"] = estimate.mean, estimate.spread

    for figure in (*summary.metrics, *summary.losses):
        add(f"{summary.split}/{figure.key}", method.figures[figure.key])
    for key, estimate in method.deltas.items():
        add(key, estimate)
    row["mean_rank"] = method.rank
    for name in (
        "seconds_per_epoch", "seconds", "memory", "parameters", "shared_parameters", "forward_macs", "epochs",
        "selected_epoch",
    ):  # fmt: skip
        add(name, getattr(method, name))
    for phase, cost in method.phases.items():
        row[f"{phase}/seconds_per_epoch"] = cost.seconds.mean
        row[f"{phase}/macs"], row[f"{phase}/memory"] = cost.macs.mean, cost.memory.mean
    return row


class _Terminal:
    """The tables and notes, laid out for the width they are printed at."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        rows = names(self.summary)
        yield from _blocks(rows, figure_columns(self.summary), options.max_width)
        yield from _blocks(rows, cost_columns(self.summary), options.max_width)
        by_phase = phase_table(self.summary)
        if by_phase[0]:
            yield from _blocks(*by_phase, options.max_width)
        yield Text(_terminal_note(self.summary), style="dim")
        for run in self.summary.unfinished:
            yield Text(unfinished(run), style="red" if run.state == "failed" else "yellow")


def _terminal_note(summary: Summary) -> str:
    spread = "mean ± standard deviation over seeds" if len(summary.seeds) > 1 else f"seed {summary.seeds[0]} alone"
    base = f"{summary.split} data, {spread}"
    if summary.sweep is not None:
        chosen = summary.sweep.chosen or "not yet"
        base += f"; {CHOSEN} on validation data: {chosen}, all {len(summary.sweep.points)} are in the report"
    if len(summary.methods) > 1 and summary.baseline is None:
        base += "; Δm needs a single-task baseline, found none"
    if len(summary.methods) < 2 or not can_judge(summary):
        return f"{base}."
    return (
        f"{base}. ▲ better, ▼ worse than {summary.reference} (Δm: than the baseline) by more than the seeds' spread. "
        "How each figure is made is under Notes in the report."
    )


def _blocks(rows: Sequence[str], columns: Sequence[Column], width: int) -> Iterable[RenderableType]:
    """Tables of as many columns as fit: a squeezed table cannot be read."""
    from rich.cells import cell_len

    lead = min(max(map(cell_len, ("method", *rows))), max(width // 3, 12)) + 4
    block: list[Column] = []
    used = lead
    for column in columns:
        wanted = max(cell_len(text) for text in (*(c.marked for c in column.cells), *_heading(column))) + 3
        if block and used + wanted > width:
            yield _rich_table(rows, block, lead - 4)
            block, used = [], lead
        block.append(column)
        used += wanted
    if block:
        yield _rich_table(rows, block, lead - 4)


def _heading(column: Column) -> list[str]:
    return [line for line in (*column.heading.split(" ", 1), *column.note.split(", ")) if line]


def _rich_table(rows: Sequence[str], columns: Sequence[Column], lead: int) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", max_width=lead, overflow="fold", vertical="bottom")
    for column in columns:
        side = "left" if column.text else "right"
        table.add_column(Text("\n".join(_heading(column))), justify=side, vertical="bottom")
    styles = {"better": "green", "worse": "red", "": ""}
    for i, name in enumerate(rows):
        cells = [column.cells[i] for column in columns]
        table.add_row(Text(name), *(Text(cell.marked, style=styles[cell.verdict]) for cell in cells))
    return table
