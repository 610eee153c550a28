"""Task schedules that draw: from their seed and the step, and from nothing else."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from polytask.errors import whole
from polytask.schedules.base import Schedule
from polytask.schedules.task_schedule import TaskSchedule

_BLOCK = 256
"""Steps whose numbers are drawn at once: a generator for each would cost as much as a small network's step."""


class Drawing(TaskSchedule):
    """A task schedule that draws the tasks of a step.

    The draws of a step belong to the kind of schedule, the seed and the step's number alone: runs resume exactly, all
    processes agree, and nested schedules of one seed do not draw alike.

    Args:
        inner: the schedule to restrict; `Joint` if None.
        seed: of the draws, at least 0.
    """

    def __init__(self, inner: Schedule | None, seed: int) -> None:
        super().__init__(inner)
        whole("seed", seed, 0)
        self.seed = seed
        self._drawn: tuple[tuple[int, ...], list[list[float]]] = ((), [])

    def one(self, probabilities: Mapping[str, float], step: int) -> list[str]:
        """One of the names, each with its probability; they add up to 1."""
        return [pick(probabilities, *self._draws(1, step))]

    def each(self, probabilities: Mapping[str, float], step: int) -> list[str]:
        """Every name by itself with its probability, so one of at least 1 always and one of at most 0 never.

        What one task draws does not depend on which others may take part.
        """
        drawn = dict(zip(self.tasks, self._draws(len(self.tasks), step), strict=True))
        return [name for name, probability in probabilities.items() if drawn[name] < probability]

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def _draws(self, count: int, step: int) -> list[float]:
        """`count` independent numbers in [0, 1)."""
        block, place = divmod(step, _BLOCK)
        key = (count, self.seed, block)
        if self._drawn[0] != key:
            kind = zlib.crc32(type(self).__name__.encode())
            stream = np.random.PCG64(np.random.SeedSequence([self.seed, kind, count, block]))
            words = stream.random_raw(_BLOCK * count).reshape(_BLOCK, count)
            self._drawn = (key, ((words >> np.uint64(11)) * 2.0**-53).tolist())
        return self._drawn[1][place]


def shares(powers: Mapping[str, float]) -> dict[str, float]:
    """Probabilities in proportion to some numbers, at least 0 and not all 0.

    >>> shares({"a": 1.0, "b": 3.0})
    {'a': 0.25, 'b': 0.75}
    """
    total = math.fsum(powers.values())
    return {name: power / total for name, power in powers.items()}


def pick(probabilities: Mapping[str, float], number: float) -> str:
    """The name that `number`, uniform in [0, 1), draws: each with its probability, those with 0 never.

    >>> [pick({"a": 0.25, "b": 0.0, "c": 0.75}, number) for number in (0.2, 0.25, 0.999)]
    ['a', 'c', 'c']
    """
    possible = [name for name, probability in probabilities.items() if probability > 0]
    reached = 0.0
    for name in possible[:-1]:
        reached += probabilities[name]
        if number < reached:
            return name
    return possible[-1]
