"""What the columns of a table are, guessed from their entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from polytask.data.encoding import CATEGORICAL, INPUT_KINDS, NUMERIC
from polytask.data.sheet import Profile, Sheet

BINARY, CLASSIFICATION, REGRESSION = "binary", "classification", "regression"
TARGET_KINDS = (BINARY, CLASSIFICATION, REGRESSION)
FEW_CLASSES = 20
"""Whole numbers of at most so many values are taken for classes."""
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
        ValueError: a column mixes numbers and text (unless `mixed`), or no column is left.
    """
    used = set(not_inputs)
    guesses = {name: _guess_input(sheet, sheet.profile(name), mixed) for name in sheet.columns if name not in used}
    if not any(guess.kind for guess in guesses.values()):
        left = "; ".join(f"`{name}`: {guess.reason}" for name, guess in guesses.items()) or "no other column"
        raise sheet.error(f"there must be at least one input column, found none ({left}): name them with `inputs`")
    return guesses


def _guess_input(sheet: Sheet, found: Profile, mixed: bool) -> Guess:
    if not found.given:
        return Guess(None, "no entries")
    if found.distinct == 1:
        return Guess(None, "only one value")
    if found.counting:
        return Guess(None, "numbers the rows", names_rows=True)
    if found.numeric:
        return Guess(NUMERIC)
    if found.mixed and not mixed:
        raise _mixed(sheet, found, " or ".join(INPUT_KINDS))
    if found.mixed and found.distinct > max(FEW_ENTRIES, FREE_TEXT * found.given):
        return Guess(None, f"numbers and text, such as {found.mixed}: name entries that mean nothing with `missing`")
    if found.distinct == found.given:
        return Guess(None, "all entries differ: an id or free text", names_rows=found.given == found.rows)
    if found.distinct > max(FEW_ENTRIES, FREE_TEXT * found.given):
        return Guess(None, f"{found.distinct:,} different entries in {found.given:,} rows: ids or free text")
    return Guess(CATEGORICAL)


def guess_targets(sheet: Sheet, names: Iterable[str]) -> dict[str, str]:
    """{column: what kind of target it is}.

    Raises:
        ValueError: a column has nothing to learn, mixes numbers and text, or looks like an id.
    """
    return {name: _guess_target(sheet, sheet.profile(name)) for name in names}


def _guess_target(sheet: Sheet, found: Profile) -> str:
    if found.mixed:
        raise _mixed(sheet, found, " or ".join((CLASSIFICATION, REGRESSION)))
    check_target(sheet, found)
    if found.distinct == 2:
        return BINARY
    if found.numeric:
        return CLASSIFICATION if found.whole and found.distinct <= FEW_CLASSES else REGRESSION
    if found.distinct > max(FEW_ENTRIES, FREE_TEXT * found.given) or found.distinct == found.given:
        rule = f"target `{found.name}` must have classes that come back or be a number"
        raise sheet.error(f"{rule}, found {found.distinct:,} different entries in {found.given:,} rows: is it an id?")
    return CLASSIFICATION


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
    return sheet.error(
        f"column `{found.name}` must hold numbers or text, found both, such as {found.mixed}: say which it is, "
        f"{kinds}, or name entries that mean nothing with `missing`"
    )
