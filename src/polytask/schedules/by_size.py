"""Tasks by their number of examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.schedules.base import Schedule
from polytask.schedules.drawing import Drawing, shares
from polytask.schedules.task_schedule import check_names


@final
class BySize(Drawing):
    r"""One task a step, drawn by its number of examples: p ∝ n^alpha.

    p_k = n_k^α / Σ_j n_j^α over the tasks j that the inner schedule lets take part in the step. α = 1 is proportional
    sampling, as in Sanh et al. 2019 (`arXiv:1811.06031 <https://arxiv.org/abs/1811.06031>`_), α = 0 draws all
    tasks alike, and values between keep large tasks from drowning small ones, as in Stickland and Murray 2019,
    *BERT and PALs*, `arXiv:1902.02671 <https://arxiv.org/abs/1902.02671>`_. There α is annealed towards 0 and each
    task has batches of its own; here α is fixed, and a step looks at the drawn task's targets in the batch that the
    source serves, where examples without one do not count.

    With several sources, of which a step may lack the drawn task, use a mixture from `polytask.data` instead: it
    draws the source; see `TaskSchedule`.

    Args:
        alpha: α, at least 0.
        sizes: {task: n_k}, above 0, of every task; None takes the number of targets in the training data.
        seed: of the draws, which depend on it and on the step alone; at least 0.
        inner: which blocks move; `Joint` if None.

    Raises:
        ValueError: a number out of range; at the start of a fit a name that is no task's, a task without a size, or
            no sizes and a source that cannot tell them.

    >>> schedule = BySize(alpha=0.5)
    >>> schedule.setup(["digit", "circle"], {"digit": 900, "circle": 100})
    >>> schedule.probabilities()
    {'digit': 0.75, 'circle': 0.25}
    >>> [sorted(schedule.updates(0, step)[0].objectives) for step in range(3)]
    [['digit'], ['circle'], ['digit']]
    """

    def __init__(
        self,
        alpha: float = 1.0,
        sizes: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        inner: Schedule | None = None,
    ) -> None:
        super().__init__(inner, seed)
        if not 0 <= alpha < math.inf:
            raise ValueError(f"`alpha` must be at least 0 and finite, found {alpha}")
        for name, size in (sizes or {}).items():
            if not 0 < size < math.inf:
                raise ValueError(f"`sizes` must be above 0 and finite, found {size} for `{name}`")
        self.alpha = alpha
        self.sizes = None if sizes is None else dict(sizes)
        self._sizes: dict[str, float] = {}

    def setup(
        self,
        tasks: Sequence[str],
        counts: Mapping[str, int] | None = None,
        terms: Mapping[str, str | None] | None = None,
    ) -> None:
        super().setup(tasks, counts, terms)
        if self.sizes is not None:
            check_names("`sizes`", self.sizes, tasks)
        elif counts is None:
            raise ValueError(
                "`BySize` needs the sizes of the tasks, found a source that cannot tell them: give `sizes`"
            )
        given: Mapping[str, float] = (counts or {}) if self.sizes is None else self.sizes
        self._sizes = {name: float(given[name]) for name in tasks}

    def probabilities(self, tasks: Sequence[str] | None = None) -> dict[str, float]:
        """With which each of `tasks` is drawn where these may take part; all tasks if None."""
        names = self.tasks if tasks is None else tasks
        largest = max(self._sizes[name] for name in names)  # whose power is 1, however large alpha
        return shares({name: (self._sizes[name] / largest) ** self.alpha for name in names})

    def choose(self, tasks: Sequence[str], epoch: int, step: int) -> list[str]:
        return self.one(self.probabilities(tasks), step)

    def label(self, epoch: int) -> str:
        return "tasks by size"

    def settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "sizes": self.sizes} | super().settings()
