"""Two digits on one canvas: what the overlapped-digit data sets share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_SEED = 2**32 - 1


def check_seed(seed: int) -> int:
    """`seed` itself, if `numpy.random.RandomState` takes it.

    Raises:
        ValueError: it is not in 0..2**32 - 1.

    >>> check_seed(-1)
    Traceback (most recent call last):
    ValueError: `seed` must be in 0..4294967295, found -1
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"`seed` must be in 0..{MAX_SEED}, found {seed}")
    return seed


def draw_pairs(count: int, repeats: int, random: np.random.RandomState) -> Tensor:
    """Who is overlapped with whom: (count * repeats, 2) row numbers, left and right.

    Left runs through 0..count-1 `repeats` times, right through a fresh permutation each time, so that every
    digit is on either side equally often and both tasks have the same class frequencies. A digit may meet
    itself (once per permutation on average).

    Args:
        count: number of digits to pair.
        repeats: composites per digit.
        random: the stream to draw from. A `RandomState`, because NumPy keeps its stream the same for ever,
            and promises that neither for its newer generators nor PyTorch for its own.

    >>> draw_pairs(3, 2, np.random.RandomState(0)).T
    tensor([[0, 1, 2, 0, 1, 2],
            [2, 1, 0, 2, 0, 1]])
    """
    left = np.tile(np.arange(count, dtype=np.int64), repeats)
    right = np.concatenate([random.permutation(count) for _ in range(repeats)]).astype(np.int64)
    return torch.from_numpy(np.stack([left, right], axis=1))


def overlay(left: Tensor, right: Tensor, shift: int, side: int) -> Tensor:
    """Puts `left` into the top-left corner and `right` lower and further right, the brighter pixel winning.

    Args:
        left: images (N, h, h).
        right: images of the same shape and dtype.
        shift: how many pixels lower and further right the right image lies, at most side - h.
        side: the canvas is side × side, at least h + shift.

    Returns:
        Canvases (N, side, side) of the same dtype, 0 where there is no image.

    >>> overlay(torch.full((1, 2, 2), 3), torch.full((1, 2, 2), 5), shift=1, side=3)
    tensor([[[3, 3, 0],
             [3, 5, 5],
             [0, 5, 5]]])
    """
    size = left.shape[-1]
    canvas = left.new_zeros(len(left), side, side)
    canvas[:, :size, :size] = left
    covered = canvas[:, shift : shift + size, shift : shift + size]
    torch.maximum(covered, right, out=covered)
    return canvas
