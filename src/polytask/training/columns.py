"""The columns that a history may have, and which way each is better."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from polytask.errors import nearest
from polytask.task import Task


def directions(tasks: Mapping[str, Task], objectives: Iterable[str], validated: bool) -> dict[str, str]:
    """{column: ``min`` or ``max``}, of everything that a callback may monitor.

    Args:
        tasks: tasks by name.
        objectives: the names of the terms beside the tasks' losses.
        validated: whether there are validation data.
    """
    parts = ["train"] + ["validation"] * validated
    columns = {f"{part}/loss": "min" for part in parts}
    for part in parts:
        for name, task in tasks.items():
            columns[f"{part}/{name}/loss"] = "min"
            columns[f"{part}/{name}/{task.metric.name}"] = task.metric.direction
    for name in objectives:
        columns[f"train/{name}/loss"] = "min"
    return columns


def monitored(monitor: str, known: Mapping[str, str], validated: bool) -> list[str]:
    """The columns whose mean `monitor` names: itself, or those that a pattern with ``*`` fits.

    Args:
        monitor: a column, or a pattern.
        known: what `directions` gave.
        validated: whether there are validation data.

    Raises:
        ValueError: no such column can exist in this run, or the pattern fits some where higher is better and
            others where lower is.
    """
    if monitor.startswith("validation/") and not validated:
        raise ValueError(f"monitoring `{monitor}` needs validation data, found none: pass them to `fit`")
    found = [monitor] if monitor in known else fnmatch.filter(known, monitor) if "*" in monitor else []
    if not found:
        raise ValueError(f"unknown column `{monitor}` to monitor: {nearest(monitor, known)}")
    if len({known[name] for name in found}) > 1:
        raise ValueError(
            f"columns monitored together must all be better when higher, or all when lower, found {found} for "
            f"`{monitor}`"
        )
    return found
