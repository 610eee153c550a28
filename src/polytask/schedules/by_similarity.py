"""Tasks by their similarity to a primary one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from polytask.errors import nearest, one_of
from polytask.schedules.base import Schedule
from polytask.schedules.drawing import Drawing, shares
from polytask.schedules.task_schedule import check_names

_MEASURED = {
    "gradients": (
        "cosine",
        "add the callback `GradientCosines`; if it is there, no step that it looked at held targets of both tasks, for "
        "which use `Zip`, or `accumulate` at least the number of sources",
    ),
    "predictions": (
        "correlation",
        "add the callback `PredictionCorrelation`; if it is there, its `primary` must be None or one of both tasks",
    ),
}
"""How similarity may be measured: the first part of the columns, and what to do where they are missing."""


@final
class BySimilarity(Drawing):
    r"""The more similar a task is to the primary task, the more often it is trained.

    With s_k in [−1, 1] the similarity of task k to the primary task, whose own is 1, there are two ways to choose:

    - without a temperature the primary task takes part in every step, and each other task, independently,
      with probability max(0, s_k). Under the plain sum of losses the expected gradient of the shared block is
      g_primary + Σ_k max(0, s_k) g_k: with cosines of gradients, that of the weighted version of Du et al. 2018,
      *Adapting Auxiliary Losses Using Gradient Similarity*,
      `arXiv:1812.02224 <https://arxiv.org/abs/1812.02224>`_. There the cosine is that of each step and multiplies the
      gradient; here it is that of the last epoch and decides whether the task takes part, which saves its passes.
    - with a temperature T one task takes part in each step, drawn with p_k ∝ exp(s_k / T), the primary task among
      them: T → 0 trains the primary task alone, T → ∞ all alike. No task is shut out, however dissimilar.

    Crawshaw 2020 (`arXiv:2009.09796 <https://arxiv.org/abs/2009.09796>`_) surveys the scheduling of tasks.

    Similarity is given, or measured at the end of every epoch by a callback, whose last figures count: the cosine of
    the gradients on the shared block (``"gradients"``, `GradientCosines`, columns ``cosine/<a>/<b>``) tells
    whether a step for one helps the other, and is negative where it harms; the correlation of predictions
    (``"predictions"``, `PredictionCorrelation`, columns ``correlation/<a>/<b>``) tells how much their answers have in
    common, and is never negative. Before the first measurement every similarity counts as 1, and a figure
    that is not a number (where a gradient vanishes or predictions are constant) leaves the one before. So does an
    epoch in which the shared block rests, which has no cosines.

    Where the inner schedule keeps the primary task out, a step may choose no task and makes no update. With several
    sources use a mixture from `polytask.data` instead; see `TaskSchedule`.

    Args:
        primary: the task that the others should help.
        similarity: ``"gradients"``, ``"predictions"``, or {task: s_k} of every other task, in [−1, 1].
        temperature: T, above 0; None for the first way.
        seed: of the draws, which depend on it, the step and the similarities alone; at least 0.
        inner: which blocks move; `Joint` if None.

    Raises:
        ValueError: a number out of range, an unknown way to measure; at the start of a fit a name that is no
            task's, a task without a similarity, or one that is known never to be in a step with the primary task,
            where `GradientCosines` is to measure; at the end of an epoch no column with the measured one, where it is
            of predictions or the shared block moved.

    >>> schedule = BySimilarity("digit", {"parity": 0.5, "colour": -0.25})
    >>> schedule.setup(["digit", "parity", "colour"])
    >>> schedule.probabilities()
    {'digit': 1.0, 'parity': 0.5, 'colour': 0.0}
    >>> [sorted(schedule.updates(0, step)[0].objectives) for step in range(3)]
    [['digit'], ['digit', 'parity'], ['digit']]
    """

    def __init__(
        self,
        primary: str,
        similarity: Mapping[str, float] | str = "gradients",
        temperature: float | None = None,
        *,
        seed: int = 0,
        inner: Schedule | None = None,
    ) -> None:
        super().__init__(inner, seed)
        if isinstance(similarity, str):
            one_of("similarity", similarity, _MEASURED)
        else:
            _check_given(primary, similarity)
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0 and finite, found {temperature}")
        self.primary = primary
        self.similarity = similarity if isinstance(similarity, str) else dict(similarity)
        self.temperature = temperature
        self._similarities: dict[str, float] = {}

    def setup(
        self,
        tasks: Sequence[str],
        counts: Mapping[str, int] | None = None,
        terms: Mapping[str, str | None] | None = None,
    ) -> None:
        super().setup(tasks, counts, terms)
        if self.primary not in tasks:
            raise ValueError(f"`primary` must be a task, found `{self.primary}`: {nearest(self.primary, tasks)}")
        given: dict[str, float] = {}
        if not isinstance(self.similarity, str):
            given = self.similarity
            check_names("`similarity`", given, [name for name in tasks if name != self.primary])
        self._similarities = {name: given.get(name, 1.0) for name in tasks}

    def probabilities(self, tasks: Sequence[str] | None = None) -> dict[str, float]:
        """With which each of `tasks` takes part in a step where these may; all tasks if None."""
        values = {name: self._similarities[name] for name in (self.tasks if tasks is None else tasks)}
        if self.temperature is None:
            return {name: min(max(value, 0.0), 1.0) for name, value in values.items()}
        largest = max(values.values())
        return shares({name: math.exp((value - largest) / self.temperature) for name, value in values.items()})

    def choose(self, tasks: Sequence[str], epoch: int, step: int) -> list[str]:
        draw = self.each if self.temperature is None else self.one
        return draw(self.probabilities(tasks), step)

    def compares(self) -> list[tuple[str, str]]:
        own = self._pairs() if self.similarity == "gradients" else []
        return list(dict.fromkeys([*own, *super().compares()]))

    def _pairs(self) -> list[tuple[str, str]]:
        """The primary task with each other one, both in the order of the tasks."""
        place = self.tasks.index(self.primary)
        return [
            (name, self.primary) if other < place else (self.primary, name)
            for other, name in enumerate(self.tasks)
            if other != place
        ]

    def observe(self, row: Mapping[str, Any]) -> None:
        super().observe(row)
        if not isinstance(self.similarity, str):
            return
        kind, hint = _MEASURED[self.similarity]
        for one, other in self._pairs():
            name = other if one == self.primary else one
            column = f"{kind}/{one}/{other}"
            if column not in row:
                if self.similarity == "gradients" and not self.moves_shared(row["epoch"] - 1):
                    continue
                raise ValueError(
                    f"`BySimilarity` needs the column `{column}` at the end of every epoch, found none: {hint}"
                )
            if math.isfinite(row[column]):
                self._similarities[name] = float(row[column])

    def label(self, epoch: int) -> str:
        return "tasks by similarity"

    def settings(self) -> dict[str, Any]:
        own = {"primary": self.primary, "similarity": self.similarity, "temperature": self.temperature}
        return own | super().settings()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"similarities": dict(self._similarities)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._similarities = dict(state["similarities"])


def _check_given(primary: str, similarity: Mapping[str, float]) -> None:
    if primary in similarity:
        raise ValueError(f"`similarity` must name the other tasks, found the primary one, `{primary}`")
    for name, value in similarity.items():
        if not -1 <= value <= 1:
            raise ValueError(f"`similarity` must lie between -1 and 1, found {value} for `{name}`")
