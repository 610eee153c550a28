"""What polytask offers: every method and data set, found in the packages that export them."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass, replace
from typing import Any

from polytask.balancing.base import Aggregator, Balancer, CotangentAggregator, JacobianAggregator, Needs
from polytask.callback import Callback
from polytask.data.base import DataSet
from polytask.data.mixing import Mixture
from polytask.models.base import Model
from polytask.objective import Objective
from polytask.schedules.base import Schedule

KINDS: dict[str, tuple[tuple[str, ...], type]] = {
    "schedule": (("polytask.schedules",), Schedule),
    "balancer": (("polytask.balancing.scalarization", "polytask.balancing.aggregation"), Balancer),
    "model": (("polytask.models",), Model),
    "objective": (("polytask.distillation", "polytask.models", "polytask.sparsity"), Objective),
    "callback": (("polytask.training.callbacks", "polytask.sparsity", "polytask.distillation"), Callback),
    "mixture": (("polytask.data",), Mixture),
    "data set": (("polytask.data",), DataSet),
}
"""Kind -> packages that export its members, and the contract they fulfil."""


@dataclass(frozen=True)
class Cost:
    """What one training step costs with a balancer, for K tasks; "K" where it grows with them.

    Attributes:
        forward: forward passes, the second one without gradients.
        trunk: backward passes through the shared block.
        heads: backward passes through each task's own block.
        gradients: gradients of the shared block that are kept at once.
        modes: the trainer's ``gradients=`` that make it cheaper: ``features``, 1 pass through the trunk;
            ``low_memory``, about 1 shared gradient, for more passes.
    """

    forward: int
    trunk: str
    heads: int
    gradients: str
    modes: tuple[str, ...] = ()

    @classmethod
    def of(cls, balancer: type[Balancer]) -> Cost:
        """The cost that a balancer's kind and needs entail; see `polytask.balancing.gradients.Backward`."""
        forward = 2 if Needs.LOSSES_AFTER in balancer.needs else 1
        if issubclass(balancer, CotangentAggregator):
            return cls(forward, "1", 1, "1")
        if issubclass(balancer, Aggregator) and not balancer.needs & _OF_GRADIENTS:
            return cls(forward, "1", 2, "1")  # shared and specific gradients are taken apart
        if issubclass(balancer, Aggregator):
            cheaper = ("features",) if issubclass(balancer, JacobianAggregator) else ("features", "low_memory")
            return cls(forward, "K", 1, "K", cheaper)
        if Needs.NORMS in balancer.needs:
            return cls(forward, "K", 1, "K")
        return cls(forward, "1", 1, "1")

    def __str__(self) -> str:
        passes = f"{self.forward} forward; backward: trunk {self.trunk}, each head {self.heads}"
        kept = f"{self.gradients} shared gradient{'' if self.gradients == '1' else 's'} kept"
        return f"{passes}; {kept}"


_OF_GRADIENTS = Needs.NORMS | Needs.GRAMIAN | Needs.JACOBIAN | Needs.COTANGENTS


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
        cost: what a step costs with a balancer; None for other kinds.
        keeps: what a balancer learns or remembers, and the checkpoint holds; "" if nothing.
    """

    kind: str
    name: str
    path: str
    summary: str
    needs: str
    paper: str
    cls: type
    cost: Cost | None = None
    keeps: str = ""


def catalog(kind: str | None = None) -> list[Entry]:
    """Every public method and data set, by kind and name.

    Args:
        kind: one of `KINDS`; all if None.

    >>> [entry.name for entry in catalog("schedule")]
    ['AlternateBatches', 'AlternateEpochs', 'BySimilarity', 'BySize', 'Curriculum', 'Joint', 'SingleTaskEpochs']
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
    entry = Entry(kind, cls.__name__, f"{package}.{cls.__name__}", _summary(text), _needs(cls), _paper(text), cls)
    return replace(entry, cost=Cost.of(cls), keeps=cls.keeps) if issubclass(cls, Balancer) else entry


def _summary(text: str) -> str:
    """A docstring's first sentence or paragraph, whichever ends first, without markup."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.replace("``", "").replace("`", "")


def _paper(text: str) -> str:
    link = re.search(r"https?://(?:arxiv\.org|doi\.org|openreview\.net)/[^\s>`)]+", text)
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
