"""The Model contract: a feature boundary, heads, and blocks that say which parameters are whose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from polytask.errors import nearest


@dataclass(frozen=True)
class Block:
    """A part of a network that is trained or frozen as one.

    Attributes:
        parameters: each once, in the order of the module tree.
        modules: the modules that own them, and the parameterless ones between (dropout, activations): a
            frozen block's modules are in eval mode and their buffers do not move.
    """

    parameters: tuple[Parameter, ...] = ()
    modules: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, *modules: nn.Module) -> Block:
        """The block made of whole modules."""
        submodules = _unique(sub for module in modules for sub in module.modules())
        return cls(tuple(_unique(p for m in modules for p in m.parameters())), tuple(submodules))


@dataclass(frozen=True)
class Blocks:
    """All parameters of a model, each in at least one block.

    Attributes:
        shared: what every task goes through, or more than one does; may be empty.
        specific: {task: what only this task (or a group of tasks that all list it) goes through}.
    """

    shared: Block
    specific: Mapping[str, Block]

    def specific_parameters(self, tasks: Iterable[str] | None = None) -> list[Parameter]:
        """Parameters of the given tasks' blocks (all by default), each once."""
        names = self.specific if tasks is None else tasks
        return _unique(p for name in names for p in self.specific[name].parameters)


def _unique(items: Iterable[Any]) -> list[Any]:
    return list({id(item): item for item in items}.values())


class Model(nn.Module, ABC):
    """A network for several tasks.

    The trainer runs `features` once and `head` once per task of a batch, so that either side of the
    boundary can be frozen, cached or differentiated by itself.

    A model with a boundary implements `features`, through which only shared parameters act, and `head`;
    one without sets `boundary = False` and overrides `forward`.

    Attributes:
        boundary: whether there is a point at which shared features end and heads begin; without one only
            `forward` is called.
        heads_read_inputs: True if `head` looks at the raw inputs as well as at the features.
        task_names: the tasks it answers, in order.
    """

    boundary: bool = True
    heads_read_inputs: bool = False
    task_names: tuple[str, ...]

    def features(self, inputs: Any, source: str = "") -> Any:
        """Inputs to shared features: a tensor, a tuple of them, or {task: tensor}.

        Args:
            inputs: what a batch holds, B examples.
            source: the batch's source, for models with an encoder per source.
        """
        raise TypeError(f"{type(self).__name__} has no feature boundary: call the model itself")

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        """Features to the raw outputs (B, C) of one task; `inputs` is None unless `heads_read_inputs`."""
        raise TypeError(f"{type(self).__name__} has no feature boundary: call the model itself")

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        """What the task's head predicts from, (B, F): the features themselves unless the task adds something.

        Args:
            task: one of `task_names`.
            features: what `features` returned.
            inputs: the raw inputs; None unless `heads_read_inputs` or without a boundary.
            source: the batch's source, for models with an encoder per source.

        Raises:
            TypeError: the model has no feature boundary and does not say.
        """
        if not self.boundary:
            raise TypeError(f"{type(self).__name__} must have a feature boundary to tell features, found none")
        return features

    def side_by_side(self) -> Sequence[nn.Module]:
        """Modules that run beside one another, such as the towers of tasks; none unless the model has some.

        Those of their layers that start equal are to start equal whatever draws them anew (`polytask.models.lsuv`).
        """
        return ()

    @abstractmethod
    def blocks(self) -> Blocks:
        """Which parameters and modules are whose. Recomputed at each call: parameters may be replaced."""

    def bind(self, tasks: Sequence[str]) -> None:
        """Checks the trainer's tasks against the heads.

        Raises:
            ValueError: a task without a head, or a head without a task.
        """
        for task in tasks:
            if task not in self.task_names:
                raise ValueError(
                    f"every task must have a head, found none for task `{task}`: {nearest(task, self.task_names)}"
                )
        for name in self.task_names:
            if name not in tasks:
                raise ValueError(f"every head must have a task, found a head `{name}`: {nearest(name, tasks)}")

    def forward(self, inputs: Any, tasks: Iterable[str] | None = None, source: str = "") -> dict[str, Tensor]:
        """Raw outputs of the given tasks (all by default): {task: (B, C)}."""
        features = self.features(inputs, source)
        read = inputs if self.heads_read_inputs else None
        return {task: self.head(task, features, read) for task in tasks or self.task_names}
