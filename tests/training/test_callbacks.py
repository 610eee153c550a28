"""What happens between updates."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import NAN, Interrupter, SaveAll, data, network, same, sgd, trainer, weights

import polytask as pt

cb = pt.callbacks
ATE = pt.schedules.AlternateEpochs


class Script(pt.Callback):
    """Puts made-up figures into a column, and keeps the weights of every epoch."""

    def __init__(self, values: Sequence[float], column: str = "validation/loss") -> None:
        self.values, self.column = values, column

    def on_fit_start(self, run: Any) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_epoch_end(self, run: Any, row: Any) -> None:
        row[self.column] = self.values[run.epoch]
        self.weights.append(weights(run.model))
        self.rates.append(run.optimizers.rates()["lr"])


def _fit(
    values: Sequence[float], *callbacks: pt.Callback, column: str = "validation/loss", **options: Any
) -> tuple[pt.Trainer, Script]:
    script = Script(values, column)
    run = trainer(callbacks=[script, *callbacks], **options)
    run.fit(data(), data(8, seed=1), epochs=len(values))
    return run, script


@pytest.mark.parametrize(
    ("values", "patience", "epochs", "best"),
    [
        ([5, 4, 3, 4, 4, 1], 2, 5, 3),
        ([5, 4, 3, 2, 1], 2, 5, 5),
        ([1, 2, 3, 4, 5], 3, 4, 1),
        ([3, 2, 9, 9], 5, 4, 2),  # the last epoch comes first, and the best weights are put back all the same
        ([NAN, NAN, 2, 1, NAN, NAN, 0], 2, 2, 2),
        ([NAN, 3, 2, NAN, NAN, 0], 2, 5, 3),
        ([2, 2, 2, 2], 3, 4, 1),
    ],
)
def test_early_stopping_counts_and_restores(values: list[float], patience: int, epochs: int, best: int):
    run, script = _fit(values, cb.EarlyStopping(patience=patience, by="epoch"))
    assert len(run.history) == epochs
    assert same(weights(run.model), script.weights[best - 1])


def test_early_stopping_compares_ends_of_whole_cycles():
    saw = [0.1, 5, 0.2, 4, 0.3, 3, 0.4, 3.5, 0.1, 3.5, 0, 0]
    run, script = _fit(saw, cb.EarlyStopping(patience=2), schedule=ATE(1, 1))
    assert len(run.history) == 10
    assert same(weights(run.model), script.weights[5])
    run, script = _fit(saw, cb.EarlyStopping(patience=2, by="epoch"), schedule=ATE(1, 1))
    assert len(run.history) == 3
    assert same(weights(run.model), script.weights[0])


def test_the_direction_is_the_metrics_own():
    run, script = _fit(
        [0.1, 0.5, 0.4, 0.4], cb.EarlyStopping("validation/a/accuracy", 2), column="validation/a/accuracy"
    )
    assert same(weights(run.model), script.weights[1])
    mae = [pt.binary("a"), pt.regression("b", metric="mae")]
    model = pt.models.HardSharing(torch.nn.Linear(3, 2), {"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)})
    x, y = data(16)
    y["b"] = y["b"].float()
    script = Script([3.0, 1.0, 2.0, 2.0], "validation/b/mae")
    run = trainer(model, tasks=mae, callbacks=[script, cb.EarlyStopping("validation/b/mae", 2)])
    run.fit((x, y), (x, y), epochs=4)
    assert same(weights(model), script.weights[1])


def test_min_delta_and_leaving_the_last_weights():
    run, script = _fit([3, 2.8, 2.75, 2.72, 1], cb.EarlyStopping(patience=2, min_delta=0.1, restore_best=False))
    assert len(run.history) == 4
    assert same(weights(run.model), script.weights[-1])


def test_plateaus_cut_the_rates():
    _, script = _fit([3, 3, 3, 3, 2, 2, 2, 2], cb.ReduceLROnPlateau(patience=2, factor=0.5))
    assert script.rates == [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025]
    _, script = _fit([3] * 8, cb.ReduceLROnPlateau(patience=1, factor=0.1, min_lr=0.02))
    assert script.rates[-1] == 0.02
    _, script = _fit([3, 2.99995, 2.9999], cb.ReduceLROnPlateau(patience=1))
    assert script.rates[-1] < 0.1  # below the smallest change that counts


def test_plateaus_look_at_ends_of_cycles():
    saw = [1, 5, 1, 4, 1, 3, 1, 3, 1, 3, 1, 3]
    _, script = _fit(saw, cb.ReduceLROnPlateau(patience=2), schedule=ATE(1, 1))
    assert script.rates == [0.1] * 10 + [0.05] * 2


class Poison(pt.Callback):
    """Puts a NaN into a head during an epoch."""

    def __init__(self, epoch: int, name: str) -> None:
        self.epoch, self.name = epoch, name

    def on_update(self, run: Any, info: Any) -> None:
        if run.epoch == self.epoch:
            with torch.no_grad():
                run.model.heads[self.name][-1].bias.fill_(NAN)


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("name", ["a", "b"])
def test_training_stops_at_a_loss_that_is_not_a_number(
    name: str, validation: bool, every: int, caplog: pytest.LogCaptureFixture
):
    script = Script([5, 3, 4, 1, 1, 1], "validation/loss" if validation else "train/loss")
    run = trainer(callbacks=[script, Poison(3, name), cb.StopOnNonFinite(every)])
    history = run.fit(data(), data(8) if validation else None, epochs=6)
    assert len(history) == 4
    assert same(weights(run.model), script.weights[1])
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    # by the end of the epoch the other task has caught it through the trunk
    named = f"`{name}`" if every == 1 else "`[ab]`"
    assert re.search(f"the loss of {named} is nan in epoch 4", line)


def test_without_a_finite_epoch_the_initial_weights_come_back():
    model = network()
    before = weights(model)
    trainer(model, callbacks=[Poison(0, "a"), cb.StopOnNonFinite()]).fit(data(), epochs=3)
    assert same(weights(model), before)


def test_checkpoints_keep_the_last_and_the_best(tmp_path: Path):
    script = Script([5, 3, 4, 6, 6], "validation/loss")
    keeper = SaveAll(tmp_path / "all")
    (tmp_path / "all").mkdir()

    def callbacks() -> list[pt.Callback]:
        return [script, cb.Checkpoint(tmp_path / "ck", monitor="validation/loss", every=2), keeper]

    run = trainer(callbacks=callbacks())
    history = run.fit(data(), data(8, seed=1), epochs=5)
    assert sorted(p.name for p in (tmp_path / "ck").iterdir()) == ["best.ckpt", "last.ckpt"]
    for name, epoch in (("best", 2), ("last", 5)):
        state = torch.load(tmp_path / "ck" / f"{name}.ckpt", weights_only=True)["state"]
        assert state["epoch"] == epoch
    again = trainer(callbacks=callbacks())
    assert again.fit(data(), data(8, seed=1), epochs=5, resume=tmp_path / "ck" / "best.ckpt") == history
    assert same(weights(again.model), weights(run.model))


def test_a_checkpoint_that_cannot_be_written_leaves_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer(callbacks=[cb.Checkpoint(tmp_path)]).fit(data(), epochs=1)
    before = (tmp_path / "last.ckpt").read_bytes()

    def broken(content: Any, file: Any) -> None:
        Path(file).write_bytes(b"half a ")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        trainer(callbacks=[cb.Checkpoint(tmp_path)]).fit(data(), epochs=1)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoints_may_use_the_trainers_folder(tmp_path: Path):
    trainer(callbacks=[cb.Checkpoint()], folder=tmp_path / "run").fit(data(), epochs=1)
    assert (tmp_path / "run" / "last.ckpt").is_file()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    trainer(progress=True).fit(data(), data(8), epochs=2)
    trainer(callbacks=[cb.Progress()]).fit(data(), epochs=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("schedule", [pt.schedules.Joint(), ATE(1, 1)], ids=["joint", "ate"])
def test_progress_shows_epochs_phases_and_figures_on_a_terminal(schedule: Any, monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    run = trainer(callbacks=[cb.Progress(interval=0)], schedule=schedule)
    run.fit(data(), data(8, seed=1), epochs=2)
    shown = screen.getvalue()
    assert "2/2" in shown
    assert "a/accuracy" in shown
    assert ("specific" if schedule != pt.schedules.Joint() else "joint") in shown
    assert "done" in shown


def test_progress_is_closed_after_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = cb.Progress()

    class Fail(pt.Callback):
        def on_epoch_end(self, run: Any, row: Any) -> None:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        trainer(callbacks=[progress, Fail()]).fit(data(), epochs=2)
    trainer(callbacks=[progress]).fit(data(), epochs=1)  # a live display left open would refuse a second one


def test_the_log_is_the_history(tmp_path: Path):
    run = trainer(callbacks=[cb.CSVLogger(tmp_path / "deep" / "log.csv")], schedule=ATE(1, 1))
    history = run.fit(data(), data(8), epochs=3)
    history.write_csv(tmp_path / "own.csv")
    assert (tmp_path / "deep" / "log.csv").read_text() == (tmp_path / "own.csv").read_text()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["log.csv"]


def test_tensorboard_gets_every_number(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = trainer(callbacks=[cb.TensorBoard(tmp_path)]).fit(data(), data(8), epochs=3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [event.value for event in events.Scalars("validation/a/loss")]
    assert found == pytest.approx(history.column("validation/a/loss"))
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_tensorboard_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs tensorboard, found it not installed: pip install"):
        trainer(callbacks=[cb.TensorBoard(tmp_path)]).fit(data(), epochs=1)


def _every_hook(order: list[str]) -> pt.Callback:
    def hook(name: str) -> Callable[..., None]:
        return lambda self, *args: order.append(name)

    names = ("on_fit_start", "on_update", "on_epoch_end", "on_boundary", "on_fit_end", "on_close")
    return type("Order", (pt.Callback,), {name: hook(name) for name in names})()


def test_hooks_are_called_in_order(tmp_path: Path):
    order: list[str] = []
    given = [_every_hook(order)]
    trainer(callbacks=given, batch_size=24).fit(data(), epochs=2)
    epoch = ["on_update", "on_epoch_end", "on_boundary"]
    assert order == ["on_fit_start", *epoch, *epoch, "on_fit_end", "on_close"]
    order.clear()
    with pytest.raises(pt.Interrupted):
        trainer(callbacks=[*given, Interrupter(1)], folder=tmp_path).fit(data(), epochs=2)
    assert order == ["on_fit_start", "on_update", "on_close"]
    assert len(given) == 1


def test_a_callback_may_stop_a_run_or_change_a_rate():
    class Act(pt.Callback):
        def on_epoch_end(self, run: Any, row: Any) -> None:
            if run.epoch == 1:
                run.optimizers.scale_rates(0.5, 0.0)
            if run.epoch == 2:
                run.stop("enough")

    history = trainer(callbacks=[Act()], optimizer=sgd(0.4)).fit(data(), epochs=9)
    assert history.column("lr") == [0.4, 0.4, 0.2]
    assert all(math.isfinite(v) for v in history.column("train/loss"))
