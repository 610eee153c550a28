"""The comparison's charts: results by task and the trade-off of two tasks, then curves and regions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from polytask.reports.chart import Chart, chart_layout, short_label, tag
from polytask.reports.colours import GREY, style
from polytask.reports.curves import histories, learning_charts, phase_charts
from polytask.reports.estimate import Figure
from polytask.reports.method import Method
from polytask.reports.regions import region_charts
from polytask.reports.summary import Summary


def charts(summary: Summary) -> list[Chart]:
    """Every chart that the records have data for."""
    curves = histories(summary)
    found = [
        *_results(summary),
        *_tradeoff(summary),
        *learning_charts(summary, curves),
        *phase_charts(curves, summary.noun),
    ]
    return [*found, *region_charts(summary)]


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
        rows = [short_label(method.name) for method in summary.methods]
        layout = chart_layout(
            xaxis={"title": {"text": f"{tag(figure.name)} ({figure.direction})"}, "nticks": 6},
            yaxis={"tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": rows,
                   "range": [len(rows) - 0.4, -0.6]},
        )  # fmt: skip
        title = f"{figure.task}: {figure.name} ({summary.split})"
        about = f"Dots of {title}, {figure.direction}, one row a {summary.noun}; the table above holds the numbers."
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
            "marker": {"color": GREY, "size": 7, "symbol": "x-thin", "line": {"width": 1.6, "color": GREY}},
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
