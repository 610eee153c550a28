"""Rows of a table to train, validation and test."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from polytask.data.sheet import Sheet
from polytask.errors import nearest

logger = logging.getLogger("polytask")

PARTS = ("train", "validation", "test")
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row numbers of the three parts, each ascending."""


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Raises `ValueError` unless these are three numbers above 0 that sum to 1."""
    if len(fractions) != 3 or not all(0 < f < 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"`fractions` must be three numbers above 0 that sum to 1, found {list(fractions)}")
    return fractions[0], fractions[1], fractions[2]


def by_column(sheet: Sheet, name: str) -> Rows:
    """Parts as a column says: ``train``, ``validation`` or ``test``.

    Raises:
        ValueError: another entry, or a part without rows.
    """
    words = sheet.text(name)
    for row, word in enumerate(words.tolist()):
        if word not in PARTS:
            found = f"{'nothing' if word is None else repr(word)} in {sheet.where(row)}"
            raise sheet.error(
                f"split column `{name}` must hold train, validation or test, found {found}: {nearest(str(word), PARTS)}"
            )
    parts = [np.flatnonzero(words == part) for part in PARTS]
    for part, rows in zip(PARTS, parts, strict=True):
        if not len(rows):
            raise sheet.error(f"split column `{name}` must have rows for train, validation and test, found no {part}")
    return parts[0], parts[1], parts[2]


def check_groups(sheet: Sheet, group: str, parts: Rows) -> None:
    """Raises `ValueError` if rows of one group are in two parts, or a row has none."""
    ids = _groups(sheet, group)
    home: dict[str, str] = {}
    for part, rows in zip(PARTS, parts, strict=True):
        for value in dict.fromkeys(ids[rows].tolist()):
            if home.setdefault(value, part) != part:
                raise sheet.error(
                    f"no group of `{group}` may be in two parts, found {value!r} in {home[value]} and {part}: what is "
                    "learned about it in training would be tested"
                )


def by_group(sheet: Sheet, group: str, fractions: Sequence[float], seed: int) -> Rows:
    """Random parts in which no group is divided; fractions are those of the groups.

    Raises:
        ValueError: a row without a group, or too few groups.
    """
    ids = _groups(sheet, group)
    names = np.array(sorted(set(ids.tolist())), dtype=object)
    chosen = _drawn(sheet, np.arange(len(names)), None, fractions, seed, f"groups of `{group}`")
    number = {name: index for index, name in enumerate(names.tolist())}
    found = np.array([number[value] for value in ids.tolist()])
    parts = [np.flatnonzero(np.isin(found, part)) for part in chosen]
    return parts[0], parts[1], parts[2]


def _groups(sheet: Sheet, group: str) -> np.ndarray:
    """Every row's group (N,), of str."""
    ids = sheet.categories(group)
    absent = [row for row, value in enumerate(ids.tolist()) if value is None]
    if absent:
        raise sheet.error(f"group column `{group}` must name every row's group, found none in {sheet.where(absent[0])}")
    return ids


def by_fraction(sheet: Sheet, strata: Sequence[np.ndarray], fractions: Sequence[float], seed: int) -> Rows:
    """Random parts, stratified by all `strata` together where they have the rows for it, else by the first that has.

    A stratum, such as a class, that training would have none of gives it one of its rows. The order of `strata` and
    the numbers of their classes matter.

    Args:
        sheet: the table.
        strata: for each target, the class of every row as a number (N,).
        fractions: of train, validation and test.
        seed: of the draw.

    Raises:
        ValueError: too few rows.
    """
    joint = np.unique(np.column_stack(strata), axis=0, return_inverse=True)[1].ravel() if len(strata) > 1 else None
    candidates = [*([] if joint is None else [joint]), *strata]
    held = min(_sizes(sheet, sheet.rows, fractions, "rows"))
    keys = next((keys for keys in candidates if _divisible(keys, held, min(fractions))), None)
    return _with_all_classes(_drawn(sheet, np.arange(sheet.rows), keys, fractions, seed, "rows"), strata)


def _drawn(
    sheet: Sheet, items: np.ndarray, keys: np.ndarray | None, fractions: Sequence[float], seed: int, what: str
) -> Rows:
    from sklearn.model_selection import train_test_split

    _, validation, test = _sizes(sheet, len(items), fractions, what)
    rest, last = train_test_split(items, test_size=test, stratify=keys, random_state=seed)
    kept = None if keys is None else keys[rest]
    first, second = train_test_split(rest, test_size=validation, stratify=kept, random_state=seed)
    return np.sort(first), np.sort(second), np.sort(last)


def _divisible(keys: np.ndarray, held: int, smallest: float) -> bool:
    """Whether every stratum has a row for every part, and every part room for every stratum."""
    counts = np.unique(keys, return_counts=True)[1]
    return bool(counts.min() * smallest >= 1 and len(counts) <= held)


def _sizes(sheet: Sheet, count: int, fractions: Sequence[float], what: str) -> tuple[int, int, int]:
    validation, test = (round(count * fraction) for fraction in fractions[1:])
    if min(count - validation - test, validation, test) < 1:
        shown = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise sheet.error(f"there must be {what} for train, validation and test, found {count} for fractions {shown}")
    return count - validation - test, validation, test


def _with_all_classes(parts: Rows, strata: Sequence[np.ndarray]) -> Rows:
    train, *held = (set(part.tolist()) for part in parts)
    for keys in strata:
        for key in sorted(set(np.unique(keys).tolist()) - set(keys[sorted(train)].tolist())):
            row = int(np.flatnonzero(keys == key)[0])
            train.add(row)
            for part in held:
                part.discard(row)
    found = [np.array(sorted(part), dtype=np.int64) for part in (train, *held)]
    return found[0], found[1], found[2]
