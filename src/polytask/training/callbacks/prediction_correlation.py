"""How much the predictions of two tasks have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from polytask.callback import Callback
from polytask.errors import nearest
from polytask.task import Task

if TYPE_CHECKING:
    from polytask.training.run import Run

Judged = dict[str, tuple[Tensor, Tensor]]
"""{task: what it predicts for a batch (B, C), which examples carry its target (B,)}."""


@final
class PredictionCorrelation(Callback):
    r"""Writes the correlation of every two tasks' predictions on the validation data, at the end of every epoch.

    Column ``correlation/<a>/<b>``, a before b in the trainer's order of tasks: the square root of the RV coefficient
    (Robert and Escoufier 1976, `doi:10.2307/2347233 <https://doi.org/10.2307/2347233>`_) of what the tasks
    predict for the n examples that carry targets of both,

    .. math:: \sqrt{\mathrm{RV}} = \|X_a^T X_b\|_F \,/\, \sqrt{\|X_a^T X_a\|_F \, \|X_b^T X_b\|_F} \in [0, 1],

    with the columns of X_k (n, C_k) centred: probabilities of the classes (of the positive one; of each label),
    or regressed numbers. Between two yes/no tasks, or two numbers, it is \|Pearson's r\|. It is the same however
    classes are numbered, which correlations of labels are not, needs no two tasks of a kind, and unlike correlations
    of correctness looks at what is predicted, not at which examples are hard. It is also linear CKA
    (Kornblith et al. 2019, `arXiv:1905.00414 <https://arxiv.org/abs/1905.00414>`_), whose square root this is.
    Being a square root it has no sign; and of n examples that are not many more than C_a + C_b even unrelated
    predictions give figures well above 0. It is NaN where a task predicts the same for all.

    `schedules.BySimilarity` with ``similarity="predictions"`` reads these columns. An epoch costs one more pass over
    the validation data, which several processes share.

    Args:
        primary: the task whose pairs are wanted, as `BySimilarity` has one; None for all pairs.

    Raises:
        ValueError: at the start of a fit, no validation data, an unknown task, or two tasks that share fewer than two
            validation examples because their targets come from different sources; at the end of the first epoch,
            two tasks that share fewer although one source has both.

    >>> PredictionCorrelation(primary="digit").describe()
    {'callback': 'PredictionCorrelation', 'primary': 'digit'}
    """

    def __init__(self, primary: str | None = None) -> None:
        self.primary = primary

    def on_fit_start(self, run: Run) -> None:
        tasks = run.trainer.tasks
        if run.validation is None:
            raise ValueError("`PredictionCorrelation` needs validation data, found none: pass them to `fit`")
        if self.primary is not None and self.primary not in tasks:
            raise ValueError(f"`primary` must be a task, found `{self.primary}`: {nearest(self.primary, tasks)}")
        for one, other in self._pairs(run):
            if (most := _most_common(run, one, other)) is not None and most < 2:
                raise _too_few(one, other, f"at most {most}")

    def _pairs(self, run: Run) -> list[tuple[str, str]]:
        return [pair for pair in combinations(run.trainer.tasks, 2) if self.primary in (None, *pair)]

    def figures(self, run: Run) -> Mapping[str, float]:
        judged = _predictions(run)
        return {
            f"correlation/{one}/{other}": correlation(*_common(judged, one, other)) for one, other in self._pairs(run)
        }


def correlation(one: Tensor, other: Tensor) -> float:
    """The square root of the RV coefficient of two sets of predictions for the same examples, in [0, 1].

    Args:
        one: (n, C).
        other: (n, D).

    Returns:
        NaN where one of them is the same for all examples, or not finite.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> correlation(x, -3 * x + 1)
    1.0
    """
    a, b = (x.double() - x.double().mean(0) for x in (one, other))
    own = math.sqrt(float((a.T @ a).norm()) * float((b.T @ b).norm()))
    if not 0 < own < math.inf:
        return math.nan
    return min(float((a.T @ b).norm()) / own, 1.0)  # rounding apart it is at most 1


def _most_common(run: Run, one: str, other: str) -> int | None:
    """The most validation examples that can carry targets of both, as far as the sources tell; None if they do not."""
    assert run.validation is not None
    counts = [part.label_counts() for part in run.validation.parts.values()]
    if run.validation.divided:  # each rank knows its own examples
        counts = [found for rank in run.ranks.objects(counts) for found in rank]
    most = 0
    for found in counts:
        if found is None:
            return None
        most += min(found.get(one, 0), found.get(other, 0))
    return most


def _too_few(one: str, other: str, found: str) -> ValueError:
    return ValueError(
        "the predictions of two tasks correlate over at least 2 validation examples with targets of both, found "
        f"{found} for `{one}` and `{other}`: give validation data with both, name a `primary` that has some with every "
        "other task, or measure `GradientCosines` instead"
    )


def _common(judged: list[Judged], one: str, other: str) -> tuple[Tensor, Tensor]:
    """Both tasks' predictions for the examples that carry targets of both."""
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in judged:
        if one in batch and other in batch:
            both = batch[one][1] & batch[other][1]
            for kept, name in zip(rows, (one, other), strict=True):
                kept.append(batch[name][0][both])
    count = sum(map(len, rows[0]))
    if count < 2:
        raise _too_few(one, other, str(count))
    return torch.cat(rows[0]), torch.cat(rows[1])


@torch.no_grad()
def _predictions(run: Run) -> list[Judged]:
    """What the network predicts for the validation data, batch by batch, on every rank alike."""
    assert run.validation is not None
    trainer, ranks = run.trainer, run.ranks
    run.freezer.evaluate()
    found: list[tuple[int, Judged]] = []
    for number, batch in enumerate(run.validation.in_order(trainer.evaluation_batch_size)):
        if not run.validation.divided and number % ranks.count != ranks.index:
            continue
        names = [name for name in trainer.tasks if batch.counts.get(name)]
        if not names:
            continue
        with trainer.autocast():
            outputs = run.model(batch.inputs, names, batch.source)
        judged = {n: (_numbers(trainer.tasks[n], outputs[n]), _present(trainer.tasks[n], batch, n)) for n in names}
        found.append((number, judged))
    every = [pair for part in ranks.objects(found) for pair in part]
    return [judged for _, judged in sorted(every, key=lambda pair: pair[0])]


def _numbers(task: Task, outputs: Tensor) -> Tensor:
    prediction = task.predict(outputs)
    numbers = prediction.values if prediction.probabilities is None else prediction.probabilities
    return numbers.reshape(len(outputs), -1).cpu()


def _present(task: Task, batch: Any, name: str) -> Tensor:
    return task.present(batch.targets[name]).cpu()
