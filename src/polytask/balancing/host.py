"""The host path of `polytask.balancing.solvers`: one Gramian at a time, on NumPy and LAPACK, until converged.

Every solver takes the `Unit` Gramian and gives float64 weights over the gradients as they were. Formulas and
papers are with the public functions; the device path there does the same in torch.
"""

from __future__ import annotations

import math

import numpy as np


class Unit:
    """C = D⁻¹ G D⁻¹ with D the lengths.

    A gradient of zero is an isolated unit vector in C: it then meets no other one and makes no system singular.

    Attributes:
        matrix: (K, K) C.
        lengths: (K,), 1 for gradients of zero.
        present: (K,) 1.0 for gradients that are not zero, else 0.0.
        whole: whether all are present.
        noise: how far C may be off by rounding in the dtype in which the gradients were.
    """

    def __init__(self, gramian: np.ndarray, eps: float) -> None:
        size = len(gramian)
        self.noise = 4 * size * eps
        lengths = np.sqrt(np.maximum(gramian.diagonal(), 0.0))
        self.whole = bool(lengths.all())
        self.present = np.ones(size) if self.whole else (lengths > 0).astype(float)
        self.lengths = lengths if self.whole else np.where(lengths > 0, lengths, 1.0)
        matrix = gramian / self.lengths / self.lengths[:, None]
        np.minimum(np.maximum(matrix, -1.0, out=matrix), 1.0, out=matrix)
        if not self.whole:
            matrix *= self.present * self.present[:, None]
        matrix.flat[:: size + 1] = 1.0
        self.matrix = matrix


def min_norm(unit: Unit) -> np.ndarray:
    if not unit.whole:
        return (1 - unit.present) / (1 - unit.present).sum()
    inverse = unit.lengths.min() / unit.lengths
    if len(inverse) == 2:
        weights = np.maximum(inverse * (inverse - unit.matrix[0, 1] * inverse[::-1]), 0.0)
    else:
        lifted = unit.matrix + inverse * inverse[:, None]
        weights = non_negative(lifted, inverse[None], unit.noise)[0] * inverse
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def dual_cone(unit: Unit, targets: np.ndarray) -> np.ndarray:
    pull = -(targets * (unit.lengths * unit.present)) @ unit.matrix
    if len(unit.matrix) == 2:
        steps = np.maximum(pull, 0.0)
    else:  # the scale of each row rides outside, so that tolerances are relative to it
        scale = np.abs(pull).max(1, keepdims=True)
        scale[scale == 0] = 1.0
        steps = scale * non_negative(unit.matrix, pull / scale, unit.noise)
    return targets + steps / unit.lengths


def fair(unit: Unit, alpha: float) -> np.ndarray:
    size = len(unit.matrix)
    count = max(unit.present.sum(), 1.0)
    logs = np.log(unit.lengths)
    middle = logs.sum() / count
    power = (1 - alpha) / (1 + alpha)
    if size == 2 and alpha == 1.0:
        apart = unit.matrix[0, 1] * unit.present.prod() + 1
        solvable = apart / 2 > unit.noise
        steps = np.full(2, apart**-0.5 if solvable else 0.0)
    else:
        solvable = _hull_distance(unit) > unit.noise
        rates = np.exp(power * (logs - middle))
        steps = rates * _newton(unit.matrix, rates, alpha) if solvable else np.zeros(size)
    return unit.present * steps * math.exp(power * middle) / unit.lengths


def _hull_distance(unit: Unit) -> float:
    """Squared distance of the unit gradients' convex hull from zero."""
    if not unit.present.any():
        return 1.0
    lifted = unit.matrix + unit.present * unit.present[:, None]
    nearest = non_negative(lifted, unit.present[None], unit.noise)[0]
    nearest = nearest / nearest.sum()
    return float(nearest @ unit.matrix @ nearest)


def _newton(unit: np.ndarray, rates: np.ndarray, alpha: float) -> np.ndarray:
    matrix = rates[:, None] * unit * rates
    strengths = rates * rates
    z = np.ones(len(rates))
    trials = 0.5 ** np.arange(1, 8)[:, None]
    for _ in range(100):
        pulls = strengths * z ** (-1 / alpha)
        gradient = matrix @ z - pulls
        if (np.abs(gradient) < 1e-13 * pulls).all():
            break
        hessian = matrix.copy()
        hessian.flat[:: len(z) + 1] += pulls / (alpha * z)
        move = -np.linalg.solve(hessian, gradient)
        longest = 0.95 / max((-move / z).max(), 0.95)
        end = z + longest * move
        start_slope, slope = gradient @ move, (matrix @ end - strengths * end ** (-1 / alpha)) @ move
        if abs(slope) > 0.5 * abs(start_slope):  # overshot: the trial at which the line is flattest
            points = z + longest * trials * move
            slopes = (points @ matrix - strengths * points ** (-1 / alpha)) @ move
            end = points[np.argmin(np.abs(slopes))]
        if not np.isfinite(end).all():
            break
        z = end
    return z


def conflict_averse(unit: Unit, c: float) -> np.ndarray:
    size = len(unit.matrix)
    largest = float((unit.lengths * unit.present).max()) or 1.0
    relative = np.where(unit.present > 0, unit.lengths / largest, 1.0)
    mean = relative * unit.present / size
    inner = unit.matrix @ mean
    radius = c * math.sqrt(max(float(inner @ mean), 0.0))
    if size == 2:
        steps = _conflict_averse_pair(float(unit.matrix[0, 1]), relative * unit.present, radius, c)
    else:
        steps = _conflict_averse(unit, relative, inner, radius, c)
    return 1 / size + unit.present * steps / relative


def _conflict_averse_pair(cosine: float, lengths: np.ndarray, radius: float, c: float) -> np.ndarray:
    first, second = map(float, lengths)
    a, b, cross = first * first, second * second, cosine * first * second
    across, slope = a + b - 2 * cross, (a - b) / 2
    room = radius * radius * across - slope * slope
    if across <= 0:
        one = other = 0.5
    elif room > 0:
        shift = -slope * math.sqrt(max(a * b * (1 - cosine) * (1 + cosine), 0.0) / room) / across
        one = min(max((b - cross) / across + shift, 0.0), 1.0)
        other = min(max((a - cross) / across - shift, 0.0), 1.0)
    else:
        one, other = (1.0, 0.0) if slope < 0 else (0.0, 1.0)
    length = math.sqrt(max(one * one * a + other * other * b + 2 * one * other * cross, 0.0))
    if length <= 1e-8 * min(first, second) and c >= 1:
        pull = np.array([first + cosine * second, cosine * first + second])
        return np.maximum(-pull, 0.0) / 2
    return np.array([one * first, other * second]) * (radius / (length or 1.0))


def _conflict_averse(unit: Unit, relative: np.ndarray, inner: np.ndarray, radius: float, c: float) -> np.ndarray:
    level = 0.0
    if unit.whole:
        hull = min_norm(unit) * relative
        distance = float(hull @ unit.matrix @ hull)
        if distance > unit.noise * hull.sum() ** 2:
            level = (radius / c + radius if c else 0.0) * math.sqrt(distance)
    steps = np.zeros(len(inner))
    for _ in range(60):
        push = unit.present * (level / relative - inner)
        scale = float(np.abs(push).max()) or 1.0
        steps = scale * non_negative(unit.matrix, (push / scale)[None], unit.noise)[0]
        length = math.sqrt(max(float(steps @ unit.matrix @ steps), 0.0))
        if length <= radius * (1 + 1e-14):
            break
        change = (length - radius) * length / float((steps / relative).sum())
        if change <= 1e-15 * abs(level):
            break
        level -= change
    return steps


def equal_angles(unit: Unit) -> np.ndarray:
    if len(unit.matrix) == 2:
        apart = 1 + unit.matrix[0, 1] * unit.present.prod()
        return unit.present / apart if apart > unit.noise else np.zeros(2)
    try:  # a third of the time of eigenvalues; 1 over the trace is below the least of them
        inverse = np.linalg.inv(unit.matrix)
    except np.linalg.LinAlgError:
        inverse = None
    if inverse is not None and 1 > max(unit.noise, 1e-6) * inverse.trace() > 0:
        return inverse @ unit.present
    values, vectors = np.linalg.eigh(unit.matrix)
    kept = values > unit.noise
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    return vectors @ (inverse * (unit.present @ vectors))


def equal_projections(unit: Unit) -> np.ndarray:
    weights = equal_angles(unit) / unit.lengths
    total = weights.sum()
    return weights / total if abs(total) > 1e-12 * np.abs(weights).sum() else np.zeros_like(weights)


def inverse_gradient(unit: Unit) -> np.ndarray:
    shared = equal_angles(unit)
    cosines = unit.matrix @ shared
    square = float(shared @ cosines)
    return shared / unit.lengths * (float(unit.lengths @ cosines) / square if square > 0 else 0.0)


def aligned(unit: Unit, preference: np.ndarray, scale: str, eps: float) -> np.ndarray:
    lengths = unit.lengths if unit.whole else unit.lengths * unit.present
    lengths = lengths / (lengths.max() or 1.0)
    values, vectors = np.linalg.eigh(lengths[:, None] * unit.matrix * lengths)  # ascending
    first = int(values.searchsorted(values[-1] * len(values) * eps, side="right"))
    values, vectors = values[first:], vectors[:, first:]
    if not len(values):
        return preference
    middle = 0 if scale == "min" else (len(values) - 1) // 2
    square = values.sum() / len(values) if scale == "rmse" else values[middle]
    return vectors @ (np.sqrt(square / values) * (preference @ vectors))


def surgery(unit: Unit, orders: np.ndarray, averages: np.ndarray, beta: float | None) -> np.ndarray:
    """Changes `averages` in place where `beta` is given."""
    matrix = unit.matrix if unit.whole else unit.matrix * unit.present
    if beta is None:
        return 1.0 + _given_up(matrix, unit.lengths * unit.present, orders) / unit.lengths
    every = np.arange(len(matrix))
    copies = np.diag(unit.lengths * unit.present)
    inner = copies @ matrix  # with each unit gradient
    for others in orders.T:
        across = inner[every, others]
        norms = np.sqrt(np.maximum((copies * inner).sum(1), 0.0))
        cosines = np.divide(across, norms, out=np.zeros_like(across), where=norms > 0)
        np.minimum(np.maximum(cosines, -1.0, out=cosines), 1.0, out=cosines)
        usual = averages[every, others]
        sine, usual_sine = np.sqrt(1 - cosines * cosines), np.sqrt(np.maximum(1 - usual * usual, 1e-8))
        step = np.where(cosines < usual, norms * (usual * sine / usual_sine - cosines), 0.0)
        averages[every, others] = (1 - beta) * usual + beta * cosines
        copies[every, others] += step
        inner += step[:, None] * matrix[others]
    return np.where(unit.present > 0, copies.sum(0) / unit.lengths, 1.0)


def _given_up(matrix: np.ndarray, lengths: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """How much of each unit gradient PCGrad's copies take up in all; of the copies only inner products are kept."""
    size = len(matrix)
    if size == 2:
        return lengths[::-1] * max(-float(matrix[0, 1]), 0.0)
    orders = np.ascontiguousarray(orders.T)  # row t: whom each copy meets at its t-th meeting
    places = orders + size * np.arange(size)
    inner = lengths[:, None] * matrix
    steps, moved = np.empty((size - 1, size)), np.empty((size, size))
    for others, place, step in zip(orders, places, steps, strict=True):
        np.maximum(-inner.take(place), 0.0, out=step)
        matrix.take(others, axis=0, out=moved, mode="clip")  # the mode that needs no buffer
        moved *= step[:, None]
        inner += moved
    return np.bincount(orders.ravel(), steps.ravel(), size)


def non_negative(matrix: np.ndarray, linear: np.ndarray, noise: float) -> np.ndarray:
    """argmin_x ½ xᵀ Q x − bᵀ x over x ≥ 0, for each row b of `linear` (R, K); Q has a diagonal of order 1.

    By exchange of all violating variables at once (Júdice and Pires; Kim and Park 2011,
    `doi:10.1137/110821172 <https://doi.org/10.1137/110821172>`_). A row ends with x ≥ 0, Q x − b ≥ 0 and one of
    them 0 everywhere, so a row that ends is exact; one that does not is solved by one variable at a time.
    """
    matrix = matrix.copy()
    matrix.flat[:: len(matrix) + 1] += 0.25 * noise
    x, free = np.zeros_like(linear), linear > 0
    open_rows = np.flatnonzero(free.any(1))
    tolerance, longest = max(noise, 1e-13), noise**-0.5
    identity = np.eye(len(matrix))
    for _ in range(12):
        if not len(open_rows):
            return x
        chosen, right = free[open_rows], linear[open_rows]
        try:
            part = np.where(chosen[:, :, None] & chosen[:, None, :], matrix, identity)
            found = np.linalg.solve(part, np.where(chosen, right, 0.0)[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        wrong = np.where(chosen, found < 0, found @ matrix - right < -tolerance)
        done = ~wrong.any(1) & (np.abs(found).max(1) < longest)  # longer: a system that is singular to rounding
        x[open_rows[done]] = found[done]
        free[open_rows] ^= wrong
        open_rows = open_rows[~done]
    for row in open_rows:
        x[row] = _active_set(matrix, linear[row], noise)
    return x


def _active_set(matrix: np.ndarray, linear: np.ndarray, noise: float) -> np.ndarray:
    """Lawson and Hanson's non-negative least squares on the Gramian: one variable enters at a time.

    It needs no full rank: variables that depend on those inside are never needed.
    """
    x = np.zeros(len(linear))
    inside: list[int] = []
    refused: list[int] = []
    for _ in range(10 * len(linear)):
        push = linear - matrix @ x
        push[[*inside, *refused]] = -np.inf
        enter = int(np.argmax(push))
        if push[enter] <= max(noise, 1e-13):
            break
        target = _inside(matrix, linear, [*inside, enter])
        # in exact arithmetic an independent one that is pushed up rises
        if not _independent(matrix, inside, enter, noise) or target[enter] <= 0:
            refused.append(enter)
            continue
        inside.append(enter)
        while inside and target[inside].min() <= 0:
            steps = {i: x[i] / (x[i] - target[i]) for i in inside if target[i] <= 0}
            gone = min(steps, key=lambda i: steps[i])
            x += steps[gone] * (target - x)
            x[gone] = 0.0
            inside.remove(gone)
            target = _inside(matrix, linear, inside)
        x = target
        refused.clear()
    return x


def _independent(matrix: np.ndarray, inside: list[int], enter: int, noise: float) -> bool:
    """Whether the squared distance of a vector from the span of those inside is above rounding."""
    if not inside:
        return True
    across = matrix[inside, enter]
    return matrix[enter, enter] - across @ np.linalg.solve(matrix[np.ix_(inside, inside)], across) > noise


def _inside(matrix: np.ndarray, linear: np.ndarray, inside: list[int]) -> np.ndarray:
    """The unconstrained optimum over the variables inside; NaN-free, as they are independent or are refused."""
    target = np.zeros(len(linear))
    if inside:
        try:
            target[inside] = np.linalg.solve(matrix[np.ix_(inside, inside)], linear[inside])
        except np.linalg.LinAlgError:
            target[inside] = -1.0
    return target
