"""How polytask words a refusal: the rule first, then the value that broke it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Real


def nearest(word: str, known: Iterable[str]) -> str:
    """Names the closest known word, or lists the known ones: the tail of an "unknown name" message.

    >>> nearest("epoch", ["epochs", "batch_size"])
    'did you mean `epochs`?'
    >>> nearest("zzz", ["epochs", "batch_size"])
    'known: `batch_size`, `epochs`'
    >>> nearest("mgda", ["MGDA", "UPGrad"])
    'did you mean `MGDA`?'
    """
    words = sorted(known)
    alike = {w.lower(): w for w in words}
    close = difflib.get_close_matches(word, words, n=1)
    close = close or [alike[w] for w in difflib.get_close_matches(word.lower(), alike, n=1)]
    if close:
        return f"did you mean `{close[0]}`?"
    return "known: " + (", ".join(f"`{w}`" for w in words) or "none")


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "epoch"), plural(0, "epoch")
    ('1 epoch', '0 epochs')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


WORDED = (ValueError, TypeError, OSError, ImportError)
"""Kinds of errors whose message tells what was wrong; those of other kinds are told after their kind's name."""


def in_words(error: BaseException) -> str:
    """An error as one line.

    >>> in_words(ValueError("`epochs` must be at least 1, found 0"))
    '`epochs` must be at least 1, found 0'
    >>> in_words(KeyError("digit"))
    "KeyError: 'digit'"
    """
    text, kind = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, WORDED) and text:
        return text
    return f"{kind}: {text}" if text else kind


def number(name: str, value: object) -> None:
    """Raises `TypeError` unless `value` is a real number.

    >>> number("beta", "high")
    Traceback (most recent call last):
    TypeError: `beta` must be a number, found 'high'
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, found {value!r}")


def at_least(name: str, value: float, minimum: float) -> None:
    """Raises `TypeError` unless `value` is a number, `ValueError` unless `value >= minimum`.

    >>> at_least("epochs", 0, 1)
    Traceback (most recent call last):
    ValueError: `epochs` must be at least 1, found 0
    """
    number(name, value)
    if not value >= minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, found {value}")


def whole(name: str, value: int, minimum: int) -> None:
    """Raises `TypeError` unless `value` is a whole number, `ValueError` unless it is at least `minimum`.

    >>> whole("epochs", 2.5, 1)
    Traceback (most recent call last):
    TypeError: `epochs` must be a whole number, found 2.5
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number, found {value!r}")
    at_least(name, value, minimum)


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raises `ValueError` unless `value` is one of `allowed`."""
    options = list(allowed)
    if value not in options:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, options))}, found {value!r}")
