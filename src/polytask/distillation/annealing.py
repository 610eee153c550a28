"""Teacher annealing: targets that pass from the teachers' to the data's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from polytask.batch import Batch
from polytask.callback import Callback
from polytask.data.remembered import Remembered, Wrapped
from polytask.data.source import Source
from polytask.distillation.teachers import (
    CACHE_LIMIT,
    Distance,
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
)
from polytask.errors import at_least, whole
from polytask.models.base import Model
from polytask.task import MISSING_CLASS, Classification, Task

if TYPE_CHECKING:
    from polytask.training.run import Run


class _Key:
    """Names what one callback's teachers say of a batch: no objective has it, nor another callback."""

    def __str__(self) -> str:
        return "teachers"


@final
class TeacherAnnealing(Callback):
    """Trained networks teach another: each task's target passes linearly from its teacher's answer to the data's own.

    Paper: Clark, Luong, Khandelwal, Manning and Le, *BAM! Born-Again Multi-Task Networks for Natural Language
    Understanding*, `arXiv:1907.04829 <https://arxiv.org/abs/1907.04829>`_: one single-task teacher for each task, one
    multi-task student, and the target λ y + (1 - λ) f(x), in which λ rises from 0 to 1 over training.

    With w = 1 - λ the teacher's share, an example's loss is, in training and in place of the task's own,

        (1 - w) · ℓ(s, y) + w · d(s, t),

    ℓ being the task's loss, s and t the raw outputs of student and teacher, and d what `LogitDistillation` measures:
    T² KL(softmax(t/T) ‖ softmax(s/T)) for classes, the same of Bernoulli distributions, averaged over labels, for
    binary and multi-label tasks, (s - t)² averaged over dimensions for regression (in the units of raw outputs, so
    teacher and student must be standardised alike). For T = 1 and the tasks' own losses, without class weights and
    label smoothing, its gradient is that of the target λ y + (1 - λ) f(x); its value leaves out what
    does not depend on the student, so that it is 0 where the student answers as its teacher and that is all that
    counts. Balancers, schedules, fixed and sample weights act on it as on any task's loss. Metrics, and all figures
    on validation data, are against the data's own targets.

    w goes from `start` in the first step to `end` in the last, in equal parts from one optimizer step to the next;
    the history has it at the end of each epoch, as ``teacher_weight``. Where w is 0, batches without missing targets
    are trained on as if there were no teacher, to the bit.

    An example without a target of a task learns it from the teacher alone, with w = 1 throughout, and counts in the
    task's mean; so data without labels take part. Labels missing from a partly labelled example of a multi-label task
    count in d alone. Of several sources each is taught the tasks that it has targets of.

    Teachers are copied, in eval mode, and no part of checkpoints: whoever resumes brings the same ones. Their
    outputs for the training examples are computed once where inputs never change, see `polytask.data.Remembered`.

    Args:
        teachers: {task: a trained network}, each a `Model` that answers the task or any module from the same inputs to
            raw outputs (B, C); or one `Model` that teaches all the tasks it answers, such as the `SingleTask`
            network of a run (``polytask.studies.trained``).
        start: the teacher's share in the first step, in [0, 1].
        end: its share in the last, in [0, 1]; equal to `start` for a fixed share: 1 fits the teachers, 0 is training
            without them (with `unlabelled` False, where targets are missing).
        temperature: T, above 0 and finite; 1 as in the paper.
        unlabelled: teach examples without a target; False leaves them out, as they are without teachers.
        steps: optimizer steps from `start` to `end`, at least 1; all steps of the fit if None, which needs a source
            that knows its length.
        cache_limit: bytes that the teachers' outputs may take; above it they are computed at every visit, and where
            inputs are augmented too. The log says which.

    Raises:
        ValueError: a share outside [0, 1], a temperature not above 0, a teacher that does not know its task, a task the
            student does not have (when a fit begins), `steps` needed and not given, or outputs of other widths
            than the student's (in the first step).
        TypeError: a teacher is not a module, or the task is of a kind of the user's own.

    >>> from polytask.models import HardSharing, SingleTask
    >>> heads = {"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)}
    >>> annealing = TeacherAnnealing(SingleTask(nn.Linear(2, 8), heads))  # trained ones
    >>> sorted(annealing.tasks), annealing.weight(step=0, steps=101), annealing.weight(step=75, steps=101)
    (['circle', 'rhombus'], 1.0, 0.25)
    """

    def __init__(
        self,
        teachers: Model | Mapping[str, nn.Module],
        start: float = 1.0,
        end: float = 0.0,
        temperature: float = 1.0,
        unlabelled: bool = True,
        steps: int | None = None,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        for name, share in (("start", start), ("end", end)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}`, a teacher's share, must be in [0, 1], found {share}")
        check_temperature(temperature)
        if steps is not None:
            whole("steps", steps, 1)
        at_least("cache_limit", cache_limit, 0)
        self.start = start
        self.end = end
        self.temperature = temperature
        self.unlabelled = unlabelled
        self.steps = steps
        self.cache_limit = cache_limit
        self._key = _Key()
        self._teachers = _distinct(teachers)
        self._distances: dict[str, Distance] = {}
        self._tasks: dict[str, Task] = {}
        self._run: Run | None = None
        self._steps = 1

    @property
    def tasks(self) -> list[str]:
        """The tasks that are taught."""
        return [task for _, tasks in self._teachers for task in tasks]

    def weight(self, step: int, steps: int) -> float:
        """The teacher's share w in step `step`, from 0, of `steps`; `end` from the last on."""
        if step >= steps - 1 and steps > 1:
            return self.end
        return self.start + (self.end - self.start) * step / max(steps - 1, 1)

    # What the trainer calls

    def serve(self, source: Source) -> Source:
        return _Taught(Remembered(source, self._key, self._answers, self.cache_limit), self)

    def bind(self, tasks: Mapping[str, Task], device: torch.device) -> None:
        """Checks the student's tasks, and moves the teachers to where batches are."""
        for name in self.tasks:
            check_taught(name, tasks)
        self._tasks = {name: tasks[name] for name in self.tasks}
        self._distances = {name: distance_for(task) for name, task in self._tasks.items()}
        for teacher, _ in self._teachers:
            teacher.to(device)

    def on_fit_start(self, run: Run) -> None:
        length = run.steps_per_epoch
        if self.steps is None and length is None and self.start != self.end:
            raise ValueError("annealing must know its length, found a source that does not tell: give `steps`")
        self._run = run
        self._steps = self.steps or (length or 1) * run.epochs

    def figures(self, run: Run) -> Mapping[str, float]:
        return {"teacher_weight": self.weight(run.step - 1, self._steps)}

    def on_close(self, run: Run) -> None:
        self._run = None

    def describe(self) -> dict[str, Any]:
        taught = [[*tasks, digest(teacher)] for teacher, tasks in self._teachers]
        return super().describe() | {"steps": self.steps, "teachers": taught}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["steps"] != self._steps and self.start != self.end:
            raise ValueError(
                f"annealing must go on over the steps it began with, {state['steps']}, found {self._steps}: train the "
                "same number of epochs, or give `steps`"
            )

    # What batches become

    def _answers(self, batch: Batch) -> dict[str, Tensor] | None:
        answers: dict[str, Tensor] = {}
        for teacher, tasks in self._teachers:
            asked = [task for task in tasks if concerned(batch, task)]
            if asked:
                answers |= outputs_of(teacher, asked, batch)
        return answers or None

    def taught(self, batch: Batch) -> Batch:
        """The batch with this step's losses in place of its tasks'."""
        step = 0 if self._run is None else self._run.step  # what a step costs is measured outside of fits
        weight = self.weight(step, self._steps)
        changed = [task for task in self._tasks.values() if self._changes(task, batch, weight)]
        if not changed:
            return batch
        answers = answer(batch, self._key, self._answers)
        totals, counts, targets = dict(batch.totals), dict(batch.counts), dict(batch.targets)
        for task in changed:
            name = task.name
            if self.unlabelled:
                counts[name] = batch.size
            if name not in targets:
                targets[name] = _missing(task, answers[name])
            mixed = _Mixed(task, self._distances[name], answers[name], weight, self.temperature, self.unlabelled)
            totals[name] = mixed.total
        return batch.but(totals=totals, counts=counts, targets=targets)

    def _changes(self, task: Task, batch: Batch, weight: float) -> bool:
        """Whether the task's loss on this batch is another than it would be without a teacher."""
        if not batch.size or not concerned(batch, task.name):
            return False
        labelled = batch.counts.get(task.name, 0)
        return (weight > 0 and labelled > 0) or (self.unlabelled and labelled < batch.size)


class _Taught(Wrapped):
    """Serves batches whose losses follow the teachers."""

    def __init__(self, source: Source, annealing: TeacherAnnealing) -> None:
        super().__init__(source)
        self._annealing = annealing

    def bind(self, tasks: Mapping[str, Task], device: torch.device, where: str, seed: int = 0) -> None:
        super().bind(tasks, device, where, seed)
        self._annealing.bind(tasks, device)

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        return self._all_taught(self.source.steps(epoch, start))

    def preview(self) -> Iterator[tuple[Batch, ...]]:
        return self._all_taught(self.source.preview())

    def _all_taught(self, steps: Iterator[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        counts = self.label_counts()
        known = counts is not None and counts == self.source.label_counts()
        for batches in steps:
            taught = map(self._annealing.taught, batches)
            # counts over all ranks are of targets: where more is taught, ranks must count together, or none may
            yield tuple(batch if known else batch.but(everywhere=None) for batch in taught)

    def label_counts(self) -> dict[str, int] | None:
        counts = self.source.label_counts()
        if counts is None or not self._annealing.unlabelled:
            return counts
        taught = {task: self._taught(task) for task in self._annealing.tasks}
        return counts | {task: count for task, count in taught.items() if count is not None}

    def _taught(self, task: str) -> int | None:
        """Examples that count in a task's loss: all of the parts that have the task; None if one does not know."""
        total = 0
        for name, part in self.parts.items():
            labelled = part.label_counts() or {}
            if name and task not in labelled:
                continue  # see `concerned`
            if part.examples is None:
                return None
            total += part.examples
        return total


@dataclass(frozen=True)
class _Mixed:
    """What takes the place of a task's summed loss on one batch; `wanted` are the teacher's raw outputs (B, C)."""

    task: Task
    distance: Distance
    wanted: Tensor
    weight: float
    temperature: float
    unlabelled: bool

    def total(self, outputs: Tensor, target: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
        """Sum over the batch of (1 - w) · loss + w · distance, w being 1 (or nothing at all) without a target."""
        check_outputs(self.task.name, outputs, self.wanted)
        present = self.task.present(target)
        taught = self.distance(outputs, self.wanted, self.temperature)
        share = torch.full_like(taught, 1.0 if self.unlabelled else 0.0).masked_fill(present, self.weight)
        values = share * taught
        if self.weight < 1:  # a loss that counts for nothing must not turn a sum into NaN
            values = values + (1 - self.weight) * self.task.losses(outputs, target)  # 0 without a target
        return (values if weights is None else values * weights).sum()


def _distinct(teachers: Model | Mapping[str, nn.Module]) -> list[tuple[nn.Module, list[str]]]:
    """Frozen copies of the teachers, each once, with the tasks they teach."""
    if isinstance(teachers, Model):
        return [(frozen(teachers), list(teachers.task_names))]
    if not isinstance(teachers, Mapping) or not teachers:
        raise TypeError(f"`teachers` must be a polytask model or {{task: network}}, found {teachers!r}")
    networks: dict[int, tuple[nn.Module, list[str]]] = {}
    for task, teacher in teachers.items():
        check_teacher(task, teacher)
        networks.setdefault(id(teacher), (teacher, []))[1].append(task)
    for teacher, tasks in networks.values():
        if len(tasks) > 1 and not isinstance(teacher, Model):
            found = f"one {type(teacher).__name__} for {tasks}"
            raise TypeError(f"a teacher of several tasks must be a polytask model, found {found}")
    return [(frozen(teacher), tasks) for teacher, tasks in networks.values()]


def _missing(task: Task, outputs: Tensor) -> Tensor:
    """Targets that are all missing, as many as there are outputs (B, C)."""
    size = len(outputs)
    if isinstance(task, Classification):
        return torch.full((size,), MISSING_CLASS, device=outputs.device)
    shape = (size,) if task.outputs == 1 else (size, task.outputs)
    return torch.full(shape, torch.nan, dtype=outputs.dtype, device=outputs.device)
