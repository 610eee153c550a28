"""A front's charts, for the page (plotly) and as a picture (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.reports.chart import Chart, chart_layout, short, tag
from polytask.reports.colours import GREY, style
from polytask.studies.front_view import SPLITS, Axis, Curve, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = 0.4


def front_charts(views: Sequence[View], sweeps: Sequence[str]) -> list[Chart]:
    """Every chart of a front.

    Two objectives: one against the other, on validation and on test. More: parallel coordinates, and every pair.

    Args:
        views: by metric and by loss.
        sweeps: their names, in the order of their colours.
    """
    found: list[Chart] = []
    for view in views:
        for split in SPLITS:
            if len(view.axes) > 2:
                found.append(_parallel(view, split, sweeps))
            for pair in combinations(range(len(view.axes)), 2):
                found.append(_pair(view, split, pair, sweeps))
    return found


def section(view: View) -> str:
    """The heading under which a view's charts stand."""
    return f"By {view.kind}"


def staircase(curve: Curve, view: View, split: str) -> list[tuple[float, float]]:
    """The border of what the chosen points of two objectives dominate, within the reference point.

    A straight line between two points would promise what no run has reached.

    Returns:
        Its corners from the one end to the other; none if no point is better than the reference point.
    """
    signs = [-1.0 if axis.maximise else 1.0 for axis in view.axes]
    limit = [sign * value for sign, value in zip(signs, view.reference, strict=True)]
    points = [
        (signs[0] * float(x), signs[1] * float(y))
        for (x, y), chosen in zip(curve.values[split], curve.chosen, strict=True)
        if chosen
    ]
    corners: list[tuple[float, float]] = []
    level = limit[1]
    for x, y in sorted(point for point in points if point[0] < limit[0] and point[1] < limit[1]):
        if y < level:
            corners += [(x, level), (x, y)]
            level = y
    if corners:
        corners.append((limit[0], level))
    return [(signs[0] * x, signs[1] * y) for x, y in corners]


def _pair(view: View, split: str, pair: tuple[int, int], sweeps: Sequence[str]) -> Chart:
    first, second = (view.axes[number] for number in pair)
    data: list[dict[str, Any]] = []
    for number, sweep in enumerate(sweeps):
        curves = [curve for curve in view.curves if curve.sweep == sweep]
        for curve in curves:
            if len(view.axes) == 2:
                data.append(_stairs(curve, view, split, number, pale=len(curves) > 1))
            data += _dots(curve, view, split, pair, number)
    x, y = (view.reference[number] for number in pair)
    data.append({
        "type": "scatter", "mode": "markers", "name": "reference point", "x": [short(x)], "y": [short(y)],
        "marker": {"symbol": "x-thin", "size": 9, "color": GREY, "line": {"width": 2, "color": GREY}},
        "hovertemplate": "reference point of the hypervolume<br>%{x}, %{y}<extra></extra>",
    })  # fmt: skip
    layout = chart_layout(
        xaxis={"title": {"text": _axis_title(first)}, "nticks": 7},
        yaxis={"title": {"text": _axis_title(second), "standoff": 14}, "nticks": 7},
    )
    title = f"{first.objective} against {second.objective} ({split})"
    about = f"Scatter of {first.key} against {second.key} on {split}; the table of vectors holds the numbers."
    key = f"front-{view.kind}-{split}-{pair[0]}-{pair[1]}"
    return Chart(key, section(view), title, about, data, layout, 400)


def _axis_title(axis: Axis) -> str:
    return f"{tag(axis.objective)}: {tag(axis.figure)} ({axis.direction})"


def _stairs(curve: Curve, view: View, split: str, number: int, pale: bool) -> dict[str, Any]:
    colour, dash, _ = style(number)
    corners = staircase(curve, view, split)
    return {
        "type": "scatter", "mode": "lines", "x": [short(x) for x, _ in corners], "y": [short(y) for _, y in corners],
        "line": {"color": colour, "dash": dash, "width": 1.4}, "opacity": PALE if pale else 0.8, "hoverinfo": "skip",
        "meta": {"method": number},
    }  # fmt: skip


def _dots(curve: Curve, view: View, split: str, pair: tuple[int, int], number: int) -> Iterator[dict[str, Any]]:
    """Filled where non-dominated on validation, open where not."""
    colour, _, _ = style(number)
    for chosen in (False, True):
        rows = [row for row, kept in enumerate(curve.chosen) if kept is chosen]
        if rows:
            yield {
                "type": "scatter", "mode": "markers", "name": tag(curve.sweep),
                "x": [short(curve.values[split][row, pair[0]]) for row in rows],
                "y": [short(curve.values[split][row, pair[1]]) for row in rows],
                "text": [_hover(curve, row, view) for row in rows], "meta": {"method": number},
                "marker": {"color": colour, "size": 9 if chosen else 7, "line": {"width": 1.5, "color": colour},
                           "symbol": _symbol(number) + ("" if chosen else "-open")},
                "opacity": 1.0 if chosen else 0.6, "hovertemplate": "%{text}<extra></extra>",
                "hoverlabel": {"align": "left"},
            }  # fmt: skip


def _symbol(number: int) -> str:
    return ("circle", "diamond")[number % 2]


def _hover(curve: Curve, row: int, view: View) -> str:
    point = curve.points[row]
    weights = ", ".join(f"{tag(name)} {value:.3g}" for name, value in point.vector.items())
    lines = [f"<b>{tag(curve.sweep)}</b>, seed {curve.seed}", f"preference: {weights}"]
    for split in SPLITS:
        figures = point.record.metrics[split]
        tasks = {task["name"]: task["metric"] for task in point.record.tasks}
        shown = []
        for axis in view.axes:
            keys = (tasks[axis.objective], "loss") if axis.objective in tasks else ("value",)
            listed = ", ".join(
                f"{tag(key)} {figures[full]:.4g}"
                for key in dict.fromkeys(keys)
                if (full := f"{axis.objective}/{key}") in figures
            )
            shown.append(f"{split}, {tag(axis.objective)}: {listed}")
        lines += shown
    state = "non-dominated" if curve.chosen[row] else "dominated"
    return "<br>".join([*lines, f"{state} on validation, by {view.kind}"])


def _parallel(view: View, split: str, sweeps: Sequence[str]) -> Chart:
    """One line a run over all objectives, the better end of each on top."""
    data: list[dict[str, Any]] = []
    limits = _limits(view, split)
    places = list(range(len(view.axes)))
    for number, sweep in enumerate(sweeps):
        colour, _, _ = style(number)
        for curve in (curve for curve in view.curves if curve.sweep == sweep):
            for row, chosen in enumerate(curve.chosen):
                heights = _heights(curve.values[split][row], limits)
                data.append({
                    "type": "scatter", "mode": "lines+markers", "name": tag(sweep), "x": places,
                    "y": [short(height) for height in heights], "text": [_hover(curve, row, view)] * len(places),
                    "line": {"color": colour, "width": 1.8 if chosen else 1, "dash": "solid" if chosen else "dot"},
                    "marker": {"color": colour, "size": 6, "symbol": _symbol(number) + ("" if chosen else "-open")},
                    "opacity": 0.9 if chosen else PALE, "meta": {"method": number},
                    "hovertemplate": "%{text}<extra></extra>", "hoverlabel": {"align": "left"},
                })  # fmt: skip
    names = [f"{tag(axis.objective)}<br>{tag(axis.figure)}<br>best {best:.4g}, worst {worst:.4g}"
             for axis, (best, worst) in zip(view.axes, limits, strict=True)]  # fmt: skip
    layout = chart_layout(
        xaxis={"tickmode": "array", "tickvals": places, "ticktext": names, "range": [-0.3, len(places) - 0.7]},
        yaxis={"tickmode": "array", "tickvals": [0, 1], "ticktext": ["worst", "best"], "range": [-0.06, 1.06]},
    )
    about = f"Parallel coordinates of {', '.join(axis.key for axis in view.axes)} on {split}, one line a run."
    title = f"all objectives, parallel coordinates ({split})"
    return Chart(f"parallel-{view.kind}-{split}", section(view), title, about, data, layout, 380, wide=True)


def _limits(view: View, split: str) -> list[tuple[float, float]]:
    """(best, worst) of each coordinate."""
    limits = []
    for column, axis in enumerate(view.axes):
        values = [float(value) for curve in view.curves for value in curve.values[split][:, column]]
        limits.append((max(values), min(values)) if axis.maximise else (min(values), max(values)))
    return limits


def _heights(values: Sequence[float], limits: Sequence[tuple[float, float]]) -> list[float]:
    return [
        0.5 if best == worst else (float(value) - worst) / (best - worst)
        for value, (best, worst) in zip(values, limits, strict=True)
    ]


def front_png(views: Sequence[View], sweeps: Sequence[str], path: str | Path, *, dpi: int = 150) -> Path:
    """Draws a front into one picture: a row a view, validation on the left, test on the right.

    With more than two objectives each row starts with parallel coordinates on validation, followed by every pair.

    Args:
        views: by metric and by loss.
        sweeps: their names, in the order of their colours.
        path: where the picture goes, written to a temporary name first, then renamed.
        dpi: dots per inch.
    """
    from matplotlib.figure import Figure as Canvas

    pairs = list(combinations(range(len(views[0].axes)), 2))
    columns = 2 if len(pairs) == 1 else 1 + len(pairs)
    canvas = Canvas(figsize=(4.6 * columns, 3.8 * len(views) + 0.5), layout="constrained")
    for row, view in enumerate(views):
        place = row * columns
        if len(pairs) == 1:
            for column, split in enumerate(SPLITS):
                _draw_pair(canvas.add_subplot(len(views), columns, place + column + 1), view, split, pairs[0], sweeps)
        else:
            _draw_parallel(canvas.add_subplot(len(views), columns, place + 1), view, "validation", sweeps)
            for column, pair in enumerate(pairs):
                axes = canvas.add_subplot(len(views), columns, place + column + 2)
                _draw_pair(axes, view, "validation", pair, sweeps)
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style(number)[0], marker=_marker(number), linewidth=1.2, label=sweep)
        for number, sweep in enumerate(sweeps)
    ]
    handles += [
        Line2D([], [], color="#666666", marker="o", linestyle="", label="non-dominated on validation"),
        Line2D([], [], color="#666666", marker="o", linestyle="", markerfacecolor="none", label="dominated"),
        Line2D([], [], color=GREY, marker="x", linestyle="", label="reference point"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    canvas.savefig(temporary, dpi=dpi, format=target.suffix.lstrip(".") or "png")
    temporary.replace(target)
    return target


def _marker(number: int) -> str:
    return ("o", "D")[number % 2]


def _draw_pair(axes: Axes, view: View, split: str, pair: tuple[int, int], sweeps: Sequence[str]) -> None:
    first, second = (view.axes[number] for number in pair)
    for curve in view.curves:
        number = sweeps.index(curve.sweep)
        colour = style(number)[0]
        corners = staircase(curve, view, split) if len(view.axes) == 2 else []
        axes.plot([x for x, _ in corners], [y for _, y in corners], color=colour, linewidth=1.0, alpha=0.6)
        for row, chosen in enumerate(curve.chosen):
            x, y = (float(curve.values[split][row, column]) for column in pair)
            axes.plot(
                x, y, _marker(number), color=colour, markersize=5 if chosen else 4,
                markerfacecolor=colour if chosen else "none", alpha=1.0 if chosen else 0.6,
            )  # fmt: skip
    axes.plot(*(view.reference[number] for number in pair), "x", color=GREY)
    axes.set_xlabel(f"{first.objective}: {first.figure} ({first.direction})", fontsize=9)
    axes.set_ylabel(f"{second.objective}: {second.figure} ({second.direction})", fontsize=9)
    axes.set_title(f"by {view.kind}, {split}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_parallel(axes: Axes, view: View, split: str, sweeps: Sequence[str]) -> None:
    limits = _limits(view, split)
    places = range(len(view.axes))
    for curve in view.curves:
        colour = style(sweeps.index(curve.sweep))[0]
        for row, chosen in enumerate(curve.chosen):
            heights = _heights(curve.values[split][row], limits)
            axes.plot(
                places, heights, "-" if chosen else ":", color=colour, alpha=0.9 if chosen else PALE, linewidth=1.2
            )
    names = [f"{a.objective}\n{a.figure}\nbest {best:.3g}\nworst {worst:.3g}"
             for a, (best, worst) in zip(view.axes, limits, strict=True)]  # fmt: skip
    axes.set_xticks(list(places), names, fontsize=8)
    axes.set_yticks([0, 1], ["worst", "best"], fontsize=8)
    axes.set_title(f"by {view.kind}, {split}: all objectives", fontsize=10)
    axes.grid(axis="x", alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_ylim(-0.05, 1.05)
