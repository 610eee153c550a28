"""The ordered weighted ℓ1 norm: weight patterns, the norm itself and its exact proximal operator.

Ω(v) = Σ_i θ_i |v|_[i], where |v|_[1] ≥ |v|_[2] ≥ … are the sorted absolute values and θ_1 ≥ θ_2 ≥ … ≥ 0: the largest
entry meets the largest weight. Equal weights give the ℓ1 norm, one weight above zero the maximum; weights that
fall pull entries of like size to exactly one value. On the norms of groups of weights it is GrOWL.

Papers: Bogdan, van den Berg, Sabatti, Su and Candès 2015, `arXiv:1407.3824 <https://arxiv.org/abs/1407.3824>`_ (the
    norm and its prox); Oswal, Cox, Lambon-Ralph, Rogers and Nowak 2016 (GrOWL); Zhang, Wang, Figueiredo and Balzano
    2018, `openreview.net/forum?id=rypT3fb0b <https://openreview.net/forum?id=rypT3fb0b>`_ (GrOWL for networks).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from polytask.errors import at_least, one_of, whole

PATTERNS = ("spike", "linear", "pld")


def pattern(kind: str, n: int, beta1: float = 0.8, beta2: float = 0.2, tau: float = 0.5) -> Tensor:
    """(n,) weights θ, non-increasing, float64.

    Args:
        kind: ``spike``: β1 + β2, then β2 throughout. ``linear``: β1 + β2 (n − i) / n for i = 1 … n. ``pld`` (partly
            linearly decaying): β1 + β2 (p − i + 1) for the first p = ⌊τ n⌋, then β1 throughout.
        n: how many, at least 1.
        beta1: β1 at least 0.
        beta2: β2 at least 0; not both 0.
        tau: τ from 0 to 1, for ``pld`` alone.

    Raises:
        ValueError: an unknown pattern or a number out of range.

    >>> pattern("spike", 3).tolist(), pattern("linear", 2, 1.0, 0.5).tolist()
    ([1.0, 0.2, 0.2], [1.25, 1.0])
    >>> pattern("pld", 4, 0.5, 1.0, tau=0.5).tolist()
    [2.5, 1.5, 0.5, 0.5]
    """
    one_of("pattern", kind, PATTERNS)
    whole("n", n, 1)
    check_pattern(beta1, beta2, tau)
    i = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == "spike":
        return beta2 + beta1 * (i == 1).double()
    if kind == "linear":
        return beta1 + beta2 * (n - i) / n
    return beta1 + beta2 * (math.floor(n * tau) - i + 1).clamp(min=0)


def check_pattern(beta1: float, beta2: float, tau: float) -> None:
    """Raises `ValueError` unless the numbers make a pattern."""
    for name, value in (("beta1", beta1), ("beta2", beta2), ("tau", tau)):
        at_least(name, value, 0)
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be finite, found {value}")
    if not beta1 + beta2 > 0:
        raise ValueError("`beta1` or `beta2` must be above 0, found 0 for both")
    if not tau <= 1:
        raise ValueError(f"`tau` must be at most 1, found {tau}")


def norm(values: Tensor, weights: Tensor) -> Tensor:
    """Ω(v), a scalar, differentiable wherever no two absolute values are equal.

    Args:
        values: (n,) v.
        weights: (n,) θ, non-increasing and at least 0.

    >>> norm(torch.tensor([1.0, -3.0, 2.0]), torch.tensor([1.0, 0.5, 0.0]))
    tensor(4.)
    """
    return values.abs().sort(descending=True).values @ weights.to(values)


def prox(values: Tensor, weights: Tensor) -> Tensor:
    """The minimiser of ½ ‖x − v‖² + Ω(x): exact, ties and zeros included, in O(n log n).

    With |v| sorted in descending order, the sorted solution is the isotonic (non-increasing) regression of |v| − θ,
    cut off at zero. For norms of rows, scale each row by its new norm over its old.

    Args:
        values: (n,) v, floating; worked on in float64 and returned in its own type on its own device. On an accelerator
            the n numbers travel to the host and back.
        weights: (n,) step · θ, non-increasing and at least 0.

    Returns:
        (n,) x: the sign of v, |x| ≤ |v|, ordered as v is, to rounding.

    Raises:
        ValueError: another number of weights than of values, or weights that are negative, rise, or are not finite.

    >>> prox(torch.tensor([1.0, -0.9, 0.5]), torch.tensor([1.0, 0.2, 0.2]))
    tensor([ 0.3500, -0.3500,  0.3000])
    """
    theta = weights.detach().cpu().double().numpy()
    _check(values, theta)
    found = _prox(values.detach().cpu().double().numpy(), theta)
    return torch.from_numpy(found).to(values)


def _prox(values: np.ndarray, theta: np.ndarray) -> np.ndarray:
    from scipy.optimize import isotonic_regression  # 0.2 s to import

    sizes = np.abs(values)
    order = np.argsort(-sizes)
    fitted = isotonic_regression(sizes[order] - theta, increasing=False).x
    found = np.empty_like(sizes)
    found[order] = np.maximum(fitted, 0.0)
    return np.copysign(found, values)


def _check(values: Tensor, theta: np.ndarray) -> None:
    if values.dim() != 1 or theta.shape != tuple(values.shape):
        raise ValueError(f"`weights` must hold one weight per value, found {theta.shape} for {tuple(values.shape)}")
    if not len(theta):
        raise ValueError("`values` must hold at least one value, found none")
    if not (np.isfinite(theta[0]) and theta[-1] >= 0 and (np.diff(theta) <= 0).all()):
        raise ValueError("`weights` must be finite, at least 0 and must not rise, found others")
