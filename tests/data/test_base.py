"""What a data set's `load` may return."""

import pytest
import torch

from polytask.data.base import Split, Splits, as_splits

PART = (torch.zeros(3, 2), {"a": torch.zeros(3)})


@pytest.mark.parametrize("loaded", [(PART, PART, PART), [PART, PART, PART], Splits(*[Split(*PART)] * 3)])
def test_plain_tuples_are_taken_as_splits(loaded):
    splits = as_splits(loaded, "Mine")
    assert isinstance(splits, Splits)
    for part in splits:
        assert isinstance(part, Split)
        assert part.inputs is PART[0]
        assert part.targets["a"] is PART[1]["a"]


@pytest.mark.parametrize("loaded", [PART, (PART, PART), (PART, PART, PART[0]), (PART, PART, (PART[0], PART[0])), None])
def test_other_forms_are_refused_before_anything_is_trained(loaded):
    with pytest.raises(TypeError, match=r"Mine.load\(\) must return train, validation and test parts"):
        as_splits(loaded, "Mine")
