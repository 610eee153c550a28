"""Metrics that know their own direction; the arithmetic is torchmetrics'."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from polytask.errors import nearest

if TYPE_CHECKING:
    import torchmetrics


@dataclass(frozen=True)
class Metric:
    """One figure of merit of a task.

    Args:
        name: what reports call it, such as ``accuracy``.
        higher_is_better: its direction.
        build: makes a fresh torchmetrics metric; called once per evaluation, so no state is shared.
        least: the fewest examples it is defined for; with fewer its value is NaN.
    """

    name: str
    higher_is_better: bool
    build: Callable[[], torchmetrics.Metric]
    least: int = 1

    @property
    def direction(self) -> str:
        """``max`` or ``min``."""
        return "max" if self.higher_is_better else "min"


# name -> (torchmetrics class by kind of task, is a higher value better?, arguments)
_CLASSIFIERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "accuracy": ("Accuracy", {"average": "micro"}, {"average": "micro"}),
    "balanced_accuracy": ("Accuracy", {"average": "macro"}, {"average": "macro"}),
    "f1": ("F1Score", {"average": "macro"}, {"average": "macro"}),
    "precision": ("Precision", {"average": "macro"}, {"average": "macro"}),
    "recall": ("Recall", {"average": "macro"}, {"average": "macro"}),
    "auroc": ("AUROC", {"average": "macro"}, {"average": "macro"}),
}
_REGRESSION: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "r2": ("R2Score", True, {}),
    "mae": ("MeanAbsoluteError", False, {}),
    "mse": ("MeanSquaredError", False, {}),
    "rmse": ("MeanSquaredError", False, {"squared": False}),
}


def _torchmetric(module: str, name: str, arguments: dict[str, Any]) -> torchmetrics.Metric:
    import importlib  # torchmetrics costs 1.7 s to import, so only where a metric is built

    return getattr(importlib.import_module(f"torchmetrics.{module}"), name)(**arguments)


def _copy_of(metric: torchmetrics.Metric) -> torchmetrics.Metric:
    fresh = copy.deepcopy(metric)
    fresh.reset()
    return fresh


def metric_for(kind: str, metric: str | Metric | torchmetrics.Metric | None, outputs: int) -> Metric:
    """The `Metric` a task of this kind uses.

    Args:
        kind: ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
        metric: a name, a `Metric`, any torchmetrics metric (its own ``higher_is_better`` is read), or
            None for the usual one: accuracy, or R² for regression.
        outputs: number of classes, labels or regressed values.

    Raises:
        ValueError: the name is unknown for this kind, or a torchmetrics metric has no direction.
    """
    if metric is None:
        metric = "r2" if kind == "regression" else "accuracy"
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        if metric.higher_is_better is None:
            raise ValueError(
                f"a metric must say whether higher is better, found {type(metric).__name__} with "
                "`higher_is_better=None`: wrap it in polytask.Metric(name, higher_is_better, build)"
            )
        return Metric(type(metric).__name__, bool(metric.higher_is_better), partial(_copy_of, metric))
    table = _REGRESSION if kind == "regression" else _CLASSIFIERS
    if metric not in table:
        raise ValueError(f"unknown {kind} metric `{metric}`: {nearest(metric, table)}")
    if kind == "regression":
        name, higher, arguments = _REGRESSION[metric]
        if metric == "r2" and outputs > 1:
            arguments = {"multioutput": "uniform_average"}
        return Metric(metric, higher, partial(_torchmetric, "regression", name, arguments), 2 if metric == "r2" else 1)
    name, multiclass, multilabel = _CLASSIFIERS[metric]
    arguments = {
        "binary": {},
        "multiclass": {"num_classes": outputs, **multiclass},
        "multilabel": {"num_labels": outputs, "ignore_index": -1, **multilabel},
    }[kind]
    prefix = kind.capitalize()
    if kind == "binary" and metric == "balanced_accuracy":
        # the mean of the two classes' recalls: torchmetrics' two-class macro accuracy on labels
        return Metric(
            metric,
            True,
            partial(_torchmetric, "classification", "MulticlassAccuracy", {"num_classes": 2, "average": "macro"}),
        )
    return Metric(metric, True, partial(_torchmetric, "classification", prefix + name, arguments))
