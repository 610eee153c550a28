"""One chart of a page: plotly's traces and layout, and what all charts share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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


def chart_layout(**extra: Any) -> dict[str, Any]:
    """Plotly's layout with what all charts share."""
    axis = {"automargin": True, "zeroline": False}
    layout: dict[str, Any] = {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "showlegend": False,
        "hovermode": "closest",
    }
    return layout | extra | {name: axis | extra.get(name, {}) for name in ("xaxis", "yaxis")}


def epoch_axis(last: int, labels: int = 6) -> dict[str, Any]:
    """An axis of epochs, with ticks at whole ones.

    Args:
        last: the last epoch.
        labels: ticks at most.
    """
    return {"title": {"text": "epoch"}, "tick0": 0, "dtick": whole_step(last, labels)}


def whole_step(width: float, labels: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that divides a width into at most so many parts.

    >>> whole_step(3, 6), whole_step(60, 6), whole_step(500, 6)
    (1, 10, 100)
    """
    step = 1
    while width / step > labels:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step


def short(value: float) -> float | None:
    """A number as a chart needs it: six figures are more than a screen shows; JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def tag(text: str) -> str:
    """A text for a label: plotly reads a subset of HTML there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short_label(name: str, length: int = 22) -> str:
    """A method's name short enough for an axis; names that differ often do so at an end, so both ends stay."""
    if len(name) <= length:
        return tag(name)
    half = (length - 1) // 2
    return tag(f"{name[: length - 1 - half]}…{name[-half:]}")


def page_json(drawn: Sequence[Chart]) -> str:
    """All charts as one JSON object by key, safe inside a ``<script>`` element."""
    text = ",".join(f"{json.dumps(chart.key)}:{chart.json()}" for chart in drawn)
    return "{" + text.replace("<", "\\u003c") + "}"
