import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.data.compositing import check_seed, draw_pairs, overlay


@given(count=st.integers(1, 40), repeats=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_every_row_is_on_either_side_equally_often(count, repeats, seed):
    rows = draw_pairs(count, repeats, np.random.RandomState(seed))
    assert rows.shape == (count * repeats, 2)
    for side in rows.unbind(1):
        assert torch.equal(side.bincount(minlength=count), torch.full((count,), repeats))


def test_repeats_meet_different_partners():
    rows = draw_pairs(100, 2, np.random.RandomState(0))
    assert not torch.equal(rows[:100], rows[100:])


@given(
    count=st.integers(1, 5), size=st.integers(1, 6), shift=st.integers(0, 6), border=st.integers(0, 3),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_overlay_takes_the_brighter_pixel_and_leaves_the_rest_dark(count, size, shift, border, seed):
    random = np.random.RandomState(seed)
    left, right = torch.from_numpy(random.randint(0, 256, (2, count, size, size)).astype(np.uint8))
    side = size + shift + border
    canvas = overlay(left, right, shift, side)
    assert canvas.shape == (count, side, side)
    assert canvas.dtype == torch.uint8
    for i in range(side):
        for j in range(side):
            seen = torch.zeros(count, dtype=torch.uint8)
            if i < size and j < size:
                seen = torch.maximum(seen, left[:, i, j])
            if 0 <= i - shift < size and 0 <= j - shift < size:
                seen = torch.maximum(seen, right[:, i - shift, j - shift])
            assert torch.equal(canvas[:, i, j], seen)


def test_overlay_leaves_its_arguments_alone():
    left, right = torch.full((1, 2, 2), 3), torch.full((1, 2, 2), 5)
    overlay(left, right, 0, 2)
    assert (left == 3).all()
    assert (right == 5).all()


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_numpy_takes_the_seeds_that_pass(seed):
    np.random.RandomState(check_seed(seed))
