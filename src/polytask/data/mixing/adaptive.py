"""Sources drawn more often the further their tasks are behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch

from polytask.data.mixing.sampled import Sampled
from polytask.data.mixing.temperature import positive
from polytask.errors import nearest
from polytask.metrics import Metric
from polytask.task import Task


@final
class Adaptive(Sampled):
    """Draws sources more often whose tasks do worse on the validation data than they could, epoch by epoch.

    After *Adaptive Scheduling for Multi-Task Learning*, `Jean, Firat and Johnson 2019
    <https://arxiv.org/abs/1909.06434>`_, whose explicit schedules over-sample tasks with poor results in relation to a
    baseline. With s the task's validation metric and b what it could be,

        q = min(1, s / b), or min(1, b / s) where less is better
        w = (1 + floor) / (q^exponent + floor)

    so that a task which is as good as it could be weighs 1 and one that is useless about 1 / floor. A source weighs the
    mean over its tasks, w_k. After every epoch its weight v_k, 1 at first, makes a step towards that: v_k becomes
    v_k + step (w_k - v_k), and the next epoch draws with p_k ∝ n_k^(1/T) v_k, n_k the number of examples.

    b is the task's entry in `baselines`, such as the metric of a network of its own; without `baselines` it is the best
    value so far, and w then tells how far the task has fallen behind since. Where b or s does not allow the ratio, as a
    score below 0 does not, q is 1 if s is at least as good as b, and else 0. A metric that is not a number changes
    nothing.

    An epoch has as many steps as one pass over every source, or `steps`, whatever the weights.

    Args:
        sources, seed, batch_size: see `polytask.data.Mixture`.
        baselines: {task: its metric on validation data}, above 0, for every task; None for the best so far.
        exponent: how strongly what is missing counts, above 0.
        floor: what bounds the weights, above 0.
        step: how far a weight moves towards its new value, above 0 and at most 1.
        T: temperature, above 0.
        steps: steps of an epoch, at least 1; None for those of one pass over every source.

    Raises:
        ValueError: a number is out of its range, a baseline is missing or names no task, a source does not tell how
            many targets of which tasks it has, or there are no validation data; see `polytask.data.Mixture` for the
            others.

    >>> import torch
    >>> part = lambda task, n: (torch.zeros(n, 2), {task: torch.zeros(n)})
    >>> source = Adaptive({"reviews": part("opinion", 9), "tickets": part("urgent", 3)}, batch_size=3)
    >>> {name: round(rate, 6) for name, rate in source.rates(0).items()}
    {'reviews': 0.75, 'tickets': 0.25}
    """

    def __init__(
        self,
        sources: Mapping[str, Any] | None = None,
        baselines: Mapping[str, float] | None = None,
        *,
        exponent: float = 16.0,
        floor: float = 0.05,
        step: float = 1.0,
        T: float = 1.0,
        steps: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(sources, steps=steps, seed=seed, batch_size=batch_size)
        self.baselines = dict(baselines) if baselines else None
        for task, value in (baselines or {}).items():
            positive(f"baselines.{task}", value)
        self.exponent = positive("exponent", exponent)
        self.floor = positive("floor", floor)
        self.step = positive("step", step)
        if step > 1:
            raise ValueError(f"`step` must be at most 1, found {step}")
        self.T = positive("T", T)

    def _forget(self) -> None:
        super()._forget()
        self._weights = [[1.0] * len(self.sources)]  # of each epoch so far
        self._best: dict[str, float] = {}

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        super().bind(tasks, device, where, seed)
        self._tasks = [self._brought(name, source.label_counts(), where) for name, source in self.sources.items()]
        self._metrics: dict[str, Metric] = {name: tasks[name].metric for names in self._tasks for name in names}
        self.monitored = tuple(self._column(task) for task in self._metrics)
        self._check_baselines({} if self.baselines is None else self.baselines)

    def _check_baselines(self, baselines: Mapping[str, float]) -> None:
        for task in baselines:
            if task not in self._metrics:
                hint = nearest(task, self._metrics)
                raise ValueError(f"`baselines` must hold the tasks of the sources only, found `{task}`: {hint}")
        for task in self._metrics if baselines else ():
            if task not in baselines:
                raise ValueError(f"`baselines` must hold every task, found none for `{task}`")

    def _brought(self, name: str, counts: Mapping[str, int] | None, where: str) -> list[str]:
        if counts is None:
            raise ValueError(
                f"{where}: a source of an Adaptive must tell which tasks it has targets of, found none told by "
                f"`{name}`: give it as arrays"
            )
        return [task for task, count in counts.items() if count]

    def _column(self, task: str) -> str:
        return f"validation/{task}/{self._metrics[task].name}"

    def rates(self, epoch: int) -> dict[str, float]:
        weights = torch.tensor(self._weights[min(epoch, len(self._weights) - 1)], dtype=torch.float64)
        return self.named(self.by_size(1 / self.T) + weights.log())

    def observe(self, row: Mapping[str, Any]) -> None:
        super().observe(row)
        aims = self._aims(row)
        epoch, before = int(row["epoch"]), self._weights[-1]  # epochs are counted from 1: this is the next one's number
        self._weights += [before] * (epoch - len(self._weights))
        self._weights.append([v + self.step * (w - v) for v, w in zip(before, self._means(aims, before), strict=True)])
        del self._before[epoch + 1 :]

    def _means(self, aims: Mapping[str, float], before: list[float]) -> list[float]:
        """The weight of each source by its tasks; as before, if none of them was judged."""
        judged = [[aims[task] for task in tasks if task in aims] for tasks in self._tasks]
        return [sum(found) / len(found) if found else v for found, v in zip(judged, before, strict=True)]

    def _aims(self, row: Mapping[str, Any]) -> dict[str, float]:
        """{task: what its metric asks for}, of those that were judged."""
        aims = {}
        for task, metric in self._metrics.items():
            score = row.get(self._column(task), math.nan)
            if math.isnan(score):
                continue
            better = max if metric.direction == "max" else min
            self._best[task] = better(score, self._best.get(task, score))
            goal = self._best[task] if self.baselines is None else self.baselines[task]
            quality = _quality(score, goal, metric.direction)
            aims[task] = (1 + self.floor) / (quality**self.exponent + self.floor)
        return aims

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"weights": [list(w) for w in self._weights], "best": dict(self._best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._weights = [list(w) for w in state["weights"]]
        self._best = dict(state["best"])

    def describe(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("baselines", "exponent", "floor", "step", "T")}
        return super().describe() | settings


def _quality(score: float, goal: float, direction: str) -> float:
    """How much of the goal is reached, 0 to 1."""
    worse, better = (score, goal) if direction == "max" else (goal, score)
    if worse >= better:
        return 1.0
    return worse / better if worse > 0 else 0.0
