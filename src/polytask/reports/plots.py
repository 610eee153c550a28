"""The comparison's charts, for the page (plotly) and for a README (matplotlib)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.reports.summary import Figure, Method, Summary, summarize
from polytask.studies.store import RunRecord
from polytask.task import MISSING_CLASS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito's colours without yellow and black, which vanish on white and on black; then grey
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#888888")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up")

MOST_POINTS = 200_000
"""Points of all learning curves together, and of one line at least and at most: a page must stay light."""
FEWEST_IN_LINE, MOST_IN_LINE = 120, 600
MOST_STRIPES = 80
MOST_REGION_POINTS = 500


@dataclass
class Chart:
    """One chart of the page.

    Attributes:
        key: unique, a valid HTML id.
        section: the heading it stands under.
        title: what it shows.
        description: for those who cannot see it.
        data: plotly's traces. A trace's ``meta`` may hold ``method`` (its number in the summary) and
            ``seconds`` (the x values over training time).
        layout: plotly's layout.
        height: in pixels.
        method: the number of the one method it is about, None for all.
        wide: whether it takes the page's whole width.
        least: width in pixels below which it scrolls sideways; 0 if it may be as narrow as the page.
    """

    key: str
    section: str
    title: str
    description: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 300
    method: int | None = None
    wide: bool = False
    least: int = 0

    def json(self) -> str:
        """Its data and layout, checked by plotly, as JSON."""
        import plotly.graph_objects as go

        figure = go.Figure(self.data, {"template": {}, **self.layout}).to_json()
        assert figure is not None
        return figure


@dataclass
class _Curves:
    """The histories of one method's runs."""

    number: int
    method: Method
    tables: dict[int, pd.DataFrame] = field(default_factory=dict)


def style(number: int) -> tuple[str, str, str]:
    """Colour, dash and marker of method `number`: the same in every chart."""
    turn = number // len(COLOURS)
    return COLOURS[number % len(COLOURS)], DASHES[turn % len(DASHES)], SYMBOLS[turn % len(SYMBOLS)]


def charts(summary: Summary) -> list[Chart]:
    """Every chart that the records have data for."""
    curves = _histories(summary)
    found = [*_results(summary), *_tradeoff(summary), *_learning(summary, curves), *_phases(curves)]
    return [*found, *_regions(summary)]


def learning_curves_png(
    records: Sequence[RunRecord], path: str | Path, *, baseline: str | None = None, dpi: int = 150
) -> Path:
    """Draws validation loss and metrics over epochs into one picture.

    Args:
        records: the runs; their folders must hold ``history.csv``.
        path: where the picture goes, written to a temporary name first, then renamed.
        baseline: as in `polytask.reports.write`; it only settles the order, hence the colours.
        dpi: dots per inch.

    Raises:
        ValueError: the records cannot be compared, or none of them has a history.
    """
    from matplotlib.figure import Figure as Canvas

    summary = summarize(records, baseline)
    curves = _histories(summary)
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


def _draw(axes: Axes, curves: Sequence[_Curves], title: str, column: str, logarithmic: bool) -> None:
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
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if logarithmic:
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _histories(summary: Summary) -> list[_Curves]:
    found = []
    for number, method in enumerate(summary.methods):
        curves = _Curves(number, method)
        for run in method.done:
            if run.folder is not None and (run.folder / "history.csv").is_file():
                curves.tables[run.seed] = run.history()
        if curves.tables:
            found.append(curves)
    return found


def _panels(summary: Summary, curves: Sequence[_Curves]) -> list[tuple[str, str, bool]]:
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


def _spans_decades(curves: Sequence[_Curves], column: str) -> bool:
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
    curve: _Curves, label: str, points: tuple[Sequence[float], Sequence[float], Sequence[float]], thin: bool, most: int
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


def short(value: float) -> float | None:
    """A number as a chart needs it: six figures are more than a screen shows; JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _learning(summary: Summary, curves: Sequence[_Curves]) -> Iterator[Chart]:
    stripes, panels = _stripes(curves), _panels(summary, curves)
    lines = sum(len(curve.tables) + 1 for curve in curves) * len(panels)
    most = min(max(MOST_POINTS // max(lines, 1), FEWEST_IN_LINE), MOST_IN_LINE)
    for number, (title, column, logarithmic) in enumerate(panels):
        data: list[dict[str, Any]] = []
        for curve in curves:
            data += _lines(curve, column, most)
        yaxis = {"type": "log", **_log_ticks(data)} if logarithmic else {"type": "linear"}
        layout = chart_layout(xaxis={"title": {"text": "epoch"}}, yaxis=yaxis)
        layout["meta"] = {"stripes": stripes}
        shown = ", ".join(curve.method.name for curve in curves)
        about = f"Lines of {title} over training, one colour a method: {shown}."
        yield Chart(f"curve-{number}", "Learning curves", title, about, data, layout)


def _log_ticks(data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times the powers of ten, or at the powers alone over many decades."""
    values = [v for trace in data for v in trace["y"] if v]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [float(f"{step}e{power}") for power in range(low, high + 1) for step in steps]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _lines(curve: _Curves, column: str, most: int) -> Iterator[dict[str, Any]]:
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


def _stripes(curves: Sequence[_Curves]) -> list[dict[str, Any]]:
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


def _phases(curves: Sequence[_Curves]) -> Iterator[Chart]:
    longest = [(curve, max(curve.tables.values(), key=len)) for curve in curves]
    shown = [(c, names) for c, t in longest if len(set(names := _phase_names(t))) > 1]
    if not shown or _stripes(curves):
        return  # stripes behind the curves say the same
    phases = list(dict.fromkeys(phase for _, row in shown for phase in row))
    colours = ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#888888"]
    rows = [_label(curve.method.name) for curve, _ in shown]
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
        xaxis={"title": {"text": "epoch"}, "range": [0.5, last + 0.5]},
        yaxis={"tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": rows, "autorange": "reversed"},
        barmode="overlay", bargap=0, showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )  # fmt: skip
    about = f"Bars of the epochs spent in the phases {', '.join(phases)}, one row a method (its longest run)."
    yield Chart("phases", "Learning curves", "phases", about, data, layout, 110 + 30 * len(rows), wide=True)


def _results(summary: Summary) -> Iterator[Chart]:
    """One panel a task: every run a small dot, the mean a large one with its spread."""
    methods = [(i, m) for i, m in enumerate(summary.methods) if m.done]
    if len(summary.methods) < 2:
        return
    for number, figure in enumerate(summary.metrics):
        data: list[dict[str, Any]] = []
        for i, method in methods:
            data += _dots(summary, figure, i, method)
        if not data:
            continue
        rows = [_label(method.name) for method in summary.methods]
        layout = chart_layout(
            xaxis={"title": {"text": f"{tag(figure.name)} ({figure.direction})"}, "nticks": 6},
            yaxis={"tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": rows,
                   "range": [len(rows) - 0.4, -0.6]},
        )  # fmt: skip
        title = f"{figure.task}: {figure.name} ({summary.split})"
        about = f"Dots of {title}, {figure.direction}, one row a method; the table above holds the numbers."
        yield Chart(f"result-{number}", "Results", title, about, data, layout, 110 + 26 * len(rows))


def _dots(summary: Summary, figure: Figure, number: int, method: Method) -> Iterator[dict[str, Any]]:
    colour, _, symbol = style(number)
    estimate = method.figures[figure.key]
    runs = [(r.seed, r.metrics.get(summary.split, {}).get(figure.key)) for r in method.done]
    finite = [(seed, value) for seed, value in runs if value is not None and math.isfinite(value)]
    if len(finite) > 1:
        yield {
            "type": "scatter", "mode": "markers", "name": tag(method.name), "x": [v for _, v in finite],
            "y": [number + 0.22] * len(finite), "text": [f"seed {seed}" for seed, _ in finite],
            "marker": {"color": colour, "size": 5, "opacity": 0.6}, "meta": {"method": number},
            "hovertemplate": "%{fullData.name}, %{text}: %{x}<extra></extra>",
        }  # fmt: skip
    if estimate.mean is not None:
        yield {
            "type": "scatter", "mode": "markers", "name": tag(method.name), "x": [estimate.mean], "y": [number],
            "error_x": {"type": "data", "array": [estimate.spread or 0.0], "color": colour, "width": 4,
                        "thickness": 1.6, "visible": estimate.spread is not None},
            "marker": {"color": colour, "size": 10, "symbol": symbol}, "meta": {"method": number},
            "hovertemplate": "%{fullData.name}, mean: %{x}<extra></extra>",
        }  # fmt: skip


def _tradeoff(summary: Summary) -> Iterator[Chart]:
    if len(summary.metrics) != 2 or len(summary.methods) < 2:
        return
    first, second = summary.metrics
    data: list[dict[str, Any]] = []
    for number, method in enumerate(summary.methods):
        data += _points(summary, number, method)
    if not data:
        return
    data = [*_fixed_weights(summary), *data]
    layout = chart_layout(
        xaxis={"title": {"text": f"{tag(first.task)}: {tag(first.name)} ({first.direction})"}, "nticks": 7},
        yaxis={"title": {"text": f"{tag(second.task)}: {tag(second.name)} ({second.direction})", "standoff": 14}},
    )
    title = f"{first.task} against {second.task} ({summary.split})"
    about = f"Scatter of {first.key} against {second.key}: small marks are runs, large ones means with spread."
    about += " Grey crosses are the means of all fixed weights." if summary.sweep else ""
    yield Chart("tradeoff", "Trade-off", title, about, data, layout, 420, wide=True)


def _fixed_weights(summary: Summary) -> Iterator[dict[str, Any]]:
    """The means of all fixed weights as small crosses below the methods."""
    keys = [figure.key for figure in summary.metrics]
    points = summary.sweep.points if summary.sweep else []
    means = [(p.name, [p.figures[key].mean for key in keys]) for p in points]
    shown = [(name, values) for name, values in means if None not in values]
    if shown:
        yield {
            "type": "scatter", "mode": "markers", "name": "fixed weights", "x": [v[0] for _, v in shown],
            "y": [v[1] for _, v in shown], "text": [tag(name) for name, _ in shown],
            "marker": {"color": "#888888", "size": 7, "symbol": "x-thin", "line": {"width": 1.6, "color": "#888888"}},
            "hovertemplate": "%{text}, mean<br>%{x}, %{y}<extra></extra>",
        }  # fmt: skip


def _points(summary: Summary, number: int, method: Method) -> Iterator[dict[str, Any]]:
    colour, _, symbol = style(number)
    keys = [figure.key for figure in summary.metrics]
    rows = [(r.seed, [r.metrics.get(summary.split, {}).get(k) for k in keys]) for r in method.done]
    finite = [(s, v) for s, v in rows if all(x is not None and math.isfinite(x) for x in v)]
    if len(finite) > 1:
        yield {
            "type": "scatter", "mode": "markers", "name": tag(method.name), "x": [v[0] for _, v in finite],
            "y": [v[1] for _, v in finite], "text": [f"seed {s}" for s, _ in finite],
            "marker": {"color": colour, "size": 6, "opacity": 0.5, "symbol": symbol}, "meta": {"method": number},
            "hovertemplate": "%{fullData.name}, %{text}<br>%{x}, %{y}<extra></extra>",
        }  # fmt: skip
    x, y = (method.figures[key] for key in keys)
    if x.mean is not None and y.mean is not None:
        bars = {"type": "data", "color": colour, "thickness": 1.4, "width": 4}
        yield {
            "type": "scatter", "mode": "markers", "name": tag(method.name), "x": [x.mean], "y": [y.mean],
            "error_x": {**bars, "array": [x.spread or 0.0], "visible": x.spread is not None},
            "error_y": {**bars, "array": [y.spread or 0.0], "visible": y.spread is not None},
            "marker": {"color": colour, "size": 12, "symbol": symbol}, "meta": {"method": number},
            "hovertemplate": "%{fullData.name}, mean<br>%{x}, %{y}<extra></extra>",
        }  # fmt: skip


def _regions(summary: Summary) -> Iterator[Chart]:
    """Decision regions of each method's first seed that has them, one chart a task."""
    tasks = {task["name"]: task for task in summary.tasks}
    for number, method in enumerate(summary.methods):
        run = next((r for r in method.done if r.folder and (r.folder / "regions.npz").is_file()), None)
        arrays = {} if run is None else _arrays(run)
        for position, task in enumerate(tasks):
            if run is None or not _drawable(arrays, task):
                continue
            title = f"{method.name}: {task}" + (f" (seed {run.seed})" if len(method.runs) > 1 else "")
            about = f"Map of what {method.name} predicts for {task} over the plane, with test points."
            data, layout = _region(arrays, tasks[task])
            key = f"region-{number}-{position}"
            yield Chart(key, "Decision regions", title, about, data, layout, 270, method=number)


def _drawable(arrays: dict[str, np.ndarray], task: str) -> bool:
    import numpy as np

    if not {"x", "y", task} <= set(arrays):
        return False
    return arrays[task].size == np.unique(arrays["x"]).size * np.unique(arrays["y"]).size > 1


def _arrays(run: RunRecord) -> dict[str, np.ndarray]:
    import numpy as np

    assert run.folder is not None
    with np.load(run.folder / "regions.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _region(arrays: dict[str, np.ndarray], task: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import numpy as np

    xs, ys = (np.unique(arrays[name]) for name in "xy")
    values = np.asarray(arrays[task["name"]], dtype=float).reshape(len(ys), len(xs))
    area, marks, low, high = _region_colours(values, task)
    data: list[dict[str, Any]] = [{
        "type": "heatmap", "x": [short(float(v)) for v in xs], "y": [short(float(v)) for v in ys],
        "z": values.astype(np.float32), "zmin": low, "zmax": high, "colorscale": area,
        "showscale": task.get("kind") == "regression",
        "colorbar": {"thickness": 10, "len": 0.9, "outlinewidth": 0},
        "hovertemplate": "%{x:.2f}, %{y:.2f}: %{z:.2f}<extra></extra>",
    }]  # fmt: skip
    points, targets = arrays.get("points"), arrays.get(f"targets_{task['name']}")
    if points is not None and targets is not None:
        known = np.flatnonzero(np.isfinite(targets.astype(float).ravel()) & (targets.ravel() != MISSING_CLASS))
        kept = known[:: math.ceil(max(len(known), 1) / MOST_REGION_POINTS)]
        data.append({
            "type": "scatter", "mode": "markers", "x": points[kept, 0].astype(np.float32),
            "y": points[kept, 1].astype(np.float32), "name": "test points",
            "marker": {"color": targets[kept].astype(float).ravel(), "colorscale": marks, "cmin": low,
                       "cmax": high, "size": 5, "line": {"width": 0.8, "color": "#ffffff"}},
            "hovertemplate": "%{x:.2f}, %{y:.2f}: target %{marker.color}<extra></extra>",
        })  # fmt: skip
    x_axis = {"range": [float(xs[0]), float(xs[-1])], "constrain": "domain", "nticks": 5}
    y_axis = {"range": [float(ys[0]), float(ys[-1])], "constrain": "domain", "nticks": 5, "scaleanchor": "x"}
    return data, chart_layout(xaxis=x_axis, yaxis=y_axis)


def _region_colours(values: np.ndarray, task: dict[str, Any]) -> tuple[Any, Any, float, float]:
    """Colour scales of the area and of the points, and the values at their ends."""
    import numpy as np

    if task.get("kind") == "regression":
        return "Viridis", "Viridis", float(np.nanmin(values)), float(np.nanmax(values))
    if task.get("kind") == "binary":
        # green and purple: told apart by all eyes, and no method's colour
        area = [[0, "#a6dba0"], [0.5, "#f7f7f7"], [1, "#c2a5cf"]]
        return area, [[0, "#1b7837"], [1, "#762a83"]], 0.0, 1.0
    classes = int(task.get("outputs") or np.nanmax(values) + 1)
    scale = _steps(classes)
    return scale, scale, -0.5, classes - 0.5


def _steps(classes: int) -> list[list[Any]]:
    """A colour scale of one flat step per class."""
    edges = [(i / classes, (i + 1) / classes, COLOURS[i % len(COLOURS)]) for i in range(classes)]
    return [[edge, colour] for low, high, colour in edges for edge in (low, high)]


def chart_layout(**extra: Any) -> dict[str, Any]:
    """Plotly's layout with what all charts share."""
    axis = {"automargin": True, "zeroline": False}
    layout: dict[str, Any] = {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "showlegend": False,
        "hovermode": "closest",
    }
    return layout | extra | {name: axis | extra.get(name, {}) for name in ("xaxis", "yaxis")}


def tag(text: str) -> str:
    """A text for a label: plotly reads a subset of HTML there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _label(name: str, length: int = 22) -> str:
    """A method's name short enough for an axis; names that differ often do so at an end, so both ends stay."""
    if len(name) <= length:
        return tag(name)
    half = (length - 1) // 2
    return tag(f"{name[: length - 1 - half]}…{name[-half:]}")


def page_json(drawn: Sequence[Chart]) -> str:
    """All charts as one JSON object by key, safe inside a ``<script>`` element."""
    text = ",".join(f"{json.dumps(chart.key)}:{chart.json()}" for chart in drawn)
    return "{" + text.replace("<", "\\u003c") + "}"
