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


def test_a_pattern_monitors_the_mean_of_the_columns_it_fits():
    columns = {"a": [0.9, 0.2, 0.6, 0.1], "b": [0.1, 0.9, 0.7, 0.95]}
    scripts = [Script(values, f"validation/{task}/accuracy") for task, values in columns.items()]
    stopping = cb.EarlyStopping("validation/*/accuracy", patience=9)
    run = trainer(callbacks=[*scripts, stopping])
    run.fit(data(), data(8, seed=1), epochs=4)
    assert stopping.selected_epoch == 3
    assert same(weights(run.model), scripts[0].weights[2])


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


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_plateau_cuts_hold_under_a_closed_form_scheduler(interval: str):
    """A scheduler that works rates out from the initial ones goes on from the cut, not from before it."""
    schedulers = torch.optim.lr_scheduler
    _, script = _fit(
        [3, 3, 3, 3, 3, 3], cb.ReduceLROnPlateau(patience=1, factor=0.1), scheduler_interval=interval,
        scheduler=lambda o: schedulers.LambdaLR(o, lambda step: 1.0),
    )  # fmt: skip
    assert script.rates == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-5])
    _, script = _fit(
        [3, 3, 3, 3, 3], cb.ReduceLROnPlateau(patience=2, factor=0.1),
        scheduler=lambda o: schedulers.LambdaLR(o, lambda epoch: 0.5**epoch),
    )  # fmt: skip
    assert script.rates == pytest.approx([0.05, 0.025, 0.0125, 0.1 * 0.1 * 0.5**4, 0.1 * 0.1 * 0.5**5])


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
    # the lowest loss is epoch 2's: a training loss is that of the weights at the epoch's start
    assert same(weights(run.model), script.weights[1 if validation else 0])
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    # by the end of the epoch the other task has caught it through the trunk
    named = f"`{name}`" if every == 1 else "`[ab]`"
    assert re.search(f"the loss of {named} is nan in epoch 4", line)


def test_without_a_finite_epoch_the_initial_weights_come_back():
    model = network()
    before = weights(model)
    trainer(model, callbacks=[Poison(0, "a"), cb.StopOnNonFinite()]).fit(data(), epochs=3)
    assert same(weights(model), before)


class Broken(torch.autograd.Function):
    """Passes values on and turns gradients into NaN."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * NAN


class BrokenTrunk(torch.nn.Linear):
    def forward(self, x: Any) -> Any:
        return Broken.apply(super().forward(x))


@pytest.mark.parametrize("epochs", [1, 2, 4])
@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("case", ["NaN gradients", "lr 1e20"])
def test_weights_that_are_put_back_are_finite(case: str, validation: bool, epochs: int):
    """With one batch an epoch, the epoch that breaks the weights still has a finite loss."""
    kind = BrokenTrunk if case == "NaN gradients" else torch.nn.Linear
    model = pt.models.HardSharing(kind(3, 4), {"c": torch.nn.Linear(4, 1)})
    before = weights(model)
    rate = 0.1 if case == "NaN gradients" else 1e20
    stopper = cb.StopOnNonFinite()
    run = trainer(model, "c", optimizer=sgd(rate), batch_size=24, callbacks=[stopper])
    history = run.fit(data(names="c"), data(8, "c", seed=1) if validation else None, epochs=epochs)
    assert math.isfinite(history[0]["train/loss"])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    if case == "lr 1e20" and epochs == 1 and not validation:  # large, but finite; their loss was never taken
        assert stopper.selected_epoch is None
    else:
        assert len(history) <= 2
        assert stopper.selected_epoch == 0
        assert same(weights(model), before)


def test_buffers_that_are_infinite_from_the_start_are_no_reason_to_stop():
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    script = Script([5, 3, 4, 4], "validation/loss")
    run = trainer(model, callbacks=[script, Poison(3, "a"), cb.StopOnNonFinite()])
    assert len(run.fit(data(), data(8), epochs=4)) == 4
    assert same(weights(model), script.weights[1])


def test_callbacks_tell_which_epochs_weights_they_put_back():
    stopping, stopper = cb.EarlyStopping(patience=2), cb.StopOnNonFinite()
    assert stopping.selected_epoch is None and stopper.selected_epoch is None
    _fit([5, 3, 4, 4, 4], stopping, stopper)
    assert (stopping.selected_epoch, stopper.selected_epoch) == (2, None)
    _fit([5, 3, 4], cb.EarlyStopping(restore_best=False), Poison(2, "a"), stopper)
    assert stopper.selected_epoch == 2
    _fit([5, 3, 4], Poison(2, "a"), stopper, column="train/loss")
    assert stopper.selected_epoch == 2
    leaving = cb.EarlyStopping(restore_best=False)
    _fit([5, 3, 4], leaving)
    assert leaving.selected_epoch is None


def test_the_weights_to_put_back_are_kept_in_checkpoints(tmp_path: Path):
    def callbacks() -> list[pt.Callback]:
        values = [5, 3, 4, 4, 4, 4]
        return [Script(values, "train/loss"), Poison(4, "a"), cb.StopOnNonFinite(), cb.Checkpoint(tmp_path)]

    whole = trainer(callbacks=callbacks())
    whole.fit(data(), epochs=6)
    trainer(callbacks=callbacks()).fit(data(), epochs=3)
    resumed = trainer(callbacks=callbacks())
    resumed.fit(data(), epochs=6, resume=tmp_path / "last.ckpt")
    assert same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("kind", [cb.EarlyStopping, cb.ReduceLROnPlateau])
def test_a_run_shorter_than_a_cycle_is_told_that_nothing_is_compared(kind: Any, caplog: pytest.LogCaptureFixture):
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    _fit([3, 2], kind(), schedule=ATE(1, 1))
    _fit([3, 2], kind(by="epoch"), schedule=ATE(2, 2))
    assert warnings() == []
    _fit([3, 2], kind(), schedule=ATE(2, 2))
    (line,) = warnings()
    assert "`validation/loss` is compared at the ends of cycles of 4 epochs, found 2 epochs in all" in line


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


def test_progress_tells_epochs_and_the_time_left_in_the_log(caplog: pytest.LogCaptureFixture):
    """Each epoch takes ten seconds, a line is due after fifteen; two epochs went before and three are to come."""
    now = [0.0]

    class Slow(pt.Callback):
        def on_epoch_end(self, run: Any, row: Any) -> None:
            now[0] += 10

    told = cb.Progress(label="1/2 search: epoch", before=2, after=3, log_interval=15)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "polytask"):
        patch.setattr("polytask.training.callbacks.progress.time.monotonic", lambda: now[0])
        trainer(callbacks=[Slow(), told]).fit(data(), epochs=5)
    lines = [record.getMessage() for record in caplog.records if "search" in record.getMessage()]
    assert lines == [
        "1/2 search: epoch 4 of 10, about 1:00 left",
        "1/2 search: epoch 6 of 10, about 0:40 left",
    ]


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
