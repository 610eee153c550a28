"""Figures of tasks, what seeds say of them, and when two of them differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

SEEDS_FOR_A_VERDICT = 3
"""Fewer seeds than this give no spread worth trusting, so no method is called better or worse."""

Values = Mapping[int, Mapping[str, float]]
"""{seed: {figure's key: value}} of one method."""


@dataclass(frozen=True)
class Figure:
    """One figure of one task.

    Attributes:
        task: the task's name.
        name: ``loss`` or the metric's name.
        higher_is_better: its direction.
    """

    task: str
    name: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """Its key in a record's metrics."""
        return f"{self.task}/{self.name}"

    @property
    def direction(self) -> str:
        """In words."""
        return "higher is better" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: None if there is nothing to show; `reason` then says why.
        spread: sample standard deviation (n − 1) over seeds; None below two seeds.
        count: seeds, or pairs of seeds, that entered.
        reason: why `mean` or `spread` is missing.
        verdict: ``better`` or ``worse`` where the difference exceeds the spread, "" where it does not.
    """

    mean: float | None = None
    spread: float | None = None
    count: int = 0
    reason: str = ""
    verdict: str = ""

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """The mean and sample standard deviation; nothing if a value is not finite.

        >>> Estimate.of([1.0, 3.0]).mean, round(Estimate.of([1.0, 3.0]).spread, 3)
        (2.0, 1.414)
        """
        numbers = list(values)
        if not numbers:
            return cls(reason="no figures")
        wrong = sum(not math.isfinite(v) for v in numbers)
        if wrong:
            # leaving them out would make a method that diverges look as good as one that does not
            return cls(count=len(numbers), reason=f"not finite in {wrong} of {len(numbers)} runs")
        return cls(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))

    def shown(self, digits: int, nothing: str = "–") -> str:
        """As text: two figures of the spread and the mean as far; so many figures of the mean where there is none.

        >>> Estimate(0.27312, 0.0704, 3).shown(4), Estimate(0.27312).shown(3), Estimate(2.5, 0.0, 2).shown(3)
        ('0.273 ± 0.070', '0.273', '2.5 ± 0')
        """
        if self.mean is None:
            return nothing
        if not self.spread:
            return f"{self.mean:.{digits}g}" + (" ± 0" if self.spread == 0 else "")
        places = max(1 - math.floor(math.log10(self.spread)), 0)
        return f"{self.mean:.{places}f} ± {self.spread:.{places}f}"

    def judged(self, verdict: str) -> Estimate:
        """The same with a verdict."""
        return Estimate(self.mean, self.spread, self.count, self.reason, verdict)


def compare(one: Estimate, other: Estimate, higher_is_better: bool) -> str:
    """``better`` or ``worse``, or "" if the means differ by no more than √(s² + s'²) or seeds are too few."""
    if one.mean is None or other.mean is None or min(one.count, other.count) < SEEDS_FOR_A_VERDICT:
        return ""
    difference = one.mean - other.mean
    if abs(difference) <= math.hypot(one.spread or 0.0, other.spread or 0.0):
        return ""
    return "better" if (difference > 0) == higher_is_better else "worse"


def finite(value: float | None) -> bool:
    """Whether there is such a figure, and it is a number."""
    return value is not None and math.isfinite(value)
