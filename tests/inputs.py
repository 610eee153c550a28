"""Hard inputs: Jacobians (K, P) on which gradient methods break first."""

from __future__ import annotations

import torch
from torch import Tensor


def _random(k: int, p: int, seed: int) -> Tensor:
    return torch.randn(k, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard_jacobians() -> dict[str, Tensor]:
    """{name: (K, P) in float64}, K from 1 to 40."""
    cases = {f"random {k}x{p}": _random(k, p, k * 100 + p) for k, p in
             [(1, 3), (2, 1), (2, 7), (3, 2), (3, 50), (5, 3), (8, 8), (12, 5), (40, 3), (40, 60)]}  # fmt: skip
    row = _random(1, 4, 1)
    cases |= {
        "all zero, 1": torch.zeros(1, 4, dtype=torch.float64),
        "all zero, 2": torch.zeros(2, 4, dtype=torch.float64),
        "all zero, 5": torch.zeros(5, 4, dtype=torch.float64),
        "zero row of 2": torch.cat([row, 0 * row]),
        "zero row of 4": torch.cat([_random(3, 4, 2), torch.zeros(1, 4, dtype=torch.float64)]),
        "rank one": torch.tensor([[1.0], [2.0], [0.5], [3.0]], dtype=torch.float64) @ row,
        "rank one, both signs": torch.tensor([[1.0], [-2.0], [0.5], [3.0]], dtype=torch.float64) @ row,
        "rank two of 6": _random(6, 2, 3) @ _random(2, 9, 4),
        "opposed": torch.cat([row, -row]),
        "opposed, unequal": torch.cat([row, -7 * row]),
        "opposed among 3": torch.cat([row, -row, _random(1, 4, 5)]),
        "parallel": torch.cat([row, 3 * row]),
        "equal": row.repeat(5, 1),
        "nearly equal": row.repeat(4, 1) + 1e-9 * _random(4, 4, 6),
        "nearly opposed": torch.cat([row, -row + 1e-7 * _random(1, 4, 7)]),
        "orthogonal": torch.eye(6, dtype=torch.float64),
        "fixed": torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64),
    }  # fmt: skip
    for scale in (1e-10, 1e-5, 1e5, 1e15):
        cases[f"random 4x6 times {scale:g}"] = scale * _random(4, 6, 8)
        cases[f"pair times {scale:g}"] = scale * _random(2, 6, 9)
    for small, large in ((1.0, 1e3), (1e-3, 1e3), (1e-10, 1e15)):
        ladder = torch.logspace(torch.tensor(small).log10(), torch.tensor(large).log10(), 4, dtype=torch.float64)
        cases[f"rows from {small:g} to {large:g}"] = ladder[:, None] * _random(4, 6, 10)
        cases[f"pair of {small:g} and {large:g}"] = ladder[[0, -1], None] * _random(2, 6, 11)
    return cases


HARD = hard_jacobians()
