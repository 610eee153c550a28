"""Metrics know their direction, and are torchmetrics' own figures."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics

import polytask as pt
from polytask.metrics import metric_for

CLASSIFIERS = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "auroc")
REGRESSION = {"r2": True, "mae": False, "mse": False, "rmse": False}


def _value(task: pt.Task, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    metric = task.metric.build()
    metric.update(*task.metric_arguments(outputs, task.check(targets, "test")))
    return float(metric.compute())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification_metrics_are_best_at_one(name: str):
    binary = pt.binary("t", metric=name)
    several = pt.classification("t", 3, metric=name)
    labels = pt.multilabel("t", 2, metric=name)
    y = torch.tensor([0, 1, 1, 0, 1])
    assert _value(binary, 9.0 * (2 * y - 1)[:, None], y) == 1
    classes = torch.tensor([0, 1, 2, 2, 1])
    assert _value(several, 9.0 * torch.eye(3)[classes], classes) == 1
    both = torch.stack([y, 1 - y], 1)
    assert _value(labels, 9.0 * (2 * both - 1), both) == 1
    for task in (binary, several, labels):
        assert task.metric.higher_is_better
        assert task.metric.direction == "max"
        assert task.metric.name == name


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("name", REGRESSION)
def test_regression_metrics_in_the_targets_own_units(name: str, dimensions: int):
    shape = (50,) if dimensions == 1 else (50, 2)
    y = 100 + 10 * torch.randn(shape)
    error = torch.randn(shape)
    task = pt.regression("t", dimensions, metric=name, mean=100.0, std=10.0)
    outputs = ((y + error - 100) / 10).reshape(50, dimensions)
    squared = error.square()
    spread = (y - y.mean(0)).square().mean(0)
    expected = {
        "mae": error.abs().mean(),
        "mse": squared.mean(),
        "rmse": squared.mean().sqrt(),
        "r2": (1 - squared.mean(0) / spread).mean(),
    }[name]
    assert _value(task, outputs, y) == pytest.approx(expected.item(), rel=1e-3)
    assert task.metric.higher_is_better is REGRESSION[name]
    assert task.metric.direction == ("max" if REGRESSION[name] else "min")


def test_balanced_accuracy_is_the_mean_of_the_recalls():
    y = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    outputs = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, -1])[:, None]
    assert _value(pt.binary("t", metric="balanced_accuracy"), outputs, y) == pytest.approx(0.75)
    assert _value(pt.binary("t"), outputs, y) == pytest.approx(7 / 8)


def test_missing_labels_of_a_multilabel_example_do_not_count():
    outputs = torch.tensor([[5.0, 5.0], [5.0, -5.0]])
    target = torch.tensor([[1.0, math.nan], [0.0, 0.0]])
    assert _value(pt.multilabel("t", 2), outputs, target) == pytest.approx((0.5 + 1) / 2, abs=0.2)


def test_a_torchmetrics_metric_brings_its_direction_and_shares_no_state():
    own = torchmetrics.MeanAbsoluteError()
    own.update(torch.tensor([5.0]), torch.tensor([1.0]))
    metric = pt.regression("t", metric=own).metric
    assert (metric.name, metric.direction) == ("MeanAbsoluteError", "min")
    one, other = metric.build(), metric.build()
    one.update(torch.tensor([2.0]), torch.tensor([1.0]))
    other.update(torch.tensor([1.0]), torch.tensor([1.0]))
    assert (float(one.compute()), float(other.compute())) == (1.0, 0.0)


def test_a_metric_of_ones_own():
    own = pt.Metric("loss of sleep", False, torchmetrics.MeanMetric)
    assert pt.binary("t", metric=own).metric is own


def test_refusals():
    with pytest.raises(ValueError, match="unknown binary metric `acuracy`: did you mean `accuracy`"):
        pt.binary("t", metric="acuracy")
    with pytest.raises(ValueError, match="unknown regression metric `zzz`: known: `mae`, `mse`, `r2`, `rmse`"):
        metric_for("regression", "zzz", 1)
    with pytest.raises(ValueError, match="must say whether higher is better, found MeanMetric"):
        pt.binary("t", metric=torchmetrics.MeanMetric())
