"""One call of `Trainer.fit`: the loop over epochs and steps, and all of its state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polytask.batch import Batch
from polytask.callback import Callback
from polytask.data.source import Source, derived_seed
from polytask.training import checkpoint, columns, together
from polytask.training.evaluation import evaluate
from polytask.training.features import FeatureCache, FeatureCaches
from polytask.training.fingerprint import fingerprint
from polytask.training.freezing import Freezer, reset_gradients
from polytask.training.history import History
from polytask.training.meter import Meter
from polytask.training.misfit import refuse_misfit
from polytask.training.optimizers import Optimizers
from polytask.training.signals import SIGNAL_STEPS, Interrupted, signals
from polytask.training.step import Step
from polytask.training.updates import check_updates

if TYPE_CHECKING:
    from polytask.training.trainer import Trainer


class Run:
    """The state of one fit, and what callbacks act on.

    Attributes:
        trainer: who runs it.
        model: the network.
        ranks: the processes that train together. All of them run every callback, in step, but those that
            observe only, which the first alone runs.
        epoch: epochs finished.
        step: optimizer steps finished, over the whole run.
        epochs: epochs asked for.
        history: rows so far.
        optimizers: to look at or change learning rates.
        stopped: why training ends early, "" if it does not.
        caching: whether this epoch works on cached features.
    """

    def __init__(self, trainer: Trainer, train: Source, validation: Source | None, epochs: int) -> None:
        self.trainer = trainer
        self.model = trainer.model
        self.ranks = trainer.ranks
        self.train = train
        self.validation = validation
        self.epochs = epochs
        self.epoch = 0
        self.step = 0
        self.step_in_epoch = 0
        self.stopped = ""
        self.caching = False
        self.history = History()
        self.callbacks: Sequence[Callback] = ()
        self.signal_number = 0
        self._seconds = 0.0
        self._extra = [p for objective in trainer.objectives.values() for p in objective.parameters()]
        self.optimizers = Optimizers(self.model, trainer.objectives.values(), trainer.optimization)
        self.freezer = Freezer(self.model, trainer.objectives.values(), trainer.frozen_dropout)
        self._step = Step(
            self.model, trainer.tasks, trainer.objectives, trainer.balancer, self.freezer,
            self.optimizers, trainer.autocast, trainer.gradients, self.ranks,
        )  # fmt: skip
        self._meter = Meter(trainer.tasks, trainer.train_metrics, trainer.objectives, self.ranks)
        self._validation_meter = Meter(trainer.tasks, ranks=self.ranks)
        self._caches = FeatureCaches(
            trainer.cache_features, trainer.cache_limit, self._frozen_features, self.model.boundary,
            trainer.evaluation_batch_size, self.ranks,
        )  # fmt: skip
        self._unseen = set(trainer.tasks) if train.label_counts() is None else set()
        self._unserved = set(train.parts) if len(train.parts) > 1 else set()
        self._set_up()
        try:
            self._check()
        finally:
            self.freezer.restore()

    def _set_up(self) -> None:
        """Tells balancer and schedule what there is, and gives every rank the first one's weights."""
        trainer, counts = self.trainer, self.train.label_counts()
        trainer.balancer.setup([*trainer.tasks, *trainer.objectives], counts)
        terms = {name: objective.block for name, objective in trainer.objectives.items()}
        trainer.schedule.setup(list(trainer.tasks), counts, terms)
        together.align([self.model, *trainer.objectives.values(), trainer.balancer], self.ranks)

    def _check(self) -> None:
        """Refuses what could only fail later: columns that will not be there, updates of nothing, missing caches."""
        for column in self.train.monitored:
            self.direction(column)
        schedule, epochs = self.trainer.schedule, self._unlike_epochs
        check_updates(schedule, epochs, self.trainer.tasks, self.trainer.objectives, self.freezer)
        if any(not schedule.moves_shared(epoch) for epoch in epochs):
            for part in self.train.parts.values():
                self._caches.insist(part, "train")

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None if only the end of the data tells."""
        batches = self.train.steps_per_epoch
        return None if batches is None else -(-batches // self.trainer.accumulate)

    @property
    def _unlike_epochs(self) -> range:
        """The epochs after which none brings anything new: what the schedule leads with, and one cycle."""
        return range(min(self.trainer.schedule.lead + self.cycle, self.epochs))

    @property
    def acting(self) -> list[Callback]:
        """The callbacks that may change the run: those that a resumed run must have in common with it."""
        return [callback for callback in self.callbacks if not callback.observes_only]

    # What callbacks use

    @property
    def cycle(self) -> int:
        """Epochs in a whole cycle of the schedule."""
        return self.trainer.schedule.cycle

    @property
    def phase(self) -> str:
        """The phase of the current epoch."""
        return self.trainer.schedule.phase(self.epoch)

    def stop(self, reason: str) -> None:
        """Ends training after this epoch."""
        self.stopped = self.stopped or reason

    def note(self, column: str, value: float) -> None:
        """Adds a figure to the history's row of the epoch that has just ended; for a callback's `on_epoch_end`.

        Sources, balancers and schedules do not see it: what they are to see comes from `Callback.figures`.
        """
        self.history[-1][column] = value

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint from which `fit(resume=path)` goes on exactly; every rank must call it."""
        state = self.state_dict()
        return self.ranks.once(lambda: checkpoint.write(path, state))

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all weights and buffers of the model and the objectives."""
        parts = {"model": self.model, **{f"objective.{k}": v for k, v in self.trainer.objectives.items()}}
        return {
            f"{part}/{name}": value.detach().clone()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Puts a snapshot back; features cached from other weights are forgotten."""
        self._caches.clear()
        parts = {"model": self.model, **{f"objective.{k}": v for k, v in self.trainer.objectives.items()}}
        for part, module in parts.items():
            prefix = f"{part}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in snapshot.items() if k.startswith(prefix)})

    def direction(self, monitor: str) -> str:
        """``min`` or ``max``: which way the history column `monitor` is better; see `columns`."""
        return self._directions()[self.columns(monitor)[0]]

    def columns(self, monitor: str) -> list[str]:
        """The history columns whose mean `monitor` names: itself, or those that a pattern with ``*`` fits.

        Raises:
            ValueError: no such column can exist in this run, or the pattern fits some where higher is better and
                others where lower is.
        """
        return columns.monitored(monitor, self._directions(), self.validation is not None)

    def _directions(self) -> dict[str, str]:
        return columns.directions(self.trainer.tasks, self.trainer.objectives, self.validation is not None)

    # The loop

    def go(self, callbacks: Sequence[Callback], resume: Path | None) -> None:
        """Trains until `epochs`, a callback's stop, an error or a signal."""
        self.callbacks = callbacks
        watchers = [c for c in callbacks if type(c).on_update is not Callback.on_update]
        openers = [c for c in callbacks if type(c).on_step_start is not Callback.on_step_start]
        devices = [self.trainer.device] if self.trainer.device.type == "cuda" else []
        with torch.random.fork_rng(devices), signals(self), together.quiet(self.ranks), self._tidy():
            others = (self.ranks.index,) if self.ranks.index else ()  # dropout must differ between ranks
            torch.manual_seed(derived_seed(self.trainer.seed, 1, *others))
            reset_gradients([*self.model.parameters(), *self._extra])
            self._fingerprint = fingerprint(self)  # now, while callbacks and schedules are as they were made
            for callback in callbacks:
                callback.on_fit_start(self)
            if resume is not None:
                self.load_state_dict(self.ranks.once(lambda: checkpoint.read(resume)), resume)
            while self.epoch < self.epochs and not self._stopped_anywhere():
                self._train_epoch(openers, watchers)
                self._end_epoch()
                if self._told_to_stop():
                    self._interrupt()
            for callback in callbacks:
                callback.on_fit_end(self)
            self._told_to_stop()  # what came late must end every rank

    def _train_epoch(self, openers: Sequence[Callback], watchers: Sequence[Callback]) -> None:
        schedule = self.trainer.schedule
        caches = self._phase_caches()
        self.caching = caches is not None
        begin, before = time.perf_counter(), self._seconds
        for batches in self._batches():
            if self._unseen:
                self._unseen -= {name for batch in batches for name, count in batch.counts.items() if count}
                self._unserved -= {batch.source for batch in batches}
            for callback in openers:
                callback.on_step_start(self, batches)
            metered: set[str] = set()  # a second update on the same batches must not count them twice
            for update in schedule.updates(self.epoch, self.step):
                info = self._step(batches, update, caches, self._meter, metered)
                if info is not None:
                    for callback in watchers:
                        callback.on_update(self, info)
            self.step += 1
            self.step_in_epoch += 1
            if self.step % SIGNAL_STEPS.get(self.trainer.device.type, 1) == 0 and self._told_to_stop():
                self._seconds = before + time.perf_counter() - begin
                self._interrupt()
        if not self.step_in_epoch:
            raise ValueError("train: an epoch must hold at least one batch, found none")
        # always, as whether any is left may differ from rank to rank
        self._unseen = set.intersection(*map(set, self.ranks.objects(sorted(self._unseen))))
        self._unserved = set.intersection(*map(set, self.ranks.objects(sorted(self._unserved))))
        for name in () if self._unserved else sorted(self._unseen):  # it may be a source's whose turn has not come
            raise ValueError(f"train: every task must have at least one target, found none for `{name}` in an epoch")
        self._seconds = before + time.perf_counter() - begin

    def _batches(self) -> Iterator[tuple[Batch, ...]]:
        """The batches of each optimizer step that is left of this epoch; the last may have fewer."""
        size = self.trainer.accumulate
        joined: tuple[Batch, ...] = ()
        steps = self.train.steps(self.epoch, self.step_in_epoch * size)
        if self.train.divided:
            steps = together.until_all_end(steps, self.ranks, self.trainer.device)
        for number, batches in enumerate(steps, 1):
            joined += batches
            if number % size == 0:
                yield joined
                joined = ()
        if joined:
            yield joined

    def _phase_caches(self) -> dict[str, FeatureCache] | None:
        if self.trainer.schedule.moves_shared(self.epoch):
            self._caches.clear()
            return None
        begin = time.perf_counter()
        caches = self._cached(self.train, "train")
        self._seconds += time.perf_counter() - begin
        return caches or None

    def _cached(self, source: Source, where: str) -> dict[str, FeatureCache]:
        found = {label: self._caches.get(part, where) for label, part in source.parts.items()}
        return {label: cache for label, cache in found.items() if cache is not None}

    def _end_epoch(self) -> None:
        phase, rates = self.phase, self.optimizers.rates()
        together.average_statistics(self.model, self.ranks)
        figures = {f"train/{key}": value for key, value in self._meter.figures().items()}
        begin = time.perf_counter()
        if self.validation is not None:
            figures |= {f"validation/{key}": value for key, value in self._validate().items()}
        row = {"epoch": self.epoch + 1, "phase": phase, **figures, **rates, "seconds": self._seconds}
        if self.validation is not None:
            row["validation_seconds"] = time.perf_counter() - begin
        for callback in self.callbacks:
            row |= callback.figures(self)
        row = self.ranks.share(row)  # with the first rank's seconds
        self.optimizers.end_epoch()
        self.history.append(row)
        for observer in (self.train, self.trainer.balancer, self.trainer.schedule):
            observer.observe(row)
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)
        self._stopped_anywhere()  # before `on_boundary`, which may write it down
        self.epoch += 1
        self.step_in_epoch = 0
        self._seconds = 0.0
        self._meter.reset()
        for callback in self.callbacks:
            callback.on_boundary(self)

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        caches = None
        if not self.trainer.schedule.moves_shared(self.epoch):
            caches = self._cached(self.validation, "validation")
        self.freezer.evaluate()  # after the cache, whose filling wakes the heads
        trainer = self.trainer
        return evaluate(
            self.model, trainer.tasks, self.validation, trainer.evaluation_batch_size, trainer.autocast,
            self._validation_meter, caches, self.ranks,
        )  # fmt: skip

    def _frozen_features(self, inputs: Any, source: str) -> Any:
        self.freezer.switch(False, frozenset(self.trainer.tasks))
        try:
            with self.trainer.autocast():
                return self.model.features(inputs, source)
        except RuntimeError as error:
            refuse_misfit(self.model, inputs, source, error)
            raise

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to end with the same bits."""
        trainer = self.trainer
        own, *others = self.ranks.objects(
            self._own_state() if self.ranks.alone else checkpoint.on_host(self._own_state())
        )
        return {
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "stopped": self.stopped,
            "seconds": self._seconds,
            "history": [dict(row) for row in self.history],
            "weights": self.snapshot(),
            "balancer": checkpoint.copied(trainer.balancer.state_dict()),
            "optimizers": self.optimizers.state_dict(),
            "schedule": trainer.schedule.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.acting],
            **own,
            "other_ranks": others,
        }

    def _own_state(self) -> dict[str, Any]:
        """What may differ from rank to rank."""
        state = {
            "fingerprint": self._fingerprint,
            "unseen": sorted(self._unseen),
            "unserved": sorted(self._unserved),
            "train": self.train.state_dict(),
            "validation": {} if self.validation is None else self.validation.state_dict(),
            "meter": self._meter.state_dict(),
            "random": checkpoint.random_state(self.trainer.device),
        }
        if self.ranks.index:  # inside an epoch each rank's running statistics are its own
            state["buffers"] = {name: buffer.detach() for name, buffer in self.model.named_buffers()}
        return state

    def load_state_dict(self, state: Mapping[str, Any], path: str | Path) -> None:
        """Takes up the run saved in a checkpoint.

        Raises:
            ValueError: the checkpoint's fingerprint differs, or it has more epochs than are asked for.
        """
        own = [state, *state.get("other_ranks", ())][self.ranks.index :][:1]
        saved = own[0]["fingerprint"] if own else state["fingerprint"]  # of fewer ranks, which it says itself
        for refusal in self.ranks.objects(checkpoint.refusal(path, saved, self._fingerprint)):
            if refusal:
                raise ValueError(refusal)
        if state["epoch"] > self.epochs:
            raise ValueError(f"`epochs` must be at least the checkpoint's {state['epoch']}, found {self.epochs}")
        self.restore(state["weights"])
        self.trainer.balancer.load_state_dict(state["balancer"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.trainer.schedule.load_state_dict(state["schedule"])
        for callback, saved in zip(self.acting, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        for row in state["history"]:
            self.history.append(row)
        self.epoch, self.step = state["epoch"], state["step"]
        self.step_in_epoch, self.stopped = state["step_in_epoch"], state["stopped"]
        self._seconds = state["seconds"]
        self._load_own_state(own[0])

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._unseen, self._unserved = set(state["unseen"]), set(state["unserved"])
        self.train.load_state_dict(state["train"])
        if self.validation is not None:
            self.validation.load_state_dict(state["validation"])
        self._meter.load_state_dict(state["meter"], self.trainer.device)
        buffers = dict(self.model.named_buffers())
        for name, value in state.get("buffers", {}).items():
            buffers[name].detach().copy_(value)
        checkpoint.set_random_state(state["random"], self.trainer.device)

    # Leaving

    def _stopped_anywhere(self) -> bool:
        """Whether a callback has stopped any rank; all of them then have its reason."""
        self.stopped = next(filter(None, self.ranks.objects(self.stopped)), "")
        return bool(self.stopped)

    def _told_to_stop(self) -> bool:
        """Whether any rank was sent a signal; all of them then stop at the same step."""
        if not self.ranks.alone:
            numbers = torch.zeros(self.ranks.count, dtype=torch.int64, device=self.trainer.device)
            numbers[self.ranks.index] = self.signal_number
            agreed = int(self.ranks.sum(numbers).max())
            if not agreed:  # one that has come meanwhile waits for the next time
                return False
            self.signal_number = agreed
        return bool(self.signal_number)

    def _interrupt(self) -> None:
        folder = self.trainer.folder or Path.cwd()
        path = self.save(folder / "interrupted.ckpt")
        number, self.signal_number = self.signal_number, 0
        raise Interrupted(path, number, self.epoch, self.epochs)

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        with ExitStack() as closing:  # each is called, whatever another raises
            for callback in reversed(self.callbacks):
                closing.callback(callback.on_close, self)
            closing.callback(self._caches.clear)
            closing.callback(reset_gradients, [*self.model.parameters(), *self._extra])
            closing.callback(self.freezer.restore)
            yield
