"""FAMO: fast adaptive multitask optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, Needs, Scalarizer
from polytask.balancing.keyed import Constants, FirstLook, Learned, by_name, in_range
from polytask.errors import at_least


@final
class FAMO(Scalarizer):
    """Lowers all losses at about one relative rate, from the losses alone: S = c Σ_k z_k log(L_k − b_k).

    z = softmax(ξ) with learned logits ξ, and c = (Σ_k z_k / (L_k − b_k))⁻¹ is held constant, so that the
    weights ∂S/∂L_k = c z_k / (L_k − b_k) sum to 1. After the step the same batch is looked at again, and an
    objective whose logarithm fell more than others' loses weight: with δ_k = log(L_k − b_k) before minus after,
    ξ takes an Adam step with weight decay γ on d_k = z_k (δ_k − Σ_j z_j δ_j).

    Paper: Liu, Feng, Stone and Liu 2023, `arXiv:2306.03792 <https://arxiv.org/abs/2306.03792>`_. γ is the paper's
    Algorithm 2 (the authors' code has 1e-5). As there, the weights sum to 1, so a learning rate tuned for the
    plain sum should be about K times larger. Absent objectives are left out of z, c and ξ's step. L_k − b_k counts
    as at least 1e-8, where the authors' code adds 1e-8 and turns into NaN below: a loss at its bound would get an
    infinite weight. A first loss below its bound is refused. One objective gets the weight 1.

    It costs one more forward pass a step, without gradients.

    Args:
        lr: learning rate of ξ, at least 0.
        weight_decay: γ at least 0.
        lower_bounds: b_k, {objective: bound} or in the objectives' order; 0 if None.

    Raises:
        ValueError: a negative `lr` or `weight_decay`; bounds that are not finite or do not fit the
            objectives; a first loss below its bound; a resumed state of other objectives.

    >>> balancer = FAMO(lr=0.5)
    >>> balancer.setup(["circle", "rhombus"])
    >>> before = Evidence(["circle", "rhombus"], [torch.tensor(1.0), torch.tensor(3.0)])
    >>> balancer.combine(before)
    tensor([0.7500, 0.2500])
    >>> balancer.after({"circle": torch.tensor(0.5), "rhombus": torch.tensor(2.9)})
    >>> balancer.combine(before)
    tensor([0.5246, 0.4754])
    """

    needs = Needs.LOSSES | Needs.LOSSES_AFTER
    keeps = "a learned logit per task"

    def __init__(
        self,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        lower_bounds: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        at_least("lr", lr, 0)
        at_least("weight_decay", weight_decay, 0)
        in_range("lower_bounds", lower_bounds)
        self.lr = lr
        self.weight_decay = weight_decay
        self.lower_bounds = lower_bounds
        self._logits = Learned(lr, weight_decay)
        self._bounds = Constants({}, 0.0)
        self._look = FirstLook("FAMO", "their lower bounds")
        self._before: dict[str, Tensor] = {}

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        self._bounds = Constants(by_name("lower_bounds", self.lower_bounds, names, 0.0), 0.0)
        for name in names:
            self._logits.add(name, torch.tensor(0.0))
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        gaps = losses - self._bounds(names, losses)
        self._look(names, gaps)
        gaps = gaps.clamp(min=1e-8)
        self._before = dict(zip(names, gaps.log().unbind(), strict=True))
        parts = self._logits.stack(names, losses.device).softmax(0) / gaps
        return parts / parts.sum()

    def after(self, losses: Mapping[str, Tensor]) -> None:
        names = [name for name in self._before if name in losses]
        if len(names) < 2:
            return
        before = torch.stack([self._before[name] for name in names])
        now = torch.stack([losses[name].detach().to(before) for name in names])
        falls = before - (now - self._bounds(names, now)).clamp(min=1e-8).log()
        shares = self._logits.stack(names, before.device).softmax(0)
        self._logits.step(names, (shares * (falls - shares @ falls)).unbind())

    def get_extra_state(self) -> dict[str, Any]:
        return {"logits": self._logits.state(), "seen": list(self._look.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._logits.load(state["logits"])
        self._look.seen = list(state["seen"])

    def describe(self) -> dict[str, Any]:
        bounds = self.lower_bounds
        return super().describe() | {
            "lr": self.lr, "weight_decay": self.weight_decay,
            "lower_bounds": dict(bounds) if isinstance(bounds, Mapping) else bounds and list(bounds),
        }  # fmt: skip
