"""Learning curves: for the page (plotly) and for a README (matplotlib)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.reports.chart import Chart, chart_layout, epoch_axis, short, short_label, tag
from polytask.reports.colours import style
from polytask.reports.method import Method
from polytask.reports.summary import Summary, summarize
from polytask.studies.store import RunRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_POINTS = 200_000
"""Points of all learning curves together, and of one line at least and at most: a page must stay light."""
FEWEST_IN_LINE, MOST_IN_LINE = 120, 600
MOST_STRIPES = 80


@dataclass
class Curves:
    """The histories of one method's runs."""

    number: int
    method: Method
    tables: dict[int, pd.DataFrame] = field(default_factory=dict)


def learning_curves_png(
    records: Sequence[RunRecord],
    path: str | Path,
    *,
    baseline: str | None = None,
    reference: str | None = None,
    sweep: Sequence[str] = (),
    dpi: int = 150,
) -> Path:
    """Draws validation loss and metrics over epochs into one picture.

    Args:
        records: the runs; their folders must hold ``history.csv``.
        path: where the picture goes, written to a temporary name first, then renamed.
        baseline: as in `polytask.reports.write`, like the next two: they settle which methods are drawn, and their
            order, hence their colours, which are those of the page.
        reference: likewise.
        sweep: likewise.
        dpi: dots per inch.

    Raises:
        ValueError: the records cannot be compared, or none of them has a history.
    """
    from matplotlib.figure import Figure as Canvas

    summary = summarize(records, baseline, reference, sweep)
    curves = histories(summary)
    panels = _panels(summary, curves)
    if not panels:
        raise ValueError("learning curves need a run with a history.csv, found none")
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    canvas = Canvas(figsize=(4.2 * columns, 3.1 * rows + 0.5), layout="constrained")
    for number, (title, column, logarithmic) in enumerate(panels):
        axes = canvas.add_subplot(rows, columns, number + 1)
        _draw(axes, curves, title, column, logarithmic)
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(
        handles, labels, loc="outside lower center", ncols=max(min(len(labels), 2 * columns), 1), frameon=False
    )
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    canvas.savefig(temporary, dpi=dpi, format=target.suffix.lstrip(".") or "png")
    temporary.replace(target)
    return target


def _draw(axes: Axes, curves: Sequence[Curves], title: str, column: str, logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    dashes = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
    for curve in curves:
        colour, dash, _ = style(curve.number)
        tables = [table for table in curve.tables.values() if column in table]
        for table in tables if len(tables) > 1 else ():
            axes.plot(table.index, table[column], color=colour, alpha=0.3, linewidth=0.7)
        if tables:
            epochs, _, mean = _mean(tables, column)
            axes.plot(epochs, mean, dashes[dash], color=colour, linewidth=1.6, label=curve.method.name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def histories(summary: Summary) -> list[Curves]:
    """Of the methods that have any on disk, in the order of the table."""
    found = []
    for number, method in enumerate(summary.methods):
        curves = Curves(number, method)
        for run in method.done:
            if run.folder is not None and (run.folder / "history.csv").is_file():
                curves.tables[run.seed] = run.history()
        if curves.tables:
            found.append(curves)
    return found


def _panels(summary: Summary, curves: Sequence[Curves]) -> list[tuple[str, str, bool]]:
    """(title, column of the history, logarithmic axis?) of each learning curve, validation before training."""
    columns = {column for curve in curves for table in curve.tables.values() for column in table}
    split = "validation" if any(column.startswith("validation/") for column in columns) else "train"
    kind = "training" if split == "train" else split
    figures = [("total loss", f"{split}/loss")]
    for figure in (*summary.metrics, *summary.losses):
        figures.append((f"{figure.task}: {figure.name}", f"{split}/{figure.key}"))
    return [
        (f"{title} ({kind})", column, title.endswith("loss") and _spans_decades(curves, column))
        for title, column in dict.fromkeys(figures)
        if column in columns
    ]


def _spans_decades(curves: Sequence[Curves], column: str) -> bool:
    columns = [t[column] for c in curves for t in c.tables.values() if column in t]
    values = [column[column.abs() < math.inf] for column in columns]
    low = min((v.min() for v in values if len(v)), default=0.0)
    high = max((v.max() for v in values if len(v)), default=0.0)
    return bool(low > 0 and high / low > 5)


def _mean(tables: Sequence[pd.DataFrame], column: str) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Epochs, seconds and mean value over seeds, up to the last epoch that all seeds reached.

    Beyond it the mean would jump as seeds stop, and would speak of the slowest alone.
    """
    import pandas as pd

    values = pd.concat([table[column] for table in tables], axis=1, join="inner").mean(axis=1, skipna=False)
    seconds = pd.concat([_clock(table) for table in tables], axis=1, join="inner").mean(axis=1)
    return values.index.tolist(), seconds.tolist(), values.tolist()


def _clock(table: pd.DataFrame) -> pd.Series:
    import pandas as pd

    if "seconds" not in table:
        return pd.Series(float("nan"), index=table.index)
    return pd.Series(table["seconds"]).cumsum()


def _thin(values: Sequence[float], most: int) -> list[int]:
    """Which points of a long line to keep: each bucket's lowest and highest.

    Taking every n-th would see only one phase of a method that alternates with the same period.
    """
    if len(values) <= most:
        return list(range(len(values)))
    size = math.ceil(2 * len(values) / most)
    kept = {0, len(values) - 1}
    for start in range(0, len(values), size):
        bucket = [i for i in range(start, min(start + size, len(values))) if not math.isnan(values[i])]
        if bucket:
            kept |= {min(bucket, key=values.__getitem__), max(bucket, key=values.__getitem__)}
    return sorted(kept)


def _line(
    curve: Curves, label: str, points: tuple[Sequence[float], Sequence[float], Sequence[float]], thin: bool, most: int
) -> dict[str, Any]:
    colour, dash, _ = style(curve.number)
    epochs, seconds, values = points
    kept = _thin(values, most)
    return {
        "type": "scatter",
        "mode": "lines" if len(values) > 1 else "markers",
        "name": label,
        "x": [epochs[i] for i in kept],
        "y": [short(values[i]) for i in kept],
        "line": {"color": colour, "dash": dash, "width": 1 if thin else 2.2},
        "marker": {"color": colour, "size": 7},
        "opacity": 0.35 if thin else 1,
        "meta": {"method": curve.number, "seconds": [short(seconds[i]) for i in kept]},
        "hovertemplate": "%{fullData.name}<br>%{x}: %{y}<extra></extra>",
    }


def learning_charts(summary: Summary, curves: Sequence[Curves]) -> Iterator[Chart]:
    stripes, panels = _stripes(curves), _panels(summary, curves)
    lines = sum(len(curve.tables) + 1 for curve in curves) * len(panels)
    most = min(max(MOST_POINTS // max(lines, 1), FEWEST_IN_LINE), MOST_IN_LINE)
    last = max((int(table.index[-1]) for curve in curves for table in curve.tables.values()), default=1)
    for number, (title, column, logarithmic) in enumerate(panels):
        data: list[dict[str, Any]] = []
        for curve in curves:
            data += _lines(curve, column, most)
        yaxis = {"type": "log", **_log_ticks(data)} if logarithmic else {"type": "linear"}
        layout = chart_layout(xaxis=epoch_axis(last), yaxis=yaxis)
        layout["meta"] = {"stripes": stripes}
        shown = ", ".join(curve.method.name for curve in curves)
        about = f"Lines of {title} over training, one colour a {summary.noun}: {shown}."
        yield Chart(f"curve-{number}", "Learning curves", title, about, data, layout)


def _log_ticks(data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times the powers of ten, or at the powers alone over many decades."""
    values = [v for trace in data for v in trace["y"] if v]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [float(f"{step}e{power}") for power in range(low, high + 1) for step in steps]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _lines(curve: Curves, column: str, most: int) -> Iterator[dict[str, Any]]:
    name = tag(curve.method.name)
    tables = {seed: table for seed, table in curve.tables.items() if column in table}
    for seed, table in tables.items() if len(tables) > 1 else ():
        points = (table.index.tolist(), _clock(table).tolist(), table[column].tolist())
        yield _line(curve, f"{name}, seed {seed}", points, thin=True, most=most)
    if tables:
        label = f"{name}, mean of {len(tables)} seeds" if len(tables) > 1 else name
        yield _line(curve, label, _mean(list(tables.values()), column), thin=False, most=most)


def _phase_names(table: pd.DataFrame) -> list[str]:
    return [str(phase) for phase in table["phase"]] if "phase" in table else []


def _spans(phases: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, one past the last, phase) of each stretch of equal phases."""
    spans: list[tuple[int, int, str]] = []
    for i, phase in enumerate(phases):
        if spans and spans[-1][2] == phase:
            spans[-1] = (spans[-1][0], i + 1, phase)
        else:
            spans.append((i, i + 1, phase))
    return spans


def _stripes(curves: Sequence[Curves]) -> list[dict[str, Any]]:
    """Where the second phase of an alternating method lies, if that method is alone on the page."""
    if len(curves) != 1:
        return []
    table = max(curves[0].tables.values(), key=len)
    phases = _phase_names(table)
    spans = _spans(phases)
    if len(set(phases)) != 2 or len(spans) > MOST_STRIPES:
        return []
    clock = [0.0, *_clock(table).tolist()]
    # a row's figures stand at its epoch's end, so the epoch reaches from the one before to its own
    return [
        {"epochs": [first, last], "seconds": [clock[first], clock[last]], "phase": phase}
        for first, last, phase in spans
        if phase != phases[0]
    ]


def phase_charts(curves: Sequence[Curves], noun: str = "method") -> Iterator[Chart]:
    longest = [(curve, max(curve.tables.values(), key=len)) for curve in curves]
    shown = [(c, names) for c, t in longest if len(set(names := _phase_names(t))) > 1]
    if not shown or _stripes(curves):
        return  # stripes behind the curves say the same
    phases = list(dict.fromkeys(phase for _, row in shown for phase in row))
    colours = ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#888888"]
    rows = [short_label(curve.method.name) for curve, _ in shown]
    data: list[dict[str, Any]] = []
    for i, phase in enumerate(phases):
        spans = [(r, s) for r, (_, row) in enumerate(shown) for s in _spans(row) if s[2] == phase]
        data.append({
            "type": "bar", "orientation": "h", "name": tag(phase), "showlegend": True,
            "y": [r for r, _ in spans], "x": [s[1] - s[0] for _, s in spans], "base": [s[0] + 0.5 for _, s in spans],
            "marker": {"color": colours[i % len(colours)], "line": {"width": 0}}, "width": 0.7,
            "hovertemplate": "%{fullData.name}: %{x} epochs<extra></extra>",
        })  # fmt: skip
    last = max(len(row) for _, row in shown)
    layout = chart_layout(
        xaxis={**epoch_axis(last, 12), "range": [0.5, last + 0.5]},
        yaxis={"tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": rows, "autorange": "reversed"},
        barmode="overlay", bargap=0, showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )  # fmt: skip
    about = f"Bars of the epochs spent in the phases {', '.join(phases)}, one row a {noun} (its longest run)."
    yield Chart("phases", "Learning curves", "phases", about, data, layout, 110 + 30 * len(rows), wide=True)
