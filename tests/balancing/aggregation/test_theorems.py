"""What the papers claim of their aggregators, on all hard inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.inputs import HARD
from torch import Tensor

import polytask as pt
from polytask.balancing import Aggregator, Evidence
from polytask.balancing.solvers import min_norm_weights

A = pt.aggregation
DETERMINISTIC = [A.Sum, A.MGDA, A.UPGrad, A.DualProj, A.CAGrad, A.IMTLG, A.NashMTL, A.FairGrad, A.AlignedMTL, A.ConFIG]
FIXED = {
    "UPGrad": (0.2924, 1.9006), "DualProj": (0.5556, 1.1111), "MGDA": (0.0, 1.0), "PCGrad": (0.5848, 3.8012),
    "GradVac": (0.5848, 3.8012), "CAGrad": (0.1835, 1.2041), "IMTLG": (0.0767, 1.0), "ConFIG": (0.1588, 2.0706),
    "AlignedMTL": (0.2133, 0.9673), "FairGrad": (0.0766, 0.9985), "NashMTL": (0.0542, 0.7061), "Sum": (2.0, 2.0),
}  # fmt: skip


def weigh(balancer: Aggregator, jacobian: Tensor) -> Tensor:
    names = [str(k) for k in range(len(jacobian))]
    return torch.as_tensor(balancer.combine(Evidence(names, jacobian=jacobian))).to(jacobian)


def direction(balancer: Aggregator, jacobian: Tensor) -> Tensor:
    return weigh(balancer, jacobian) @ jacobian


def cosines(jacobian: Tensor, found: Tensor, against: Tensor | None = None) -> Tensor:
    """With each gradient; relative to the longest result that this could be (`against`) where that is given."""
    lengths = jacobian.norm(dim=1).clamp(min=1e-300)
    return (jacobian / lengths[:, None]) @ (found / (found.norm() if against is None else against).clamp(min=1e-300))


def random_matrix(size: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_values(name: str, dtype: torch.dtype):
    first, second = FIXED[name]
    found = direction(getattr(A, name)(), HARD["fixed"].to(dtype))
    torch.testing.assert_close(found, torch.tensor([first, second, second], dtype=dtype), rtol=0, atol=1e-4)


def test_unclipped_nash_is_fair():
    torch.testing.assert_close(
        direction(A.NashMTL(max_norm=None), HARD["fixed"]), direction(A.FairGrad(), HARD["fixed"])
    )


@pytest.mark.parametrize("kind", [A.MGDA, A.UPGrad, A.DualProj, A.NashMTL, A.FairGrad])
@pytest.mark.parametrize("name", HARD)
def test_no_gradient_is_opposed(kind: Any, name: str):
    """Relative to each gradient's own length and the length that the result has where nothing cancels."""
    jacobian = HARD[name]
    found = direction(kind(), jacobian)
    scale = found.norm().clamp(min=1e-6 * jacobian.norm(dim=1).max())
    assert cosines(jacobian, found, scale).min() >= -1e-6


@pytest.mark.parametrize("size", [2, 3, 5, 10, 40])
def test_no_independent_gradient_is_opposed_by_config(size: int):
    for seed in range(10):
        jacobian = random_matrix(size, 2 * size, seed)
        assert cosines(jacobian, direction(A.ConFIG(), jacobian)).min() > 0


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("size", [2, 3, 5, 10, 40])
def test_aligned_gradients_are_orthogonal_and_equally_long(scale: str, size: int):
    """The weights under each unit preference are the rows of the map that aligns the gradients."""
    jacobian = random_matrix(size, 2 * size)
    names = [str(k) for k in range(size)]
    evidence = Evidence(names, jacobian=jacobian)
    rows = [A.AlignedMTL(scale, {n: float(n == name) for n in names}).combine(evidence) for name in names]
    aligned = torch.stack(rows) @ jacobian
    eigenvalues = torch.linalg.eigvalsh(jacobian @ jacobian.T)
    square = {"min": eigenvalues[0], "median": eigenvalues.median(), "rmse": eigenvalues.mean()}[scale]
    torch.testing.assert_close(aligned @ aligned.T, square * torch.eye(size, dtype=torch.float64), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize("name", [n for n in HARD if len(HARD[n]) > 1])
def test_the_order_of_the_tasks_does_not_matter(kind: Any, name: str):
    jacobian = HARD[name]
    order = torch.randperm(len(jacobian), generator=torch.Generator().manual_seed(1))
    one, other = direction(kind(), jacobian), direction(kind(), jacobian[order])
    # what is zero but for rounding is compared with the longest gradient
    floor = 1e-7 * min(jacobian.norm(dim=1).max().item(), 1.0 if kind in (A.NashMTL, A.FairGrad) else math.inf)
    tolerance = 1e-2 if name == "nearly opposed" else 1e-6  # a cosine of -1 + 5e-15 is known to 1 %
    assert (one - other).norm() <= tolerance * one.norm() + floor


@pytest.mark.parametrize("kind", [A.UPGrad, A.ConFIG, A.Sum])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_linear_under_a_scaling_of_the_gradients(kind: Any, size: int):
    jacobian = random_matrix(size, 2 * size)
    one, other = 10 ** random_matrix(2, size, 3)
    summed = direction(kind(), (2 * one + 3 * other)[:, None] * jacobian)
    parts = 2 * direction(kind(), one[:, None] * jacobian) + 3 * direction(kind(), other[:, None] * jacobian)
    torch.testing.assert_close(summed, parts, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [A.MGDA, A.UPGrad, A.DualProj, A.CAGrad, A.IMTLG, A.AlignedMTL, A.ConFIG])
@pytest.mark.parametrize("scale", [1e-10, 1e15])
def test_the_common_scale_of_the_gradients_does_not_matter(kind: Any, scale: float):
    for size in (2, 3, 8):
        jacobian = random_matrix(size, 2 * size)
        torch.testing.assert_close(
            direction(kind(), scale * jacobian) / scale, direction(kind(), jacobian), rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("kind", [*DETERMINISTIC, A.PCGrad, A.GradVac])
def test_one_task_is_left_alone(kind: Any):
    assert weigh(kind(), random_matrix(1, 5)).tolist() == [1.0]


@pytest.mark.parametrize("kind", [*DETERMINISTIC, A.PCGrad, A.GradVac])
@pytest.mark.parametrize("name", HARD)
def test_single_precision_stays_near_double(kind: Any, name: str):
    """Finite always; near where the Gramian in single precision still tells the gradients apart.

    Aligned-MTL inverts the Gramian as it is, so for it unequal lengths count too.
    """
    jacobian = HARD[name]
    single = weigh(kind(), jacobian.float())
    assert torch.isfinite(single).all()
    lengths = jacobian.norm(dim=1)
    if (lengths > 0).all() and lengths.max() < (30 if kind is A.AlignedMTL else 1e4) * lengths.min():
        unit = jacobian / lengths[:, None]
        if torch.linalg.eigvalsh(unit @ unit.T)[0] > 1e-2:
            double = direction(kind(), jacobian)
            off = (single.double() @ jacobian - double).norm() / double.norm()
            assert off <= 2e-3


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_gradients_that_are_not_numbers_give_weights_that_are_not(kind: Any):
    if kind is A.Sum:
        return
    for size in (2, 4):
        jacobian = random_matrix(size, 5)
        jacobian[1, 2] = math.nan
        assert torch.isnan(weigh(kind(), jacobian)).any()


@pytest.mark.parametrize("seed", range(20))
def test_two_tasks_in_closed_form(seed: int):
    jacobian = random_matrix(2, 3, seed)
    lengths = jacobian.norm(dim=1)
    unit = jacobian / lengths[:, None]
    cosine = unit[0] @ unit[1]
    nash = 1 / (lengths * (1 + cosine).sqrt())
    torch.testing.assert_close(weigh(A.NashMTL(max_norm=None), jacobian), nash, rtol=1e-9, atol=0)
    torch.testing.assert_close(weigh(A.FairGrad(1.0), jacobian), nash, rtol=1e-9, atol=0)
    torch.testing.assert_close(weigh(A.FairGrad(1.0 + 1e-12), jacobian), nash, rtol=1e-8, atol=0)  # by iteration
    torch.testing.assert_close(direction(A.PCGrad(), jacobian), direction(A.UPGrad("sum"), jacobian))
    bisector = unit.sum(0) / unit.sum(0).norm()
    for kind in (A.IMTLG, A.ConFIG, A.NashMTL, A.FairGrad):
        found = direction(kind(), jacobian)
        torch.testing.assert_close(found / found.norm(), bisector, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [A.IMTLG, A.ConFIG, A.NashMTL, A.FairGrad, A.MGDA, A.UPGrad, A.DualProj, A.PCGrad])
@pytest.mark.parametrize("name", ["opposed", "opposed, unequal"])
def test_two_opposed_tasks_stand_still(kind: Any, name: str):
    assert direction(kind(), HARD[name]).norm() <= 1e-7 * HARD[name].norm()


@pytest.mark.parametrize("size", [3, 5, 10, 40])
def test_impartial_projections_are_equal(size: int):
    for kind in (A.IMTLG, A.ConFIG):
        for seed in range(5):
            jacobian = random_matrix(size, 2 * size, seed) * 10 ** random_matrix(size, 1, seed)
            found = cosines(jacobian, direction(kind(), jacobian))
            torch.testing.assert_close(found, found.mean().expand(size), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("size", [3, 10])
def test_the_shortest_gradient_of_the_hull_is_what_normalised_mgda_points_along(size: int):
    jacobian = random_matrix(size, 2 * size) * 10 ** random_matrix(size, 1, 1)
    values = [torch.tensor(0.5 + k, dtype=torch.float64) for k in range(size)]
    lengths, losses = jacobian.norm(dim=1), torch.stack(values)
    names = [str(k) for k in range(size)]
    for word, scales in (("l2", lengths), ("loss", losses), ("loss+", losses * lengths)):
        weights = A.MGDA(word).combine(Evidence(names, values, jacobian))
        scaled = jacobian / scales[:, None]
        nearest = min_norm_weights(scaled @ scaled.T) @ scaled
        found = weights @ jacobian
        assert weights.sum().item() == pytest.approx(1)
        torch.testing.assert_close(found / found.norm(), nearest / nearest.norm(), rtol=1e-6, atol=1e-6)
        assert cosines(jacobian, found).min() > 0


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: A.MGDA("l1"), "`normalization` must be one of 'none', 'l2', 'loss', 'loss+', found 'l1'"),
        (lambda: A.CAGrad(-0.1), "`c` must be at least 0 and finite, found -0.1"),
        (lambda: A.FairGrad(0), "`alpha` must be above 0 and finite, found 0"),
        (lambda: A.NashMTL(0), "`update_every` must be at least 1, found 0"),
        (lambda: A.NashMTL(max_norm=0.0), "`max_norm` must be above 0 or None, found 0.0"),
        (lambda: A.AlignedMTL("max"), "`scale` must be one of 'min', 'median', 'rmse', found 'max'"),
        (lambda: A.GradVac(1.5), "`beta` must be from 0 to 1, found 1.5"),
        (lambda: A.PCGrad(-1), "`seed` must be at least 0, found -1"),
        (lambda: A.UPGrad("max"), "`preference` must be one of 'mean', 'sum', found 'max'"),
        (
            lambda: A.UPGrad({"a": -1.0}),
            "every value of `preference` must be finite and at least 0, found -1.0 for `a`",
        ),
        (lambda: A.DualProj([0, 0.0]), "at least one value of `preference` must be above 0, found [0, 0.0]"),
        (
            lambda: A.UPGrad([1.0]).setup(["a", "b"]),
            "`preference` must hold one value per objective (`a`, `b`), found 1",
        ),
        (
            lambda: A.AlignedMTL(preference={"a": 1.0}).setup(["a", "b"]),
            "`preference` must name every objective, found none for `b`",
        ),
    ],
)
def test_refusals(build: Any, rule: str):
    with pytest.raises(ValueError) as caught:
        build()
    assert str(caught.value) == rule


@pytest.mark.parametrize("kind", [A.UPGrad, A.DualProj, A.AlignedMTL])
def test_preferences_go_by_name(kind: Any):
    jacobian = random_matrix(3, 5)
    by_order, by_name = kind(preference=[0.2, 0.3, 0.5]), kind(preference={"c": 0.5, "a": 0.2, "b": 0.3})
    for balancer in (by_order, by_name):
        balancer.setup(["a", "b", "c"])
    expected = by_name.combine(Evidence(["a", "b", "c"], jacobian=jacobian))
    torch.testing.assert_close(by_order.combine(Evidence(["a", "b", "c"], jacobian=jacobian)), expected)
    turned = by_name.combine(Evidence(["b", "c", "a"], jacobian=jacobian[[1, 2, 0]]))
    torch.testing.assert_close(turned[[2, 0, 1]], expected)
    torch.testing.assert_close(
        weigh(kind(preference="sum"), jacobian), 3 * weigh(kind(), jacobian), rtol=1e-9, atol=1e-12
    )


def test_negative_losses_cannot_normalise():
    values = [torch.tensor(1.0), torch.tensor(-2.0)]
    with pytest.raises(ValueError, match="needs losses of at least 0, found -2 for `b`"):
        A.MGDA("loss").combine(Evidence(["a", "b"], values, random_matrix(2, 3)))
