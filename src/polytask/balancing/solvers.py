"""Small exact solvers that balancers share.

Each takes Gramians (..., K, K) of K gradients, K from 1 to 64, in any floating dtype, and works in float64 on
the *unit* Gramian C = D⁻¹ G D⁻¹, D = diag(‖g_1‖, …, ‖g_K‖), so that neither the common scale of the gradients
nor the ratios between their lengths cost accuracy. A gradient of zero takes no part.

There are two paths. On the *host* path (CPU tensors; `polytask.balancing.host`) quadratic programs are solved
exactly by active-set methods on NumPy and LAPACK, and iterations stop when they have converged. On the *device*
path (accelerators) everything stays where the Gramian is: a fixed number of batched iterations, an
interior-point method in place of the active set, and no synchronisation with the host but for
`torch.linalg.eigh`. Both give the same answer; the argument `path` forces one of them.

Nothing here is differentiated through: weights are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polytask.balancing import host

Path = Literal["host", "device"]

_INTERIOR_STEPS = 25
_NEWTON_STEPS = 30
_RADIUS_STEPS = 12


def on_host(gramian: Tensor, path: Path | None = None) -> bool:
    """Whether the host path serves this tensor (MPS has no float64, so its Gramians are solved on the host)."""
    return path == "host" or (path is None and gramian.device.type in ("cpu", "mps"))


def _on_host(solver: Callable[..., np.ndarray], gramian: Tensor, *others: Tensor) -> Tensor:
    """`solver` of each Gramian of the batch, with its slice of the others."""
    if gramian.dim() > 2:
        flat = (tensor.flatten(0, -3) for tensor in (gramian, *others))
        parts = [_on_host(solver, *slices) for slices in zip(*flat, strict=True)]
        return torch.stack(parts).reshape(gramian.shape[:-2] + parts[0].shape)
    matrix = gramian.detach().cpu().double().numpy()
    arrays = [other.detach().cpu().double().numpy() for other in others]
    finite = math.isfinite(matrix.sum())
    unit = host.Unit(matrix if finite else np.eye(len(matrix)), torch.finfo(gramian.dtype).eps)
    found = solver(unit, *arrays)
    return torch.from_numpy(found if finite else found * np.nan).to(gramian)


def project_to_simplex(point: Tensor) -> Tensor:
    """The nearest point with non-negative entries that sum to 1, along the last dimension.

    By sorting (Held, Wolfe and Crowder 1974, `doi:10.1007/BF01580223 <https://doi.org/10.1007/BF01580223>`_):
    max(0, x − τ), with τ set by the longest prefix of the sorted entries that stays positive.

    Args:
        point: (..., K) floating.

    >>> project_to_simplex(torch.tensor([0.9, 0.5, -1.0]))
    tensor([0.7000, 0.3000, 0.0000])
    """
    ordered = point.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    ranks = torch.arange(1, point.shape[-1] + 1, device=point.device, dtype=point.dtype)
    kept = (ordered * ranks > excess).sum(-1, keepdim=True).clamp(min=1)
    threshold = excess.gather(-1, kept - 1) / kept
    return (point - threshold).clamp(min=0)


def min_norm_weights(gramian: Tensor, path: Path | None = None) -> Tensor:
    """Weights w on the simplex that minimise wᵀ G w: the point of least norm in the gradients' convex hull.

    Closed form for K = 2. For more, with a_k = min_j ‖g_j‖ / ‖g_k‖ the answer is proportional to a ∘ v, where
    v minimises ‖Σ_k v_k ĝ_k‖² + (aᵀ v − 1)² over v ≥ 0: a non-negative least-squares problem, which has the
    same rays of solutions and no equality constraint. Frank-Wolfe iterations, used by the public MGDA codes,
    stop early for K of 3 and more.

    Args:
        gramian: (..., K, K), symmetric positive semidefinite.
        path: forces the host or the device path.

    Returns:
        (..., K) non-negative weights that sum to 1, in the Gramian's dtype and on its device; NaN if an entry
        of the Gramian is not finite.

    >>> min_norm_weights(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.6000, 0.4000])
    """
    if on_host(gramian, path):
        return _on_host(host.min_norm, gramian)
    unit, lengths, zero, noise = _unit(gramian)
    least = lengths.masked_fill(zero, math.inf).amin(-1, keepdim=True)
    inverse = torch.where(zero, 0.0, least / lengths)  # a
    if gramian.shape[-1] == 2:
        weights = _min_norm_pair(unit[..., 0, 1], inverse)
    else:
        lifted = unit + inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        weights = _non_negative(lifted, inverse.unsqueeze(-2), noise).squeeze(-2) * inverse
        weights = weights / weights.sum(-1, keepdim=True)
    stationary = zero / zero.sum(-1, keepdim=True).clamp(min=1)
    weights = torch.where(zero.any(-1, keepdim=True), stationary.to(weights), weights)
    return _returned(weights, gramian)


def _min_norm_pair(cosine: Tensor, inverse: Tensor) -> Tensor:
    """With lengths 1/a: w_1 ∝ a_1 (a_1 − c a_2), and likewise; the shorter gradient where that is negative."""
    other = inverse.flip(-1)
    weights = (inverse * (inverse - cosine.unsqueeze(-1) * other)).clamp(min=0)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-300), 0.5)


def dual_cone_weights(gramian: Tensor, targets: Tensor, path: Path | None = None) -> Tensor:
    """Projects combinations of the gradients onto their dual cone, the directions that conflict with none.

    For each row u of `targets`: argmin_w wᵀ G w subject to w ≥ u; Jᵀ w is then the nearest vector to Jᵀ u that
    has a non-negative inner product with every gradient. In x = D (w − u) these are non-negative quadratic
    programs that share one matrix, solved together; closed form for K = 2: x = max(0, −C D u).

    Args:
        gramian: (..., K, K), symmetric positive semidefinite.
        targets: (..., R, K), non-negative: R vectors to project, as weights.
        path: forces the host or the device path.

    Returns:
        (..., R, K) weights, in the Gramian's dtype; NaN if an entry of the Gramian is not finite.

    >>> dual_cone_weights(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]), torch.eye(2))
    tensor([[1.0000, 0.5789],
            [1.2222, 1.0000]])
    """
    if on_host(gramian, path):
        return _on_host(host.dual_cone, gramian, targets)
    unit, lengths, zero, noise = _unit(gramian)
    targets = targets.to(unit)
    pull = -(targets * lengths.masked_fill(zero, 0.0).unsqueeze(-2)) @ unit
    # the scale of each row rides outside, so that tolerances are relative to it
    scale = pull.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    closed = gramian.shape[-1] == 2
    steps = pull.clamp(min=0) if closed else scale * _non_negative(unit, pull / scale, noise)
    return _returned(targets + steps / lengths.unsqueeze(-2), gramian)


def fair_weights(gramian: Tensor, alpha: float = 1.0, path: Path | None = None) -> Tensor:
    """Positive weights with (G w)_k = w_k^(−1/α): Nash's bargaining solution for α = 1.

    They minimise the convex function ½ wᵀ G w − Σ_k φ(w_k), φ' (w) = w^(−1/α), by Newton's method with a line
    search. Closed form for K = 2 and α = 1: 1 / (‖g_k‖ √(1 + c)), c the cosine.

    Args:
        gramian: (..., K, K), symmetric positive semidefinite.
        alpha: above 0.
        path: forces the host or the device path.

    Returns:
        (..., K) weights, in the Gramian's dtype. All 0 where no solution exists, because zero is in the convex
        hull of the non-zero gradients (to rounding in the Gramian's dtype); 0 for gradients of zero; NaN if an
        entry of the Gramian is not finite.

    >>> fair_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    tensor([1.0000, 0.5000])
    """
    if on_host(gramian, path):
        return _on_host(lambda unit: host.fair(unit, alpha), gramian)
    unit, lengths, zero, noise = _unit(gramian)
    size = gramian.shape[-1]
    count = (~zero).sum(-1, keepdim=True).clamp(min=1)
    lengths_log = torch.where(zero, 0.0, lengths.log())
    middle = lengths_log.sum(-1, keepdim=True) / count
    power = (1 - alpha) / (1 + alpha)
    if size == 2 and alpha == 1.0:
        cosine = torch.where(zero.any(-1), 0.0, unit[..., 0, 1])
        steps = ((1 + cosine).clamp(min=1e-300)).rsqrt().unsqueeze(-1).expand_as(lengths)
        apart = (1 + cosine) / 2 > noise
    else:
        # v = D w solves (C v)_k = t_k v_k^(−1/α); in z = v / r, r_k = ‖g_k‖^power, all is of order one
        rates = (power * (lengths_log - middle)).exp()
        apart = _hull_distance(unit, zero, noise) > noise
        safe = torch.where(apart[..., None, None], unit, torch.eye(size, dtype=unit.dtype, device=unit.device))
        steps = rates * _newton(safe, rates, alpha)
    weights = steps * (power * middle).exp() / lengths
    return _returned(torch.where(zero | ~apart.unsqueeze(-1), 0.0, weights), gramian)


def _hull_distance(unit: Tensor, zero: Tensor, noise: float) -> Tensor:
    """Squared distance of the non-zero unit gradients' convex hull from zero."""
    present = (~zero).to(unit)
    lifted = unit + present.unsqueeze(-1) * present.unsqueeze(-2)
    nearest = _non_negative(lifted, present.unsqueeze(-2), noise).squeeze(-2)
    nearest = nearest / nearest.sum(-1, keepdim=True).clamp(min=1e-300)
    return ((nearest.unsqueeze(-2) @ unit).squeeze(-2) * nearest).sum(-1)


def _newton(unit: Tensor, rates: Tensor, alpha: float) -> Tensor:
    """z > 0 with r_k (C (r ∘ z))_k = r_k² z_k^(−1/α)."""
    matrix = rates.unsqueeze(-1) * unit * rates.unsqueeze(-2)
    strengths = rates.square()
    z = torch.ones_like(rates)
    trials = 0.5 ** torch.arange(8, device=unit.device, dtype=unit.dtype)
    for _ in range(_NEWTON_STEPS):
        pulls = strengths * z.pow(-1 / alpha)
        gradient = (matrix @ z.unsqueeze(-1)).squeeze(-1) - pulls
        hessian = matrix + torch.diag_embed(pulls / (alpha * z))
        factor = torch.linalg.cholesky_ex(hessian).L
        move = -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        longest = 0.95 / (-move / z).amax(-1, keepdim=True).clamp(min=0.95)
        steps = longest * trials  # (..., 8)
        points = z.unsqueeze(-2) + steps.unsqueeze(-1) * move.unsqueeze(-2)  # (..., 8, K)
        # the convex function's slope along the line, the nearest to 0: unlike its value, exact to the last digits
        slopes = ((points @ matrix - strengths.unsqueeze(-2) * points.pow(-1 / alpha)) * move.unsqueeze(-2)).sum(-1)
        best = slopes.abs().argmin(-1, keepdim=True)
        update = points.gather(-2, best.unsqueeze(-1).expand(*best.shape, z.shape[-1])).squeeze(-2)
        z = torch.where(update.isfinite().all(-1, keepdim=True), update, z)
    return z


def conflict_averse_weights(gramian: Tensor, c: float, path: Path | None = None) -> Tensor:
    """Weights of the direction d within c ‖g_0‖ of the mean gradient g_0 that maximises min_k ⟨g_k, d⟩.

    For K = 2 in closed form, from the dual min_w ⟨g_w, g_0⟩ + c ‖g_0‖ ‖g_w‖ over the simplex. For more, from
    the primal: the nearest d to g_0 with ⟨g_k, d⟩ ≥ t for all k is a non-negative quadratic program; its
    distance from g_0 is a convex, increasing function of t, and Newton's method, started above the root, finds
    the t at which it is c ‖g_0‖. Where several d are best (zero is in the convex hull), the nearest to g_0.

    Args:
        gramian: (..., K, K), symmetric positive semidefinite.
        c: at least 0.
        path: forces the host or the device path.

    Returns:
        (..., K) weights, in the Gramian's dtype; NaN if an entry of the Gramian is not finite.

    >>> conflict_averse_weights(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]), 0.0)
    tensor([0.5000, 0.5000])
    """
    if on_host(gramian, path):
        return _on_host(lambda unit: host.conflict_averse(unit, c), gramian)
    unit, lengths, zero, noise = _unit(gramian)
    size = gramian.shape[-1]
    relative = lengths / lengths.masked_fill(zero, 0.0).amax(-1, keepdim=True).clamp(min=1e-300)
    relative = torch.where(zero, 1.0, relative)  # D
    mean = torch.where(zero, 0.0, relative) / size  # D u
    inner = (unit @ mean.unsqueeze(-1)).squeeze(-1)  # ⟨ĝ_k, g_0⟩
    radius = c * (inner * mean).sum(-1, keepdim=True).clamp(min=0).sqrt()
    if size == 2:
        steps = _conflict_averse_pair(unit[..., 0, 1], relative, zero, radius, c)
    else:
        steps = _conflict_averse(unit, relative, zero, inner, radius, c, noise)
    weights = 1 / size + torch.where(zero, 0.0, steps / relative)
    return _returned(weights, gramian)


def _conflict_averse_pair(cosine: Tensor, relative: Tensor, zero: Tensor, radius: Tensor, c: float) -> Tensor:
    """D x of the best d = g_0 + Jᵀ x. On the segment, ‖g_w‖² = ‖p‖² + s² ‖q‖² with p its nearest point to 0."""
    first, second = torch.where(zero, 0.0, relative).unbind(-1)
    a, b, cross = first * first, second * second, cosine * first * second
    across = a + b - 2 * cross  # ‖q‖², q = g_1 − g_2
    safe = torch.where(across > 0, across, 1.0)
    nearest = (a * b * (1 - cosine) * (1 + cosine) / safe).clamp(min=0)  # ‖p‖²
    slope = (a - b) / 2
    room = radius.squeeze(-1).square() * across - slope.square()
    shift = -slope * (nearest / safe).sqrt() / room.clamp(min=1e-300).sqrt()
    one = torch.where(room > 0, (b - cross) / safe + shift, (slope < 0).to(a)).clamp(0, 1)
    other = torch.where(room > 0, (a - cross) / safe - shift, (slope >= 0).to(a)).clamp(0, 1)
    one, other = (torch.where(across > 0, w, 0.5) for w in (one, other))
    length = (one.square() * a + other.square() * b + 2 * one * other * cross).clamp(min=0).sqrt()
    factor = radius.squeeze(-1) / torch.where(length > 0, length, 1.0)
    # at g_w = 0 nothing improves both: the multiple of (w_1, w_2) that takes d to the dual cone's nearest point
    least = torch.minimum(first, second)
    blocked = (length <= 1e-8 * least) & (c >= 1)
    push = -torch.stack([first + cosine * second, cosine * first + second], -1).clamp(max=0) / 2
    steps = torch.stack([one * first, other * second], -1) * factor.unsqueeze(-1)
    return torch.where(blocked.unsqueeze(-1), push, steps)


def _conflict_averse(
    unit: Tensor, relative: Tensor, zero: Tensor, inner: Tensor, radius: Tensor, c: float, noise: float
) -> Tensor:
    weights = min_norm_weights(
        torch.where(
            zero.unsqueeze(-1) | zero.unsqueeze(-2), 0.0, relative.unsqueeze(-1) * unit * relative.unsqueeze(-2)
        ),
        "device",
    )
    hull = weights * torch.where(zero, 0.0, relative)
    distance = ((hull.unsqueeze(-2) @ unit).squeeze(-2) * hull).sum(-1, keepdim=True).clamp(min=0)
    hull_scale = (weights * relative).sum(-1, keepdim=True)  # lengths of what is combined to it
    apart = (distance > noise * hull_scale.square()) & ~zero.any(-1, keepdim=True)
    mean_length = radius / c if c > 0 else radius
    level = torch.where(apart, (mean_length + radius) * distance.sqrt(), 0.0)  # at or above the root
    steps = torch.zeros_like(inner)
    for _ in range(_RADIUS_STEPS):
        push = torch.where(zero, 0.0, level / relative - inner)
        scale = push.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        steps = scale * _non_negative(unit, (push / scale).unsqueeze(-2), noise).squeeze(-2)
        length = ((steps.unsqueeze(-2) @ unit).squeeze(-2) * steps).sum(-1, keepdim=True).clamp(min=0).sqrt()
        beyond = length > radius * (1 + 1e-14)
        rate = (steps / relative).sum(-1, keepdim=True)
        change = torch.where(beyond, (length - radius) * length / rate.clamp(min=1e-300), 0.0)
        level = level - change
    return steps


def equal_projection_weights(gramian: Tensor, path: Path | None = None) -> Tensor:
    """w ∝ D⁻¹ C⁺ 1, summing to 1: Σ_k w_k g_k has the same inner product with all unit gradients (IMTL-G).

    Closed form for K = 2, C⁺ 1 = 1 / (1 + c); for more by `eigh`, leaving out eigenvalues below rounding.

    Returns:
        (..., K) weights in the Gramian's dtype; 0 for gradients of zero and where all cancel.
    """
    if on_host(gramian, path):
        return _on_host(host.equal_projections, gramian)
    unit, lengths, zero, noise = _unit(gramian)
    weights = _equal_angles(unit, zero, noise) / lengths
    total = weights.sum(-1, keepdim=True)
    some = total.abs() > 1e-12 * weights.abs().sum(-1, keepdim=True)
    return _returned(torch.where(some, weights / torch.where(some, total, 1.0), 0.0), gramian)


def inverse_gradient_weights(gramian: Tensor, path: Path | None = None) -> Tensor:
    """w = s D⁻¹ v with v = C⁺ 1 and s = Σ_k ‖g_k‖ (C v)_k / vᵀ C v (ConFIG).

    Returns:
        (..., K) weights in the Gramian's dtype; 0 for gradients of zero and where all cancel.
    """
    if on_host(gramian, path):
        return _on_host(host.inverse_gradient, gramian)
    unit, lengths, zero, noise = _unit(gramian)
    shared = _equal_angles(unit, zero, noise)
    cosines = (unit @ shared.unsqueeze(-1)).squeeze(-1)
    square = (shared * cosines).sum(-1, keepdim=True).clamp(min=1e-300)
    return _returned(shared / lengths * (lengths * cosines).sum(-1, keepdim=True) / square, gramian)


def _equal_angles(unit: Tensor, zero: Tensor, noise: float) -> Tensor:
    """v = C⁺ 1 over the gradients that are not zero."""
    present = (~zero).to(unit)
    if unit.shape[-1] == 2:
        apart = 1 + torch.where(zero.any(-1), 0.0, unit[..., 0, 1])
        return torch.where(apart > noise, 1 / apart.clamp(min=noise), 0.0).unsqueeze(-1) * present
    values, vectors = torch.linalg.eigh(unit)
    inverse = torch.where(values > noise, 1 / values.clamp(min=noise), 0.0)
    return (vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ present.unsqueeze(-1)))).squeeze(-1)


def aligned_weights(gramian: Tensor, preference: Tensor, scale: str = "min", path: Path | None = None) -> Tensor:
    """w = σ V Λ^(−1/2) Vᵀ p with G = V Λ Vᵀ, eigenvalues below rounding left out (Aligned-MTL).

    Args:
        gramian: (K, K), symmetric positive semidefinite.
        preference: (K,) p.
        scale: σ² is the ``"min"``, the lower ``"median"`` or (``"rmse"``) the mean of the eigenvalues kept.
        path: forces the host or the device path.

    Returns:
        (K,) weights in the Gramian's dtype; p if all eigenvalues are 0.
    """
    eps = torch.finfo(gramian.dtype).eps
    if on_host(gramian, path):
        return _on_host(lambda unit: host.aligned(unit, preference.cpu().double().numpy(), scale, eps), gramian)
    size = len(preference)
    matrix = torch.where(gramian.isfinite(), gramian, 0.0).double()
    values, vectors = torch.linalg.eigh(matrix / matrix.abs().amax().clamp(min=1e-300))  # ascending
    kept = values > values[-1] * size * eps
    count = kept.sum()
    if scale == "rmse":
        square = torch.where(kept, values, 0.0).sum() / count.clamp(min=1)
    else:  # the kept ones are the last `count`
        rank = size - count + (0 if scale == "min" else (count - 1).clamp(min=0) // 2)
        square = values.gather(0, rank.clamp(max=size - 1).unsqueeze(0))
    factors = torch.where(kept, (square / torch.where(kept, values, 1.0)).clamp(min=0).sqrt(), 0.0)
    weights = vectors @ (factors * (vectors.T @ preference.double()))
    return _returned(torch.where(count > 0, weights, preference.double()), gramian)


def surgery_weights(
    gramian: Tensor, orders: Tensor, usual: Tensor | None = None, beta: float = 0.0, path: Path | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of K copies of gradients that each meet the others in turn and add multiples of them (PCGrad, GradVac).

    All copies take their t-th meeting at once. They are kept as coefficients over the unit gradients, beside
    their inner products with these. Both paths are the same K − 1 steps, on NumPy or in torch.

    Args:
        gramian: (K, K), symmetric positive semidefinite.
        orders: (K, K − 1), row i a permutation of all but i.
        usual: (K, K) cosines φ̂ in [-1, 1] that copies are brought up to, float64; 0 if None, where nothing is
            averaged.
        beta: share of the newest cosine in its average.
        path: forces the host or the device path.

    Returns:
        (K,) weights in the Gramian's dtype, and (K, K) the new averages.
    """
    if on_host(gramian, path):
        averages = np.zeros(gramian.shape) if usual is None else usual.cpu().double().numpy().copy()
        given = (orders.cpu().numpy(), averages, None if usual is None else beta)
        return _on_host(lambda unit: host.surgery(unit, *given), gramian), torch.from_numpy(averages)
    unit, lengths, zero, _ = _unit(gramian)
    present = (~zero).to(unit)
    unit = unit * present  # a gradient of zero has no cosine: what is averaged in is 0
    averages = torch.zeros_like(unit) if usual is None else usual.clone()
    weights = _surgery_device(unit, lengths * present, orders, averages, None if usual is None else beta).sum(0)
    return _returned(torch.where(zero, 1.0, weights / lengths), gramian), averages


def _surgery_device(unit: Tensor, lengths: Tensor, orders: Tensor, averages: Tensor, beta: float | None) -> Tensor:
    copies = torch.diag(lengths)
    inner = copies @ unit
    for others in orders.unsqueeze(-1).unbind(1):  # (K, 1)
        across = inner.gather(1, others)
        if beta is None:
            step = (-across).clamp(min=0)
        else:
            norms = (copies * inner).sum(1, keepdim=True).clamp(min=0).sqrt()
            cosines = torch.where(norms > 0, across / norms, 0.0).clamp(-1, 1)
            usual = averages.gather(1, others)
            sine, usual_sine = (1 - cosines.square()).sqrt(), (1 - usual.square()).clamp(min=1e-8).sqrt()
            step = torch.where(cosines < usual, norms * (usual * sine / usual_sine - cosines), 0.0)
            averages.scatter_(1, others, (1 - beta) * usual + beta * cosines)
        copies.scatter_add_(1, others, step)
        inner = inner + step * unit.index_select(0, others.squeeze(1))
    return copies


def _returned(weights: Tensor, gramian: Tensor) -> Tensor:
    finite = torch.isfinite(gramian).flatten(-2).all(-1)
    finite = finite.reshape(finite.shape + (1,) * (weights.dim() - finite.dim())).to(weights.device)
    return torch.where(finite, weights, torch.nan).to(gramian)


def _unit(gramian: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """C, the lengths (1 where zero), which are zero, and how far C may be off by rounding in the given dtype."""
    noise = 4 * gramian.shape[-1] * torch.finfo(gramian.dtype).eps
    matrix = gramian.detach()
    matrix = torch.where(matrix.isfinite(), matrix, 0.0).double()
    lengths = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    zero = lengths == 0
    lengths = torch.where(zero, 1.0, lengths)
    unit = (matrix / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)).clamp(-1, 1)
    unit = torch.where(zero.unsqueeze(-1) | zero.unsqueeze(-2), 0.0, unit)
    unit.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return unit, lengths, zero, noise


def _non_negative(matrix: Tensor, linear: Tensor, noise: float) -> Tensor:
    """argmin_x ½ xᵀ Q x − bᵀ x over x ≥ 0, for each row b of `linear` (..., R, K); Q has a diagonal of order 1.

    By Mehrotra's predictor-corrector method, all in lockstep, then one exact solve.
    Paper: Mehrotra 1992, `doi:10.1137/0802028 <https://doi.org/10.1137/0802028>`_.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = (matrix + 0.25 * noise * identity).unsqueeze(-3)
    x = torch.ones_like(linear)
    y = torch.ones_like(linear)
    for _ in range(_INTERIOR_STEPS):
        residual = (x.unsqueeze(-2) @ matrix).squeeze(-2) - linear - y
        gap = (x * y).mean(-1, keepdim=True)
        factor = torch.linalg.cholesky_ex(matrix + torch.diag_embed(y / x)).L
        dx, dy = _interior_move(factor, x, y, residual, -x * y)
        aimed = ((x + _longest(x, dx) * dx) * (y + _longest(y, dy) * dy)).mean(-1, keepdim=True)
        centre = gap * (aimed / gap).clamp(0, 1) ** 3
        dx, dy = _interior_move(factor, x, y, residual, centre - x * y - dx * dy)
        step = 0.995 * torch.minimum(_longest(x, dx), _longest(y, dy))
        nx, ny = x + step * dx, y + step * dy
        good = (nx.isfinite() & ny.isfinite()).all(-1, keepdim=True) & (gap > 1e-28)
        x, y = torch.where(good, nx, x).clamp(min=1e-150), torch.where(good, ny, y).clamp(min=1e-150)
    return _polished(matrix, linear, x, y)


def _interior_move(factor: Tensor, x: Tensor, y: Tensor, residual: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    dx = torch.cholesky_solve((product / x - residual).unsqueeze(-1), factor).squeeze(-1)
    return dx, (product - y * dx) / x


def _longest(x: Tensor, dx: Tensor) -> Tensor:
    """The longest step up to 1 that keeps x + step dx from falling below 0."""
    return 1 / (-dx / x).amax(-1, keepdim=True).clamp(min=1.0)


def _polished(matrix: Tensor, linear: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Solves the equations of the variables that x says are positive; kept where that comes nearer."""
    chosen = x > y
    both = chosen.unsqueeze(-1) & chosen.unsqueeze(-2)
    identity = torch.eye(linear.shape[-1], dtype=linear.dtype, device=linear.device)
    right = torch.where(chosen, linear, 0.0).unsqueeze(-1)
    exact = torch.linalg.solve_ex(torch.where(both, matrix, identity), right).result.squeeze(-1).clamp(min=0)
    x = torch.where(chosen, x, 0.0)
    off, off_exact = _violation(matrix, linear, x), _violation(matrix, linear, exact)
    return torch.where(off_exact <= off, exact, x)


def _violation(matrix: Tensor, linear: Tensor, x: Tensor) -> Tensor:
    slack = (x.unsqueeze(-2) @ matrix).squeeze(-2) - linear
    return torch.minimum(x, slack).abs().amax(-1, keepdim=True)
