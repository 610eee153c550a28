"""Tables as they lie in files: CSV and Parquet, by column, with the line that each row came from."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polytask.data.base import file_content
from polytask.data.entries import (
    DECIMALS,
    POINT,
    Column,
    Profile,
    a_date,
    an_unread,
    are_days,
    as_numbers,
    frequencies,
    is_fraction,
    is_given,
    is_grouped,
    other_decimal,
    plain_whole,
)
from polytask.errors import nearest, one_of

if TYPE_CHECKING:
    import pandas as pd

MISSING_WORDS = frozenset({
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
})  # fmt: skip
"""Entries that stand for "not given": those of `pandas.read_csv`."""
TEXT_FORMATS = (".csv", ".tsv", ".txt")
FORMATS = (*TEXT_FORMATS, ".parquet")
LARGEST = 1e30
"""Numbers above it in size are refused: their squares are no float32 numbers, nor are sums of them."""
SEPARATORS = ",;\t|"
"""What often stands between columns: such marks in the only column's name are told."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Form:
    """How a table is written.

    Attributes:
        encoding: of the text.
        separator: what stands between columns of text, one character; ``\\t``, as typed in a shell, is a tab. A .tsv
            file has tabs whatever it says.
        decimal: what stands before the decimals of a number in text: ``.`` or ``,``.
        missing: entries that stand for "not given", besides `MISSING_WORDS`.
        prefix: what stands before a setting's name where the user gives it: ``--`` on the command line.
        fixed: whether it is that of the table trained on, which other tables must be written in.

    Raises:
        ValueError: a separator of several characters, or another decimal mark.
    """

    encoding: str = "utf-8"
    separator: str = ","
    decimal: str = POINT
    missing: tuple[str, ...] = ()
    prefix: str = ""
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.separator == "\\t":
            object.__setattr__(self, "separator", "\t")
        if len(self.separator) != 1:
            raise ValueError(f"{self.setting('separator')} must be one character, found {self.separator!r}")
        one_of(f"{self.prefix}decimal", self.decimal, DECIMALS)

    def setting(self, name: str, value: str = "") -> str:
        """A setting, with the value to give it, as the user writes it.

        >>> print(Form().setting("decimal", ","), Form(prefix="--").setting("separator", "\\t"))
        `decimal: ','` `--separator '\\t'`
        """
        return f"`{self.prefix}{name}{' ' if self.prefix else ': '}{value!r}`" if value else f"`{self.prefix}{name}`"

    def advice(self, name: str, value: str = "") -> str:
        """What to do about a setting that does not fit the file."""
        if self.fixed:
            return f"its `{name}` must be {getattr(self, name)!r}, as in training"
        return f"say so with {self.setting(name, value)}"


PLAIN = Form()


@dataclass(frozen=True)
class Sheet:
    """A table by column.

    Attributes:
        path: where it was read.
        columns: {name: entries}, in the file's order.
        digest: the SHA-256 of the file's content.
        lines: for each row the line on which it ends; None in files without lines.
        form: how it is written.
        absent: {column: {word that was taken for "not given": rows}}, empty entries left out.
    """

    path: Path
    columns: dict[str, Column] = field(repr=False)
    digest: str
    lines: Sequence[int] | None = field(default=None, repr=False)
    form: Form = PLAIN
    absent: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)
    _numbers: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _categories: dict[str, Column] = field(default_factory=dict, repr=False, compare=False)
    _profiles: dict[str, Profile] = field(default_factory=dict, repr=False, compare=False)

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
                hint = nearest(name, self.columns) + _other_separator(list(self.columns), self.form)
                raise self.error(f"{what} must be a column of the file, found no column `{name}`: {hint}")

    def text(self, name: str) -> Column:
        """A column as categories: text, None where nothing is given; whole numbers without their ``.0``."""
        column = self.columns[name]
        if column.dtype != object:
            return np.array([None if np.isnan(value) else repr(float(value)) for value in column], dtype=object)
        return column

    def categories(self, name: str) -> Column:
        """As `text`, with ``1.0`` told as ``1``: a missing entry in the column makes pandas write it so."""
        if name not in self._categories:
            found = self.text(name).tolist()
            known = {value: plain_whole(value, self._mark(name)) for value in dict.fromkeys(found) if value is not None}
            self._categories[name] = np.array([known.get(value) for value in found], dtype=object)
        return self._categories[name]

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 numbers, NaN where nothing is given.

        Raises:
            ValueError: an entry is no number, or none that can be trained on; the line is named.
        """
        column = self.columns[name]
        values = self._as_numbers(name)
        if column.dtype == object:
            broken = np.flatnonzero(np.isnan(values) & is_given(column))
            if len(broken):
                entry = str(column[broken[0]])
                found = f"{entry!r} in {self.where(broken[0])}"
                raise self.error(f"column `{name}` must hold numbers, found {found}: {self._no_number(entry)}")
        large = np.flatnonzero(np.abs(values) > LARGEST)
        if len(large):
            rule = f"column `{name}` must hold finite numbers of at most {LARGEST:g} in size"
            raise self.error(f"{rule}, found {values[large[0]]:g} in {self.where(large[0])}")
        return values

    def profile(self, name: str) -> Profile:
        """What a column looks like, for guessing what it is."""
        if name not in self._profiles:
            self._profiles[name] = self._look_at(name)
        return self._profiles[name]

    def _as_numbers(self, name: str) -> np.ndarray:
        if name not in self._numbers:  # many ask for it, and text to numbers is most of their work
            self._numbers[name] = as_numbers(self.columns[name], self.form.decimal)
        return self._numbers[name]

    def _mark(self, name: str) -> str:
        """The decimal mark in a column's text; numbers that the file has as such are told with a point."""
        return self.form.decimal if self.columns[name].dtype == object else POINT

    def _no_number(self, entry: str) -> str:
        """What may be wrong with an entry that should be a number."""
        other = other_decimal(self.form.decimal)
        if is_grouped(entry) and not is_fraction(entry, other):
            return "write it without marks between thousands"
        if is_fraction(entry, other):
            return f"if it has decimal {DECIMALS[other]}, {self.form.advice('decimal', other)}"
        return "is it categorical?"

    def _look_at(self, name: str) -> Profile:
        column = self.columns[name]
        given, values, entries = is_given(column), self._as_numbers(name), frequencies(column)
        numbers = given & ~np.isnan(values)
        mixed = ""
        if numbers.any() and (words := np.flatnonzero(given & ~numbers)).size:
            first = np.flatnonzero(numbers)[0]
            mixed = f"{column[first]} in {self.where(first)} and {column[words[0]]!r} in {self.where(words[0])}"
        numeric = bool(given.any() and not mixed and numbers.any())
        kept = values[given] if numeric else np.empty(0)
        finite = kept[np.isfinite(kept)]
        whole = bool(numeric and len(finite) == len(kept) and (finite == np.round(finite)).all())
        counting = whole and len(kept) > 1 and bool((np.diff(kept) == 1).all())
        text = {} if numeric else entries
        unread, grouped = an_unread(text, self.form.decimal)
        return Profile(
            name, int(given.sum()), len(column), len(entries), numeric, whole, counting, mixed,
            date=f"{kept[0]:.0f}" if whole and are_days(kept) else a_date(text), unread=unread, grouped=grouped,
            least=min(entries.values(), default=0), absent=self.absent.get(name, {}),
        )  # fmt: skip


def read_sheet(path: str | Path, form: Form = PLAIN) -> Sheet:
    """Reads a table.

    Args:
        path: a .csv, .tsv or .txt file with a line of names first, gzipped (and then ending in .gz, if you like) or
            not, or a .parquet file.
        form: how it is written.

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
    lines = None
    if kind == ".parquet":
        found = _parquet_columns(source, content)
    else:
        form = replace(form, separator="\t") if kind == ".tsv" else form
        names, rows, lines = _csv_rows(source, _decoded(source, content, form), form)
        table = np.array(rows, dtype=object)  # (rows, columns) of str
        found = {name: table[:, index] for index, name in enumerate(names)}
    words = MISSING_WORDS | frozenset(form.missing)
    columns = {name: _without(column, words) for name, column in found.items()}
    absent = {name: _taken(column, words) for name, column in found.items()}
    return Sheet(source, columns, digest, lines, form, absent)


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


def _decoded(source: Path, content: bytes, form: Form) -> str:
    encoding = form.encoding
    try:
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise ValueError(
            f"{form.setting('encoding')} must be one that Python knows, such as utf-8 or latin-1, found {encoding!r}"
        ) from None
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = content[:start].count(b"\n") + 1
        others = "utf-16" if content.startswith(_UTF_16) else "latin-1 or cp1252"
        hint = f"name its encoding with {form.setting('encoding')}, such as {others}"
        rule = f"{source}: the file must be {encoding} text{', as in training' * form.fixed}"
        found = f"byte 0x{content[start]:02x} in line {line}"
        raise ValueError(f"{rule}, found {found}" + ("" if form.fixed else f": {hint}")) from None


def _csv_rows(source: Path, text: str, form: Form) -> tuple[list[str], list[list[str]], list[int]]:
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{source}: the file must be text, found a zero byte in line {line}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=form.separator, strict=True)
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
                entries = "1 entry" if len(names) == 1 else f"{len(names)} entries"
                rule = f"every row must have {entries}, as many as there are names"
                hint = _other_separator(names, form)
                raise ValueError(f"{source}: {rule}, found {len(row)} in line {reader.line_num}{hint}")
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


def _other_separator(names: Sequence[str], form: Form) -> str:
    found = next((mark for mark in SEPARATORS if len(names) == 1 and mark in names[0]), None)
    return f" (if columns are separated by {found!r}, {form.advice('separator', found)})" if found else ""


def _names(source: Path, header: Sequence[str]) -> list[str]:
    """The columns' names; one without a name (pandas writes its row numbers so) is called by its place."""
    names = [name or f"column {index}" for index, name in enumerate(header, 1)]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        places = [index for index, name in enumerate(names, 1) if name == twice]
        raise ValueError(f"{source}: columns must have different names, found `{twice}` as columns {places}")
    return names


def _parquet_columns(source: Path, content: bytes) -> dict[str, Column]:
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
    return {name: _typed(source, name, frame.iloc[:, i]) for i, name in enumerate(names)}


def _typed(source: Path, name: str, series: pd.Series) -> Column:
    from pandas.api import types

    if types.is_bool_dtype(series.dtype):
        return np.array([None if absent else str(bool(value)) for value, absent in _pairs(series)], dtype=object)
    if types.is_integer_dtype(series.dtype):  # as text, as in a CSV file: an id may have more digits than a float64
        return np.array([None if absent else str(int(value)) for value, absent in _pairs(series)], dtype=object)
    if types.is_datetime64_any_dtype(series.dtype):
        return np.array([None if absent else value.isoformat(" ") for value, absent in _pairs(series)], dtype=object)
    if types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype):
        return series.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    values = [None if absent else value for value, absent in _pairs(series)]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        rule = f"{source}: column `{name}` must hold numbers, text or booleans"
        raise ValueError(f"{rule}, found {type(wrong).__name__} {wrong}: turn it into one of them, or drop it")
    return np.array(values, dtype=object)


def _pairs(series: pd.Series) -> Iterable[tuple[Any, bool]]:
    return zip(series.tolist(), series.isna().tolist(), strict=True)


def _without(column: Column, absent: frozenset[str]) -> Column:
    if column.dtype != object:
        return column
    return np.array([None if value in absent else value for value in column.tolist()], dtype=object)


def _taken(column: Column, absent: frozenset[str]) -> dict[str, int]:
    """{word that stands for "not given": rows}, empty entries left out."""
    words = absent - {""}
    return dict(Counter(value for value in column.tolist() if value in words)) if column.dtype == object else {}
