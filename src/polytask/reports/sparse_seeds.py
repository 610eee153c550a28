"""Sparse networks of several seeds as tables of means and spreads, for the terminal and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from polytask.reports import page
from polytask.reports.estimate import Estimate
from polytask.reports.sparse import Table, rich_parts, section
from polytask.reports.tables import NOTHING
from polytask.reports.words import plural
from polytask.studies.sparsify import Sparsified
from polytask.studies.sparsify_seeds import SparsifiedSeeds

if TYPE_CHECKING:
    from rich.console import RenderableType

COSTS = {"parameters": "parameters", "macs": "MACs per example", "bytes": "file, KiB", "latency": "latency, ms"}
UNITS = {"parameters": 1.0, "macs": 1.0, "bytes": 1 / 1024, "latency": 1000.0}

_SPREAD_NOTE = "Mean ± sample standard deviation over the seeds."
_ONE_SEED = "Of one seed, so how much the figures vary is not known."
_COST_NOTE = (
    "Before: the sparse network with all its units; the compact one gives the same outputs (the largest difference, "
    "relative to the largest output, is {difference:.2g}). `times less` is the mean of the seeds' own ratios. Latency "
    "is the median of one forward pass over {batch_size} examples (threads: {threads}), measured when the seed's study "
    "came to it; other work on the machine, studies run beside it (`--jobs`) among it, makes it less certain."
)


def write(found: SparsifiedSeeds, title: str | None = None) -> Path:
    """Writes ``report.html``, ``table.csv``, ``table.md``, ``seeds.md`` and ``seeds.csv``, one row a seed.

    Args:
        found: studies of several seeds, of which one at least came to an end.
        title: the page's heading.

    Returns:
        The path of ``report.html``.
    """
    import pandas as pd

    page.write_file(found.folder / "seeds.csv", pd.DataFrame(_flat(found)).to_csv(index=False))
    page.write_file(found.folder / "seeds.md", markdown(found))
    extra = "\n".join([_warnings(found), *map(section, tables(found))])
    return page.write(found.records, found.folder, title=title, extra=extra, stages=True)


def terminal_table(found: SparsifiedSeeds) -> RenderableType:
    """The studies for a terminal."""
    from rich.console import Group

    return Group(*(part for table in tables(found) for part in rich_parts(table)))


def markdown(found: SparsifiedSeeds) -> str:
    """The studies as Markdown."""
    parts = []
    for table in tables(found):
        marks = ["---", *["---:"] * (len(table.head) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (table.head, marks, *table.rows)]
        parts.append("\n".join([f"### {table.title}", "", *lines, *(f"\n{note}" for note in table.notes)]))
    return "\n\n".join(parts) + "\n"


def tables(found: SparsifiedSeeds) -> list[Table]:
    """Figures of the stages, costs before and after, dead rows by layer, all over the seeds; then each seed."""
    studies = list(found.studies.values())
    return [_figures(studies), _costs(studies), _layers(studies), _seeds(found)]


def _figures(studies: Sequence[Sparsified]) -> Table:
    parts = ("validation", "test")
    stages = [record.method for record in studies[0].records]
    metrics = {part: _metrics(studies[0], part) for part in parts}
    rows = [
        (stage, *(
            _text(Estimate.of(show(study.records[place].metrics[part]) for study in studies), "{:.4f}")
            for part in parts for show in metrics[part].values()
        ))
        for place, stage in enumerate(stages)
    ]  # fmt: skip
    head = ["", *(heading for part in parts for heading in metrics[part])]
    return Table(
        "stages",
        f"Stages, {plural(len(studies), 'seed')}",
        head,
        rows,
        [_SPREAD_NOTE if len(studies) > 1 else _ONE_SEED],
    )


def _metrics(study: Sparsified, part: str) -> dict[str, Callable[[dict[str, float]], float]]:
    """{heading: how to read it}: every task's metric, and their mean where all tasks have the same."""
    tasks = study.compact.tasks
    keys = [f"{task['name']}/{task['metric']}" for task in tasks]
    columns: dict[str, Callable[[dict[str, float]], float]] = {
        f"{key.replace('/', ' ')}, {part}": lambda figures, key=key: figures[key] for key in keys
    }
    if len(keys) > 1 and len({task["metric"] for task in tasks}) == 1:
        columns[f"mean {tasks[0]['metric']}, {part}"] = lambda figures: fmean(figures[key] for key in keys)
    return columns


def _costs(studies: Sequence[Sparsified]) -> Table:
    reports = [study.report for study in studies]
    rows = [
        ("dead rows, %", _over(reports, lambda r: 100 * r["rates"]["sparsity"], "{:.1f}"), NOTHING, NOTHING),
        ("rows / distinct rows", _over(reports, lambda r: r["rates"]["compression"], "{:.2f}"), NOTHING, NOTHING),
    ]
    for key, heading in COSTS.items():
        digits = {"bytes": "{:,.1f}", "latency": ""}.get(key, "{:,.0f}")
        before, after = (
            _over(reports, lambda r, key=key, side=side: r[side][key] * UNITS[key], digits)
            for side in ("before", "after")
        )
        ratio = _over(reports, lambda r, key=key: r["before"][key] / r["after"][key], "{:.2f}")
        rows.append((heading, before, after, ratio))
    after = reports[0]["after"]
    note = _COST_NOTE.format(
        difference=max(report["difference"] for report in reports),
        **{key: after[key] for key in ("batch_size", "threads")},
    )
    return Table(
        "costs", "Compaction over the seeds", ("", "sparse, as trained", "compact", "times less"), rows, [note]
    )


def _layers(studies: Sequence[Sparsified]) -> Table:
    reports = [study.report for study in studies]
    rows = [
        (
            name, f"{rates['rows']:,}", _over(reports, lambda r, name=name: r["layers"][name]["dead"], "{:,.0f}"),
            _over(reports, lambda r, name=name: 100 * r["layers"][name]["sparsity"], "{:.1f}"),
        )
        for name, rates in reports[0]["layers"].items()
    ]  # fmt: skip
    title = f"Dead rows by layer (granularity {reports[0]['granularity']})"
    return Table("layers", title, ("layer", "rows", "dead", "dead, %"), rows)


def _seeds(found: SparsifiedSeeds) -> Table:
    rows = [_seed(seed, found) for seed in found.seeds]
    head = ("seed", "epoch kept", "dead rows, %", "parameters", "latency, times less", "")
    return Table("seeds", "Each seed", head, rows)


def _seed(seed: int, found: SparsifiedSeeds) -> tuple[str, ...]:
    if seed not in found.studies:
        return (str(seed), *[NOTHING] * 4, found.unfinished[seed])
    study = found.studies[seed]
    before, after = study.report["before"], study.report["after"]
    return (
        str(seed), str(study.epoch), f"{100 * study.found:.1f}", f"{after['parameters']:,}",
        f"{before['latency'] / after['latency']:.2f}", "" if study.reached else "not sparse enough",
    )  # fmt: skip


def _flat(found: SparsifiedSeeds) -> list[dict[str, Any]]:
    """One row a seed, in full precision."""
    rows = []
    for seed, study in found.studies.items():
        row: dict[str, Any] = {"seed": seed, "epoch": study.epoch, "reached": study.reached, "dead_rows": study.found}
        for side in ("before", "after"):
            row |= {f"{side}/{key}": study.report[side][key] for key in COSTS}
        for record in study.records:
            for part, figures in record.metrics.items():
                row |= {f"{record.method}/{part}/{key}": value for key, value in figures.items()}
        rows.append(row)
    return rows


def _warnings(found: SparsifiedSeeds) -> str:
    lines = [f"Seed {seed}: {reason}" for seed, reason in found.unfinished.items()]
    lines += [
        f"Seed {seed}: no epoch of the search had {found.studies[seed].wanted:.1%} of the rows dead; the sparsest was "
        f"kept, with {found.studies[seed].found:.1%}"
        for seed in found.missed
    ]
    if not lines:
        return ""
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        '<section class="warning" aria-labelledby="h-wanting"><h2 id="h-wanting">What is wanting</h2>'
        f"<ul>{listed}</ul></section>"
    )


def _over(reports: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], float], form: str) -> str:
    return _text(Estimate.of(read(report) for report in reports), form)


def _text(estimate: Estimate, form: str) -> str:
    if estimate.mean is None:
        return NOTHING
    if not form:
        return estimate.shown(3)
    mean = form.format(estimate.mean)
    return mean if estimate.spread is None else f"{mean} ± {form.format(estimate.spread)}"
