"""MNIST from its IDX files."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.base import DataSet, Split, Splits, data_folder, file_content, locate
from polytask.data.images import UNIT_GREY
from polytask.errors import at_least
from polytask.task import classification

MNIST_FOLDER = "mnist"
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DIGIT_SIDE = 28

_UNSIGNED_BYTES = 0x08
_MAX_DIMENSIONS = 8


class MNIST(DataSet):
    """Handwritten digits, 28 × 28 pixels: one task, ten classes.

    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition"
    (https://doi.org/10.1109/5.726791). The last 10,000 of the 60,000 training images, in file order, are the
    validation split: 50,000 / 10,000 / 10,000. Data sets in the same files (Fashion-MNIST, KMNIST) work too.

    Inputs are (N, 1, 28, 28) float32 in [0, 1], targets (N,) int64 in 0..9.

    Args:
        folder: where the four files are, gzipped or not; by default ``mnist`` below ``POLYTASK_DATA``, see
            `polytask.data.data_folder`.
        validation: how many of the training images, counted from the end, make the validation split.

    Raises:
        ValueError: `validation` is below 1.

    >>> MNIST().tasks[0].name, MNIST.files[0]
    ('digit', 'train-images-idx3-ubyte')
    """

    tasks = (classification("digit", classes=10),)
    files = MNIST_FILES
    preprocessing = UNIT_GREY

    def __init__(self, folder: str | Path | None = None, validation: int = 10_000) -> None:
        at_least("validation", validation, 1)
        self.folder = folder
        self.validation = validation

    def load(self) -> Splits:
        """Reads the four files.

        Raises:
            FileNotFoundError: files are missing; the message says which go where.
            ValueError: a file is damaged, or `validation` leaves nothing to train on.
        """
        digits = read_mnist(data_folder(self.folder, MNIST_FOLDER, MNIST_FILES), self.validation)
        return Splits(*(Split(unit_scale(part.images), {"digit": part.labels}) for part in digits))


class RawDigits(NamedTuple):
    """Images as they are in the files.

    Attributes:
        images: (N, 28, 28) uint8.
        labels: (N,) int64 in 0..9.
    """

    images: Tensor
    labels: Tensor


def read_mnist(folder: Path, validation: int) -> tuple[RawDigits, RawDigits, RawDigits]:
    """Train, validation (the last `validation` training images) and test, as they are in `folder`.

    Raises:
        ValueError: a file is damaged, images and labels do not match, or nothing is left to train on.
    """
    train_images, train_labels, test_images, test_labels = (locate(folder, name) for name in MNIST_FILES)
    given = read_digits(train_images, train_labels)
    test = read_digits(test_images, test_labels)
    kept = len(given.labels) - validation
    if kept < 1:
        raise ValueError(
            f"`validation` must be below the number of training images, {len(given.labels)}, found {validation}"
        )
    return (
        RawDigits(given.images[:kept], given.labels[:kept]),
        RawDigits(given.images[kept:], given.labels[kept:]),
        test,
    )


def unit_scale(images: Tensor) -> Tensor:
    """Bytes (N, h, w) to float32 (N, 1, h, w) in [0, 1]."""
    return images.unsqueeze(1).float().div_(255)


def read_idx(path: str | Path) -> Tensor:
    """Reads an IDX file of unsigned bytes, gzipped or not (its content tells, not its name).

    The format (http://yann.lecun.com/exdb/mnist/): 0, 0, 8 (unsigned bytes), the number of dimensions, the
    size of each as 4 big-endian bytes, then the values, last dimension fastest.

    Returns:
        A uint8 tensor of the shape the file states.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file, is truncated or over-long, or its gzip stream is corrupt.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    tensor([7, 2, 1], dtype=torch.uint8)
    """
    path = Path(path)
    data = file_content(path)
    shape = _shape(data, path)
    start = 4 + 4 * len(shape)
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{path}: an IDX file of shape {shape} must be {expected} bytes long, found {len(data)}")
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).reshape(shape)


def _shape(data: bytearray, path: Path) -> tuple[int, ...]:
    magic = bytes(data[:4])
    if len(magic) < 4 or magic[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or not 1 <= magic[3] <= _MAX_DIMENSIONS:
        raise ValueError(
            f"{path}: an IDX file of unsigned bytes must begin with 0x000008 and the number of dimensions "
            f"(1..{_MAX_DIMENSIONS}), found 0x{magic.hex()}"
        )
    start = 4 + 4 * magic[3]
    if len(data) < start:
        raise ValueError(
            f"{path}: an IDX header of {magic[3]} dimensions must be {start} bytes long, found {len(data)}"
        )
    shape = struct.unpack(f">{magic[3]}I", data[4:start])
    if min(shape) < 1:
        raise ValueError(f"{path}: every dimension of an IDX file must be at least 1, found {shape}")
    return shape


def read_digits(image_path: Path, label_path: Path) -> RawDigits:
    """Images and their labels, from two of the four files.

    Raises:
        ValueError: a file is damaged, or images and labels do not match.
    """
    images, labels = read_idx(image_path), read_idx(label_path).long()
    if images.dim() != 3 or images.shape[1:] != (DIGIT_SIDE, DIGIT_SIDE):
        raise ValueError(
            f"{image_path}: images must have the shape (N, {DIGIT_SIDE}, {DIGIT_SIDE}), found {tuple(images.shape)}"
        )
    if labels.dim() != 1:
        raise ValueError(f"{label_path}: labels must have the shape (N,), found {tuple(labels.shape)}")
    if labels.max() > 9:
        row = int((labels > 9).nonzero()[0])
        raise ValueError(f"{label_path}: labels must be in 0..9, found {labels[row]} in row {row}")
    if len(images) != len(labels):
        raise ValueError(
            f"{label_path}: there must be one label for each of the {len(images)} images of "
            f"{image_path.name}, found {len(labels)}"
        )
    return RawDigits(images, labels)
