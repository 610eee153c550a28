"""The Trainer: the one object that puts tasks, a model, data, a schedule and a balancer together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polytask.balancing.base import Balancer
from polytask.balancing.gradients import check_mode
from polytask.balancing.scalarization.linear import Linear
from polytask.balancing.sharded import is_sharded
from polytask.callback import Callback
from polytask.data.accept import MixtureFactory, as_inputs, as_source
from polytask.data.source import Source
from polytask.errors import at_least, nearest, one_of, whole
from polytask.models.base import Model
from polytask.models.by_source import check_sources
from polytask.objective import Objective
from polytask.ranks import Ranks
from polytask.schedules.base import Schedule
from polytask.schedules.joint import Joint
from polytask.task import Prediction, Task, named
from polytask.training.callbacks.progress import Progress
from polytask.training.evaluation import evaluate, objective_values, predict, rehearse
from polytask.training.history import History
from polytask.training.launch import launch
from polytask.training.optimizers import OptimizerFactory, OptimizerOptions, SchedulerFactory
from polytask.training.run import Run

PRECISIONS = ("32-true", "bf16-mixed")


class Trainer:
    """Trains one network for several tasks.

    Args:
        model: a `polytask.models.Model`; any other module can be wrapped in `models.Partitioned`.
        tasks: its tasks; names must be those of its heads.
        optimizer: function from parameters (or parameter groups, see `groups`) to a torch optimizer that
            needs no closure. ``torch.optim.SGD`` with lr 0.01 if None.
        specific_optimizer: a second one, for the task-specific blocks; `optimizer` then has the shared one.
        schedule: which blocks move when; `schedules.Joint()` if None.
        balancer: how objectives share the shared block; `scalarization.Linear()`, the plain sum, if None.
        objectives: terms beside the tasks' losses.
        callbacks: acted on in order; neither the list nor its order is changed.
        batch_size: examples per step for arrays and data sets, at least 1; of all processes together.
        mixture: function from {name: source} to one source: how training data of several sources are served, such as
            ``data.RoundRobin`` or ``data.Temperature(T=2)``, a mixture without sources. ``data.Proportional`` if None.
            Data that are not several sources are refused beside it.
        seed: of shuffles and dropout; the model's initial weights are the caller's (the first process's).
        groups: {key: optimizer settings}, such as ``{"trunk": {"lr": 1e-4}}``. A key is a prefix of
            parameter names, ``shared`` or ``specific``; the first that matches wins, the rest form a group.
        scheduler: function from an optimizer to a torch learning-rate scheduler, made for each optimizer.
        scheduler_interval: ``epoch`` or ``step``: when schedulers step. They count through phases.
        warmup: steps over which learning rates rise linearly from 1/warmup of their value, with any
            scheduler.
        clip_norm: largest norm of all live gradients together, after balancing.
        clip_value: largest absolute value of a gradient's entry, after balancing.
        gradients: how per-objective gradients are taken for a balancer that needs them: ``exact``,
            ``features`` (at the feature boundary, one pass through the trunk) or ``low_memory``; see
            `polytask.balancing.gradients.Backward`.
        accumulate: batches whose gradients make one optimizer step, at least 1; the balancer sees the
            accumulated gradients once per step, the same as those of the concatenated batch.
        cache_features: in specific phases, features of the frozen trunk are computed once where that is
            exact (None), never (False), or it is an error if they cannot be (True). The log says which.
        cache_limit: bytes that cached features may take; above it they are recomputed.
        frozen_dropout: keep dropout active in frozen blocks; rules out caching.
        train_metrics: compute the tasks' metrics on training batches too.
        evaluation_batch_size: examples per forward pass where nothing is learned, at least 1.
        precision: ``32-true`` (the model's and the data's own dtype, without autocast) or ``bf16-mixed``.
        accelerator: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        devices: devices of each machine, one process on each. If None, what torchrun launched or the default
            process group has, else 1. Without a launcher the script is started again for each of the others.
        nodes: machines; on more than one, start the script on each, or use torchrun.
        folder: where interrupted runs leave their checkpoint; the working folder if None.
        progress: show a progress display on a terminal.

    Raises:
        ValueError: tasks and heads do not match, a name is unknown, a number is out of range, or the balancer
            would not heed `gradients`.
        TypeError: an optimizer factory is not callable, or an argument has the wrong type.

    >>> import torch, polytask as pt
    >>> x = torch.rand(64, 2)
    >>> y = {"left": (x[:, 0] < 0.5).float(), "low": (x[:, 1] < 0.5).float()}
    >>> model = pt.models.HardSharing(
    ...     pt.models.MLP(2, [16]), {"left": torch.nn.Linear(16, 1), "low": torch.nn.Linear(16, 1)})
    >>> trainer = pt.Trainer(model, [pt.binary("left"), pt.binary("low")],
    ...                      schedule=pt.schedules.AlternateEpochs(shared=1, specific=1))
    >>> history = trainer.fit((x, y), epochs=2)
    >>> history.column("phase")
    ['shared', 'specific']
    """

    def __init__(
        self,
        model: Model,
        tasks: Sequence[Task],
        optimizer: OptimizerFactory | None = None,
        *,
        specific_optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        balancer: Balancer | None = None,
        objectives: Sequence[Objective] = (),
        callbacks: Sequence[Callback] = (),
        batch_size: int = 32,
        mixture: MixtureFactory | None = None,
        seed: int = 0,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        warmup: int = 0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        gradients: str = "exact",
        accumulate: int = 1,
        cache_features: bool | None = None,
        cache_limit: int = 2**30,
        frozen_dropout: bool = False,
        train_metrics: bool = True,
        evaluation_batch_size: int = 256,
        precision: str = "32-true",
        accelerator: str = "cpu",
        devices: int | None = None,
        nodes: int = 1,
        folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        _check_types(model, schedule, balancer, callbacks, objectives, mixture)
        _check_values(batch_size, evaluation_batch_size, accumulate, seed, cache_limit, precision)
        self.tasks = named(tasks)
        model.bind(tuple(self.tasks))
        for objective in objectives:
            objective.bind(model, self.tasks)
        self.objectives = _named_objectives(objectives, self.tasks)
        self.optimization = OptimizerOptions(
            torch.optim.SGD if optimizer is None else optimizer, specific_optimizer, groups, scheduler,
            scheduler_interval, warmup, clip_norm, clip_value,
        )  # fmt: skip
        self.model = model
        self.schedule = schedule or Joint()
        self.balancer = balancer or Linear()
        self.callbacks = tuple(callbacks)
        self.batch_size = batch_size
        self.mixture = mixture
        self.seed = seed
        check_mode(self.balancer, gradients)
        self.gradients = gradients
        self.accumulate = accumulate
        self.cache_features = cache_features
        self.cache_limit = cache_limit
        self.frozen_dropout = frozen_dropout
        self.train_metrics = train_metrics
        self.evaluation_batch_size = evaluation_batch_size
        self.precision = precision
        self.folder = None if folder is None else Path(folder)
        self.progress = progress
        self.history = History()
        self._fabric = launch(accelerator, precision, devices, nodes)
        self.ranks = Ranks()

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return self._fabric.device

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        """Makes the context in which forward passes run."""
        return nullcontext if self.precision == "32-true" else self._fabric.autocast

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        epochs: int,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Trains from the model's present weights; each call is a run of its own.

        Args:
            train: a Source, a DataLoader, a Dataset, (inputs, {task: targets}), or {source name: any of these}.
            validation: the same, or None.
            epochs: passes over the training data in all, at least 1; a resumed run counts those it made.
            resume: a checkpoint from which to go on. The caller builds the same objects; the file holds
                state and a fingerprint, and is refused if that differs.

        Returns:
            The history, one row an epoch; also kept in `self.history`.

        Raises:
            ValueError: data that do not fit the tasks, an update that would touch no parameter, a callback
                that needs what is not there, a first loss that is not finite, or a checkpoint that does not
                fit.
            Interrupted: Ctrl-C or SIGTERM, after writing a checkpoint; a `KeyboardInterrupt`.
        """
        whole("epochs", epochs, 1)
        train_source = self.served(train, self.device, self.ranks.index, self.ranks.count)
        check_sources(self.model, train_source.parts, every=True)
        validation_source = None if validation is None else self._source(validation, "validation")
        self._place()
        callbacks = [*self.callbacks, *([Progress()] if self.progress else [])]
        if not self.ranks.first:
            callbacks = [callback for callback in callbacks if not callback.observes_only]
        with _mode(self.model, training=True):
            run = Run(self, train_source, validation_source, epochs)
            self.history = run.history
            run.go(callbacks, None if resume is None else Path(resume))
        return self.history

    def served(self, train: Any, device: torch.device, index: int = 0, count: int = 1) -> Source:
        """What a fit trains on: the data as a source, with all that objectives and callbacks add, bound.

        Args:
            train: anything `fit` takes.
            device: where batches are to live.
            index: whose part of every step is served, from 0.
            count: how many processes train together.
        """
        source = as_source(
            train, self.tasks, batch_size=self.batch_size, shuffle=True, where="train", mixture=self.mixture
        )
        for part in (*self.objectives.values(), *self.callbacks):
            source = part.serve(source)
        source.shard(index, count)
        source.bind(self.tasks, device, "train", self.seed)
        self._check_all_tasks(source)
        return source

    def evaluate(self, data: Any) -> dict[str, float]:
        """Losses and metrics on `data` (anything `fit` takes), in eval mode; every process must call it.

        Returns:
            ``loss`` (weighted sum), and ``<task>/loss`` and ``<task>/<metric>`` for each task with targets.
        """
        source = self._source(data, "evaluation")
        self._place()
        with _mode(self.model, training=False):
            return evaluate(self.model, self.tasks, source, self.evaluation_batch_size, self.autocast, ranks=self.ranks)

    def objective_values(self, data: Any) -> dict[str, float]:
        """``<objective>/value`` of each objective beside the losses on `data` (anything `fit` takes), in eval mode.

        Fixed weights are left out.
        """
        source = self._source(data, "evaluation")
        self._place()
        with self._all_in_eval_mode():
            return objective_values(
                self.model, self.tasks, self.objectives, source, self.evaluation_batch_size, self.autocast, self.ranks
            )

    def rehearse(self, train: Any) -> None:
        """Takes the losses of the first examples of every source as `fit` would, and trains nothing.

        Args:
            train: anything `fit` takes.

        Raises:
            ValueError: data, network, objectives or callbacks do not fit together.
        """
        source = self.served(train, self.device)
        check_sources(self.model, source.parts, every=True)
        self._place()
        before = source.state_dict()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), self._all_in_eval_mode():
                rehearse(self.model, self.tasks, self.objectives, source, self.autocast)
        finally:
            source.load_state_dict(before)  # a loader's own generators have moved

    @contextmanager
    def _all_in_eval_mode(self) -> Iterator[None]:
        with ExitStack() as modes:
            for module in (self.model, *self.objectives.values()):
                modes.enter_context(_mode(module, training=False))
            yield

    def predict(self, inputs: Any, source: str = "") -> dict[str, Prediction]:
        """Labels (or numbers) and probabilities for bare inputs, in eval mode.

        Args:
            inputs: tensor, array, or a tuple or dictionary of them, N examples.
            source: the source whose kind of inputs they are, for a model that has an encoder for each.

        Raises:
            ValueError: the model has encoders for sources, and none for this one.
        """
        check_sources(self.model, (source,))
        self._place()
        with _mode(self.model, training=False):
            return predict(
                self.model, self.tasks, as_inputs(inputs, self.device), self.evaluation_batch_size,
                self.autocast, source,
            )  # fmt: skip

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``weights.safetensors``, ``tasks.json`` and ``history.csv`` into `folder`.

        Each file is written under a temporary name and renamed; of several processes, all of which must call
        it, only the first writes. ``polytask.load(folder, model=..., tasks=...)``
        reads them back.
        """
        return self.ranks.once(lambda: self._save(Path(folder)))

    def _save(self, target: Path) -> Path:
        from safetensors.torch import save

        target.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous().cpu().clone() for name, tensor in self.model.state_dict().items()}
        (target / "weights.safetensors.part").write_bytes(save(state, {"format": "polytask weights"}))
        os.replace(target / "weights.safetensors.part", target / "weights.safetensors")
        text = json.dumps([task.describe() for task in self.tasks.values()], indent=2)
        (target / "tasks.json.part").write_text(text + "\n")
        os.replace(target / "tasks.json.part", target / "tasks.json")
        if len(self.history):
            self.history.write_csv(target / "history.csv")
        return target

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Reads weights that `save` wrote: the file, or the folder that holds it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or holds other names or shapes than the model's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        target = Path(path)
        target = target / "weights.safetensors" if target.is_dir() else target
        if not target.is_file():
            raise FileNotFoundError(f"weights to load must exist, found no file {target}")
        try:
            state = load_file(target)
        except SafetensorError as error:
            raise ValueError(f"{target} must be a safetensors file, found a damaged one ({error})") from error
        wanted, found = _shapes(self.model.state_dict()), _shapes(state)
        differing = [
            f"{name}: saved {found.get(name, 'none')}, wanted {wanted.get(name, 'none')}"
            for name in dict.fromkeys([*wanted, *found])
            if wanted.get(name) != found.get(name)
        ]
        if differing:
            raise ValueError(f"{target} must hold this model's weights, found others: " + "; ".join(differing))
        self.model.load_state_dict(state)

    def _source(self, data: Any, where: str) -> Source:
        source = as_source(data, self.tasks, batch_size=self.batch_size, shuffle=False, where=where)
        source.check_parts(self.ranks.index, self.ranks.count)
        source.bind(self.tasks, self.device, where, self.seed)
        check_sources(self.model, source.parts)
        return source

    def _check_all_tasks(self, source: Source) -> None:
        counts = source.label_counts()
        for name in self.tasks:
            if counts is not None and not counts.get(name):
                raise ValueError(f"train: every task must have at least one target, found none for `{name}`")

    def _place(self) -> None:
        for name, parameter in self.model.named_parameters():
            if is_sharded(parameter):
                raise ValueError(
                    f"a Trainer's parameters must be whole on every process, found `{name}` sharded: FSDP2 works with "
                    "`polytask.balance` in a loop of your own"
                )
        self.model.to(self.device)
        for objective in self.objectives.values():
            objective.to(self.device)
        self.balancer.to(self.device)


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_types(
    model: Any, schedule: Any, balancer: Any, callbacks: Sequence[Any], objectives: Sequence[Any], mixture: Any
) -> None:
    if not isinstance(model, Model):
        raise TypeError(
            f"`model` must be a polytask model, found {type(model).__name__}: wrap a module of your own in "
            "polytask.models.Partitioned(module, shared=...)"
        )
    for name, value, kind in (("schedule", schedule, Schedule), ("balancer", balancer, Balancer)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` must be a polytask {name}, found {value!r}")
    for name, values, kind in (("callbacks", callbacks, Callback), ("objectives", objectives, Objective)):
        for value in values:
            if not isinstance(value, kind):
                raise TypeError(f"`{name}` must hold polytask {name}, found {value!r}")
    if mixture is not None and not callable(mixture):
        raise TypeError(
            "`mixture` must be a function from sources to one source, such as pt.data.RoundRobin, found "
            f"{type(mixture).__name__}"
        )


def _check_values(
    batch_size: int, evaluation_batch_size: int, accumulate: int, seed: int, cache_limit: int, precision: str
) -> None:
    whole("batch_size", batch_size, 1)
    whole("evaluation_batch_size", evaluation_batch_size, 1)
    whole("accumulate", accumulate, 1)
    if not isinstance(seed, int):
        raise TypeError(f"`seed` must be a whole number, found {seed!r}")
    at_least("cache_limit", cache_limit, 0)
    one_of("precision", precision, PRECISIONS)


def _named_objectives(objectives: Sequence[Objective], tasks: Mapping[str, Task]) -> dict[str, Objective]:
    by_name = {objective.name: objective for objective in objectives}
    names = [*tasks, *(objective.name for objective in objectives)]
    if len(set(names)) < len(names):
        raise ValueError(f"tasks and objectives must have different names, found {names}")
    for objective in objectives:
        if objective.block is not None and objective.block not in tasks:
            hint = nearest(objective.block, tasks)
            found = f"`{objective.block}` for `{objective.name}`"
            raise ValueError(f"an objective's `block` must be a task or None, found {found}: {hint}")
    return by_name


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The whole module in one mode, every module's own flag as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
