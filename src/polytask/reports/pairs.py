"""Figures of pairs of tasks, affinities and cosines of gradients, as heat maps and as lines over training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from polytask.reports.chart import Chart, chart_layout, epoch_axis, short, tag
from polytask.reports.colours import COLOURS, DASHES, GREY, LEAST_AFFINITY, SIGNED
from polytask.reports.method import Method
from polytask.reports.summary import Summary
from polytask.studies.pairs import Matrix, Mean, Noise, read_noise, values_of
from polytask.studies.store import read_history
from polytask.training.history import History

SECTION = "How tasks affect one another"
ABOUT_AFFINITY = (
    "Affinity, of the task of a row towards that of a column: by what part of itself a step for the row’s task alone "
    "lowers the loss of the column’s task; below 0 (orange) it raises it."
)
BRACKETS = "Figures in brackets cannot be told from 0 (95 %); colours reach at least to eight standard errors."
INTRODUCTION = (
    f"{ABOUT_AFFINITY} Cosine: of the angle between the gradients of two tasks on the shared block; 1 means the same "
    f"direction, below 0 (orange) is conflict. Means over the epochs that have them, and over seeds. {BRACKETS}"
)

MOST_LINES = 6
"""Pairs whose lines can still be told apart."""

_SCALE = [[place / (len(SIGNED) - 1), colour] for place, colour in enumerate(SIGNED)]


@dataclass(frozen=True)
class Unit:
    """How figures are printed: times `factor`, with so many `decimals`, followed by `name`."""

    factor: float
    name: str
    decimals: int

    @classmethod
    def of(cls, kind: str, values: Sequence[float]) -> Unit:
        """The one in which the largest of some figures has two digits or three.

        >>> Unit.of("affinity", [0.0123, -0.3]).text(-0.3), Unit.of("cosine", [0.5]).text(0.5)
        ('−30 %', '0.50')
        """
        most = max(map(abs, values), default=0.0)
        if kind == "cosine":
            return cls(1.0, "", 2)
        factor, name = (100.0, "%") if most >= 1e-3 else (1e6, "ppm")
        digits = math.floor(math.log10(most * factor)) if most > 0 else 0
        return cls(factor, name, min(max(1 - digits, 0), 3))

    def number(self, value: float) -> str:
        """A figure without the unit's name, with a minus that is as wide as a plus."""
        text = f"{value * self.factor:.{self.decimals}f}"
        return (text[1:] if float(text) == 0 else "−" + text[1:]) if text.startswith("-") else text

    def text(self, value: float) -> str:
        """A figure with the unit's name."""
        return f"{self.number(value)} {self.name}".rstrip()


def pair_charts(summary: Summary) -> list[Chart]:
    """A heat map for each method whose histories have such figures, and lines over epochs where they are few."""
    return [chart for number, method in enumerate(summary.methods) for chart in _of(number, method)]


def heat_map(key: str, title: str, kind: str, noise: Noise, method: int | None = None) -> Chart:
    """A heat map with its figures printed, rows and columns in the matrix' order; in brackets what may be zero.

    Args:
        key: the chart's.
        title: the chart's; the unit is added.
        kind: ``affinity`` or ``cosine``.
        noise: {i: {j: figure}} with their errors; what is missing is left blank.
        method: the number of the method it is about.
    """
    matrix = values_of(noise)
    tasks = list(matrix)
    values = [value for row in matrix.values() for value in row.values()]
    unit = Unit.of(kind, values)
    rows = [[matrix[i].get(j, math.nan) for j in tasks] for i in tasks]
    most = 1.0 if kind == "cosine" else _span(noise) * unit.factor
    names = {"affinity": ("step for", "loss of"), "cosine": ("gradient of", "gradient of")}[kind]
    data = {
        "type": "heatmap", "z": [[short(v * unit.factor) for v in row] for row in rows],
        "text": [[_printed(noise[i].get(j), unit) for j in tasks] for i in tasks], "texttemplate": "%{text}",
        "customdata": [[_error(noise[i].get(j), unit) for j in tasks] for i in tasks],
        "textfont": {"size": 10 if len(tasks) > 5 else 13}, "xgap": 2, "ygap": 2, "hoverongaps": False,
        "zmid": 0, "zmin": -most, "zmax": most, "colorscale": _SCALE,
        "colorbar": {"thickness": 10, "len": 1, "outlinewidth": 0, "nticks": 5,
                     "ticksuffix": unit.name and f" {unit.name}"},
        "hovertemplate": f"{names[0]} %{{y}}, {names[1]} %{{x}}: %{{text}} {unit.name}%{{customdata}}<extra></extra>",
    }  # fmt: skip
    labels = [_short_label(name) for name in tasks]
    axis = {"tickmode": "array", "tickvals": list(range(len(tasks))), "ticktext": labels, "showgrid": False}
    layout = chart_layout(
        xaxis={**axis, "title": {"text": names[1], "standoff": 6}, "side": "top"},
        yaxis={**axis, "title": {"text": names[0], "standoff": 6}, "autorange": "reversed"},
    )
    caption = f"{title}, {unit.name}" if unit.name else title
    listed = "; ".join(f"{i} to {j} {unit.text(matrix[i][j])}" for i in tasks for j in tasks if j in matrix[i])
    about = f"Heat map of the {kind} of every pair of tasks: {listed}."
    return Chart(
        key, SECTION, caption, about, [data], layout, 130 + 40 * len(tasks), method, least=170 + 44 * len(tasks)
    )


def _span(noise: Noise) -> float:
    """How far the colours of affinities reach: so far that what noise makes looks pale."""
    means = [mean for row in noise.values() for mean in row.values()]
    errors = [mean.error for mean in means if mean.known]
    largest = max((abs(mean.value) for mean in means), default=0.0)
    return max(largest, 8 * median(errors) if errors else LEAST_AFFINITY) or LEAST_AFFINITY


def _printed(mean: Mean | None, unit: Unit) -> str:
    if mean is None:
        return ""
    number = unit.number(mean.value)
    return f"({number})" if mean.known and not mean.clear else number


def _error(mean: Mean | None, unit: Unit) -> str:
    return f" ± {unit.text(mean.error)} (standard error)" if mean is not None and mean.known else ""


def _of(number: int, method: Method) -> Iterator[Chart]:
    files = [run.folder / "history.csv" for run in method.done if run.folder is not None]
    histories = [read_history(path) for path in files if path.is_file()]
    for kind in ("affinity", "cosine"):
        noise = read_noise(histories, kind)
        if noise:
            yield heat_map(f"pairs-{kind}-{number}", f"{method.name}: {kind}", kind, noise, number)
            yield from _lines(f"pair-lines-{kind}-{number}", f"{method.name}: {kind}", kind, histories, number)


def _lines(key: str, title: str, kind: str, histories: Sequence[History], method: int) -> Iterator[Chart]:
    columns = [c for c in dict.fromkeys(c for h in histories for c in h.columns) if _is_pair(c, kind)]
    curves = {column: curve for column in columns if len(curve := _curve(histories, column)) > 1}
    if not curves or len(columns) > MOST_LINES:
        return
    unit = Unit.of(kind, [value for curve in curves.values() for value in curve.values()])
    data = [
        {
            "type": "scatter", "mode": "lines", "name": tag(_pair_name(column, kind)), "x": list(curve),
            "y": [short(value * unit.factor) for value in curve.values()],
            "line": {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % 2], "width": 2}, "meta": {"method": method},
            "hovertemplate": "%{fullData.name}, epoch %{x}: %{y}<extra></extra>",
        }
        for i, (column, curve) in enumerate(curves.items())
    ]  # fmt: skip
    label = f"{kind}, {unit.name}" if unit.name else kind
    layout = chart_layout(
        xaxis=epoch_axis(max(epoch for curve in curves.values() for epoch in curve)),
        yaxis={"title": {"text": label}, "zeroline": True, "zerolinecolor": GREY},
        showlegend=True, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )  # fmt: skip
    about = f"Lines of the {kind} of every pair of tasks over the epochs."
    yield Chart(key, SECTION, f"{title} over training", about, data, layout, 300, method)


def _curve(histories: Sequence[History], column: str) -> dict[int, float]:
    """{epoch: mean over the runs that have the figure in it}."""
    values: dict[int, list[float]] = {}
    for history in histories:
        for row in history:
            if math.isfinite(row.get(column, math.nan)):
                values.setdefault(row["epoch"], []).append(row[column])
    return {epoch: fmean(found) for epoch, found in sorted(values.items())}


def _is_pair(column: str, kind: str) -> bool:
    return column.startswith(f"{kind}/") and column.count("/") == 2


def _pair_name(column: str, kind: str) -> str:
    _, first, second = column.split("/")
    return f"{first} → {second}" if kind == "affinity" else f"{first}, {second}"


def _short_label(name: str, length: int = 14) -> str:
    return tag(name if len(name) <= length else f"{name[: length - 1]}…")


def pairs_text(matrix: Matrix | Noise, kind: str = "affinity") -> str:
    """The matrix as lines of text, one a task, in the unit of the heat map; in brackets what may be zero.

    Args:
        matrix: {i: {j: figure}}, with errors (`polytask.studies.pairs.Mean`) or without.
        kind: ``affinity`` or ``cosine``.

    >>> print(pairs_text({"a": {"b": 0.02}, "b": {"a": -0.01}}))
    step for \\ loss of, %      a      b
    a                          –    2.0
    b                       −1.0      –
    """
    tasks = list(matrix)
    means = {i: {j: _as_mean(figure) for j, figure in row.items()} for i, row in matrix.items()}
    unit = Unit.of(kind, [mean.value for row in means.values() for mean in row.values()])
    cells = [[_printed(means[i].get(j), unit) or "–" for j in tasks] for i in tasks]
    width = max(6, *(len(text) for row in (*cells, tasks) for text in row))
    corner = "step for \\ loss of" + f", {unit.name}" * bool(unit.name)
    first = max(len(corner), *map(len, tasks))
    lines = [(corner, tasks), *zip(tasks, cells, strict=True)]
    return "\n".join(f"{name:<{first}} " + " ".join(f"{text:>{width}}" for text in row) for name, row in lines)


def _as_mean(figure: float | Mean) -> Mean:
    return figure if isinstance(figure, Mean) else Mean(figure, math.nan, math.nan)
