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
    GRAMIAN = enum.auto()
    JACOBIAN = enum.auto()
    LOSSES_AFTER = enum.auto()


@dataclass
class Evidence:
    """What is known about the objectives that are present in a step, all detached, in one order.

    Attributes:
        names: the objectives, K of them.
        values: K scalars: each objective's loss over the global batch, times its fixed weight. None where
            the balancer does not need them.
        jacobian: (K, P), the gradients of `values` with respect to the shared parameters; None where the
            balancer does not need gradients.
    """

    names: Sequence[str]
    values: Sequence[Tensor] | None = None
    jacobian: Tensor | None = None

    @cached_property
    def losses(self) -> Tensor:
        """(K,) losses."""
        assert self.values is not None, "the balancer's `needs` lacks LOSSES"
        return torch.stack([value.detach().float() for value in self.values])

    @cached_property
    def gramian(self) -> Tensor:
        """(K, K) inner products of the shared gradients, G = J Jᵀ."""
        assert self.jacobian is not None, "the balancer's `needs` lacks GRAMIAN and JACOBIAN"
        return self.jacobian @ self.jacobian.T


class Balancer(nn.Module, ABC):
    """Turns evidence about K objectives into K weights for their gradients on the shared block.

    Subclass `Scalarizer` or `Aggregator`. Learned weights and running averages are parameters or buffers,
    or go into `get_extra_state`; they travel with the checkpoint. Everything is keyed by objective name.
    """

    needs: Needs = Needs.LOSSES

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        """Told once, before training, of all objectives.

        Args:
            names: all objectives, in order.
            examples: how many training examples carry a target of each, where that is known.
        """

    @abstractmethod
    def combine(self, evidence: Evidence) -> Tensor | Sequence[float]:
        """K weights, in the order of `evidence.names`."""

    def after(self, losses: Mapping[str, Tensor]) -> None:
        """Sees the losses on the same batch after the step, if `needs` has LOSSES_AFTER."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records."""
        return {"balancer": type(self).__name__}


class Scalarizer(Balancer, ABC):
    """Losses to one scalar S: the weights are ∂S/∂L_k at the global losses, for every parameter."""


class Aggregator(Balancer, ABC):
    """Shared gradients to one: the weights are for the shared block only; in a step that does not move the
    shared block aggregators rest, and task-specific parameters always get their own loss's gradient."""

    needs = Needs.GRAMIAN
