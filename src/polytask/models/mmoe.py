"""MMoE: a gate of each task over experts that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from polytask.models.base import Block, Blocks, Model
from polytask.models.by_source import encode
from polytask.models.checks import check_heads
from polytask.models.experts import check_encoder, check_experts, gates_for, mixed, run_experts, stacked


@final
class MMoE(Model):
    """Multi-gate mixture of experts: what a task's head reads is its own average of shared experts.

    Paper: Ma, Zhao, Yi, Chen, Hong and Chi, *Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts*, KDD 2018, `doi:10.1145/3219819.3220007 <https://doi.org/10.1145/3219819.3220007>`_.

    With e = encoder(x), or x itself, experts f_1 .. f_n and task k's gate g_k, head k reads
    z_k = Σ_i softmax(g_k(e))_i · f_i(e). With one expert it is hard sharing; with gates that each choose one expert of
    their own it is single-task training.

    Encoder and experts are shared and their outputs are the features, so they are cached in the specific phases
    of alternate training; gate k and head k are task k's own parameters. Without an encoder the gates read the raw
    inputs. Experts start from different weights, or they stay equal: give modules made one by one, not copies.

    Args:
        experts: one or more modules from e to outputs (B, F), of one shape.
        gates: how many numbers of e a gate reads (e is flattened), for the paper's linear gates; or {task: module from
            e to logits (B, n)}.
        heads: {task: module from (B, F) to outputs (B, C)}.
        encoder: what experts and gates all read from; None for the raw inputs. Sources whose inputs differ in kind
            need one: `BySource`.

    Raises:
        ValueError: there is no head or no expert, experts or gates with a parameter in common, gates that are not the
            heads', a width below 1, or (at the first call) outputs of experts or logits of a gate that do not fit.
        TypeError: something is not a module.

    >>> import torch
    >>> experts = [nn.Linear(2, 8) for _ in range(3)]
    >>> model = MMoE(experts, gates=2, heads={"circle": nn.Linear(8, 1), "rhombus": nn.Linear(8, 1)})
    >>> model(torch.zeros(5, 2))["circle"].shape, model.features(torch.zeros(5, 2)).shape
    (torch.Size([5, 1]), torch.Size([5, 3, 8]))
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        gates: int | Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_heads(heads)
        check_experts("experts", {"": experts})
        if not experts:
            raise ValueError("`experts` must hold at least 1 module, found none")
        check_encoder(encoder)
        self.encoder = encoder
        self.experts = nn.ModuleList(experts)
        self.gates = gates_for(gates, dict.fromkeys(heads, len(experts)))
        self.heads = nn.ModuleDict(heads)
        self.heads_read_inputs = encoder is None
        self.task_names = tuple(heads)

    def features(self, inputs: Any, source: str = "") -> Tensor | tuple[Tensor, Tensor]:
        """The experts' outputs (B, n, F), after the encoder's where there is one."""
        if self.encoder is None:
            return stacked(run_experts(self.experts, inputs, source))
        encoded = encode(self.encoder, inputs, source)
        return encoded, stacked(run_experts(self.experts, encoded, source))

    def representation(self, task: str, features: Any, inputs: Any, source: str = "") -> Tensor:
        read, outputs = (inputs, features) if self.encoder is None else features
        return mixed(self.gates[task](read), outputs, f"the gate of task `{task}`")

    def head(self, task: str, features: Any, inputs: Any) -> Tensor:
        return self.heads[task](self.representation(task, features, inputs))

    def blocks(self) -> Blocks:
        shared = [self.experts] if self.encoder is None else [self.encoder, self.experts]
        own = {task: Block.of(self.gates[task], self.heads[task]) for task in self.task_names}
        return Blocks(Block.of(*shared), own)
