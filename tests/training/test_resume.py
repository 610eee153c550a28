"""A resumed run ends with the same bits as one never stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Interrupter, SaveAll, Stream, adam, data, loader, network, same, sgd, trainer, weights
from torch import nn

import polytask as pt
from polytask.training.checkpoint import read

lr = torch.optim.lr_scheduler
EPOCHS = 3

SCHEDULES: dict[str, pt.schedules.Schedule] = {
    "joint": pt.schedules.Joint(),
    "ate 1 1": pt.schedules.AlternateEpochs(1, 1),
    "ate 1 2": pt.schedules.AlternateEpochs(1, 2),
    "sat": pt.schedules.AlternateBatches(),
    "sat fresh": pt.schedules.AlternateBatches(fresh=True),
}
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "momentum": lambda: {"optimizer": sgd(momentum=0.9), "clip_norm": 0.5},
    "adam": lambda: {"optimizer": adam(), "balancer": pt.aggregation.MGDA()},
    "two optimizers": lambda: {"optimizer": sgd(momentum=0.9), "specific_optimizer": adam()},
    "two optimizers, scheduler": lambda: {
        "optimizer": sgd(momentum=0.9), "specific_optimizer": adam(), "scheduler": lambda o: lr.StepLR(o, 2, 0.5),
    },
    "scheduler per epoch": lambda: {"scheduler": lambda o: lr.LambdaLR(o, lambda n: 0.9**n)},
    "scheduler per step, warm-up": lambda: {
        "scheduler": lambda o: lr.OneCycleLR(o, 0.1, total_steps=100), "scheduler_interval": "step", "warmup": 7,
        "optimizer": sgd(momentum=0.9),
    },
    "callbacks": lambda: {
        "callbacks": [
            pt.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.5, by="epoch"),
            pt.callbacks.EarlyStopping(patience=3, min_delta=0.05, by="epoch"),
            pt.callbacks.StopOnNonFinite(every=2),
        ],
    },
    "frozen dropout": lambda: {"frozen_dropout": True, "optimizer": adam()},
    "groups": lambda: {"optimizer": adam(), "groups": {"trunk": {"lr": 1e-3}}},
}  # fmt: skip


def _augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


SOURCES: dict[str, Callable[[], Any]] = {
    "arrays": lambda: data(24, missing=True),
    "augmented": lambda: pt.Arrays(*data(24), batch_size=8, augment=_augment),
    "loader": lambda: loader(missing=True),
    "loader with a generator": lambda: loader(generator=True),
}


def _run(
    schedule: str, options: str, source: str, folder: Path, after: int | None = None, number: int = signal.SIGINT,
    resume: Path | None = None, keep: Path | None = None,
) -> tuple[pt.Trainer, SaveAll, pt.History]:  # fmt: skip
    chosen = OPTIONS[options]()
    keeper = SaveAll(keep)
    callbacks = [*chosen.pop("callbacks", ()), keeper, Interrupter(after, number)]
    run = trainer(
        network("norm+dropout", seed=0 if resume is None else 9), schedule=SCHEDULES[schedule], callbacks=callbacks,
        folder=folder, **chosen,
    )  # fmt: skip
    torch.rand(3 if resume is None else 5)  # a resumed process has another random past
    history = run.fit(SOURCES[source](), data(10, seed=1), epochs=EPOCHS, resume=resume)
    return run, keeper, history


def _combinations() -> Iterator[Any]:
    """Every schedule with every option and source; all but a covering part (every pair meets) are slow."""
    for i, schedule in enumerate(SCHEDULES):
        for j, options in enumerate(OPTIONS):
            for k, source in enumerate(SOURCES):
                covering = (i + j) % len(SOURCES) == k or (options == "momentum" and i < 3)
                yield pytest.param(schedule, options, source, marks=() if covering else pytest.mark.slow)


@pytest.mark.parametrize(("schedule", "options", "source"), list(_combinations()))
def test_resumed_runs_end_with_the_same_bits(schedule: str, options: str, source: str, tmp_path: Path):
    whole, kept, history = _run(schedule, options, source, tmp_path, keep=tmp_path)
    for epoch in range(1, len(history)):
        run, again, rows = _run(schedule, options, source, tmp_path, resume=tmp_path / f"{epoch}.ckpt")
        assert rows == history
        assert same(again.state, kept.state), f"resumed after epoch {epoch}"
        assert same(weights(run.model), weights(whole.model))
    path = None  # and now stopped again and again: after the first update, at an epoch's last, inside epochs
    for after, number in ((1, signal.SIGINT), (2, signal.SIGTERM), (2, signal.SIGINT)):
        with pytest.raises(pt.Interrupted) as caught:
            _run(schedule, options, source, tmp_path, after, number, resume=path)
        path = caught.value.path
        assert path == tmp_path / "interrupted.ckpt"
        assert caught.value.signal_number == number
    run, again, rows = _run(schedule, options, source, tmp_path, resume=path)
    assert rows == history
    assert same(again.state, kept.state), "interrupted inside epochs"
    assert same(weights(run.model), weights(whole.model))


class Noisy(nn.Module):
    """Dropout that no eval mode switches off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.3, training=True)


def test_a_trunk_that_stays_random_resumes_exactly_inside_a_specific_phase(tmp_path: Path):
    def run(keep: Path | None = None, resume: Path | None = None) -> tuple[SaveAll, pt.History]:
        keeper = SaveAll(keep)
        model = network()
        model.trunk.append(Noisy())
        fit = trainer(model, schedule=pt.schedules.AlternateEpochs(1, 4), callbacks=[keeper])
        return keeper, fit.fit(data(), data(8, seed=2), epochs=5, resume=resume)

    kept, history = run(tmp_path)
    for epoch in (1, 2, 3, 4):
        again, rows = run(resume=tmp_path / f"{epoch}.ckpt")
        assert rows == history
        assert same(again.state, kept.state)


def test_train_metrics_of_an_interrupted_epoch_cover_the_whole_epoch(tmp_path: Path):
    x, y = data(24, missing=True)

    def run(after: int | None, resume: Path | None = None) -> pt.History:
        fit = trainer(callbacks=[Interrupter(after)], folder=tmp_path, optimizer=sgd(0.0))
        return fit.fit((x, y), epochs=1, resume=resume)

    with pytest.raises(pt.Interrupted) as caught:
        run(2)
    row = run(None, caught.value.path)[0]
    figures = trainer(optimizer=sgd(0.0)).evaluate((x, y))
    assert row["train/a/accuracy"] == figures["a/accuracy"]
    assert row["train/b/accuracy"] == figures["b/accuracy"]
    assert row["train/loss"] == pytest.approx(figures["loss"], rel=1e-6)


def test_the_message_of_an_interruption_says_how_to_go_on(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer(callbacks=[Interrupter(4, signal.SIGTERM)], folder=tmp_path).fit(data(), epochs=7)
    assert "SIGTERM after 1 of 7 epochs" in str(caught.value)
    assert f"resume={str(tmp_path / 'interrupted.ckpt')!r}" in str(caught.value)


def test_signal_handlers_and_random_state_are_the_users_own_afterwards(tmp_path: Path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    before = torch.random.get_rng_state()
    with pytest.raises(pt.Interrupted):
        trainer(network("dropout"), callbacks=[Interrupter(2)], folder=tmp_path).fit(loader(), epochs=2)
    trainer(network("dropout")).fit(loader(generator=True), loader(), epochs=2)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_second_signal_acts_at_once(request: pytest.FixtureRequest):
    # a shell's background jobs ignore SIGINT, and then a second one would do nothing
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    class Twice(pt.Callback):
        def on_update(self, run: Any, info: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        trainer(callbacks=[Twice()]).fit(data(), epochs=1)
    assert not isinstance(caught.value, pt.Interrupted)


def test_more_epochs_can_be_asked_for_and_fewer_cannot(tmp_path: Path):
    def run(epochs: int, resume: str | None = None) -> tuple[pt.Trainer, pt.History]:
        fit = trainer(network("dropout"), callbacks=[SaveAll(tmp_path)])
        return fit, fit.fit(data(), epochs=epochs, resume=resume)

    whole, history = run(6)
    more, rows = run(6, str(tmp_path / "2.ckpt"))
    assert rows == history
    assert same(weights(more.model), weights(whole.model))
    with pytest.raises(ValueError, match="`epochs` must be at least the checkpoint's 5, found 4"):
        run(4, str(tmp_path / "5.ckpt"))


def test_a_stream_resumes_by_replay(tmp_path: Path):
    def run(after: int | None, resume: Path | None = None) -> tuple[pt.Trainer, pt.History]:
        fit = trainer(network("dropout"), callbacks=[Interrupter(after)], folder=tmp_path)
        return fit, fit.fit(Stream(*data()), epochs=3, resume=resume)

    whole, history = run(None)
    with pytest.raises(pt.Interrupted) as caught:
        run(5)
    assert read(caught.value.path)["step_in_epoch"] == 2
    resumed, rows = run(None, caught.value.path)
    assert rows == history
    assert same(weights(resumed.model), weights(whole.model))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    def run(seed: int) -> pt.Trainer:
        fit = trainer(network("dropout"), seed=seed)
        fit.fit(data(), epochs=2)
        return fit

    assert same(weights(run(3).model), weights(run(3).model))
    assert run(3).history == run(3).history
    assert not same(weights(run(3).model), weights(run(4).model))
    assert run(3).history != run(4).history


def test_stopped_runs_stay_stopped(tmp_path: Path):
    def run(resume: Path | None = None) -> tuple[pt.Trainer, pt.History]:
        stop = pt.callbacks.EarlyStopping("train/loss", patience=1, min_delta=10)
        fit = trainer(callbacks=[stop, SaveAll(tmp_path)])
        return fit, fit.fit(data(), epochs=9, resume=resume)

    whole, history = run()
    assert len(history) == 2
    again, rows = run(tmp_path / "2.ckpt")
    assert rows == history
    assert same(weights(again.model), weights(whole.model))


def test_a_shuffled_validation_loader_resumes_exactly(tmp_path: Path):
    """Its order is its own generator's, and the order decides the last bits of a sum."""

    def run(keep: Path | None = None, resume: Path | None = None) -> tuple[SaveAll, pt.History]:
        keeper = SaveAll(keep)
        fit = trainer(network("dropout"), callbacks=[keeper])
        return keeper, fit.fit(data(), loader(13, generator=True, batch_size=3), epochs=4, resume=resume)

    kept, history = run(tmp_path)
    for epoch in (1, 2, 3):
        again, rows = run(resume=tmp_path / f"{epoch}.ckpt")
        assert rows == history
        assert same(again.state, kept.state)


def test_a_run_may_be_resumed_with_another_display(tmp_path: Path):
    """Displays and logs change nothing, so checkpoints take no notice of them."""

    def run(resume: Path | None = None, **options: Any) -> pt.History:
        callbacks = [pt.callbacks.EarlyStopping("train/loss"), *options.pop("callbacks", [])]
        return trainer(callbacks=callbacks, folder=tmp_path, **options).fit(data(), epochs=4, resume=resume)

    logged = run(callbacks=[pt.callbacks.CSVLogger(tmp_path / "log.csv"), pt.callbacks.Checkpoint()], progress=True)
    shown = run(callbacks=[pt.callbacks.Checkpoint()], resume=tmp_path / "last.ckpt", progress=False)
    assert shown == logged
