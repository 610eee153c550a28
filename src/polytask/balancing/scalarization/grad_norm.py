"""GradNorm: gradient normalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, Needs, Scalarizer
from polytask.balancing.keyed import FirstLook, Learned
from polytask.errors import at_least

_SMALLEST = 1e-6


@final
class GradNorm(Scalarizer):
    """Learned weights that give all tasks gradients of like length, longer ones to the slow: S = Σ_k w_k L_k.

    With G_k = w_k ‖g_k‖, g_k the gradient of L_k on the shared block, Ḡ the mean of the G_k, and
    r_k = (L_k / L_k⁰) / mean_j(L_j / L_j⁰) the relative inverse training rate, w takes an Adam step on
    Σ_k |G_k − Ḡ r_k^α| with Ḡ r_k^α held constant, and is rescaled to its former sum: Σ_k w_k = K. The
    weights of a step are those from before w moves, as in the paper's Algorithm 1.

    Paper: Chen, Badrinarayanan, Lee and Rabinovich 2018, `arXiv:1711.02257 <https://arxiv.org/abs/1711.02257>`_.
    It takes g_k at the last shared layer only, to save time; here it is the whole shared block's, which the
    engine has at hand, and which needs no choice of a layer. L_k⁰ is the first loss seen, floored at 1e-8 (the
    paper suggests the logarithm of the number of classes where the initialisation is poor). Weights are kept
    at least 1e-6: the paper's may turn negative and would then raise a loss. Absent objectives keep their weights.
    Where the shared block is frozen there are no such gradients and the weights rest. One objective gets 1.

    Args:
        alpha: α at least 0: how strongly rates are evened; 0 evens gradient lengths alone. The paper uses
            0.12 to 1.5.
        lr: learning rate of w, at least 0.

    Raises:
        ValueError: a negative `alpha` or `lr`, a first loss below 0, or a resumed state of other objectives.

    >>> balancer = GradNorm(lr=0.1)
    >>> balancer.setup(["circle", "rhombus"])
    >>> jacobian = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> evidence = Evidence(["circle", "rhombus"], [torch.tensor(1.0), torch.tensor(1.0)], jacobian)
    >>> balancer.combine(evidence), balancer.combine(evidence)
    (tensor([1., 1.]), tensor([0.9000, 1.1000]))
    """

    needs = Needs.LOSSES | Needs.NORMS
    keeps = "a learned weight per task, and first losses"

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__()
        at_least("alpha", alpha, 0)
        at_least("lr", lr, 0)
        self.alpha = alpha
        self.lr = lr
        self._weights = Learned(lr)
        self._first: dict[str, Tensor] = {}
        self._look = FirstLook("GradNorm", "0")

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        for name in names:
            self._weights.add(name, torch.tensor(1.0))
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        weights = self._weights.stack(names, losses.device)
        self._look(names, losses)
        for name, loss in zip(names, losses, strict=True):
            self._first.setdefault(name, loss.clamp(min=1e-8))
        if len(names) > 1 and (evidence.gram is not None or evidence.jacobian is not None):
            self._learn(names, losses, weights, evidence.norms.to(weights))
        return weights

    def _learn(self, names: Sequence[str], losses: Tensor, weights: Tensor, norms: Tensor) -> None:
        first = torch.stack([self._first[name].to(losses.device) for name in names])
        fractions = losses.clamp(min=0) / first
        rates = fractions / fractions.mean().clamp(min=1e-12)
        lengths = weights * norms
        targets = lengths.mean() * rates**self.alpha
        self._weights.step(names, (torch.sign(lengths - targets) * norms).unbind())
        moved = self._weights.stack(names, losses.device).clamp(min=_SMALLEST)
        self._weights.put(names, (moved * (weights.sum() / moved.sum())).unbind())

    def get_extra_state(self) -> dict[str, Any]:
        first = {name: loss.clone() for name, loss in self._first.items()}
        return {"weights": self._weights.state(), "first": first, "seen": list(self._look.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._weights.load(state["weights"])
        self._first = {name: loss.clone() for name, loss in state["first"].items()}
        self._look.seen = list(state["seen"])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"alpha": self.alpha, "lr": self.lr}
