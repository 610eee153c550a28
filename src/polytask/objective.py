"""Objectives: anything that gives one scalar to be minimised beside the tasks' losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from polytask.batch import Batch
    from polytask.models.base import Model


@dataclass
class Context:
    """What an objective may look at.

    Attributes:
        model: the network being trained.
        batch: the examples of this step.
        features: the shared features, None for a model without a boundary.
        predictions: {task: raw outputs (B, C)} of the tasks present.
    """

    model: Model
    batch: Batch
    features: Any
    predictions: Mapping[str, Tensor]


class Objective(nn.Module, ABC):
    """A term of the training problem that is not a task's loss: a penalty, a distillation term.

    Balancers see it under its name exactly as they see a task. It takes part in an update only where it
    depends on a parameter that the update moves. Its own parameters, if any, are trained with the shared
    block.

    Args:
        name: unique among tasks and objectives.
        weight: fixed weight, above 0.
    """

    def __init__(self, name: str, weight: float = 1.0) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"an objective's `weight` must be above 0, found {weight} for `{name}`")
        self.name = name
        self.weight = weight

    @abstractmethod
    def forward(self, context: Context) -> Tensor:
        """One scalar."""
