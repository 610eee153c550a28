"""Pareto fronts: preference vectors, non-dominated points, hypervolume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polytask.errors import whole

Vector = dict[str, float]
"""A preference: {objective: at least 0}, summing to 1."""

TOLERANCE = 1e-6


def simplex_grid(names: Sequence[str], divisions: int, least: float = 0.0) -> list[Vector]:
    """Every vector whose entries are multiples of 1 / `divisions` (the simplex lattice of Das and Dennis, 1998).

    Args:
        names: the objectives, at least 2.
        divisions: at least 1; K objectives give C(divisions + K - 1, K - 1) vectors.
        least: shrinks the grid towards the centre so that no entry is below it; in [0, 1/K).

    Raises:
        ValueError: fewer than two objectives, or a number out of range.

    >>> simplex_grid(["left", "right"], 2)
    [{'left': 0.0, 'right': 1.0}, {'left': 0.5, 'right': 0.5}, {'left': 1.0, 'right': 0.0}]
    >>> simplex_grid(["left", "right"], 1, least=0.1)
    [{'left': 0.1, 'right': 0.9}, {'left': 0.9, 'right': 0.1}]
    """
    count = len(names)
    if count < 2:
        raise ValueError(f"a preference grid must have at least 2 objectives, found {count}")
    whole("divisions", divisions, 1)
    if not 0 <= least < 1 / count:
        raise ValueError(f"`least` must be at least 0 and below 1/{count}, found {least}")
    stretch = 1 - count * least
    return [
        {name: round(least + stretch * part / divisions, 9) for name, part in zip(names, parts, strict=True)}
        for parts in _compositions(divisions, count)
    ]


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as an ordered sum of `parts` numbers, each at least 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def read_vectors(path: str | Path, names: Sequence[str]) -> list[Vector]:
    """Preference vectors from a file: JSON (a list of lists or of mappings) or CSV with a header of objectives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or a vector does not fit; the message says which.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"a file of preferences must exist, found no file {file}")
    try:
        rows: Any = json.loads(file.read_text()) if file.suffix == ".json" else _csv(file)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} must hold preferences as JSON or CSV, found a damaged file ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} must hold a list of preferences, found a {type(rows).__name__}")
    return check_vectors(rows, names)


def _csv(file: Path) -> list[dict[str, float]]:
    import csv

    with file.open(newline="") as opened:
        reader = csv.reader(opened, strict=True)
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    if len(set(header)) < len(header):
        raise ValueError(f"the header must name each objective once, found {header}")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"line {line} must have a number for each of {header}, found {len(row)}")
    return [{name: float(value) for name, value in zip(header, row, strict=True)} for _, row in rows]


def check_vectors(rows: Sequence[Any], names: Sequence[str]) -> list[Vector]:
    """Preferences as mappings, each checked: every objective once, at least 0, summing to 1.

    Args:
        rows: mappings, or lists in the order of `names`.
        names: the objectives.

    Raises:
        ValueError: a vector that does not fit, named by its number; none at all; one twice.
    """
    if not rows:
        raise ValueError("there must be at least one preference, found none")
    vectors = [_checked(row, names, number) for number, row in enumerate(rows, 1)]
    for number, vector in enumerate(vectors):
        if vector in vectors[:number]:
            raise ValueError(f"preferences must be different, found {list(vector.values())} twice")
    return vectors


def _checked(row: Any, names: Sequence[str], number: int) -> Vector:
    where = f"preference {number}"
    if isinstance(row, Mapping):
        if set(row) != set(names):
            raise ValueError(f"{where} must name the objectives {list(names)}, found {list(row)}")
        values = [row[name] for name in names]
    elif isinstance(row, Sequence) and not isinstance(row, str):
        values = list(row)
    else:
        raise ValueError(f"{where} must be a list or a mapping, found {row!r}")
    if len(values) != len(names):
        raise ValueError(f"{where} must have one number per objective {list(names)}, found {len(values)} numbers")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{where} must hold numbers of at least 0, found {values}")
    if abs(math.fsum(values) - 1) > TOLERANCE:
        raise ValueError(f"{where} must sum to 1, found {math.fsum(values):g}")
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def non_dominated(points: Any, maximise: Sequence[bool] | bool = False) -> list[bool]:
    """Which points no other one is at least as good as in everything and better than in something.

    Of equal points all are kept: each is a way to get there.

    Args:
        points: (N, M) finite numbers.
        maximise: which way each column is better.

    >>> non_dominated([[1, 3], [2, 2], [2, 3]])
    [True, True, False]
    """
    import moocore

    values = _values(points)
    return moocore.is_nondominated(values, maximise=_columns(maximise, values), keep_weakly=True).tolist()


def hypervolume(points: Any, reference: Sequence[float], maximise: Sequence[bool] | bool = False) -> float:
    """The volume that the points dominate, up to the reference point; larger is better.

    Points that are not better than the reference point in everything add nothing. State the reference point beside
    the number: it decides what the ends of a front are worth.

    Args:
        points: (N, M) finite numbers.
        reference: (M,), a point worse than those that matter.
        maximise: which way each column is better.

    >>> hypervolume([[1, 3], [2, 2]], reference=[4, 4])
    5.0
    """
    import moocore

    values = _values(points)
    if len(reference) != values.shape[1]:
        raise ValueError(f"`reference` must have {values.shape[1]} numbers, found {len(reference)}")
    return float(moocore.hypervolume(values, ref=list(reference), maximise=_columns(maximise, values)))


def _values(points: Any) -> np.ndarray:
    values = np.asarray(points, dtype=float)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"points must be a table of at least one row, found shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("points must be finite, found NaN or infinity")
    return values


def _columns(maximise: Sequence[bool] | bool, values: np.ndarray) -> list[bool]:
    columns = [maximise] * values.shape[1] if isinstance(maximise, bool) else list(maximise)
    if len(columns) != values.shape[1]:
        raise ValueError(f"`maximise` must have {values.shape[1]} entries, found {len(columns)}")
    return columns
