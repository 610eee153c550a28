"""CIFAR-10 from its binary files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.base import DataSet, Split, Splits, data_folder, file_content, locate
from polytask.data.images import CIFAR_COLOURS, Normalise
from polytask.errors import at_least
from polytask.task import classification

CIFAR10_FOLDER = "cifar10"
CIFAR10_ARCHIVE = "cifar-10-batches-bin"
CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORDS = 10_000
"""Images in each of the six files."""
RECORD_BYTES = 1 + 3 * SIDE * SIDE
CHUNK = 5000
"""Images made floats at a time."""


class RawImages(NamedTuple):
    """Images as they are in the files.

    Attributes:
        images: (N, 3, 32, 32) uint8; red, green, blue.
        labels: (N,) int64 in 0..9.
    """

    images: Tensor
    labels: Tensor


class CIFAR10(DataSet):
    """Colour pictures of animals and vehicles, 32 × 32 pixels: one task, ten classes.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009,
    https://www.cs.toronto.edu/~kriz/cifar.html), the "binary version" of its archive; the version that needs unpickling
    is not read. The last 10,000 of the 50,000 training images, in file order, are the validation split:
    40,000 / 10,000 / 10,000.

    Inputs are (N, 3, 32, 32) float32, in [0, 1] and then normalised channel by channel with the training images' mean
    and standard deviation, targets (N,) int64 in 0..9.

    Args:
        folder: where the six .bin files are, gzipped or not; by default ``cifar10`` or ``cifar-10-batches-bin`` (as
            the archive unpacks) below ``POLYTASK_DATA``, see `polytask.data.data_folder`.
        validation: how many of the training images, counted from the end, make the validation split.

    Raises:
        ValueError: `validation` is below 1.

    >>> CIFAR10().tasks[0].labels[:3], CIFAR10.files[0]
    (('airplane', 'automobile', 'bird'), 'data_batch_1.bin')
    """

    tasks = (classification("object", classes=10, labels=CIFAR10_CLASSES),)
    files = CIFAR10_FILES
    preprocessing = CIFAR_COLOURS

    def __init__(self, folder: str | Path | None = None, validation: int = 10_000) -> None:
        at_least("validation", validation, 1)
        self.folder = folder
        self.validation = validation

    def load(self) -> Splits:
        """Reads the six files.

        Raises:
            FileNotFoundError: files are missing; the message says which go where.
            ValueError: a file is damaged, or `validation` leaves nothing to train on.
        """
        given, test = read_cifar10(cifar10_folder(self.folder))
        kept = kept_for_training(len(given.labels), self.validation)
        parts = (RawImages(*(t[:kept] for t in given)), RawImages(*(t[kept:] for t in given)), test)
        return Splits(*(Split(_normalised(part.images), {"object": part.labels}) for part in parts))


def cifar10_folder(folder: str | Path | None) -> Path:
    """The folder of the six files.

    Raises:
        FileNotFoundError: there is none; the message says which files go where.
    """
    return data_folder(folder, CIFAR10_FOLDER, CIFAR10_FILES, CIFAR10_ARCHIVE)


def read_cifar10(folder: Path) -> tuple[RawImages, RawImages]:
    """The 50,000 training images, in file order, and the 10,000 test images.

    Raises:
        ValueError: a file is damaged.
    """
    *train, test = (locate(folder, name) for name in CIFAR10_FILES)
    return read_records(train), read_records([test])


def read_records(paths: Sequence[Path]) -> RawImages:
    """The images of standard binary files, 10,000 records each: a label byte, then three planes of 32 × 32 bytes.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is truncated or over-long, its gzip stream is corrupt, or a label is above 9.
    """
    parts = [_read(path) for path in paths]
    return RawImages(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _read(path: Path) -> RawImages:
    data, expected = file_content(path), RECORDS * RECORD_BYTES
    if len(data) != expected:
        raise ValueError(
            f"{path}: a CIFAR-10 file must hold {RECORDS} records of {RECORD_BYTES} bytes, {expected} in all, found "
            f"{len(data)}"
        )
    records = torch.frombuffer(data, dtype=torch.uint8).view(RECORDS, RECORD_BYTES)
    labels = records[:, 0].long()
    if labels.max() > 9:
        row = int((labels > 9).nonzero()[0])
        raise ValueError(f"{path}: labels must be in 0..9, found {labels[row]} in record {row}")
    return RawImages(records[:, 1:].reshape(-1, 3, SIDE, SIDE), labels)


def kept_for_training(count: int, validation: int) -> int:
    """How many of `count` training images are left when the last `validation` are taken.

    Raises:
        ValueError: none.
    """
    if validation >= count:
        raise ValueError(f"`validation` must be below the number of training images, {count}, found {validation}")
    return count - validation


def _normalised(images: Tensor) -> Tensor:
    """Bytes to normalised float32, in chunks so that nothing large is made twice."""
    normalise, inputs = Normalise(), torch.empty(images.shape)
    for start in range(0, len(images), CHUNK):
        inputs[start : start + CHUNK] = normalise(images[start : start + CHUNK].float().div_(255))
    return inputs
