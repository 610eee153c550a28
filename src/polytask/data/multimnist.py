"""MultiMNIST: two overlapped MNIST digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.data.base import DataSet, Split, Splits, data_folder, locate, shorten
from polytask.data.cache import cached, digest
from polytask.data.compositing import check_seed, draw_pairs, overlay
from polytask.data.images import MNIST_MEAN, MNIST_STD, NORMALISED_GREY, UNIT_GREY
from polytask.data.mnist import DIGIT_SIDE, MNIST_FILES, MNIST_FOLDER, RawDigits, read_mnist, unit_scale
from polytask.errors import at_least
from polytask.task import classification

CANVAS_SIDE = 36
SHIFT = 6
CHUNK = 2000
"""Composites resized at a time: canvases of 10 MB, whatever the size of the split."""
RECIPE = 1
"""Goes up with every change of what is computed, so that caches of older versions are not used."""

_PARTS = ("train", "validation", "test")
_TASKS = ("left", "right")


class MultiMNIST(DataSet):
    """Two overlapped MNIST digits: which is on the left, which on the right?

    Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules" (https://arxiv.org/abs/1710.09829); as two
    tasks: Sener and Koltun (https://arxiv.org/abs/1810.04650). On a canvas of 36 × 36 pixels the left digit
    covers rows and columns 0..27, the right one 6..33, and the brighter pixel wins; the canvas is resized to
    28 × 28 with antialiasing. The i-th composite of a split has the split's i-th digit on the left; on
    the right are the digits of the same split in a drawn order, so no test image contains a digit seen in
    training. 50,000 / 10,000 / 10,000 composites of the splits of `polytask.data.MNIST`.

    Inputs are (N, 1, 28, 28) float32 in [0, 1] unless `normalise`, targets (N,) int64 in 0..9. Pixels are not
    rounded to bytes after the resize, and the cache keeps them as float32 (220 MB), so that a run gives the
    same bits with and without it.

    Args:
        folder: where MNIST's four files are; by default ``mnist`` below ``POLYTASK_DATA``, see
            `polytask.data.data_folder`.
        seed: of the pairs, 0..2**32 - 1.
        train_size: keeps only the first so many training composites, at least 1; None keeps all.
        validation: how many of the training images, counted from the end, make the validation split.
        normalise: subtracts MNIST's mean, 0.1307, and divides by its deviation, 0.3081: networks then learn faster.
        cache: keeps the composites in ``$POLYTASK_CACHE``, else ``~/.cache/polytask``. The file is
            found again only for the same seed, settings, MNIST files and PyTorch version.

    Raises:
        ValueError: an argument is out of its range.

    >>> [task.name for task in MultiMNIST(train_size=1000).tasks]
    ['left', 'right']
    """

    tasks = (classification("left", classes=10), classification("right", classes=10))
    files = MNIST_FILES

    def __init__(
        self,
        folder: str | Path | None = None,
        seed: int = 0,
        train_size: int | None = None,
        validation: int = 10_000,
        normalise: bool = False,
        cache: bool = True,
    ) -> None:
        if train_size is not None:
            at_least("train_size", train_size, 1)
        at_least("validation", validation, 1)
        self.folder = folder
        self.seed = check_seed(seed)
        self.train_size = train_size
        self.validation = validation
        self.normalise = normalise
        self.preprocessing = NORMALISED_GREY if normalise else UNIT_GREY
        self.cache = cache

    def load(self) -> Splits:
        """Composes the splits, or reads them from the cache.

        Raises:
            FileNotFoundError: MNIST's files are missing; the message says which go where.
            ValueError: a file is damaged, or has fewer images than `train_size` or `validation` need.
        """
        folder = data_folder(self.folder, MNIST_FOLDER, MNIST_FILES)
        if self.cache:
            tensors = cached("multimnist", self._facts(folder), lambda: self._build(folder))
        else:
            tensors = self._build(folder)
        if self.normalise:
            tensors |= {name: _normalised(tensors[name]) for name in tensors if name.endswith(".inputs")}
        train, validation, test = (_split(tensors, part) for part in _PARTS)
        return Splits(shorten(train, self.train_size), validation, test)

    def _facts(self, folder: Path) -> dict[str, Any]:
        return {
            "recipe": RECIPE,
            "seed": self.seed,
            "validation": self.validation,
            "sources": digest(locate(folder, name) for name in MNIST_FILES),
            "torch": torch.__version__,  # its resize may round differently in another version
        }

    def _build(self, folder: Path) -> dict[str, Tensor]:
        random = np.random.RandomState(self.seed)
        tensors: dict[str, Tensor] = {}
        for part, digits in zip(_PARTS, read_mnist(folder, self.validation), strict=True):
            rows = draw_pairs(len(digits.labels), 1, random)  # (N, 2)
            tensors[f"{part}.inputs"] = compose(digits, rows)
            for task, side in zip(_TASKS, rows.unbind(1), strict=True):
                tensors[f"{part}.{task}"] = digits.labels[side]
        return tensors


def compose(digits: RawDigits, rows: Tensor) -> Tensor:
    """Overlaps the digits of `rows` (N, 2), left and right, into float32 images (N, 1, 28, 28) in [0, 1]."""
    inputs = torch.empty(len(rows), 1, DIGIT_SIDE, DIGIT_SIDE)
    for start in range(0, len(rows), CHUNK):
        left, right = rows[start : start + CHUNK].unbind(1)
        canvas = overlay(digits.images[left], digits.images[right], SHIFT, CANVAS_SIDE)
        inputs[start : start + CHUNK] = F.interpolate(
            unit_scale(canvas), size=(DIGIT_SIDE, DIGIT_SIDE), mode="bilinear", antialias=True
        )
    return inputs.clamp_(0, 1)  # the filter's weights sum to 1 only up to rounding


def _normalised(images: Tensor) -> Tensor:
    return (images - MNIST_MEAN).div_(MNIST_STD)


def _split(tensors: dict[str, Tensor], part: str) -> Split:
    return Split(tensors[f"{part}.inputs"], {task: tensors[f"{part}.{task}"] for task in _TASKS})
