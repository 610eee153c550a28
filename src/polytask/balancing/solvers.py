"""Small exact solvers that balancers share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def min_norm_weights(gramian: Tensor) -> Tensor:
    """Weights w on the simplex that minimise wᵀ G w: the point of least norm in the gradients' convex hull.

    Exact up to rounding for any K: closed form for K = 2, else Wolfe's active-set algorithm (*Finding the
    nearest point in a polytope*, `Math. Prog. 11, 1976 <https://doi.org/10.1007/BF01580381>`_), which ends
    after finitely many steps, in float64. Frank-Wolfe iterations, used by the public MGDA codes, stop early
    for K of 3 and more. The Gramian is scaled by its largest entry first, so any scale of gradients works.

    Args:
        gramian: (K, K), symmetric positive semidefinite, on any device (solved on the host).

    Returns:
        (K,) non-negative weights that sum to 1, in the Gramian's dtype and on its device; NaN if an entry of
        the Gramian is not finite.
    """
    matrix = gramian.detach().cpu().double().numpy()
    if not np.isfinite(matrix).all():
        return torch.full_like(gramian.diagonal(), torch.nan)
    weights = _min_norm_pair(matrix) if len(matrix) == 2 else _min_norm_wolfe(matrix)
    return torch.as_tensor(weights, dtype=gramian.dtype, device=gramian.device)


def _min_norm_pair(g: np.ndarray) -> np.ndarray:
    a, b, c = g[0, 0], g[1, 1], g[0, 1]
    scale = max(a, b)
    if scale == 0:
        return np.array([0.5, 0.5])
    if c >= min(a, b):  # the shorter gradient is the nearest point; equal gradients share
        if a == b == c:
            return np.array([0.5, 0.5])
        return np.array([1.0, 0.0]) if a <= b else np.array([0.0, 1.0])
    first = (b / scale - c / scale) / (a / scale + b / scale - 2 * c / scale)
    return np.array([first, 1.0 - first])


def _min_norm_wolfe(g: np.ndarray) -> np.ndarray:
    scale = np.abs(g).max()
    if scale == 0:
        return np.full(len(g), 1.0 / len(g))
    g = g / scale
    active = [int(np.argmin(np.diag(g)))]
    weights = np.zeros(len(g))
    weights[active] = 1.0
    for _ in range(100 * len(g)):  # each pass enlarges or strictly improves the corral; rounding is the only risk
        gradient = g @ weights
        enter = int(np.argmin(gradient))
        # optimal when no vertex lies below the supporting plane through the current point
        if gradient[enter] >= weights @ gradient - 1e-14 or enter in active:
            break
        active.append(enter)
        weights = _shrink_to_face(g, weights, active)
    return np.clip(weights, 0, None) / np.clip(weights, 0, None).sum()


def _shrink_to_face(g: np.ndarray, weights: np.ndarray, active: list[int]) -> np.ndarray:
    """Moves to the least-norm point of the active vertices' affine hull, dropping vertices on the way out."""
    while True:
        target = np.zeros_like(weights)
        target[active] = _affine_min(g[np.ix_(active, active)])
        if (target[active] > 1e-15).all():
            return target
        falling = [i for i in active if target[i] <= 1e-15]
        step = min(weights[i] / (weights[i] - target[i]) if weights[i] > target[i] else 0.0 for i in falling)
        weights = weights + step * (target - weights)
        gone = min(falling, key=lambda i: weights[i])
        weights[gone] = 0.0
        active.remove(gone)


def _affine_min(g: np.ndarray) -> np.ndarray:
    """Weights summing to 1 that minimise wᵀ G w without sign constraints (bordered linear system)."""
    size = len(g)
    bordered = np.block([[g, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
    right = np.append(np.zeros(size), 1.0)
    return np.linalg.lstsq(bordered, right, rcond=1e-15)[0][:size]
