"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from polytask.balancing.base import Evidence, Scalarizer
from polytask.balancing.keyed import Constants, Learned, known
from polytask.errors import at_least


@final
class Uncertainty(Scalarizer):
    """Learned task uncertainties: S = Σ_k (f_k exp(−s_k) L_k + s_k / 2).

    s_k = log σ_k² is learned, one per objective: a task whose loss stays large is called noisy and counts
    less, and s_k / 2 keeps σ_k from growing for ever. At the optimum w_k = f_k exp(−s_k) = 1 / (2 L_k). The
    weights are ∂S/∂L_k = f_k exp(−s_k).

    Paper: Kendall, Gal and Cipolla 2018, `arXiv:1705.07115 <https://arxiv.org/abs/1705.07115>`_. It learns s
    with the network's optimizer; here s takes one Adam step on ∂S/∂s_k = 1/2 − f_k exp(−s_k) L_k after the
    weights were read, so that the network's optimizer, its weight decay and its schedule never touch it. The
    paper's two factors are both offered: f_k = 1/2 follows from a Gaussian likelihood (squared error), f_k = 1
    from a softmax's; much public code uses 1/2 for all, which is the default. A single objective gets the weight
    1 and learns nothing.

    Args:
        classification: the objectives whose f_k is 1.
        lr: learning rate of s, at least 0.
        initial: the first s_k.

    Raises:
        ValueError: an unknown objective in `classification`, a negative `lr`, or a resumed state of other
            objectives.

    >>> balancer = Uncertainty(classification=["digit"])
    >>> balancer.setup(["age", "digit"])
    >>> balancer.combine(Evidence(["age", "digit"], [torch.tensor(2.0), torch.tensor(0.1)]))
    tensor([0.5000, 1.0000])
    """

    keeps = "a learned log variance per task"

    def __init__(self, classification: Collection[str] = (), lr: float = 0.025, initial: float = 0.0) -> None:
        super().__init__()
        at_least("lr", lr, 0)
        self.classification = tuple(classification)
        self.lr = lr
        self.initial = initial
        self._log_variances = Learned(lr)
        self._factors = Constants(dict.fromkeys(self.classification, 1.0), 0.5)

    def setup(self, names: Sequence[str], examples: Mapping[str, int] | None = None) -> None:
        known("classification", self.classification, names)
        for name in names:
            self._log_variances.add(name, torch.tensor(float(self.initial)))
        super().setup(names, examples)

    def combine(self, evidence: Evidence) -> Tensor:
        names, losses = evidence.names, evidence.losses
        if len(self._log_variances) == 1:
            return torch.ones_like(losses)
        weights = self._factors(names, losses) * torch.exp(-self._log_variances.stack(names, losses.device))
        self._log_variances.step(names, (0.5 - weights * losses).unbind())
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {"log_variances": self._log_variances.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._log_variances.load(state["log_variances"])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "classification": list(self.classification), "lr": self.lr, "initial": self.initial
        }  # fmt: skip
