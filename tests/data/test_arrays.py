"""The in-memory source."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polytask as pt
from polytask.data.arrays import as_tensors
from polytask.task import named

CPU = torch.device("cpu")


def _source(size: int = 10, **options: Any) -> pt.Arrays:
    x = torch.arange(float(size))[:, None]
    y = {"a": (torch.arange(size) % 2).float(), "b": torch.arange(size) % 3}
    source = pt.Arrays(x, y, **{"batch_size": 4, **options})
    source.bind(named([pt.binary("a"), pt.classification("b", 3)]), CPU, "train", 7)
    return source


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.booleans())
def test_an_epoch_shows_every_example_once_with_its_targets(size: int, batch_size: int, epoch: int, shuffle: bool):
    source = _source(size, batch_size=batch_size, shuffle=shuffle)
    batches = [batch for (batch,) in source.steps(epoch)]
    assert len(batches) == source.steps_per_epoch
    rows = torch.cat([batch.rows for batch in batches])
    assert rows.sort().values.tolist() == list(range(size))
    if not shuffle:
        assert rows.tolist() == list(range(size))
    for batch in batches:
        assert batch.inputs.squeeze(1).tolist() == batch.rows.tolist()
        assert batch.targets["a"].tolist() == (batch.rows % 2).tolist()
        assert batch.targets["b"].tolist() == (batch.rows % 3).tolist()
        assert batch.counts == {"a": batch.size, "b": batch.size}


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 12))
def test_starting_late_gives_the_same_batches(size: int, batch_size: int, start: int):
    augment = lambda x, g: x + torch.rand(x.shape, generator=g)  # noqa: E731
    source = _source(size, batch_size=batch_size, augment=augment)
    whole = [batch.inputs for (batch,) in source.steps(3)][start:]
    late = [batch.inputs for (batch,) in source.steps(3, start)]
    assert len(whole) == len(late)
    assert all(torch.equal(one, other) for one, other in zip(whole, late, strict=True))


def test_drop_last_leaves_out_a_short_batch():
    source = _source(10, drop_last=True)
    assert [batch.size for (batch,) in source.steps(0)] == [4, 4]
    assert source.steps_per_epoch == 2
    assert sum(batch.size for batch in source.in_order(4)) == 10


def test_the_seed_is_its_own_or_the_trainers():
    def order(seed: int | None) -> list[int]:
        return torch.cat([b.rows for (b,) in _source(30, seed=seed).steps(0)]).tolist()

    assert order(None) == order(7)
    assert order(None) != order(8)
    assert sorted(order(-5)) == list(range(30))


def test_augmentation_draws_from_its_generator_only_and_never_in_order():
    source = _source(10, augment=lambda x, g: x + torch.rand(x.shape, generator=g))
    before = torch.random.get_rng_state()
    first = [batch.inputs for (batch,) in source.steps(0)]
    again = [batch.inputs for (batch,) in source.steps(0)]
    other = [batch.inputs for (batch,) in source.steps(1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0] % 1, other[0] % 1)
    assert torch.equal(torch.cat([b.inputs for b in source.in_order(3)]), torch.arange(10.0)[:, None])
    assert not source.cacheable
    assert all(batch.rows is None for (batch,) in source.steps(0))


def test_counts_know_what_is_missing():
    source = pt.Arrays(
        torch.zeros(6, 1), {"a": [0, 1, -100, -100, 1, 0], "b": torch.tensor([0.0, torch.nan, 2, 1, 1, 1])},
        batch_size=2, shuffle=False,
    )  # fmt: skip
    source.bind(named([pt.binary("a"), pt.classification("b", 3)]), CPU, "train")
    assert [batch.counts for (batch,) in source.steps(0)] == [{"a": 2, "b": 1}, {"a": 0, "b": 2}, {"a": 2, "b": 2}]
    assert [batch.counts for batch in source.in_order(4)] == [{"a": 2, "b": 3}, {"a": 2, "b": 2}]
    assert source.label_counts() == {"a": 4, "b": 5}


def test_weights_follow_their_examples():
    source = _source(9, weights={"a": torch.arange(9)})
    for (batch,) in source.steps(0):
        assert batch.weights["a"].tolist() == batch.rows.tolist()
    assert torch.cat([b.weights["a"] for b in source.in_order(4)]).tolist() == list(range(9))


def test_numpy_arrays_tuples_and_dictionaries_become_tensors():
    made = as_tensors({"x": np.zeros((3, 2)), "pair": (np.ones(3, np.float32), [1, 2, 3])})
    assert made["x"].dtype == torch.float32
    assert made["pair"][1].tolist() == [1, 2, 3]
    assert as_tensors(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _source(4, batch_size=0), "`batch_size` must be at least 1, found 0"),
        (lambda: _source(3, drop_last=True), "with `drop_last` there must be at least `batch_size` = 4 examples, found 3"),
        (lambda: _source(4, weights={"a": [1, 2]}), "sample weights must have shape (4,), found (2,) for task `a`"),
        (lambda: _source(2, weights={"a": [1.0, -1.0]}), "sample weights must be at least 0, found -1.0 for task `a`"),
        (lambda: _source(2, weights={"aa": [1, 1]}), "targets for an unknown task `aa`: did you mean `a`?"),
    ],
)  # fmt: skip
def test_refusals(build: Any, message: str):
    with pytest.raises(ValueError) as caught:
        build()
    assert message in str(caught.value)
