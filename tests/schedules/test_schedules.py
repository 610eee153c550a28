"""Which blocks move when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.schedules import AlternateBatches, AlternateEpochs, Joint, Update

counts = st.integers(0, 5)


@given(counts, counts, st.integers(0, 40))
def test_alternate_epochs_repeat_shared_then_specific(shared: int, specific: int, epoch: int):
    if shared + specific == 0:
        return
    schedule = AlternateEpochs(shared, specific)
    expected = (["shared"] * shared + ["specific"] * specific) * 50
    assert schedule.phase(epoch) == expected[epoch]
    (update,) = schedule.updates(epoch, 17)
    assert update.shared is (expected[epoch] == "shared") is schedule.moves_shared(epoch)
    assert (update.specific == frozenset()) is update.shared
    assert schedule.cycle == (shared + specific if shared and specific else 1)


@given(st.integers(0, 100))
def test_alternate_batches(step: int):
    assert [u.shared for u in AlternateBatches().updates(0, step)] == [True, False]
    assert [u.shared for u in AlternateBatches(fresh=True).updates(0, step)] == [step % 2 == 0]


def test_joint_moves_everything():
    assert Joint().updates(4, 9) == (Update(shared=True),)
    assert Update(shared=True).specific is None


@pytest.mark.parametrize(
    ("shared", "specific", "message"),
    [
        (0, 0, "alternate training must update at least one block, found shared=0 and specific=0"),
        (-1, 1, "`shared` must be at least 0, found -1"),
        (1, -2, "`specific` must be at least 0, found -2"),
    ],
)
def test_refusals(shared: int, specific: int, message: str):
    with pytest.raises(ValueError) as caught:
        AlternateEpochs(shared, specific)
    assert str(caught.value) == message


def test_an_update_touches_a_block():
    with pytest.raises(ValueError, match="must touch at least one block"):
        Update(False, frozenset())
