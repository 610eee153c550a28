"""A shared decision layer: the heads' first opinions, read together and corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_heads, check_module, check_same_tasks


@final
class SharedDecision(Model):
    """Hard sharing with a layer after the heads that reads the opinions of all tasks and corrects each.

    With trunk t, heads h_k, o_k = h_k(t(x)), the decision layer d, and a readout r_k for each task, the outputs are
    y_k = o_k + r_k(d([o_1 .. o_K])). The readouts' last linear layers start from zero, so that the network starts as
    hard sharing, to the bit.

    That predictions of all tasks, put together, refine each is the idea of PAD-Net (Xu, Ouyang, Wang and Sebe,
    `arXiv:1805.04409 <https://arxiv.org/abs/1805.04409>`_) and of stacked targets in multi-target regression
    (Spyromitros-Xioufis, Tsoumakas, Groves and Vlahavas, `arXiv:1211.6581 <https://arxiv.org/abs/1211.6581>`_). Unlike
    both it has one loss per task, on the corrected outputs, and adds to an opinion instead of replacing it.

    Since every task reads every opinion, trunk, heads and decision layer are the shared block, and readout k is task
    k's own: the features are the opinions and the decision, a few numbers an example to cache. The head of a task that
    is absent from a step still moves as far as the others make use of its opinion.

    Args:
        trunk: inputs (B, ...) to features (B, F).
        heads: {task: module from features (B, F) to first opinions (B, C_k)}.
        decision: from all opinions (B, Σ C_k), in the order of `heads`, to (B, D).
        readouts: {task: module from (B, D) to corrections (B, C_k)}, ending in a linear layer, which is set to zero.

    Raises:
        ValueError: there is no head, readouts and heads are not for the same tasks, a readout without a linear layer,
            or (at the first call) a correction that has another shape than its opinion.
        TypeError: a part is not a module.

    >>> heads = {"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)}
    >>> decision = nn.Sequential(nn.Linear(2, 16), nn.ReLU())
    >>> readouts = {"circle": nn.Linear(16, 1), "rhombus": nn.Linear(16, 1)}
    >>> model = SharedDecision(nn.Linear(2, 8), heads, decision, readouts)
    >>> model(torch.zeros(5, 2))["circle"].shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        trunk: nn.Module,
        heads: Mapping[str, nn.Module],
        decision: nn.Module,
        readouts: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        check_module("trunk", trunk)
        check_module("decision", decision)
        check_heads(heads)
        check_same_tasks("readouts", readouts, heads)
        for task, readout in readouts.items():
            _start_from_zero(task, readout)
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)
        self.decision = decision
        self.readouts = nn.ModuleDict({task: readouts[task] for task in heads})
        self.task_names = tuple(heads)

    def features(self, inputs: Any, source: str = "") -> tuple[dict[str, Tensor], Tensor]:
        """The opinions, {task: (B, C_k)}, and the decision layer's output (B, D)."""
        shared = encode(self.trunk, inputs, source)
        opinions = {task: self.heads[task](shared) for task in self.task_names}
        return opinions, self.decision(torch.cat([_rows(opinion) for opinion in opinions.values()], 1))

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        opinions, decision = features
        correction = self.readouts[task](decision)
        if correction.shape != opinions[task].shape:
            raise ValueError(
                f"a correction must have the shape of its opinion, {tuple(opinions[task].shape)}, found "
                f"{tuple(correction.shape)} from the readout of task `{task}`"
            )
        return opinions[task] + correction

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        """The task's opinion and the decision, side by side (B, C_k + D)."""
        opinions, decision = features
        return torch.cat([_rows(opinions[task]), _rows(decision)], 1)

    def blocks(self) -> Blocks:
        own = {task: Block.of(self.readouts[task]) for task in self.task_names}
        return Blocks(Block.of(self.trunk, self.heads, self.decision), own)


def _rows(outputs: Tensor) -> Tensor:
    """(B, ...) as (B, C); a head of one output may leave C out."""
    return outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None]


@torch.no_grad()
def _start_from_zero(task: str, readout: nn.Module) -> None:
    linear = [module for module in readout.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"a readout must end in a linear layer, which starts from zero, found none for task `{task}`")
    linear[-1].weight.zero_()
    if linear[-1].bias is not None:
        linear[-1].bias.zero_()
