"""Values computed once for a source's examples, and found again by row."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import data, tasks

import polytask as pt
from polytask.data import Remembered
from polytask.data.remembered import CHUNK


def bound(limit: int = 2**20, **options):
    x, y = data(300)
    source = pt.Arrays(x, y, batch_size=7, seed=1, **options)
    asked = []

    def function(batch):
        asked.append(batch.size)
        return {"sums": batch.inputs.sum(1), "pairs": batch.inputs[:, :2]}

    wrapped = Remembered(source, "key", function, limit)
    wrapped.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
    return wrapped, asked


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_example_finds_its_own_values(shuffle):
    source, asked = bound(shuffle=shuffle)
    for epoch in (0, 3):
        for batch in (batch for batches in source.steps(epoch, start=5) for batch in batches):
            torch.testing.assert_close(batch.known["key"]["sums"], batch.inputs.sum(1))
            assert torch.equal(batch.known["key"]["pairs"], batch.inputs[:, :2])
    assert asked == [CHUNK, 300 - CHUNK]


def test_batches_are_the_source_s_own_otherwise():
    x, y = data(300)
    plain = pt.Arrays(x, y, batch_size=7, seed=1)
    plain.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
    source, _ = bound()
    assert source.steps_per_epoch == plain.steps_per_epoch and source.describe() == plain.describe()
    assert source.label_counts() == plain.label_counts() and source.examples == 300
    for (found,), (wanted,) in zip(source.steps(1), plain.steps(1), strict=True):
        assert torch.equal(found.inputs, wanted.inputs) and torch.equal(found.rows, wanted.rows)
        assert all(torch.equal(found.targets[name], wanted.targets[name]) for name in "ab")


def test_inputs_stay_ungathered():
    source, _ = bound()
    batch = next(source.steps(0))[0]
    assert batch._inputs is None and batch.known


def test_nothing_is_kept_above_the_limit_or_where_inputs_change():
    needed = 300 * 3 * 4
    for options, calls in (({"limit": needed - 1}, 1), ({"augment": lambda x, generator: x}, 0)):
        source, asked = bound(**options)
        assert not any(batch.known for batches in source.steps(0) for batch in batches)
        assert len(asked) == calls
    assert next(bound(needed)[0].steps(0))[0].known


def test_binding_anew_forgets():
    source, asked = bound()
    next(source.steps(0))
    source.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
    next(source.steps(0))
    assert asked == 2 * [CHUNK, 300 - CHUNK]


@pytest.mark.parametrize("order", [("few", "many"), ("many", "few")])
def test_each_source_of_several_is_judged_by_itself(order):
    """Whatever their order: one whose values fit, one whose do not, one that is not concerned, one that changes."""
    sizes = {"few": 10, "many": 300}
    sources = {name: pt.Arrays(*data(sizes[name]), batch_size=5) for name in order}
    sources["other"] = pt.Arrays(*data(300), batch_size=5)
    sources["changing"] = pt.Arrays(*data(10), batch_size=5, augment=lambda x, generator: x)
    mixture = pt.data.RoundRobin(sources)

    def function(batch):
        return None if batch.source == "other" else batch.inputs

    source = Remembered(mixture, "key", function, limit=10 * 3 * 4)
    source.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
    known = {batch.source: "key" in batch.known for (batch,) in source.steps(0)}
    assert known == {"few": True, "many": False, "other": False, "changing": False}


@pytest.mark.parametrize(("limit", "kept"), [(119, ""), (120, "a"), (239, "a"), (240, "ab")])
def test_the_limit_is_that_of_all_sources_together(limit: int, kept: str):
    sources = {name: pt.Arrays(*data(10), batch_size=5) for name in "ab"}
    source = Remembered(pt.data.RoundRobin(sources), "key", lambda batch: batch.inputs, limit)
    source.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
    assert {batch.source for (batch,) in source.steps(0) if batch.known} == set(kept)


def test_a_wrapped_source_tells_the_other_s_name_and_batch_size():
    x, y = data(30)
    inner = pt.Arrays(x, y, batch_size=7)
    wrapped = Remembered(inner, "key", lambda batch: None, 0)
    wrapped.name = "given"
    assert (inner.name, wrapped.name, wrapped.batch_size) == ("given", "given", 7)


def test_a_wrapped_source_in_a_mixture_labels_its_batches():
    x, y = data(30)
    sources = {
        name: Remembered(pt.Arrays(x, y, batch_size=size), "key", lambda batch: None, 0)
        for name, size in (("left", 5), ("right", 10))
    }
    mixed = pt.data.Zip(sources, "balance")
    mixed.bind({task.name: task for task in tasks()}, torch.device("cpu"), "train")
    steps = list(mixed.steps(0))
    assert len(steps) == 4  # 60 examples in batches of 5 and 10
    assert all([batch.source for batch in step] == ["left", "right"] for step in steps)
