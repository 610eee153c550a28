"""Other people's DataLoaders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import Stream, data, loader
from torch.utils.data import DataLoader, TensorDataset

import polytask as pt
from polytask.data.loader import Loader, split_batch
from polytask.task import named

CPU = torch.device("cpu")
TASKS = named([pt.binary("a"), pt.classification("b", 3)])


def _bound(loader: Any, seed: int = 0) -> Loader:
    source = Loader(loader)
    source.bind(TASKS, CPU, "train", seed)
    return source


def _inputs(source: Loader, epoch: int, start: int = 0) -> list[torch.Tensor]:
    return [batch.inputs for (batch,) in source.steps(epoch, start)]


X, A, B = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("batch", "bare"),
    [
        ((X, {"a": A, "b": B}), True),
        ([X, {"a": A, "b": B}], True),
        ((X, (A, B)), True),
        ((X, [A, B]), True),
        ({"x": X, "a": A, "b": B}, True),
        ({"x": X, "mask": A, "a": A, "b": B}, False),
    ],
)
def test_every_form_of_a_batch_is_understood(batch: Any, bare: bool):
    inputs, targets = split_batch(batch, ("a", "b"), "train")
    assert (inputs is X) if bare else (set(inputs) == {"x", "mask"})
    assert list(targets) == ["a", "b"]
    assert targets["a"] is A
    assert targets["b"] is B


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((X, A, B), "a tuple of ['Tensor', 'Tensor', 'Tensor']"),
        ((X, A), "a tuple of ['Tensor', 'Tensor']"),
        ({"x": X}, "a dictionary with keys ['x']"),
        (X, "Tensor"),
    ],
)
def test_other_forms_are_refused_and_shown(batch: Any, found: str):
    with pytest.raises(ValueError) as caught:
        split_batch(batch, ("a", "b"), "train")
    assert str(caught.value).startswith("train: a batch must be (inputs, {task: targets})")
    assert str(caught.value).endswith(f"found {found}")


def test_one_task_needs_no_name():
    assert split_batch((X, A), ("a",), "train") == (X, {"a": A})
    run = pt.Trainer(
        pt.models.HardSharing(torch.nn.Linear(3, 4), {"a": torch.nn.Linear(4, 1)}), [pt.binary("a")], progress=False
    )
    assert len(run.fit(DataLoader(TensorDataset(torch.randn(8, 3), torch.ones(8)), batch_size=4), epochs=2)) == 2


@pytest.mark.parametrize("generator", [False, True])
def test_epochs_differ_and_do_not_depend_on_what_was_drawn_meanwhile(generator: bool):
    quiet, noisy = _bound(loader(generator=generator)), _bound(loader(generator=generator))
    before = torch.random.get_rng_state()
    first, second = _inputs(quiet, 0), _inputs(quiet, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first[0], second[0])
    seen = []
    for (batch,) in noisy.steps(0):
        torch.rand(5)
        seen.append(batch.inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, seen, strict=True))


@pytest.mark.parametrize("generator", [False, True])
def test_starting_late_replays_the_epoch(generator: bool):
    source = _bound(loader(generator=generator))
    _inputs(source, 0)
    steps = source.steps(1)
    whole = [next(steps)[0].inputs]
    state = source.state_dict()
    whole += [batch.inputs for (batch,) in steps]
    fresh = _bound(loader(generator=generator))
    fresh.load_state_dict(state)
    late = _inputs(fresh, 1, 1)
    assert all(torch.equal(one, other) for one, other in zip(whole[1:], late, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(_inputs(source, 2), _inputs(fresh, 2), strict=True))


def test_an_abandoned_epoch_leaves_the_users_random_stream_alone():
    source = _bound(loader())
    steps = source.steps(0)
    next(steps)
    torch.manual_seed(123)
    expected = torch.random.get_rng_state()
    del steps
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_in_order_gives_the_same_order_each_time():
    source = _bound(loader())
    one = torch.cat([batch.inputs for batch in source.in_order(100)])
    other = torch.cat([batch.inputs for batch in source.in_order(100)])
    assert torch.equal(one, other)
    assert len(one) == 24


def test_sizes_are_told_where_they_are_known():
    assert (_bound(loader()).steps_per_epoch, _bound(loader()).examples) == (3, 24)
    stream = _bound(DataLoader(Stream(*data()), batch_size=8))
    assert (stream.steps_per_epoch, stream.examples) == (None, None)


def _refused(batches: list[Any]) -> str:
    with pytest.raises(ValueError) as caught:
        list(_bound(batches).steps(0))
    return str(caught.value)


def test_bad_batches_are_refused():
    assert _refused([(X, {"aa": A})]) == "train: targets for an unknown task `aa`: did you mean `a`?"
    assert "found 2 inputs and 3 targets of task `a`" in _refused([(X, {"a": torch.zeros(3)})])
    assert "binary targets must be 0, 1 or missing (NaN), found 4.0" in _refused([(X, {"a": A + 4})])
    assert "inputs must be finite, found nan in example 0" in _refused([(X * torch.nan, {"a": A})])
    with pytest.raises(ValueError, match="at least one example, found an empty loader"):
        _bound([])
