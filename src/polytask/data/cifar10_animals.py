"""CIFAR-10 with a second, coarser question."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from polytask.data.base import DataSet, Split, Splits, only_split, shorten
from polytask.data.cifar10 import CIFAR10, CIFAR10_CLASSES, CIFAR10_FILES
from polytask.data.images import CIFAR_COLOURS
from polytask.errors import at_least
from polytask.task import binary, classification

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


class CIFAR10Animals(DataSet):
    """Colour pictures of animals and vehicles, 32 × 32 pixels: which of ten objects is it, is it an animal?

    The pictures and splits of `CIFAR10`, with a second task that follows from the first: bird, cat, deer, dog, frog and
    horse are animals (1, 60 % of the pictures), airplane, automobile, ship and truck are vehicles (0).

    Inputs are (N, 3, 32, 32) float32, normalised as there; targets ``object`` (N,) int64 in 0..9 and ``animal`` (N,)
    float32 in {0, 1}.

    Args:
        folder: where the six .bin files are, as for `CIFAR10`.
        train_size: keeps only the first so many training images, at least 1; None keeps all.
        validation: how many of the 50,000 training images, counted from the end, make the validation split.

    Raises:
        ValueError: `train_size` or `validation` is below 1.

    >>> [task.name for task in CIFAR10Animals().tasks], CIFAR10Animals().tasks[1].labels
    (['object', 'animal'], ('vehicle', 'animal'))
    """

    tasks = (
        classification("object", classes=10, labels=CIFAR10_CLASSES),
        binary("animal", labels=("vehicle", "animal")),
    )
    files = CIFAR10_FILES
    preprocessing = CIFAR_COLOURS

    def __init__(
        self, folder: str | Path | None = None, train_size: int | None = None, validation: int = 10_000
    ) -> None:
        at_least("validation", validation, 1)
        if train_size is not None:
            at_least("train_size", train_size, 1)
        self.folder = folder
        self.train_size = train_size
        self.validation = validation

    def load(self) -> Splits:
        """Reads the six files.

        Raises:
            FileNotFoundError: files are missing; the message says which go where.
            ValueError: a file is damaged, `validation` leaves nothing to train on, or `train_size` is above what it
                leaves.
        """
        loaded = CIFAR10(self.folder, self.validation).load()
        train, validation, test = (only_split(part, "CIFAR10Animals") for part in loaded)
        return Splits(*map(_with_animals, (shorten(train, self.train_size), validation, test)))


def _with_animals(split: Split) -> Split:
    objects = split.targets["object"]
    return Split(split.inputs, {"object": objects, "animal": is_animal(objects)}, split.augment)


def is_animal(objects: Tensor) -> Tensor:
    """1.0 where the class (N,), in 0..9, is an animal's, else 0.0."""
    return torch.tensor([float(name in ANIMALS) for name in CIFAR10_CLASSES])[objects]
