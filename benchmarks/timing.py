"""Side-by-side timing: candidates take turns within each round, so that a drifting machine hits all alike."""

from __future__ import annotations

import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass
class Ratio:
    """Time of a candidate over time of the reference, round by round."""

    name: str
    seconds: float
    median: float
    low: float
    high: float
    target: float | None = None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.median <= self.target else "missed"


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    reference: str,
    *,
    rounds: int = 25,
    targets: Mapping[str, float] | None = None,
) -> list[Ratio]:
    """Runs every candidate once per round, after one round that is not counted.

    Args:
        candidates: {name: function that does one piece of work, which is timed}; a function that returns
            {name: seconds} reports figures of its own instead.
        reference: the figure that ratios refer to, round by round.
        rounds: rounds counted.
        targets: {name: largest allowed median ratio}.
    """
    times = measure(candidates, rounds)
    return [ratio(name, times[name], times[reference], (targets or {}).get(name)) for name in times]


def measure(
    candidates: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every round, by figure; for callers that compare one figure with several others.

    Every round has an order of its own, so that none always inherits the same candidate's caches and heap.
    """
    times: dict[str, list[float]] = {}
    order, stream = list(candidates), random.Random(0)
    for counted in (False, *[True] * rounds):
        stream.shuffle(order)
        for name in order:
            begin = clock()
            own = candidates[name]()
            figures = own if isinstance(own, dict) else {name: clock() - begin}
            for figure, seconds in figures.items() if counted else ():
                times.setdefault(figure, []).append(seconds)
    return times


def ratio(name: str, values: list[float], base: list[float], target: float | None = None) -> Ratio:
    """What `values` are over `base`, round by round."""
    ratios = sorted(a / b for a, b in zip(values, base, strict=True))
    quarter = len(ratios) // 4
    middle = statistics.median(ratios)
    return Ratio(name, statistics.median(values), middle, ratios[quarter], ratios[-1 - quarter], target)


def show(title: str, rows: list[Ratio], note: str = "") -> None:
    """Prints the table and appends it to RESULTS.md with date and machine."""
    table = Table(title=title)
    for column in ("", "median ms", "ratio", "quartiles", "target", ""):
        table.add_column(column)
    lines = [f"### {title}", "", stamp(), ""]
    lines += ["| | median ms | ratio | quartiles | target | |", "|---|---|---|---|---|---|"]
    for row in rows:
        target = "" if row.target is None else f"≤ {row.target:g}"
        figures = [f"{row.seconds * 1e3:.2f}", f"{row.median:.3f}", f"{row.low:.3f}–{row.high:.3f}"]
        cells = [row.name, *figures, target, row.verdict]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    Console(width=140).print(table)
    if note:
        lines += ["", note]
        print(note)
    record(lines)


def record(lines: list[str]) -> None:
    """Appends lines to RESULTS.md."""
    with RESULTS.open("a") as file:
        file.write("\n".join(lines) + "\n\n")


def stamp() -> str:
    """The line below a table's title: date, machine, versions."""
    day = datetime.date.today().isoformat()
    threads = torch.get_num_threads()
    return f"{day}, {machine()}, torch {torch.__version__}, {threads} thread(s), Python {platform.python_version()}."


def machine() -> str:
    """The processor's name and the number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
