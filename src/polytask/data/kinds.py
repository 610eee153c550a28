"""What the columns of a table are, guessed from their entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from polytask.data.encoding import CATEGORICAL, INPUT_KINDS, NUMERIC
from polytask.data.entries import DECIMALS, Profile, other_decimal
from polytask.data.sheet import Sheet

BINARY, CLASSIFICATION, REGRESSION = "binary", "classification", "regression"
TARGET_KINDS = (BINARY, CLASSIFICATION, REGRESSION)
FEW_CLASSES = 20
"""Whole numbers of at most so many values are taken for classes."""
MANY_CLASSES, FEW_ROWS = 50, 20
"""A target of more classes, or with fewer rows for each on average if it has more than `FEW_CLASSES`, is told."""
RARE_CLASS = 7
"""A class of fewer rows is told: 15 % of them is less than one."""
FREE_TEXT = 0.5
"""Above this share of different entries, a column of text is an id or free text."""
FEW_ENTRIES = 20
"""With no more different entries than this, a column is not taken for free text, unless all of them differ."""


@dataclass(frozen=True)
class Guess:
    """What a column was taken for.

    Attributes:
        kind: a kind of input, None if the column is left out.
        reason: why it is left out, "" if it is not.
        names_rows: whether it is left out because it tells rows apart: an id.
    """

    kind: str | None
    reason: str = ""
    names_rows: bool = False


def guess_inputs(sheet: Sheet, not_inputs: Iterable[str], mixed: bool = False) -> dict[str, Guess]:
    """{column: what it is as an input}, in the file's order.

    Args:
        sheet: the table.
        not_inputs: columns that have another use.
        mixed: whether a column of numbers and text is guessed as text is, rather than refused.

    Raises:
        ValueError: a column mixes numbers and text (unless `mixed`), or no column is left. The reasons are told.
    """
    used = set(not_inputs)
    guesses = {name: _guess_input(sheet, sheet.profile(name), mixed) for name in sheet.columns if name not in used}
    if not any(guess.kind for guess in guesses.values()):
        left = "; ".join(f"`{name}`: {guess.reason}" for name, guess in guesses.items()) or "no other column"
        hint = "" if sheet.form.prefix else ": name them with `inputs`"
        raise sheet.error(f"there must be at least one input column, found none ({left}){hint}")
    return guesses


def _guess_input(sheet: Sheet, found: Profile, mixed: bool) -> Guess:
    if not found.given:
        return Guess(None, "no entries")
    if found.distinct == 1:
        return Guess(None, "only one value")
    if found.counting:
        return Guess(None, "numbers the rows", names_rows=True)
    if found.date:
        return Guess(None, f"dates or times, such as {found.date}: turn them into numbers")
    if found.numeric:
        return Guess(NUMERIC)
    if found.unread:
        return Guess(None, unread(sheet, found))
    if found.mixed and not mixed:
        raise _mixed(sheet, found, " or ".join(INPUT_KINDS))
    if found.mixed and found.distinct > max(FEW_ENTRIES, FREE_TEXT * found.given):
        hint = f"name entries that mean nothing with {sheet.form.setting('missing')}"
        return Guess(None, f"numbers and text, such as {found.mixed}: {hint}")
    if found.distinct == found.given:
        return Guess(None, "all entries differ: an id or free text", names_rows=found.given == found.rows)
    if found.distinct > max(FEW_ENTRIES, FREE_TEXT * found.given):
        return Guess(None, f"{found.distinct:,} different entries in {found.given:,} rows: ids or free text")
    return Guess(CATEGORICAL)


def unread(sheet: Sheet, found: Profile) -> str:
    """What is known of a column of numbers that are not written as the table's numbers are, with what to do."""
    decimal = other_decimal(sheet.form.decimal)
    option = sheet.form.setting("decimal", decimal)
    if not found.grouped:
        return f"numbers with decimal {DECIMALS[decimal]}, such as {found.unread!r}: {option} reads them"
    return (
        f"numbers with marks between thousands, such as {found.unread!r}: write them without, or if they are decimal "
        f"{DECIMALS[decimal]}, {option} reads them"
    )


def guess_targets(sheet: Sheet, names: Iterable[str]) -> dict[str, str]:
    """{column: what kind of target it is}.

    Raises:
        ValueError: a column has nothing to learn, mixes numbers and text, looks like an id or like dates, or has
            numbers that are written in another way.
    """
    return {name: _guess_target(sheet, sheet.profile(name)) for name in names}


def _guess_target(sheet: Sheet, found: Profile) -> str:
    check_target(sheet, found)
    if found.date:
        rule = f"target `{found.name}` must hold classes or numbers"
        raise sheet.error(f"{rule}, found dates or times, such as {found.date}: turn them into numbers")
    if found.unread:
        raise sheet.error(f"target `{found.name}` must hold classes or numbers, found {unread(sheet, found)}")
    if found.mixed:
        raise _mixed(sheet, found, " or ".join((CLASSIFICATION, REGRESSION)))
    if found.distinct == 2:
        return BINARY
    if found.numeric:
        return CLASSIFICATION if found.whole and found.distinct <= FEW_CLASSES else REGRESSION
    if found.distinct > max(FEW_ENTRIES, FREE_TEXT * found.given) or found.distinct == found.given:
        rule = f"target `{found.name}` must have classes that come back or be a number"
        raise sheet.error(f"{rule}, found {found.distinct:,} different entries in {found.given:,} rows: is it an id?")
    return CLASSIFICATION


def odd_classes(found: Profile) -> str:
    """What to tell of a target that has very many classes, or a very rare one; "" if it has not."""
    each = found.given / max(found.distinct, 1)
    if found.distinct > (FEW_CLASSES if each < FEW_ROWS else MANY_CLASSES):
        return f"{found.distinct:,} classes, of {each:.3g} rows each on average and {found.least:,} at least"
    if found.least >= RARE_CLASS:
        return ""
    return f"a class of {found.least} row{'s' * (found.least != 1)} only: not every part may have one"


def check_target(sheet: Sheet, found: Profile) -> None:
    """Raises `ValueError` if a target column has nothing to learn."""
    if found.distinct == 0:
        raise sheet.error(f"target `{found.name}` must have an entry in at least one row, found none")
    if found.distinct == 1:
        raise sheet.error(
            f"target `{found.name}` must have at least two different entries, found one class or number only"
        )


def check_inputs_named(sheet: Sheet, kinds: Mapping[str, str]) -> None:
    """Raises `ValueError` if an input that the user named has nothing to tell, or its kind is unknown."""
    for name in kinds:
        found = sheet.profile(name)
        if found.distinct < 2:
            rule = f"input column `{name}` must have at least two different entries"
            raise sheet.error(
                f"{rule}, found {'none' if not found.distinct else 'one value in all rows'}: leave it out"
            )


def _mixed(sheet: Sheet, found: Profile, kinds: str) -> ValueError:
    which = "" if sheet.form.prefix else f"say which it is, {kinds}, or "
    return sheet.error(
        f"column `{found.name}` must hold numbers or text, found both, such as {found.mixed}: {which}name entries that "
        f"mean nothing with {sheet.form.setting('missing')}"
    )
