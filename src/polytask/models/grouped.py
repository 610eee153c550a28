"""Groups of tasks, a trunk for each: between one trunk for all and a tower for each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from polytask.errors import nearest
from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_apart, check_heads, check_list, modules_of


@final
class Grouped(Model):
    """Hard sharing within groups of tasks, and nothing shared between groups.

    It takes the arguments of `HardSharing` and the groups. With all tasks in one group it is `HardSharing`, with each
    task in a group of its own `SingleTask`, to the bit. Which tasks belong together is what `polytask.studies.group`
    finds out (Fifty et al., *Efficiently Identifying Task Groupings for Multi-Task Learning*, `arXiv:2109.04617
    <https://arxiv.org/abs/2109.04617>`_).

    One group's trunk is the shared block. Of several groups no parameter belongs to all tasks, so the shared block is
    empty, there is no boundary, and a group's trunk belongs to the blocks of all of its tasks: it moves whenever one of
    them does. Alternate schedules then refuse the model, and balancers that work on shared gradients leave the sum of
    the losses as it is, as with `SingleTask`.

    Args:
        trunk: inputs (B, ...) to features (B, F); copied once per group, so that all start alike. Or a list with one
            trunk per group.
        heads: {task: module from features (B, F) to outputs (B, C)}.
        groups: the names of each group's tasks; every task in exactly one.

    Raises:
        ValueError: there is no head, a task is in no group or in two, a group is empty or names an unknown task, or
            there are not as many trunks as groups, or two of them have a parameter in common.
        TypeError: a trunk or a head is not a module, or the groups are no list.

    >>> import torch
    >>> heads = {name: nn.Linear(8, 1) for name in ("circle", "rhombus", "star")}
    >>> model = Grouped(nn.Linear(2, 8), heads, groups=[["circle", "star"], ["rhombus"]])
    >>> len(model.trunks), {task: tuple(out.shape) for task, out in model(torch.zeros(5, 2)).items()}
    (2, {'circle': (5, 1), 'rhombus': (5, 1), 'star': (5, 1)})
    """

    def __init__(
        self, trunk: nn.Module | Sequence[nn.Module], heads: Mapping[str, nn.Module], groups: Sequence[Sequence[str]]
    ) -> None:
        super().__init__()
        check_heads(heads)
        check_groups(groups, list(heads))
        if isinstance(trunk, nn.Module) and not isinstance(trunk, nn.ModuleList):
            trunks = [copy.deepcopy(trunk) for _ in groups]
        else:
            trunks = modules_of("trunk", trunk)
        if len(trunks) != len(groups):
            raise ValueError(f"every group must have a trunk, found {len(trunks)} trunks for {len(groups)} groups")
        check_apart("trunk", {f"the trunk of group {index}": one for index, one in enumerate(trunks)})
        self.trunks = nn.ModuleList(trunks)
        self.heads = nn.ModuleDict(heads)
        self.groups = tuple(tuple(group) for group in groups)
        self.task_names = tuple(heads)
        self.boundary = len(trunks) == 1
        self._group_of = {task: index for index, group in enumerate(self.groups) for task in group}

    def features(self, inputs: Any, source: str = "") -> Any:
        return encode(self.trunks[0], inputs, source) if self.boundary else super().features(inputs, source)

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](features) if self.boundary else super().head(task, features, inputs)

    def forward(self, inputs: Any, tasks: Any = None, source: str = "") -> dict[str, Tensor]:
        if self.boundary:
            return super().forward(inputs, tasks, source)
        features: dict[int, Any] = {}
        outputs: dict[str, Tensor] = {}
        for task in tasks or self.task_names:
            group = self._group_of[task]
            if group not in features:
                features[group] = encode(self.trunks[group], inputs, source)
            outputs[task] = self.heads[task](features[group])
        return outputs

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        return features if self.boundary else encode(self.trunks[self._group_of[task]], inputs, source)

    def side_by_side(self) -> list[nn.Module]:
        return [*self.trunks]

    def blocks(self) -> Blocks:
        heads = {task: self.heads[task] for task in self.task_names}
        if self.boundary:
            return Blocks(Block.of(self.trunks[0]), {task: Block.of(head) for task, head in heads.items()})
        own = {task: Block.of(self.trunks[self._group_of[task]], head) for task, head in heads.items()}
        return Blocks(Block(), own)


def check_groups(groups: Sequence[Sequence[str]], tasks: Sequence[str]) -> None:
    """Raises `ValueError` unless every task is in exactly one group and no group is empty.

    Raises:
        TypeError: the groups are no list.
    """
    check_list("groups", groups, "groups")
    seen: set[str] = set()
    for group in groups:
        if not isinstance(group, (list, tuple)) or not group:
            raise ValueError(f"a group must be a list of at least one task, found {group!r}")
        for task in group:
            if task not in tasks:
                raise ValueError(f"`groups` must hold tasks, found `{task}`: {nearest(str(task), tasks)}")
            if task in seen:
                raise ValueError(f"every task must be in one group, found `{task}` twice")
            seen.add(task)
    for task in tasks:
        if task not in seen:
            raise ValueError(f"every task must be in one group, found `{task}` in none")
