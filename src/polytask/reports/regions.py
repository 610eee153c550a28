"""Decision regions over the plane, with test points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from polytask.reports.chart import Chart, chart_layout, short
from polytask.reports.colours import COLOURS
from polytask.reports.summary import Summary
from polytask.studies.store import RunRecord
from polytask.task import MISSING_CLASS

if TYPE_CHECKING:
    import numpy as np

MOST_REGION_POINTS = 500


def region_charts(summary: Summary) -> Iterator[Chart]:
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
