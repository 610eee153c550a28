"""Tables as they lie in files: CSV and Parquet, by column, with the line that each row came from."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polytask.data.base import file_content
from polytask.errors import nearest

if TYPE_CHECKING:
    import pandas as pd

Column = np.ndarray
"""Text (object: str, or None where nothing is given), or numbers (float64, NaN where nothing is given)."""

MISSING_WORDS = frozenset({
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
})  # fmt: skip
"""Entries that stand for "not given": those of `pandas.read_csv`."""
TEXT_FORMATS = (".csv", ".tsv", ".txt")
FORMATS = (*TEXT_FORMATS, ".parquet")
LARGEST = 1e30
"""Numbers above it in size are refused: their squares are no float32 numbers, nor are sums of them."""
_WHOLE = re.compile(r"(-?\d+)\.0+")


@dataclass(frozen=True)
class Sheet:
    """A table by column.

    Attributes:
        path: where it was read.
        columns: {name: entries}, in the file's order.
        digest: the SHA-256 of the file's content.
        lines: for each row the line on which it ends; None in files without lines.
    """

    path: Path
    columns: dict[str, Column] = field(repr=False)
    digest: str
    lines: Sequence[int] | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values())))

    def where(self, row: int) -> str:
        """Which place in the file a row is, in words."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def error(self, message: str) -> ValueError:
        """A refusal that names the file."""
        return ValueError(f"{self.path}: {message}")

    def check_columns(self, names: Iterable[str], what: str) -> None:
        """Raises `ValueError` unless the file has all these columns."""
        for name in names:
            if name not in self.columns:
                hint = nearest(name, self.columns)
                only = next(iter(self.columns))
                other = next((mark for mark in ";\t|" if len(self.columns) == 1 and mark in only), None)
                hint += f" (if columns are separated by {other!r}, say so with `separator`)" if other else ""
                raise self.error(f"{what} must be a column of the file, found no column `{name}`: {hint}")

    def text(self, name: str) -> Column:
        """A column as categories: text, None where nothing is given; whole numbers without their ``.0``."""
        column = self.columns[name]
        if column.dtype != object:
            return np.array([None if np.isnan(value) else repr(float(value)) for value in column], dtype=object)
        return column

    def categories(self, name: str) -> Column:
        """As `text`, with ``1.0`` told as ``1``: a missing entry in the column makes pandas write it so."""
        found = self.text(name)
        known = {value: _plain(value) for value in dict.fromkeys(found.tolist()) if value is not None}
        return np.array([known.get(value) for value in found.tolist()], dtype=object)

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 numbers, NaN where nothing is given.

        Raises:
            ValueError: an entry is no number, or none that can be trained on; the line is named.
        """
        column = self.columns[name]
        values = _as_numbers(column)
        if column.dtype == object:
            broken = np.flatnonzero(np.isnan(values) & _given(column))
            if len(broken):
                found = f"{column[broken[0]]!r} in {self.where(broken[0])}"
                raise self.error(f"column `{name}` must hold numbers, found {found}: is it categorical?")
        large = np.flatnonzero(np.abs(values) > LARGEST)
        if len(large):
            rule = f"column `{name}` must hold finite numbers of at most {LARGEST:g} in size"
            raise self.error(f"{rule}, found {values[large[0]]:g} in {self.where(large[0])}")
        return values

    def profile(self, name: str) -> Profile:
        """What a column looks like, for guessing what it is."""
        column = self.columns[name]
        given = _given(column)
        values = _as_numbers(column)
        numbers = given & ~np.isnan(values)
        distinct = len(set(column[given].tolist()))
        mixed = ""
        if numbers.any() and (words := np.flatnonzero(given & ~numbers)).size:
            first = np.flatnonzero(numbers)[0]
            mixed = f"{column[first]} in {self.where(first)} and {column[words[0]]!r} in {self.where(words[0])}"
        numeric = bool(given.any() and not mixed and numbers.any())
        kept = values[given] if numeric else np.empty(0)
        finite = kept[np.isfinite(kept)]
        whole = bool(numeric and len(finite) == len(kept) and (finite == np.round(finite)).all())
        counting = whole and len(kept) > 1 and bool((np.diff(kept) == 1).all())
        return Profile(name, int(given.sum()), len(column), distinct, numeric, whole, counting, mixed)


@dataclass(frozen=True)
class Profile:
    """What a column looks like.

    Attributes:
        name: the column's name.
        given: rows that have an entry.
        rows: all rows.
        distinct: different entries.
        numeric: all entries are numbers.
        whole: all are whole numbers.
        counting: each is one more than the one before: they number the rows.
        mixed: if some are numbers and some are not, one of each in words; else "".
    """

    name: str
    given: int
    rows: int
    distinct: int
    numeric: bool
    whole: bool
    counting: bool
    mixed: str


def read_sheet(
    path: str | Path, *, encoding: str = "utf-8", separator: str = ",", missing: Iterable[str] = ()
) -> Sheet:
    """Reads a table.

    Args:
        path: a .csv, .tsv or .txt file with a line of names first, gzipped (and then ending in .gz, if you like) or
            not, or a .parquet file.
        encoding: of the text.
        separator: what stands between columns of text; a .tsv file has tabs whatever it says.
        missing: entries that stand for "not given", besides `MISSING_WORDS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a damaged one, or one without rows; the line is named where there is one.
        ModuleNotFoundError: a Parquet file, without pyarrow.
    """
    source = Path(path)
    digest = content_digest(source)
    kind = kind_of(source)
    if kind not in FORMATS:
        raise ValueError(f"{source}: a table's name must end in one of {', '.join(FORMATS)}, found {source.name}")
    content = bytes(file_content(source))
    if kind == ".parquet":
        return Sheet(source, _parquet_columns(source, content, frozenset(missing)), digest)
    text = _decoded(source, content, encoding)
    names, rows, lines = _csv_rows(source, text, "\t" if kind == ".tsv" else separator)
    absent = MISSING_WORDS | frozenset(missing)
    table = np.array(rows, dtype=object)  # (rows, columns) of str
    columns = {name: _without(table[:, index], absent) for index, name in enumerate(names)}
    return Sheet(source, columns, digest, lines)


def kind_of(path: str | Path) -> str:
    """The ending of a table's name, which tells its format; a ``.gz`` after it does not count.

    >>> kind_of("shop.csv"), kind_of("shop.CSV.gz"), kind_of("shop")
    ('.csv', '.csv', '')
    """
    name = str(path).lower().removesuffix(".gz")
    return Path(name).suffix


def content_digest(path: str | Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        FileNotFoundError: there is no such file.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"a table must be a file, found no file {source}")
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decoded(source: Path, content: bytes, encoding: str) -> str:
    try:
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise ValueError(
            f"`encoding` must be one that Python knows, such as utf-8 or latin-1, found {encoding!r}"
        ) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} in line {line}"
        rule = f"{source}: the file must be {encoding} text, found {found}"
        raise ValueError(f"{rule}: name its encoding with `encoding`, such as latin-1 or cp1252") from None


def _csv_rows(source: Path, text: str, separator: str) -> tuple[list[str], list[list[str]], list[int]]:
    if len(separator) != 1:
        raise ValueError(f"`separator` must be one character, found {separator!r}")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{source}: the file must be text, found a zero byte in line {line}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    names: list[str] = []
    try:
        for row in reader:
            if not row:
                continue  # a blank line
            if not names:
                names = _names(source, row)
            elif len(row) != len(names):
                rule = f"every row must have {len(names)} entries, as many as there are names"
                raise ValueError(f"{source}: {rule}, found {len(row)} in line {reader.line_num}")
            else:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{source}: the file must be valid CSV, found in line {reader.line_num}: {error}") from error
    if not names:
        raise ValueError(f"{source}: a table must have a line of names and rows, found an empty file")
    if not rows:
        raise ValueError(f"{source}: a table must have at least one row, found only the line of names")
    return names, rows, lines


def _names(source: Path, header: Sequence[str]) -> list[str]:
    """The columns' names; one without a name (pandas writes its row numbers so) is called by its place."""
    names = [name or f"column {index}" for index, name in enumerate(header, 1)]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        places = [index for index, name in enumerate(names, 1) if name == twice]
        raise ValueError(f"{source}: columns must have different names, found `{twice}` as columns {places}")
    return names


def _parquet_columns(source: Path, content: bytes, missing: frozenset[str]) -> dict[str, Column]:
    import pandas as pd

    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{source}: reading Parquet needs pyarrow, found none: pip install 'polytask[parquet]', or save it as CSV"
        ) from error
    except Exception as error:  # pyarrow raises errors of its own kinds
        raise ValueError(f"{source}: the file must be valid Parquet, found: {' '.join(str(error).split())}") from error
    frame = frame.reset_index(drop=frame.index.names == [None])
    if not len(frame) or not len(frame.columns):
        raise ValueError(f"{source}: a table must have rows and columns, found {len(frame)} x {len(frame.columns)}")
    names = _names(source, [str(name) for name in frame.columns])
    return {name: _typed(source, name, frame.iloc[:, i], missing) for i, name in enumerate(names)}


def _typed(source: Path, name: str, series: pd.Series, missing: frozenset[str]) -> Column:
    from pandas.api import types

    if types.is_bool_dtype(series.dtype):
        return np.array([None if absent else str(bool(value)) for value, absent in _pairs(series)], dtype=object)
    if types.is_integer_dtype(series.dtype):  # as text, as in a CSV file: an id may have more digits than a float64
        exact = [None if absent else str(int(value)) for value, absent in _pairs(series)]
        return _without(np.array(exact, dtype=object), missing)
    if types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype):
        return series.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    values = [None if absent else value for value, absent in _pairs(series)]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        rule = f"{source}: column `{name}` must hold numbers, text or booleans"
        raise ValueError(f"{rule}, found {type(wrong).__name__} {wrong}: turn it into one of them, or drop it")
    return _without(np.array(values, dtype=object), MISSING_WORDS | missing)


def _pairs(series: pd.Series) -> Iterable[tuple[Any, bool]]:
    return zip(series.tolist(), series.isna().tolist(), strict=True)


def _without(column: Column, absent: frozenset[str]) -> Column:
    return np.array([None if value in absent else value for value in column.tolist()], dtype=object)


def _given(column: Column) -> np.ndarray:
    """Which entries are not missing."""
    import pandas as pd

    return np.asarray(~pd.isna(column))


def _as_numbers(column: Column) -> np.ndarray:
    """Entries as float64, NaN where they are missing or no numbers."""
    import pandas as pd

    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def _plain(value: str) -> str:
    whole = _WHOLE.fullmatch(value)
    return whole[1] if whole else value
