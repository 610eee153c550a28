"""Methods by name, and what a comparison of them always stands beside: single-task, the plain sum, fixed weights."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polytask.balancing.base import Balancer
from polytask.errors import nearest
from polytask.models.hard_sharing import HardSharing
from polytask.models.single_task import SingleTask
from polytask.schedules.base import Schedule
from polytask.studies import spec

SINGLE, JOINT = "single-task", "joint"
SAME_AS_SINGLE, SAME_AS_JOINT = ("singletask", "single"), ("joint",)
"""Names of the two, without case and punctuation."""

FEWEST_WEIGHTS = 5
_PACKAGES = {"aggregation": "polytask.balancing.aggregation", "scalarization": "polytask.balancing.scalarization"}
GROUPS = ("all", *_PACKAGES)
"""Words that stand for several balancers: all of them, or one kind."""
_THE_SUM = ("Linear", "Sum")
"""Balancers that are the plain sum unless told otherwise; it is in every comparison anyway."""


def plain(name: str) -> str:
    """A name without case and punctuation.

    >>> plain("Single-Task")
    'singletask'
    """
    return "".join(character for character in name.lower() if character.isalnum())


def read_methods(given: Any) -> dict[str, Any]:
    """The ``methods`` of a configuration as {name: what it changes}.

    Args:
        given: {name: what it changes}; or a list of names of balancers and schedules, of groups
            (`GROUPS`), and of one-key mappings {name: what it changes}; or one name. The change of a
            balancer or schedule may be its settings alone: ``{"CAGrad": {"c": 0.8}}``.

    Raises:
        ValueError: an unknown name, a name twice, no method, or a list item of another form.

    >>> read_methods(["MGDA", {"CAGrad": {"c": 0.8}}])["CAGrad"]
    {'trainer': {'balancer': {'class_path': 'CAGrad', 'init_args': {'c': 0.8}}}}
    """
    if isinstance(given, Mapping):
        return {str(name): change_of(str(name), change) for name, change in given.items()}
    return pick([given] if isinstance(given, str) else given, {})


def pick(items: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The methods that a list names, `own` ones first: {name: what it changes}.

    Raises:
        ValueError: as `read_methods`.
    """
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ValueError(f"`methods` must be a mapping or a list, found {items!r}")
    named: dict[str, Any] = {}
    grouped: dict[str, Any] = {}
    for name, change in (pair for item in items for pair in _pairs(item, own)):
        if name in GROUPS and name not in own:
            grouped |= {member: change_of(member, None) for member in _members(name)}
        elif name in named:
            raise ValueError(f"`methods` must be different, found `{name}` twice")
        else:
            named[name] = change
    return {name: named.get(name, change) for name, change in grouped.items()} | named


def change_of(name: str, change: Any) -> Any:
    """What a method lays over the base: for a balancer or schedule its class, with the settings in `change`."""
    slot = _slot(name)
    if slot is None or not (change is None or isinstance(change, Mapping)):
        return change
    named: spec.Config = {"trainer": {slot: {"class_path": name}}}
    if change and not any(key in spec.TRAIN_KEYS for key in change):
        named["trainer"][slot]["init_args"] = dict(change)
        return named
    return spec.merge(named, change or {})


def check_kept(name: str, resolved: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a setting for all methods took the place of what gives this one its name."""
    slot = _slot(name)
    found = resolved["trainer"].get(slot) if slot else None
    found = found["class_path"] if isinstance(found, Mapping) else found
    if slot and (not found or spec.find_class(found) is not spec.find_class(name)):
        raise ValueError(f"it must keep its own {slot}, found `trainer.{slot}` set to {found} for all methods")


def companions(base: Mapping[str, Any], methods: Mapping[str, Any]) -> dict[str, Any]:
    """Single-task and joint training of the same network, where `methods` has none of its own.

    Raises:
        ValueError: no single-task baseline can be made of the base's model.
    """
    names = {plain(name) for name in methods}
    beside: dict[str, Any] = {}
    if not names.intersection(SAME_AS_SINGLE):
        beside[SINGLE] = spec.merge(_weighted(None), {"model": _single_task(base.get("model"))})
    if not names.intersection(SAME_AS_JOINT):
        beside[JOINT] = _weighted(None)
    return beside


def sweep(tasks: Sequence[str], others: Sequence[str], count: int) -> dict[str, Any]:
    """Joint training with fixed task weights: {name: what it changes}.

    Args:
        tasks: whose weights are swept; see `weight_vectors`.
        others: further objectives; they keep the weight 1.
        count: vectors; the plain sum, if it is one of them, is left out, since it is a method already.

    >>> list(sweep(["left", "right"], [], 5))
    ['weights 0.333/1.667', 'weights 0.667/1.333', 'weights 1.333/0.667', 'weights 1.667/0.333']
    """
    found: dict[str, Any] = {}
    for number, vector in enumerate(weight_vectors(len(tasks), count)):
        if len(set(vector)) > 1:
            # long vectors make no names: their numbers do, which are the same whatever `count`
            name = "/".join(f"{weight:g}" for weight in vector) if len(tasks) < 4 else str(number + 1)
            weights = dict(zip(tasks, vector, strict=True)) | dict.fromkeys(others, 1.0)
            found[f"weights {name}"] = _weighted(weights)
    return found


def weight_vectors(tasks: int, count: int) -> list[tuple[float, ...]]:
    """Weights of `tasks` tasks, above 0, that sum to their number, `count` vectors of them.

    For two tasks evenly spaced: 2 i / (count + 1). For more, drawn uniformly from the simplex by a stream
    with a fixed seed, the same vectors first whatever `count`. Rounded to three decimals.

    >>> weight_vectors(2, 3)
    [(0.5, 1.5), (1.0, 1.0), (1.5, 0.5)]
    """
    if tasks == 2:
        shares = [(i / (count + 1), 1 - i / (count + 1)) for i in range(1, count + 1)]
    else:
        stream = random.Random(0)
        drawn = [[-math.log(1 - stream.random()) for _ in range(tasks)] for _ in range(count)]
        shares = [tuple(value / sum(row) for value in row) for row in drawn]
    return [_rounded(row) for row in shares]


def _rounded(shares: Sequence[float]) -> tuple[float, ...]:
    weights = [max(round(len(shares) * share, 3), 0.001) for share in shares]
    largest = weights.index(max(weights))
    weights[largest] = round(weights[largest] + len(shares) - sum(weights), 3)
    return tuple(weights)


def _weighted(weights: Mapping[str, float] | None) -> spec.Config:
    balancer = {"class_path": "Linear", "init_args": {"weights": None if weights is None else dict(weights)}}
    return {"trainer": {"schedule": {"class_path": "Joint"}, "balancer": balancer}}


def _single_task(model: Any) -> spec.Config:
    path = model.get("class_path") if isinstance(model, Mapping) else model
    if isinstance(path, str) and spec.find_class(path) in (HardSharing, SingleTask):
        return {"class_path": "SingleTask"}
    raise ValueError(
        f"`model` must be HardSharing for its single-task baseline to be made of it, found {path}: give a method "
        f"`{SINGLE}` of your own among `methods`"
    )


def _pairs(item: Any, own: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping) and len(item) == 1:
        for name, change in item.items():
            yield str(name), change_of(str(name), change)
    elif not isinstance(item, str):
        raise ValueError(f"an item of `methods` must be a name or {{name: what it changes}}, found {item!r}")
    elif item in own:
        yield item, own[item]
    elif item in GROUPS or _slot(item):
        yield item, change_of(item, None)
    elif item not in (SINGLE, JOINT):  # those two are there anyway
        known = [*own, *GROUPS, SINGLE, JOINT, *(name for name in spec.our_classes() if _slot(name))]
        raise ValueError(f"unknown method `{item}`: {nearest(item, known)}")


def _slot(name: str) -> str | None:
    """Which setting of the trainer a class of ours by that name goes into."""
    cls = spec.our_classes().get(name)
    if cls is None or inspect.isabstract(cls):
        return None
    return "balancer" if issubclass(cls, Balancer) else "schedule" if issubclass(cls, Schedule) else None


def _members(group: str) -> list[str]:
    """A group's balancers that need no settings."""
    packages = tuple(f"{package}." for word, package in _PACKAGES.items() if group in ("all", word))
    return [
        name
        for name, cls in sorted(spec.our_classes().items())
        if cls.__module__.startswith(packages) and name not in _THE_SUM and not inspect.isabstract(cls) and _bare(cls)
    ]


def _bare(cls: type) -> bool:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
