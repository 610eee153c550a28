"""Methods side by side at one budget: equal epochs and equal training seconds, read from the histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polytask.reports.estimate import Estimate, Figure
from polytask.reports.method import Method
from polytask.reports.summary import Summary
from polytask.studies.store import RunRecord

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Budget:
    """A cut through all histories.

    Attributes:
        unit: ``epochs`` or ``seconds``.
        limit: how much of it every method gets: the shortest finished run's total, so that all histories
            reach it.
        figures: {method: {figure's key: estimate}} on validation data, of the epoch with the lowest
            validation loss within the limit.
    """

    unit: str
    limit: float
    figures: Mapping[str, Mapping[str, Estimate]]


def equal_budgets(summary: Summary) -> list[Budget]:
    """The comparison at equal epochs and at equal training seconds; nothing without validation histories.

    Args:
        summary: of at least two methods with histories on disk.
    """
    tables = {m.name: [t for run in m.done if (t := _history(run)) is not None] for m in summary.methods}
    tables = {name: found for name, found in tables.items() if found}
    if len(tables) < 2:
        return []
    every = [table for found in tables.values() for table in found]
    limits = {
        "epochs": float(min(len(table) for table in every)),
        "seconds": min(float(table["clock"].iloc[-1]) for table in every),
    }
    methods = [method for method in summary.methods if method.name in tables]
    return [
        Budget(unit, limit, {m.name: _at(m, tables[m.name], summary.metrics, unit, limit) for m in methods})
        for unit, limit in limits.items()
    ]


def _history(run: RunRecord) -> pd.DataFrame | None:
    if run.folder is None or not (run.folder / "history.csv").is_file():
        return None
    table = run.history()
    if "validation/loss" not in table or table["validation/loss"].isna().all():
        return None
    return table.copy().assign(clock=table["seconds"].cumsum())  # in one piece: pandas warns where it is in many


def _at(
    method: Method, tables: list[pd.DataFrame], figures: list[Figure], unit: str, limit: float
) -> dict[str, Estimate]:
    best = []
    for table in tables:
        within = table[table["clock"] <= limit] if unit == "seconds" else table.iloc[: int(limit)]
        best.append(within.iloc[int(within["validation/loss"].argmin())] if len(within) else None)
    return {
        figure.key: Estimate.of(float("nan") if row is None else float(row[f"validation/{figure.key}"]) for row in best)
        for figure in figures
    }
