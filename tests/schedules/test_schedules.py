"""Which blocks move when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import SaveAll, data, network, same, sgd, trainer, weights

import polytask as pt
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


class Scripted(pt.schedules.Schedule):
    """Makes the updates it is given."""

    def __init__(self, *updates: pt.schedules.Update) -> None:
        self.given = updates

    def phase(self, epoch: int) -> str:
        return "scripted"

    def updates(self, epoch: int, step: int) -> tuple[pt.schedules.Update, ...]:
        return self.given


class Adaptive(pt.schedules.Schedule):
    """Freezes the shared block once the training loss has been seen twice."""

    def __init__(self) -> None:
        self.seen = 0

    def phase(self, epoch: int) -> str:
        return "shared" if self.seen < 2 else "specific"

    def moves_shared(self, epoch: int) -> bool:
        return self.seen < 2

    def updates(self, epoch: int, step: int) -> tuple[pt.schedules.Update, ...]:
        return (pt.schedules.Update(shared=self.seen < 2),)

    def observe(self, row: Any) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


def test_an_adaptive_schedule_resumes_exactly(tmp_path: Path):
    def run(resume: Path | None = None) -> tuple[SaveAll, pt.History]:
        keeper = SaveAll(None if resume else tmp_path)
        return keeper, trainer(schedule=Adaptive(), callbacks=[keeper]).fit(data(), epochs=4, resume=resume)

    whole, history = run()
    assert history.column("phase") == ["shared", "shared", "specific", "specific"]
    for epoch in (1, 2, 3):
        again, rows = run(tmp_path / f"{epoch}.ckpt")
        assert rows == history
        assert same(again.state, whole.state)


@pytest.mark.parametrize("settings", [(1, 2), (2, 1)])
def test_a_schedule_with_other_settings_is_not_resumed(settings: tuple[int, int], tmp_path: Path):
    keeper = SaveAll(tmp_path)
    trainer(schedule=pt.schedules.AlternateEpochs(1, 1), callbacks=[keeper]).fit(data(), epochs=2)
    with pytest.raises(ValueError, match="different: s"):
        trainer(schedule=pt.schedules.AlternateEpochs(*settings), callbacks=[SaveAll()]).fit(
            data(), epochs=2, resume=tmp_path / "1.ckpt"
        )


def test_two_updates_of_a_step_count_each_task_once():
    one = pt.schedules.Update(True, frozenset({"a"}), frozenset({"a"}))
    two = pt.schedules.Update(True, frozenset({"b"}), frozenset({"b"}))
    history = trainer(schedule=Scripted(one, two, one)).fit(data(), epochs=1)
    joint = trainer(optimizer=sgd(0.0)).fit(data(), epochs=1)
    assert {"train/a/loss", "train/b/loss"} <= history[0].keys()
    still = trainer(schedule=Scripted(one, two, one), optimizer=sgd(0.0)).fit(data(), epochs=1)
    assert still[0]["train/a/loss"] == pytest.approx(joint[0]["train/a/loss"])
    assert still[0]["train/b/loss"] == pytest.approx(joint[0]["train/b/loss"])


def test_an_update_of_an_unknown_objective_is_refused():
    update = pt.schedules.Update(True, None, frozenset({"aa"}))
    with pytest.raises(ValueError, match="unknown objective `aa`"):
        trainer(schedule=Scripted(update)).fit(data(), epochs=1)


class Size(pt.Objective):
    """The squared norm of all parameters."""

    def forward(self, context: Any) -> Any:
        return sum(p.square().sum() for p in context.model.parameters())


def test_an_update_may_follow_a_penalty_alone():
    """Its gradient is 2 w, so a step of 0.1 scales every weight by 0.8, trunk and heads alike."""
    model = network()
    before = weights(model)
    update = pt.schedules.Update(True, None, frozenset({"size"}))
    fit = trainer(model, schedule=Scripted(update), objectives=[Size("size")], optimizer=sgd(0.1), batch_size=24)
    fit.fit(data(24), epochs=1)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, 0.8 * before[name])
