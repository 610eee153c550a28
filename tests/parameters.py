"""Which combinations of parameters every test run meets, and which only `make slow`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import pytest


def covering(*axes: Iterable[Any]) -> list[Any]:
    """All combinations as parameters of a test; slow but for a part in which any two values of two axes meet."""
    combinations = list(itertools.product(*(list(enumerate(axis)) for axis in axes)))
    pairs = [_pairs([place for place, _ in combination]) for combination in combinations]
    missing, chosen = set().union(*pairs), set()
    while missing:
        best = max(range(len(pairs)), key=lambda number: len(pairs[number] & missing))
        missing -= pairs[best]
        chosen.add(best)
    return [
        _param([value for _, value in combination], number in chosen) for number, combination in enumerate(combinations)
    ]


def _pairs(places: Sequence[int]) -> set[Any]:
    """Which value of which axis stands beside which of which."""
    return set(itertools.combinations(enumerate(places), 2))


def in_turn(
    methods: Iterable[Any], others: Sequence[Any], sort: Callable[[Any], Hashable] = lambda method: None
) -> list[Any]:
    """All pairs as parameters of a test; slow but for a part: each method with one of the others in turn, and one
    method of every sort with each of them.
    """
    met: set[Any] = set()
    found = []
    for number, method in enumerate(methods):
        for place, other in enumerate(others):
            key = (sort(method), place)
            found.append(_param([method, other], key not in met or place == number % len(others)))
            met.add(key)
    return found


def _param(values: Sequence[Any], default: bool) -> Any:
    return pytest.param(*values, marks=() if default else pytest.mark.slow)
