"""Overlapped small digits: MultiMNIST in miniature, with nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.data.base import DataSet, Split, Splits
from polytask.data.compositing import check_seed, draw_pairs, overlay
from polytask.errors import at_least
from polytask.task import classification

DIGIT_SIDE = 8
HELD_OUT = 360
"""Source digits of the validation split and of the test split each, one in five of the 1,797."""


class MultiDigits(DataSet):
    """Two overlapped 8 × 8 digits: which is on the left, which on the right?

    MultiMNIST (Sabour, Frosst and Hinton, https://arxiv.org/abs/1710.09829; as two tasks: Sener and Koltun,
    https://arxiv.org/abs/1810.04650) made from the 1,797 digits that scikit-learn carries
    (https://archive.ics.uci.edu/dataset/80), so it needs no files and trains in seconds. The left digit lies
    in the top-left corner of the canvas, the right one `shift` pixels lower and further right, and the
    brighter pixel wins. The digits are split first (1,077 / 360 / 360, stratified by class) and
    paired within their split, so no test image contains a digit seen in training.

    Inputs are float32 in [0, 1], (N, side²) if `flat` else (N, 1, side, side), with side = 8 + shift;
    targets are (N,) int64 in 0..9. With the defaults a small perceptron gets about nine in ten
    of either task right; a larger `shift` overlaps less and is easier.

    Args:
        pairs: composites per source digit in train, validation and test, each at least 1: a digit is that
            often on the left and that often on the right.
        shift: 1..8; 2 overlaps the digits by as much as MultiMNIST does.
        flat: one row of pixels per image, for perceptrons; else one channel, for convolutions.
        seed: of the splits and the pairs, 0..2**32 - 1.

    Raises:
        ValueError: an argument is out of its range.

    >>> data = MultiDigits(flat=False)
    >>> [tuple(split.inputs.shape) for split in data.load()]
    [(4308, 1, 10, 10), (720, 1, 10, 10), (1440, 1, 10, 10)]
    """

    tasks = (classification("left", classes=10), classification("right", classes=10))

    def __init__(
        self, pairs: tuple[int, int, int] = (4, 2, 4), shift: int = 2, flat: bool = True, seed: int = 0
    ) -> None:
        if len(pairs) != 3:
            raise ValueError(f"`pairs` must give train, validation and test, found {len(pairs)} numbers")
        at_least("pairs", min(pairs), 1)
        if not 1 <= shift <= DIGIT_SIDE:
            raise ValueError(f"`shift` must be in 1..{DIGIT_SIDE}, found {shift}")
        self.pairs = pairs
        self.shift = shift
        self.flat = flat
        self.seed = check_seed(seed)

    @property
    def side(self) -> int:
        """The images are side × side pixels."""
        return DIGIT_SIDE + self.shift

    def load(self) -> Splits:
        """Composes the three splits."""
        images, labels = _read()
        return Splits(*(self._compose(images, labels, rows) for rows in self._pair(labels)))

    def sources(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which digits each composite of train, validation and test is made of.

        Returns:
            Per split (N, 2) row numbers in ``sklearn.datasets.load_digits()``, left and right.
        """
        return self._pair(_read()[1])

    def _pair(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.RandomState(self.seed)
        parts = _split(labels.numpy(), self.seed)
        pairs = [part[draw_pairs(len(part), repeats, random)] for part, repeats in zip(parts, self.pairs, strict=True)]
        return pairs[0], pairs[1], pairs[2]

    def _compose(self, images: Tensor, labels: Tensor, rows: Tensor) -> Split:
        left, right = rows.unbind(1)
        canvas = overlay(images[left], images[right], self.shift, self.side)  # (N, side, side)
        inputs = canvas.flatten(1) if self.flat else canvas.unsqueeze(1)
        return Split(inputs, {"left": labels[left], "right": labels[right]})


def _read() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # scikit-learn costs 1.5 s to import

    digits: Any = load_digits()  # a Bunch, which its annotation does not say
    return torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()


def _split(labels: np.ndarray, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    rest, test = train_test_split(rows, test_size=HELD_OUT, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=HELD_OUT, stratify=labels[rest], random_state=seed)
    return torch.from_numpy(train), torch.from_numpy(validation), torch.from_numpy(test)
