"""The optimizers of a run with their groups, schedulers, warm-up and clipping."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from polytask.errors import at_least, nearest, one_of
from polytask.models.base import Model
from polytask.objective import Objective
from polytask.training.freezing import blocks_with

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class OptimizerOptions:
    """How `Trainer` was told to optimise; its arguments explain each."""

    optimizer: OptimizerFactory
    specific_optimizer: OptimizerFactory | None = None
    groups: Mapping[str, Mapping[str, Any]] | None = None
    scheduler: SchedulerFactory | None = None
    scheduler_interval: str = "epoch"
    warmup: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        for name in ("optimizer", "specific_optimizer", "scheduler"):
            factory = getattr(self, name)
            if factory is not None and not callable(factory):
                raise TypeError(
                    f"`{name}` must be a function that makes it, such as `lambda p: torch.optim.SGD(p, lr=0.1)`, "
                    f"found {type(factory).__name__}"
                )
        one_of("scheduler_interval", self.scheduler_interval, ("epoch", "step"))
        at_least("warmup", self.warmup, 0)
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be above 0, found {value}")


class Optimizers:
    """One optimizer over all blocks, or one over the shared and one over the task-specific blocks.

    Args:
        model: the network.
        objectives: terms beside the losses; their own parameters are trained with the block they name.
        options: what the user asked for.
    """

    def __init__(self, model: Model, objectives: Iterable[Objective], options: OptimizerOptions) -> None:
        self._options = options
        terms = list(objectives)
        blocks = blocks_with(model, terms)
        shared = list(blocks.shared.parameters)
        known = {id(p) for p in shared}
        specific = [p for p in blocks.specific_parameters() if id(p) not in known]
        own = [(p, f"{term.name}.{name}") for term in terms for name, p in term.named_parameters()]
        names = {id(p): name for p, name in own} | {id(p): name for name, p in model.named_parameters()}
        groups = _Groups(options.groups or {}, names, known)
        if options.specific_optimizer is None:
            parts = [("", [*shared, *specific], options.optimizer)]
        else:
            parts = [("shared", shared, options.optimizer), ("specific", specific, options.specific_optimizer)]
        self.parts = [part for part, parameters, _ in parts if parameters]
        self.optimizers = [_make(factory, groups.split(parameters)) for _, parameters, factory in parts if parameters]
        self._group_names = [_names(o, part) for o, part in zip(self.optimizers, self.parts, strict=True)]
        self._schedulers = [self._scheduler(optimizer) for optimizer in self.optimizers]
        self._steps = 0

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        if self._options.scheduler is None:
            return None
        scheduler = self._options.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "`scheduler` must not need a metric, found torch's ReduceLROnPlateau: use the callback "
                "polytask.callbacks.ReduceLROnPlateau, which counts through phase changes"
            )
        # schedulers count through phases in which this optimizer rests; torch warns of that, mistaking it for a slip
        optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue] (torch's own)
        return scheduler

    @property
    def _warmth(self) -> float:
        """What warm-up multiplies the next update's learning rates by."""
        warmup = self._options.warmup
        return min(1.0, (self._steps + 1) / warmup) if warmup else 1.0

    def rate_of(self, parameter: Parameter) -> float:
        """The learning rate of the next update of a parameter, warm-up included; 0 if no optimizer holds it."""
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        found = next((group for group in groups if any(p is parameter for p in group["params"])), None)
        return 0.0 if found is None else float(found["lr"]) * self._warmth

    def step(self, shared: bool, specific: bool) -> None:
        """Clips and steps what is live; blocks without gradients, and their state, are left alone."""
        options = self._options
        if options.clip_norm is not None or options.clip_value is not None:
            self._clip()
        factor = self._warmth
        wanted = {"": True, "shared": shared, "specific": specific}
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            if wanted[part]:
                optimizer.step() if factor == 1.0 else _scaled_step(optimizer, factor)
        self._steps += 1
        if options.scheduler_interval == "step":
            self._step_schedulers()

    def end_epoch(self) -> None:
        """Steps the schedulers that count epochs."""
        if self._options.scheduler_interval == "epoch":
            self._step_schedulers()

    def _step_schedulers(self) -> None:
        for scheduler in self._schedulers:
            if scheduler is not None:
                scheduler.step()

    def _clip(self) -> None:
        live = [p for o in self.optimizers for g in o.param_groups for p in g["params"] if p.grad is not None]
        if self._options.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(live, self._options.clip_norm)
        if self._options.clip_value is not None:
            torch.nn.utils.clip_grad_value_(live, self._options.clip_value)

    def rates(self) -> dict[str, float]:
        """{``lr`` or ``lr/<group>``: learning rate} as the next full step would use it, warm-up apart."""
        named = {
            name: float(group["lr"])
            for optimizer, names in zip(self.optimizers, self._group_names, strict=True)
            for name, group in zip(names, optimizer.param_groups, strict=True)
        }
        return {"lr": next(iter(named.values()))} if len(named) == 1 else {f"lr/{k}": v for k, v in named.items()}

    def scale_rates(self, factor: float, minimum: float) -> bool:
        """Multiplies every learning rate, not below `minimum`; whether any changed."""
        changed = False
        for optimizer, scheduler in zip(self.optimizers, self._schedulers, strict=True):
            for index, group in enumerate(optimizer.param_groups):
                before, after = group["lr"], min(group["lr"], max(group["lr"] * factor, minimum))
                if after == before:
                    continue
                changed = True
                group["lr"] = after
                # a scheduler in closed form would otherwise undo the cut at its next step
                if "initial_lr" in group:
                    group["initial_lr"] = group["initial_lr"] * (after / before)
                if scheduler is not None:
                    scheduler.base_lrs[index] = scheduler.base_lrs[index] * (after / before)
        return changed

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records."""
        kinds = [type(o).__name__ for o in self.optimizers]
        groups = [[len(g["params"]) for g in o.param_groups] for o in self.optimizers]
        schedulers = [type(s).__name__ for s in self._schedulers if s is not None]
        defaults = [{k: repr(v) for k, v in o.defaults.items()} for o in self.optimizers]
        settings = {
            name: getattr(self._options, name) for name in ("scheduler_interval", "warmup", "clip_norm", "clip_value")
        }
        return {
            "optimizers": kinds, "optimizer_settings": defaults, "optimizer_groups": groups,
            "lr_schedulers": schedulers, **settings,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """State of optimizers, schedulers and warm-up."""
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [None if s is None else _plain(s.state_dict()) for s in self._schedulers],
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            if scheduler is not None:
                scheduler.load_state_dict(saved)
        self._steps = state["steps"]


class _Groups:
    """Sorts parameters into the user's groups: by name prefix, ``shared`` or ``specific``; first match wins."""

    def __init__(self, options: Mapping[str, Mapping[str, Any]], names: Mapping[int, str], shared: set[int]) -> None:
        self._options = options
        self._names = names
        self._shared = shared
        for key in options:
            if key not in ("shared", "specific") and not any(_matches(name, key) for name in names.values()):
                known = {"shared", "specific", *(name.split(".")[0] for name in names.values())}
                raise ValueError(f"a parameter group must match a parameter, found `{key}`: {nearest(key, known)}")

    def split(self, parameters: Sequence[Parameter]) -> list[Any]:
        if not self._options:
            return list(parameters)
        sorted_out: dict[str, list[Parameter]] = {}
        for parameter in parameters:
            sorted_out.setdefault(self._key(parameter), []).append(parameter)
        # torch leaves a group's unknown keys alone, so the name rides along and reaches checkpoints
        return [
            {"params": members, "name": key or "rest", **self._options.get(key, {})}
            for key, members in sorted_out.items()
        ]

    def _key(self, parameter: Parameter) -> str:
        name, shared = self._names.get(id(parameter), ""), id(parameter) in self._shared
        for key in self._options:
            if (key == "shared" and shared) or (key == "specific" and not shared) or _matches(name, key):
                return key
        return ""


def _matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _names(optimizer: Optimizer, part: str) -> list[str]:
    groups = optimizer.param_groups
    plain = [part or "all"] if len(groups) == 1 else [f"{part or 'group'}{i}" for i in range(len(groups))]
    given = [str(group.get("name", name)) for group, name in zip(groups, plain, strict=True)]
    return [part if part and name == "rest" else name for name in given]  # two optimizers, each with a rest


def _make(factory: OptimizerFactory, parameters: list[Any]) -> Optimizer:
    optimizer = factory(parameters)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"the optimizer factory must return a torch optimizer, found {type(optimizer).__name__}")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            "the optimizer must not need a closure (each update computes its losses once), found "
            f"{type(optimizer).__name__}: use SGD, Adam, AdamW, RMSprop, ..."
        )
    return optimizer


def _scaled_step(optimizer: Optimizer, factor: float) -> None:
    # scaled around the step only, so that warm-up composes with any scheduler, multiplicative or absolute
    full = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, full, strict=True):
        group["lr"] = rate


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's state without the functions some keep in it."""
    return {key: value for key, value in state.items() if not callable(value)}
