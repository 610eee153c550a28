"""Sparse matrices as inputs: made dense a batch at a time."""

from __future__ import annotations

import sys
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from polytask.batch import Rows

_LARGEST = float(np.finfo(np.float32).max)


@final
class SparseRows(Rows):
    """The rows of a SciPy sparse matrix (N, V): a part of them is a float32 tensor (B, V), the whole never is.

    `Arrays` makes one of every sparse matrix among its inputs, so a matrix may be given wherever an array may. It is
    kept as it is, in whatever type of number, on the host; formats other than CSR are converted once, which makes a
    copy. Numbers stored twice at one place count as their sum. For another device only the stored numbers of a
    batch are sent, and made dense there.

    Args:
        matrix: (N, V), of SciPy's sparse matrices or arrays, of real numbers.

    Raises:
        TypeError: its numbers are not real.
        ValueError: it has not two dimensions.

    >>> from scipy.sparse import csr_array
    >>> rows = SparseRows(csr_array(([3, 4], ([0, 2], [1, 0])), shape=(3, 2)))
    >>> rows[1:3]
    tensor([[0., 0.],
            [4., 0.]])
    """

    def __init__(self, matrix: Any) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"a sparse matrix of inputs must have shape (N, V), found shape {tuple(matrix.shape)}")
        if matrix.dtype.kind not in "biuf":
            raise TypeError(f"a sparse matrix of inputs must hold real numbers, found {matrix.dtype}")
        self._matrix = matrix.tocsr()
        self._device = torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, V)."""
        return tuple(self._matrix.shape)

    def __len__(self) -> int:
        return self._matrix.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        return self._dense(np.arange(*part.indices(len(self))))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        return self._dense(index.cpu().numpy())

    def to(self, device: torch.device) -> Self:
        moved = type(self)(self._matrix)
        moved._device = device
        return moved

    def _dense(self, rows: np.ndarray) -> Tensor:
        part = self._matrix[rows]  # indexed by an array, and so a copy that may be changed
        if part.dtype.kind in "iu":
            part = part.astype(np.float64)  # small integers have no room for sums
        part.sum_duplicates()
        part = part.astype(np.float32)
        return torch.from_numpy(part.toarray()) if self._device.type == "cpu" else scattered(part, self._device)

    def first_not_finite(self) -> tuple[int, float] | None:
        """The first number that is not finite in float32, as (row, number)."""
        stored = self._matrix.data
        if not len(stored) or (float(stored.min()) >= -_LARGEST and float(stored.max()) <= _LARGEST):
            return None
        place = int(np.argmin(np.abs(stored.astype(np.float64)) <= _LARGEST))
        return int(np.searchsorted(self._matrix.indptr, place, side="right")) - 1, float(stored[place])

    def digest(self) -> str:
        sums = self._matrix.data.sum(dtype=np.float64), self._matrix.indices.sum(dtype=np.int64)
        return f"{float(sums[0])!r} at {int(sums[1])}"


def scattered(part: Any, device: torch.device) -> Tensor:
    """A CSR matrix (B, V) without duplicates, made dense on the device, to which its stored numbers alone are sent."""
    places = np.stack([np.repeat(np.arange(part.shape[0]), np.diff(part.indptr)), part.indices])
    row, column = torch.from_numpy(places).to(device)
    dense = torch.zeros(part.shape, device=device)
    dense[row, column] = torch.from_numpy(part.data).to(device)
    return dense


def is_sparse(inputs: Any) -> bool:
    """Whether this is a sparse matrix or array of SciPy's, which is not imported to find out."""
    scipy = sys.modules.get("scipy.sparse")  # whoever made one has imported it
    return scipy is not None and scipy.issparse(inputs)
