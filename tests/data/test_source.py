"""Seeds and permutations that depend on their numbers alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_inputs_are_checked_at_the_door():
    assert check_inputs((torch.zeros(3, 2), {"x": torch.zeros(3)}), "train") == 3
    with pytest.raises(ValueError, match="train: inputs must hold at least one tensor, found none"):
        check_inputs((), "train")
    with pytest.raises(ValueError, match=r"same number of examples, found \[3, 4\]"):
        check_inputs((torch.zeros(3), torch.zeros(4)), "train")
    bad = torch.zeros(5, 2)
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="test: inputs must not hold NaN, found one in example 3"):
        check_inputs(bad, "test")
    assert check_inputs(torch.tensor([1e38, 1e38, -torch.inf]), "train") == 3
