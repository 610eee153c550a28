"""Terms that draw a network towards trained ones: on their features (KDMTL) or on their outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from polytask.batch import Batch
from polytask.data.remembered import Remembered
from polytask.data.source import Source
from polytask.distillation.teachers import (
    CACHE_LIMIT,
    answer,
    check_outputs,
    check_taught,
    check_teacher,
    check_temperature,
    concerned,
    digest,
    distance_for,
    frozen,
    outputs_of,
    reading,
)
from polytask.errors import at_least
from polytask.models.base import Model
from polytask.objective import Context, Objective
from polytask.task import Task


class _Distillation(Objective):
    """What both kinds share: a teacher that nothing trains, and checks that it fits.

    The teacher is a copy, in eval mode and out of the reach of optimizers and checkpoints: whoever resumes a run brings
    the same teacher again, and the run's fingerprint is refused if it is another. What it gives for the training
    examples is computed once where their inputs never change, see `polytask.data.Remembered`.
    """

    def __init__(
        self, task: str, teacher: nn.Module, name: str, weight: float, block: str | None, cache_limit: int
    ) -> None:
        super().__init__(name, weight, block)
        check_teacher(task, teacher)
        at_least("cache_limit", cache_limit, 0)
        self.task = task
        self.cache_limit = cache_limit
        # a tuple hides it from torch, which would hand it to optimizers, checkpoints and `train`
        self._teacher = (frozen(teacher),)

    @property
    def teacher(self) -> nn.Module:
        """The frozen copy."""
        return self._teacher[0]

    def bind(self, model: Model, tasks: Mapping[str, Task]) -> None:
        check_taught(self.task, tasks)

    def count(self, batch: Batch) -> int:
        return batch.size if concerned(batch, self.task) else 0

    def serve(self, source: Source) -> Source:
        return Remembered(source, self.name, self._answer, self.cache_limit)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"teacher": digest(self.teacher), "cache_limit": self.cache_limit}

    def _answer(self, batch: Batch) -> Tensor | None:
        return self._ask(batch) if concerned(batch, self.task) else None

    @abstractmethod
    def _ask(self, batch: Batch) -> Tensor:
        """What of the teacher the student is compared with."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


_ONE_TENSOR = "HardSharing and Monitored"
"""Whose shared features are what the trunk gives, commonly (B, D)."""


@final
class FeatureDistillation(_Distillation):
    """One task's term of KDMTL: the shared features, seen through an adaptor, should point where the teacher's do.

    Paper: Li and Bilen, *Knowledge Distillation for Multi-task Learning*,
    `arXiv:2007.06889 <https://arxiv.org/abs/2007.06889>`_.

    With z the student's shared features, A_k an adaptor and t_k the features of a frozen single-task teacher, the term
    is L = mean over examples of ‖ A_k(z)/‖A_k(z)‖ - t_k/‖t_k‖ ‖², in [0, 4]; the training problem is
    Σ_k L_k + Σ_k λ_k · (this term), λ_k being `weight`. Its gradient flows into the trunk; the code of Hotegni et
    al. 2024 detaches the student, so that it trains the adaptors alone. All examples count, labelled for the
    task or not; of several sources only those that have the task. A row of zeros has no direction: it counts as 0 and
    gets no gradient.

    The adaptor is trained with the task's own block: in specific phases of alternate training it learns on resting
    features, in shared phases the trunk learns through the resting adaptor. A step without any label of the task
    trains trunk and adaptor alike; the head, which this term does not reach, rests then. λ_k is chosen, like any
    setting, on validation data.

    Args:
        task: whose teacher it is.
        teacher: a trained `Model` that answers the task (what its head reads are its features), or any
            module from the same inputs to features (B, F). It is copied.
        adaptor: from the student's shared features (B, D) to (B, F), a new module for each task.
        weight: λ_k, above 0.
        shared: train the adaptor with the shared block instead.
        name: of the objective; ``<task>-features`` if None.
        cache_limit: bytes that the teacher's features of all training examples may take; above it, or where inputs
            are augmented, they are computed at every visit. The log says which.

    Raises:
        ValueError: the teacher or the student does not know the task, the student has no feature boundary, or (in
            the first step) the adaptor's output has another shape than the teacher's features.
        TypeError: the teacher or the adaptor is not a module, or the shared features are not one tensor.

    >>> from polytask.models import HardSharing
    >>> teacher = HardSharing(nn.Linear(2, 8), heads={"circle": nn.Linear(8, 1)})  # a trained one
    >>> term = FeatureDistillation("circle", teacher, adaptor=nn.Linear(4, 8), weight=0.5)
    >>> term.name, term.block, len(list(term.parameters()))
    ('circle-features', 'circle', 2)
    """

    def __init__(
        self,
        task: str,
        teacher: nn.Module,
        adaptor: nn.Module,
        weight: float = 1.0,
        shared: bool = False,
        name: str | None = None,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        super().__init__(task, teacher, name or f"{task}-features", weight, None if shared else task, cache_limit)
        if not isinstance(adaptor, nn.Module):
            raise TypeError(f"`adaptor` must be a module, found {type(adaptor).__name__} for task `{task}`")
        if isinstance(teacher, Model) and type(teacher).representation is Model.representation and not teacher.boundary:
            raise ValueError(f"a teacher must tell its features, found {type(teacher).__name__} without a boundary")
        self.adaptor = adaptor

    def bind(self, model: Model, tasks: Mapping[str, Task]) -> None:
        super().bind(model, tasks)
        if not model.boundary:
            raise ValueError(
                f"a student must have a feature boundary, found {type(model).__name__}, which has none: distil its "
                "outputs instead (LogitDistillation)"
            )

    def forward(self, context: Context) -> Tensor:
        if not isinstance(context.features, Tensor):
            found = type(context.features).__name__
            raise TypeError(
                f"the student's shared features must be one tensor, as those of {_ONE_TENSOR} are, found {found} (task "
                f"`{self.task}`): distil the outputs of another architecture (LogitDistillation)"
            )
        wanted = answer(context.batch, self.name, self._answer)
        if wanted is None:
            return _nothing(context)
        with reading("an adaptor", self.task, context.features):
            adapted = self.adaptor(context.features)
        if adapted.shape != wanted.shape:
            shared = tuple(context.features.shape)
            hint = f": it reads {shared}; shared features (B, D) are those of {_ONE_TENSOR}" * (len(shared) > 2)
            raise ValueError(
                f"an adaptor must give what the teacher's features are, {tuple(wanted.shape)}, found "
                f"{tuple(adapted.shape)} for task `{self.task}`{hint}"
            )
        return (_direction(adapted) - _direction(wanted)).square().sum(1).mean()

    def _ask(self, batch: Batch) -> Tensor:
        teacher = self.teacher
        with reading("a teacher", self.task, batch.inputs):
            if not isinstance(teacher, Model):
                return teacher(batch.inputs)
            shared = teacher.features(batch.inputs, batch.source) if teacher.boundary else None
            return teacher.representation(self.task, shared, batch.inputs, batch.source)


@final
class LogitDistillation(_Distillation):
    """The student's outputs for a task should be those of a trained teacher.

    Paper: Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*,
    `arXiv:1503.02531 <https://arxiv.org/abs/1503.02531>`_.

    With outputs s and t of student and teacher and temperature T, the mean over examples of
    T² KL(softmax(t/T) ‖ softmax(s/T)) for classes, of T² KL between Bernoulli distributions, averaged over labels, for
    binary and multi-label tasks, and of (s - t)² for regression, where T plays no part. The factor T² keeps the size of
    the gradient whatever T. All examples count, labelled for the task or not; of several sources only those that
    have the task. A step without any label of the task trains trunk and head, each in the phases in which it
    moves; a step none of whose sources has the task leaves the head alone.

    Args:
        task: whose teacher it is.
        teacher: a trained `Model` that answers the task, or any module from the same inputs to raw outputs. It is
            copied.
        temperature: T, above 0 and finite.
        weight: fixed weight, above 0.
        name: of the objective; ``<task>-outputs`` if None.
        cache_limit: as for `FeatureDistillation`, of its outputs.

    Raises:
        ValueError: the teacher or the student does not know the task, the temperature is out of range, or (in the
            first step) outputs have different shapes.
        TypeError: the teacher is not a module, or the task is of a kind of the user's own.

    >>> LogitDistillation("digit", nn.Linear(64, 10), temperature=4.0).name
    'digit-outputs'
    """

    def __init__(
        self,
        task: str,
        teacher: nn.Module,
        temperature: float = 2.0,
        weight: float = 1.0,
        name: str | None = None,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        super().__init__(task, teacher, name or f"{task}-outputs", weight, task, cache_limit)
        check_temperature(temperature)
        self.temperature = temperature
        self._distance: Callable[[Tensor, Tensor, float], Tensor] | None = None

    def bind(self, model: Model, tasks: Mapping[str, Task]) -> None:
        super().bind(model, tasks)
        self._distance = distance_for(tasks[self.task])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"temperature": self.temperature}

    def forward(self, context: Context) -> Tensor:
        wanted = answer(context.batch, self.name, self._answer)
        if wanted is None:
            return _nothing(context)
        assert self._distance is not None
        outputs = self._predicted(context)
        check_outputs(self.task, outputs, wanted)
        return self._distance(outputs, wanted, self.temperature).mean()

    def _predicted(self, context: Context) -> Tensor:
        """The student's outputs, which the step leaves out where no example has a target."""
        if self.task in context.predictions:
            return context.predictions[self.task]
        model, batch = context.model, context.batch
        if not model.boundary:
            return model(batch.inputs, [self.task], batch.source)[self.task]
        return model.head(self.task, context.features, batch.inputs if model.heads_read_inputs else None)

    def _ask(self, batch: Batch) -> Tensor:
        return outputs_of(self.teacher, [self.task], batch)[self.task]


def kdmtl(
    teachers: Mapping[str, nn.Module],
    adaptors: Mapping[str, nn.Module],
    weights: float | Mapping[str, float] = 1.0,
) -> list[FeatureDistillation]:
    """The terms of KDMTL for several tasks: a `FeatureDistillation` for each.

    Args:
        teachers: {task: its trained network}.
        adaptors: {task: a module of its own}, for the same tasks.
        weights: λ of all tasks, or {task: λ}.

    Raises:
        ValueError: the tasks differ, or two tasks are given one adaptor.

    >>> networks = {"left": nn.Linear(2, 8), "right": nn.Linear(2, 8)}
    >>> terms = kdmtl(networks, {task: nn.Linear(4, 8) for task in networks}, weights=0.1)
    >>> [term.name for term in terms]
    ['left-features', 'right-features']
    """
    given = weights if isinstance(weights, Mapping) else dict.fromkeys(teachers, weights)
    for what, entries in (("adaptors", adaptors), ("weights", given)):
        if set(entries) != set(teachers):
            raise ValueError(
                f"`teachers` and `{what}` must be for the same tasks, found {sorted(teachers)} and {sorted(entries)}"
            )
    if len({id(adaptor) for adaptor in adaptors.values()}) < len(adaptors):
        raise ValueError("every task must have an adaptor of its own, found one that is given to two tasks")
    return [FeatureDistillation(task, teachers[task], adaptors[task], given[task]) for task in teachers]


def _nothing(context: Context) -> Tensor:
    return torch.zeros((), device=next(context.model.parameters()).device)


def _direction(features: Tensor) -> Tensor:
    """Rows of length 1 (B, F); rows of zeros stay so, and give no gradient where dividing by a floor would explode."""
    rows = features.flatten(1)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    alive = lengths > 0
    return torch.where(alive, rows / torch.where(alive, lengths, 1.0), 0.0)
