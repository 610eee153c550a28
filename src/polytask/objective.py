"""Objectives: anything that gives one scalar to be minimised beside the tasks' losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from polytask.errors import number

if TYPE_CHECKING:
    from polytask.batch import Batch
    from polytask.data.source import Source
    from polytask.models.base import Model
    from polytask.task import Task


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
    depends on a parameter that the update moves. Its own parameters and modules, if any, belong to one block:
    they move, and rest, with the shared block, or with a task's. A term that belongs to a task speaks for it: where
    it concerns examples of a step (`count`) the task's block moves as if they had labels, and a schedule that leaves
    the task out leaves the term out, too.

    Args:
        name: unique among tasks and objectives.
        weight: fixed weight, above 0.
        block: the task that it belongs to, whose block its own parameters join; None for the shared block.
    """

    def __init__(self, name: str, weight: float = 1.0, block: str | None = None) -> None:
        super().__init__()
        number("weight", weight)
        if not weight > 0:
            raise ValueError(f"an objective's `weight` must be above 0, found {weight} for `{name}`")
        self.name = name
        self.weight = weight
        self.block = block

    def bind(self, model: Model, tasks: Mapping[str, Task]) -> None:
        """Checks itself against the trainer's model and tasks, before anything is trained.

        Raises:
            ValueError: it does not fit them.
        """

    def serve(self, source: Source) -> Source:
        """What a fit is to train on in place of `source`, not bound yet: itself, or one that wraps it.

        For what a term wants to know of the examples before it meets them, see `polytask.data.Remembered`.
        """
        return source

    def count(self, batch: Batch) -> int:
        """How many of a batch's examples its value is a mean over; 0 if the batch does not concern it.

        A step of several batches, and of several processes, is worth the mean of the batches' values weighted so. It
        takes no part in a step none of whose examples concern it.
        """
        return batch.size

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's fingerprint records of it; plain values."""
        return {"weight": self.weight, "block": self.block}

    @abstractmethod
    def forward(self, context: Context) -> Tensor:
        """One scalar."""
