"""What models check about their arguments, once and before anything is built."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from polytask.errors import whole


def check_module(name: str, value: object) -> None:
    """Raises `TypeError` unless the argument `name` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"`{name}` must be a module, found {shown(value)}")


def shown(value: object) -> str:
    """A wrong argument in a message: itself if it is short, else its type."""
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def modules_of(name: str, modules: Any) -> list[nn.Module]:
    """The modules of a list or an ``nn.Sequential`` of them, the argument `name`.

    Raises:
        TypeError: it is neither, or holds something else.
    """
    if isinstance(modules, (Sequence, nn.Sequential, nn.ModuleList)) and not isinstance(modules, str):
        kept = list(modules)
        if all(isinstance(module, nn.Module) for module in kept):
            return kept
    raise TypeError(f"`{name}` must hold lists of modules, found {shown(modules)}")


def check_mapping(name: str, entries: object, what: str = "tasks to modules") -> None:
    """Raises `TypeError` unless the argument `name` is a mapping from strings."""
    if not isinstance(entries, (Mapping, nn.ModuleDict)):
        raise TypeError(f"`{name}` must map {what}, found {shown(entries)}")
    for key in entries:
        if not isinstance(key, str):
            raise TypeError(f"`{name}` must map {what}, found {shown(key)} as a name")


def check_list(name: str, values: object, what: str) -> None:
    """Raises `TypeError` unless the argument `name` is a list or a tuple; `what` says of what."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"`{name}` must be a list of {what}, found {shown(values)}")


def check_texts(name: str, values: Any, what: str) -> None:
    """Raises `TypeError` unless the argument `name` is a list of texts; `what` says which."""
    check_list(name, values, what)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"`{name}` must be a list of {what}, found {shown(value)} in it")


def check_numbers(name: str, values: Any, minimum: int) -> None:
    """Raises unless the argument `name` is a list of whole numbers of at least `minimum`."""
    check_list(name, values, "whole numbers")
    for value in values:
        whole(name, value, minimum)


def check_heads(heads: Mapping[str, nn.Module]) -> None:
    """Raises unless `heads` is a non-empty mapping of modules."""
    check_mapping("heads", heads)
    if not heads:
        raise ValueError("`heads` must name a module for at least one task, found none")
    for task, head in heads.items():
        if not isinstance(head, nn.Module):
            raise TypeError(f"`heads` must map tasks to modules, found {type(head).__name__} for task `{task}`")
        if hasattr(nn.ModuleDict, task) or task == "training":
            raise ValueError(f"a head's name must not be an attribute of torch's ModuleDict, found `{task}`")


def check_same_tasks(name: str, modules: Mapping[str, object], heads: Mapping[str, object]) -> None:
    """Raises unless `modules`, the argument `name`, has an entry for each head and for nothing else."""
    check_mapping(name, modules)
    if set(modules) != set(heads):
        raise ValueError(
            f"every task must have a head and an entry in `{name}`, found {sorted(modules)} in `{name}` and heads for "
            f"{sorted(heads)}"
        )
    for task, module in modules.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"`{name}` must map tasks to modules, found {type(module).__name__} for task `{task}`")


def one_each(name: str, given: Any, heads: Mapping[str, object]) -> dict[str, nn.Module]:
    """{task: a module of its own}: the given ones, the argument `name`, or copies of the one that is given.

    Raises:
        ValueError: they are not for the same tasks as `heads`.
        TypeError: neither a module nor {task: module}.
    """
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleDict):
        given = {task: copy.deepcopy(given) for task in heads}
    modules = dict(given.items()) if isinstance(given, nn.ModuleDict) else given
    check_same_tasks(name, modules, heads)
    return {task: modules[task] for task in heads}


def check_apart(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raises if two of the modules, {what it is: module} of the argument `name`, have a parameter in common."""
    owners: dict[int, str] = {}
    for what, module in modules.items():
        for parameter in module.parameters():
            owner = owners.setdefault(id(parameter), what)
            if owner != what:
                raise ValueError(f"`{name}` must be modules of their own, found one parameter in {owner} and {what}")
