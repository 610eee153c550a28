"""Tasks: losses of missing, weighted and standardised targets; predictions; what is refused at the door."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import NAN
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.task import named


def _cases() -> dict[str, tuple[pt.Task, Tensor, Tensor, Any]]:
    """{name: (task, outputs, full targets, what a missing target is)}"""
    n = 12
    binary, classes = torch.randint(0, 2, (n,)).float(), torch.randint(0, 3, (n,))
    labels = torch.randint(0, 2, (n, 4)).float()
    return {
        "binary": (pt.binary("t"), torch.randn(n, 1), binary, NAN),
        "binary, weighted": (pt.binary("t", positive_weight=3.0), torch.randn(n, 1), binary, NAN),
        "classes": (pt.classification("t", 3), torch.randn(n, 3), classes, -100),
        "classes, weighted": (pt.classification("t", 3, class_weights=[1, 0, 5]), torch.randn(n, 3), classes, -100),
        "classes, smoothed": (pt.classification("t", 3, label_smoothing=0.1), torch.randn(n, 3), classes, -100),
        "labels": (pt.multilabel("t", 4), torch.randn(n, 4), labels, NAN),
        "labels, weighted": (pt.multilabel("t", 4, positive_weights=[1, 2, 3, 4]), torch.randn(n, 4), labels, NAN),
        "number": (pt.regression("t"), torch.randn(n, 1), torch.randn(n), NAN),
        "numbers": (pt.regression("t", 2), torch.randn(n, 2), torch.randn(n, 2), NAN),
        "number, standardised": (pt.regression("t", mean=5.0, std=2.0), torch.randn(n, 1), torch.randn(n), NAN),
        "own loss, per example": (
            pt.regression("t", loss=lambda p, y: (p - y).abs()), torch.randn(n, 1), torch.randn(n), NAN,
        ),
        "own loss, mean": (
            pt.regression("t", loss=nn.L1Loss()), torch.randn(n, 1), torch.randn(n), NAN,
        ),
    }  # fmt: skip


NAMES = list(_cases())
WEIGHTABLE = [name for name in NAMES if name != "own loss, mean"]


@pytest.mark.parametrize("name", NAMES)
def test_missing_targets_leave_loss_and_gradient_untouched(name: str):
    """The total over a batch is that over its labelled examples alone, and the others get no gradient at all."""
    task, outputs, target, missing = _cases()[name]
    gone = torch.tensor([0, 3, 4, 11])
    kept = torch.tensor([i for i in range(len(target)) if i not in gone])
    holed = target.clone()
    holed[gone] = missing
    outputs.requires_grad_()
    assert torch.equal(task.present(holed), ~torch.isin(torch.arange(len(target)), gone))
    total = task.total(outputs, holed, len(kept))
    alone = task.total(outputs[kept], target[kept], len(kept))
    torch.testing.assert_close(total, alone)
    (gradient,) = torch.autograd.grad(total, outputs)
    (expected,) = torch.autograd.grad(alone, outputs)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(gradient[gone], torch.zeros_like(gradient[gone]))
    assert torch.equal(task.losses(outputs, holed)[gone], torch.zeros(4))


@pytest.mark.parametrize("name", NAMES)
def test_the_total_is_the_sum_of_the_losses(name: str):
    task, outputs, target, _ = _cases()[name]
    losses = task.losses(outputs, target)
    assert losses.shape == (12,)
    torch.testing.assert_close(task.total(outputs, target, 12), losses.sum())


@pytest.mark.parametrize("name", WEIGHTABLE)
def test_sample_weights_multiply_the_losses(name: str):
    task, outputs, target, _ = _cases()[name]
    factors = torch.rand(12)
    torch.testing.assert_close(task.losses(outputs, target, factors), task.losses(outputs, target) * factors)
    torch.testing.assert_close(task.total(outputs, target, 12, factors), (task.losses(outputs, target) * factors).sum())
    twice = torch.ones(12)
    twice[5] = 2
    extra = task.total(outputs, target, 12, twice) - task.total(outputs, target, 12)
    torch.testing.assert_close(extra, task.losses(outputs, target)[5], atol=1e-5, rtol=1e-5)


def test_the_losses_are_torchs_own():
    cases = _cases()
    task, outputs, target, _ = cases["binary, weighted"]
    expected = F.binary_cross_entropy_with_logits(
        outputs.squeeze(1), target, pos_weight=torch.tensor(3.0), reduction="none"
    )
    torch.testing.assert_close(task.losses(outputs, target), expected)
    task, outputs, target, _ = cases["classes, weighted"]
    expected = F.cross_entropy(outputs, target, weight=torch.tensor([1.0, 0, 5]), reduction="none")
    torch.testing.assert_close(task.losses(outputs, target), expected)
    task, outputs, target, _ = cases["number, standardised"]
    torch.testing.assert_close(task.losses(outputs, target), (outputs.squeeze(1) - (target - 5) / 2).square())
    task, outputs, target, _ = cases["numbers"]
    torch.testing.assert_close(task.losses(outputs, target), (outputs - target).square().mean(1))


# {name: (task maker, loss module, outputs, targets, what a missing target is)}
MODULES: dict[str, tuple[Any, Any, int, Any, Any]] = {
    "L1Loss": (pt.regression, nn.L1Loss, 1, torch.randn(9), NAN),
    "HuberLoss": (pt.regression, nn.HuberLoss, 1, torch.randn(9), NAN),
    "BCEWithLogitsLoss": (pt.binary, nn.BCEWithLogitsLoss, 1, torch.randint(0, 2, (9,)).float(), NAN),
    "CrossEntropyLoss": (lambda n, **o: pt.classification(n, 3, **o), nn.CrossEntropyLoss, 3, torch.randint(0, 3, (9,)), -100),
    "L1Loss of several": (lambda n, **o: pt.regression(n, 2, **o), nn.L1Loss, 2, torch.randn(9, 2), NAN),
    "BCEWithLogitsLoss of several": (lambda n, **o: pt.multilabel(n, 2, **o), nn.BCEWithLogitsLoss, 2, torch.randint(0, 2, (9, 2)).float(), NAN),
}  # fmt: skip


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", MODULES)
def test_torchs_loss_modules_serve_as_own_losses(name: str, reduction: str, holes: bool):
    make, module, width, target, missing = MODULES[name]
    task = make("t", loss=module(reduction=reduction))
    outputs = torch.randn(9, width, requires_grad=True)
    kept = torch.arange(9)
    if holes:
        kept, target = torch.tensor([0, 2, 3, 7]), target.clone()
        target[[1, 4, 5, 6, 8]] = missing
    shown = outputs[kept].squeeze(1) if width == 1 else outputs[kept]
    expected = module()(shown, target[kept])
    total = task.total(outputs, target, len(kept))
    torch.testing.assert_close(total / len(kept), expected)
    torch.testing.assert_close(task.losses(outputs, target).sum(), total)
    (gradient,) = torch.autograd.grad(total, outputs)
    torch.testing.assert_close(gradient / len(kept), torch.autograd.grad(expected, outputs)[0])
    factors = torch.rand(9)
    if reduction == "mean":
        rule = "task `t`, loss: with sample weights an own `loss` must give one value per example, found their mean"
        with pytest.raises(ValueError, match=rule):
            task.total(outputs, target, len(kept), factors)
        return
    each = module(reduction="none")(shown, target[kept]).reshape(len(kept), -1).mean(1)
    torch.testing.assert_close(task.total(outputs, target, len(kept), factors), (each * factors[kept]).sum())


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize(
    ("task", "found"),
    [
        (pt.regression("t", loss=lambda p, y: p[:, None] - y), r"shape \(COUNT, COUNT\)"),
        (pt.regression("t", loss=lambda p, y: p[:1]), r"shape \(1,\)"),
        (pt.classification("t", 3, loss=lambda p, y: p.mean(0)), r"shape \(3,\)"),
        (pt.regression("t", loss=lambda p, y: 3.0), "float"),
        (pt.regression("t", loss=lambda p, y: None), "NoneType"),
    ],
)  # fmt: skip
def test_own_losses_of_another_shape_are_refused(task: pt.Task, found: str, holes: bool):
    target = torch.zeros(5, dtype=torch.long) if task.outputs == 3 else torch.zeros(5)
    if holes:
        target[0] = -100 if task.outputs == 3 else NAN
    count = 5 - holes
    found = found.replace("COUNT", str(count))
    with pytest.raises(ValueError, match=rf"task `t`, loss: an own `loss` must give .*, found {found}$"):
        task.total(torch.randn(5, task.outputs), target, count)


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
def test_an_own_loss_of_a_standardised_task_is_measured_in_the_targets_units(holes: bool):
    task = pt.regression("t", loss=nn.L1Loss(), mean=40.0, std=10.0)
    outputs, target = torch.randn(6, 1), torch.randn(6) * 10 + 40
    if holes:
        target[2] = NAN
    kept = ~torch.isnan(target)
    expected = (task.predict(outputs).values - target)[kept].abs().sum()
    torch.testing.assert_close(task.total(outputs, target, int(kept.sum())), expected)


def test_own_losses_may_change_the_dtype():
    task = pt.binary("t", loss=lambda p, y: (p - y).abs())
    outputs, target = torch.randn(4, 1, dtype=torch.bfloat16), torch.tensor([1.0, NAN, 0.0, 1.0])
    assert task.losses(outputs, target).dtype == torch.float32
    task = pt.regression("t", loss=nn.L1Loss(), mean=1000.0)  # which bfloat16 would round to multiples of 4
    assert task.total(torch.ones(2, 1, dtype=torch.bfloat16), torch.full((2,), 1000.0), 2).item() == 2


def test_a_stock_loss_trains_what_the_kinds_own_does():
    x = torch.rand(32, 2)
    y = (x[:, 0] > 0.5).float()
    figures = []
    for loss in (None, nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(reduction="none")):
        torch.manual_seed(0)
        model = pt.models.HardSharing(nn.Linear(2, 4), {"a": nn.Linear(4, 1)})
        run = pt.Trainer(model, [pt.binary("a", loss=loss)], progress=False)
        run.fit((x, y), epochs=2)
        figures.append(run.evaluate((x, y))["loss"])
    assert figures == pytest.approx([figures[0]] * 3)


def test_a_partly_labelled_example_counts_its_given_labels():
    task = pt.multilabel("t", 3)
    outputs = torch.randn(2, 3)
    target = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN]])
    losses = task.losses(outputs, target)
    expected = F.binary_cross_entropy_with_logits(outputs[0, [0, 2]], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(losses, torch.stack([expected, torch.tensor(0.0)]))
    assert task.present(target).tolist() == [True, False]


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30).filter(lambda v: max(v) - min(v) > 1e-3))
def test_standardised_regression_learns_in_standard_deviations_and_answers_in_units(values: list[float]):
    target = torch.tensor(values, dtype=torch.float64)
    task = pt.regression("t").standardized(values)
    outputs = ((target - target.mean()) / target.std(correction=0))[:, None]
    torch.testing.assert_close(task.predict(outputs).values.double(), target, rtol=1e-4, atol=1e-2)
    assert task.losses(outputs, target).max() < 1e-6
    zero = task.losses(torch.zeros(len(values), 1, dtype=torch.float64), target)
    assert zero.mean().item() == pytest.approx(1, rel=1e-6)


def test_standardising_leaves_missing_targets_out():
    task = pt.regression("t", 2).standardized([[0.0, NAN], [2.0, NAN]])
    assert (task.mean, task.std) == (1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, torch.float64])
def test_labels_of_any_dtype_are_taken(dtype: torch.dtype):
    values = torch.tensor([0, 1, 1]).to(dtype)
    assert pt.binary("t").check(values, "train").tolist() == [0, 1, 1]
    assert pt.classification("t", 2).check(values, "train").dtype == torch.int64
    assert pt.multilabel("t", 2).check(values[:2][None], "train").tolist() == [[0, 1]]
    assert pt.binary("t").check(values[:, None], "train").shape == (3,)


def test_missing_labels_of_integer_and_float_targets():
    assert pt.binary("t").present(pt.binary("t").check(torch.tensor([0, -100, 1]), "train")).tolist() == [
        True,
        False,
        True,
    ]
    classes = pt.classification("t", 3)
    assert classes.check(torch.tensor([0.0, NAN, 2.0]), "train").tolist() == [0, -100, 2]
    labels = pt.multilabel("t", 2)
    assert labels.present(labels.check(torch.tensor([[-100, -100], [0, -100]]), "train")).tolist() == [False, True]


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        (pt.binary("t"), torch.tensor([0.0, 2.0]), "binary targets must be 0, 1 or missing (NaN), found 2.0"),
        (pt.binary("t"), torch.tensor([0, -1]), "binary targets must be 0, 1 or missing (NaN), found -1.0"),
        (pt.binary("t"), torch.zeros(2, 2), "targets must be a vector of one value per example, found shape (2, 2)"),
        (pt.classification("t", 3), torch.tensor([0, 3]), "class targets must be 0..2 or -100 (missing), found 3"),
        (pt.classification("t", 3), torch.tensor([-1, 0]), "class targets must be 0..2 or -100 (missing), found -1"),
        (pt.classification("t", 3), torch.tensor([0.5]), "class targets must be whole numbers, found 0.5"),
        (pt.multilabel("t", 3), torch.zeros(4, 2), "multi-label targets must have shape (N, 3), found shape (4, 2)"),
        (pt.multilabel("t", 2), torch.tensor([[0.0, 7.0]]), "multi-label targets must be 0, 1 or missing (NaN), found 7.0"),
        (pt.regression("t", 2), torch.zeros(4), "regression targets must have shape (N, 2), found shape (4,)"),
        (pt.regression("t"), torch.tensor([math.inf]), "regression targets must be finite or missing (NaN), found an infinite"),
    ],
)  # fmt: skip
def test_bad_targets_are_refused(task: pt.Task, target: Tensor, message: str):
    with pytest.raises(ValueError) as caught:
        task.check(target, "validation")
    assert str(caught.value).startswith("task `t`, validation: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pt.binary("t", weight=0), "a task's `weight` must be above 0, found 0 for task `t`"),
        (lambda: pt.binary("t", weight=-1.0), "a task's `weight` must be above 0, found -1.0 for task `t`"),
        (lambda: pt.binary("t", weight=NAN), "a task's `weight` must be above 0, found nan for task `t`"),
        (lambda: pt.binary("t", positive_weight=0), "`positive_weight` must be above 0, found 0"),
        (lambda: pt.binary(""), "a task's name must be non-empty and free of '.' and '/'"),
        (lambda: pt.binary("a.b"), "found 'a.b'"),
        (lambda: pt.classification("t", 1), "`classes` must be at least 2, found 1"),
        (lambda: pt.classification("t", 2, class_weights=[1]), "`class_weights` must be 2 factors of at least 0, found [1]"),
        (lambda: pt.classification("t", 2, class_weights=[1, -1]), "found [1, -1]"),
        (lambda: pt.classification("t", 2, label_smoothing=1.0), "`label_smoothing` must be in [0, 1), found 1.0"),
        (lambda: pt.classification("t", 2, labels=["x"]), "`labels` must name all 2 classes, found 1 names"),
        (lambda: pt.binary("t", labels=["x"]), "`labels` must name all 2 classes, found 1 names"),
        (lambda: pt.multilabel("t", 3, labels=["x", "y"]), "`labels` must name all 3 labels, found 2 names"),
        (lambda: pt.regression("t", 2, labels=["x"]), "`labels` must name all 2 dimensions, found 1 names"),
        (lambda: pt.multilabel("t", 1), "`count` must be at least 2, found 1"),
        (lambda: pt.multilabel("t", 2, positive_weights=[1, 0]), "`positive_weights` must be 2 factors above 0, found [1, 0]"),
        (lambda: pt.regression("t", 0), "`dimensions` must be at least 1, found 0"),
        (lambda: pt.regression("t", std=0), "`std` must be above 0, found 0"),
        (lambda: pt.regression("t").standardized([3.0, 3.0]), "standardising needs at least two different targets"),
        (lambda: pt.regression("t").standardized([]), "standardising needs at least two different targets"),
        (lambda: named([pt.binary("t"), pt.regression("t")]), "tasks must have different names, found ['t', 't']"),
        (lambda: named([]), "there must be at least one task, found none"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(build: Any, message: str):
    with pytest.raises(ValueError) as caught:
        build()
    assert message in str(caught.value)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="`loss` must be callable, found str for task `t`"):
        pt.binary("t", loss="mse")
    with pytest.raises(TypeError, match=r"tasks must be polytask tasks .* found 'a'"):
        named(["a"])


def test_predictions_are_labels_and_probabilities():
    outputs = torch.randn(50, 4)
    binary = pt.binary("t").predict(outputs[:, :1])
    torch.testing.assert_close(binary.probabilities, torch.sigmoid(outputs[:, 0]))
    assert torch.equal(binary.labels, (outputs[:, 0] > 0).long())
    classes = pt.classification("t", 4).predict(outputs)
    torch.testing.assert_close(classes.probabilities.sum(1), torch.ones(50))
    assert torch.equal(classes.labels, classes.probabilities.argmax(1))
    labels = pt.multilabel("t", 4).predict(outputs)
    assert torch.equal(labels.labels, (outputs > 0).long())
    assert ((labels.probabilities > 0) & (labels.probabilities < 1)).all()
    numbers = pt.regression("t", mean=10.0, std=2.0).predict(outputs[:, :1])
    assert numbers.probabilities is None
    torch.testing.assert_close(numbers.values, outputs[:, 0] * 2 + 10)


def test_description_is_plain_data():
    import json

    for task, *_ in _cases().values():
        described = json.loads(json.dumps(task.describe()))
        assert described["name"] == "t"
        assert described["kind"] == type(task).__name__.lower()
        assert described["outputs"] == task.outputs
