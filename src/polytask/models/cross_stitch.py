"""Cross-stitch networks: towers that exchange what they have computed, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from polytask.errors import number
from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_apart, check_heads, check_list, check_numbers, check_same_tasks, modules_of

Stages = nn.Sequential | Sequence[nn.Module]


@final
class CrossStitch(Model):
    """A tower of stages for each task, and units that mix the towers' outputs after chosen stages.

    Paper: Misra, Shrivastava, Gupta and Hebert, *Cross-stitch Networks for Multi-task Learning*,
    `arXiv:1604.03539 <https://arxiv.org/abs/1604.03539>`_.

    After a stage with outputs u_1 .. u_K, tower k goes on with Σ_j α_kj u_j. The matrix α, learned, starts with
    1 - β on its diagonal and β / (K - 1) elsewhere. β = 0 is the identity, K single-task networks; β = (K - 1) / K
    makes all entries equal, so that towers that are equal act as one trunk.

    Every task's loss reaches all towers and units, so they are the shared block, their last outputs, {task: tensor},
    the features, and each head the task's own block. The paper learns the units 100 to 1000 times as fast as the rest:
    the trainer's ``groups={"units": {"lr": ...}}``.

    Args:
        stages: {task: the stages of its tower, a list of modules or an ``nn.Sequential`` of them such as
            ``LeNet(staged=True)``}, as many for each task and with outputs of one shape; or one such list, copied once
            per task.
        heads: {task: module from the last stage's output to outputs (B, C)}.
        after: the stages that are followed by a unit, counted from 0; all of them if None.
        channels: for units with a matrix per channel, how many channels (the outputs' second dimension) the stages in
            `after` have, in order; one matrix per unit if empty.
        beta: β, from 0 to 1.
        learn: False to keep the units as they start.

    Raises:
        ValueError: there is no head, no stage, or towers and heads are not for the same tasks; towers of different
            lengths or with a parameter in common; `after`, `channels` or `beta` out of range; or (at the first call)
            outputs that do not fit together or to `channels`.
        TypeError: something is not a module, or not a number.

    >>> tower = [nn.Linear(2, 8), nn.Linear(8, 4)]
    >>> model = CrossStitch(tower, heads={"circle": nn.Linear(4, 1), "rhombus": nn.Linear(4, 1)}, beta=0.25)
    >>> model.units["0"].weights.tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    >>> model(torch.zeros(5, 2))["circle"].shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        stages: Stages | Mapping[str, Stages],
        heads: Mapping[str, nn.Module],
        after: Sequence[int] | None = None,
        channels: Sequence[int] = (),
        beta: float = 0.1,
        learn: bool = True,
    ) -> None:
        super().__init__()
        check_heads(heads)
        towers = _towers(stages, heads)
        depth = len(next(iter(towers.values())))
        places = _places(after, depth)
        check_numbers("channels", channels, 1)
        if channels and len(channels) != len(places):
            raise ValueError(f"`channels` must hold a number for each of {len(places)} units, found {len(channels)}")
        number("beta", beta)
        if not 0 <= beta <= 1:
            raise ValueError(f"`beta` must be from 0 to 1, found {beta}")
        counts = channels or [None] * len(places)
        start = _start(len(heads), beta)
        self.towers = nn.ModuleDict({task: towers[task] for task in heads})
        self.units = nn.ModuleDict(
            {str(place): _Unit(start, count, learn) for place, count in zip(places, counts, strict=True)}
        )
        self.heads = nn.ModuleDict(heads)
        self.task_names = tuple(heads)
        self._depth = depth

    def features(self, inputs: Any, source: str = "") -> dict[str, Tensor]:
        outputs: dict[str, Any] = dict.fromkeys(self.task_names, inputs)
        for place in range(self._depth):
            outputs = {task: encode(self._tower(task)[place], value, source) for task, value in outputs.items()}
            if str(place) in self.units:
                outputs = self._cross(place, outputs)
        return outputs

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](features[task])

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        return features[task]

    def side_by_side(self) -> list[nn.Module]:
        return [*self.towers.values()]

    def blocks(self) -> Blocks:
        own = {task: Block.of(self.heads[task]) for task in self.task_names}
        return Blocks(Block.of(self.towers, self.units), own)

    def _cross(self, place: int, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = next(iter(outputs.values()))
        if any(output.shape != first.shape for output in outputs.values()):
            shapes = {task: tuple(output.shape) for task, output in outputs.items()}
            raise ValueError(f"outputs that are crossed must have one shape, found {shapes} after stage {place}")
        crossed = self.units[str(place)](torch.stack(list(outputs.values())))
        return dict(zip(outputs, crossed.unbind(), strict=True))

    def _tower(self, task: str) -> nn.ModuleList:
        tower = self.towers[task]
        assert isinstance(tower, nn.ModuleList)
        return tower


class _Unit(nn.Module):
    """Σ_j α_kj u_j for all k: (K, B, C, ...) to the same shape; α is (K, K), or (K, K, C) with one matrix a channel."""

    weights: Tensor

    def __init__(self, start: Tensor, channels: int | None, learn: bool) -> None:
        super().__init__()
        weights = start.clone() if channels is None else start[:, :, None].repeat(1, 1, channels)
        if learn:
            self.weights = nn.Parameter(weights)
        else:
            self.register_buffer("weights", weights)

    def forward(self, outputs: Tensor) -> Tensor:
        if self.weights.dim() == 2:
            return torch.einsum("kj,j...->k...", self.weights, outputs)
        if outputs.dim() < 3 or outputs.shape[2] != self.weights.shape[2]:
            raise ValueError(
                f"`channels` must be those of the stages, found {self.weights.shape[2]} for outputs of shape "
                f"{tuple(outputs.shape[1:])}"
            )
        return torch.einsum("kjc,jbc...->kbc...", self.weights, outputs)


def _start(tasks: int, beta: float) -> Tensor:
    if tasks == 1:
        return torch.ones(1, 1)
    return torch.full((tasks, tasks), beta / (tasks - 1)).fill_diagonal_(1 - beta)


def _towers(stages: Any, heads: Mapping[str, nn.Module]) -> dict[str, nn.ModuleList]:
    if not isinstance(stages, Mapping):
        one = modules_of("stages", stages)
        towers = {task: nn.ModuleList(copy.deepcopy(one)) for task in heads}
    else:
        towers = {task: nn.ModuleList(modules_of("stages", modules)) for task, modules in stages.items()}
    check_same_tasks("stages", towers, heads)
    lengths = {task: len(tower) for task, tower in towers.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ValueError(f"`stages` must hold as many modules for each task, at least 1, found {lengths}")
    check_apart("stages", {f"the tower of task `{task}`": tower for task, tower in towers.items()})
    return towers


def _places(after: Sequence[int] | None, depth: int) -> list[int]:
    if after is None:
        return list(range(depth))
    check_list("after", after, "numbers of stages")
    for place in after:
        if not isinstance(place, int) or not 0 <= place < depth:
            raise ValueError(f"`after` must hold numbers of stages from 0 to {depth - 1}, found {place}")
    if len(set(after)) < len(after):
        raise ValueError(f"`after` must name each stage once, found {list(after)}")
    return sorted(after)
