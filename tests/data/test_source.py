"""Seeds and permutations that depend on their numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polytask as pt
from polytask.data.source import check_inputs, derived_seed, permutation

numbers = st.lists(st.integers(-(2**40), 2**62), min_size=1, max_size=4)


@given(st.integers(1, 200), numbers)
def test_a_permutation_is_one_and_belongs_to_its_numbers(length: int, given_numbers: list[int]):
    before = torch.random.get_rng_state()
    order = permutation(length, *given_numbers)
    assert order.sort().values.tolist() == list(range(length))
    assert torch.equal(order, permutation(length, *given_numbers))
    assert torch.equal(torch.random.get_rng_state(), before)


@given(numbers, numbers)
def test_different_numbers_give_different_seeds(one: list[int], other: list[int]):
    assert 0 <= derived_seed(*one) < 2**63
    # trailing zeros apart, which a seed sequence does not see
    if [*one, 1] != [*other, 1]:
        assert derived_seed(*one, 1) != derived_seed(*other, 1)


def test_neighbouring_epochs_and_seeds_are_unalike():
    orders = [tuple(permutation(50, seed, epoch).tolist()) for seed in range(-2, 5) for epoch in range(5)]
    assert len(set(orders)) == len(orders)


class Fresh(pt.data.Source):
    """Never the same example twice: what a user writes from the public names alone."""

    steps_per_epoch, examples = 3, 24

    def bind(self, tasks: Any, device: torch.device, where: str, seed: int = 0) -> None:
        self.seed, self.device = seed, device

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[pt.Batch, ...]]:
        for step in range(start, 3):
            yield (self._draw(100 * epoch + step, 8),)

    def in_order(self, size: int) -> Iterator[pt.Batch]:
        yield self._draw(self.seed, min(size, 24))

    def _draw(self, number: int, size: int) -> pt.Batch:
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        return pt.Batch(x, {"a": (x[:, 0] > 0).float()}, {"a": size}, size).to(self.device)


def test_a_source_of_ones_own_needs_public_names_only():
    assert isinstance(pt.Arrays(torch.zeros(1, 1), {}, batch_size=1), pt.data.Source)
    assert pt.data.Arrays is pt.Arrays and issubclass(pt.data.Loader, pt.data.Source)
    model = pt.models.HardSharing(torch.nn.Linear(3, 4), {"a": torch.nn.Linear(4, 1)})
    run = pt.Trainer(model, [pt.binary("a")], lambda p: torch.optim.SGD(p, lr=1.0), progress=False)
    history = run.fit(Fresh(), Fresh(), epochs=3)
    assert history[-1]["validation/loss"] < history[0]["validation/loss"]


def test_inputs_are_checked_at_the_door():
    assert check_inputs((torch.zeros(3, 2), {"x": torch.zeros(3)}), "train") == 3
    with pytest.raises(ValueError, match="train: inputs must hold at least one tensor, found none"):
        check_inputs((), "train")
    with pytest.raises(ValueError, match=r"same number of examples, found \[3, 4\]"):
        check_inputs((torch.zeros(3), torch.zeros(4)), "train")
    bad = torch.zeros(5, 2)
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="test: inputs must be finite, found nan in example 3"):
        check_inputs(bad, "test")
    with pytest.raises(ValueError, match="test: inputs must be finite, found -inf in example 2"):
        check_inputs({"a": torch.zeros(3), "b": torch.tensor([1.0, 1.0, -torch.inf])}, "test")
    with pytest.raises(ValueError, match="test: inputs must be finite, found inf in example 1"):
        check_inputs(torch.tensor([1.0, torch.inf, -torch.inf], dtype=torch.bfloat16), "test")
    assert check_inputs(torch.tensor([3e38, 3e38, 3e38]), "train") == 3
    assert check_inputs(torch.tensor([1, 2, 3]), "train") == 3
    assert check_inputs(torch.zeros(0, 3), "train") == 0
