"""What a balancer or a loop is wrongly given is refused, with the rule and what was found, and nothing moves."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.helpers import data, network, same, trainer, weights
from torch import Tensor, nn

import polytask as pt
from polytask.cli import main

S, A = pt.scalarization, pt.aggregation
NAN, INF = float("nan"), float("inf")

SETTINGS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "weights, too few": (lambda: S.Linear([1.0]), ValueError, "`weights` must hold one value per objective (`a`, `b`), found 1"),
    "weights, too many": (lambda: S.Linear([1.0, 2.0, 3.0]), ValueError, "`weights` must hold one value per objective (`a`, `b`), found 3"),
    "weights, negative": (lambda: S.Linear([1.0, -1.0]), ValueError, "every value of `weights` must be finite and at least 0, found -1.0 for position 1"),
    "weights, none above 0": (lambda: S.Linear([0.0, 0.0]), ValueError, "at least one weight must be above 0, found none"),
    "preference, too few": (lambda: S.SmoothTchebycheff([1.0]), ValueError, "`preference` must hold one value per objective (`a`, `b`), found 1"),
    "preference, negative": (lambda: S.SmoothTchebycheff([1.5, -0.5]), ValueError, "every value of `preference` must be finite and at least 0, found -0.5 for position 1"),
    "preference, not a number": (lambda: S.SmoothTchebycheff([NAN, 1.0]), ValueError, "every value of `preference` must be finite and at least 0, found nan for position 0"),
    "preference, sum": (lambda: S.SmoothTchebycheff([0.5, 0.6]), ValueError, "`preference` must sum to 1, found a sum of 1.1"),
    "preference, one number": (lambda: S.SmoothTchebycheff(0.5), TypeError, "`preference` must be {objective: value} or one value per objective, found 0.5"),
    "preference, a word": (lambda: S.SmoothTchebycheff("mean"), TypeError, "`preference` must be {objective: value} or one value per objective, found 'mean'"),
    "preference, another": (lambda: A.UPGrad({"a": 1.0, "c": 1.0}), ValueError, "`preference` names an unknown objective `c`: known: `a`, `b`"),
    "preference, missing": (lambda: A.DualProj({"a": 1.0}), ValueError, "`preference` must name every objective, found none for `b`"),
    "preference, infinite": (lambda: A.AlignedMTL(preference=[INF, 1.0]), ValueError, "every value of `preference` must be finite and at least 0, found inf for position 0"),
    "preference, all 0": (lambda: A.UPGrad([0.0, 0.0]), ValueError, "at least one value of `preference` must be above 0, found [0.0, 0.0]"),
    "leak, too many": (lambda: A.GradDrop([0.1, 0.2, 0.3]), ValueError, "`leak` must hold one value per objective (`a`, `b`), found 3"),
    "leak, above 1": (lambda: A.GradDrop({"a": 0.1, "b": 1.2}), ValueError, "every value of `leak` must be finite and at least 0 and at most 1, found 1.2 for `b`"),
    "bounds, another": (lambda: S.FAMO(lower_bounds={"a": 0.0, "bb": 0.0}), ValueError, "`lower_bounds` names an unknown objective `bb`: did you mean `b`?"),
    "classification, another": (lambda: S.Uncertainty(["aa"]), ValueError, "`classification` names an unknown objective `aa`: did you mean `a`?"),
    "Jacobian in low memory": (lambda: A.GradDrop(), ValueError, "gradients='low_memory' gathers a Gramian, found GradDrop, which needs the Jacobian itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_fit_are_refused_by_both_doors(case: str):
    build, kind, message = SETTINGS[case]
    mode = "low_memory" if "low memory" in case else "exact"
    for door in (_fit, _balance):
        model = network()
        before = weights(model)
        with pytest.raises(kind) as caught:
            door(model, build(), mode)
        assert str(caught.value) == message
        assert same(weights(model), before)
        assert all(p.grad is None for p in model.parameters())


def _fit(model: Any, balancer: Any, mode: str) -> None:
    trainer(model, balancer=balancer, gradients=mode).fit(data(), epochs=1)


def _balance(model: Any, balancer: Any, mode: str) -> None:
    pt.balance(_losses(model), shared=model.trunk, balancer=balancer, gradients=mode)


def _losses(model: Any) -> dict[str, Tensor]:
    return {name: output.square().mean() for name, output in model(data()[0]).items()}


HEAD = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 1}}
TRAIN = {
    "data": {"class_path": "CircleRhombus"},
    "model": {
        "class_path": "HardSharing",
        "init_args": {
            "trunk": {"class_path": "MLP", "init_args": {"inputs": 2, "widths": [8]}},
            "heads": {"circle": HEAD, "rhombus": HEAD},
        },
    },
    "epochs": 1,
}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"class_path": "Linear", "init_args": {"weights": [1.0]}}, "`weights` must hold one value per objective (`circle`, `rhombus`), found 1"),
    "unknown weight": ({"class_path": "Linear", "init_args": {"weights": {"circle": 1.0, "rombus": 1.0}}}, "a weight is given for an unknown objective `rombus`: did you mean `rhombus`?"),
    "negative": ({"class_path": "UPGrad", "init_args": {"preference": [0.5, -0.5]}}, "every value of `preference` must be finite and at least 0, found -0.5 for position 1"),
    "length": ({"class_path": "UPGrad", "init_args": {"preference": [0.5, 0.2, 0.3]}}, "`preference` must hold one value per objective (`circle`, `rhombus`), found 3"),
    "sum": ({"class_path": "SmoothTchebycheff", "init_args": {"preference": [0.5, 0.2]}}, "`preference` must sum to 1, found a sum of 0.7"),
    "range": ({"class_path": "CAGrad", "init_args": {"c": -1.0}}, "`c` must be at least 0 and finite, found -1.0"),
    "word": ({"class_path": "MGDA", "init_args": {"normalization": "l1"}}, "`normalization` must be one of 'none', 'l2', 'loss', 'loss+', found 'l1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_that_do_not_fit_are_one_line_on_the_command_line(case: str, tmp_path: Any, capsys: Any):
    import yaml

    balancer, message = CONFIGS[case]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TRAIN | {"trainer": {"balancer": balancer}}))
    assert main(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("polytask: error: ") and message in lines[0]


@pytest.mark.parametrize(
    ("trainer_options", "message"),
    [
        (
            {"balancer": {"class_path": "GradDrop"}, "gradients": "low_memory"},
            "found GradDrop, which needs the Jacobian itself",
        ),
        (
            {"balancer": {"class_path": "MGDA"}, "gradients": "fast"},
            "`gradients` must be one of 'exact', 'features', 'low_memory', found 'fast'",
        ),
    ],
)
def test_ways_to_take_gradients_that_do_not_fit_on_the_command_line(
    trainer_options: Any, message: str, tmp_path: Any, capsys: Any
):
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TRAIN | {"trainer": trainer_options}))
    assert main(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("polytask: error: ") and message in lines[-1]
    assert not any("Traceback" in line for line in lines)


def _refused(losses: Any, shared: Any, balancer: Any = None, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        pt.balance(losses, shared=shared, balancer=balancer or A.MGDA(), **options)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["exact", "low_memory", "features"])
@pytest.mark.parametrize("accumulated", [False, True])
def test_losses_that_cannot_be_balanced_are_named_in_every_mode(mode: str, accumulated: bool):
    w, head = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))
    z = w * 2
    good = z.sum()
    cases = {
        "a loss must be a scalar tensor, found shape (1,) for `b`": good[None],
        "a loss must require a gradient, found that `b` does not": good.detach(),
        "a loss must be finite, found nan for `b`": z.prod() * NAN,
        "a loss must be finite, found -inf for `b`": -z.prod() / 0,
        "every loss must depend on the shared parameters, found that `b` does not": head * 2,
        "every loss must be given once, found one tensor under two names among ['a', 'b']": good,
    }
    for message, bad in cases.items():
        work = pt.Accumulator(shared=[w], balancer=A.MGDA(), gradients=mode)
        with pytest.raises(ValueError) as caught:
            if accumulated:
                work.add({"a": good, "b": bad}, z)
            else:
                pt.balance({"a": good, "b": bad}, shared=[w], balancer=A.MGDA(), gradients=mode, features=z)
        assert str(caught.value) == message
        if accumulated:
            with pytest.raises(ValueError, match="`add` must be called before `finish`, found no losses"):
                work.finish()
    assert w.grad is None and head.grad is None


def test_no_task_at_all():
    assert _refused({}, [nn.Parameter(torch.ones(2))]) == "there must be at least one loss, found none"
    with pytest.raises(ValueError, match="at least one"):
        trainer(tasks=[])


def test_later_losses_that_are_not_finite_are_refused_too():
    """On a CPU each call looks, and what was learned stays as it was."""
    model, balancer = network(), S.Uncertainty()
    for _ in range(2):
        pt.balance(_losses(model), shared=model.trunk, balancer=balancer)
    model.zero_grad()
    state = balancer.state_dict()
    losses = _losses(model)
    assert (
        _refused(losses | {"b": losses["b"] * INF}, model.trunk, balancer) == "a loss must be finite, found inf for `b`"
    )
    assert all(p.grad is None for p in model.parameters())
    assert same(balancer.state_dict(), state)


def test_methods_that_work_at_the_features_need_a_model_with_some():
    for options in ({"balancer": A.GREAT()}, {"balancer": A.MGDA(), "gradients": "features"}):
        model = network(form="partitioned")
        before = weights(model)
        with pytest.raises(ValueError, match=r"works at the feature boundary, found a model \(or losses\) without one"):
            trainer(model, **options).fit(data(), epochs=1)
        assert same(weights(model), before)


def test_mixed_devices_are_told_with_the_name():
    here, elsewhere = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    message = _refused({"a": here.sum(), "b": elsewhere.sum()}, [here])
    assert message.endswith("found `b` on meta and parameters on cpu")
    assert here.grad is None
