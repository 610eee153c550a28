"""A study of `polytask.studies.sparsify` as tables for the terminal and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.reports import page
from polytask.reports.tables import NOTHING
from polytask.sparsity.selection import COLUMN
from polytask.studies.sparsify import Sparsified
from polytask.studies.store import read_history

if TYPE_CHECKING:
    from rich.console import RenderableType

_RATES_NOTE = (
    "Rows are the weights that one input unit meets; rates count rows, whatever died together. Sparsity: dead rows / "
    "rows. Compression: rows / distinct rows. Sharing: live rows / distinct live rows."
)
_COST_NOTE = (
    "Both networks give the same outputs: the largest difference over the validation data, relative to the largest "
    "output, is {difference:.2g}. Latency is the median of one forward pass over {batch_size} examples (threads: "
    "{threads}); it depends on what else the machine was doing."
)


@dataclass(frozen=True)
class Table:
    """A table of text: a title, the columns' headings, and rows whose first cell names them."""

    key: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def write(study: Sparsified, title: str | None = None) -> Path:
    """Writes ``report.html``, ``table.csv`` and ``table.md`` into the study's folder.

    Args:
        study: a finished study.
        title: the page's heading.

    Returns:
        The path of ``report.html``.
    """
    extra = "\n".join([_verdict(study), *map(section, tables(study))])
    return page.write(study.records, study.folder, title=title, extra=extra, stages=True)


def terminal_table(study: Sparsified) -> RenderableType:
    """The study for a terminal: the figures of its stages, what the network costs, and its rates."""
    from rich.console import Group

    return Group(*(part for table in (_figures(study), _costs(study), _rates(study)) for part in rich_parts(table)))


def tables(study: Sparsified) -> list[Table]:
    """Costs before and after, rates by layer, the search's epochs, and what was left dense or apart, if anything."""
    return [_costs(study), _rates(study), _epochs(study), *_reasons(study)]


def _figures(study: Sparsified) -> Table:
    keys = [f"{task['name']}/{task['metric']}" for task in study.compact.tasks]
    head = ["", *(f"{key.replace('/', ' ')}, {part}" for part in ("validation", "test") for key in keys)]
    rows = [
        (record.method, *(_number(record.metrics[part].get(key)) for part in ("validation", "test") for key in keys))
        for record in study.records
    ]
    return Table("stages", "Stages", head, rows)


def _costs(study: Sparsified) -> Table:
    before, after = study.report["before"], study.report["after"]
    rows = [
        ("parameters", _count(before["parameters"]), _count(after["parameters"]), _ratio(before, after, "parameters")),
        ("MACs per example", _count(before["macs"]), _count(after["macs"]), _ratio(before, after, "macs")),
        ("file, KiB", _kib(before["bytes"]), _kib(after["bytes"]), _ratio(before, after, "bytes")),
        ("latency, ms", _ms(before["latency"]), _ms(after["latency"]), _ratio(before, after, "latency")),
    ]
    note = _COST_NOTE.format(difference=study.report["difference"], **{k: after[k] for k in ("batch_size", "threads")})
    return Table("compaction", "Compaction", ("", "sparse, as trained", "compact", "times less"), rows, [note])


def _rates(study: Sparsified) -> Table:
    layers = {**study.report["layers"], "all layers in play": study.report["rates"]}
    rows = [
        (
            name, _count(rates["rows"]), _count(rates["dead"]), _count(rates["distinct"]), f"{rates['sparsity']:.1%}",
            f"{rates['compression']:.2f}", f"{rates['sharing']:.2f}",
        )
        for name, rates in layers.items()
    ]  # fmt: skip
    head = ("layer", "rows", "dead", "distinct", "sparsity", "compression", "sharing")
    return Table("rates", f"Rates (granularity {study.report['granularity']})", head, rows, [_RATES_NOTE])


def _epochs(study: Sparsified) -> Table:
    rows = [
        (
            str(row["epoch"]), f"{row[COLUMN]:.1%}", _number(row.get("validation/loss")),
            "kept" if row["epoch"] == study.epoch else "enough" if row[COLUMN] >= study.wanted - 1e-9 else "too dense",
        )
        for row in read_history(study.folder / "search" / "history.csv")
    ]  # fmt: skip
    note = f"Of the epochs with at least {study.wanted:.1%} dead rows the one with the lowest validation loss is kept"
    note += "." if study.reached else "; there was none, so the sparsest was."
    return Table("search", "Epochs of the search", ("epoch", "dead rows", "validation loss", ""), rows, [note])


def _reasons(study: Sparsified) -> list[Table]:
    rows = [(layer, "left dense", reason) for layer, reason in study.report["left_dense"].items()]
    rows += [(layer, "rows not shared", reason) for layer, reason in study.report["apart"].items()]
    return [Table("reasons", "What could not be done", ("layer", "", "reason"), rows)] if rows else []


def _verdict(study: Sparsified) -> str:
    if study.reached:
        return ""
    return (
        '<section class="warning" aria-labelledby="h-reached"><h2 id="h-reached">Not sparse enough</h2>'
        f"<p>No epoch of the search had {study.wanted:.1%} of the rows dead. The sparsest was kept, with "
        f"{study.found:.1%}.</p></section>"
    )


def section(table: Table) -> str:
    """A table as a section of a page."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in row[1:])}</tr>'
        for row in table.rows
    )
    hints = "".join(f'<p class="hint">{page.prose(note)}</p>' for note in table.notes)
    return (
        f'<section aria-labelledby="h-{table.key}"><h2 id="h-{table.key}">{escape(table.title)}</h2>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}, scrolls sideways">'
        f'<table id="{table.key}"><caption class="hidden">{escape(table.title)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{hints}</section>"
    )


def rich_parts(table: Table) -> list[Any]:
    """The table and its notes for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=None)
    for place, text in enumerate(table.head):
        made.add_column(Text(text), justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*map(Text, row))
    return [made, *(Text(note, style="dim") for note in table.notes)]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _kib(value: float) -> str:
    return f"{value / 1024:,.1f}"


def _ms(value: float) -> str:
    return f"{1000 * value:.3g}"


def _ratio(before: dict[str, float], after: dict[str, float], key: str) -> str:
    return f"{before[key] / after[key]:.2f}" if after[key] else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"
