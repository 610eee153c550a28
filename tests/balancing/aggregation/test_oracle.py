"""Every Gramian method against TorchJD in float64, on 200 random and all hard matrices.

What is compared is the resulting gradient Jᵀ w, at a relative difference of 1e-6, on J / ‖J‖: TorchJD's
thresholds are absolute. Where TorchJD does not solve the same problem, or not as exactly, `EXCEPTIONS` names the
matrix and the reason, and the methods' own tests check the optimality conditions there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.inputs import HARD
from torch import Tensor

import polytask as pt
from polytask.balancing import Evidence
from polytask.balancing.aggregation.orders import Orders

torchjd = pytest.importorskip("torchjd.aggregation")

SIZES = (2, 3, 5, 10, 40)
PER_SIZE = 40


def _random(size: int, count: int = PER_SIZE) -> dict[str, Tensor]:
    """A quarter of them has fewer columns than rows."""
    cases = {}
    for index in range(count):
        stream = torch.Generator().manual_seed(1000 * size + index)
        columns = size // 2 + 1 if index % 4 == 0 else 2 * size
        cases[f"{size}x{columns}, {index}"] = torch.randn(size, columns, generator=stream, dtype=torch.float64)
    return cases


def _exact() -> Any:
    from torchjd.linalg import QuadprogProjector

    return QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)  # its defaults, 1e-4, move the result


METHODS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "Sum": (pt.aggregation.Sum, lambda: torchjd.Sum()),
    "MGDA": (pt.aggregation.MGDA, lambda: torchjd.MGDA()),
    "UPGrad": (pt.aggregation.UPGrad, lambda: torchjd.UPGrad(projector=_exact())),
    "DualProj": (pt.aggregation.DualProj, lambda: torchjd.DualProj(projector=_exact())),
    "IMTLG": (pt.aggregation.IMTLG, lambda: torchjd.IMTLG()),
    "ConFIG": (pt.aggregation.ConFIG, lambda: torchjd.ConFIG()),
    "AlignedMTL": (pt.aggregation.AlignedMTL, lambda: torchjd.AlignedMTL()),
    "AlignedMTL median": (lambda: pt.aggregation.AlignedMTL("median"), lambda: torchjd.AlignedMTL(scale_mode="median")),
    "AlignedMTL rmse": (lambda: pt.aggregation.AlignedMTL("rmse"), lambda: torchjd.AlignedMTL(scale_mode="rmse")),
    "PCGrad": (pt.aggregation.PCGrad, lambda: torchjd.PCGrad()),
    "GradVac": (lambda: pt.aggregation.GradVac(beta=0.5), lambda: torchjd.GradVac(beta=0.5, eps=1e-300)),
    "CAGrad": (pt.aggregation.CAGrad, lambda: torchjd.CAGrad(c=0.5, norm_eps=1e-12)),
    "FairGrad": (pt.aggregation.FairGrad, lambda: torchjd.FairGrad(alpha=1.0)),
}  # NashMTL is left out altogether: TorchJD's misses its equations on some matrices; they are checked in test_nash_mtl

TOLERANCES = {
    "CAGrad": 1e-3,  # a conic solver, to about 1e-8 of the objective, so 1e-4 of the direction
    "FairGrad": 1e-3,  # least squares, to 1e-8 of the squared residual
}

REGULARISED = "its ridge of 1e-12 of the longest squared gradient is not small beside the shortest"
EXCEPTIONS: dict[str, dict[str, str]] = {
    "UPGrad": dict.fromkeys(
        ["rows from 1 to 1000", "rows from 0.001 to 1000", "rows from 1e-10 to 1e+15", "nearly opposed"], REGULARISED
    ),
    "DualProj": dict.fromkeys(
        ["rows from 1 to 1000", "rows from 0.001 to 1000", "rows from 1e-10 to 1e+15", "nearly opposed"], REGULARISED
    ),
    "ConFIG": {
        "random 2x1": "zero here, the root of rounding there",
        "opposed, unequal": "zero here, the root of rounding there",
        "nearly equal": "differences of 1e-9 are below what a Gramian resolves",
        "nearly opposed": "differences of 1e-7 are at the edge of what a Gramian resolves",
    },
    "AlignedMTL rmse": {"nearly opposed": "the small eigenvalue is at the edge of rounding"},
    "CAGrad": {
        "random 1x3": "a single gradient is left as it is here",
        "zero row of 2": "several directions are best: here the nearest to the mean, there zero",
        "zero row of 4": "several directions are best: here the nearest to the mean, there zero",
        "opposed among 3": "several directions are best: here the nearest to the mean, there zero",
        "nearly opposed": "the conic solver's tolerance is coarser than the gap",
        "rows from 1e-10 to 1e+15": "the short gradients are below the conic solver's tolerance",
        "pair of 1e-10 and 1e+15": "the short gradient is below the conic solver's tolerance",
    },
    "FairGrad": {
        "random 1x3": "a single gradient is left as it is here",
        "nearly opposed": "least squares stop early",
        "rows from 1 to 1000": "least squares stop early",
        "rows from 0.001 to 1000": "least squares stop early",
        "rows from 1e-10 to 1e+15": "least squares stop early",
        "pair of 0.001 and 1000": "least squares stop early",
        "pair of 1e-10 and 1e+15": "least squares stop early",
    },
}


def _reason(method: str, name: str, jacobian: Tensor) -> str | None:
    """Why TorchJD is no oracle here; None if it is one."""
    size = len(jacobian)
    if method == "MGDA" and size > 2:
        return "TorchJD's Frank-Wolfe iterations stop early"
    dependent = torch.linalg.matrix_rank(jacobian) < size
    if method == "IMTLG" and dependent:
        return "another extension to dependent gradients: the pseudo-inverse of C here, of G there"
    if method == "FairGrad" and dependent and not (jacobian @ _ours("FairGrad", jacobian) > 0).all():
        return "the equations have no solution: zero here, a residual's least squares there"
    return EXCEPTIONS.get(method, {}).get(name)


def _ours(method: str, jacobian: Tensor) -> Tensor:
    evidence = Evidence([str(k) for k in range(len(jacobian))], jacobian=jacobian)
    return torch.as_tensor(METHODS[method][0]().combine(evidence)).to(jacobian) @ jacobian


def _theirs(method: str, jacobian: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    size = len(jacobian)
    if method in ("PCGrad", "GradVac") and size > 1:  # in the same random orders
        rows = Orders(0)(size, jacobian.device)
        own = torch.arange(size).unsqueeze(1)
        orders = iter(torch.cat([rows, own], 1) if method == "PCGrad" else rows - (rows > own).long())
        monkeypatch.setattr(torch, "randperm", lambda _: next(orders))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = METHODS[method][1]()(jacobian)
    monkeypatch.undo()
    return found


def _compare(method: str, cases: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> int:
    compared = 0
    for name, jacobian in cases.items():
        unit = jacobian / jacobian.norm().clamp(min=1e-300)
        if _reason(method, name, unit) is None:
            ours, theirs = _ours(method, unit), _theirs(method, unit, monkeypatch)
            off = (ours - theirs).norm() / theirs.norm().clamp(min=1e-2)  # ‖J‖ is 1, and some results are zero
            assert off <= TOLERANCES.get(method, 1e-6), f"{method} on {name}: {off:.1e}"
            compared += 1
    return compared


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_random_matrices(method: str, size: int, monkeypatch: pytest.MonkeyPatch):
    count = 8 if (method, size) == ("GradVac", 40) else PER_SIZE  # a tenth of a second each in TorchJD
    compared = _compare(method, _random(size, count), monkeypatch)
    assert compared >= (0 if method == "MGDA" and size > 2 else 3 * count // 4)


@pytest.mark.parametrize("method", METHODS)
def test_hard_matrices(method: str, monkeypatch: pytest.MonkeyPatch):
    assert _compare(method, HARD, monkeypatch) >= 12
