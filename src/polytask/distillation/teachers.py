"""Teachers: trained networks that nothing trains any more, and how far a student's outputs are from theirs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.batch import Batch, tensors_of
from polytask.errors import nearest
from polytask.models.base import Model
from polytask.task import Binary, Classification, MultiLabel, Regression, Task

CACHE_LIMIT = 2**30
"""Bytes that a teacher's outputs may take unless told otherwise."""

Distance = Callable[[Tensor, Tensor, float], Tensor]
"""(student's outputs (B, C), teacher's outputs (B, C), temperature) -> one value per example (B,), 0 where equal."""

M = TypeVar("M", bound=nn.Module)


def frozen(teacher: M) -> M:
    """A copy in eval mode that takes no gradients."""
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def digest(teacher: nn.Module) -> str:
    """Tells teachers apart, in a checkpoint's fingerprint."""
    return repr(sum(float(value.double().sum()) for value in teacher.state_dict().values()))


def outputs_of(teacher: nn.Module, tasks: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """The teacher's raw outputs (B, C) for each of `tasks`; for the only one if it is not a `Model`.

    Raises:
        ValueError: it does not take the inputs.
    """
    with reading("a teacher", tasks[0], batch.inputs):
        if isinstance(teacher, Model):
            return teacher(batch.inputs, tasks, batch.source)
        return {tasks[0]: teacher(batch.inputs)}


@contextmanager
def reading(what: str, task: str, read: Any) -> Iterator[None]:
    """Within it, a module of a task that cannot take what it is given, `read`, raises a `ValueError` that says so."""
    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # such as one of a device's memory
            raise
        shapes = [tuple(tensor.shape) for tensor in tensors_of(read)]
        raise ValueError(
            f"{what} must take what it is given, of shape {', '.join(map(str, shapes))}, for task `{task}`, found: "
            f"{error}"
        ) from error


def concerned(batch: Batch, task: str) -> bool:
    """Whether a teacher of `task` is asked about a batch: of several sources only about those that have the task."""
    return not batch.source or task in batch.targets


def answer(batch: Batch, key: Hashable, function: Callable[[Batch], Any]) -> Any:
    """What a `polytask.data.Remembered` under `key` added to the batch, or else what `function` gives now.

    Without gradients, and without autocast: what is remembered is computed outside of it.
    """
    if key in batch.known:
        return batch.known[key]
    with torch.no_grad(), torch.autocast(tensors_of(batch.inputs)[0].device.type, enabled=False):
        return function(batch)


def check_teacher(task: str, teacher: Any) -> None:
    """Raises unless `teacher` is a network that answers `task`."""
    if not isinstance(teacher, nn.Module):
        raise TypeError(f"`teacher` must be a trained network, found {type(teacher).__name__} for task `{task}`")
    if isinstance(teacher, Model) and task not in teacher.task_names:
        raise ValueError(
            f"a teacher must answer the task it teaches, found none for `{task}`: {nearest(task, teacher.task_names)}"
        )


def check_taught(task: str, tasks: Mapping[str, Task]) -> None:
    """Raises `ValueError` unless `task` is one of the student's `tasks`."""
    if task not in tasks:
        raise ValueError(f"a teacher's task must be one of the student's, found `{task}`: {nearest(task, tasks)}")


def check_temperature(temperature: float) -> None:
    """Raises `ValueError` unless it is above 0 and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be above 0 and finite, found {temperature}")


def check_outputs(task: str, outputs: Tensor, wanted: Tensor) -> None:
    """Raises `ValueError` unless a student's outputs have the shape of the teacher's, `wanted`."""
    if outputs.shape != wanted.shape:
        raise ValueError(
            f"teacher and student must give outputs of one shape, found {tuple(wanted.shape)} and "
            f"{tuple(outputs.shape)} for task `{task}`"
        )


def distance_for(task: Task) -> Distance:
    """How far outputs of this kind of task are from a teacher's.

    With student s, teacher t and temperature T: T² KL(softmax(t/T) ‖ softmax(s/T)) for classes, T² KL between Bernoulli
    distributions, averaged over labels, for binary and multi-label tasks, (s - t)² averaged over dimensions for
    regression, where T plays no part. T² keeps the size of the gradient whatever T.

    Raises:
        TypeError: the task is of a kind of the user's own.
    """
    for kind, distance in _DISTANCES.items():
        if isinstance(task, kind):
            return distance
    raise TypeError(f"outputs of binary, class, label and regression tasks can be distilled, found {task!r}")


def _classes(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    found, right = (outputs / temperature).log_softmax(1), (wanted / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(found, right, reduction="none", log_target=True).sum(1)


def _labels(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL(p_t ‖ p_s) = p_t (t - s) + log(1 + e^s) - log(1 + e^t), from logits."""
    found, right = outputs / temperature, wanted / temperature
    each = right.sigmoid() * (right - found) + F.softplus(found) - F.softplus(right)
    return temperature**2 * _per_example(each)


def _squared(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    return _per_example((outputs - wanted).square())


def _per_example(values: Tensor) -> Tensor:
    return values.mean(1) if values.dim() > 1 else values


_DISTANCES: dict[type[Task], Distance] = {
    Classification: _classes,
    Binary: _labels,
    MultiLabel: _labels,
    Regression: _squared,
}
