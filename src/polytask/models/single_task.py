"""Single-task learning: the baseline with nothing shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_heads, one_each


@final
class SingleTask(Model):
    """A tower of its own for each task, trained side by side: no parameter is shared.

    It takes the arguments of `HardSharing`, so that a comparison changes one word. Every tower starts from a
    copy of the same trunk. There is nothing shared, hence no boundary.

    Args:
        trunk: inputs (B, ...) to features (B, F); copied once per task. Or {task: trunk} to give each task
            its own.
        heads: {task: module from features (B, F) to outputs (B, C)}.

    Raises:
        ValueError: there is no head, or the trunks' tasks are not the heads'.
        TypeError: a trunk or a head is not a module.

    >>> import torch
    >>> model = SingleTask(nn.Linear(2, 8), heads={"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)})
    >>> len(model.blocks().shared.parameters), len(model.blocks().specific["circle"].parameters)
    (0, 4)
    """

    boundary = False

    def __init__(self, trunk: nn.Module | Mapping[str, nn.Module], heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_heads(heads)
        self.towers = nn.ModuleDict(one_each("trunk", trunk, heads))
        self.heads = nn.ModuleDict(heads)
        self.task_names = tuple(heads)

    def forward(self, inputs: Any, tasks: Any = None, source: str = "") -> dict[str, Tensor]:
        return {task: self.heads[task](encode(self.towers[task], inputs, source)) for task in tasks or self.task_names}

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        return encode(self.towers[task], inputs, source)

    def side_by_side(self) -> list[nn.Module]:
        return [*self.towers.values()]

    def blocks(self) -> Blocks:
        return Blocks(Block(), {task: Block.of(self.towers[task], self.heads[task]) for task in self.task_names})
