"""The report of a front: hypervolumes, every vector, charts, one page that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from polytask.reports.chart import Chart
from polytask.reports.estimate import SEEDS_FOR_A_VERDICT, Estimate, compare
from polytask.reports.front_charts import front_charts, front_png, section
from polytask.reports.page import (
    chip,
    document,
    facts_list,
    figure,
    legend,
    prose,
    write_file,
)
from polytask.reports.tables import NOTHING, unfinished
from polytask.reports.words import config_of, data_of, duration, plural
from polytask.studies.front import Front, text
from polytask.studies.front_view import KINDS, SPLITS, Point, View

if TYPE_CHECKING:
    from rich.console import RenderableType

_MARKS = (
    "Filled marks are non-dominated on validation among the points of their own sweep and seed, open marks are not; "
    "the same marks are filled on test, whatever the test figures. The cross is the reference point. A mark's text "
    "gives its preference and all figures."
)
_STEPS = "Steps bound what the filled marks dominate, up to the reference point."
_LINES = (
    "Parallel coordinates: one line a run, solid where non-dominated on validation among the runs of its own sweep and "
    "seed, dotted where not. Each objective is stretched from its worst to its best run."
)


@dataclass(frozen=True)
class Table:
    """Plain cells under headings; the first `names` columns are text.

    Attributes:
        heads: (heading, second line) of each column.
        rows: cells.
        names: how many columns are text.
    """

    heads: list[tuple[str, str]]
    rows: list[list[str]]
    names: int = 1


def write_front(front: Front, folder: str | Path | None = None, *, title: str | None = None) -> Path:
    """Writes ``report.html``, ``front.png``, ``front.csv`` and ``front.md``, each complete or not at all.

    Args:
        front: the study.
        folder: where to; its own folder if None.
        title: the page's heading.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: no run has ended with finite figures.
    """
    views = [front.view(kind) for kind in KINDS]
    target = front.folder if folder is None else Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_file(target / "front.csv", csv_text(front, views))
    write_file(target / "front.md", front_markdown(front))
    front_png(views, front.sweeps, target / "front.png")
    write_file(target / "report.html", front_html(front, title))
    return target / "report.html"


def front_html(front: Front, title: str | None = None) -> str:
    """The page of a front, complete with plotly.js."""
    views = [front.view(kind) for kind in KINDS]
    heading = title or "Pareto front of " + ", ".join(front.objectives)
    drawn = front_charts(views, front.sweeps)
    body = "\n".join([
        f'<header><h1>{escape(heading)}</h1><dl class="facts">{facts_list(_facts(front))}</dl></header>',
        "<main>",
        _failures(front),
        '<section aria-labelledby="h-volumes"><h2 id="h-volumes">Hypervolume</h2>',
        _html_table(volume_table(front, views), "Hypervolume", "volumes", front.sweeps),
        _list([*verdicts(front, views), *budget(front)]),
        "</section>",
        legend(front.sweeps, drawn),
        *_sections(views, drawn),
        '<section aria-labelledby="h-vectors"><h2 id="h-vectors">Every vector</h2>',
        f'<p class="hint">{escape(_vectors_hint(front))}</p>',
        _html_table(vector_table(front, views), "Every vector", "vectors", front.sweeps),
        "</section>",
        f'<section aria-labelledby="h-notes"><h2 id="h-notes">Notes</h2>{_list(notes(front, views))}</section>',
        _settings(front),
        "</main>",
    ])  # fmt: skip
    return document(heading, body, drawn)


def front_markdown(front: Front) -> str:
    """The front as Markdown: hypervolumes, verdicts, every vector, notes."""
    views = [front.view(kind) for kind in KINDS]
    parts = [_markdown_table(volume_table(front, views)), _markdown_list([*verdicts(front, views), *budget(front)])]
    parts += [_markdown_table(vector_table(front, views)), _markdown_list(notes(front, views))]
    bad = _unfinished(front)
    return "\n\n".join([*parts, *([_markdown_list(bad)] if bad else [])]) + "\n"


def front_terminal(front: Front) -> RenderableType:
    """Hypervolumes and verdicts for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Rich
    from rich.text import Text

    views = [front.view(kind) for kind in KINDS]
    table = volume_table(front, views)
    shown = Rich(box=box.SIMPLE_HEAD, title="Hypervolume", title_justify="left")
    for number, (head, note) in enumerate(table.heads):
        heading = Text.assemble(head, (f"\n{note}" if note else "", "dim"))
        shown.add_column(heading, justify="left" if number < table.names else "right")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return Group(shown, *(Text(line) for line in [*verdicts(front, views), *budget(front)]))


def csv_text(front: Front, views: Sequence[View]) -> str:
    """Every run as CSV: vector, state, all figures, and whether it is non-dominated; full precision."""
    import pandas as pd

    chosen = {view.kind: _chosen(view) for view in views}
    rows: list[dict[str, Any]] = []
    for point in front.points:
        figures = {f"{part}/{key}": value for part, some in point.record.metrics.items() for key, value in some.items()}
        marks = {f"non_dominated/{kind}": found.get(_key(point)) for kind, found in chosen.items()}
        rows.append(
            {"sweep": point.sweep, "seed": point.seed}
            | {f"preference/{name}": value for name, value in point.vector.items()}
            | {"state": point.record.state, "epochs": point.record.epochs, "seconds": point.record.seconds}
            | marks
            | figures
        )
    return pd.DataFrame(rows).to_csv(index=False)


def volume_table(front: Front, views: Sequence[View]) -> Table:
    """One row a sweep: hypervolumes over the comparable seeds, and how many points are non-dominated."""
    heads = [("sweep", "")]
    heads += [(f"by {view.kind}, {split}", "higher is better") for view in views for split in SPLITS]
    heads += [(f"non-dominated by {view.kind}", "on validation") for view in views]
    rows = []
    for sweep in front.sweeps:
        row = [sweep]
        for view in views:
            row += [Estimate.of(view.volumes(sweep, split)).shown(4) for split in SPLITS]
        for view in views:
            curves = [curve for curve in view.curves if curve.sweep == sweep]
            row.append(_counts([(sum(curve.chosen), len(curve.chosen)) for curve in curves]))
        rows.append(row)
    return Table(heads, rows)


def _counts(found: Sequence[tuple[int, int]]) -> str:
    """How many points of how many, for each seed: their mean and spread where all seeds have as many points.

    >>> _counts([(10, 11), (8, 11)]), _counts([(4, 4), (5, 5)])
    ('9.0 ± 1.4 of 11 (10, 8)', '4 of 4, 5 of 5')
    """
    totals = {total for _, total in found}
    if len(found) < 2 or len(totals) > 1:
        return ", ".join(f"{count} of {total}" for count, total in found) or NOTHING
    counts = [count for count, _ in found]
    each = ", ".join(map(str, counts))
    return f"{fmean(counts):.1f} ± {stdev(counts):.1f} of {totals.pop()} ({each})"


def budget(front: Front) -> list[str]:
    """What the sweeps spent, in one sentence; nothing where there is one sweep or no run has ended."""
    done = [point for point in front.points if point.record.state == "done"]
    if len(front.sweeps) < 2 or not done:
        return []
    spent = []
    for sweep in front.sweeps:
        runs = [point.record for point in done if point.sweep == sweep]
        epochs, seconds = sum(run.epochs for run in runs), sum(run.seconds for run in runs)
        spent.append(f"{sweep} {plural(len(runs), 'run')}, {plural(epochs, 'epoch')}, {duration(seconds)} of training")
    vectors = {tuple(point.vector.values()) for point in front.points}
    seeds = plural(len(front.seeds), "seed")
    return [f"Budget, {plural(len(vectors), 'vector')} and {seeds} each: {'; '.join(spent)}."]


def verdicts(front: Front, views: Sequence[View]) -> list[str]:
    """One sentence a view and split: is the method's hypervolume above the other's?"""
    if len(front.sweeps) < 2:
        return []
    return [_verdict(view, split, *front.sweeps) for view in views for split in SPLITS]


def _verdict(view: View, split: str, one: str, other: str) -> str:
    where = f"By {view.kind}, on {split}"
    first, second = (Estimate.of(view.volumes(sweep, split)) for sweep in (one, other))
    if first.mean is None or second.mean is None:
        return f"{where}: no comparison, for no seed has every vector of both sweeps come to an end."
    difference = first.mean - second.mean
    if difference == 0:
        return f"{where}: {one} and {other} have the same hypervolume, {first.mean:.4g}."
    share = f" ({abs(difference) / second.mean:.1%})" if second.mean > 0 else ""
    side = "above" if difference > 0 else "below"
    line = f"{where}: {one}'s hypervolume is {side} {other}'s by {abs(difference):.3g}{share}"
    if first.count < SEEDS_FOR_A_VERDICT:
        return f"{line}; {plural(first.count, 'seed')} can tell nothing about the spread."
    if compare(first, second, True):
        return f"{line}, which is more than the spread of {first.count} seeds."
    return f"{line}, which is within the spread of {first.count} seeds: no difference is shown."


def vector_table(front: Front, views: Sequence[View]) -> Table:
    """One row a vector and sweep: mean and standard deviation over seeds of every figure."""
    chosen = [(view, _chosen(view)) for view in views]
    heads = [("sweep", ""), *((name, "preference") for name in front.objectives)]
    axes = [(split, axis) for split in SPLITS for axis in dict.fromkeys(a for view in views for a in view.axes)]
    heads += [(f"{axis.objective} {axis.figure}", f"{split}, {axis.direction}") for split, axis in axes]
    heads += [(f"non-dominated by {view.kind}", "seeds") for view in views]
    rows = []
    for vector in {tuple(point.vector.values()): point.vector for point in front.points}.values():
        for sweep in front.sweeps:
            runs = [p for p in front.points if p.sweep == sweep and p.vector == vector and p.record.state == "done"]
            row = [sweep, *(f"{value:.4g}" for value in vector.values())]
            for split, axis in axes:
                values = [value for run in runs if (value := run.record.metrics[split].get(axis.key)) is not None]
                row.append(Estimate.of(values).shown(4))
            row += [f"{sum(found.get(_key(run), False) for run in runs)} of {len(runs)}" for _, found in chosen]
            rows.append(row)
    return Table(heads, rows, 1)


def notes(front: Front, views: Sequence[View]) -> list[str]:
    """What the figures mean."""
    lines = [
        "A point is non-dominated if no other point of its sweep and seed is at least as good in every objective and "
        "better in one. That is decided on validation; test figures are those of the same points and select nothing.",
        "Hypervolume: the area or volume between the non-dominated points and the reference point. Only seeds for "
        "which every vector of every sweep has come to an end are counted. A point that is not better than the "
        "reference point in everything adds nothing.",
    ]
    for view in views:
        place = ", ".join(f"{axis.key} {value:.5g}" for axis, value in zip(view.axes, view.reference, strict=True))
        rule = (
            "given"
            if view.given
            else "the worst validation figure among the points that are non-dominated in their own sweep and seed, "
            "moved out by a tenth of the range; it depends on all runs of this study, so set `reference` to compare "
            "studies"
        )
        lines.append(f"Reference point by {view.kind}: {place} ({rule}).")
    if len(front.sweeps) > 1:
        lines.append(
            "All sweeps have the same vectors, seeds, epochs, batches and initial weights; the times above tell what "
            "they cost. The scale of a step differs between scalarizers, which matters for plain SGD and hardly for "
            "Adam."
        )
    if front.warm_start:
        lines.append(
            "Runs started from the weights of a neighbouring vector, so a run's own epochs are not all that went into "
            "it; the first, the most even vector, started afresh."
        )
    return lines


def _facts(front: Front) -> list[tuple[str, str]]:
    done = [point for point in front.points if point.record.state == "done"]
    vectors = {tuple(point.vector.values()) for point in front.points}
    epochs = sorted({point.record.epochs for point in done})
    facts = [("Objectives", ", ".join(front.objectives)), ("Vectors", f"{len(vectors)}, the same for every sweep")]
    data = data_of(done[0].record)
    facts += [("Data", data)] * bool(data)
    facts.append(("Sweeps", " against ".join(front.sweeps)))
    facts.append(("Seeds", ", ".join(map(str, front.seeds))))
    facts.append(("Runs", f"{len(done)} of {len(front.points)} finished"))
    facts.append(("Epochs of each run", f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"))
    times = {sweep: sum(point.record.seconds for point in done if point.sweep == sweep) for sweep in front.sweeps}
    facts.append(("Training time", ", ".join(f"{sweep} {duration(time)}" for sweep, time in times.items())))
    if front.warm_start:
        facts.append(("Start", "from the neighbouring vector's weights"))
    return facts


def _sections(views: Sequence[View], drawn: Sequence[Chart]) -> Iterable[str]:
    for view in views:
        key = f"h-{view.kind}"
        shown = [chart for chart in drawn if chart.section == section(view)]
        hint = f"{_MARKS} {_STEPS}" if len(view.axes) == 2 else f"{_LINES} {_MARKS}"
        yield (
            f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(section(view))}</h2><p class="hint">{hint}</p>'
            f'<div class="charts">{"".join(map(figure, shown))}</div></section>'
        )


def _vectors_hint(front: Front) -> str:
    if len(front.seeds) == 1:
        return "One seed, so no spread. The last columns: is the point non-dominated on validation?"
    return (
        "Means over seeds with one standard deviation either way. The last columns: in how many seeds the point is "
        "non-dominated on validation."
    )


def _html_table(table: Table, caption: str, key: str, sweeps: Sequence[str]) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}<small>{escape(note)}</small></th>' for head, note in table.heads)
    body = "".join(
        f'<tr><th scope="row"><span class="name">{chip(sweeps.index(row[0]))}<span>{escape(row[0])}</span></span></th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}, scrolls sideways">'
        f'<table id="{key}"><caption class="hidden">{caption}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _list(lines: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{prose(line)}</li>" for line in lines)}</ul>' if lines else ""


def _failures(front: Front) -> str:
    bad = _unfinished(front)
    if not bad:
        return ""
    return (
        '<section class="warning" aria-labelledby="h-failed"><h2 id="h-failed">Runs without figures</h2>'
        f"{_list(bad)}</section>"
    )


def _unfinished(front: Front) -> list[str]:
    return [unfinished(point.record) for point in front.points if point.record.state != "done"]


def _settings(front: Front) -> str:
    details = []
    for sweep in front.sweeps:
        point = next((p for p in front.points if p.sweep == sweep and config_of(p.record)), None)
        if point is not None:
            label = f"Settings of {sweep} with the preference {text(point.vector)}, seed {point.seed}"
            shown = escape(config_of(point.record))
            details.append(f"<details><summary>{escape(label)}</summary><pre tabindex='0'>{shown}</pre></details>")
    return f'<section aria-labelledby="h-settings"><h2 id="h-settings">Settings</h2>{"".join(details)}</section>'


def _chosen(view: View) -> dict[tuple[Any, ...], bool]:
    return {_key(p): mark for curve in view.curves for p, mark in zip(curve.points, curve.chosen, strict=True)}


def _key(point: Point) -> tuple[Any, ...]:
    return point.sweep, point.seed, *point.vector.values()


def _markdown_table(table: Table) -> str:
    def cells(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    heads = [f"{head} ({note})" if note else head for head, note in table.heads]
    rule = ["---" if number < table.names else "---:" for number in range(len(heads))]
    return "\n".join([cells(heads), cells(rule), *map(cells, table.rows)])


def _markdown_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
