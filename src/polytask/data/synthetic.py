"""Points of the plane: a circle and a rhombus."""

from __future__ import annotations

import numpy as np
import torch

from polytask.data.base import DataSet, Split, Splits
from polytask.data.compositing import check_seed
from polytask.task import binary

SIZES = (750, 150, 1000)


class CircleRhombus(DataSet):
    """Two binary tasks on points of the square: inside a circle? inside a rhombus?

    The example of Bellavia, Della Santa and Papini, "ATE-SG: Alternate Through the Epochs Stochastic Gradient
    for Multi-Task Neural Networks" (https://arxiv.org/abs/2312.16340). Points x are uniform on [-1, 1]²;
    ``circle`` is ‖x‖₂ ≤ 0.5 (about one point in five), ``rhombus`` is ‖x‖₁ ≤ 1 (one in two). 750 points
    train, 150 validate, 1,000 test. With the default seed they are those of the paper's public example.

    Inputs are (N, 2) float32, targets (N,) float32 of 0 and 1, computed before the points are rounded to
    float32. No files are needed.

    Args:
        seed: of the NumPy stream the points are drawn from, 0..2**32 - 1.

    Raises:
        ValueError: the seed is out of range.

    >>> test = CircleRhombus().load().test
    >>> test.inputs.shape, {task: int(target.sum()) for task, target in test.targets.items()}
    (torch.Size([1000, 2]), {'circle': 219, 'rhombus': 525})
    """

    tasks = (binary("circle"), binary("rhombus"))

    def __init__(self, seed: int = 2024) -> None:
        self.seed = check_seed(seed)

    def load(self) -> Splits:
        """Draws the train, validation and test points, in this order, from one stream."""
        random = np.random.RandomState(self.seed)
        return Splits(*(_label(2 * random.rand(size, 2) - 1) for size in SIZES))


def _label(points: np.ndarray) -> Split:
    circle = np.linalg.norm(points, axis=1) <= 0.5
    rhombus = np.abs(points).sum(axis=1) <= 1
    return Split(
        torch.from_numpy(points).float(),
        {"circle": torch.from_numpy(circle).float(), "rhombus": torch.from_numpy(rhombus).float()},
    )
