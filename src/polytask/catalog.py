"""What polytask offers: every method and data set, found in the packages that export them."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

from polytask.balancing.base import Balancer, Needs
from polytask.callback import Callback
from polytask.data.base import DataSet
from polytask.models.base import Model
from polytask.objective import Objective
from polytask.schedules.base import Schedule

KINDS: dict[str, tuple[tuple[str, ...], type]] = {
    "schedule": (("polytask.schedules",), Schedule),
    "balancer": (("polytask.balancing.scalarization", "polytask.balancing.aggregation"), Balancer),
    "model": (("polytask.models",), Model),
    "objective": (("polytask.distillation", "polytask.sparsity"), Objective),
    "callback": (("polytask.training.callbacks", "polytask.sparsity"), Callback),
    "data set": (("polytask.data",), DataSet),
}
"""Kind -> packages that export its members, and the contract they fulfil."""


@dataclass(frozen=True)
class Entry:
    """One thing polytask offers.

    Attributes:
        kind: ``schedule``, ``balancer``, ``model``, ``objective``, ``callback`` or ``data set``.
        name: the class's name, as configurations take it.
        path: its import path.
        summary: one line.
        needs: what it must be given that not every setting has, such as ``gradients`` or files; "" if nothing.
        paper: a link, or "".
        cls: the class.
    """

    kind: str
    name: str
    path: str
    summary: str
    needs: str
    paper: str
    cls: type


def catalog(kind: str | None = None) -> list[Entry]:
    """Every public method and data set, by kind and name.

    Args:
        kind: one of `KINDS`; all if None.

    >>> [entry.name for entry in catalog("schedule")]
    ['AlternateBatches', 'AlternateEpochs', 'Joint']
    """
    kinds = KINDS if kind is None else {kind: KINDS[kind]}
    return [entry for key, (packages, contract) in kinds.items() for entry in _entries(key, packages, contract)]


def _entries(kind: str, packages: tuple[str, ...], contract: type) -> list[Entry]:
    entries = []
    for package in packages:
        module = importlib.import_module(package)
        for name in module.__all__:
            member = getattr(module, name)
            usable = inspect.isclass(member) and issubclass(member, contract) and member is not contract
            if usable and not inspect.isabstract(member):
                entries.append(_entry(kind, package, member))
    return sorted(entries, key=lambda entry: entry.name)


def _entry(kind: str, package: str, cls: type) -> Entry:
    text = inspect.getdoc(cls) or ""
    return Entry(kind, cls.__name__, f"{package}.{cls.__name__}", _summary(text), _needs(cls), _paper(text), cls)


def _summary(text: str) -> str:
    """A docstring's first sentence or paragraph, whichever ends first, without markup."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.replace("``", "").replace("`", "")


def _paper(text: str) -> str:
    link = re.search(r"https?://(?:arxiv\.org|doi\.org)/[^\s>`)]+", text)
    return link[0].rstrip(".,;:") if link else ""


_EVIDENCE = {
    Needs.LOSSES: "losses",
    Needs.NORMS: "norms of task gradients",
    Needs.GRAMIAN: "task gradients",
    Needs.JACOBIAN: "task gradients",
    Needs.COTANGENTS: "gradients at the feature boundary",
    Needs.LOSSES_AFTER: "losses after the step",
}


def _needs(cls: Any) -> str:
    """In words, what the class says about itself: evidence or files."""
    if issubclass(cls, Balancer):
        return ", ".join(dict.fromkeys(_EVIDENCE[flag] for flag in cls.needs))
    if issubclass(cls, DataSet) and cls.files:
        return "files"
    return ""
