"""Hard parameter sharing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_heads, check_module


@final
class HardSharing(Model):
    """One trunk for all tasks and one head for each (Caruana, 1993).

    Paper: *Multitask Learning*, `Machine Learning 28 (1997) <https://doi.org/10.1023/A:1007379606734>`_.

    Args:
        trunk: inputs (B, ...) to features (B, F). For a tuple or dictionary of inputs it gets that object.
        heads: {task: module from features (B, F) to outputs (B, C)}.

    Raises:
        ValueError: there is no head.
        TypeError: the trunk or a head is not a module.

    >>> import torch
    >>> model = HardSharing(nn.Linear(2, 8), heads={"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)})
    >>> {task: tuple(out.shape) for task, out in model(torch.zeros(5, 2)).items()}
    {'circle': (5, 1), 'rhombus': (5, 1)}
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_module("trunk", trunk)
        check_heads(heads)
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)
        self.task_names = tuple(heads)

    def features(self, inputs: Any, source: str = "") -> Any:
        return encode(self.trunk, inputs, source)

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](features)

    def blocks(self) -> Blocks:
        return Blocks(Block.of(self.trunk), {task: Block.of(self.heads[task]) for task in self.task_names})
