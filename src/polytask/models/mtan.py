"""MTAN: attention of each task over the stages of a shared trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from polytask.models.base import Block, Blocks, Model
from polytask.models.checks import check_heads, check_mapping, check_same_tasks, modules_of


@final
class MTAN(Model):
    """Multi-task attention network: each task masks the shared stages' outputs with attention of its own.

    Paper: Liu, Johns and Davison, *End-to-End Multi-Task Learning with Attention*,
    `arXiv:1803.10704 <https://arxiv.org/abs/1803.10704>`_.

    With stages u_1 = s_1(x), u_i = s_i(u_{i-1}) and task k's attention modules a_{k,1} .. a_{k,n-1}:
    z_{k,1} = u_1, z_{k,i+1} = a_{k,i}(z_{k,i}) ⊙ u_{i+1}, and head k reads z_{k,n}. This is the form for small
    classifiers of Hotegni et al. 2024 (`arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_), whose code, by mistake,
    shares one attention between all tasks. The paper's own attention modules also read u_i itself.

    The features are all stages' outputs, a tuple; attention and head are the task's own parameters, so they train in
    the specific phases of alternate training, and cached features are those of every stage.

    Args:
        stages: two or more modules that make up the trunk, in order: a list, or an ``nn.Sequential`` of them such as
            ``LeNet(staged=True)``.
        attention: {task: one module for each stage but the first}; the i-th maps what stage i's output became to
            a mask of the shape of stage i + 1's output.
        heads: {task: module from the last stage's output to outputs (B, C)}.

    Raises:
        ValueError: fewer than two stages, no head, attention and heads not for the same tasks, a wrong number of
            attention modules, a parameter that two tasks' attention or a stage share, or (at the first call) a mask
            that does not fit its stage.
        TypeError: something is not a module.

    >>> import torch
    >>> stages = [nn.Linear(2, 8), nn.Linear(8, 4)]
    >>> masks = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())
    >>> model = MTAN(stages, attention={"circle": [masks]}, heads={"circle": nn.Linear(4, 1)})
    >>> model(torch.zeros(5, 2))["circle"].shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        stages: nn.Sequential | Sequence[nn.Module],
        attention: Mapping[str, nn.Sequential | Sequence[nn.Module]],
        heads: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        check_heads(heads)
        kept = modules_of("stages", stages)
        if len(kept) < 2:
            raise ValueError(f"`stages` must hold at least 2 modules, found {len(kept)}")
        check_mapping("attention", attention, "tasks to lists of modules")
        masks = {task: nn.ModuleList(modules_of("attention", modules)) for task, modules in attention.items()}
        check_same_tasks("attention", masks, heads)
        for task, modules in masks.items():
            if len(modules) != len(kept) - 1:
                raise ValueError(
                    f"`attention` must hold one module for each of the {len(kept) - 1} stages after the first, found "
                    f"{len(modules)} for task `{task}`"
                )
        self.stages = nn.ModuleList(kept)
        self.attention = nn.ModuleDict({task: masks[task] for task in heads})
        self.heads = nn.ModuleDict(heads)
        self.task_names = tuple(heads)
        self._check_own()

    def features(self, inputs: Any, source: str = "") -> tuple[Tensor, ...]:
        outputs = []
        for stage in self.stages:
            inputs = stage(inputs)
            outputs.append(inputs)
        return tuple(outputs)

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        attended = features[0]
        for number, (attend, shared) in enumerate(zip(self._attention(task), features[1:], strict=True), 1):
            mask = attend(attended)
            if mask.shape != shared.shape:
                raise ValueError(
                    f"a mask must have the shape of its stage's output, {tuple(shared.shape)}, found "
                    f"{tuple(mask.shape)} from attention {number} of task `{task}`"
                )
            attended = mask * shared
        return attended

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](self.representation(task, features, inputs))

    def blocks(self) -> Blocks:
        own = {task: Block.of(self.attention[task], self.heads[task]) for task in self.task_names}
        return Blocks(Block.of(self.stages), own)

    def _attention(self, task: str) -> nn.ModuleList:
        modules = self.attention[task]
        assert isinstance(modules, nn.ModuleList)
        return modules

    def _check_own(self) -> None:
        owners = {id(parameter): "the stages" for parameter in self.stages.parameters()}
        for task in self.task_names:
            for parameter in self.attention[task].parameters():
                owner = owners.setdefault(id(parameter), f"task `{task}`")
                if owner != f"task `{task}`":
                    raise ValueError(
                        f"every task must have attention of its own, found a parameter of {owner} in that of task "
                        f"`{task}`"
                    )
