"""Settings and learned numbers that belong to objectives by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from polytask.errors import nearest


def by_name(
    setting: str, given: Mapping[str, float] | Sequence[float] | None, names: Sequence[str], default: float
) -> dict[str, float]:
    """A setting as {objective: value}.

    Args:
        setting: its name, for messages.
        given: {objective: value}, complete; or one value per objective in their order; or None.
        names: the objectives.
        default: every objective's value if `given` is None.

    Raises:
        ValueError: an unknown or a missing objective, or another number of values than of objectives.

    >>> by_name("preference", [0.3, 0.7], ["a", "b"], 0.5)
    {'a': 0.3, 'b': 0.7}
    """
    if given is None:
        return dict.fromkeys(names, default)
    if not isinstance(given, Mapping):
        if len(given) != len(names):
            listed = ", ".join(f"`{name}`" for name in names)
            raise ValueError(f"`{setting}` must hold one value per objective ({listed}), found {len(given)}")
        return dict(zip(names, map(float, given), strict=True))
    known(setting, given, names)
    for name in names:
        if name not in given:
            raise ValueError(f"`{setting}` must name every objective, found none for `{name}`")
    return {name: float(given[name]) for name in names}


def known(setting: str, given: Iterable[str], names: Iterable[str]) -> None:
    """Raises `ValueError` if `given` names an objective that is not in `names`."""
    every = list(names)
    for name in given:
        if name not in every:
            raise ValueError(f"`{setting}` names an unknown objective `{name}`: {nearest(name, every)}")


def in_range(
    setting: str,
    given: Mapping[str, float] | Sequence[float] | None,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Refuses values that are out of range.

    Raises:
        ValueError: a value is not finite or not from `low` to `high`.
        TypeError: there are no values, or one is not a number.
    """
    if given is not None and (isinstance(given, str) or not isinstance(given, Mapping | Sequence)):
        raise TypeError(f"`{setting}` must be {{objective: value}} or one value per objective, found {given!r}")
    items = given.items() if isinstance(given, Mapping) else enumerate(given or ())
    bounds = f" and at least {low:g}" * (low > -math.inf) + f" and at most {high:g}" * (high < math.inf)
    for key, value in items:
        number(setting, value, key)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"every value of `{setting}` must be finite{bounds}, found {value} for {_where(key)}")


def sums_to_one(setting: str, given: Mapping[str, float] | Sequence[float] | None) -> None:
    """Raises `ValueError` unless numbers that are given sum to 1, to 1e-4."""
    if given is not None:
        total = sum(given.values() if isinstance(given, Mapping) else given)
        if abs(total - 1) > 1e-4:
            raise ValueError(f"`{setting}` must sum to 1, found a sum of {total:g}")


def number(setting: str, value: Any, key: str | int | None = None) -> None:
    """Raises `TypeError` unless a setting, or its value for `key`, is a number."""
    try:
        math.isfinite(value)
    except TypeError:
        every, where = ("", "") if key is None else ("every value of ", f" for {_where(key)}")
        raise TypeError(f"{every}`{setting}` must be a number, found {value!r}{where}") from None


def _where(key: str | int) -> str:
    return f"`{key}`" if isinstance(key, str) else f"position {key}"


def plain(given: Any) -> Any:
    """A setting as what a checkpoint's fingerprint holds: a dictionary, a list, or as it is if None or a word."""
    if given is None or isinstance(given, str):
        return given
    return dict(given) if isinstance(given, Mapping) else list(given)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Host numbers on a device; on their way to a GPU from pinned memory, so that nobody waits."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type != "mps")


class Constants:
    """Fixed numbers by name as tensors, made once for each set of present objectives.

    A step then copies nothing from the host to the device.
    """

    def __init__(self, values: Mapping[str, float], default: float) -> None:
        self._values = dict(values)
        self._default = default
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, names: Sequence[str], like: Tensor) -> Tensor:
        """(K,) the numbers of `names`, of the type and on the device of `like`."""
        key = (*names, like.device, like.dtype)
        if key not in self._made:
            numbers = [self._values.get(name, self._default) for name in names]
            self._made[key] = to_device(torch.tensor(numbers, dtype=like.dtype), like.device)
        return self._made[key]


class FirstLook:
    """Refuses objectives whose first loss is negative.

    Only the first is looked at: a look waits for the device, and one per step would stall it.
    """

    def __init__(self, method: str, below: str) -> None:
        self._rule = f"{method} needs losses of at least {below}"
        self.seen: list[str] = []

    def __call__(self, names: Sequence[str], losses: Tensor) -> None:
        """Raises `ValueError` if a loss that is seen for the first time is negative."""
        for index, name in enumerate(names):
            if name not in self.seen:
                if losses[index] < 0:
                    raise ValueError(f"{self._rule}, found {losses[index].item():g} for `{name}`")
                self.seen.append(name)


class Learned:
    """Learned tensors by name, stepped by an Adam of their own.

    Each has its own moments and step count, so one that gets no gradient in a step, as its objective is
    absent, keeps all three. Where the tensors live follows the evidence, as `Module.to` cannot reach them.
    """

    def __init__(self, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self._lr = lr
        self._options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
        self._tensors: dict[str, Parameter] = {}
        self._optimizer: torch.optim.Adam | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def add(self, name: str, initial: Tensor) -> None:
        """A new tensor; one that is there already keeps its value."""
        if name in self._tensors:
            return
        self._tensors[name] = Parameter(initial.detach().clone())
        if self._optimizer is None:  # fused: a quarter of the default's time for a few small tensors
            self._optimizer = torch.optim.Adam([self._tensors[name]], fused=True, **self._options)
        else:
            self._optimizer.param_groups[0]["params"].append(self._tensors[name])

    def get(self, names: Iterable[str], device: torch.device) -> list[Tensor]:
        """The tensors, detached; they change when a step is made."""
        return [self._on(device, name).detach() for name in names]

    def stack(self, names: Iterable[str], device: torch.device) -> Tensor:
        """A stacked copy of the tensors."""
        return torch.stack(self.get(names, device))

    def put(self, names: Iterable[str], values: Iterable[Tensor]) -> None:
        """Overwrites values; moments stay."""
        for name, value in zip(names, values, strict=True):
            self._tensors[name].data.copy_(value)

    def step(self, names: Sequence[str], gradients: Iterable[Tensor]) -> None:
        """One step of the optimizer down these gradients; all other tensors rest."""
        if not self._lr or self._optimizer is None:
            return
        for name, gradient in zip(names, gradients, strict=True):
            self._tensors[name].grad = gradient
            if gradient.is_cuda:  # torch wants to be told; said always, it would warn outside of captures
                self._optimizer.param_groups[0]["capturable"] = torch.cuda.is_current_stream_capturing()
        self._optimizer.step()
        for name in names:
            self._tensors[name].grad = None

    def _on(self, device: torch.device, name: str) -> Parameter:
        tensor = self._tensors[name]
        if tensor.device != device:
            tensor.data = tensor.data.to(device)
            moments = self._moments(tensor)
            for key, value in moments.items():
                moments[key] = value.to(device)
        return tensor

    def _moments(self, tensor: Parameter) -> dict[str, Tensor]:
        return self._optimizer.state.get(tensor, {}) if self._optimizer is not None else {}

    def state(self) -> dict[str, Any]:
        """{name: its value, and its moments once it has stepped}, copied."""
        return {
            name: {"value": tensor.detach().clone()} | {k: v.clone() for k, v in self._moments(tensor).items()}
            for name, tensor in self._tensors.items()
        }

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes up what `state` gave.

        Raises:
            ValueError: tensors are there already, of other names than the saved ones.
        """
        same_objectives(state, self._tensors)
        self._tensors, self._optimizer = {}, None
        for name, saved in state.items():
            self.add(name, saved["value"])
            moments = {key: value.clone() for key, value in saved.items() if key != "value"}
            if moments and self._optimizer is not None:
                self._optimizer.state[self._tensors[name]] = moments


def some_objectives(saved: Iterable[str], found: Iterable[str]) -> None:
    """Raises `ValueError` if a state names an objective that is not among those found, where there are any."""
    some, every = sorted(saved), sorted(found)
    if every and not set(some) <= set(every):
        raise ValueError(f"a balancer's state must be of the same objectives, saved {some}, found {every}")


def same_objectives(saved: Iterable[str], found: Iterable[str]) -> None:
    """Raises `ValueError` unless a state is of the objectives found; where there are none yet, any will do."""
    one, other = sorted(saved), sorted(found)
    if other and one != other:
        raise ValueError(f"a balancer's state must be of the same objectives, saved {one}, found {other}")
