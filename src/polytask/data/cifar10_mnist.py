"""Cifar10Mnist: a digit laid over a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.data.base import DataSet, Split, Splits, data_folder, locate, shorten
from polytask.data.cache import cached, digest
from polytask.data.cifar10 import (
    CIFAR10_CLASSES,
    CIFAR10_FILES,
    SIDE,
    RawImages,
    cifar10_folder,
    kept_for_training,
    read_cifar10,
)
from polytask.data.images import CIFAR_COLOURS, CIFAR_MEAN, CIFAR_STD, Normalise, Rotation
from polytask.data.mnist import MNIST_FILES, MNIST_FOLDER, RawDigits, read_digits
from polytask.errors import at_least
from polytask.task import classification

CHUNK = 2000
"""Composites made at a time."""
RECIPE = 1
"""Goes up with every change of what is computed, so that caches of older versions are not used."""
BLACK = tuple(-mean / std for mean, std in zip(CIFAR_MEAN, CIFAR_STD, strict=True))
"""What black is after normalisation."""

_PARTS = ("train", "validation", "test")
_TASKS = ("cifar", "digit")


class Cifar10Mnist(DataSet):
    """A handwritten digit laid over a colour picture: what is in the picture, which digit?

    Hotegni, Berkemeier and Peitz, "Multi-Objective Optimization for Sparse Deep Multi-Task Learning"
    (https://arxiv.org/abs/2308.12243). The i-th digit of MNIST's training (test) file is resized to 32 × 32 pixels,
    bilinearly with antialiasing, and laid over the i-th picture of CIFAR-10's training (test) files: where it is above
    0, pixels are (128 · digit + 127 · picture) / 255. The last 10,000 of the 50,000 training composites are the
    validation split: 40,000 / 10,000 / 10,000. No picture and no digit is in two splits.

    Inputs are (N, 3, 32, 32) float32, in [0, 1] and then normalised channel by channel with CIFAR-10's mean and
    standard deviation; targets (N,) int64 in 0..9. In training, each image is turned by a random angle, drawn anew at
    every visit, on the batch's device: the train split carries the `augment` that `Trainer.fit` applies. So no
    features of it can be cached; `rotation` 0 leaves the images as they are.

    Pixels are not rounded to bytes, and the cache keeps them as float32 (740 MB), so that a run gives the same
    bits with and without it.

    Args:
        cifar10: where CIFAR-10's six .bin files are, see `CIFAR10`.
        mnist: where MNIST's four files are, see `MNIST`.
        rotation: largest angle in degrees, either way, 0..180.
        train_size: keeps only the first so many training composites, at least 1; None keeps all.
        validation: how many of the training composites, counted from the end, make the validation split.
        cache: keeps the composites in ``$POLYTASK_CACHE``, else ``~/.cache/polytask``. The file is found again only
            for the same settings, files and PyTorch version.

    Raises:
        ValueError: an argument is out of its range.

    >>> [task.name for task in Cifar10Mnist(rotation=0).tasks]
    ['cifar', 'digit']
    """

    tasks = (classification("cifar", classes=10, labels=CIFAR10_CLASSES), classification("digit", classes=10))
    files = (*CIFAR10_FILES, *MNIST_FILES)
    preprocessing = CIFAR_COLOURS

    def __init__(
        self,
        cifar10: str | Path | None = None,
        mnist: str | Path | None = None,
        rotation: float = 20.0,
        train_size: int | None = None,
        validation: int = 10_000,
        cache: bool = True,
    ) -> None:
        if train_size is not None:
            at_least("train_size", train_size, 1)
        at_least("validation", validation, 1)
        self.cifar10 = cifar10
        self.mnist = mnist
        self._augment = Rotation(rotation, BLACK) if rotation else None
        self.rotation = rotation
        self.train_size = train_size
        self.validation = validation
        self.cache = cache

    def load(self) -> Splits:
        """Composes the splits, or reads them from the cache.

        Raises:
            FileNotFoundError: files are missing; the message says which go where.
            ValueError: a file is damaged, there are fewer digits than pictures, or fewer images than `train_size` or
                `validation` need.
        """
        pictures, digits = cifar10_folder(self.cifar10), data_folder(self.mnist, MNIST_FOLDER, MNIST_FILES)
        if self.cache:
            tensors = cached("cifar10mnist", self._facts(pictures, digits), lambda: self._build(pictures, digits))
        else:
            tensors = self._build(pictures, digits)
        train, validation, test = (_split(tensors, part) for part in _PARTS)
        return Splits(shorten(Split(*train, self._augment), self.train_size), validation, test)

    def _facts(self, pictures: Path, digits: Path) -> dict[str, Any]:
        paths = [locate(pictures, name) for name in CIFAR10_FILES] + [locate(digits, name) for name in MNIST_FILES]
        return {
            "recipe": RECIPE,
            "validation": self.validation,
            "sources": digest(paths),
            "torch": torch.__version__,  # its resize may round differently in another version
        }

    def _build(self, picture_folder: Path, digit_folder: Path) -> dict[str, Tensor]:
        given, test = read_cifar10(picture_folder)
        paths = [locate(digit_folder, name) for name in MNIST_FILES]
        given_digits = _as_many(read_digits(*paths[:2]), len(given.labels), "training")
        test_digits = _as_many(read_digits(*paths[2:]), len(test.labels), "test")
        kept = kept_for_training(len(given.labels), self.validation)
        pairs = {
            "train": (RawImages(*(t[:kept] for t in given)), RawDigits(*(t[:kept] for t in given_digits))),
            "validation": (RawImages(*(t[kept:] for t in given)), RawDigits(*(t[kept:] for t in given_digits))),
            "test": (test, test_digits),
        }
        tensors: dict[str, Tensor] = {}
        for part, (pictures, digits) in pairs.items():
            tensors[f"{part}.inputs"] = compose(pictures.images, digits.images)
            tensors[f"{part}.cifar"], tensors[f"{part}.digit"] = pictures.labels.clone(), digits.labels.clone()
        return tensors


def compose(pictures: Tensor, digits: Tensor) -> Tensor:
    """Lays digits over pictures and normalises.

    Args:
        pictures: (N, 3, 32, 32) uint8.
        digits: (N, 28, 28) uint8.

    Returns:
        (N, 3, 32, 32) float32.
    """
    normalise, inputs = Normalise(), torch.empty(pictures.shape)
    for start in range(0, len(pictures), CHUNK):
        rows = slice(start, start + CHUNK)
        picture, digit = pictures[rows].float(), digits[rows].unsqueeze(1).float()
        digit = F.interpolate(digit, size=(SIDE, SIDE), mode="bilinear", antialias=True)  # (n, 1, 32, 32)
        blend = torch.where(digit > 0, (128 * digit + 127 * picture) / 255, picture)
        inputs[rows] = normalise(blend.clamp_(0, 255).div_(255))
    return inputs


def _as_many(digits: RawDigits, count: int, part: str) -> RawDigits:
    if len(digits.labels) < count:
        raise ValueError(
            f"there must be a {part} digit for each of the {count} pictures, found {len(digits.labels)} digits"
        )
    return RawDigits(digits.images[:count], digits.labels[:count])


def _split(tensors: dict[str, Tensor], part: str) -> Split:
    return Split(tensors[f"{part}.inputs"], {task: tensors[f"{part}.{task}"] for task in _TASKS})
