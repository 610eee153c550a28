"""What the entries of a table's column look like: numbers, dates, words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Column = np.ndarray
"""Text (object: str, or None where nothing is given), or numbers (float64, NaN where nothing is given)."""

POINT, COMMA = ".", ","
DECIMALS = {POINT: "points", COMMA: "commas"}
"""{what may stand before the decimals of a number: its name}."""
NEARLY_ALL = 0.95
"""A column's text looks like dates, or like numbers written in another way, if this share of its entries does."""

_WHOLE = {mark: re.compile(rf"(-?\d+)\{mark}0+") for mark in DECIMALS}
_DIGITS = re.compile(r"\s*[-+]?\d+\s*")
_FRACTION = {mark: re.compile(rf"\s*[-+]?\d*\{mark}\d+([eE][-+]?\d+)?\s*") for mark in DECIMALS}
_GROUPED = re.compile(r"\s*[-+]?\d{1,3}([., ']\d{3})+([.,]\d+)?\s*")

_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = "|".join((
    r"\d{4}(?P<a>[-/.])\d{1,2}(?P=a)\d{1,2}", r"\d{1,2}(?P<b>[-/.])\d{1,2}(?P=b)(\d{4}|\d\d)",
    rf"{_MONTH} \d{{1,2}},? \d{{4}}", rf"\d{{1,2}}[- ]{_MONTH}[- ,]+(\d{{4}}|\d\d)",
))  # fmt: skip
_TIME = r"\d{1,2}:[0-5]\d(:[0-5]\d([.,]\d+)?)?( ?[ap]m)?( ?(Z|UTC|GMT|[-+]\d\d(:?\d\d)?))?"
_DATE = re.compile(rf"\s*(({_DAY})(,?[T ]\s*{_TIME})?|{_TIME})\s*", re.IGNORECASE)
_FIRST_DAY, _LAST_DAY, _FEW_DAYS = 19000101, 21001231, 3


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
        date: if nearly all are dates or times, one of them; else "".
        unread: if nearly all would be numbers, were they written in another way, one that is none; else "".
        grouped: whether `unread` ones may have marks between thousands.
        least: rows of the least frequent entry, 0 if there are none.
        absent: {word that was taken for "not given": rows}, empty entries left out.
    """

    name: str
    given: int
    rows: int
    distinct: int
    numeric: bool
    whole: bool
    counting: bool
    mixed: str
    date: str = ""
    unread: str = ""
    grouped: bool = False
    least: int = 0
    absent: Mapping[str, int] = field(default_factory=dict)


def as_numbers(column: Column, decimal: str = POINT) -> np.ndarray:
    """Entries as float64, NaN where they are missing or no numbers.

    >>> as_numbers(np.array(["3,5", "4", "1.5", None], dtype=object), ",").tolist()
    [3.5, 4.0, nan, nan]
    """
    import pandas as pd

    if column.dtype == object and decimal == COMMA:
        pointed = [None if value is None or POINT in value else value.replace(COMMA, POINT) for value in column]
        column = np.array(pointed, dtype=object)
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def is_given(column: Column) -> np.ndarray:
    """Which entries are not missing."""
    import pandas as pd

    return np.asarray(~pd.isna(column))


def plain_whole(value: str, decimal: str = POINT) -> str:
    """A whole number without its ``.0``, other text as it is.

    >>> plain_whole("1.0"), plain_whole("1.5"), plain_whole("1,0", ",")
    ('1', '1.5', '1')
    """
    whole = _WHOLE[decimal].fullmatch(value)
    return whole[1] if whole else value


def other_decimal(decimal: str) -> str:
    """The decimal mark that is not this one."""
    return COMMA if decimal == POINT else POINT


def is_fraction(entry: str, decimal: str) -> bool:
    """Whether text is a number with decimals after that mark."""
    return _FRACTION[decimal].fullmatch(entry) is not None


def is_grouped(entry: str) -> bool:
    """Whether text may be a number with marks between thousands."""
    return _GROUPED.fullmatch(entry) is not None


def frequencies(column: Column) -> Counter[str]:
    """{entry: rows}, missing ones left out."""
    return Counter(column[is_given(column)].tolist())


def a_date(entries: Mapping[str, int]) -> str:
    """If nearly all entries of text {entry: rows} are dates or times, one of them; else "".

    >>> a_date({"2024-01-31": 2, "2024-02-01 12:30": 1}), a_date({"2024": 2, "31 Jan 2024": 1})
    ('2024-01-31', '')
    """
    return _one_of_nearly_all(entries, {entry for entry in entries if _DATE.fullmatch(entry)})


def are_days(values: np.ndarray) -> bool:
    """Whether whole numbers (N,) are all days written as 20240131."""
    if len(values) < _FEW_DAYS or values.min() < _FIRST_DAY or values.max() > _LAST_DAY:
        return False
    month, day = values // 100 % 100, values % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def an_unread(entries: Mapping[str, int], decimal: str) -> tuple[str, bool]:
    """If nearly all entries of text are numbers, written in another way: one that is not read, and if it is grouped.

    >>> an_unread({"3,5": 2, "4": 1}, "."), an_unread({"1,234": 2, "900": 1}, "."), an_unread({"3,5": 1, "a": 1}, ".")
    (('3,5', False), ('1,234', True), ('', False))
    """
    other = other_decimal(decimal)
    odd = {entry for entry in entries if is_fraction(entry, other) or is_grouped(entry)}
    plain = {entry for entry in entries if _DIGITS.fullmatch(entry)}
    example = _one_of_nearly_all(entries, odd | plain) and next((entry for entry in entries if entry in odd), "")
    grouped = bool(example) and (
        all(is_grouped(entry) for entry in odd) or not all(is_fraction(entry, other) for entry in odd)
    )
    return example, grouped


def _one_of_nearly_all(entries: Mapping[str, int], found: set[str]) -> str:
    if not found or sum(entries[entry] for entry in found) < NEARLY_ALL * sum(entries.values()):
        return ""
    return next(entry for entry in entries if entry in found)
