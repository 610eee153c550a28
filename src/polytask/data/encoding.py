"""Columns of a table to numbers, fitted on training rows by scikit-learn and kept as plain JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polytask.data.sheet import Sheet
from polytask.errors import one_of

logger = logging.getLogger("polytask")

NUMERIC, CATEGORICAL = "numeric", "categorical"
INPUT_KINDS = (NUMERIC, CATEGORICAL)
FARTHEST = 1e9
"""A number more standard deviations from the training mean is refused: no network says anything sensible about it."""


@dataclass(frozen=True)
class Numeric:
    """A column of numbers: (x - mean) / scale, with `fill` for a missing x.

    Attributes:
        name: the column.
        fill: the median of the training rows.
        mean: their mean, missing ones filled.
        scale: their standard deviation, 1 if it is 0.
        indicator: whether a further 0/1 input tells that x was missing, as it was in some training row.
    """

    name: str
    fill: float
    mean: float
    scale: float
    indicator: bool

    def __post_init__(self) -> None:
        if not np.isfinite([self.fill, self.mean, self.scale]).all() or not self.scale > 0:
            raise ValueError(f"a column of numbers must have finite statistics, found {self}")


@dataclass(frozen=True)
class Categorical:
    """A column of categories: one 0/1 input for each, and one for the rare ones together.

    Attributes:
        name: the column.
        categories: those with an input of their own, None for "not given".
        rare: training categories that share the last input; categories never seen go there too. Without any,
            one never seen has all zeros.
    """

    name: str
    categories: tuple[str | None, ...]
    rare: tuple[str | None, ...]

    @property
    def width(self) -> int:
        """How many inputs it makes."""
        return len(self.categories) + bool(self.rare)

    def labels(self) -> list[str]:
        """What each of its inputs is, in words.

        >>> Categorical("town", ("Bonn", "rare", None), ("Ulm",)).labels()
        ['town = Bonn', 'town = rare', 'town is missing', 'town is rare or new']
        """
        own = [f"{self.name} is missing" if value is None else f"{self.name} = {value}" for value in self.categories]
        rest = "is rare, missing or new" if None in self.rare else "is rare or new"
        return [*own, *[f"{self.name} {rest}"] * bool(self.rare)]


@dataclass(frozen=True)
class Encoding:
    """How the columns of a table become the numbers that a network reads.

    Inputs are, in this order: the numbers, standardised; the indicators of missing numbers; the categories.

    Attributes:
        numeric: the columns of numbers.
        categorical: the columns of categories.
    """

    numeric: tuple[Numeric, ...]
    categorical: tuple[Categorical, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it reads."""
        return tuple(column.name for column in (*self.numeric, *self.categorical))

    @property
    def width(self) -> int:
        """How many numbers an example has."""
        numbers = len(self.numeric) + sum(column.indicator for column in self.numeric)
        return numbers + sum(column.width for column in self.categorical)

    def labels(self) -> list[str]:
        """What each number of an example is, in words."""
        indicators = [f"{column.name} is missing" for column in self.numeric if column.indicator]
        rest = (column.labels() for column in self.categorical)
        return [*(column.name for column in self.numeric), *indicators, *(label for part in rest for label in part)]

    def apply(self, sheet: Sheet, rows: np.ndarray | None = None) -> np.ndarray:
        """The rows of a table (all if None) as (N, width) float32.

        Raises:
            ValueError: a column is missing, or has an entry that is no number or too far from the training rows'.
        """
        sheet.check_columns(self.names, "an input")
        rows = np.arange(sheet.rows) if rows is None else rows
        encoded = np.empty((len(rows), self.width), dtype=np.float32)
        place = 0
        absent = []
        for column in self.numeric:
            values = sheet.numbers(column.name)[rows]
            missing = np.isnan(values)
            scaled = (np.where(missing, column.fill, values) - column.mean) / column.scale
            _check_size(sheet, column.name, scaled, rows)
            encoded[:, place] = scaled
            absent += [missing] * column.indicator
            place += 1
        for missing in absent:
            encoded[:, place] = missing
            place += 1
        for column in self.categorical:
            _one_hot(column, sheet.categories(column.name)[rows], encoded[:, place : place + column.width])
            place += column.width
        return encoded

    def filled(self, sheet: Sheet) -> dict[str, tuple[int, Numeric]]:
        """{column of numbers: (how many are missing and filled, what is known of it)}, those of none left out."""
        counts = {column: int(np.isnan(sheet.numbers(column.name)).sum()) for column in self.numeric}
        return {column.name: (count, column) for column, count in counts.items() if count}

    def unseen(self, sheet: Sheet) -> dict[str, list[str]]:
        """{column: its categories that no training row had}, columns without any left out."""
        found = {}
        for column in self.categorical:
            known = {*column.categories, *column.rare}
            new = [value for value in dict.fromkeys(sheet.categories(column.name).tolist()) if value not in known]
            if new:
                found[column.name] = ["nothing" if value is None else value for value in new]
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; floats are told to the bit."""
        return {key: [asdict(column) for column in getattr(self, key)] for key in (NUMERIC, CATEGORICAL)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Encoding:
        """What `to_json` told.

        Raises:
            ValueError, KeyError or TypeError: it is damaged.
        """
        numbers = [
            Numeric(str(c["name"]), float(c["fill"]), float(c["mean"]), float(c["scale"]), bool(c["indicator"]))
            for c in content[NUMERIC]
        ]
        categories = [
            Categorical(str(c["name"]), _strings(c["categories"]), _strings(c["rare"])) for c in content[CATEGORICAL]
        ]
        return cls(tuple(numbers), tuple(categories))


def fit_encoding(sheet: Sheet, kinds: Mapping[str, str], rows: np.ndarray, *, rare: int, most: int) -> Encoding:
    """Fits the encoding on the training rows, by scikit-learn's transformers.

    Args:
        sheet: the table.
        kinds: {column: ``numeric`` or ``categorical``}.
        rows: the training rows; no other is looked at.
        rare: categories of fewer rows share one input.
        most: a column makes at most that many inputs; its least frequent categories share the last.

    Raises:
        ValueError: an unknown kind, a column that is no column of numbers, or one that has nothing to learn from.
    """
    for name, kind in kinds.items():
        one_of(f"inputs.{name}", kind, INPUT_KINDS)
    numeric = [name for name, kind in kinds.items() if kind == NUMERIC]
    categorical = [name for name, kind in kinds.items() if kind == CATEGORICAL]
    return Encoding(
        _fit_numbers(sheet, numeric, rows) if numeric else (),
        _fit_categories(sheet, categorical, rows, rare, most) if categorical else (),
    )


def _fit_numbers(sheet: Sheet, names: list[str], rows: np.ndarray) -> tuple[Numeric, ...]:
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    values = np.column_stack([sheet.numbers(name)[rows] for name in names])  # (training rows, columns)
    missing = np.isnan(values)
    for index, name in enumerate(names):
        _check_varies(sheet, name, len(set(values[~missing[:, index], index].tolist())))
    imputer = SimpleImputer(strategy="median").fit(values)
    scaler = StandardScaler().fit(imputer.transform(values))
    fitted = np.array([imputer.statistics_, scaler.mean_, scaler.scale_], dtype=np.float64)  # (3, columns)
    indicators = [bool(missing[:, index].any()) for index in range(len(names))]
    statistics = zip(names, *fitted.tolist(), indicators, strict=True)
    return tuple(Numeric(name, fill, mean, scale, absent) for name, fill, mean, scale, absent in statistics)


def _fit_categories(sheet: Sheet, names: list[str], rows: np.ndarray, rare: int, most: int) -> tuple[Categorical, ...]:
    from sklearn.preprocessing import OneHotEncoder

    values = np.column_stack([sheet.categories(name)[rows] for name in names])  # (training rows, columns)
    for index, name in enumerate(names):
        _check_varies(sheet, name, len(set(values[:, index].tolist()) - {None}))
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=rare, max_categories=most).fit(values)
    fitted = []
    for name, every, few in zip(names, encoder.categories_, encoder.infrequent_categories_, strict=True):
        together = [] if few is None else few.tolist()
        kept = [value for value in every.tolist() if value not in together]
        fitted.append(Categorical(name, tuple(kept), tuple(together)))
    return tuple(fitted)


def _check_varies(sheet: Sheet, name: str, distinct: int) -> None:
    if distinct == 0:
        raise sheet.error(f"input column `{name}` must have an entry in a training row, found none")
    if distinct == 1:  # it differs in other rows, or the whole column would have been refused
        logger.warning("%s: input column `%s` has only one value in the training rows", sheet.path, name)


def _check_size(sheet: Sheet, name: str, scaled: np.ndarray, rows: np.ndarray) -> None:
    far = np.flatnonzero(np.abs(scaled) > FARTHEST)
    if len(far):
        rule = f"column `{name}` must hold numbers like those trained on"
        size = f"{abs(scaled[far[0]]):.3g} standard deviations from their mean"
        raise sheet.error(f"{rule}, found one {size} in {sheet.where(int(rows[far[0]]))}")


def _one_hot(column: Categorical, values: np.ndarray, place: np.ndarray) -> None:
    """Writes a column's 0/1 inputs (N, width) into `place`."""
    codes = {value: index for index, value in enumerate(column.categories)}
    other = len(column.categories) if column.rare else -1
    found = np.array([codes.get(value, other) for value in values.tolist()], dtype=np.int64)
    place[:] = 0.0
    known = np.flatnonzero(found >= 0)
    place[known, found[known]] = 1.0


def _strings(values: Iterable[Any]) -> tuple[str | None, ...]:
    return tuple(None if value is None else str(value) for value in values)
