"""MNIST and CIFAR-10 files for the tests: made up, or the real ones where this machine has them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from polytask.data import CIFAR10, MNIST, cifar10, data_folder


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def to_idx() -> Callable[[np.ndarray], bytes]:
    return idx_bytes


@pytest.fixture
def write_mnist(tmp_path: Path) -> Callable[..., Path]:
    """Writes the four files and returns their folder. Every image says who it is: its values depend on it."""

    def write(
        train: int = 12,
        test: int = 5,
        labels: Sequence[int] | None = None,
        compress: bool = False,
        seed: int = 0,
    ) -> Path:
        random = np.random.RandomState(seed)
        train_labels = np.arange(train) % 10 if labels is None else np.array(labels)
        contents = (
            random.randint(0, 256, (train, 28, 28)),
            train_labels,
            random.randint(0, 256, (test, 28, 28)),
            np.arange(test) % 10,
        )
        folder = tmp_path / "mnist"
        folder.mkdir(exist_ok=True)
        for name, values in zip(MNIST.files, contents, strict=True):
            data = idx_bytes(values)
            (folder / name).write_bytes(gzip.compress(data) if compress else data)
        return folder

    return write


@pytest.fixture
def write_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the six files, of few records each, and returns their folder."""

    def write(records: int = 4, labels: Sequence[int] | None = None, compress: bool = False, seed: int = 0) -> Path:
        monkeypatch.setattr(cifar10, "RECORDS", records)
        random = np.random.RandomState(seed)
        folder = tmp_path / "cifar10"
        folder.mkdir(exist_ok=True)
        for name in CIFAR10.files:
            content = random.randint(0, 256, (records, 3073)).astype(np.uint8)
            content[:, 0] = random.randint(0, 10, records) if labels is None else labels
            data = content.tobytes()
            (folder / name).write_bytes(gzip.compress(data) if compress else data)
        return folder

    return write


@pytest.fixture
def real_cifar10() -> Path:
    try:
        return cifar10.cifar10_folder(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def real_mnist() -> Path:
    try:
        return data_folder(None, "mnist", MNIST.files)
    except FileNotFoundError as error:
        pytest.skip(str(error))
