"""The Balancer contract: how several objectives move the shared block."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


class Needs(enum.Flag):
    """The evidence a balancer must be given."""

    NOTHING = 0
    LOSSES = enum.auto()
    NORMS = enum.auto()
    GRAMIAN = enum.auto()
    JACOBIAN = enum.auto()
    COTANGENTS = enum.auto()
    LOSSES_AFTER = enum.auto()


@dataclass
class Evidence:
    """What is known about the objectives that are present in a step, all detached, in one order.

    Attributes:
        names: the objectives, K of them.
        values: K scalars: each objective's loss over the global batch, times its fixed weight. None where
            the balancer does not need them.
        jacobian: (K, P), the gradients of `values` with respect to the shared parameters; None where the
            balancer does not need them or they are too large to keep.
        gram: (K, K), the Gramian where it was gathered without a Jacobian.
        cotangents: (K, Z), the gradients of `values` with respect to the shared features, flattened over
            examples and features; None where the balancer does not need them.
        examples: how many examples the features are of; the first dimension hidden in Z.

    Raises:
        ValueError: no objective; or, when it is asked for, what was not given.
    """

    names: Sequence[str]
    values: Sequence[Tensor] | None = None
    jacobian: Tensor | None = None
    gram: Tensor | None = None
    cotangents: Tensor | None = None
    examples: int = 0

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("there must be at least one objective, found none")

    @cached_property
    def losses(self) -> Tensor:
        """(K,) losses."""
        if self.values is None:
            raise ValueError("a method that needs losses must be given `values`, found none (see `Balancer.needs`)")
        return torch.stack([value.detach().float() for value in self.values])

    @cached_property
    def gramian(self) -> Tensor:
        """(K, K) inner products of the shared gradients, G = J Jᵀ."""
        if self.gram is not None:
            return self.gram
        return _products(self.rows)

    @cached_property
    def rows(self) -> Tensor:
        """(K, P) the Jacobian, for methods that cannot do without."""
        if self.jacobian is None:
            found = "`gram` alone" if self.gram is not None else "neither it nor `gram`"
            raise ValueError(f"a method that needs gradients must be given `jacobian`, found {found}")
        return self.jacobian

    @cached_property
    def norms(self) -> Tensor:
        """(K,) lengths of the shared gradients."""
        return self.gramian.diagonal().clamp(min=0).sqrt()


_STRIP = 12  # rows of a piece's product: fewer are slower, more leave more above the diagonal


def _products(jacobian: Tensor) -> Tensor:
    """J Jᵀ; on a CPU its lower half by pieces of a MiB, which stay in the cache: up to twice as fast for many rows."""
    size = len(jacobian)
    if jacobian.device.type != "cpu" or not 6 <= size <= 48 or jacobian.numel() < 2**18:
        return jacobian @ jacobian.T
    half = jacobian.new_zeros(size, size)
    strips = [(half[end - _STRIP : end, :end], end) for end in range(_STRIP, size + _STRIP, _STRIP)]
    width = 2**20 // (size * jacobian.element_size()) // 256 * 256  # rows that stay aligned
    for piece in jacobian.split(width, dim=1):
        for strip, end in strips:
            strip.addmm_(piece[end - _STRIP : end], piece[:end].T)
    return half.tril() + half.tril(-1).T


class Balancer(nn.Module, ABC):
    """Turns evidence about K objectives into what moves the shared block.

    Subclass one of `Scalarizer`, `Aggregator`, `JacobianAggregator`, `CotangentAggregator`. Learned weights
    and running averages are parameters or buffers, or go into `get_extra_state` (tensors, numbers, strings,
    lists and dictionaries only); they travel with the checkpoint. Everything is keyed by objective name. A
    balancer that learns steps its own weights in `combine` or `after`; the trainer's optimizer never sees
    them.
    """

    needs: Needs = Needs.LOSSES
    keeps: str = ""
    """What it learns or remembers from step to step, in words, for listings; all of it is in the checkpoint."""

    objectives: tuple[str, ...] = ()
    """All objectives that the balancer was told of."""

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        """Told once, before training, of all objectives, by the trainer or the owner of the loop.

        `polytask.balance` tells a balancer that nobody told of what it meets, and again when it meets more: call
        this yourself where the first step may lack an objective and settings or weights depend on all of them.
        A method that overrides this calls it when its settings are found to fit.

        Args:
            names: all objectives, in order.
            examples: how many training examples carry a target of each, where that is known.

        Raises:
            ValueError: the balancer's settings do not fit these objectives.
        """
        self.objectives = tuple(names)

    @abstractmethod
    def combine(self, evidence: Evidence) -> Tensor | Sequence[float]:
        """What the kind of balancer says, for the objectives in `evidence.names`."""

    def after(self, losses: Mapping[str, Tensor]) -> None:
        """Sees the losses on the same batch after the step, if `needs` has LOSSES_AFTER."""

    def observe(self, row: Mapping[str, Any]) -> None:
        """Sees each epoch's row of the history; for balancers that adapt by epochs."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records."""
        return {"balancer": type(self).__name__}


class Scalarizer(Balancer, ABC):
    """Losses to one scalar S.

    `combine` gives K weights ∂S/∂L_k at the global losses; they scale the gradients of every parameter,
    shared and task-specific. With NORMS in `needs` it is given `Evidence.gramian` too (of the shared
    gradients), at the cost of one backward pass through the trunk per objective.
    """


class Aggregator(Balancer, ABC):
    """Gramian of the shared gradients to K weights for their sum on the shared block.

    In a step that does not move the shared block aggregators rest, and task-specific parameters always get
    their own loss's gradient.
    """

    needs = Needs.GRAMIAN


class JacobianAggregator(Aggregator, ABC):
    """Jacobian to the shared block's gradient itself: `combine` gives (P,)."""

    needs = Needs.JACOBIAN


class CotangentAggregator(Aggregator, ABC):
    """Gradients at the feature boundary to one: `combine` gives (Z,), pulled back through the trunk once.

    Needs a model with a boundary whose features are of one example per row.
    """

    needs = Needs.COTANGENTS
