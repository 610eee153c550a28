"""Counts, times and data sets in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polytask.errors import plural as plural
from polytask.studies.store import RunRecord

MOST_ITEMS = 8
"""Entries of one list or mapping that are told; the settings at the page's end hold all."""


def duration(seconds: float) -> str:
    """Seconds, or minutes, or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def period(times: Sequence[str]) -> str:
    """From the first to the last of some ISO 8601 times, without what the second repeats.

    >>> period(["2026-01-02T03:04:05+00:00", "2026-01-02T13:00:00+00:00"])
    '2026-01-02, 03:04 to 13:00'
    """
    (day, start), (last_day, end) = ((time[:10], time[11:16]) for time in (min(times), max(times)))
    if day != last_day:
        return f"{day}, {start} to {last_day}, {end}"
    return f"{day}, {start}" + (f" to {end}" if end != start else "")


def config_of(run: RunRecord) -> str:
    """The text of a run's configuration, "" if there is none."""
    path = None if run.folder is None else run.folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def data_of(run: RunRecord) -> str:
    """A run's data set in words, "" if it is unknown."""
    import yaml

    try:
        config = yaml.safe_load(config_of(run))
    except yaml.YAMLError:
        return ""
    data = config.get("data") if isinstance(config, dict) else None
    return in_words(data) if isinstance(data, dict | str) else ""


def in_words(value: Any) -> str:
    """A setting as a person would say it.

    >>> in_words({"class_path": "polytask.data.MultiDigits", "init_args": {"pairs": [4, 2], "flat": True, "x": None}})
    'MultiDigits: pairs 4, 2; flat'
    >>> in_words({"normalise": False, "train_size": 1000})
    'not normalise; train size 1000'
    """
    if isinstance(value, Mapping):
        if "class_path" in value:
            name = str(value["class_path"]).rsplit(".", 1)[-1]
            told = in_words(value.get("init_args") or {})
            return f"{name}: {told}" if told else name
        return _listed([text for key, entry in value.items() if (text := _setting(str(key), entry))], "; ")
    if isinstance(value, list | tuple):
        return _listed([_inner(entry) for entry in value], ", ")
    if value == "":
        return "''"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(name: str, value: Any) -> str:
    shown = name.replace("_", " ")
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return shown if value else f"not {shown}"
    return f"{shown} {_inner(value)}"


def _inner(value: Any) -> str:
    """With brackets around what has parts of its own."""
    text = in_words(value)
    return f"({text})" if isinstance(value, Mapping) and text else text


def _listed(texts: Sequence[str], between: str) -> str:
    if len(texts) <= MOST_ITEMS:
        return between.join(texts)
    return between.join([*texts[: MOST_ITEMS - 1], f"and {len(texts) - MOST_ITEMS + 1} more"])
