"""Soft parameter sharing: a tower for each task, and penalties that draw the towers together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from polytask.errors import at_least, nearest
from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_apart, check_heads, check_texts, one_each
from polytask.objective import Context, Objective

if TYPE_CHECKING:
    from polytask.task import Task


@final
class SoftSharing(Model):
    """A tower of its own for each task; a penalty, `TowerDistance` or `TowerTraceNorm`, ties their parameters.

    Papers: Duong, Cohn, Bird and Cook 2015, `doi:10.3115/v1/P15-2139 <https://doi.org/10.3115/v1/P15-2139>`_; Yang and
    Hospedales, `arXiv:1606.04038 <https://arxiv.org/abs/1606.04038>`_.

    It is trained with one of the penalties among the trainer's ``objectives``. Without one, or with one of weight
    0, it is single-task training side by side, to the bit under a plain sum of losses; the heavier the penalty, the
    nearer to hard sharing.

    The towers are the shared block: each may be moved by the penalty, through what the other tasks learn, and under
    alternate training they move in the shared phases, heads in the specific ones. So balancers weigh tasks and penalty
    against each other on the towers. (A balancer that looks at gradients also sees that towers without a penalty do not
    conflict; whether it then leaves the tasks alone is its own affair.) A task that is absent from a step moves no
    tower but through the penalty, and its tower is not run. There is no feature boundary: a step runs only the
    towers of the tasks that are present, which may read different kinds of inputs.

    Args:
        trunk: inputs (B, ...) to features (B, F), copied once per task, so that all towers start equal; or {task:
            tower} to give each task its own. Under a balancer that makes no objective worse, such as `MGDA`, towers
            must start apart: equal ones are the penalty's minimum, which it would not leave.
        heads: {task: module from features (B, F) to outputs (B, C)}.

    Raises:
        ValueError: there is no head, the towers' tasks are not the heads', or two towers have a parameter in common.
        TypeError: a tower or a head is not a module.

    >>> import polytask as pt
    >>> model = SoftSharing(nn.Linear(2, 8), heads={"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)})
    >>> tasks = [pt.binary("circle"), pt.binary("rhombus")]
    >>> trainer = pt.Trainer(model, tasks, objectives=[TowerDistance(weight=0.1)])
    >>> list(trainer.objectives)
    ['soft-sharing']
    """

    boundary = False

    def __init__(self, trunk: nn.Module | Mapping[str, nn.Module], heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_heads(heads)
        towers = one_each("trunk", trunk, heads)
        check_apart("trunk", {f"the tower of task `{task}`": tower for task, tower in towers.items()})
        self.towers = nn.ModuleDict(towers)
        self.heads = nn.ModuleDict(heads)
        self.task_names = tuple(heads)

    def forward(self, inputs: Any, tasks: Iterable[str] | None = None, source: str = "") -> dict[str, Tensor]:
        return {task: self.heads[task](encode(self.towers[task], inputs, source)) for task in tasks or self.task_names}

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        return encode(self.towers[task], inputs, source)

    def side_by_side(self) -> list[nn.Module]:
        return [*self.towers.values()]

    def blocks(self) -> Blocks:
        return Blocks(Block.of(self.towers), {task: Block.of(self.heads[task]) for task in self.task_names})

    def corresponding(self, parameters: Sequence[str] = ()) -> dict[str, list[Tensor]]:
        """The towers' parameters that correspond: {name within a tower: those of two or more towers}.

        Args:
            parameters: their names, or prefixes of them such as ``encoder``; all if empty.

        Raises:
            ValueError: none correspond, a prefix fits none, or those that do have different shapes.
        """
        found: dict[str, list[Tensor]] = {}
        for tower in self.towers.values():
            for name, parameter in tower.named_parameters():
                found.setdefault(name, []).append(parameter)
        common = {name: values for name, values in found.items() if len(values) > 1}
        _check_prefixes(parameters, common)
        chosen = {name: values for name, values in common.items() if not parameters or _fits(name, parameters)}
        if not chosen:
            raise ValueError(f"towers must have parameters of the same name, found none among {sorted(found)}")
        for name, values in chosen.items():
            shapes = sorted({tuple(value.shape) for value in values})
            if len(shapes) > 1:
                raise ValueError(
                    f"parameters that correspond must have one shape, found {shapes} for `{name}`: name those to tie "
                    "in `parameters`"
                )
        return chosen


class _Tie(Objective):
    """A penalty on the corresponding parameters of the towers of `SoftSharing`.

    At weight 0 its value is a constant, so that it takes part in no update.
    """

    def __init__(self, weight: float, parameters: Sequence[str], name: str) -> None:
        at_least("weight", weight, 0)
        super().__init__(name, weight or 1.0)
        check_texts("parameters", parameters, "names or prefixes")
        self.parameters_tied = tuple(parameters)
        self.acts = weight > 0

    def bind(self, model: Model, tasks: Mapping[str, Task]) -> None:
        _towers_of(self, model).corresponding(self.parameters_tied)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"acts": self.acts, "parameters": list(self.parameters_tied)}

    def forward(self, context: Context) -> Tensor:
        tied = _towers_of(self, context.model).corresponding(self.parameters_tied)
        if not self.acts:
            return next(iter(tied.values()))[0].new_zeros(())
        return torch.stack([self.tie(torch.stack(values)) for values in tied.values()]).sum()

    @abstractmethod
    def tie(self, values: Tensor) -> Tensor:
        """The term, a scalar, of one parameter of K towers, (K, ...)."""


@final
class TowerDistance(_Tie):
    """Σ over pairs of towers of the squared distance between corresponding parameters.

    Paper: Duong, Cohn, Bird and Cook, *Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural
    Network Parser*, ACL 2015, `doi:10.3115/v1/P15-2139 <https://doi.org/10.3115/v1/P15-2139>`_.

    With θ_k the tied parameters of tower k of K, Σ_{j<k} ‖θ_j - θ_k‖² = K Σ_k ‖θ_k - mean of θ‖². Its curvature is 2K
    times its weight, which bounds a stable learning rate of SGD.

    Args:
        weight: fixed weight, at least 0. At 0 it takes part in nothing: independent training.
        parameters: names within a tower, or prefixes of them, of the parameters to tie; all that have the same name in
            two towers or more if empty.
        name: unique among tasks and objectives.

    Raises:
        ValueError: a weight below 0; when the trainer is made: a model that is not `SoftSharing`, nothing
            corresponds, or what does has different shapes.

    >>> model = SoftSharing({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)},
    ...                     {"a": nn.Identity(), "b": nn.Identity()})
    >>> for tower, value in zip(model.towers.values(), (1.0, 4.0)):
    ...     _ = nn.init.constant_(tower.weight, value)
    >>> TowerDistance().tie(torch.stack(model.corresponding()["weight"])).item()
    9.0
    """

    def __init__(self, weight: float = 1.0, parameters: Sequence[str] = (), name: str = "soft-sharing") -> None:
        super().__init__(weight, parameters, name)

    def tie(self, values: Tensor) -> Tensor:
        return len(values) * (values - values.mean(0)).square().sum()


@final
class TowerTraceNorm(_Tie):
    """Σ over parameters of the trace norm of the matrix whose K columns are the towers' flattened parameters.

    Paper: Yang and Hospedales, *Trace Norm Regularised Deep Multi-Task Learning*,
    `arXiv:1606.04038 <https://arxiv.org/abs/1606.04038>`_.

    The trace norm, the sum of the singular values, draws the matrix to low rank: towers become combinations of fewer
    ones, whereas `TowerDistance` makes them equal. Of the paper's three ways to make a matrix of stacked tensors, this
    is last axis flattening. It shrinks the towers, too. At singular values of 0 its gradient is one of the
    subgradients.

    Args:
        weight: fixed weight, at least 0. At 0 it takes part in nothing: independent training.
        parameters: names within a tower, or prefixes of them, of the parameters to tie; all that have the same name in
            two towers or more if empty.
        name: unique among tasks and objectives.

    Raises:
        ValueError: as for `TowerDistance`.

    >>> TowerTraceNorm().tie(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).item()
    7.0
    """

    def __init__(self, weight: float = 1.0, parameters: Sequence[str] = (), name: str = "soft-sharing") -> None:
        super().__init__(weight, parameters, name)

    def tie(self, values: Tensor) -> Tensor:
        return torch.linalg.svdvals(values.flatten(1)).sum()


def _towers_of(penalty: Objective, model: Model) -> SoftSharing:
    if not isinstance(model, SoftSharing):
        raise ValueError(f"{type(penalty).__name__} needs the model SoftSharing, found {type(model).__name__}")
    return model


def _fits(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix.rstrip(".") + ".") for prefix in prefixes)


def _check_prefixes(prefixes: Sequence[str], names: Iterable[str]) -> None:
    known = list(names)
    for prefix in prefixes:
        if not any(_fits(name, (prefix,)) for name in known):
            raise ValueError(
                f"`parameters` must name what two towers have, found no such `{prefix}`: {nearest(prefix, known)}"
            )
