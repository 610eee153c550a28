"""Sparse matrices as inputs: what is served is what a dense matrix would give, and the whole is never made dense."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import SaveAll, same, sgd
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polytask as pt
from polytask.data.accept import as_inputs, as_source
from polytask.data.arrays import as_tensors
from polytask.data.sparse import SparseRows, scattered
from polytask.task import named

CPU = torch.device("cpu")
TASKS = [pt.binary("a"), pt.regression("c")]
FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")


def _matrix(size: int = 23, width: int = 7, seed: int = 0) -> scipy.sparse.csr_array:
    """Rows of every kind: empty, full, with a zero that is stored and with a number that is stored twice."""
    random = np.random.default_rng(seed)
    dense = random.normal(size=(size, width)) * (random.random((size, width)) < 0.3)
    dense[size // 2], dense[size // 3] = 0, 1.5
    matrix = scipy.sparse.csr_array(dense)
    indices, stored = np.insert(matrix.indices, 0, [0, 2, 2]), np.insert(matrix.data, 0, [0.0, 0.25, -1.0])
    return scipy.sparse.csr_array((stored, indices, np.append(0, matrix.indptr[1:] + 3)), shape=dense.shape)


def _targets(size: int = 23) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    y = {"a": (torch.rand(size, generator=random) < 0.5).float(), "c": torch.randn(size, generator=random)}
    y["c"][::4] = float("nan")
    return y


def _pair(**options: object) -> tuple[pt.Arrays, pt.Arrays]:
    """The same examples sparse and dense."""
    options = {"batch_size": 4, "weights": {"a": torch.arange(23.0)}} | options
    part = options.pop("part", (0, 1))
    matrix = _matrix()
    found = []
    for inputs in (matrix, matrix.toarray().astype(np.float32)):
        source = pt.Arrays(inputs, _targets(), **options)
        source.shard(*part)
        source.bind(named(TASKS), CPU, "train", 3)
        found.append(source)
    return found[0], found[1]


def _seen(batch: pt.Batch) -> list[object]:
    return [batch.inputs, batch.targets, batch.counts, batch.size, batch.rows, batch.weights, batch.everywhere]


def _trainer(**options: object) -> pt.Trainer:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        heads = {task.name: nn.Linear(5, 1) for task in TASKS}
        model = pt.models.HardSharing(nn.Sequential(nn.Linear(7, 5), nn.Tanh()), heads)
    return pt.Trainer(model, TASKS, **{"optimizer": sgd(), "batch_size": 4, "progress": False} | options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": False},
        {"drop_last": True},
        {"seed": 5},
        {"part": (1, 2)},
        {"part": (2, 3)},
        {"augment": lambda x, g: x + torch.rand(x.shape, generator=g)},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_batches_are_those_of_the_dense_matrix_to_the_bit(options):
    sparse, dense = _pair(**options)
    for epoch in (0, 1):
        for start in (0, 2):
            one, other = ([_seen(b) for (b,) in source.steps(epoch, start)] for source in (sparse, dense))
            assert one and same(one, other)
    assert same([_seen(b) for b in sparse.in_order(5)], [_seen(b) for b in dense.in_order(5)])
    assert (sparse.examples, sparse.steps_per_epoch, sparse.label_counts(), sparse.cacheable) == (
        dense.examples, dense.steps_per_epoch, dense.label_counts(), dense.cacheable,
    )  # fmt: skip


@given(st.integers(0, 9), st.integers(1, 6), st.integers(0, 3), st.data())
def test_any_rows_in_any_order(size: int, width: int, seed: int, drawn: st.DataObject):
    random = np.random.default_rng(seed)
    dense = np.round(random.normal(size=(size, width)) * (random.random((size, width)) < 0.5), 2).astype(np.float32)
    dense += 0.0  # -0.0 is not stored
    rows, wanted = SparseRows(scipy.sparse.csr_matrix(dense)), torch.from_numpy(dense)
    index = drawn.draw(st.lists(st.integers(0, size - 1), max_size=12)) if size else []
    chosen = torch.tensor(index, dtype=torch.long)
    assert same(rows.index_select(0, chosen), wanted.index_select(0, chosen))
    start, stop = (drawn.draw(st.one_of(st.none(), st.integers(-12, 12))) for _ in range(2))
    assert same(rows[start:stop], wanted[start:stop])
    assert (len(rows), rows.shape) == (size, (size, width))


@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, bool])
def test_every_format_and_type_of_number(kind: str, form: str, dtype: type):
    if form == "dia" and dtype is bool:
        pytest.skip("SciPy has no boolean diagonals")
    dense = (np.arange(12).reshape(4, 3) % 3).astype(dtype)
    matrix = getattr(scipy.sparse, f"{form}_{kind}")(dense)
    found = as_tensors({"words": matrix})["words"][0:4]
    assert same(found, torch.from_numpy(dense.astype(np.float32)))


def test_what_is_stored_twice_counts_as_its_sum_on_every_device_and_the_callers_matrix_stays():
    matrix = _matrix()
    before = [part.copy() for part in (matrix.data, matrix.indices, matrix.indptr)]
    assert not matrix.has_canonical_format
    rows = SparseRows(matrix)
    part = matrix.copy()
    part.sum_duplicates()
    assert same(scattered(part.astype(np.float32), CPU), rows[:])  # what other devices do, done on this one
    torch.testing.assert_close(rows[:], torch.from_numpy(matrix.toarray()).float())
    for kept, now in zip(before, (matrix.data, matrix.indices, matrix.indptr), strict=True):
        assert np.array_equal(kept, now)


@pytest.mark.parametrize("schedule", [pt.schedules.Joint, pt.schedules.AlternateEpochs, pt.schedules.AlternateBatches])
def test_training_evaluation_and_prediction_are_those_of_the_dense_matrix(schedule):
    def run(inputs: object) -> list[object]:
        trainer = _trainer(schedule=schedule())
        history = trainer.fit((inputs, _targets()), (inputs, _targets()), epochs=3)
        predicted = trainer.predict(inputs)
        return [list(history), trainer.model.state_dict(), trainer.evaluate((inputs, _targets())), predicted]

    matrix = _matrix()
    one, other = run(matrix), run(matrix.toarray().astype(np.float32))
    for row in (*one[0], *other[0]):
        row.pop("seconds")
    assert same(one[:3], other[:3])
    for task in TASKS:
        assert same(tuple(one[3][task.name]), tuple(other[3][task.name]))


def test_features_of_a_frozen_trunk_are_cached_and_evaluated_without_densifying(monkeypatch):
    made = []
    dense = SparseRows._dense
    monkeypatch.setattr(SparseRows, "_dense", lambda self, rows: made.append(len(rows)) or dense(self, rows))
    schedule = pt.schedules.AlternateEpochs(shared=1, specific=4)
    trainer = _trainer(schedule=schedule, cache_features=True, evaluation_batch_size=8)
    data = (_matrix(), _targets())
    trainer.fit(data, data, epochs=1)
    shared, made[:] = sum(made), []
    trainer.fit(data, data, epochs=5)
    # four more epochs cost one pass over each split, and what is looked at to see whether features repeat
    assert sum(made) <= shared + 4 * 23
    assert max(made) <= 8


def test_resuming_is_exact_and_other_numbers_are_refused(tmp_path: Path):
    matrix = _matrix()
    whole = _trainer(callbacks=[SaveAll(tmp_path)])
    whole.fit((matrix, _targets()), epochs=4)
    half = _trainer(callbacks=[SaveAll(tmp_path / "other")])
    (tmp_path / "other").mkdir()
    half.fit((matrix, _targets()), epochs=4, resume=tmp_path / "2.ckpt")
    assert same(half.model.state_dict(), whole.model.state_dict())
    moved = matrix.copy()
    moved.indices[0] = (moved.indices[0] + 1) % 7
    for changed in (matrix * 2, moved):
        with pytest.raises(ValueError, match="sums"):
            _trainer(callbacks=[SaveAll(tmp_path)]).fit((changed, _targets()), epochs=4, resume=tmp_path / "2.ckpt")


def test_sparse_beside_dense_and_in_a_data_set():
    inputs = {"words": _matrix(), "numbers": torch.arange(23.0)[:, None]}
    source = as_source(pt.data.Split(inputs, _targets()), named(TASKS), batch_size=4, shuffle=True, where="train")
    source.bind(named(TASKS), CPU, "train")
    for (batch,) in source.steps(0):
        assert batch.inputs["numbers"].squeeze(1).long().tolist() == batch.rows.tolist()
        assert same(batch.inputs["words"], SparseRows(_matrix()).index_select(0, batch.rows))


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that torch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


def _large() -> tuple[scipy.sparse.csr_array, int]:
    """800 rows of 5,000 numbers, 16 MB if they were dense, and a batch size that makes 0.3 MB."""
    random = np.random.default_rng(0)
    return scipy.sparse.random_array((800, 5000), density=0.002, format="csr", dtype=np.float32, rng=random), 16


def test_no_tensor_is_larger_than_a_batch():
    matrix, batch = _large()
    data = (matrix, {"a": torch.arange(800) % 2})
    trainer = pt.Trainer(
        pt.models.HardSharing(nn.Linear(5000, 2), {"a": nn.Linear(2, 1)}), [pt.binary("a")], batch_size=batch,
        evaluation_batch_size=batch, train_metrics=False, progress=False,
    )  # fmt: skip
    with _Largest() as largest:
        trainer.fit(data, data, epochs=1)
        trainer.evaluate(data)
        trainer.predict(matrix)
    assert largest.numbers == batch * 5000


def test_a_pass_takes_the_memory_of_two_batches():
    """Rows are made dense by NumPy, which tells tracemalloc of what it allocates."""
    matrix, batch = _large()
    source = pt.Arrays(matrix, {"a": torch.arange(800) % 2}, batch_size=batch)
    tracemalloc.start()
    try:
        source.bind(named([pt.binary("a")]), CPU, "train")
        source.describe()
        seen = sum(len(kept.inputs) for (kept,) in source.steps(0)) + sum(
            len(kept.inputs) for kept in source.in_order(16)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 2 * 800
    assert batch * 5000 * 4 < peak < 2 * batch * 5000 * 4 + 800 * 50


BAD = {
    "not finite": (lambda m: m * np.nan, ValueError, "train: inputs must be finite, found nan in example 0"),
    "infinite": (lambda m: _with(m, 5, -np.inf), ValueError, "train: inputs must be finite, found -inf in example 5"),
    "too large for float32": (lambda m: _with(m, 22, 1e39), ValueError, "train: inputs must be finite, found 1e+39 in example 22"),
    "complex": (lambda m: m * 1j, TypeError, "a sparse matrix of inputs must hold real numbers, found complex128"),
    "one dimension": (lambda m: scipy.sparse.coo_array(np.ones(23)), ValueError, "a sparse matrix of inputs must have shape (N, V), found shape (23,)"),
    "too few": (lambda m: m[:20], ValueError, "inputs and targets must have the same length, found 20 inputs and 23 targets of task `a`"),
    "none": (lambda m: m[:0], ValueError, "train: a split must hold at least one example, found none"),
    "lengths": (lambda m: (m, torch.zeros(20, 1)), ValueError, "train: all inputs must have the same number of examples, found [23, 20]"),
}  # fmt: skip


def _with(matrix: scipy.sparse.csr_array, row: int, value: float) -> scipy.sparse.csr_array:
    changed = scipy.sparse.lil_array(matrix)
    changed[row, 3] = value
    return changed.tocsr()


@pytest.mark.parametrize("case", BAD)
def test_refusals(case: str):
    make, kind, message = BAD[case]
    with pytest.raises(kind) as caught:
        _trainer().fit((make(_matrix()), _targets()), epochs=1)
    assert message in str(caught.value)


def test_bare_inputs_are_checked_too():
    with pytest.raises(ValueError, match="inputs must be finite, found nan in example 0"):
        as_inputs(_matrix() * np.nan, CPU)


def test_duplicates_of_small_integers_are_summed_without_wrapping_round():
    matrix = scipy.sparse.csr_array((np.array([100, 100], np.int8), np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    assert SparseRows(matrix)[:].tolist() == [[0.0, 200.0, 0.0]]
