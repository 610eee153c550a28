"""Tasks: what is predicted and how it is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.errors import whole
from polytask.metrics import Metric, metric_for

if TYPE_CHECKING:
    import torchmetrics

MISSING_CLASS = -100
"""The class index that means "no label", as in `torch.nn.functional.cross_entropy`."""

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Prediction(NamedTuple):
    """What `Trainer.predict` returns for one task, one row an example.

    Attributes:
        values: the answer in the task's own units: labels (0/1, class indices, a row of 0/1 for
            multi-label) or regressed numbers.
        probabilities: probability of the positive class (N,), of each class (N, C) or of each
            label (N, C); None for regression.
        outputs: the network's raw outputs.
    """

    values: Tensor
    probabilities: Tensor | None
    outputs: Tensor

    @property
    def labels(self) -> Tensor:
        """The predicted labels; the same tensor as `values`."""
        return self.values


@dataclass(frozen=True)
class Task(ABC):
    """One prediction target: its loss, its metric with a direction, and its fixed weight.

    Build one with `binary`, `classification`, `multilabel` or `regression`, or subclass it for a new kind.
    A task's loss over a set of examples is L_k = (sum of `losses`) / (number of examples that carry a
    target), over micro-batches and ranks alike. With class or sample weights the denominator stays that
    number, so that a step is an unbiased estimate whatever the batch; `torch.nn.CrossEntropyLoss(weight)`
    divides by the sum of the weights in the batch instead.

    Attributes:
        name: unique among the tasks of a model.
        loss: None for the kind's own loss; or any callable (predictions, targets) -> values, such as
            torch's loss modules. It is called with the n labelled examples only: predictions are (n,) for a
            task of one output, else (n, C). It gives their mean (), which rules out sample weights, or
            one value per example (n,); of several outputs it may also give (n, ...), of which the mean over
            all but the first dimension is taken.
        metric: figure of merit; see `polytask.metrics.metric_for` for what is accepted.
        weight: fixed weight λ_k > 0; multiplies the loss once, before any balancer.
        labels: names of the classes or labels, for reports; empty if they have none.
    """

    name: str
    loss: LossFunction | None
    metric: Metric
    weight: float
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "./"):
            raise ValueError(
                f"a task's name must be non-empty and free of '.' and '/' (it names modules and columns), "
                f"found {self.name!r}"
            )
        if not self.weight > 0:
            raise ValueError(f"a task's `weight` must be above 0, found {self.weight} for task `{self.name}`")
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"`loss` must be callable, found {type(self.loss).__name__} for task `{self.name}`")

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers a head must give per example."""

    @abstractmethod
    def present(self, target: Tensor) -> Tensor:
        """Which examples carry a target: (B,) booleans."""

    @abstractmethod
    def own_losses(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        """The kind's own loss; `target` has no missing entries unless it is multi-label."""

    @abstractmethod
    def fill(self, target: Tensor) -> Tensor:
        """`target` with missing entries replaced by a harmless valid value."""

    @abstractmethod
    def check(self, target: Tensor, where: str) -> Tensor:
        """Validates targets at the door and returns them in the dtype the loss takes.

        Raises:
            ValueError: wrong shape, or a value out of range; the message names the task and `where`.
        """

    @abstractmethod
    def predict(self, outputs: Tensor) -> Prediction:
        """Raw outputs (B, C) to labels, probabilities or numbers in the task's units."""

    def metric_arguments(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What the metric is updated with, for examples that carry a target."""
        prediction = self.predict(outputs)
        return (prediction.values if prediction.probabilities is None else prediction.probabilities), target

    def losses(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """One loss per example (B,), exactly 0 (with zero gradient) where the target is missing."""
        present = self.present(target)
        if self.loss is None:
            values = self.own_losses(prediction, self.fill(target), "none")
        else:
            kept = self._given_losses(prediction[present], target[present], weights is not None)
            values = kept.new_zeros(len(present)).masked_scatter(present, kept)
        values = torch.where(present, values, values.new_zeros(()))
        return values if weights is None else values * weights

    def total(self, prediction: Tensor, target: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
        """Sum of `losses` (a scalar), without the masks when `count` says that nothing is missing."""
        if weights is None and count == len(target):
            if self.loss is None:
                return self.own_losses(prediction, target, "sum")
            return self._given_losses(prediction, target).sum()
        return self.losses(prediction, target, weights).sum()

    def in_units(self, prediction: Tensor) -> Tensor:
        """Raw outputs as an own loss takes them, in the units of the targets."""
        return prediction

    def _given_losses(self, prediction: Tensor, target: Tensor, weighted: bool = False) -> Tensor:
        """The own loss, one value per example; `target` has no missing entries unless it is multi-label."""
        assert self.loss is not None
        values = self.loss(self.in_units(_flat(prediction) if self.outputs == 1 else prediction), target)
        count = len(target)
        if not isinstance(values, Tensor):
            raise self._refuse("an own `loss` must give a tensor", type(values).__name__, "loss")
        if values.dim() == 0:
            if weighted:
                rule = "with sample weights an own `loss` must give one value per example"
                raise self._refuse(rule, "their mean: use reduction='none'", "loss")
            return values.expand(count)
        if len(values) != count or (self.outputs == 1 and values.numel() != count):
            rule = f"an own `loss` must give one value per example ({count},) or their mean ()"
            raise self._refuse(rule, f"shape {tuple(values.shape)}", "loss")
        return values.flatten(1).mean(1) if values.dim() > 1 else values

    def describe(self) -> dict[str, Any]:
        """What a run folder and a checkpoint's fingerprint record about the task."""
        return {
            "name": self.name,
            "kind": type(self).__name__.lower(),
            "outputs": self.outputs,
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "weight": self.weight,
            "labels": list(self.labels),
        }

    def _refuse(self, rule: str, found: object, where: str) -> ValueError:
        return ValueError(f"task `{self.name}`, {where}: {rule}, found {found}")


def _flat(prediction: Tensor) -> Tensor:
    return prediction.squeeze(-1) if prediction.dim() > 1 else prediction


def _check_labels(labels: Sequence[str], count: int, what: str) -> None:
    if labels and len(labels) != count:
        raise ValueError(f"`labels` must name all {count} {what}, found {len(labels)} names")


def _vector(task: Task, target: Tensor, where: str) -> Tensor:
    if target.dim() == 2 and target.shape[1] == 1:
        target = target.squeeze(1)
    if target.dim() != 1:
        raise task._refuse("targets must be a vector of one value per example", f"shape {tuple(target.shape)}", where)
    return target


def _float_targets(target: Tensor) -> Tensor:
    """Integer 0/1 targets as floats, with NaN for the missing ones."""
    if target.is_floating_point():
        return target
    return target.float().masked_fill(target == MISSING_CLASS, torch.nan)


@dataclass(frozen=True)
class Binary(Task):
    """Two classes from one logit; see `binary`."""

    positive_weight: float | None = None

    @property
    def outputs(self) -> int:
        return 1

    def present(self, target: Tensor) -> Tensor:
        return ~torch.isnan(target)

    def fill(self, target: Tensor) -> Tensor:
        return target.nan_to_num(0.0)

    def own_losses(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        prediction = _flat(prediction)
        weight = None
        if self.positive_weight is not None:
            weight = torch.tensor(self.positive_weight, dtype=prediction.dtype, device=prediction.device)
        return F.binary_cross_entropy_with_logits(prediction, target, pos_weight=weight, reduction=reduction)

    def check(self, target: Tensor, where: str) -> Tensor:
        target = _float_targets(_vector(self, target, where))
        wrong = target[self.present(target) & (target != 0) & (target != 1)]
        if len(wrong):
            raise self._refuse("binary targets must be 0, 1 or missing (NaN)", wrong[0].item(), where)
        return target

    def predict(self, outputs: Tensor) -> Prediction:
        probabilities = torch.sigmoid(_flat(outputs).float())
        return Prediction((probabilities > 0.5).long(), probabilities, outputs)

    def metric_arguments(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.predict(outputs)
        assert prediction.probabilities is not None
        by_label = self.metric.name == "balanced_accuracy"
        return prediction.values if by_label else prediction.probabilities, target.long()


@dataclass(frozen=True)
class Classification(Task):
    """One class out of several; see `classification`."""

    classes: int = 2
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    @property
    def outputs(self) -> int:
        return self.classes

    def present(self, target: Tensor) -> Tensor:
        return target != MISSING_CLASS

    def fill(self, target: Tensor) -> Tensor:
        return target  # cross_entropy skips MISSING_CLASS itself

    def own_losses(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        weight = None
        if self.class_weights is not None:
            weight = torch.tensor(self.class_weights, dtype=prediction.dtype, device=prediction.device)
        return F.cross_entropy(
            prediction, target, weight=weight, reduction=reduction, label_smoothing=self.label_smoothing
        )

    def check(self, target: Tensor, where: str) -> Tensor:
        target = _vector(self, target, where)
        if target.is_floating_point():
            missing = torch.isnan(target)
            filled = target.nan_to_num(0.0)
            broken = filled[filled != filled.round()]
            if len(broken):
                raise self._refuse("class targets must be whole numbers", broken[0].item(), where)
            target = filled.long().masked_fill(missing, MISSING_CLASS)
        target = target.long()
        wrong = target[self.present(target) & ((target < 0) | (target >= self.classes))]
        if len(wrong):
            rule = f"class targets must be 0..{self.classes - 1} or {MISSING_CLASS} (missing)"
            raise self._refuse(rule, wrong[0].item(), where)
        return target

    def predict(self, outputs: Tensor) -> Prediction:
        return Prediction(outputs.argmax(-1), outputs.float().softmax(-1), outputs)

    def metric_arguments(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.float().softmax(-1), target


@dataclass(frozen=True)
class MultiLabel(Task):
    """Several yes/no labels at once, each with its own logit; see `multilabel`."""

    count: int = 1
    positive_weights: tuple[float, ...] | None = None

    @property
    def outputs(self) -> int:
        return self.count

    def present(self, target: Tensor) -> Tensor:
        return ~torch.isnan(target).all(-1)

    def fill(self, target: Tensor) -> Tensor:
        return target

    def own_losses(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        given = ~torch.isnan(target)
        weight = None
        if self.positive_weights is not None:
            weight = torch.tensor(self.positive_weights, dtype=prediction.dtype, device=prediction.device)
        each = F.binary_cross_entropy_with_logits(
            prediction, target.nan_to_num(0.0), pos_weight=weight, reduction="none"
        )
        rows = (each * given).sum(-1) / given.sum(-1).clamp(min=1)
        return rows.sum() if reduction == "sum" else rows

    def check(self, target: Tensor, where: str) -> Tensor:
        if target.dim() != 2 or target.shape[1] != self.count:
            rule = f"multi-label targets must have shape (N, {self.count})"
            raise self._refuse(rule, f"shape {tuple(target.shape)}", where)
        target = _float_targets(target)
        wrong = target[~torch.isnan(target) & (target != 0) & (target != 1)]
        if len(wrong):
            raise self._refuse("multi-label targets must be 0, 1 or missing (NaN)", wrong[0].item(), where)
        return target

    def predict(self, outputs: Tensor) -> Prediction:
        probabilities = torch.sigmoid(outputs.float())
        return Prediction((probabilities > 0.5).long(), probabilities, outputs)

    def metric_arguments(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(outputs.float()), target.nan_to_num(-1.0).long()


@dataclass(frozen=True)
class Regression(Task):
    """One or several numbers; see `regression`."""

    dimensions: int = 1
    mean: float = 0.0
    std: float = 1.0

    @property
    def outputs(self) -> int:
        return self.dimensions

    def present(self, target: Tensor) -> Tensor:
        missing = torch.isnan(target)
        return ~(missing.any(-1) if target.dim() > 1 else missing)

    def fill(self, target: Tensor) -> Tensor:
        return target.nan_to_num(0.0)

    def own_losses(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        if target.dim() == 1:
            prediction = _flat(prediction)
        if self.mean != 0.0 or self.std != 1.0:
            target = (target - self.mean) / self.std
        each = F.mse_loss(prediction, target.to(prediction.dtype), reduction="none")
        rows = each.mean(-1) if each.dim() > 1 else each
        return rows.sum() if reduction == "sum" else rows

    def check(self, target: Tensor, where: str) -> Tensor:
        if self.dimensions == 1:
            target = _vector(self, target, where)
        elif target.dim() != 2 or target.shape[1] != self.dimensions:
            rule = f"regression targets must have shape (N, {self.dimensions})"
            raise self._refuse(rule, f"shape {tuple(target.shape)}", where)
        target = target if target.is_floating_point() else target.float()
        if torch.isinf(target).any():
            raise self._refuse("regression targets must be finite or missing (NaN)", "an infinite one", where)
        return target

    def predict(self, outputs: Tensor) -> Prediction:
        values = _flat(outputs.float()) if self.dimensions == 1 else outputs.float()
        return Prediction(self.in_units(values), None, outputs)

    def in_units(self, prediction: Tensor) -> Tensor:
        wide = torch.promote_types(prediction.dtype, torch.float32)  # bfloat16 has 3 digits
        return prediction.to(wide) * self.std + self.mean

    def standardized(self, targets: Any) -> Regression:
        """This task with `mean` and `std` taken from training targets (missing ones left out).

        The loss is then measured in standard deviations; metrics and predictions stay in the targets' own
        units.

        Raises:
            ValueError: no target is given, or all are equal.
        """
        values = torch.as_tensor(targets, dtype=torch.float64)
        values = values[~torch.isnan(values)]
        if len(values) == 0 or not values.std(correction=0) > 0:
            rule = "standardising needs at least two different targets"
            raise self._refuse(rule, f"{len(values)} equal ones", "train")
        return replace(self, mean=values.mean().item(), std=values.std(correction=0).item())


def binary(
    name: str,
    *,
    loss: LossFunction | None = None,
    metric: str | Metric | torchmetrics.Metric | None = None,
    weight: float = 1.0,
    positive_weight: float | None = None,
    labels: Sequence[str] = (),
) -> Binary:
    """A yes/no task: one logit, binary cross-entropy, accuracy.

    Args:
        name: the task's name.
        loss: own loss in place of the cross-entropy; see `Task`.
        metric: ``accuracy`` (default), ``balanced_accuracy``, ``f1``, ``precision``, ``recall``,
            ``auroc``, a `polytask.Metric` or any torchmetrics metric.
        weight: fixed weight of the task's loss, above 0.
        positive_weight: multiplies the loss of positive examples, above 0.
        labels: names of class 0 and class 1.

    Targets are 0 or 1 (any dtype); missing ones are NaN in float targets, -100 in integer ones.

    >>> binary("circle").outputs
    1
    """
    if positive_weight is not None and not positive_weight > 0:
        raise ValueError(f"`positive_weight` must be above 0, found {positive_weight}")
    _check_labels(labels, 2, "classes")
    return Binary(name, loss, metric_for("binary", metric, 1), weight, tuple(labels), positive_weight)


def classification(
    name: str,
    classes: int,
    *,
    loss: LossFunction | None = None,
    metric: str | Metric | torchmetrics.Metric | None = None,
    weight: float = 1.0,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    labels: Sequence[str] = (),
) -> Classification:
    """One class out of `classes`: cross-entropy, accuracy. Targets are 0..classes-1, missing ones -100.

    Args:
        name: the task's name.
        classes: at least 2.
        loss: own loss in place of the cross-entropy; see `Task`.
        metric: as in `binary`.
        weight: fixed weight of the task's loss, above 0.
        class_weights: one factor per class for the loss of its examples, each at least 0.
        label_smoothing: in [0, 1).
        labels: names of the classes.

    >>> classification("digit", classes=10).outputs
    10
    """
    whole("classes", classes, 2)
    if class_weights is not None and (len(class_weights) != classes or min(class_weights) < 0):
        raise ValueError(f"`class_weights` must be {classes} factors of at least 0, found {list(class_weights)}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), found {label_smoothing}")
    _check_labels(labels, classes, "classes")
    return Classification(
        name, loss, metric_for("multiclass", metric, classes), weight, tuple(labels), classes,
        None if class_weights is None else tuple(map(float, class_weights)), label_smoothing,
    )  # fmt: skip


def multilabel(
    name: str,
    count: int,
    *,
    loss: LossFunction | None = None,
    metric: str | Metric | torchmetrics.Metric | None = None,
    weight: float = 1.0,
    positive_weights: Sequence[float] | None = None,
    labels: Sequence[str] = (),
) -> MultiLabel:
    """`count` independent yes/no labels: mean binary cross-entropy over the labels given, accuracy.

    Targets have shape (N, count); a missing label is NaN (float) or -100 (integer), and an example is
    missing when all its labels are. With an own `loss`, missing labels of a partly labelled example reach
    it as NaN.

    >>> multilabel("tags", 5).outputs
    5
    """
    whole("count", count, 2)
    if positive_weights is not None and (len(positive_weights) != count or min(positive_weights) <= 0):
        raise ValueError(f"`positive_weights` must be {count} factors above 0, found {list(positive_weights)}")
    _check_labels(labels, count, "labels")
    return MultiLabel(
        name, loss, metric_for("multilabel", metric, count), weight, tuple(labels), count,
        None if positive_weights is None else tuple(map(float, positive_weights)),
    )  # fmt: skip


def regression(
    name: str,
    dimensions: int = 1,
    *,
    loss: LossFunction | None = None,
    metric: str | Metric | torchmetrics.Metric | None = None,
    weight: float = 1.0,
    mean: float = 0.0,
    std: float = 1.0,
    labels: Sequence[str] = (),
) -> Regression:
    """One number, or `dimensions` of them: squared error (mean over dimensions), R².

    Args:
        name: the task's name.
        dimensions: at least 1; targets have shape (N,) or (N, dimensions), missing ones are NaN.
        loss: own loss in place of the squared error; see `Task`. It sees predictions and targets in the targets' own
            units, whatever `mean` and `std` are.
        metric: ``r2`` (default), ``mae``, ``mse``, ``rmse``, or as in `binary`.
        weight: fixed weight of the task's loss, above 0.
        mean: subtracted from the targets inside the loss; `Regression.standardized` measures it.
        std: the targets' scale inside the loss, above 0.
        labels: names of the dimensions.

    >>> regression("age").standardized([20.0, 40.0]).mean
    30.0
    """
    whole("dimensions", dimensions, 1)
    if not std > 0:
        raise ValueError(f"`std` must be above 0, found {std}")
    _check_labels(labels, dimensions, "dimensions")
    return Regression(
        name, loss, metric_for("regression", metric, dimensions), weight, tuple(labels), dimensions, mean, std
    )


def named(tasks: Sequence[Task]) -> dict[str, Task]:
    """Tasks by name, in order.

    Raises:
        ValueError: there is no task, or two have one name.
        TypeError: an entry is not a task.
    """
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"tasks must be polytask tasks (pt.binary, pt.classification, ...), found {task!r}")
    by_name = {task.name: task for task in tasks}
    if not by_name:
        raise ValueError("there must be at least one task, found none")
    if len(by_name) < len(tasks):
        names = [task.name for task in tasks]
        raise ValueError(f"tasks must have different names, found {names}")
    return by_name


__all__ = [
    "MISSING_CLASS", "Binary", "Classification", "MultiLabel", "Prediction", "Regression", "Task",
    "binary", "classification", "multilabel", "named", "regression",
]  # fmt: skip
